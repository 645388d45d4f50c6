"""Models whose logits are known, and random tasks: what tests of the loops share."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
from arrangements import small_x_transformers, vocabulary
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.params import build_params
from refseq2seq.testing import strategies

NEW = 5  # new tokens of the random models below; their position tables serve 11
GREEDY, SAMPLE = rs.greedy(), rs.sample(rs.temperature(1.5), rs.top_k(4))
every_chooser = pytest.mark.parametrize("choose", [GREEDY, SAMPLE], ids=["greedy", "sample"])


def greedily(model, source, processors=(), **how):
    return rs.generate(model, source, choose=rs.greedy(*processors), **how)


def at_random(model, source, processors=(), **how):
    return rs.generate(model, source, choose=rs.sample(*processors), **how)


def by_beams(model, source, processors=(), **how):
    return rs.beam_search(model, source, beams=3, processors=processors, **how)


SEARCHES = [greedily, at_random, by_beams]
every_search = pytest.mark.parametrize("search", SEARCHES)


# Models whose logits are known -------------------------------------------------------------------


def table_model(table, *, start=0, eos_ids=(), pad_id=1):
    """The logits after a token are its row of the table, exactly: its layers add zeros."""
    vocab_size = len(table)
    special = {"decoder_start_id": start, "eos_ids": eos_ids, "pad_id": pad_id}
    config = small_x_transformers(
        vocab_size, (vocab_size, vocab_size), (1, 1), (1, 1), n_heads=1, d_k=1, **special
    )
    plain = {"positions": None, "final_norm": False}
    config = dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, **plain),
        decoder=dataclasses.replace(config.decoder, **plain),
    )
    arrays = {
        "encoder.embedding": np.eye(vocab_size),
        "decoder.embedding": np.eye(vocab_size),
        "unembedding": np.array(table, dtype=np.float64),
    }

    def array(name, shape):
        return arrays[name] if name in arrays else np.zeros(shape)

    return rs.Model(config=config, params=build_params(config, array))


def path_model(**options):
    """Of 7 tokens; greedy decoding goes 0 3 4 2 5 6 3 4 2 ..., each time 5 nats ahead."""
    table = np.zeros((7, 7))
    for token, following in {0: 3, 3: 4, 4: 2, 2: 5, 5: 6, 6: 3, 1: 1}.items():
        table[token, following] = 5
    return table_model(table, **options)


def path(model, prefix=None, **options):
    """`generate` for sources that this model does not look at."""
    n = 1 if prefix is None else len(prefix)
    return rs.generate(model, [[0]] * n, prefix=prefix, **({"max_new_tokens": 7} | options))


def learned_model(n_positions=7):
    """Prime sizes, and position tables: 5 for the source, and these for the target."""
    config = small_x_transformers(6, (11, 13), (5, n_positions), (1, 2), n_heads=3, d_k=2)
    return rs.Model.random(config, 0, "float64")


def tiny(seed, vocab_size=5, eos_ids=(2,)):
    """Of few tokens, so that all targets can be enumerated."""
    config = small_x_transformers(
        12, (7, vocab_size), (9, 11), (1, 2), n_heads=2, d_k=5, eos_ids=eos_ids
    )
    return rs.Model.random(config, seed, "float64")


def text_model():
    """Of the letters a to f for the source and the words on the path 0 3 4 2 for the target."""
    special = ("<s>", "<pad>", "</s>")
    source = vocabulary(["<pad>", *"abcdef"], special=("<pad>",), replacements=(("A", "a"),))
    target = vocabulary([*special, "to", "be", "or", "not"], separator=" ", special=special)
    model = path_model(eos_ids=(2,))
    return dataclasses.replace(model, source_vocabulary=source, target_vocabulary=target)


def slow_log_softmax(row):
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def targets(steps, prefix):
    """What each row has been fed and given: (batch, n)."""
    shortest = min(len(row) for row in prefix)
    fed = np.array([row[:shortest] for row in prefix])
    return np.concatenate([fed, np.stack([step.tokens for step in steps], axis=1)], axis=1)


def new_tokens(out):
    """The new tokens of each row, without what follows the end."""
    return [row[:n].tolist() for row, n in zip(out.tokens, out.lengths, strict=True)]


def writing(scores, state):
    """A processor that finds every array of its state read-only."""
    arrays = (state.tokens, state.n_new, state.emitted, state.source_index, state.source)
    for x in (*arrays, state.source_mask, state.eos_ids):
        assert_read_only(x)
    return scores


def assert_read_only(x):
    with pytest.raises(ValueError, match="read-only"):
        x[...] = 0


# Random tasks -------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What to generate, and how, with a model whose arithmetic is exact."""

    model: rs.Model
    source: strategies.Source
    prefix: list[list[int]]
    choose: rs.Chooser

    def rows(self, order):
        """The task with these rows of the sources and of the prefixes."""
        return self._replace(
            source=strategies.Source([self.source.rows[i] for i in order], None),
            prefix=[self.prefix[i] for i in order],
        )

    def steps(self, **options):
        how = {"source_mask": self.source.mask, "prefix": self.prefix, "choose": self.choose}
        how |= {"max_new_tokens": NEW} | options
        return rs.decode_steps(self.model, self.source.tokens, **how)

    def generated(self, **options):
        """Per row: new tokens, their log-probabilities, and whether it ended."""
        out = rs.Generation.from_steps(self.steps(**options), self.model.config.pad_id)
        assert np.isfinite(out.log_probs).all()
        return [
            (out.tokens[i, :n].tolist(), out.log_probs[i, :n].tolist(), bool(out.finished[i]))
            for i, n in enumerate(out.lengths)
        ]


@st.composite
def tasks(draw, choosers=(GREEDY, SAMPLE), dtypes=("float64", "float32")):
    model = draw(strategies.models(dtype=draw(st.sampled_from(dtypes)))).exact()
    source = draw(strategies.sources(model))
    prefix = draw(strategies.prefixes(model, source.batch))
    return Task(model, source, prefix, draw(st.sampled_from(choosers)))
