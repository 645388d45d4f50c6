"""The forward pass: against the scalar implementation, and in the relations it must keep."""

import dataclasses
import typing
from functools import cache, reduce
from operator import getitem

import arrangements
import numpy as np
import pytest
import relations
import scalar
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs
from refseq2seq import config
from refseq2seq.attention import keys_values
from refseq2seq.params import build_params, map_arrays, named_arrays, param_shapes
from refseq2seq.testing import strategies

SOURCE = [[3, 4, 5, 6, 7, 28], [8, 9, 10]]
TARGET = np.array([[1, 4, 6, 7, 9, 4, 22, 2], [1, 5, 8, 3, 3, 10, 17, 0]])

every_arrangement = pytest.mark.parametrize(
    "config", arrangements.ALL.values(), ids=arrangements.ALL
)


def row_error(actual, expected):
    """The largest deviation from a row of finite numbers, relative to the row's largest."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    assert np.isfinite(actual).all()
    return (np.abs(actual - expected).max(axis=-1) / np.abs(expected).max(axis=-1)).max()


def amplification(model, source, target, mask):
    """How many times greater a relative error within the model is when it reaches the logits."""
    rng = np.random.default_rng(0)
    shake = rs.FunctionTap(lambda name, x: x * (1 + 2.0**-30 * rng.choice([-1, 1], x.shape)))
    shaken = rs.forward(model, source, target, mask, tap=shake)
    return row_error(shaken, rs.forward(model, source, target, mask)) * 2**30


# Values: the scalar implementation.


@settings(max_examples=60)
@given(data=st.data())
def test_forward_agrees_with_the_scalar_implementation(data):
    """To 1e-13 of a row's largest logit, for any config.

    A few random models amplify rounding without bound, by cancellation before a norm.
    They are left out: of those that amplify less than 100 times, 2,500 were at most 4.6e-14 off.
    """
    model = data.draw(strategies.models(), label="model")
    source = data.draw(strategies.sources(model), label="source")
    target = data.draw(strategies.targets(model, source.batch), label="target")
    assume(amplification(model, source.tokens, target, source.mask) < 100)
    logits = rs.forward(model, source.tokens, target, source.mask)
    for row, tokens, actual in zip(source.rows, target.tolist(), logits, strict=True):
        assert row_error(actual, scalar.forward(model, row, tokens)) < 1e-13


@every_arrangement
def test_generate_agrees_with_the_scalar_implementation(config):
    model = rs.Model.random(config, seed=3, dtype="float64")
    prefix = [[1, 4, 7], [1]]
    out = rs.generate(model, SOURCE, prefix=prefix, max_new_tokens=6)
    for i, row in enumerate(SOURCE):
        tokens, log_probs = scalar.generate(model, row, 6, prefix[i])
        assert out.tokens[i, : out.lengths[i]].tolist() == tokens
        np.testing.assert_allclose(
            out.log_probs[i, : out.lengths[i]], log_probs, rtol=1e-13, equal_nan=False
        )


# 240 random models of these arrangements, float32 against float64, and as many pairs of each
# relation, were at most 130 and 32 units apart; the median was 10. A wrong term is 10,000.
UNITS = 250


@every_arrangement
def test_float32_is_float64_rounded(config):
    model = rs.Model.random(config, seed=3, dtype="float32")
    expected = rs.forward(model.astype("float64"), SOURCE, TARGET)
    assert row_error(rs.forward(model, SOURCE, TARGET), expected) < UNITS * 2.0**-24


# Relations, with BLAS: equal up to rounding. Bit for bit they are in test_exact.py.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("relation", relations.ALL, ids=lambda relation: relation.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_relations_hold_up_to_rounding(relation, dtype, data):
    config = data.draw(st.sampled_from(list(arrangements.ALL.values())))
    model = rs.Model.random(config, data.draw(st.integers(0, 99), label="seed"), dtype)
    assert row_error(*relation(data, model)) < UNITS * np.finfo(dtype).eps / 2


def changed(config, **fields):
    """The configuration with fields of both stacks replaced."""
    return dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, **fields),
        decoder=dataclasses.replace(config.decoder, **fields),
    )


def test_without_positions_the_source_has_no_order():
    config = changed(arrangements.t5_like, positions=None, relative_positions=None)
    model = rs.Model.random(config, 0, "float64")
    actual = rs.forward(model, [[6, 3, 7, 28, 5, 4]], TARGET[:1])
    assert row_error(actual, rs.forward(model, SOURCE[:1], TARGET[:1])) < 1e-13


@pytest.mark.parametrize(
    "positions",
    [
        config.LearnedPositions(n_positions=17, offset=0, scale=1.0),
        *(
            config.SinusoidalPositions(layout=layout, offset=0, scale=1.0)
            for layout in ("interleaved", "concatenated", "tensor2tensor")
        ),
        config.RotaryPositions(d_rotary=2, base=9.0, pairing="halves"),
        config.AlibiPositions(slopes=(1.0, 0.5, 0.25)),
        config.BucketedPositions(
            n_buckets=8, max_distance=6, bidirectional=True, per_layer=False, scale=1.0
        ),
    ],
    ids=lambda positions: positions.TYPE,
)
def test_with_positions_the_order_matters(positions):
    is_added = positions.TYPE in ("learned", "sinusoidal")
    fields = {"positions" if is_added else "relative_positions": positions}
    plain = changed(arrangements.t5_like, positions=None, relative_positions=None)
    model = rs.Model.random(changed(plain, **fields), 0, "float64")
    actual = rs.forward(model, [[6, 3, 7, 28, 5, 4]], TARGET[:1])
    assert row_error(actual, rs.forward(model, SOURCE[:1], TARGET[:1])) > 1e-3
    order = np.array([0, 2, 1, 3, 4, 5, 6, 7])  # nor do earlier target tokens commute
    actual = rs.forward(model, SOURCE[:1], TARGET[:1, order])
    assert row_error(actual[:, 3:], rs.forward(model, SOURCE[:1], TARGET[:1])[:, 3:]) > 1e-3


def test_renamed_token_ids_rename_the_logits():
    """No id is special to the forward pass."""
    model = rs.Model.random(arrangements.vaswani, 0, "float64")
    names = np.random.default_rng(0).permutation(29)
    renamed = map_arrays(
        model.config, model.params, lambda x: x[np.argsort(names)] if x.shape[0] == 29 else x
    )
    actual = rs.forward(
        dataclasses.replace(model, params=renamed),
        [names[row].tolist() for row in SOURCE],
        names[TARGET],
    )
    assert row_error(actual[..., names], rs.forward(model, SOURCE, TARGET)) < 1e-13


# Every array and every convention matters.


@cache
def base(config):
    """A model, and its logits."""
    model = rs.Model.random(config, 0, "float64")
    return model, rs.forward(model, SOURCE, TARGET)


def effect(original, **replaced):
    """How far the logits move when the model's params or config are replaced."""
    model, logits = base(original)
    return row_error(rs.forward(dataclasses.replace(model, **replaced), SOURCE, TARGET), logits)


@every_arrangement
def test_every_array_changes_the_logits(config):
    """Except biases of keys: they add the same to all scores of a query."""
    model, _ = base(config)
    sign, arrays, effects = np.random.default_rng(0), dict(named_arrays(model.params)), {}
    for name in param_shapes(config):
        nudged = arrays | {name: arrays[name] + sign.choice([-0.1, 0.1], arrays[name].shape)}
        params = build_params(config, lambda n, shape, nudged=nudged: nudged[n])
        effects[name] = effect(config, params=params)
    assert len(effects) > 30
    for name, size in effects.items():
        if name.endswith("b_k") and config is arrangements.vaswani:
            assert size < 1e-13, name
        else:
            assert size > 1e-6, name


ACTIVATIONS = typing.get_args(config.Activation)


def conventions(fields, path=""):
    """Every field of a config that can be another without other arrays, and its other value."""
    others = {
        "eps": 0.1,
        "base": 7.0,
        "max_distance": 4,
        "kind": {"layer_norm": "rms_norm", "rms_norm": "std_norm", "std_norm": "l2_norm"},
        "activation": dict(zip(ACTIVATIONS, [*ACTIVATIONS[1:], ACTIVATIONS[0]], strict=True)),
        "kv_head_order": {"grouped": "tiled", "tiled": "grouped"},
        "layout": {"interleaved": "concatenated"},
        "pairing": {"halves": "interleaved"},
        "embedding_norm": {"after_positions": "before_positions",
                           "before_positions": "after_positions", "none": "none"},
        "bidirectional": {True: False, False: True},
    }  # fmt: skip
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from conventions(value, f"{path}{name}.")
        elif name.endswith("scale") and isinstance(value, float):
            yield path + name, 1.7 * value
        elif name == "slopes":
            yield path + name, [1.7 * slope for slope in value]
        elif name == "offset":
            yield path + name, value - 1 if value else 1
        elif name in others:
            other = others[name]
            yield path + name, other[value] if isinstance(other, dict) else other


@every_arrangement
def test_every_convention_changes_the_logits(config):
    found = dict(conventions(config.to_dict()))
    assert len(found) >= 14
    for path, other in found.items():
        fields = config.to_dict()
        *places, name = path.split(".")
        inner = reduce(getitem, places, fields)
        one_kv_each = inner.get("n_heads") == inner.get("n_kv_heads")
        if inner[name] == other or (name == "kv_head_order" and one_kv_each):
            continue
        inner[name] = other
        assert effect(config, config=rs.ModelConfig.from_dict(fields)) > 1e-6, path


# Edges.


@every_arrangement
def test_a_source_without_real_tokens_is_attended_nowhere(config):
    """Its row is finite, attends to nothing, and changes no other row."""
    model = rs.Model.random(config, 0, "float64")
    tokens, mask = np.array([[3, 4, 5], [6, 7, 8]]), np.array([[True, True, True], [False] * 3])
    trace = rs.Trace("*cross_attention.heads")
    logits = rs.forward(model, tokens, TARGET, mask, tap=trace)
    assert np.isfinite(logits).all()
    assert row_error(logits[:1], rs.forward(model, tokens[:1], TARGET[:1])) < 1e-13
    assert len(trace) == config.decoder.n_layers
    if not config.decoder.cross_attention.n_learned_kv:
        assert not any(heads[1].any() for heads in trace.values())


@every_arrangement
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_in_is_dtype_out(config, dtype):
    model = rs.Model.random(config, 0, dtype)
    trace = rs.Trace()
    memory = rs.encode(model, SOURCE, tap=trace)
    cache = rs.new_cache(model, 2, 8)
    logits = rs.decode(model, TARGET, memory, cache=cache, tap=trace)
    arrays = {"logits": logits, "hidden": memory.hidden, **trace}
    arrays |= {f"keys.{i}": k for i, k in enumerate(memory.keys)}
    arrays |= {f"values.{i}": v for i, v in enumerate(memory.values)}
    assert {name: x.dtype for name, x in arrays.items() if x.dtype != dtype} == {}
    assert all(np.isfinite(x).all() for x in arrays.values())


@every_arrangement
def test_arguments_are_not_changed(config):
    """Arrays that cannot be written to do as well as others."""

    def read_only(x):
        x = np.array(x)
        x.setflags(write=False)
        return x

    model = rs.Model.random(config, 0, "float64")
    model = dataclasses.replace(model, params=map_arrays(config, model.params, read_only))
    source, target = read_only([[3, 4, 5], [6, 7, 8]]), read_only(TARGET)
    mask = read_only([[True, True, False], [True, True, True]])
    memory = rs.encode(model, source, mask)
    for x in (memory.hidden, memory.mask, *memory.keys, *memory.values):
        x.setflags(write=False)
    cache = rs.new_cache(model, 2, 8)
    first = rs.decode(model, target[:, :3], memory, cache=cache)
    kept = first.copy()
    rs.decode(model, target[:, 3:], memory, cache=cache)
    np.testing.assert_array_equal(first, kept)  # results are no views of the cache
    rs.generate(model, source, source_mask=mask, prefix=target[:, :2], max_new_tokens=3)
    lists = [[3, 4, 5], [6]]
    rs.forward(model, lists, target)
    assert lists == [[3, 4, 5], [6]]


def test_take_gives_rows_of_a_memory():
    model = rs.Model.random(arrangements.rich, 0, "float64").exact()
    memory = rs.encode(model, SOURCE)
    assert memory.batch == 2
    taken = memory.take(np.array([1, 0, 1]))
    assert taken.batch == 3
    logits = rs.decode(model, TARGET[[1, 0, 1]], taken)
    assert logits.tobytes() == rs.decode(model, TARGET, memory)[[1, 0, 1]].tobytes()
    unmasked = rs.encode(model, [[3, 4, 5]])
    assert unmasked.mask is None
    assert unmasked.take(np.array([0, 0])).mask is None


def test_the_source_is_encoded_and_projected_once(monkeypatch):
    """Keys and values of the source: once per decoder layer, however many steps follow."""
    model, projected = rs.Model.random(arrangements.x_transformers, 0), []
    monkeypatch.setattr(
        "refseq2seq.model.keys_values",
        lambda p, c, x: projected.append(id(p)) or keys_values(p, c, x),
    )
    trace = rs.Trace("*cross_attention.?", "encoder.embed", "step.*.decoder.embed")
    rs.generate(model, SOURCE, max_new_tokens=5, eos_ids=(), tap=trace)
    assert projected == [id(p.cross_attention) for p in model.params.decoder.layers]
    names = [name for name in trace if name.endswith((".k", ".v"))]
    assert names == [f"decoder.layers.{i}.cross_attention.{x}" for i in range(3) for x in "kv"]
    assert [trace[f"step.{i}.decoder.embed"].shape[1] for i in range(5)] == [1] * 5


# The model itself.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_astype_rounds_each_array(dtype):
    model = rs.Model.random(arrangements.rich, 0, "float64")
    rounded = model.astype(dtype)
    assert (model.dtype, rounded.dtype) == (np.dtype("float64"), np.dtype(dtype))
    arrays = dict(named_arrays(rounded.params))
    for name, x in named_arrays(model.params):
        np.testing.assert_array_equal(arrays[name], x.astype(dtype), strict=True)
    assert rounded.config is model.config


def test_tied_tables_stay_one_array():
    model = rs.Model.random(arrangements.t5_like, 0)
    n = sum(x.size for name, x in named_arrays(model.params))
    n -= 2 * model.params.unembedding.size  # the one table is there three times
    assert repr(model) == f"<Model of {n:,} parameters, float32>"
    model = model.astype("float64").exact().to("numpy")
    assert np.shares_memory(model.params.encoder.embedding, model.params.decoder.embedding)
    assert np.shares_memory(model.params.unembedding, model.params.decoder.embedding)
    assert model.xp is model.to("numpy").xp is np


# Errors. What tokens may look like is in test_checks.py.

MODEL = rs.Model.random(arrangements.x_transformers, 0)
MEMORY = rs.encode(MODEL, SOURCE)


@pytest.mark.parametrize(
    ("call", "kind", "names"),
    [
        (lambda: rs.encode(MODEL, [[29]]), ValueError, ["source", "29", "row 0, position 0"]),
        (lambda: rs.encode(MODEL, []), ValueError, ["source is empty"]),
        (lambda: rs.encode(MODEL, [[3]], [[1]]), TypeError, ["source_mask"]),
        (lambda: rs.encode(MODEL, [[3] * 20]), ValueError, ["source", "20 tokens", "at most 19"]),
        (lambda: rs.decode(MODEL, [[23]] * 2, MEMORY), ValueError, ["target", "23"]),
        (lambda: rs.decode(MODEL, [[1] * 3], MEMORY), ValueError, ["target", "2 rows", "got 1"]),
        (lambda: rs.decode(MODEL, [[1] * 18] * 2, MEMORY), ValueError, ["18 tokens", "most 17"]),
        (lambda: rs.forward(MODEL, SOURCE, [[1]]), ValueError, ["target", "2 rows", "got 1"]),
        (lambda: MODEL.astype("float8"), ValueError, ["dtype", "'float8'"]),
        (lambda: MODEL.astype("int32"), ValueError, ["dtype", "'int32'"]),
        (lambda: MODEL.astype(None), ValueError, ["dtype", "None"]),
        (lambda: rs.Model.random({}, 0), TypeError, ["config", "dict"]),
        (lambda: dataclasses.replace(MODEL, config={}), TypeError, ["config", "dict"]),
    ],
)
def test_a_bad_argument_raises(call, kind, names):
    with raises_naming(kind, *names):
        call()


def test_a_cached_target_must_fit_the_position_table_and_the_cache():
    cache = rs.new_cache(MODEL, 2, 20)
    rs.decode(MODEL, [[1] * 16] * 2, MEMORY, cache=cache)
    rs.decode(MODEL, [[1]] * 2, MEMORY, cache=cache)
    with raises_naming(ValueError, "target", "18 tokens"):
        rs.decode(MODEL, [[1]] * 2, MEMORY, cache=cache)
    cache = rs.new_cache(MODEL, 2, 2)
    with raises_naming(ValueError, "at most 2 tokens", "3 more"):
        rs.decode(MODEL, [[1] * 3] * 2, MEMORY, cache=cache)


def test_only_real_tokens_need_positions():
    mask = np.arange(40) % 4 == 0
    logits = rs.forward(MODEL, [[3] * 40], TARGET[:1], mask[None])
    assert row_error(logits, rs.forward(MODEL, [[3] * 10], TARGET[:1])) < UNITS * 2.0**-24


# Config and params --------------------------------------------------------------------------------

CONTRADICTIONS = {
    "final_norm": ({"decoder": {"final_norm": False}}, "decoder.final_norm.gain"),
    "norm_positions": ({"encoder": {"norm_positions": ("after",)}}, "encoder.layers.0.self_norms"),
    "a norm more": (
        {"decoder": {"norm_positions": ("before", "branch")}},
        "decoder.layers.0.self_norms.branch.gain",
    ),
    "logits_bias": ({"logits_bias": True}, "logits_bias"),
    "embedding_norm": ({"encoder": {"embedding_norm": "after_positions"}}, "embedding_norm"),
    "fewer layers": ({"decoder": {"n_layers": 1}}, "decoder.layers.1"),
    "more layers": ({"encoder": {"n_layers": 3}}, "encoder.layers.2"),
    "vocab_size": (
        {"decoder": {"input": config.TokenInput(vocab_size=31)}},
        "decoder.embedding must have shape (31, 13)",
    ),
    "tied_logits": ({"tied_logits": True}, "tied_logits is True, but unembedding is not"),
    "n_register_tokens": ({"encoder": {"n_register_tokens": 2}}, "encoder.register_tokens"),
}


@pytest.mark.parametrize(("changes", "name"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_config_that_contradicts_the_arrays_raises(changes, name):
    config = MODEL.config
    for field, change in changes.items():
        old = getattr(config, field)
        new = dataclasses.replace(old, **change) if isinstance(change, dict) else change
        config = dataclasses.replace(config, **{field: new})
    with raises_naming(ValueError, name):
        dataclasses.replace(MODEL, config=config)


def test_ties_are_checked_by_their_numbers():
    config = dataclasses.replace(arrangements.vaswani, tied_logits=True, tied_embeddings=True)
    model = rs.Model.random(config, 0)
    encoder, table = model.params.encoder, model.params.unembedding

    def with_tables(embedding, unembedding):
        changed = dataclasses.replace(encoder, embedding=embedding)
        params = dataclasses.replace(model.params, encoder=changed, unembedding=unembedding)
        return rs.Model(config=config, params=params)

    same = with_tables(encoder.embedding.copy(), table.copy())  # such as a pickle gives it
    assert np.array_equal(rs.forward(same, [[3]], [[1]]), rs.forward(model, [[3]], [[1]]))
    with raises_naming(ValueError, "tied_logits", "unembedding", "decoder.embedding"):
        with_tables(encoder.embedding, table * 2)
    with raises_naming(ValueError, "tied_embeddings", "encoder.embedding", "decoder.embedding"):
        with_tables(encoder.embedding * 2, table)
    untied = dataclasses.replace(config, tied_logits=False, tied_embeddings=False)
    assert rs.Model(config=untied, params=model.params)  # equal numbers are no contradiction


@pytest.mark.parametrize("dtype", ["int64", "longdouble", "complex128"])
def test_parameters_of_another_dtype_raise(dtype):
    params = map_arrays(MODEL.config, MODEL.params, lambda x: x.astype(dtype))
    with raises_naming(ValueError, np.dtype(dtype).name, "float32"):
        rs.Model(config=MODEL.config, params=params)


@pytest.mark.parametrize("bad", [[1.0], np.ma.ones(29)])
def test_parameters_that_are_no_arrays_raise(bad):
    model = rs.Model.random(arrangements.vaswani, 0)
    params = dataclasses.replace(model.params, logits_bias=bad)
    with raises_naming(TypeError, "logits_bias", type(bad).__name__):
        dataclasses.replace(model, params=params)


@pytest.mark.parametrize("seed", [np.array([[1]]), [1], 1.0, None, "1", -1, True])
def test_a_seed_that_is_not_an_integer_raises(seed):
    with raises_naming((TypeError, ValueError), "seed"):
        rs.Model.random(arrangements.vaswani, seed)
