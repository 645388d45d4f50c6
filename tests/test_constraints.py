"""Processors that look at the target so far or at the source, and the rules of a config."""

import dataclasses
import pickle

import distributions
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming
from tasks import SEARCHES

import refseq2seq as rs


def state(tokens, n_new=1, source=((0,),), source_mask=None):
    tokens, batch = np.array(tokens), len(tokens)
    source = np.broadcast_to(source, (batch, len(source[0])))
    mask = np.ones(source.shape, bool) if source_mask is None else source_mask
    n_new = np.broadcast_to(n_new, (batch,))
    now = distributions.state(batch=batch)
    return dataclasses.replace(now, tokens=tokens, n_new=n_new, source=source, source_mask=mask)


def banned(processor, now, vocab_size=9):
    """The ids that the processor removes in each row."""
    scores = np.zeros((len(now.tokens), vocab_size))
    scores.flags.writeable = False
    after = processor(scores, now)
    assert (after[after > -np.inf] == 0).all()
    return [np.flatnonzero(row == -np.inf).tolist() for row in after]


def test_repetition_penalty_by_hand():
    scores = np.array([[2.0, -2.0, 3.0, -3.0]])
    out = rs.repetition_penalty(2.0)(scores, state([[0, 1, 1]]))
    assert out.tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_encoder_repetition_penalty_by_hand():
    mask = np.array([[True, True, False]])
    now = state([[0]], source=[[2, 3, 1]], source_mask=mask)
    out = rs.encoder_repetition_penalty(2.0)(np.array([[2.0, -2.0, 3.0, -3.0]]), now)
    assert out.tolist() == [[2.0, -2.0, 6.0, -1.5]]


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_sequence_bias_by_hand(kind):
    biases = kind({(1,): 0.5, (2, 1): 2.0, (3, 2, 3): -1.0, (1, 3, 2, 0): 4.0}.items())
    scores = np.array([[0.0, 1, -np.inf, 3], [0, 1, 2, 3]])
    out = rs.sequence_bias(biases)(scores, state([[1, 3, 2], [2, 2, 3]]))
    assert out.tolist() == [[4.0, 3.5, -np.inf, 2.0], [0.0, 1.5, 2.0, 3.0]]


def test_exponential_decay_by_hand():
    """The end tokens, 1 and 2: after 2 new tokens nothing changes, after 4 it is (1.5^2 - 1)."""
    now = dataclasses.replace(state([[0]] * 3, n_new=[2, 4, 4]), eos_ids=(1, 2))
    scores = np.array([[1.0, 2, -4, 8], [1, 2, -4, 8], [1, -np.inf, 0, 8]])
    out = rs.exponential_decay(2, 1.5)(scores, now)
    assert out.tolist() == [[1, 2, -4, 8], [1, 4.5, 1, 8], [1, -np.inf, 0, 8]]


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


def test_processors_that_ban_tokens():
    now = state([[1, 2, 3], [1, 3, 2]], n_new=[0, 1])
    assert banned(rs.suppress([4, 7]), now) == [[4, 7], [4, 7]]
    assert banned(rs.begin_suppress([4]), now) == [[4], []]
    assert banned(rs.bad_words([[5], [2, 3, 6], [2, 8]]), now) == [[5, 6], [5, 8]]
    assert banned(rs.minimum_length(1, [2, 8]), now) == [[2, 8], []]


def test_processors_that_force_tokens():
    now = state([[1, 2], [1, 3]], n_new=[0, 4])
    others = [i for i in range(9) if i != 7]
    assert banned(rs.forced_bos(7), now) == [[], []]  # a longer prefix is left alone
    assert banned(rs.forced_bos(7), state([[1], [2]], n_new=0)) == [others, others]
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


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: rs.repetition_penalty(0), ValueError, ["penalty", "got 0"]),
        (lambda: rs.encoder_repetition_penalty(-1.0), ValueError, ["penalty", "-1.0"]),
        (lambda: rs.no_repeat_ngram(0), ValueError, ["no_repeat_ngram", "got 0"]),
        (lambda: rs.no_repeat_ngram(2.0), TypeError, ["no_repeat_ngram", "float"]),
        (lambda: rs.bad_words([[1.5]]), ValueError, ["1.5"]),
        (lambda: rs.bad_words(5), TypeError, ["bad_words"]),
        (lambda: rs.sequence_bias(5), TypeError, ["sequence_bias", "5"]),
        (lambda: rs.sequence_bias([[3, 0.5]]), TypeError, ["sequence_bias", "0.5"]),
        (lambda: rs.sequence_bias({(3,): np.inf}), ValueError, ["bias", "inf"]),
        (lambda: rs.exponential_decay(-1, 2), ValueError, ["start", "-1"]),
        (lambda: rs.exponential_decay(1, 0), ValueError, ["factor", "0"]),
        (lambda: rs.begin_suppress([3], after=-1), ValueError, ["after", "-1"]),
        (lambda: rs.begin_suppress([3], after="1"), TypeError, ["after", "str"]),
        (lambda: rs.begin_suppress([1], after=np.array([0.5])), TypeError, ["after"]),
        (lambda: rs.begin_suppress([1], after=np.array([[0]])), TypeError, ["after"]),
        (lambda: rs.minimum_length(2.5, [2]), TypeError, ["minimum_length", "float"]),
        (lambda: rs.minimum_length(-1, [2]), ValueError, ["minimum_length", "-1"]),
        (lambda: rs.allowed_tokens(5), TypeError, ["allowed_tokens", "5"]),
    ],
)
def test_a_bad_argument_raises_when_a_processor_is_made(make, kind, names):
    with raises_naming(kind, *names):
        make()


@pytest.mark.parametrize(
    "ids", [{2}, [2], (2,), np.array([2], np.int8), range(2, 3), frozenset({2})]
)
def test_token_ids_may_be_any_collection(ids):
    now = state([[1]], n_new=0)
    assert banned(rs.minimum_length(3, ids), now) == [[2]]
    assert banned(rs.suppress(ids), now) == [[2]]
    assert banned(rs.bad_words([ids]), now) == [[2]]


@pytest.mark.parametrize("ids", [[], [-1], [1.5], [True], 3, None, [[1]], iter([1, 2])])
@pytest.mark.parametrize(
    "make", [rs.suppress, rs.begin_suppress, lambda ids: rs.minimum_length(1, ids or ())]
)
def test_token_ids_of_another_type_raise(make, ids):
    with raises_naming(ValueError, "must be token ids"):
        make(ids)


@pytest.mark.parametrize(
    ("processor", "token"),
    [
        (rs.suppress([3, 99, 98]), 99),
        (rs.begin_suppress([99]), 99),
        (rs.bad_words([[99]]), 99),
        (rs.sequence_bias({(99,): 1.0}), 99),
        (rs.forced_bos(99), 99),
        (rs.minimum_length(1, [99]), 99),
        (rs.allowed_tokens(lambda row, tokens: [-1, 3]), -1),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_token_outside_the_vocabulary_is_named(processor, token):
    with raises_naming(ValueError, processor.name, f"token id {token}", "0 to 8"):
        banned(processor, state([[1]], n_new=0))


@pytest.mark.parametrize("answer", [None, [1.5], ["a"], [[1]], 3.5, [99], [-1], [True]])
def test_what_the_function_of_allowed_tokens_returns_is_checked(answer):
    choose = rs.greedy(rs.allowed_tokens(lambda row, tokens: answer))
    with raises_naming(ValueError, "allowed_tokens", "token id"):
        rs.generate(rs.load("g2p"), [[5, 6]], choose=choose)


def test_a_minimum_length_bans_every_eos_id():
    now = dataclasses.replace(state([[1], [1]], n_new=[0, 2]), eos_ids=np.array([4, 7]))
    assert banned(rs.minimum_length(2), now) == [[4, 7], []]


def test_the_rules_of_the_config_are_applied_by_every_loop():
    model = rs.load("g2p")
    end = model.config.eos_ids[0]
    rules = {"forced_bos_id": 7, "forced_eos_id": end}
    rules |= {"suppressed_ids": (4, 11), "begin_suppressed_ids": (12,)}
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
    with raises_naming(ValueError, "forced_bos_id", 42):
        dataclasses.replace(model.config, forced_bos_id=42)


# Rules and processors together --------------------------------------------------------------------


def asked_of(model, prefix, **rules):
    """One new token or more after a prefix, of a g2p model with rules."""
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, **rules))
    return model, {"prefix": [prefix], "max_new_tokens": 3}


@pytest.fixture(params=SEARCHES, ids=lambda search: search.__name__)
def search(request):
    """The new tokens that each kind of search gives a source."""

    def tokens(model, processors, **how):
        found = request.param(model, [[4, 5]], processors, **how).tokens
        return found.reshape(-1, found.shape[-1])[0]

    return tokens


G2P = rs.load("g2p")
START, END = G2P.config.decoder_start_id, G2P.config.eos_ids[0]


@pytest.mark.parametrize(
    "processor",
    [
        rs.bad_words([[11]]),
        rs.allowed_tokens(lambda row, tokens: [7, 8]),
        rs.no_repeat_ngram(1),
        rs.repetition_penalty(9.0),
        rs.minimum_length(3, [11]),
        rs.top_k(1),
        rs.sample(rs.temperature(0.5)).processors[0],
        lambda scores, state: np.where(np.arange(scores.shape[1]) == 11, -np.inf, scores),
    ],
    ids=lambda processor: getattr(processor, "name", "a caller's own"),
)
def test_a_forced_token_wins_over_every_processor(search, processor):
    model, how = asked_of(G2P, [START], forced_bos_id=11)
    assert search(model, [processor], **how)[0] == 11
    model, how = asked_of(G2P, [START], forced_eos_id=11, eos_ids=(END, 11))
    processors = [processor, rs.suppress([END])]
    assert search(model, processors, **how | {"max_new_tokens": 1}).tolist() == [11]


def test_forced_eos_is_the_last_token_and_forced_bos_the_first(search):
    model, how = asked_of(G2P, [START], forced_bos_id=11, forced_eos_id=12)
    tokens = search(model, [rs.suppress([END])], **how)
    assert tokens[[0, -1]].tolist() == [11, 12]
    # at a single new token both are asked for, and the end wins, as in Hugging Face
    assert search(model, [], **how | {"max_new_tokens": 1}).tolist() == [12]


def test_forced_bos_leaves_a_longer_prefix_alone(search):
    free, how = asked_of(G2P, [START, 12])
    model, _ = asked_of(G2P, [START, 12], forced_bos_id=11)
    assert search(model, [], **how).tolist() == search(free, [], **how).tolist()


def test_prefixes_of_several_lengths_are_forced_row_by_row():
    model, how = asked_of(G2P, [START], forced_bos_id=11, begin_suppressed_ids=(30, 31, 32))
    how["prefix"] = [[START], [START, 12], [START, 12, 13]]
    out = rs.generate(model, [[4, 5]] * 3, choose=rs.greedy(), **how)
    free = dataclasses.replace(G2P.config, begin_suppressed_ids=model.config.begin_suppressed_ids)
    free = rs.generate(dataclasses.replace(G2P, config=free), [[4, 5]] * 3, **how)
    assert out.tokens[0, 0] == 11
    assert np.array_equal(out.tokens[1:], free.tokens[1:])
    begin = [out.tokens[0, 1], out.tokens[1, 0], out.tokens[2, 0]]  # the first that is free
    assert not {30, 31, 32} & set(begin)


def test_a_bad_word_that_is_one_eos_is_ignored(search):
    model, how = asked_of(G2P, [START])
    how["max_new_tokens"] = 9
    free = search(model, [], **how)
    assert END in free
    assert search(model, [rs.bad_words([[END]])], **how).tolist() == free.tolist()
    assert END not in search(model, [rs.suppress([END])], **how)
    # in a longer sequence, and where it ends nothing, it is a token like others
    word = [[int(free[-2]), END]]
    assert search(model, [rs.bad_words(word)], **how).tolist() != free.tolist()
    assert END not in search(model, [rs.bad_words([[END]])], **how, eos_ids=())


SUPPRESSED, ONE = "suppressed_ids of the model's config", {"max_new_tokens": 1}


@pytest.mark.parametrize(
    ("rules", "processors", "how", "ban"),
    [
        ({"forced_bos_id": 11, "suppressed_ids": (7, 11)}, [], {}, f"rule {SUPPRESSED}"),
        ({"forced_eos_id": 11, "suppressed_ids": (7, 11)}, [], {}, f"rule {SUPPRESSED}"),
        ({"forced_eos_id": 11, "begin_suppressed_ids": (11,)}, [], ONE, f"rule begin_{SUPPRESSED}"),
        ({"forced_bos_id": 11}, [rs.suppress([3, 11])], {}, "processor suppress([3, 11])"),
        ({"forced_eos_id": 11}, [rs.suppress([3, 11])], {}, "processor suppress([3, 11])"),
        ({"forced_bos_id": 11}, [rs.begin_suppress([11])], {}, "new token 0"),
        ({"forced_eos_id": 11}, [rs.begin_suppress([11], after=2)], {}, "new token 2"),
    ],
)
def test_a_forced_token_that_is_suppressed_raises_before_the_loop(
    search, rules, processors, how, ban
):
    encoded = rs.Trace()
    model, asked = asked_of(G2P, [START], **rules)
    field = next(name for name in rules if name.startswith("forced"))
    with raises_naming(ValueError, f"{field} = 11", "new token", "bans it", ban):
        search(model, processors, **asked | how, tap=encoded)
    assert not encoded


def test_a_logits_processor_that_bans_a_forced_token_is_named():
    model, how = asked_of(G2P, [START], forced_bos_id=11)
    with raises_naming(ValueError, "new token 0", "processor suppress([11])"):
        rs.beam_steps(model, [[4, 5]], logits_processors=[rs.suppress([11])], **how)


@pytest.mark.parametrize(
    ("rules", "processors"),
    [
        ({"forced_bos_id": 11, "begin_suppressed_ids": (11,)}, []),  # the second is free
        ({"forced_eos_id": 11, "begin_suppressed_ids": (11,)}, []),
        ({"forced_bos_id": 11}, [rs.begin_suppress([11], after=1)]),
        ({"forced_eos_id": 11}, [rs.begin_suppress([11], after=1)]),
    ],
)
def test_a_token_may_be_suppressed_where_it_is_not_forced(search, rules, processors):
    model, how = asked_of(G2P, [START], **rules)
    assert 11 in search(model, [*processors, rs.suppress([END])], **how)


def test_top_k_does_not_count_suppressed_ids(search):
    model, how = asked_of(G2P, [START])
    best = int(search(model, [rs.top_k(1)], **how)[0])
    model, how = asked_of(G2P, [START], suppressed_ids=(best,))
    assert search(model, [rs.top_k(1)], **how)[0] != best


# Pickles and reprs --------------------------------------------------------------------------------

MADE = [
    rs.temperature(0.5), rs.top_k(3, keep_ties=True), rs.top_p(0.9), rs.min_p(0.1), rs.top_a(0.1),
    rs.typical(0.7), rs.epsilon(0.01), rs.eta(0.01), rs.renormalize_logits(),
    rs.gumbel_top_k(3, rs.temperature(0.5), seed=1),
    rs.repetition_penalty(1.3), rs.encoder_repetition_penalty(1.3),
    rs.no_repeat_ngram(2), rs.encoder_no_repeat_ngram(2),
    rs.suppress([3]), rs.begin_suppress([3], after=1), rs.bad_words([[3], [4, 5]]),
    rs.minimum_length(3), rs.forced_bos(3), rs.forced_eos(3, 4),
]  # fmt: skip


@pytest.mark.parametrize("processor", MADE, ids=str)
def test_a_processor_can_be_pickled_and_made_from_its_repr(processor):
    scores, now = np.random.default_rng(0).normal(size=(2, 9)), state([[1, 2], [1, 3]])
    again = pickle.loads(pickle.dumps(processor))
    assert np.array_equal(again(scores, now), processor(scores, now))
    assert repr(again) == repr(processor)
    made = eval(f"rs.{processor!r}".replace("(3, temp", "(3, rs.temp"), {"rs": rs})
    assert np.array_equal(made(scores, now), processor(scores, now))


@pytest.mark.parametrize(
    "choose",
    [
        rs.greedy(rs.no_repeat_ngram(2)),
        rs.sample(rs.temperature(0.5), rs.top_k(3)),
        rs.exponential_race(np.ones((2, 1, 9))),
        rs.like.huggingface(do_sample=True, top_p=0.9),
        rs.like.x_transformers(filter_logits_fn="top_p"),
    ],
)
def test_a_chooser_can_be_pickled(choose):
    again = pickle.loads(pickle.dumps(choose))
    assert repr(again.processors) == repr(choose.processors)
    assert pickle.loads(pickle.dumps(rs.gnmt_penalty(0.5)))(19) == 2.0
