"""`refseq2seq.explain`: its record has the numbers of the loop, the filters and the search."""

import base64
import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import arrangements
import numpy as np
import pytest
import tasks
from arrangements import readable, vocabulary

import refseq2seq as rs
from refseq2seq import cli, explain
from refseq2seq.explain.server import Handler, Server
from refseq2seq.watching.quantities import quantity

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
record_module = sys.modules["refseq2seq.explain.record"]
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


def elements(array):
    """The numbers of an array of a record, and how far each may be from the true one."""
    shape, scale, text = array
    raw = base64.b64decode(text)
    if scale:
        codes = np.frombuffer(raw, "i1").reshape(shape).astype(float)
        return np.where(codes == -128, -np.inf, codes * scale), scale / 2
    return np.frombuffer(raw, "<f4" if len(raw) == 4 * math.prod(shape) else "<f8").reshape(
        shape
    ), 0


@pytest.mark.parametrize("arrangement", [*arrangements.ALL])
def test_every_array_is_that_of_a_trace_within_half_its_scale(arrangement):
    model, text = readable(rs.Model.random(arrangements.ALL[arrangement], 0)), "abcde"
    processors = {"temperature 2": rs.temperature(2.0), "top-k 2": rs.top_k(2)}
    recorded = explain.record(model, text, processors=processors, max_new_tokens=3)
    trace = rs.Trace()
    choose = rs.greedy(*processors.values())
    source = [model.source_vocabulary.encode(text)]
    list(rs.decode_steps(model, source, choose=choose, max_new_tokens=3, tap=trace))
    found = {
        (name, t, layer): array
        for name, steps in recorded["arrays"].items()
        for t, layers in enumerate(steps)
        for layer, array in enumerate(layers)
    }
    assert len(found) == len(trace)
    for name, x in trace.items():
        step, layer = (re.search(rf"{word}\.(\d+)", name) for word in ("step", "layers"))
        place = quantity(name).name, *(int(found[1]) if found else 0 for found in (step, layer))
        numbers, bound = elements(found[place])
        assert numbers.shape == x.shape
        far = np.where(np.isfinite(x), np.abs(numbers - np.where(np.isfinite(x), x, 0)), 0)
        assert far.max() <= bound * (1 + 1e-6), name
        assert (np.isneginf(numbers) == np.isneginf(x)).all()
        assert bound <= np.abs(x[np.isfinite(x)]).max(initial=0) / 249 or not x.any()
        about_tokens = name.endswith(("weights", "scores", "logits", "chosen", "log_probs"))
        assert (bound == 0) == about_tokens, name


def test_large_arrays_about_tokens_are_rounded_too_and_keep_what_was_removed(monkeypatch):
    monkeypatch.setattr(record_module, "EXACT_SIZE", 41)
    recorded = explain.record(MODEL, "cat", processors={"top-k 3": rs.top_k(3)})
    numbers, bound = elements(recorded["arrays"]["scores"][0][0])
    assert bound > 0
    assert np.isneginf(numbers).sum() == 39


def test_a_page_of_a_short_word_is_small():
    assert len(explain.page(MODEL, "oracle").encode()) < 400_000


def test_tokens_chosen_by_hand_are_followed_by_what_the_model_says_then():
    symbols = MODEL.target_vocabulary.symbols
    by_hand = {0: symbols.index("AA"), 2: symbols.index("T")}
    recorded = explain.record(MODEL, "oracle", by_hand=by_hand)
    tokens = [s["token"] for s in recorded["steps"]]
    assert [s["by_hand"] for s in recorded["steps"][:4]] == [True, False, True, False]
    assert (tokens[0], tokens[2]) == (by_hand[0], by_hand[2])
    start = MODEL.config.decoder_start_id
    for t, recorded_step in enumerate(recorded["steps"]):  # as after the same prefix
        steps = rs.decode_steps(MODEL, SOURCE, prefix=[[start, *tokens[:t]]], max_new_tokens=1)
        (step,) = [step for step in steps if step.emitted[0]]
        logits, _ = elements(recorded["arrays"]["logits"][t][0])
        np.testing.assert_allclose(logits[0, -1], step.logits[0], rtol=1e-4, atol=1e-4)
        if t not in by_hand:
            assert recorded_step["token"] == int(step.tokens[0])
            assert math.isclose(recorded_step["log_prob"], float(step.log_probs[0]), abs_tol=1e-4)
    drawn = [explain.record(MODEL, "oracle", draws=True, seed=s, by_hand={1: 5}) for s in (1, 2)]
    assert {d["steps"][1]["token"] for d in drawn} == {5}


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
    assert json.loads(data) == json.loads(json.dumps(explain.record(MODEL, "oracle")))
    for word in ("src=", "href=", "http:", "@import", "url("):
        own = page.replace("http://www.w3.org/2000/svg", "").replace('href="data:,"', "")
        assert word not in own
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


def test_by_hand_and_beams_exclude_each_other():
    with pytest.raises(ValueError, match="by_hand cannot be combined with beams"):
        explain.record(MODEL, "cat", by_hand={0: 5}, beams=2)


@pytest.mark.parametrize(
    ("model", "text", "kind", "message"),
    [
        (MODEL, "", ValueError, "text is empty"),
        (MODEL, " \t ", ValueError, "only spaces: write a word"),
        (MODEL, "a b", rs.UnknownSymbolError, r"' ' \(space\)\. Known are: \"'\", 'a' to 'z'$"),
        (
            MODEL,
            "a" * 65,
            ValueError,
            "the text has 65 tokens; the model serves at most 64: shorten it",
        ),
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


# The live page


@pytest.fixture(scope="module")
def ask():
    """A request to a server that answers with the query: its status, headers and body."""

    def answer(query):
        if "wrong" in query:
            raise ValueError("wrong is\nnot allowed")
        return {"query": query}

    server = Server(("127.0.0.1", 0), Handler)
    server.document, server.answer = "<p>page", answer
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def asked(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        host = headers.pop("Host", "127.0.0.1:@").replace("@", str(server.server_port))
        headers = {k: v.replace("@", str(server.server_port)) for k, v in headers.items()}
        connection.request(method, path, headers={"Host": host, **headers})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, response.headers, body

    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_server_answers_its_page_and_records(ask):
    status, headers, body = ask("/")
    assert (status, body) == (200, "<p>page")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    status, headers, body = ask("/record?text=%C3%A9+a&top-k=")
    assert (status, json.loads(body)) == (200, {"query": {"text": "é a", "top-k": ""}})
    for header, value in {
        "X-Content-Type-Options": "nosniff",
        "Content-Type": "application/json; charset=utf-8",
    }.items():
        assert headers[header] == value
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert json.loads(ask("/record?wrong=1")[2]) == {"error": "wrong is not allowed"}
    assert "error" in json.loads(ask("/record?text=%FF")[2])


ALLOWED = [
    {"Host": "localhost:@"},
    {"Origin": "http://127.0.0.1:@", "Sec_Fetch_Site": "same-origin"},
    {"Sec_Fetch_Site": "none"},
]
REFUSED = [
    {"Host": "evil.example:@"},
    {"Host": "127.0.0.1"},
    {"Host": "127.0.0.1:1"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1:@"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
]


@pytest.mark.parametrize("headers", [*ALLOWED, *REFUSED], ids=str)
@pytest.mark.parametrize("path", ["/", "/record?text=a"])
def test_the_server_refuses_other_hosts_and_origins(ask, path, headers):
    status, _, body = ask(path, **headers)
    assert status == (200 if headers in ALLOWED else 403)
    assert "\n" not in body


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "POST", 501),
        ("/record?text=a", "PUT", 501),
        ("/record?text=a", "OPTIONS", 501),
        ("/", "DELETE", 501),
        ("/page.js", "GET", 404),
        ("/?x", "GET", 404),
        ("/record/", "GET", 404),
        ("/../etc/passwd", "GET", 404),
        ("http://evil.example/record", "GET", 404),
        ("/record?text=" + "a" * 2000, "GET", 414),
        ("/" + "a" * 70000, "GET", 414),
    ],
)
def test_the_server_refuses_other_methods_and_paths(ask, path, method, status):
    found, headers, body = ask(path, method)
    assert found == status
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "\n" not in body


@pytest.fixture(scope="module")
def live():
    """The command in a process of its own: the process, its address and port."""
    command = [sys.executable, "-m", "refseq2seq", "explain", "read", "--serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--top-k", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    line = process.stdout.readline()
    yield process, line, int(line.split(":")[2].split("/")[0])
    process.kill()
    process.communicate()


def recorded_by(port, query):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/record?{query}")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_the_live_page_prints_its_address_and_answers_as_record(live):
    _, line, port = live
    assert line == f"http://127.0.0.1:{port}/#text=read&top-k=3 (Ctrl-C ends it)\n"
    choice = {"processors": {"top_k(3)": rs.top_k(3)}, "draws": True, "seed": 5}
    for query, options in [
        ("text=cat", {}),
        ("text=cat&hand=1:5,2:7", {"by_hand": {1: 5, 2: 7}}),
        ("text=cat&beams=3&max-new-tokens=2", {"beams": 3, "max_new_tokens": 2}),
        ("text=cat&top-k=3&seed=5", choice),
    ]:
        expected = json.loads(json.dumps(explain.record(MODEL, "cat", **options)))
        assert recorded_by(port, query) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "the text is empty"),
        ("text=c4t%C3%A9", "unknown symbols"),
        ("text=cat&temperature=hot", "--temperature: invalid float value: 'hot'"),
        ("text=cat&temperature=-1", "(0, inf), got -1.0"),
        ("text=cat&beams=65", "--beams must be at most 64 here, got 65"),
        ("text=cat&beams=2&top-k=2", "--beams cannot be combined with sampling"),
        ("text=cat&hand=1", "hand must be pairs of a step and a token, 2:14,3:5, got 1"),
        ("text=cat&hand=0:999", "got 999"),
        ("text=cat&hand=0:" + "9" * 30, "choose must pick"),
        ("text=cat&hand=0:5&beams=2", "by_hand cannot be combined with beams"),
        ("text=cat&model=x", "unrecognized arguments: --model=x"),
        ("text=cat&html=x", "unrecognized arguments: --html=x"),
        ("text=" + "a" * 300, "64"),
    ],
)
def test_the_live_page_answers_mistakes_in_one_line(live, query, message):
    (key, found) = recorded_by(live[2], query).popitem()
    assert key == "error"
    assert message in found
    assert "\n" not in found


def test_a_port_that_is_taken_is_one_line(live, capsys):
    assert cli.main(["explain", "--serve", "--port", str(live[2])]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"--port {live[2]} cannot be used" in err


def test_ctrl_c_ends_it_with_status_0_and_no_traceback(live):
    process = live[0]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
