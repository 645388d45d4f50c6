"""Processors that look at the history or the source, against what they say, by hand."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs


def state(tokens, n_new=1, source=((0,),), source_mask=None):
    tokens, source = np.array(tokens), np.array(source)
    batch = len(tokens)
    return rs.State(
        tokens=tokens,
        n_new=np.broadcast_to(n_new, (batch,)),
        emitting=np.ones(batch, dtype=bool),
        rows=np.arange(batch),
        source=np.broadcast_to(source, (batch, source.shape[1])),
        source_mask=np.ones((batch, source.shape[1]), bool) if source_mask is None else source_mask,
        uniforms=lambda: np.zeros(batch),
    )


def banned(processor, now, vocab_size=9):
    """The ids that the processor removes in each row."""
    scores = np.zeros((len(now.tokens), vocab_size))
    scores.flags.writeable = False
    return [np.flatnonzero(row == -np.inf).tolist() for row in processor(scores, now)]


def test_repetition_penalty_by_hand():
    scores = np.array([[2.0, -2.0, 3.0, -3.0]])
    out = rs.repetition_penalty(2.0)(scores, state([[0, 1, 1]]))
    assert out.tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_encoder_repetition_penalty_is_the_reverse_and_passes_over_padding():
    mask = np.array([[True, True, False]])
    now = state([[0]], source=[[2, 3, 1]], source_mask=mask)
    out = rs.encoder_repetition_penalty(2.0)(np.array([[2.0, -2.0, 3.0, -3.0]]), now)
    assert out.tolist() == [[2.0, -2.0, 6.0, -1.5]]


def ngram_bans(text, tokens, n):
    """The literal definition: a token is banned when it would repeat n of the text in a row."""
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    if len(tokens) < n - 1:
        return []
    return [t for t in range(9) if (*tokens[len(tokens) - n + 1 :], t) in grams]


rows = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@given(tokens=rows, n=st.integers(1, 5))
def test_no_repeat_ngram(tokens, n):
    assert banned(rs.no_repeat_ngram(n), state([tokens])) == [ngram_bans(tokens, tokens, n)]


@given(tokens=rows, source=rows, n=st.integers(1, 5))
def test_encoder_no_repeat_ngram(tokens, source, n):
    now = state([tokens], source=[source])
    assert banned(rs.encoder_no_repeat_ngram(n), now) == [ngram_bans(source, tokens, n)]


def test_bans():
    now = state([[1, 2, 3], [1, 3, 2]], n_new=[0, 1])
    assert banned(rs.suppress([4, 7]), now) == [[4, 7], [4, 7]]
    assert banned(rs.begin_suppress([4]), now) == [[4], []]
    assert banned(rs.bad_words([[5], [2, 3, 6], [2, 8]]), now) == [[5, 6], [5, 8]]
    assert banned(rs.minimum_length(1, [2, 8]), now) == [[2, 8], []]


def test_orders():
    now = state([[1, 2], [1, 3]], n_new=[0, 4])
    others = [i for i in range(9) if i != 7]
    assert banned(rs.forced_bos(7), now) == [others, []]
    assert banned(rs.forced_eos(7, max_new_tokens=5), now) == [[], others]
    seen = []

    def allowed(row, tokens):
        seen.append((row, tokens.tolist()))
        return [row, 5]

    assert banned(rs.allowed_tokens(allowed), now) == [
        [i for i in range(9) if i not in (0, 5)],
        [i for i in range(9) if i not in (1, 5)],
    ]
    assert seen == [(0, [1, 2]), (1, [1, 3])]


def test_in_the_loop():
    model = rs.load("g2p")
    source = [model.source_vocabulary.encode(w) for w in ("banana", "mississippi")]
    out = rs.generate(model, source, choose=rs.greedy(rs.no_repeat_ngram(2)), max_new_tokens=20)
    for tokens, n in zip(out.tokens.tolist(), out.lengths, strict=True):
        pairs = list(pairwise(tokens[:n]))
        assert len(set(pairs)) == len(pairs)
    out = rs.beam_search(model, source, processors=[rs.forced_bos(20)], max_new_tokens=9)
    assert (out.tokens[:, 0, 0] == 20).all()
    assert (out.log_probs[:, 0, 0] == 0).all()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: rs.repetition_penalty(0), ValueError),
        (lambda: rs.encoder_repetition_penalty(-1.0), ValueError),
        (lambda: rs.no_repeat_ngram(0), ValueError),
        (lambda: rs.no_repeat_ngram(2.0), TypeError),
        (lambda: rs.suppress([-1]), ValueError),
        (lambda: rs.suppress([]), ValueError),
        (lambda: rs.bad_words([[1.5]]), ValueError),
        (lambda: rs.begin_suppress([3], after=-1), ValueError),
        (lambda: rs.begin_suppress([3], after="1"), TypeError),
        (lambda: rs.minimum_length(2.5, [2]), TypeError),
        (lambda: rs.minimum_length(-1, [2]), ValueError),
    ],
)
def test_bad_settings(make, error):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    ("make", "name", "token"),
    [
        (lambda: rs.suppress([3, 99, 98]), "suppress", 99),
        (lambda: rs.begin_suppress([99]), "begin_suppress", 99),
        (lambda: rs.bad_words([[99]]), "bad_words", 99),
        (lambda: rs.forced_bos(99), "forced_bos", 99),
        (lambda: rs.minimum_length(1, [99]), "minimum_length", 99),
        (lambda: rs.allowed_tokens(lambda row, tokens: [-1, 3]), "allowed_tokens", -1),
    ],
)
def test_a_token_that_is_not_in_the_vocabulary_is_named(make, name, token):
    said = f"^{name} names token id {token}; the vocabulary has ids 0 to 8$"
    with pytest.raises(ValueError, match=said):
        banned(make(), state([[1]], n_new=0))


def test_the_models_own_rules_go_before_all_others():
    model = rs.load("g2p")
    end = model.config.eos_ids[0]
    rules = {
        "forced_bos_id": 7,
        "forced_eos_id": end,
        "suppressed_ids": (4, 11),
        "begin_suppressed_ids": (12,),
    }
    ruled = dataclasses.replace(model, config=dataclasses.replace(model.config, **rules))
    source = [model.source_vocabulary.encode(word) for word in ("cat", "abracadabra")]
    steps = list(rs.decode_steps(ruled, source, max_new_tokens=4))
    assert steps[0].tokens.tolist() == [7, 7]
    assert (steps[1].scores[:, [4, 11, 12]] == -np.inf).all()
    assert (steps[2].scores[:, [4, 11]] == -np.inf).all()
    assert (steps[2].scores[:, 12] > -np.inf).all()
    out = rs.generate(ruled, source, max_new_tokens=4)
    beam = rs.beam_search(ruled, source, beams=2, max_new_tokens=4)
    for found in (out.tokens[:, :4], beam.tokens[:, 0]):
        assert (found[:, 0] == 7).all()
        assert found[1, 3] == end
    assert rs.ModelConfig.from_dict(ruled.config.to_dict()) == ruled.config
    with pytest.raises(ValueError, match="forced_bos_id must be in the decoder's vocabulary"):
        dataclasses.replace(model.config, forced_bos_id=42)
