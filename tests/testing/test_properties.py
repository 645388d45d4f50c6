"""The properties hold for correct implementations, ours and another; each finds its faults."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import arrangements
import numpy as np
import pytest
from faulty import CONFIG, FAULTS, LISTENER, MODEL, ours, seeing_everything, tap_of, tapped

import refseq2seq as rs
from refseq2seq.config import AlibiPositions
from refseq2seq.testing import properties

NAMES = {p.name for p in properties.ALL}


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


# Correct implementations. -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_properties_hold_for_a_recurrent_network(dtype):
    report = properties.check(Recurrent(dtype).implementation())
    without = {o.property.name for o in report.outcomes if o.status == "not applicable"}
    assert without == {"longest_source", "longest_target", "padding_after_end", "features_count"}
    assert set(report.passed) == NAMES - without
    assert max(o.worst for o in report.outcomes) < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("config", arrangements.ALL.values(), ids=arrangements.ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_properties_hold_for_the_package(config, dtype):
    report = properties.check(ours(rs.Model.random(config, 1, dtype)), trials=2)
    assert len(report.passed) >= len(NAMES) - 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_properties_hold_for_frames(dtype):
    report = properties.check(ours(LISTENER.astype(dtype)), trials=4)
    without = {o.property.name for o in report.outcomes if o.status == "not applicable"}
    assert without - {"padding_after_end"} == {"longest_source", "padding_left", "padding_between"}
    assert "features_count" in report.passed


@pytest.mark.parametrize("seed", range(5))
def test_source_order_passes_where_only_distances_count(seed):
    """Symmetric ALiBi and nothing else: a reversed source gives the same logits."""
    fields = {"positions": None, "relative_positions": AlibiPositions(slopes=(0.5, 0.25))}
    encoder = dataclasses.replace(CONFIG.encoder, **fields)
    config = dataclasses.replace(CONFIG, encoder=encoder)
    symmetric = ours(rs.Model.random(config, seed, "float64"))
    source, target = np.array([[3, 5, 7, 11, 13]]), np.array([[1, 2]])
    a, b = (
        symmetric.logits(symmetric.encode(ids, None), target) for ids in (source, source[:, ::-1])
    )
    np.testing.assert_allclose(a, b, rtol=1e-12)
    properties.check(symmetric, only=["source_order"], trials=1, seed=seed)
    blind = dataclasses.replace(encoder, relative_positions=None)
    model = rs.Model.random(dataclasses.replace(config, encoder=blind), seed, "float64")
    assert properties.examine(ours(model), only=["source_order"]).failed == ["source_order"]


def test_all_properties_are_tried():
    report = properties.check(ours())
    assert report.passed == [p.name for p in properties.ALL if p.name != "features_count"]
    assert 0 < max(o.worst for o in report.outcomes) < 50 * np.finfo("float64").eps


# Faulty ones. -----------------------------------------------------------------------------------


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
def test_properties_pass_where_only_the_numbers_are_wrong(fault):
    properties.check(fault, trials=2)


# Reports. ----------------------------------------------------------------------------


def test_the_report_of_a_failure_has_a_small_counterexample():
    implementation, _ = FAULTS["the future is seen"]
    with pytest.raises(properties.PropertyError) as caught:
        properties.check(implementation, only=["causality", "row_alone"])
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.failed == ["causality"]
    assert caught.value.report.passed == ["row_alone"]
    head, name, where, *inputs, again = str(caught.value).splitlines()
    assert head == "1 of 2 properties failed"
    assert re.match("failed +causality ", name)
    place = re.search(r"trial 0: .* at \((\d), \d, \d+\), difference (\S+) .*5\.7e-14", where)
    assert int(place[1]) < 2
    assert float(place[2]) > 1e-3
    inputs = dict(line.strip().split(" = ") for line in inputs)
    assert list(inputs) == ["source", "target", "changed target"]
    assert len(eval(inputs["source"])) == 2
    assert len(eval(inputs["target"])[0]) == 3
    assert again.endswith("properties.examine(implementation, only=['causality'], seed=0)")


def test_the_counterexample_of_the_report_fails_again():
    fault = tap_of(seeing_everything, r"decoder.*self_attention\.weights")
    outcome = properties.examine(ours(tap=fault), only=["causality"]).outcomes[8]
    shown = dict(line.strip().split(" = ") for line in outcome.story.splitlines()[1:])
    source, target, changed = (eval(shown[name]) for name in shown)
    place = int(re.search(r"at \(\d, (\d)", outcome.story)[1])
    assert [row[: place + 1] for row in target] == [row[: place + 1] for row in changed]
    a, b = (rs.forward(MODEL, source, tokens, tap=fault)[:, place] for tokens in (target, changed))
    assert abs(a - b).max() > 1e-3


def test_an_exception_of_the_implementation_is_a_failure():
    implementation, _ = FAULTS["positions end early in the source"]
    report = properties.examine(implementation, only=["longest_source", "longest_target"])
    assert report.failed == ["longest_source"]
    assert "IndexError('place 10 of a table of 10')" in str(report)
    report = properties.examine(FAULTS["no source positions"][0], only=["source_order"])
    assert "no difference in 8 trials" in str(report)


def test_the_report_lists_what_was_tried():
    implementation = dataclasses.replace(ours(), generate=None, padding=("right",))
    report = properties.examine(implementation, skip=["finite"], trials=1)
    statuses = {o.property.name: (o.status, o.story) for o in report.outcomes}
    assert list(statuses) == [p.name for p in properties.ALL]
    assert statuses["finite"][0] == "skipped"
    assert statuses["padding_left"][0] == statuses["greedy"][0] == "not applicable"
    assert "left" in statuses["padding_left"][1]
    assert "generate" in statuses["greedy"][1]
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


# Wrong arguments. -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["casuality"]}, r"'casuality'.*causality"),
        ({"skip": ["all"]}, "'all'"),
        ({"trials": 0}, r"trials .*got 0"),
    ],
)
def test_wrong_options_of_examine_raise(options, message):
    with pytest.raises(ValueError, match=message):
        properties.examine(ours(), **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": ("top",)}, r"padding .*'top'"),
        ({"source_vocab_size": 1}, r"source_vocab_size .*got 1"),
        ({"max_target_length": 2}, r"max_target_length .*got 2"),
        ({"min_source_length": 0}, r"min_source_length .*got 0"),
        ({"source_vocab_size": None, "source_features": 0}, r"source_features .*got 0"),
        ({"min_source_length": 17}, r"max_source_length must be at least 19 .*got 11"),
    ],
)
def test_wrong_fields_of_an_implementation_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ours(), **fields)


@pytest.mark.parametrize("fields", [{"source_vocab_size": None}, {"source_features": 5}])
def test_a_source_has_tokens_or_vectors(fields):
    with pytest.raises(TypeError, match=r"source_vocab_size or source_features"):
        dataclasses.replace(ours(), **fields)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:, :-1], ValueError, r"logits .*\(2, 3, 13\), got \(2, 2, 13\)"),
        (lambda x: x.astype(int), TypeError, r"logits .*got int64"),
    ],
)
def test_logits_of_a_wrong_shape_or_dtype_raise(change, error, message):
    implementation = ours(logits=lambda memory, target: change(rs.decode(MODEL, target, memory)))
    with pytest.raises(error, match=message):
        properties.examine(implementation)


def test_an_exception_of_the_first_call_is_raised():
    with pytest.raises(KeyError, match="typo"):
        properties.examine(ours(encode=lambda source, mask: {}["typo"]))


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs/properties.md").read_text(encoding="utf-8")
    assert f"\n\n{properties.table()}\n\n" in page


def test_the_table_without_docstrings_has_the_names():
    """`python -OO` takes the statements away, and their names are left."""
    code = "from refseq2seq.testing import properties; print(properties.table())"
    command = [sys.executable, "-OO", "-W", "ignore", "-c", code]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    for p in properties.ALL:
        assert f"| `{p.name}` | {p.name.replace('_', ' ')} | {p.catches} |" in run.stdout
