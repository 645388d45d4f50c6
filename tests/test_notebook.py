"""How models, their parts, steps and results are shown: in a line, and as an HTML table."""

import dataclasses
import html.parser
import pickle
import re

import numpy as np
import pytest
from hypothesis.vendor.pretty import pretty

import refseq2seq as rs
from refseq2seq.config import Config, WindowConfig
from refseq2seq.generation.configured import ConfiguredGeneration
from refseq2seq.params import Arrays
from refseq2seq.watching.notebook import SHOWN, TABLES, Table
from refseq2seq.watching.notebook import html as page_of
from refseq2seq.watching.quantities import quantity

MODEL = rs.load("g2p")
SOURCE = [MODEL.source_vocabulary.encode(word) for word in ("cat", "oracle")]


def table(caption, head, rows):
    return page_of(Table(caption, head, rows))


def deep_model():
    """48 layers of each stack, with windows, and more tokens than a line shows."""
    config = rs.presets.x_transformers(
        d_model=12, source_vocab_size=11, target_vocab_size=997, n_source_positions=9,
        n_target_positions=9, encoder_layers=48, decoder_layers=48, n_heads=3, d_k=5,
        decoder_start_id=1, eos_ids=(2,), pad_id=0,
    )  # fmt: skip
    windows = (WindowConfig(back=128, ahead=128), None) * 24
    stacks = {
        name: dataclasses.replace(getattr(config, name), windows=windows, n_register_tokens=0)
        for name in ("encoder", "decoder")
    }
    return rs.Model.random(dataclasses.replace(config, **stacks), 1)


def everything(model, source):
    """Every kind of object that is shown, from one model."""
    asked = dataclasses.replace(model, settings=rs.Settings(beams=3, num_return_sequences=2))
    how = {"max_new_tokens": 7}
    *_, beam_step = rs.beam_steps(model, source, **how)
    *_, step = rs.decode_steps(model, source, **how)
    trace = rs.Trace()
    rs.encode(model, source, tap=trace)
    layer = model.params.decoder.layers[0]
    return [
        model, model.params, model.params.encoder, layer, layer.self_attention, layer.self_norms,
        layer.self_norms.before, layer.feed_forward, model.config, model.config.decoder,
        model.config.decoder.norm, asked.settings, rs.load("g2p").target_vocabulary, trace, step,
        rs.generate(model, source, **how), rs.encode(model, source), beam_step, beam_step.live,
        rs.beam_search(model, source, n_best=4, **how),
        rs.generate_as_configured(asked, source, **how), rs.score(model, source, [[1, 3], [1, 4]]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trace():
    return rs.Trace()


@pytest.fixture(scope="module")
def step(trace):
    return list(rs.decode_steps(MODEL, SOURCE, tap=trace))[-1]


@pytest.fixture(scope="module")
def generation():
    return rs.generate(MODEL, SOURCE)


def cells(page):
    """The texts of the table's cells; every tag must be closed."""
    found, open_tags = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            found.append(data)

    Reader().feed(page)
    assert open_tags == []
    return found


def test_repr_is_one_line(step, generation, trace):
    assert repr(MODEL) == pretty(MODEL) == "<Model of 2,196,320 parameters, float32>"
    assert repr(step) == "<Step 6: tokens <pad> </s>>"
    assert repr(generation) == "<Generation of 2 rows, 4 to 7 tokens, 2 finished>"
    assert repr(trace) == "<Trace of 549 arrays>"


def test_a_step_is_a_table_of_rows(step):
    assert cells(step._repr_html_()) == [
        "Step 6: tokens <pad> </s>", "row", "token", "log-probability", "margin", "state",
        "0", "<pad>", "0.000", f"{step.margin[0]:.3f}", "ended",
        "1", "</s>", f"{step.log_probs[1]:.3f}", f"{step.margin[1]:.3f}", "new, the last",
    ]  # fmt: skip


def test_the_table_of_a_step_has_the_state_of_each_row():
    start = MODEL.config.decoder_start_id
    prefix = [[start], [start, 5, 6], [start, 5]]
    steps = list(rs.decode_steps(MODEL, [*SOURCE, SOURCE[0]], prefix=prefix, max_new_tokens=3))
    states = [cells(step._repr_html_())[10::5] for step in steps]
    assert states[0] == ["new", "in its prefix", "in its prefix"]
    assert states[1] == ["new", "in its prefix", "new"]
    assert states[3] == ["ended", "new", "new"]
    assert states[4] == ["ended", "new", "ended"]


def test_a_generation_is_a_table_of_rows(generation):
    found = cells(generation._repr_html_())
    assert found[0] == "Generation of 2 rows, 4 to 7 tokens, 2 finished"
    assert found[1:5] == ["row", "tokens", "log-probability", "ended"]
    assert found[5:9] == ["0", "K AE T </s>", f"{generation.log_probs[0].sum():.3f}", "yes"]
    assert found[9] == "1"
    found = cells(rs.generate(MODEL, SOURCE, max_new_tokens=4)._repr_html_())
    assert found[8::4] == ["yes", "no: cut off"]


def test_a_trace_is_a_table_of_quantities_with_their_meaning(step, trace):
    found = cells(trace._repr_html_())
    assert found[1:5] == ["name", "shape", "dtype", "meaning"]
    meaning = quantity("encoder.tokens").meaning
    assert found[5:9] == ["encoder.tokens", "(2, 6, 160)", "float32", meaning]
    assert found[-1] == f"and {len(trace) - SHOWN:,} more"
    own = rs.Trace()
    own("mine <b>", np.ones(2))
    assert cells(own._repr_html_())[5:] == ["mine <b>", "(2,)", "float64"]


def test_a_model_is_a_table_of_its_conventions():
    found = cells(MODEL._repr_html_())
    assert found[:3] == ["Model of 2,196,320 parameters, float32", "what", "value"]
    assert found[3:5] == ["parameters", "2,196,320 in float32"]
    assert "3 layers, width 160" in found[6]


@pytest.mark.parametrize("n", [SHOWN, SHOWN + 1])
def test_long_rows_and_tables_are_cut(generation, n):
    tokens = np.arange(n)[None].repeat(2, axis=0)
    fields = {"tokens": tokens, "log_probs": np.zeros((2, n)), "lengths": np.array([n, n])}
    of_n = dataclasses.replace(generation, **fields)
    shown = cells(of_n._repr_html_())[6]
    assert shown == " ".join(map(str, range(SHOWN))) + " …" * (n > SHOWN)
    last = cells(table("c", ["a"], [[i] for i in range(n + 999)]))[-1]
    assert last == f"and {n - SHOWN + 999:,} more"
    assert cells(table("c", ["a"], [[i] for i in range(SHOWN)]))[-1] == str(SHOWN - 1)


# Every kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "source"), [(MODEL, SOURCE), (deep_model(), [[3, 4], [5]])])
def test_whatever_is_shown_is_a_line_and_a_small_table(model, source):
    shown = everything(model, source)
    for x in shown:
        assert len(x._repr_html_()) < 4000, x
        assert len(cells(x._repr_html_())) > 1
        if not isinstance(x, Config):  # whose repr can be evaluated
            assert re.fullmatch("<.{10,120}>", repr(x))
    kinds = {kind.__name__ for x in shown for kind in type(x).__mro__}
    assert kinds >= TABLES.keys()


def test_every_public_class_of_results_is_shown():
    public = [x for name in rs.__all__ if isinstance(x := getattr(rs, name), type)]
    results = {x for x in public if dataclasses.is_dataclass(x)} - {
        rs.Amateur,
        rs.Chooser,
        rs.State,
    }
    assert {ConfiguredGeneration, rs.BeamStep, rs.Memory, rs.ModelConfig} <= results
    for kind in [*results, *Arrays.__subclasses__(), *Config.__subclasses__()]:
        assert hasattr(kind, "_repr_html_"), kind


def test_parameters_are_folded_by_layer():
    found = cells(MODEL.params._repr_html_())
    assert found[:4] == ["Params of 82 arrays, float32", "part", "layers", "arrays"]
    assert found[4:7] == [
        "encoder", "1", "embedding (28, 160), positions (64, 160), final_norm.gain (160,)",
    ]  # fmt: skip
    assert found[7:10] == [
        "encoder.layers.*.self_attention", "3",
        "w_q (160, 160), w_k (160, 160), w_v (160, 160), w_o (160, 160)",
    ]  # fmt: skip
    assert found[-2:] == ["1", "unembedding (160, 42)"]  # in no part


def test_a_memory_is_shown_by_its_shapes():
    memory = rs.encode(MODEL, [[3, 4, 5], [6]])
    line = "Memory: source (2, 3), 3 layers of keys and values, float32"
    assert repr(memory) == f"<{line}>"
    assert cells(memory._repr_html_()) == [
        line, "part", "layers", "arrays", "1", "hidden (2, 3, 160), mask (2, 3)",
        "keys", "3", "* (2, 4, 3, 40)", "values", "3", "* (2, 4, 3, 40)",
    ]  # fmt: skip


def test_a_config_is_shown_with_its_stacks_side_by_side_and_can_be_evaluated():
    found = cells(MODEL.config._repr_html_())
    assert found[:4] == ["ModelConfig", "field", "encoder", "decoder"]
    place = found.index("cross_attention")
    assert found[place + 1] == "None"
    assert found[place + 2].startswith("n_heads: 4, n_kv_heads: 4, ")
    assert found[found.index("eos_ids") + 1] == "[2]"
    classes = {kind.__name__: kind for kind in Config.__subclasses__()}
    assert eval(repr(MODEL.config), classes) == MODEL.config


def test_a_beam_search_is_a_table_of_targets():
    out = rs.beam_search(MODEL, SOURCE[:1], n_best=2)
    assert repr(out) == "<BeamSearch of 1 row, 2 targets each>"
    found = cells(out._repr_html_())
    assert found[1:6] == ["row", "target", "tokens", "score", "log-probability"]
    score, total = out.scores[0, 0], out.log_probs[0, 0].sum()
    assert found[6:11] == ["0", "0", "K AE T </s>", f"{score:.3f}", f"{total:.3f}"]
    assert score == pytest.approx(total / 4)
    sampled = dataclasses.replace(MODEL, settings=rs.Settings())
    found = cells(rs.generate_as_configured(sampled, SOURCE[:1])._repr_html_())
    assert found[1:5] == ["row", "target", "tokens", "log-probability"]  # no score


def test_a_beam_step_is_a_table_of_candidates_and_their_fates():
    steps = [*rs.beam_steps(MODEL, SOURCE[:1], beams=2)]
    for step in steps:
        found = cells(step._repr_html_())
        assert found[1:7] == ["row", "beam", "token", "log-probability", "score", "fate"]
        fates = np.array(found[12::6])
        assert (fates == "a hypothesis").sum() == step.finishing.sum()
        alive = 0 if step.done[0] else (step.live.scores > -np.inf).sum()
        assert (fates == "lives on").sum() == alive
        assert (fates == "the search is done").any() == step.done[0]
    assert cells(steps[0]._repr_html_())[7:13] == [
        "0", "0", "K", *2 * [f"{steps[0].candidates.scores[0, 0]:.3f}"], "lives on",
    ]  # fmt: skip


# Symbols ----------------------------------------------------------------------------------------


def test_without_a_vocabulary_tokens_are_ids():
    model = dataclasses.replace(MODEL, target_vocabulary=None)
    (step, *_) = rs.decode_steps(model, SOURCE[:1])
    assert repr(step) == f"<Step 0: tokens {step.tokens[0]}>"
    assert "K AE T" not in rs.generate(model, SOURCE)._repr_html_()


def test_symbols_follow_the_steps_and_are_escaped():
    symbols = tuple(f"<b>{i}" for i in range(42))
    odd = dataclasses.replace(MODEL.target_vocabulary, symbols=symbols, special=())
    model = dataclasses.replace(MODEL, target_vocabulary=odd)
    steps = [*rs.decode_steps(model, SOURCE, stop=lambda step: step.index == 1)]
    assert repr(steps[0]) == f"<Step 0: tokens <b>{steps[0].tokens[0]} <b>{steps[0].tokens[1]}>"
    page = rs.Generation.from_steps(steps, 0)._repr_html_()
    assert "<b>" not in page
    assert f"&lt;b&gt;{steps[0].tokens[0]} &lt;b&gt;{steps[1].tokens[0]}</td>" in page


def test_symbols_are_no_field_and_in_no_pickle(generation):
    assert {*vars(generation)} == {"tokens", "lengths", "log_probs", "finished"}
    again = pickle.loads(pickle.dumps(generation))
    assert again.tokens.tolist() == generation.tokens.tolist()
    assert "K AE T" not in again._repr_html_()
    assert "K AE T" in generation._repr_html_()


def test_nothing_is_read_from_a_device_to_show_what_lies_there(monkeypatch):
    class Device(np.ndarray):
        """An array whose elements nobody may read."""

        def __repr__(self):
            raise AssertionError("read")

        __array_ufunc__ = __array_function__ = __getitem__ = __iter__ = tolist = item = __repr__

    memory = rs.encode(MODEL, SOURCE)
    fields = {name: getattr(memory, name) for name in ("hidden", "mask")}
    there = dataclasses.replace(
        memory,
        keys=tuple(k.view(Device) for k in memory.keys),
        **{name: x.view(Device) for name, x in fields.items()},
    )
    assert there._repr_html_() == memory._repr_html_()
    (step, *_) = rs.decode_steps(MODEL, SOURCE)
    far = {name: getattr(step, name).view(Device) for name in ("logits", "scores")}
    assert dataclasses.replace(step, **far)._repr_html_()


def test_a_symbol_with_a_newline_leaves_repr_one_line():
    words = dataclasses.replace(
        MODEL.target_vocabulary,
        symbols=tuple("\n" * (s == "K") or s for s in MODEL.target_vocabulary.symbols),
    )
    step = next(rs.decode_steps(dataclasses.replace(MODEL, target_vocabulary=words), SOURCE[:1]))
    assert repr(step) == r"<Step 0: tokens \n>"
