"""The properties hold of right implementations, ours and another, and each finds its faults."""

import dataclasses
import re
from pathlib import Path

import arrangements
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq import presets
from refseq2seq.testing import properties

CONFIG = presets.x_transformers(
    d_model=6, source_vocab_size=17, target_vocab_size=13, n_source_positions=11,
    n_target_positions=19, encoder_layers=1, decoder_layers=2, n_heads=2, d_k=3,
    decoder_start_id=1, eos_ids=(), pad_id=0,
)  # fmt: skip
MODEL = rs.Model.random(CONFIG, 0, "float64")
EOS = (2, 5, 11)  # greedy decoding of a random model comes to one now and then
NAMES = {p.name for p in properties.ALL}


def ours(model=MODEL, tap=rs.no_tap, **replaced):
    """Our model, as functions that may be replaced by faulty ones."""

    def begin(memory):
        cache = rs.new_cache(model, memory.batch, 32)
        return lambda tokens: rs.decode(model, tokens, memory, cache=cache, tap=tap)

    def generate(source, mask, n):
        options = {"source_mask": mask, "max_new_tokens": n, "eos_ids": EOS, "tap": tap}
        return rs.generate(model, source, **options).tokens

    c = model.config
    functions = {
        "encode": lambda source, mask: rs.encode(model, source, mask, tap=tap),
        "logits": lambda memory, target: rs.decode(model, target, memory, tap=tap),
        "begin": begin,
        "generate": generate,
    }
    return properties.Implementation(
        **functions | replaced,
        source_vocab_size=c.encoder.vocab_size,
        target_vocab_size=c.decoder.vocab_size,
        start_id=c.decoder_start_id,
        eos_ids=EOS,
        pad_id=c.pad_id,
        max_source_length=c.encoder.max_length,
        max_target_length=c.decoder.max_length,
    )


# Another model: a recurrent network with attention, one token after another. --------------------


class Recurrent:
    """Gated recurrent units with additive attention (Cho et al. 2014; Bahdanau et al. 2015)."""

    def __init__(self, dtype="float64", d=7, n_source=11, n_target=13):
        draw = np.random.default_rng(3).standard_normal
        shapes = {
            "source": (n_source, d), "target": (n_target, d), "encoder": (2 * d, 3 * d),
            "decoder": (3 * d, 3 * d), "query": (d, d), "key": (d, d), "energy": (d,),
            "out": (2 * d, n_target),
        }  # fmt: skip
        self.w = {name: draw(shape).astype(dtype) / 2 for name, shape in shapes.items()}

    def unit(self, name, x, h):
        """One step of a gated recurrent unit."""
        d = h.shape[-1]
        gates = 1 / (1 + np.exp(-np.concatenate([x, h], -1) @ self.w[name][:, : 2 * d]))
        update, reset = gates[:, :d], gates[:, d:]
        new = np.tanh(np.concatenate([x, reset * h], -1) @ self.w[name][:, 2 * d :])
        return update * h + (1 - update) * new

    def encode(self, source, mask):
        mask = np.ones(source.shape, dtype=bool) if mask is None else mask
        h, states = np.zeros_like(self.w["source"][source[:, 0]]), []
        for t in range(source.shape[1]):
            h = np.where(
                mask[:, t, None], self.unit("encoder", self.w["source"][source[:, t]], h), h
            )
            states.append(h)
        return np.stack(states, axis=1), mask, h

    def begin(self, memory):
        states, mask, h = memory

        def feed(tokens):
            nonlocal h
            logits = []
            for t in range(tokens.shape[1]):
                energy = np.tanh((h @ self.w["query"])[:, None] + states @ self.w["key"])
                weights = np.where(mask, np.exp(energy @ self.w["energy"]), 0)
                context = np.einsum("bn,bnd->bd", weights, states) / weights.sum(1, keepdims=True)
                x = np.concatenate([self.w["target"][tokens[:, t]], context], -1)
                h = self.unit("decoder", x, h)
                logits.append(np.concatenate([h, context], -1) @ self.w["out"])
            return np.stack(logits, axis=1)

        return feed

    def generate(self, source, mask, n):
        """A list per row, each ended by the token 2."""
        feed, rows = self.begin(self.encode(source, mask)), [[1] for _ in source]
        for _ in range(n):
            best = feed(np.array([row[-1:] for row in rows]))[:, 0].argmax(-1)
            rows = [[*row, token] for row, token in zip(rows, best.tolist(), strict=True)]
        new = [row[1:] for row in rows]
        return [row[: row.index(2) + 1] if 2 in row else row for row in new]

    def implementation(self):
        return properties.Implementation(
            encode=self.encode,
            logits=lambda memory, target: self.begin(memory)(target),
            begin=self.begin,
            generate=self.generate,
            source_vocab_size=11,
            target_vocab_size=13,
            start_id=1,
            eos_ids=(2,),
        )


# Right implementations. -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_hold_of_a_recurrent_network(dtype):
    report = properties.check(Recurrent(dtype).implementation())
    outcomes = {o.property.name: o.status for o in report.outcomes}
    assert {name for name, status in outcomes.items() if status == "not applicable"} == {
        "longest_source", "longest_target", "padding_after_end",
    }  # fmt: skip
    assert set(report.passed) == NAMES - {"longest_source", "longest_target", "padding_after_end"}
    assert max(o.worst for o in report.outcomes) < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("config", arrangements.ALL.values(), ids=arrangements.ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_they_hold_of_ours(config, dtype):
    report = properties.check(ours(rs.Model.random(config, 1, dtype)), trials=2)
    assert len(report.passed) >= len(NAMES) - 3


def test_all_are_tried_on_ours():
    report = properties.check(ours())
    assert report.passed == [p.name for p in properties.ALL]
    assert 0 < max(o.worst for o in report.outcomes) < 50 * np.finfo("float64").eps


# Faulty implementations: what is wrong, and the properties that must say so. --------------------


def tapped(function, pattern, **more):
    """Ours with ``function`` applied to every quantity whose name matches, in all that it does."""
    return ours(tap=tap_of(function, pattern), **more)


def tap_of(function, pattern):
    return rs.FunctionTap(lambda name, x: function(x) if re.fullmatch(pattern, name) else x)


def nan_at_the_end(x):
    x = x.copy()
    x[..., -1] = np.nan
    return x


def dropout(x, rng=np.random.default_rng(0)):  # noqa: B008
    return x * rng.integers(0, 2, x.shape)


def seeing_everything(weights):
    return 0.9 * weights + 0.1 / weights.shape[-1]


def positions_of(stack, places):
    """The learned positions of those places, (batch, n, d_model), or of (n,) for all rows."""
    c, p = getattr(MODEL.config, stack), getattr(MODEL.params, stack)
    return p.positions[places + c.positions.offset] * c.positions.scale


def writing_encode(source, mask):
    memory = rs.encode(MODEL, source, mask)
    source[:, 0] = 0
    return memory


def buffered():
    buffer = np.zeros((4, 32, MODEL.config.decoder.vocab_size))

    def keep(logits):
        buffer[: logits.shape[0], : logits.shape[1]] = logits
        return buffer[: logits.shape[0], : logits.shape[1]]

    return keep


def last_encoded():
    kept = []

    def encode(source, mask):
        kept[:] = [rs.encode(MODEL, source, mask)]
        return kept[0]

    return ours(encode=encode, logits=lambda memory, target: rs.decode(MODEL, target, kept[0]))


def wearing_out():
    def logits(memory, target):
        out = rs.decode(MODEL, target, memory[0])
        values = tuple(0.9 * v for v in memory[0].values)
        memory[0] = dataclasses.replace(memory[0], values=values)
        return out

    encode = lambda source, mask: [rs.encode(MODEL, source, mask)]  # noqa: E731
    return ours(encode=encode, logits=logits, begin=None, generate=None)


def at_most(n, function, argument):
    def checked(*args):
        if args[argument].shape[1] > n:
            raise IndexError(f"place {n} of a table of {n}")
        return function(*args)

    return checked


def last_always_real(source, mask):
    if mask is not None:
        mask[:, -1] = True
    return rs.encode(MODEL, source, mask)


def positions_by(place_of):
    """Ours with another rule for the positions of a masked source."""

    def encode(source, mask):
        if mask is None:
            return rs.encode(MODEL, source)
        places = np.maximum(place_of(mask), 0)
        return rs.encode(
            MODEL, source, mask,
            tap=tap_of(lambda x: positions_of("encoder", places), "encoder.positions"),
        )  # fmt: skip

    return ours(encode=encode)


def mask_only_across(source, mask):
    memory = rs.encode(MODEL, source)
    return dataclasses.replace(memory, mask=mask)


def shifted(target):
    return np.concatenate([target[:, :1], target[:, :-1]], axis=1)


def one_layer_without_positions():
    decoder = dataclasses.replace(MODEL.config.decoder, n_layers=1)
    config = dataclasses.replace(MODEL.config, decoder=decoder)
    return ours(
        rs.Model.random(config, 0, "float64"), tap=tap_of(lambda x: 0 * x, r".*decoder\.positions")
    )


def begin_with(feed_of):
    """Ours with a faulty function that feeds the cache."""

    def begin(memory):
        cache = rs.new_cache(MODEL, memory.batch, 32)
        return lambda tokens: feed_of(memory, cache, tokens)

    return ours(begin=begin)


def always_at_place_0(memory, cache, tokens):
    at_0 = tap_of(
        lambda x: positions_of("decoder", np.zeros(len(x), dtype=int)), "decoder.positions"
    )
    tap = at_0 if tokens.shape[1] == 1 else rs.no_tap
    return rs.decode(MODEL, tokens, memory, cache=cache, tap=tap)


def leaking_in_pieces(memory, cache, tokens):
    leak = tap_of(seeing_everything, r".*self_attention\.weights")
    tap = leak if tokens.shape[1] > 1 else rs.no_tap
    return rs.decode(MODEL, tokens, memory, cache=cache, tap=tap)


def one_cache_for_all():
    caches = {}

    def begin(memory):
        cache = caches.setdefault(id(memory), rs.new_cache(MODEL, memory.batch, 32))
        caches[id(cache)] = memory  # its id is not given to another
        return lambda tokens: rs.decode(MODEL, tokens, memory, cache=cache)

    return ours(begin=begin)


def views_of_a_cache():
    keep = buffered()
    return begin_with(lambda m, cache, tokens: keep(rs.decode(MODEL, tokens, m, cache=cache)))


def generating(change=lambda tokens: tokens, more=0, **options):
    def generate(source, mask, n):
        given = {"source_mask": mask, "eos_ids": EOS} | options
        return change(rs.generate(MODEL, source, max_new_tokens=n + more, **given).tokens)

    return ours(generate=generate)


def ended_at_the_limit(tokens):
    tokens[:, -1] = np.where(np.isin(tokens, EOS).any(axis=1), tokens[:, -1], EOS[0])
    return tokens


def wrapped(tokens):
    return tokens % (MODEL.config.encoder.vocab_size - 1)


FAULTS = {
    "NaN in the logits": (tapped(nan_at_the_end, "logits"), {"finite"}),
    "dropout left on": (tapped(dropout, r".*feed_forward\.hidden"), {"deterministic"}),
    "the source is written to": (ours(encode=writing_encode), {"inputs_stay"}),
    "logits in one buffer": (tapped(buffered(), "logits"), {"results_stay"}),
    "the last memory is used": (last_encoded(), {"memory_is_its_own"}),
    "a memory wears out": (wearing_out(), {"memory_serves_again"}),
    "positions end early in the source": (
        ours(encode=at_most(10, lambda s, m: rs.encode(MODEL, s, m), 0)), {"longest_source"},
    ),
    "positions end early in the target": (
        ours(logits=at_most(18, lambda m, t: rs.decode(MODEL, t, m), 1)), {"longest_target"},
    ),
    "the future is seen": (
        tapped(seeing_everything, r"decoder.*self_attention\.weights"), {"causality"},
    ),
    "the row's number is added": (
        tapped(lambda x: x + np.arange(len(x))[:, None, None], "logits"), {"batch_order"},
    ),
    "the batch's mean is taken off": (
        tapped(lambda x: x - x.mean(axis=0) / 9, r"encoder\.final"), {"row_alone"},
    ),
    "masked sources are scaled": (
        ours(encode=lambda s, m: rs.encode(
            MODEL, s, m, tap=tap_of(lambda x: x * (1 if m is None else 1.1), r"encoder\.final")
        )), {"full_mask"},
    ),
    "the encoder has no mask": (ours(encode=mask_only_across), {"padding_content"}),
    "the last place is never masked": (ours(encode=last_always_real), {"padding_right"}),
    "positions count padding": (
        positions_by(lambda mask: np.broadcast_to(np.arange(mask.shape[1]), mask.shape)),
        {"padding_left"},
    ),
    "positions count from the first real token": (
        positions_by(lambda mask: np.arange(mask.shape[1]) - mask.argmax(axis=1)[:, None]),
        {"padding_between"},
    ),
    "no cross-attention": (
        tapped(lambda x: 0 * x, r".*cross_attention\.out"), {"source_counts", "source_order"},
    ),
    "source ids wrap": (
        ours(encode=lambda s, m: rs.encode(MODEL, wrapped(s), m)), {"last_id_counts"},
    ),
    "no source positions": (tapped(lambda x: 0 * x, r"encoder\.positions"), {"source_order"}),
    "the target is shifted twice": (
        ours(logits=lambda m, t: rs.decode(MODEL, shifted(t), m)), {"target_counts"},
    ),
    "no target positions": (one_layer_without_positions(), {"target_order"}),
    "cached positions stay at 0": (begin_with(always_at_place_0), {"cached"}),
    "pieces see what follows": (begin_with(leaking_in_pieces), {"cached_in_pieces"}),
    "one cache for all": (one_cache_for_all(), {"cache_begins_empty"}),
    "cached logits in one buffer": (views_of_a_cache(), {"cached_results_stay"}),
    "a hidden penalty": (
        generating(choose=rs.greedy(rs.repetition_penalty(1.5))), {"greedy"},
    ),
    "EOS forced at the limit": (generating(ended_at_the_limit), {"generation_goes_on"}),
    "the start token counted": (generating(lambda tokens: tokens[:, :-1]), {"generation_ends"}),
    "one token too many": (generating(more=1), {"generation_ends"}),
    "no end": (generating(eos_ids=()), {"padding_after_end"}),
    "generation without the mask": (generating(source_mask=None), {"generation_alone"}),
}  # fmt: skip


@pytest.mark.parametrize(("implementation", "expected"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_found(implementation, expected):
    assert set(properties.examine(implementation, only=expected).failed) == expected


def test_each_property_finds_a_fault():
    assert set().union(*(expected for _, expected in FAULTS.values())) == NAMES


def scaled(part, factor):
    return tapped(lambda x: factor * x, rf".*{part}")


@pytest.mark.parametrize(
    "fault",
    [
        scaled("scores", 1.1),
        scaled("feed_forward.hidden", -1),
        scaled(r"encoder\.layers.*self_attention\.out", 0),
        tapped(lambda x: x + 1, r".*decoder\.final"),
        tapped(lambda x: x[:, ::-1], r".*attention\.heads"),
    ],
    ids=["scale", "sign", "no self-attention of the source", "bias", "heads in another order"],
)
def test_they_do_not_know_the_values(fault):
    properties.check(fault, trials=2)


# What is said of it. ----------------------------------------------------------------------------


def test_the_failure_is_a_story_with_a_small_counterexample():
    implementation, _ = FAULTS["the future is seen"]
    with pytest.raises(properties.PropertyError) as caught:
        properties.check(implementation, only=["causality", "row_alone"])
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.failed == ["causality"]
    assert caught.value.report.passed == ["row_alone"]
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 of 2 properties failed"
    assert re.match("failed +causality +Logits do not depend on later target tokens", lines[1])
    place = re.fullmatch(
        r"    trial 0: \S+ and \S+ at \((\d), (\d), (\d+)\), (\S+) of the row's greatest; "
        r"the limit is 5\.7e-14", lines[2],
    )  # fmt: skip
    assert place
    assert int(place[1]) < 2
    assert float(place[4]) > 1e-3
    inputs = dict(line.strip().split(" = ") for line in lines[3:-1])
    assert list(inputs) == ["source", "target", "changed target"]
    assert len(eval(inputs["source"])) == 2
    assert len(eval(inputs["target"])[0]) == 3
    assert lines[-1].endswith("properties.examine(implementation, only=['causality'], seed=0)")


def test_the_counterexample_is_one():
    """What the report shows, tried again by hand."""
    fault = tap_of(seeing_everything, r"decoder.*self_attention\.weights")
    outcome = properties.examine(ours(tap=fault), only=["causality"]).outcomes[8]
    shown = dict(line.strip().split(" = ") for line in outcome.story.splitlines()[1:])
    source, target, changed = (eval(shown[name]) for name in shown)
    place = int(re.search(r"at \(\d, (\d)", outcome.story)[1])
    assert [row[: place + 1] for row in target] == [row[: place + 1] for row in changed]
    a, b = (rs.forward(MODEL, source, tokens, tap=fault)[:, place] for tokens in (target, changed))
    assert abs(a - b).max() > 1e-3


def test_what_is_raised_is_a_failure_with_its_message():
    implementation, _ = FAULTS["positions end early in the source"]
    report = properties.examine(implementation, only=["longest_source", "longest_target"])
    assert report.failed == ["longest_source"]
    assert "raises IndexError('place 10 of a table of 10')" in str(report)


def test_no_difference_is_a_failure_that_says_of_what():
    report = properties.examine(FAULTS["no source positions"][0], only=["source_order"])
    assert "the order of the source makes no difference in 8 trials" in str(report)


def test_the_report_lists_what_was_tried():
    implementation = dataclasses.replace(ours(), generate=None, padding=("right",))
    report = properties.examine(implementation, skip=["finite"], trials=1)
    statuses = {o.property.name: (o.status, o.story) for o in report.outcomes}
    assert list(statuses) == [p.name for p in properties.ALL]
    assert statuses["finite"][0] == "skipped"
    assert statuses["padding_left"] == ("not applicable", "it needs left")
    assert statuses["greedy"] == ("not applicable", "it needs generate")
    assert statuses["padding_right"] == ("passed", "")
    assert "finite" not in str(report)
    assert re.search(r"^passed +cached +Tokens fed one", str(report), re.MULTILINE)


def test_a_seed_gives_the_same_trials_whichever_are_tried():
    implementation, _ = FAULTS["the batch's mean is taken off"]

    def story(only, seed=0):
        report = properties.examine(implementation, only=only, seed=seed)
        return next(o.story for o in report.outcomes if o.property.name == "row_alone")

    alone = story(["row_alone"])
    assert alone == story(["batch_order", "row_alone", "padding_right"])
    assert alone != story(["row_alone"], seed=1)


def test_the_tolerance_is_of_the_dtype_or_given():
    assert properties.default_rtol("float64") == 2.0**-44
    assert properties.default_rtol("float32") == 2.0**-15
    assert properties.default_rtol("float16") == 2.0**-5
    shaken = np.random.default_rng(0)
    rough = tapped(lambda x: x * (1 + 2.0**-30 * shaken.standard_normal(x.shape)), "logits")
    assert properties.examine(rough, only=["row_alone"]).failed == ["row_alone"]
    assert properties.examine(rough, only=["row_alone"], rtol=1e-8).failed == []


def test_an_almost_equal_token_may_be_generated():
    """Two tokens with the same logit: greedy decoding may take either, and no third one."""
    twins = tapped(lambda x: np.concatenate([x[..., :-1], x[..., -2:-1]], -1), "logits")

    def generate(source, mask, n):
        tokens = twins.generate(source, mask, n)
        return np.where(tokens == 11, 12, tokens)  # not the lowest of the best ids

    assert properties.examine(twins, only=["greedy"]).passed == ["greedy"]
    other = dataclasses.replace(twins, generate=generate)
    assert properties.examine(other, only=["greedy"]).passed == ["greedy"]


# What is refused. -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["casuality"]}, r"no properties of these names: \['casuality'\]"),
        ({"skip": ["all"]}, r"no properties of these names: \['all'\]"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        properties.examine(ours(), **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"padding": ("top",)},
            r"padding must be some of \('right', 'left', 'between'\), got \['top'\]",
        ),
        ({"source_vocab_size": 1}, "source_vocab_size must be at least 2, got 1"),
        ({"max_target_length": 2}, "max_target_length must be at least 3 to try anything, got 2"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ours(), **fields)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x[:, :-1],
            ValueError,
            r"logits must have the shape \(2, 3, 13\), got \(2, 2, 13\)",
        ),
        (
            lambda x: x.astype(int),
            TypeError,
            "logits must be float16, float32 or float64, got int64",
        ),
    ],
)
def test_functions_that_do_not_fit_are_told_at_once(change, error, message):
    implementation = ours(logits=lambda memory, target: change(rs.decode(MODEL, target, memory)))
    with pytest.raises(error, match=message):
        properties.examine(implementation)


def test_an_error_of_the_first_call_is_the_users():
    with pytest.raises(KeyError, match="typo"):
        properties.examine(ours(encode=lambda source, mask: {}["typo"]))


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs/properties.md").read_text(encoding="utf-8")
    assert f"\n\n{properties.table()}\n\n" in page
