"""`refseq2seq.explain`: its record has the numbers of the loop, the filters and the search."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tasks
from arrangements import vocabulary

import refseq2seq as rs
from refseq2seq import cli, explain

MODEL = rs.load("g2p")
SOURCE = [MODEL.source_vocabulary.encode("oracle")]


def test_steps_are_those_of_the_loop():
    recorded = explain.record(MODEL, "oracle")
    steps = list(rs.decode_steps(MODEL, SOURCE))
    assert recorded["output"] == "AO R AH K AH L"
    assert [s["token"] for s in recorded["steps"]] == [int(s.tokens[0]) for s in steps]
    assert [s["log_prob"] for s in recorded["steps"]] == [float(s.log_probs[0]) for s in steps]
    assert [s["margin"] for s in recorded["steps"]] == [float(s.margin[0]) for s in steps]
    total = sum(float(s.log_probs[0]) for s in steps)
    assert math.isclose(recorded["steps"][-1]["sum"], total, rel_tol=1e-12)


def test_candidates_have_the_probabilities_before_and_after_each_filter():
    filters = {"temperature 2": rs.temperature(2.0), "top-k 3": rs.top_k(3)}
    recorded = explain.record(MODEL, "oracle", processors=filters, draws=True, seed=4)
    choose = rs.sample(*filters.values())
    steps = list(rs.decode_steps(MODEL, SOURCE, choose=choose, seed=4))
    assert [s["token"] for s in recorded["steps"]] == [int(s.tokens[0]) for s in steps]
    for found, step in zip(recorded["steps"], steps, strict=True):
        assert [stage["label"] for stage in found["stages"]] == ["the model", *filters]
        logits = step.logits[0].astype(float)
        exact = np.exp(logits - logits.max())
        exact /= exact.sum()
        shown = [c["token"] for c in found["candidates"]]
        assert shown[:8] == np.argsort(-exact, kind="stable")[:8].tolist()
        assert found["token"] in shown
        before, warm, kept = (np.array(stage["probs"]) for stage in found["stages"])
        np.testing.assert_allclose(before, exact[shown], rtol=1e-6, equal_nan=False)
        rooted = np.sqrt(exact) / np.sqrt(exact).sum()  # temperature 2 takes square roots
        np.testing.assert_allclose(warm, rooted[shown], rtol=1e-5, equal_nan=False)
        assert [stage["kept"] for stage in found["stages"]] == [42, 42, 3]
        best = np.argsort(-exact, kind="stable")[:3]
        expected = [rooted[i] / rooted[best].sum() if i in best else 0.0 for i in shown]
        np.testing.assert_allclose(kept, expected, rtol=1e-5, equal_nan=False)


def test_attention_is_that_of_a_trace():
    recorded, trace = explain.record(MODEL, "cat"), rs.Trace("*weights")
    source = [MODEL.source_vocabulary.encode("cat")]
    steps = list(rs.decode_steps(MODEL, source, tap=trace))
    assert recorded["cross_keys"] == ["c", "a", "t"]
    assert len(recorded["cross_attention"]) == len(steps)
    for t in range(len(steps)):
        for name in ("cross_attention", "self_attention"):
            for layer, heads in enumerate(recorded[name][t]):
                seen = trace[f"step.{t}.decoder.layers.{layer}.{name}.weights"][0, :, -1]
                assert np.abs(np.array(heads) - seen).max() <= 0.5e-4 + 1e-7
                np.testing.assert_allclose(np.sum(heads, axis=1), 1, atol=1e-3)
        assert len(recorded["self_attention"][t][0][0]) == t + 1
    assert np.shape(recorded["encoder_attention"][0])[1:] == (3, 3)


def test_with_beams_the_steps_are_those_of_the_best_hypothesis():
    recorded = explain.record(MODEL, "read", beams=4)
    tree = recorded["tree"]
    source = [MODEL.source_vocabulary.encode("read")]
    out = rs.beam_search(MODEL, source, beams=4, n_best=4)
    steps = list(rs.beam_steps(MODEL, source, beams=4))
    best = out.tokens[0, 0, : out.lengths[0, 0]].tolist()
    assert [s["token"] for s in recorded["steps"]] == tree["best"] == best
    assert [h["score"] for h in tree["hypotheses"]] == out.scores[0].tolist()
    assert len(tree["nodes"]) == sum((s.candidates.scores[0] > -np.inf).sum() for s in steps)
    for i, node in enumerate(tree["nodes"]):
        parent = tree["nodes"][node["parent"]] if node["parent"] >= 0 else {"score": 0, "step": -1}
        assert node["parent"] < i
        assert node["step"] == parent["step"] + 1
        assert math.isclose(node["score"], parent["score"] + node["log_prob"], abs_tol=1e-9)
        assert parent.get("fate", "lives") == "lives"
    assert [tree["nodes"][i]["token"] for i in tree["path"]] == best
    ended = [node for node in tree["nodes"] if node["fate"] == "ends"]
    assert len(ended) == sum(int(s.finishing[0].sum()) for s in steps)


def test_a_beam_search_that_reaches_max_new_tokens():
    recorded = explain.record(MODEL, "transformer", beams=2, max_new_tokens=3)
    assert len(recorded["steps"]) == 3
    assert len(recorded["tree"]["path"]) == 3


def test_suppressed_ids_are_a_stage():
    config = replace(MODEL.config, suppressed_ids=(int(rs.generate(MODEL, SOURCE).tokens[0, 0]),))
    recorded = explain.record(replace(MODEL, config=config), "oracle")
    labels = [stage["label"] for stage in recorded["steps"][0]["stages"]]
    assert labels == ["the model", "the model's rules"]
    assert recorded["steps"][0]["stages"][1]["probs"][0] == 0


def test_a_page_stands_alone_and_escapes_its_text():
    page = explain.page(MODEL, "oracle")
    data = page.split('id="decoding">')[1].split("</script>")[0]
    assert json.loads(data) == explain.record(MODEL, "oracle")
    for word in ("src=", "href=", "http:", "@import", "url("):
        assert word not in page.replace("http://www.w3.org/2000/svg", "")
    text = "</script> @data@ <b>&"
    special = ("<pad>", "<s>", "</s>")
    words = vocabulary([*special, *text.split()], separator=" ", special=special)
    model = tasks.tiny(3, vocab_size=6)
    model = replace(model, source_vocabulary=words, target_vocabulary=words)
    page = explain.page(model, text, max_new_tokens=4)
    assert page.count("</script>") == explain.page(MODEL, "cat").count("</script>")
    data = page.split('id="decoding">')[1].split("</script>")[0]
    assert json.loads(data)["text"] == text
    assert "<title>&lt;/script&gt; @data@ &lt;b&gt;&amp;" in page


@pytest.mark.parametrize(
    ("model", "text", "kind", "message"),
    [
        (MODEL, "", ValueError, "text is empty"),
        (replace(MODEL, source_vocabulary=None), "cat", ValueError, "no vocabularies"),
        (MODEL, "é", rs.UnknownSymbolError, "'é'"),
    ],
)
def test_texts_that_cannot_be_explained_raise(model, text, kind, message):
    with pytest.raises(kind, match=message):
        explain.record(model, text)


def test_the_command_writes_the_page(tmp_path, capsys):
    """Its mistakes: tests/test_cli.py."""
    path = tmp_path / "cat.html"
    assert cli.main(["explain", "cat", "--html", str(path), "--top-k", "3", "--seed", "2"]) == 0
    assert capsys.readouterr() == ("", "")
    expected = explain.page(MODEL, "cat", processors={"top_k(3)": rs.top_k(3)}, draws=True, seed=2)
    assert path.read_text(encoding="utf-8") == expected
