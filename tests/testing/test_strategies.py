"""The strategies reach every convention, fit the model they are drawn for, and shrink."""

import dataclasses
import subprocess
import sys
import typing

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

import refseq2seq as rs
from refseq2seq import config as configs
from refseq2seq.checks import as_source
from refseq2seq.testing import cases, strategies
from refseq2seq.testing.cases import PARAMETERS, PLAIN, Case, conventions


def choices(config):
    """What a config and those inside it have chosen: (class, field, choice)."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        for member in value if typing.get_origin(hint) is tuple else [value]:
            if dataclasses.is_dataclass(member):
                yield type(config), field.name, type(member)
                yield from choices(member)
            elif member is None or isinstance(member, str | bool):
                yield type(config), field.name, member
            elif isinstance(member, float):
                yield type(config), field.name, float


def all_choices(hint):
    """The members of Literals and unions, True and False."""
    if hint is bool:
        return [True, False]
    members = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return all_choices(members[0])
    return [None if member is type(None) else member for member in members]


def test_every_convention_is_drawn():
    seen = set()

    @settings(max_examples=200)
    @given(config=strategies.configs())
    def collect(config):
        seen.update(choices(config))

    collect()
    classes = [kind for kind in vars(configs).values() if dataclasses.is_dataclass(kind)]
    assert len(classes) == 14
    for kind in classes:
        for name, hint in typing.get_type_hints(kind).items():
            if name not in ("TYPE", "forced_bos_id", "forced_eos_id"):  # left to the logits
                for choice in all_choices(hint):
                    assert (kind, name, choice) in seen


@settings(max_examples=30)
@given(data=st.data())
def test_drawn_inputs_fit_the_model(data):
    model = data.draw(strategies.models(dtype="float32"))
    source = data.draw(strategies.sources(model))
    c = model.config
    ids, mask = as_source(c.encoder, source.tokens, source.mask)
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
    options = {"choose": rs.sample(), "uniforms": uniforms, "prefix": prefix, "max_new_tokens": 5}
    rs.generate(model, source.tokens, source_mask=source.mask, **options)
    memory = data.draw(strategies.memories(model, source.batch))
    assert memory.hidden.shape[::2] == (source.batch, c.encoder.d_model)
    rs.generate(model, memory, **options)


@settings(max_examples=20)
@given(data=st.data())
def test_embeddings_are_drawn_for_models_that_read_tokens(data):
    model = data.draw(strategies.models(config=strategies.configs(frames=False)))
    source = data.draw(strategies.sources(model, embedded=True, max_length=5))
    vectors, _ = as_source(model.config.encoder, source.tokens, source.mask)
    assert vectors.shape[-1] == model.config.encoder.d_model
    assert abs(vectors).max() <= 2
    assert np.isfinite(rs.forward(model, source.tokens, [[0]] * source.batch, source.mask)).all()


# Hypothesis tries the simplest example first, so this finds it without shrinking.
first_found = settings(phases=[Phase.generate], max_examples=1000)
shrinking = settings(phases=[Phase.generate, Phase.shrink], max_examples=2000)
MODEL = find(strategies.models(), lambda model: True, settings=first_found)


def test_the_simplest_model_is_simple():
    for stack in MODEL.config.encoder, MODEL.config.decoder:
        assert (stack.n_layers, stack.d_model, stack.vocab_size) == (1, 2, 5)
        assert stack.positions is None
        assert stack.relative_positions is None
        assert stack.self_attention.n_heads == 1
        assert stack.self_attention.biases == ()
    assert len(repr(MODEL)) < 80


def test_attentions_shrink_to_the_condition():
    drawn = strategies.attentions()
    simplest = find(drawn, lambda c: True, settings=first_found)
    found = find(drawn, lambda c: c.n_learned_kv and c.head_scale, settings=shrinking)
    assert found == dataclasses.replace(simplest, n_learned_kv=1, head_scale=True)


def test_padding_is_on_every_side():
    for padded in [[False, True], [True, False], [True, False, True]]:

        def has_it(source, padded=padded):
            return source.mask is not None and padded in source.mask.tolist()

        find(strategies.sources(MODEL), has_it, settings=first_found)


def test_the_package_does_not_import_hypothesis():
    program = """
import sys
import refseq2seq.testing
assert "hypothesis" not in sys.modules
sys.modules["hypothesis"] = None
import refseq2seq.testing.strategies
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: refseq2seq.testing.strategies" in result.stderr
    assert "refseq2seq[test]" in result.stderr


# Kinds of parameters. ----------------------------------------------------------------------


def trace_of(config, kind, seed=0):
    trace = rs.Trace()
    rs.forward(cases.make_model(config, kind, seed), [[3, 4, 1, 2]], [[0, 1, 2]], tap=trace)
    return trace


FIELDS = {
    "d_model": 7, "n_layers": 2, "input.vocab_size": 11, "feed_forward.d_ff": 13,
    "feed_forward.biases": ["in", "out"], "final_norm": True,
}  # fmt: skip
BOTH = {f"{stack}.{name}": x for stack in ("encoder", "decoder") for name, x in FIELDS.items()}
BASE = conventions(tied_logits=False, logits_bias=True, **BOTH)


@pytest.mark.parametrize("tied", [False, True])
def test_near_ties_come_in_pairs(tied):
    config = dataclasses.replace(BASE, tied_logits=tied)
    logits = trace_of(config, "near_ties")["logits"]
    pairs = abs(logits[..., :-1:2] - logits[..., 1::2])
    assert pairs.max() < 1e-14
    assert pairs.max() > 0
    assert abs(logits[..., 0] - logits[..., 2]).min() > 1e-3


def test_large_parameters_saturate():
    def largest_weight(kind):
        return trace_of(BASE, kind)["encoder.layers.0.self_attention.weights"].max(axis=-1).mean()

    assert largest_weight("large") > 0.85
    assert largest_weight("well_scaled") < 0.5


def test_tiny_variances_are_below_eps_so_that_eps_changes_the_logits():
    trace = trace_of(BASE, "tiny_variances")
    for name in ("encoder.embed", "encoder.layers.1.after_feed_forward", "decoder.embed"):
        assert trace[name].var(axis=-1).max() < BASE.encoder.norm.eps
    eps = {f"{stack}.norm.eps": 1.01e-5 for stack in ("encoder", "decoder")}
    other = conventions(**cases.changed_fields(BASE) | eps)
    for kind, least, most in (("well_scaled", 0, 1e-6), ("tiny_variances", 1e-4, 1)):
        moved = abs(trace_of(other, kind)["logits"] - trace_of(BASE, kind)["logits"]).max()
        assert least < moved < most


def test_outliers_are_one_channel():
    for stack in ("encoder", "decoder"):
        x = abs(trace_of(BASE, "outliers")[f"{stack}.layers.1.after_feed_forward"][0])
        greatest = set(x.argmax(axis=-1).tolist())
        assert len(greatest) == 1
        assert (np.median(x, axis=-1) < x.max(axis=-1) / 10).all()
    channels = {
        int(trace_of(BASE, "outliers", seed)["encoder.embed"][0, 0].argmax()) for seed in range(9)
    }
    assert len(channels) > 1


@settings(max_examples=15)
@given(config=strategies.configs(), kind=strategies.kinds_of_parameters(), data=st.data())
def test_all_kinds_are_finite_in_float32_and_of_the_right_shapes(config, kind, data):
    params = data.draw(strategies.parameters(config, kind=kind, dtype="float32"))
    rs.params.check_params(config, params)
    model = rs.Model(config=config, params=params)
    assert model.dtype == np.float32
    source = data.draw(strategies.sources(model, max_batch=1))
    assert np.isfinite(rs.forward(model, source.tokens, [[0, 1]], source.mask)).all()


def test_a_model_may_be_of_any_kind_and_dtype():
    kinds, dtypes = strategies.kinds_of_parameters(), st.sampled_from(("float16", "float32"))
    models = strategies.models(config=BASE, kind=kinds, dtype=dtypes)
    found = find(models, lambda model: model.dtype == np.float32, settings=first_found)
    assert found.config is BASE


# Whole cases. -----------------------------------------------------------------------------------


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(case=strategies.cases(kind=strategies.kinds_of_parameters(), dtype="float32"))
def test_a_printed_case_runs_and_is_the_same_case(case):
    again = {}
    exec(str(case), again)
    assert again["case"] == case
    assert repr(again["case"]) == repr(case)
    np.testing.assert_array_equal(again["logits"], case.logits())
    np.testing.assert_array_equal(again["generation"].tokens, case.generation().tokens)
    batch = len(case.source)
    assert case.logits().shape[0] == case.generation().tokens.shape[0] == batch
    assert case.generation().tokens.shape[1] <= case.max_new_tokens <= 5
    assert case.model.dtype == np.float32


def test_a_plain_case_prints_short():
    assert repr(Case()) == "Case()"
    assert str(Case()).splitlines()[1] == "case = Case()"
    case = Case(PLAIN, source=[[3], [4, 1]], dtype="float32", uniforms=[[0.5], [0.25]])
    assert repr(case) == ("Case(dtype='float32', source=[[3], [4, 1]], uniforms=[[0.5], [0.25]])")
    assert case.generation().tokens.shape == (2, 1)


def test_the_plainest_conventions_are_those_that_are_drawn_first():
    assert find(strategies.configs(), lambda c: True, settings=first_found) == PLAIN
    assert cases.changed_fields(PLAIN) == {}


@given(config=strategies.configs())
def test_conventions_and_changed_fields_are_inverse(config):
    assert conventions(**cases.changed_fields(config)) == config


SHRUNK = {
    "Case()": lambda case: True,
    "Case(max_new_tokens=2)": lambda case: case.max_new_tokens > 1,
    "Case(conventions(**{'encoder.norm.kind': 'rms_norm'}), source=[[0], [0]])": lambda case: (
        case.config.encoder.norm.kind == "rms_norm" and len(case.source) > 1
    ),
    "Case(source=[[0, 0]], source_mask=[[False, True]])": lambda case: (
        case.source_mask and case.source_mask[0][:2] == [False, True]
    ),
    "Case(parameters='near_ties', prefix=[[0, 0, 0]])": lambda case: (
        case.parameters == "near_ties" and case.prefix and len(case.prefix[0]) > 2
    ),
    "Case(uniforms=[[0.5]])": lambda case: case.uniforms is not None and case.uniforms[0][0] > 0.3,
}


@pytest.mark.parametrize(("smallest", "condition"), SHRUNK.items(), ids=SHRUNK)
def test_cases_shrink_to_the_condition(smallest, condition):
    """Nothing else is left in the printed case."""
    kinds = st.sampled_from(("layer_norm", "rms_norm"))
    configs = kinds.map(lambda kind: conventions(**{"encoder.norm.kind": kind}))
    drawn = strategies.cases(config=configs, kind=strategies.kinds_of_parameters())
    assert repr(find(drawn, condition, settings=shrinking)) == smallest


def test_conventions_shrink_to_the_plain_ones():
    found = find(strategies.configs(), lambda c: c.tied_embeddings, settings=shrinking)
    assert found == conventions(tied_embeddings=True)


def test_frames_shrink_to_a_plain_layer():
    found = find(
        strategies.configs(),
        lambda c: isinstance(c.encoder.input, configs.FrameInput) and c.encoder.input.layers,
        settings=shrinking,
    )
    assert {*cases.changed_fields(found)} == {"encoder.input"}
    (layer,) = found.encoder.input.layers
    assert (layer.window, layer.stride, layer.activation, layer.norm_after) == (1, 1, "none", None)


def test_frames_that_fill_no_window_cannot_be_drawn():
    layer = {
        "d_out": 2, "window": 5, "stride": 2, "padding": 1, "bias": False, "activation": "none",
        "norm_before": None, "norm_after": None,
    }  # fmt: skip
    frames = {"type": "frames", "n_features": 3, "layers": [layer], "n_class_tokens": 1}
    config = conventions(**{"encoder.input": frames})
    with pytest.raises(InvalidArgument, match=r"max_length .*1 to 2 frames give 0 to 0"):
        find(strategies.sources(config, max_length=2), lambda x: True, settings=first_found)
    source = find(strategies.sources(config), lambda x: True, settings=first_found)
    assert rs.forward(rs.Model.random(config, 0), source.tokens, [[0]]).shape == (1, 1, 5)


def test_a_failing_test_shows_the_case():
    @shrinking
    @given(case=strategies.cases(config=PLAIN))
    def fails(case):
        assert case.max_new_tokens < 3

    with pytest.raises(AssertionError) as caught:
        fails()
    assert "case=Case(max_new_tokens=3)" in "\n".join(caught.value.__notes__)


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"encoder\.colour"):
        conventions(**{"encoder.colour": 1})
    with pytest.raises(ValueError, match=r"parameters .*'odd'"):
        cases.make_params(PLAIN, "odd", 0)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (lambda: strategies.models(config="small"), "config must be a ModelConfig"),
        (lambda: strategies.models(kind="odd"), "kind .*'odd'"),
        (lambda: strategies.models(dtype="int8"), "dtype .*'int8'"),
        (lambda: strategies.parameters("small"), "model .*str"),
        (lambda: strategies.sources(strategies.models()), "strategy of models"),
        (lambda: strategies.sources(PLAIN, max_batch=0), "max_batch, got 1 and 0"),
        (lambda: strategies.sources(PLAIN, min_length=8), "max_length, got 8 and 7"),
        (lambda: strategies.memories(PLAIN, 2), "model .*ModelConfig"),
        (lambda: strategies.targets(PLAIN, 2, min_length=0), "min_length"),
        (lambda: strategies.prefixes(PLAIN, 2, max_length=0), "min_length"),
        (lambda: strategies.cases(max_new_tokens=0), "min_new_tokens"),
    ],
)
def test_wrong_arguments_raise_invalid_argument(strategy, message):
    with pytest.raises(InvalidArgument, match=message):
        find(strategy(), lambda x: True, settings=first_found)


def test_a_position_table_limits_sizes():
    table = {"type": "learned", "n_positions": 3, "offset": 1, "scale": 1.0}
    config = conventions(**{f"{stack}.positions": table for stack in ("encoder", "decoder")})

    @settings(max_examples=50)
    @given(case=strategies.cases(config=config))
    def fits(case):
        case.logits()
        case.generation()

    fits()
    with pytest.raises(InvalidArgument, match="position table has 2"):
        find(strategies.sources(config, min_length=3), lambda x: True, settings=first_found)


def test_all_kinds_are_drawn():
    assert [
        find(strategies.kinds_of_parameters(), lambda kind, wanted=kind: kind == wanted)
        for kind in PARAMETERS
    ] == list(PARAMETERS)
