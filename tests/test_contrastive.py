"""Contrastive decoding: two models, their own encodings and caches, one distribution."""

import math

import numpy as np
import pytest
from naming import raises_naming
from tasks import tiny

import refseq2seq as rs

SOURCE = [[3, 4, 5], [6, 2]]


def contrasted(expert, amateur, alpha, e, a):
    out = []
    for x, y in zip(expert.tolist(), amateur.tolist(), strict=True):
        cut = math.log(alpha) + max(x)
        out.append([e * p - a * q if p >= cut else -math.inf for p, q in zip(x, y, strict=True)])
    return np.array(out)


def assert_same_logits(actual, expected, rtol):
    assert np.array_equal(actual == -np.inf, expected == -np.inf)
    kept = expected > -np.inf
    np.testing.assert_allclose(actual[kept], expected[kept], rtol=rtol, equal_nan=False)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("make", "weights"), [(rs.amateur, (1.5, 0.5)), (rs.amateur_of_li, (1.0, 1.0))]
)
def test_logits_are_the_experts_corrected(make, weights, use_cache):
    expert, weaker = tiny(0, 7), tiny(1, 7)
    steps = rs.decode_steps(
        expert, SOURCE, amateurs=[make(weaker)], max_new_tokens=5, eos_ids=(), use_cache=use_cache
    )
    target = np.ones((2, 1), dtype=int)
    for step in steps:
        ours, theirs = (rs.forward(m, SOURCE, target)[:, -1] for m in (expert, weaker))
        expected = contrasted(ours, theirs, 0.1, *weights)
        assert_same_logits(step.logits, expected, 1e-10)
        assert step.tokens.tolist() == expected.argmax(axis=1).tolist()
        target = np.concatenate([target, step.tokens[:, None]], axis=1)


def test_an_amateur_may_read_the_experts_encoding():
    expert, weaker = tiny(0, 7), tiny(1, 7)
    shared = rs.amateur(weaker, reads_source=False)
    trace, how = rs.Trace(), {"max_new_tokens": 1, "eos_ids": ()}
    (step,) = rs.decode_steps(expert, SOURCE, amateurs=[shared], **how, tap=trace)
    assert "amateur.0.decoder.layers.0.cross_attention.k" in trace
    memory, start = rs.encode(expert, SOURCE), [[1], [1]]
    projected = rs.project_memory(weaker, memory.hidden, memory.mask)
    theirs = rs.decode(weaker, start, projected)[:, -1]
    expected = contrasted(rs.forward(expert, SOURCE, start)[:, -1], theirs, 0.1, 1.5, 0.5)
    assert_same_logits(step.logits, expected, 1e-10)
    own = rs.amateur(weaker)
    (other,) = rs.decode_steps(expert, SOURCE, amateurs=[own], **how)
    assert not np.array_equal(step.logits, other.logits)


def test_several_amateurs_correct_one_after_the_other_and_in_beams_too():
    models = [tiny(seed, 7).exact() for seed in range(3)]
    amateurs = [rs.amateur(models[1]), rs.amateur(models[2], alpha=0.5, beta=1.0)]
    (step,) = rs.decode_steps(models[0], SOURCE, amateurs=amateurs, max_new_tokens=1)
    raw = [np.asarray(rs.forward(m, SOURCE, [[1], [1]])[:, -1]) for m in models]
    expected = contrasted(contrasted(raw[0], raw[1], 0.1, 1.5, 0.5), raw[2], 0.5, 2.0, 1.0)
    assert_same_logits(np.asarray(step.logits), expected, 1e-12)


def test_the_caches_of_amateurs_follow_the_beams():
    expert, weaker = tiny(0, 7).exact(), tiny(1, 7).exact()
    options = {"amateurs": [rs.amateur(weaker, alpha=0.01)], "eos_ids": (), "max_new_tokens": 9}
    steps = list(rs.beam_steps(expert, SOURCE, **options))
    parents = [np.take_along_axis(s.candidates.beams, s.survivors, axis=1) for s in steps]
    assert any((rows != np.arange(4)).any() for rows in parents[1:])  # beams change places
    uncached = list(rs.beam_steps(expert, SOURCE, use_cache=False, **options))
    for step, other in zip(steps, uncached, strict=True):
        assert np.array_equal(step.live.scores, other.live.scores)


def test_an_alpha_of_zero_raises():
    with raises_naming(ValueError, "alpha"):
        rs.amateur(tiny(0), alpha=0.0)
