"""The strategies reach every convention, fit the model they are drawn for, and shrink."""

import dataclasses
import subprocess
import sys
import typing

import numpy as np
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq import config as configs
from refseq2seq.testing import strategies
from refseq2seq.tokens import as_tokens


def choices(config):
    """What a config and those inside it have chosen: (class, field, choice)."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        kind = type(config).__name__
        for member in value if typing.get_origin(hint) is tuple else [value]:
            if dataclasses.is_dataclass(member):
                yield kind, field.name, type(member).__name__
                yield from choices(member)
            elif member is None or isinstance(member, str | bool):
                yield kind, field.name, member


def all_choices(hint):
    """The members of Literals and unions, True and False."""
    if hint is bool:
        return [True, False]
    members = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return all_choices(members[0])
    if typing.get_origin(hint) is typing.Literal:
        return members
    return [None if t is type(None) else t.__name__ for t in members]


def test_every_convention_is_drawn():
    seen = set()

    @settings(max_examples=200)
    @given(config=strategies.configs())
    def collect(config):
        seen.update(choices(config))

    collect()
    classes = [
        configs.NormConfig, configs.AttentionConfig, configs.FeedForwardConfig,
        configs.LearnedPositions, configs.SinusoidalPositions, configs.RotaryPositions,
        configs.AlibiPositions, configs.BucketedPositions, configs.StackConfig, configs.ModelConfig,
    ]  # fmt: skip
    for kind in classes:
        for name, hint in typing.get_type_hints(kind).items():
            if name not in ("TYPE", "forced_bos_id", "forced_eos_id"):  # left to the logits
                for choice in all_choices(hint):
                    assert (kind.__name__, name, choice) in seen


@settings(max_examples=30)
@given(data=st.data())
def test_what_is_drawn_fits_the_model(data):
    model = data.draw(strategies.models(dtype="float32"))
    source = data.draw(strategies.sources(model))
    c = model.config
    ids, mask = as_tokens("source", source.tokens, c.encoder.vocab_size, source.mask)
    mask = np.ones(ids.shape, dtype=bool) if mask is None else mask
    assert source.rows == [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    assert all(source.rows)
    assert 1 <= source.batch == len(source.rows) <= 3
    target = data.draw(strategies.targets(model, source.batch))
    assert target.shape[0] == source.batch
    assert rs.forward(model, source.tokens, target, source.mask).dtype == np.float32
    prefix = data.draw(strategies.prefixes(model, source.batch))
    assert len(prefix) == source.batch
    assert all(row[0] == c.decoder_start_id for row in prefix)
    uniforms = data.draw(strategies.uniforms(source.batch, 5))
    assert uniforms.shape == (source.batch, 5)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    rs.generate(
        model,
        source.tokens,
        source_mask=source.mask,
        prefix=prefix,
        max_new_tokens=5,
        choose=rs.sample(),
        uniforms=uniforms,
    )


# Hypothesis tries the simplest example first, so without shrinking this is that one.
first_found = settings(phases=[Phase.generate], max_examples=1000)
MODEL = find(strategies.models(), lambda model: True, settings=first_found)


def test_the_simplest_model_is_simple():
    for stack in MODEL.config.encoder, MODEL.config.decoder:
        assert (stack.n_layers, stack.d_model, stack.vocab_size) == (1, 2, 5)
        assert stack.positions is None
        assert stack.relative_positions is None
        assert stack.self_attention.n_heads == 1
        assert stack.self_attention.biases == ()
    assert len(repr(MODEL)) < 80


def test_failures_shrink_to_what_makes_them():
    simplest = find(strategies.attentions(), lambda c: True, settings=first_found)
    found = find(strategies.attentions(), lambda c: c.n_memory_kv and c.head_scale)
    assert found == dataclasses.replace(simplest, n_memory_kv=1, head_scale=True)


def test_padding_is_on_every_side():
    for padded in [[False, True], [True, False], [True, False, True]]:

        def has_it(source, padded=padded):
            return source.mask is not None and padded in source.mask.tolist()

        find(strategies.sources(MODEL), has_it, settings=first_found)


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )


def test_the_package_does_not_import_hypothesis():
    program = "import sys, refseq2seq, refseq2seq.testing; sys.exit('hypothesis' in sys.modules)"
    assert run(program).returncode == 0


def test_without_hypothesis_the_error_says_what_to_install():
    program = "import sys; sys.modules['hypothesis'] = None; import refseq2seq.testing.strategies"
    result = run(program)
    assert result.returncode == 1
    assert "ImportError: refseq2seq.testing.strategies needs Hypothesis" in result.stderr
    assert "pip install 'refseq2seq[test]'" in result.stderr
