"""Programs that models are written out as: they compute what the models compute, bit for bit.

``PYTHONPATH=tests/helpers python tests/test_written.py`` renews the programs in tests/written/.
"""

import ast
import operator
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import arrangements
import numpy as np
import pytest
import test_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantities import table_name

import refseq2seq as rs
from refseq2seq.cli.threads import use_threads
from refseq2seq.config import FrameInput, WindowConfig
from refseq2seq.params import map_arrays
from refseq2seq.testing import strategies
from refseq2seq.watching.quantities import inputs_of
from refseq2seq.written import WriteOutError, layout, lines
from refseq2seq.written.comments import ENCODE, STEP, comment
from refseq2seq.written.recording import Node, Recorder, Size

HERE = Path(__file__).parent
KEPT = {
    "bart": "transformers-bart",
    "t5_1_1": "transformers-t5-1-1",
    "umt5": "transformers-umt5",
    "marian": "transformers-marian",
    "x_transformers": "x-transformers-defaults",
    "whisper": "transformers-whisper",
    "t5gemma": "transformers-t5gemma",
    "trocr": "transformers-trocr",
}
"""Programs that are kept, and the recorded model of the peer that each is of."""


def with_fields(c, encoder=(), decoder=(), **fields):
    """A config with other fields of its stacks; ``softcap`` is one of all attentions."""
    stacks = {"encoder": replace(c.encoder, **dict(encoder))}
    stacks["decoder"] = replace(c.decoder, **dict(decoder))
    return replace(c, **stacks, **fields)


def capped(stack):
    return {
        name: replace(attention, softcap=5.0)
        for name in ("self_attention", "cross_attention")
        if (attention := getattr(stack, name))
    }


layer, reading = arrangements.frame_layer, arrangements.reading_frames
XT, T5, VASWANI = arrangements.x_transformers, arrangements.t5_like, arrangements.vaswani
NORM, NEAR = XT.encoder.norm, WindowConfig(back=1, ahead=1)
THREE = (
    layer(11, 4, 3, 1, activation="relu", bias=False, norm_before=NORM),
    layer(7, 3, 1, 0, activation="silu", norm_after=NORM),
    layer(13, 2, 2, 0, activation="none", norm_before=NORM, norm_after=NORM),
)
LEARNED = arrangements.frames  # learned keys, and windows in one layer of two
SOURCES = {
    "captioner": arrangements.captioner,
    "frames": with_fields(
        LEARNED,
        {"self_attention": replace(LEARNED.encoder.self_attention, n_learned_kv=0)},
    ),
    "whisper": reading(XT, 5, (layer(13, 3, 1, 1), layer(13, 3, 2, 1))),
    "three": reading(arrangements.rich, 5, THREE, 2),
    "patches": reading(XT, 5, (layer(13, 1, 1, 0, activation="none"),), 1),
    "vectors": reading(XT, 13, (), n_layers=0, final_norm=False, positions=None),
    "no_layers": with_fields(VASWANI, {"n_layers": 0}),
    "windows": with_fields(
        XT, {"windows": (NEAR, None)}, {"windows": (None, NEAR, WindowConfig(back=2, ahead=0))}
    ),
    "one_window": with_fields(VASWANI, {"windows": (NEAR, NEAR)}, {"windows": (NEAR, NEAR)}),
    "capped": with_fields(
        reading(T5, 5, (layer(11, 2, 2, 0),)),
        capped(T5.encoder) | {"windows": (NEAR, None)},
        capped(T5.decoder) | {"windows": (NEAR, None, NEAR)},
        logits_softcap=3.0,
    ),
}
"""Configs of frames, of encoders without layers, and of windows and caps."""

dtypes = st.sampled_from(["float32", "float64", "float16"])


def recorded(name, dtype="float32"):
    about, arrays, _ = test_vectors.read(HERE / "vectors" / f"{name}.npz")
    return test_vectors.converted(about, arrays).astype(dtype)


def inputs(model, seed, batch=3, n=5):
    """Sources, which are padded unless the seed is 1, 5, 9, ..., and target tokens."""
    rng, c = np.random.default_rng(seed), model.config
    n, n_target = min(c.encoder.max_length or n, n), min(c.decoder.max_length or 4, 4)
    source, least = c.encoder.input, 1
    if isinstance(source, FrameInput):
        most = c.encoder.max_length or 99
        least, *more = (n for n in range(1, 99) if 0 < source.length(n) <= most)
        n = [least, *more][min(3 + seed % 5, len(more))]
    mask = np.arange(n) < rng.integers(least, n + 1, (batch, 1))
    mask = mask[:, ::-1] if seed % 3 == 0 and source.TYPE == "tokens" else mask | (seed % 4 == 1)
    if isinstance(source, FrameInput):
        ids = np.where(mask[..., None], rng.standard_normal((batch, n, source.n_features)), 0)
    else:
        ids = np.where(mask, rng.integers(0, source.vocab_size, (batch, n)), 0)
    return ids, mask, rng.integers(0, c.decoder.vocab_size, (batch, n_target))


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)


def assert_computes_the_same(model, seed=0):
    program = rs.write_out(model)
    source, mask, target = inputs(model, seed)
    with np.errstate(all="ignore"):
        memory, theirs = rs.encode(model, source, mask), program.encode(source, mask)
        assert_same(theirs[0], np.ones_like(theirs[0]) if memory.mask is None else memory.mask)
        both = zip(memory.keys + memory.values, [*theirs[1], *theirs[2]], strict=True)
        for ours, written in both:
            assert_same(written, ours)
        cache = rs.new_cache(model, len(target), target.shape[1])
        own = program.new_cache(len(target), target.shape[1])
        for t in range(target.shape[1]):
            logits = rs.decode(model, target[:, [t]], memory, cache=cache)
            assert np.isfinite(logits).all()  # equal NaN would show nothing
            assert_same(program.step(target[:, [t]], t, theirs, own), logits)
        return program


def is_refused(config):
    return any(
        None in c.windows != (None,) * c.n_layers and c.self_attention.n_learned_kv
        for c in (config.encoder, config.decoder)
    )


@settings(max_examples=20)
@given(
    config=strategies.configs().filter(lambda c: not is_refused(c)),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_programs_of_drawn_models(config, dtype, seed):
    program = assert_computes_the_same(rs.Model.random(config, seed, dtype), seed)
    assert max(map(len, program.source.split("\n"))) <= 100
    assert not re.search(r"\b[a-z]_\d", program.source)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", [*arrangements.ALL, *SOURCES])
def test_programs_of_the_arrangements_also_with_exact_sums(name, dtype):
    model = rs.Model.random((arrangements.ALL | SOURCES)[name], 1, dtype)
    for seed in (0, 4, 5):
        assert_computes_the_same(model, seed)
    program = assert_computes_the_same(model.exact())
    assert max(map(len, program.source.split("\n"))) <= 100


@pytest.mark.parametrize("path", test_vectors.FILES, ids=[p.stem for p in test_vectors.FILES])
def test_programs_of_every_family(path):
    model = recorded(path.stem)
    program = assert_computes_the_same(model)
    source, mask, _ = inputs(model, 0)
    out = rs.generate(model, source, source_mask=mask, max_new_tokens=4)
    assert_same(program.greedy(source, mask, limit=4), out.tokens)


@given(seed=st.integers(0, 99), data=st.data())
@settings(max_examples=15)
def test_greedy_obeys_the_rules_of_the_config(seed, data):
    tokens = st.integers(0, 6)
    few = st.lists(tokens, max_size=3, unique=True).map(tuple)
    special = {
        "eos_ids": data.draw(few),
        "pad_id": data.draw(tokens),
        "suppressed_ids": data.draw(few),
        "begin_suppressed_ids": data.draw(few),
        "forced_bos_id": data.draw(st.none() | tokens),
        "forced_eos_id": data.draw(st.none() | tokens),
    }
    banned = {*special["suppressed_ids"], *special["begin_suppressed_ids"]}
    for name in ("forced_bos_id", "forced_eos_id"):
        if special[name] in banned:
            special[name] = None
    model = rs.Model.random(arrangements.t5_like, seed)
    model = rs.Model(config=replace(model.config, **special), params=model.params)
    source, mask, _ = inputs(model, seed)
    out = rs.generate(model, source, source_mask=mask, max_new_tokens=5)
    assert_same(rs.write_out(model).greedy(source, mask, limit=5), out.tokens)


# In a process of its own.

DRIVER = """
import importlib.util, sys
sys.modules["refseq2seq"] = None  # an import would raise
import numpy as np
for name in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("page", name + ".py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    given = np.load(name + ".inputs.npz")
    source, mask, target, shape = (given[k] for k in ("source", "mask", "target", "shape"))
    model = page.read(name + ".npz")
    with np.errstate(all="ignore"):
        memory = page.encode(model, source, mask)
        dtype = memory[1][0].dtype
        cache = [[np.empty((*shape[:3], d), dtype) for _ in memory[1]] for d in shape[3:]]
        logits = [page.step(model, target[:, [t]], t, memory, cache) for t in range(len(target[0]))]
        tokens = page.greedy(model, source, mask, len(target[0]))
    keys = {f"key.{i}": x for i, x in enumerate([*memory[1], *memory[2]])}
    np.savez(name + ".outputs.npz", logits=np.concat(logits, axis=1), tokens=tokens, **keys)
"""


def test_programs_in_a_process_that_cannot_import_the_package(tmp_path):
    models = {
        f"{name}-{dtype}": rs.Model.random(config, 2, dtype)
        for name, config in (arrangements.ALL | SOURCES).items()
        for dtype in ("float32", "float64", "float16")
    }
    models |= {name: recorded(of) for name, of in KEPT.items()} | {"g2p": rs.load("g2p")}
    for name, model in models.items():
        rs.save(model, tmp_path / f"{name}.npz")
        rs.write_out(model).save(tmp_path / f"{name}.py")
        source, mask, target = inputs(model, 1)
        a = model.config.decoder.self_attention
        shape = (len(target), a.n_kv_heads, target.shape[1], a.d_k, a.d_v)
        np.savez(
            tmp_path / f"{name}.inputs.npz", source=source, mask=mask, target=target, shape=shape
        )
    use_threads(1, model)  # as many as the other process has: another number, other last bits
    one = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", DRIVER, *models], cwd=tmp_path, check=True, env=one)
    for name, model in models.items():
        source, mask, target = inputs(model, 1)
        with np.load(tmp_path / f"{name}.outputs.npz") as found:
            memory = rs.encode(model, source, mask)
            for i, x in enumerate(memory.keys + memory.values):
                assert_same(found[f"key.{i}"], x)
            cache = rs.new_cache(model, len(target), target.shape[1])
            for t in range(target.shape[1]):
                logits = rs.decode(model, target[:, [t]], memory, cache=cache)
                assert_same(found["logits"][:, [t]], logits)
            out = rs.generate(model, source, source_mask=mask, max_new_tokens=target.shape[1])
            assert_same(found["tokens"], out.tokens)


def run(tmp_path, model, *arguments):
    rs.write_out(model).save(tmp_path / "model.py")
    rs.save(model, tmp_path / "model.npz", stored_dtype="float16")
    command = [sys.executable, "-I", "model.py", "model.npz", *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_a_program_prints_tokens_or_text(tmp_path):
    rounded = recorded("transformers-marian", "float16").astype("float32")
    expected = rs.generate(rounded, [[4, 8, 15]], max_new_tokens=64).tokens[0]
    assert run(tmp_path, rounded, "4", "8", "15").stdout.split() == [str(t) for t in expected]
    answers = rs.generate_text(rs.load("g2p"), ["oracle", "Zeus"])
    assert run(tmp_path, rs.load("g2p"), "oracle", "Zeus").stdout == "\n".join(answers) + "\n"


def test_a_program_reads_frames(tmp_path):
    model = rs.Model.random(SOURCES["whisper"], 1, "float16").astype("float32")
    frames = np.random.default_rng(0).standard_normal((9, 5))
    arrays = {"frames": frames, "ids": frames.astype(int), "wide": frames[:, :4], "row": frames[0]}
    arrays |= {"none": frames[:0], "many": np.ones((39, 5))}
    for name, x in arrays.items():
        np.save(tmp_path / f"{name}.npy", x)
    expected = rs.generate(model, [frames], max_new_tokens=17).tokens[0]
    assert run(tmp_path, model, "frames.npy").stdout.split() == [str(t) for t in expected]
    for wrong in ((), ("4",) * 3, *[(f"{name}.npy",) for name in [*arrays][1:]]):
        refused = run(tmp_path, model, *wrong)
        assert refused.returncode == 1
        assert (
            "frames.npy: floats (n_frames, 5), n_frames at least 1 and at most 38" in refused.stderr
        )


def test_a_program_refuses_what_it_cannot_read(tmp_path):
    model = recorded("transformers-marian")
    for wrong in ((), ("4", "-1"), ("4", "1000"), ("4,8",), ("4", "8.0")):
        refused = run(tmp_path, model, *wrong)
        assert refused.returncode == 1
        assert "python model.py model.npz 4 8 15" in refused.stderr
    refused = run(tmp_path, rs.load("g2p"), "oracle", "or_4cle!")
    assert (refused.stdout, refused.stderr) == ("", "'or_4cle!' has unknown symbols: ['!', '_']\n")


def test_a_vocabulary_may_have_any_symbols(tmp_path):
    symbols, separator = ("<", "é", "日\n", 'q"', "\\"), '"😀' + "-" * 99
    words = rs.Vocabulary(symbols=symbols, separator=separator, special=("<",), replacements=())
    config = arrangements.small_vaswani(d_model=6, vocab_size=5, n_layers=1, d_ff=7)
    model = replace(rs.Model.random(config, 4), source_vocabulary=words, target_vocabulary=words)
    text = words.decode([2, 1, 3, 4])
    printed = run(tmp_path, model, text)
    reloaded = rs.load(tmp_path / "model.npz")
    assert printed.stdout == rs.generate_text(reloaded, [text], max_new_tokens=64)[0] + "\n"


def test_ids_at_padding_do_not_change_the_logits():
    model = rs.Model.random(arrangements.t5_like, 1)
    program, mask = rs.write_out(model), np.array([[True, True, False]])
    zero, other = (program.encode([[3, 4, x]], mask) for x in (0, 9))
    steps = [program.step(np.array([[1]]), 0, m, program.new_cache(1, 1)) for m in (zero, other)]
    assert_same(*steps)
    assert_same(program.encode([[3, 4]])[1][0], program.encode([[3, 4]], mask[:, :2])[1][0])


def test_long_lists_of_tokens_and_large_numbers_are_formatted(tmp_path):
    c = arrangements.t5_like
    many = {"suppressed_ids": tuple(range(3, 27)), "begin_suppressed_ids": tuple(range(3, 20))}
    norm = replace(c.encoder.norm, eps=1e300)
    model = rs.Model.random(replace(c, encoder=replace(c.encoder, norm=norm), **many), 0)
    text = rs.write_out(model).source
    assert max(map(len, text.split("\n"))) <= 100
    assert "banned = np.asarray(\n" in text
    assert "1e300" in text


def test_recording_ignores_the_numbers():
    model = rs.Model.random(arrangements.rich, 0)
    text = rs.write_out(model).source
    params = map_arrays(model.config, model.params, lambda x: x * np.float32(np.inf))
    with np.errstate(all="raise"):
        assert rs.write_out(rs.Model(config=model.config, params=params)).source == text


def test_a_program_is_saved_in_one_step(tmp_path):
    program = rs.write_out(rs.load("g2p"))
    program.save(tmp_path / "g2p.py")
    assert (tmp_path / "g2p.py").read_text() == program.source
    assert max(map(len, program.source.split("\n"))) <= 100
    assert repr(program).startswith("<Program of <Model of 2,196,320 parameters, float32>, 2")


# The text.


@pytest.mark.parametrize("name", KEPT)
def test_kept_programs_are_what_the_core_computes(name):
    kept = (HERE / "written" / f"{name}.py").read_text()
    assert kept == rs.write_out(recorded(KEPT[name])).source


def test_no_line_follows_a_return():
    for config in (arrangements.x_transformers, arrangements.rich):  # GELU in float64
        tree = ast.parse(rs.write_out(rs.Model.random(config, 0, "float64")).source)
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            assert not any(isinstance(x, ast.Return) for x in function.body[:-1])


def test_a_bart_is_short():
    text = rs.write_out(recorded("transformers-bart")).source
    assert text.count("\n") <= 201
    begin, end = text.index("def encode"), text.index("def greedy")
    assert text[begin:end].strip().count("\n") <= 70


def test_programs_are_formatted(tmp_path):
    ruff = shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for path in test_vectors.FILES:
        rs.write_out(recorded(path.stem)).save(tmp_path / f"{path.stem}.py")
    for name, of in KEPT.items():
        rs.write_out(recorded(of, "float16")).save(tmp_path / f"{name}_float16.py")
    for name, config in (arrangements.ALL | SOURCES).items():
        rs.write_out(rs.Model.random(config, 0, "float64")).save(tmp_path / f"{name}.py")
    for command in ("format --check", "check --select E,F,I,B"):
        options = ["--line-length", "100", "--isolated", "."]
        done = subprocess.run(
            [ruff, *command.split(), *options], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout.decode()


def test_a_program_has_only_what_its_model_uses():
    text = rs.write_out(recorded("transformers-t5-1-1")).source
    for absent in ("sinusoids", "layer_norm", "b_q", "head_scale", "Array", " is not None"):
        assert absent not in text
    assert "scores = q @ k.mT + bias  # not scaled" in text
    assert "borders = np.asarray((1, 4))  # bucket j > 0 begins at" in text
    assert "borders = np.asarray((1, 2, 3, 5, 7))" in text  # by hand: 6 buckets up to distance 10


@pytest.mark.parametrize("name", [*arrangements.ALL, *SOURCES])
def test_shapes_in_comments_are_those_of_the_arrays(name):
    model = rs.Model.random((arrangements.ALL | SOURCES)[name], 0)
    c, t = model.config, 3
    source, mask, target = inputs(model, 0)  # padded
    of_source, of_step, cache = rs.Trace(), rs.Trace(), rs.new_cache(model, 3, t + 1)
    memory = rs.encode(model, source, mask, tap=of_source)
    rs.decode(model, target[:, :t], memory, cache=cache)
    rs.decode(model, target[:, [t]], memory, cache=cache, tap=of_step)
    for trace, sizes in ((of_source, ENCODE), (of_step, STEP)):
        for quantity, x in trace.items():
            stack = c.encoder if quantity.startswith("encoder") else c.decoder
            a = stack.cross_attention if "cross" in quantity else stack.self_attention
            known = {"batch": 3, "n": memory.hidden.shape[1], "t": t, "d_model": stack.d_model}
            known |= {n: getattr(a, n) for n in ("n_heads", "n_kv_heads", "d_k", "d_v")}
            known |= {"d_ff": stack.feed_forward.d_ff, "vocab_size": stack.vocab_size}
            if "frame" in quantity:
                known |= {"n_frames": source.shape[1], "n_windows": x.shape[1]}
                known |= {"n_features": x.shape[2], "d_out": x.shape[2]}
            said = comment(c, sizes, {}, quantity, quantity.rpartition(".")[2])
            assert eval(said.rpartition("; ")[2].removeprefix("# "), known) == x.shape, quantity


# The graph.


def forward_graph(model):
    """The quantities that each quantity of a forward pass is computed from."""
    recorder = Recorder(model)
    given, mask, _ = inputs(model, 2, batch=2, n=3)
    source, mask = recorder.input("source", given), recorder.input("mask", mask)
    mask.all = lambda: False
    ids = recorder.input("ids", np.zeros((2, 3), int))
    memory = recorder.run("encode_checked", source, mask)
    recorder.run("decode_checked", ids, memory, cache=None)
    return {
        node.name: nearest_taps(node.arguments) for node in recorder.nodes if node.kind == "tap"
    }


def nearest_taps(nodes):
    found = set()
    for node in nodes:
        found |= {node.name} if node.kind == "tap" else nearest_taps(tuple(node.inputs()))
    return found


@settings(max_examples=12)
@given(
    config=strategies.configs().filter(lambda c: not is_refused(c))
    | st.sampled_from([*(arrangements.ALL | SOURCES).values()]),
    dtype=dtypes,
)
def test_the_graph_has_the_inputs_of_the_table(config, dtype):
    with np.errstate(all="ignore"):
        graph = forward_graph(rs.Model.random(config, 0, dtype))
    for name, found in graph.items():
        assert found == {*inputs_of(name, list(graph))}, table_name(name)


# Refusals.


@pytest.mark.parametrize("compare", [operator.gt, operator.le, operator.eq])
def test_a_branch_on_a_size_is_refused(compare):
    with pytest.raises(WriteOutError, match=r"a branch on a size, t \+ 1,"):
        compare(Size(0, "t") + 1, 3)


def test_an_expression_that_cannot_be_split_is_refused():
    with pytest.raises(WriteOutError, match="too long for a line"):
        layout.wrapped("return " + " + ".join(["something"] * 20), 4)


def test_learned_keys_with_windows_in_some_layers_are_refused():
    assert is_refused(LEARNED)
    with pytest.raises(WriteOutError, match="windows in some layers"):
        rs.write_out(rs.Model.random(LEARNED, 0))


@pytest.mark.parametrize("functions", [("exp", "log"), ("exp", "exp exp"), ("exp exp", "exp")])
def test_layers_that_differ_are_refused(functions):
    x, nodes = Node("input", "x"), []
    for i, names in enumerate(functions):
        for function in names.split():
            y = Node("function", function, (x,), layer=("encoder", i))
            x = Node("tap", f"encoder.layers.{i}.after_x", (y,), layer=("encoder", i))
            nodes += [y, x]
    nodes.append(Node("result", "", (x,), {}, "return {}"))
    body = lines.Body(nodes, None, lambda *_: "")
    with pytest.raises(WriteOutError, match="layer 1 of the encoder computes"):
        body.text("ids")


if __name__ == "__main__":
    for name, of in KEPT.items():
        rs.write_out(recorded(of)).save(HERE / "written" / f"{name}.py")
