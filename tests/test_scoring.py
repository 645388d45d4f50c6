"""Scores of given targets: the sums that greedy decoding, sampling and beam search report."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import raises_naming, short
from tasks import assert_read_only, tiny

import refseq2seq as rs

SOURCE = [[3, 4, 5], [6, 2]]


@given(seed=st.integers(0, 99), n=st.integers(1, 6))
@settings(max_examples=15)
def test_scores_of_samples_are_their_log_probs(seed, n):
    model = tiny(seed, 7)
    out = rs.generate(model, SOURCE, choose=rs.sample(), seed=seed, max_new_tokens=n)
    rows = zip(out.tokens.tolist(), out.lengths, strict=True)
    scores = rs.score(model, SOURCE, [[1, *tokens[:k]] for tokens, k in rows])
    assert scores.lengths.tolist() == out.lengths.tolist()
    np.testing.assert_allclose(scores.log_probs, out.log_probs, rtol=1e-11, equal_nan=False)
    np.testing.assert_allclose(scores.total, out.log_probs.sum(axis=1), rtol=1e-11)


def test_probabilities_of_all_targets_of_a_length_sum_to_one():
    model = tiny(2, 3, eos_ids=())
    targets = [[1, a, b] for a in range(3) for b in range(3)]
    total = rs.score(model, [[3, 4]] * 9, targets).total
    assert np.exp(total).sum() == pytest.approx(1, rel=1e-12)


# Targets that raise -------------------------------------------------------------------------------


def test_a_target_must_begin_with_the_start_token_or_its_prefix():
    model = tiny(3, 7)
    for target in ([[4, 5]], [[0, 4]], [[1, 3], [4, 5]]):
        with raises_naming(ValueError, "target", "start token [1]", f"got {target[-1][:1]}"):
            rs.score(model, [[3, 4]] * len(target), target)
    free = rs.score(model, [[3, 4]], [[4, 5, 6]], prefix=[[4]])
    logits = rs.forward(model, [[3, 4]], [[4, 5, 6]])
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [log_probs[0, 0, 5], log_probs[0, 1, 6]]
    np.testing.assert_allclose(free.log_probs[0], expected, rtol=1e-12, equal_nan=False)
    with raises_naming(ValueError, "target", "prefix [4, 2]", "got [4, 5]"):
        rs.score(model, [[3, 4]], [[4, 5, 6]], prefix=[[4, 2]])


def test_a_prefix_is_not_scored():
    model = tiny(5, 7)
    target, prefix = [[1, 4, 3, 6], [1, 5]], [[1, 4, 3], [1]]
    whole = rs.score(model, SOURCE, target)
    part = rs.score(model, SOURCE, target, prefix=prefix)
    assert part.lengths.tolist() == [1, 1]
    assert part.log_probs.tolist() == [[0, 0, whole.log_probs[0, 2]], [whole.total[1], 0, 0]]
    out = rs.generate(model, SOURCE, prefix=prefix, max_new_tokens=4)
    rows = zip(prefix, out.tokens, out.lengths, strict=True)
    targets = [begin + tokens[:n].tolist() for begin, tokens, n in rows]
    again = rs.score(model, SOURCE, targets, prefix=prefix)
    np.testing.assert_allclose(again.total, out.log_probs.sum(axis=1), rtol=1e-11)


def test_padding_of_an_array_needs_a_target_mask():
    model = tiny(0, 7)  # ends with 2, pads with 0
    padded = np.array([[1, 3, 2, 0, 0], [1, 5, 4, 3, 2]])
    with raises_naming(ValueError, "target row 0", "2 pad tokens", "target_mask="):
        rs.score(model, SOURCE, padded)
    ragged = rs.score(model, SOURCE, [[1, 3, 2], [1, 5, 4, 3, 2]])
    masked = rs.score(model, SOURCE, padded, target_mask=padded != 0)
    assert masked.lengths.tolist() == ragged.lengths.tolist() == [2, 4]
    assert np.array_equal(masked.log_probs, ragged.log_probs)
    told = rs.score(model, SOURCE, padded, target_mask=np.ones(padded.shape, bool))
    assert told.lengths.tolist() == [4, 4]
    # an end token within a target, or the pad token as the first end, is no padding
    assert rs.score(model, SOURCE, [[1, 2, 3], [1, 0, 0]]).lengths.tolist() == [2, 2]
    same = tiny(0, 7, eos_ids=(0,))
    with raises_naming(ValueError, "target row 1", "1 pad tokens"):
        rs.score(same, SOURCE, [[1, 2, 3], [1, 0, 0]])
    with raises_naming(ValueError, "target row 0", "2 pad tokens"):  # an end token in the prefix
        rs.score(model, [[3]], [[1, 2, 4, 2, 0, 0]], prefix=[[1, 2]])


@pytest.mark.parametrize(
    ("target", "mask", "names"),
    [
        ([[1]], None, ["target", "prefix"]),  # there is no token to score
        ([[1, 4, 5]], np.array([[True, False, True]]), ["target_mask"]),
        ([[1, 4, 5]], np.array([[False, True, True]]), ["target_mask"]),
    ],
)
def test_a_target_without_tokens_or_with_padding_before_them_raises(target, mask, names):
    with raises_naming(ValueError, *names):
        rs.score(tiny(0, 7), [[3]], target, target_mask=mask)


PROCESSORS = [
    [rs.repetition_penalty(1.7)],
    [rs.no_repeat_ngram(1), rs.minimum_length(3)],
    [rs.suppress([3, 4]), rs.renormalize_logits()],
    [rs.encoder_no_repeat_ngram(1)],
]


@pytest.mark.parametrize("processors", PROCESSORS, ids=short)
@pytest.mark.parametrize("kind", ["processors", "logits_processors"])
@given(seed=st.integers(0, 99))
@settings(max_examples=5)
def test_the_processors_of_a_search_give_its_score(processors, kind, seed):
    model, how = tiny(seed, 7), {kind: processors}
    out = rs.beam_search(model, SOURCE, beams=3, max_new_tokens=5, **how)
    targets = [[1, *tokens[0, :n]] for tokens, n in zip(out.tokens, out.lengths[:, 0], strict=True)]
    scores = rs.score(model, SOURCE, targets, **how)
    np.testing.assert_allclose(scores.total / scores.lengths, out.scores[:, 0], rtol=1e-9)
    banned = rs.score(model, SOURCE, targets, processors=[rs.suppress([int(targets[1][1])])])
    assert banned.total[1] == -np.inf


def test_the_state_is_read_only():
    def write(scores, state):
        for x in (state.tokens, state.emitted, state.n_new, state.source_index, state.source):
            assert_read_only(x)
        return scores

    model = tiny(0, 7)
    plain = rs.score(model, SOURCE, [[1, 3, 4], [1, 5, 2]])
    watched = rs.score(model, SOURCE, [[1, 3, 4], [1, 5, 2]], processors=[write])
    assert np.array_equal(watched.log_probs, plain.log_probs)
