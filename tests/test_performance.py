"""What generation costs, as counts and not as times: work, rows, memory, imports.

Seconds are in docs/performance.md, measured by tests/benchmarks.
"""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from arrangements import small_x_transformers
from benchmarks import peers
from hypothesis import given, settings
from tasks import Task, tasks

import refseq2seq as rs
from refseq2seq.generation import inference
from refseq2seq.params import map_arrays, named_arrays


def network(vocab_size=101, d_model=128, n_layers=2, dtype="float32"):
    sizes = (vocab_size, vocab_size), (64, 256), (n_layers, n_layers)
    config = small_x_transformers(d_model, *sizes, n_heads=4, d_k=d_model // 4)
    return rs.Model.random(config, 0, dtype)


def source(batch, n=31):
    return np.random.default_rng(0).integers(3, 101, (batch, n))


# Work -------------------------------------------------------------------------------------------


class CountingArray(np.ndarray):
    """An array that counts the multiplications and elements of all that is computed from it."""

    count = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(x) if isinstance(x, CountingArray) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            CountingArray.count += plain[0].shape[-1] * result.size
        else:
            CountingArray.count += max(np.size(result), np.size(plain[0]))  # a sum reads more
        return result.view(CountingArray) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function, types, args, kwargs):
        result = super().__array_function__(function, types, args, kwargs)
        CountingArray.count += np.size(result) if isinstance(result, np.ndarray) else 0
        return result


def counting(model):
    counted = map_arrays(model.config, model.params, lambda x: x.view(CountingArray))
    return rs.Model(config=model.config, params=counted)


def work_of_steps(steps):
    work, before = [], CountingArray.count
    for _ in steps:
        work.append(CountingArray.count - before)
        before = CountingArray.count
    return work


def test_the_work_of_a_step_grows_linearly():
    n = 100
    steps = rs.decode_steps(counting(network()), source(2), eos_ids=(), max_new_tokens=n)
    work = np.array(work_of_steps(steps)[1:])  # the first one has the encoder's
    more = np.diff(work)
    # Of 2 layers and 2 rows, each further token asks for a score and a sum of 128 numbers each,
    # of 4 heads' weights and their softmax; nothing else grows.
    assert (more == more[0]).all()
    assert 2 * 2 * 2 * 128 <= more[0] <= 2 * 2 * (2 * 128 + 4 * 20)
    assert n * more[0] < 0.2 * work[0]


def test_without_a_cache_the_work_is_quadratic():
    """The test above can fail."""
    options = {"eos_ids": (), "max_new_tokens": 20, "use_cache": False}
    work = work_of_steps(rs.decode_steps(counting(network()), source(2), **options))
    assert work[-1] > 10 * work[1]


# Rows that have ended ---------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """How many rows the model is given in each step."""
    seen, decode = [], inference.decode_checked

    def counted(model, ids, memory, **options):
        seen.append(len(ids))
        return decode(model, ids, memory, **options)

    monkeypatch.setattr(inference, "decode_checked", counted)
    return seen


def watching(name, x):
    return x


@settings(max_examples=15)
@given(task=tasks())
def test_rows_that_have_ended_leave_the_batch(task: Task):
    """The result is that of rows that stay, since a tap keeps them; the arithmetic is exact."""
    watched = task.generated(tap=rs.FunctionTap(watching))
    assert task.generated() == watched
    assert task.generated(use_cache=False) == watched


def ends_early(batch):
    """A model and sources whose rows end at different times."""
    model = rs.Model.random(network(vocab_size=11, d_model=12).config, 5, "float64").exact()
    return model, np.random.default_rng(1).integers(3, 11, (batch, 5))


def test_rows_that_have_ended_cost_nothing(batches):
    model, rows = ends_early(16)
    out = rs.generate(model, rows, max_new_tokens=40, choose=rs.sample(rs.temperature(2.0)))
    assert len(set(out.lengths)) > 5
    going_on = [(out.lengths > t).sum() for t in range(len(batches))]
    assert batches[0] == 16
    assert all(k <= n <= 4 / 3 * k for n, k in zip(batches, going_on, strict=True))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_searches_that_have_ended_leave_the_batch(batches, early_stopping, use_cache):
    model, rows = ends_early(7)
    options = {"beams": 3, "max_new_tokens": 30, "early_stopping": early_stopping, "n_best": 3}
    found = rs.beam_search(model, rows, use_cache=use_cache, **options)
    assert len(set(batches)) > 1
    assert {n % 3 for n in batches} == {0}
    watched = rs.beam_search(model, rows, tap=rs.FunctionTap(watching), **options)
    for name in ("tokens", "lengths", "scores", "log_probs", "margin"):
        np.testing.assert_array_equal(getattr(found, name), getattr(watched, name))


def test_rows_of_amateurs_leave_the_batch_but_with_a_tap(batches):
    model, rows = ends_early(7)
    amateurs = [rs.amateur(rs.Model.random(model.config, 9, "float64").exact())]
    options = {"amateurs": amateurs, "max_new_tokens": 30}
    out = rs.generate(model, rows, **options)
    assert len(set(batches)) > 1
    assert batches[0::2] == batches[1::2]  # the expert's and the amateur's, by turns
    batches.clear()
    watched = rs.generate(model, rows, tap=rs.FunctionTap(watching), **options)
    assert set(batches) == {7}
    assert out.tokens.tolist() == watched.tokens.tolist()
    assert out.log_probs.tolist() == watched.log_probs.tolist()


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "vocab_size"), [(1, 101), (4, 4001), (32, 101)])
def test_the_peak_of_memory_is_weights_and_caches_and_a_fifth(batch, vocab_size):
    model, n_source, n_new = network(vocab_size, d_model=256, n_layers=3), 31, 60
    arrays = {id(x): x.nbytes for _, x in named_arrays(model.params)}
    weights = sum(arrays.values())
    caches = 2 * 3 * batch * 256 * 4 * (n_source + n_new + 1)
    rs.generate(model, source(1), max_new_tokens=2)  # what is imported or kept once
    tracemalloc.start()
    rs.generate(model, source(batch), max_new_tokens=n_new, eos_ids=())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caches <= peak <= caches + 0.2 * (weights + caches)


# Imports ----------------------------------------------------------------------------------------


def test_importing_it_is_quick():
    """About 30 ms beside NumPy's 100 on a quiet machine; a converter's libraries take seconds."""
    program = (
        "import numpy, time; t = time.process_time(); import refseq2seq; "
        "print(time.process_time() - t)"
    )
    command = [sys.executable, "-c", program]
    seconds = [float(subprocess.check_output(command, text=True)) for _ in range(3)]
    assert min(seconds) < 0.3


# The page ---------------------------------------------------------------------------------------


def test_the_page_has_the_table_of_performance():
    figures = json.loads(peers.FIGURES.read_text())
    assert peers.measured(figures) in peers.PAGE.read_text(encoding="utf-8")
    for row in figures["figures"].values():  # engines of the same weights give the same tokens
        assert all(of_engine["tokens_equal"] > 0.99 for of_engine in row.values())


def test_the_page_has_the_quickest_runs():
    known, page = json.loads(peers.FIGURES.read_text()), peers.PAGE.read_text(encoding="utf-8")

    def quickest(size, theirs, ours):
        row = known["figures"][size]
        return f"{row[theirs]['fastest'] / row[ours]['fastest']:.2f}"

    for size, theirs in (
        ("d128 1 64", "CTranslate2"), ("d128 4 64", "CTranslate2"), ("d256 32 64", "Hugging Face"),
    ):  # fmt: skip
        assert f" to {quickest(size, theirs, 'ours, BART')} " in " ".join(page.split())
