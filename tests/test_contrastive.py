"""Contrastive decoding: two models, their own encodings and caches, one distribution."""

import math

import numpy as np
import pytest
from tasks import tiny

import refseq2seq as rs

SOURCE = [[3, 4, 5], [6, 2]]


def contrasted(expert, amateur, alpha, e, a):
    out = []
    for x, y in zip(expert.tolist(), amateur.tolist(), strict=True):
        cut = math.log(alpha) + max(x)
        out.append([e * p - a * q if p >= cut else -math.inf for p, q in zip(x, y, strict=True)])
    return np.array(out)


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
        assert np.array_equal(step.logits == -np.inf, expected == -np.inf)
        kept = expected > -np.inf
        np.testing.assert_allclose(step.logits[kept], expected[kept], rtol=1e-10, equal_nan=False)
        assert step.tokens.tolist() == expected.argmax(axis=1).tolist()
        target = np.concatenate([target, step.tokens[:, None]], axis=1)


def test_an_amateur_may_take_the_experts_encoding():
    expert, weaker = tiny(0, 7), tiny(1, 7)
    shared = rs.amateur(weaker, reads_source=False)
    (step,) = rs.decode_steps(expert, SOURCE, amateurs=[shared], max_new_tokens=1, eos_ids=())
    memory = rs.encode(expert, SOURCE)
    theirs = rs.decode(weaker, [[1], [1]], rs.project_memory(weaker, memory.hidden, memory.mask))[
        :, -1
    ]
    expected = contrasted(rs.forward(expert, SOURCE, [[1], [1]])[:, -1], theirs, 0.1, 1.5, 0.5)
    kept = expected > -np.inf
    np.testing.assert_allclose(step.logits[kept], expected[kept], rtol=1e-10, equal_nan=False)
    own = rs.amateur(weaker)
    (other,) = rs.decode_steps(expert, SOURCE, amateurs=[own], max_new_tokens=1, eos_ids=())
    assert not np.array_equal(step.logits, other.logits)


def test_several_amateurs_correct_one_after_the_other_and_in_beams_too():
    models = [tiny(seed, 7).exact() for seed in range(3)]
    amateurs = [rs.amateur(models[1]), rs.amateur(models[2], alpha=0.5, beta=1.0)]
    (step,) = rs.decode_steps(models[0], SOURCE, amateurs=amateurs, max_new_tokens=1)
    raw = [np.asarray(rs.forward(m, SOURCE, [[1], [1]])[:, -1]) for m in models]
    expected = contrasted(contrasted(raw[0], raw[1], 0.1, 1.5, 0.5), raw[2], 0.5, 2.0, 1.0)
    kept = expected > -np.inf
    np.testing.assert_allclose(np.asarray(step.logits)[kept], expected[kept], rtol=1e-12)
    options = {"amateurs": amateurs, "max_new_tokens": 6}
    beam = rs.beam_search(models[0], SOURCE, beams=3, **options)
    uncached = rs.beam_search(models[0], SOURCE, beams=3, use_cache=False, **options)
    assert np.array_equal(beam.scores, uncached.scores)


def test_an_amateur_must_fit():
    with pytest.raises(ValueError, match="the expert's target vocabulary of 7 tokens, got 5"):
        rs.generate(tiny(0, 7), SOURCE, amateurs=[rs.amateur(tiny(0, 5))])
    with pytest.raises(ValueError, match="alpha must be in"):
        rs.amateur(tiny(0), alpha=0.0)
