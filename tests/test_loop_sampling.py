"""Sampling in the loop: uniform numbers, seeds, several samples of a source."""

import math

import numpy as np
from distributions import slow_inverse_cdf
from hypothesis import assume, given
from tasks import learned_model, path, path_model, table_model

import refseq2seq as rs
from refseq2seq.generation import sampling
from refseq2seq.testing import strategies

# Sampling ----------------------------------------------------------------------------------------

ONE_ROW = np.log([[0.1, 0.2, 0.3, 0.15, 0.25]] * 5)  # the same distribution after every token


def sampled(**options):
    """New tokens of two rows of a model that does not look at anything."""
    options = {"max_new_tokens": 11, "choose": rs.sample()} | options
    return rs.generate(table_model(ONE_ROW), [[0], [0]], **options).tokens.tolist()


def test_a_token_is_the_inverse_cdf_at_its_rows_uniform_number():
    expected = [
        [slow_inverse_cdf([0.1, 0.2, 0.3, 0.15, 0.25], u) for u in row]
        for row in rs.draw_uniforms(5, [0, 1], 11)
    ]
    assert sampled(seed=5) == expected
    assert sampled(seed=5, row_ids=[1, 0]) == expected[::-1]


def test_given_uniforms_replace_drawn_ones():
    u = rs.draw_uniforms(5, [7, 8], 13)
    assert sampled(uniforms=u[:, :11]) == sampled(seed=5, row_ids=[7, 8])
    assert sampled(uniforms=u) == sampled(seed=5, row_ids=[7, 8])
    assert sampled(uniforms=u.tolist()) == sampled(seed=5, row_ids=[7, 8])
    assert sampled(uniforms=[[0.0] * 11, [math.nextafter(1, 0)] * 11]) == [[0] * 11, [4] * 11]


def test_samples_depend_on_the_seed_and_the_row_id():
    assert sampled(seed=1) == sampled(seed=1)
    assert sampled(seed=1) != sampled(seed=2)
    first, second = sampled(seed=1)
    assert first != second
    assert sampled(seed=1, row_ids=[3, 3])[0] == sampled(seed=1, row_ids=[3, 3])[1]
    assert sampled() == sampled(seed=0, row_ids=range(2))
    assert sampled(seed=1, row_ids=np.array([2**64 - 1, 0], dtype=np.uint64))[1] == first


@given(u=strategies.uniforms(batch=2, steps=3))
def test_a_row_in_its_prefix_uses_no_uniform_number(u):
    # row 1 chooses two steps later than row 0, and from the same numbers as if it were alone
    probs = np.exp(ONE_ROW[0]).tolist()
    sums = [math.fsum(probs[: i + 1]) for i in range(len(probs))]
    assume(all(abs(x - s) > 1e-12 for x in u.flat for s in sums))
    expected = [[slow_inverse_cdf(probs, x) for x in row] for row in u.tolist()]
    assert sampled(prefix=[[0], [0, 3, 3]], uniforms=u, max_new_tokens=3) == expected


def test_an_exponential_race_takes_the_noise_of_each_rows_own_step():
    noise = np.random.default_rng(0).exponential(size=(3, 2, 5))
    choose, prefix = rs.exponential_race(noise), [[0], [0, 3, 3]]
    tokens = sampled(prefix=prefix, choose=choose, max_new_tokens=3)
    race = np.exp(ONE_ROW[0]) / noise
    np.testing.assert_array_equal(np.transpose(tokens), race.argmax(axis=-1))


def test_greedy_draws_no_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        sampling, "draw_uniforms", lambda seed, ids, n: drawn.append(n) or np.zeros((len(ids), n))
    )
    path(path_model())
    assert drawn == []
    path(path_model(), choose=rs.sample())
    assert drawn == [7]


def test_samples_of_a_source_share_its_encoding_and_do_not_depend_on_their_number():
    model, source = learned_model(), [[3], [4, 5]]
    trace = rs.Trace("encoder.*")
    options = {"choose": rs.sample(rs.temperature(2.0)), "max_new_tokens": 5, "seed": 7}
    many = rs.generate(model, source, num_return_sequences=3, tap=trace, **options)
    few = rs.generate(model, source, num_return_sequences=2, **options)
    one = rs.generate(model, source, **options)
    assert len(trace["encoder.embed"]) == 2
    assert len(many.tokens) == 6

    def row(out, i):
        return out.tokens[i, : out.lengths[i]].tolist()

    for i in range(2):
        assert row(many, 3 * i) == row(few, 2 * i) == row(one, i)
        assert row(many, 3 * i + 1) == row(few, 2 * i + 1)
    named = rs.generate(model, source[1:], row_ids=[1], num_return_sequences=3, **options)
    assert [row(named, j) for j in range(3)] == [row(many, 3 + j) for j in range(3)]
    rs.generate(model, source, row_ids=[0, 2**32], max_new_tokens=2)  # of one sample, any id
