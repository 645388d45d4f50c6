"""What comparisons of beam search share: hypotheses beside ours, and CTranslate2's engine."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from benchmarks.peers import EOS, save_for_ctranslate2
from hf_models import CASES, PAD, generated, outcome, random_batch, random_model
from hf_models import EOS as ENDS

import refseq2seq as rs

# transformers adds up log-probabilities in float32: their sums are within a few of its
# roundings of ours. Where two scores that were compared are nearer, either order is right.
TOLERANCE = 2e-5
N_NEW, VOCABULARY = 7, 41


PROCESSORS = {  # by transformers' settings
    "repetition_penalty": rs.repetition_penalty,
    "encoder_repetition_penalty": rs.encoder_repetition_penalty,
    "no_repeat_ngram_size": rs.no_repeat_ngram,
    "encoder_no_repeat_ngram_size": rs.encoder_no_repeat_ngram,
    "suppress_tokens": rs.suppress,
    "begin_suppress_tokens": rs.begin_suppress,
    "bad_words_ids": rs.bad_words,
    "prefix_allowed_tokens_fn": rs.allowed_tokens,
    "forced_bos_token_id": rs.forced_bos,
    "forced_eos_token_id": lambda x: rs.forced_eos(x, N_NEW),
}


def words(rng, n, longest):
    """Up to ``n`` sequences of tokens, an end token alone among them now and then."""
    drawn = [rng.integers(3, VOCABULARY, rng.integers(1, longest + 1)).tolist() for _ in range(n)]
    return [*drawn, [ENDS[0]]] if rng.random() < 0.5 else drawn


def random_options(rng, longest):
    """Penalties, bans and rules by transformers' names; ``longest`` is of bad words."""
    ids = partial(rng.integers, 3, VOCABULARY)
    return {
        "repetition_penalty": float(rng.choice([0.7, 1.3, 1.9])),
        "encoder_repetition_penalty": float(rng.choice([0.7, 1.4])),
        "no_repeat_ngram_size": int(rng.integers(1, 4)),
        "encoder_no_repeat_ngram_size": int(rng.integers(1, 3)),
        "bad_words_ids": words(rng, 3, longest),
        "sequence_bias": [[word, float(rng.normal())] for word in words(rng, 9, 2)],
        "exponential_decay_length_penalty": [
            int(rng.integers(0, 5)),
            float(rng.choice([1.3, 0.8])),
        ],
        "forced_bos_token_id": int(ids()),
        "forced_eos_token_id": int(rng.choice(ENDS)),
        "suppress_tokens": ids(5).tolist(),
        "begin_suppress_tokens": ids(9).tolist(),
        "renormalize_logits": True,
    }


class Counts:
    """Rows that were equal, and rows that differ at a near-tie."""

    def __init__(self):
        self.equal = self.near = 0

    def __str__(self):
        return f"{self.equal} rows equal, {self.near} at near-ties"

    def compare(self, ours, tokens, scores):
        """Count equal rows and near-ties; any other row fails."""
        # -1e9, over the length to the power of the penalty, is transformers' place of nothing.
        scores = np.where(scores > -1e6, scores, -np.inf)
        for row in range(len(tokens)):
            same = all(
                tokens[row, k, :n].tolist() == ours.tokens[row, k, :n].tolist()
                for k, n in enumerate(ours.lengths[row])
            )
            if same:
                np.testing.assert_allclose(
                    ours.scores[row], scores[row], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=False
                )
                self.equal += 1
            else:
                assert ours.margin[row] < TOLERANCE, (ours.tokens[row], tokens[row])
                self.near += 1


def compare_with_huggingface(
    counts, theirs, model, processors, batch, settings, beams, prefix=None
):
    """Greedy tokens of one beam, hypotheses and scores of several: equal rows are counted."""
    how = {"prefix": prefix, "min_new_tokens": settings.get("min_new_tokens", 0)}
    if beams > 1:
        ours = our_beams(model, batch, beams, 2, processors=processors, **how)
        counts.compare(ours, *huggingface_beams(theirs, batch, beams, 2, prefix, **settings))
        return
    how |= {"source_mask": batch.mask, "max_new_tokens": N_NEW}
    ours = rs.generate(model, batch.source, choose=rs.greedy(*processors), **how)
    tokens = generated(theirs, batch, prefix, max_new_tokens=N_NEW, **settings)
    assert np.array_equal(ours.tokens, tokens[:, : ours.tokens.shape[1]]), settings
    counts.equal += len(tokens)


def our_beams(model, batch, beams, n_best, **options):
    how = {"source_mask": batch.mask, "max_new_tokens": N_NEW, "n_best": n_best} | options
    return rs.beam_search(model, batch.source, beams=beams, **how)


def huggingface_beams(model, batch, beams, n_best, prefix=None, **options):
    """New tokens (batch, n_best, n) and scores (batch, n_best), of transformers."""
    out = outcome(
        model,
        batch,
        prefix,
        num_beams=beams,
        num_return_sequences=n_best,
        max_new_tokens=N_NEW,
        **options,
    )
    rows, n = len(batch.source), 1 if prefix is None else len(prefix[0])
    tokens = out.sequences[:, n:].numpy().reshape(rows, n_best, -1)
    return tokens, out.sequences_scores.numpy().reshape(rows, n_best)


CT2_FAMILIES = ["BART", "mBART", "Pegasus", "M2M100", "T5 1.0"]


def ctranslate2_model(name, seed, monkeypatch):
    """A float32 model that CTranslate2 can hold, ours, and a batch.

    It has one number of heads, whose widths add up to d_model, and one eps of each norm.
    """
    case = CASES[name]
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if case.is_t5:
        sizes = {"d_model": 24, "num_heads": 3, "d_kv": 8, "layer_norm_epsilon": 1e-6}
    if name == "Marian":  # CTranslate2 removes the last token, which begins a target
        sizes |= {"pad_token_id": 40, "decoder_start_token_id": 40}
    options = case.options | sizes | {"eos_token_id": EOS}
    monkeypatch.setitem(CASES, name, dataclasses.replace(case, options=options))
    theirs = random_model(name, seed, exact=False).float()
    if name == "Marian":
        theirs.model.shared.weight.data[40], theirs.final_logits_bias[:, 40] = 0, -1e4
    none = {"forced_eos_token_id": None}
    ours = rs.convert.from_huggingface(theirs, generation_config=none)
    return theirs, ours, random_batch(theirs, seed)


def ctranslate2_beams(model, batch, directory, beams, n_best, **options):
    """New tokens (batch, n_best, n) and scores (batch, n_best), of CTranslate2."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")
    save_for_ctranslate2(model, directory)
    translator = ctranslate2.Translator(str(directory), intra_threads=1)
    results = translator.translate_batch(
        [[f"t{i}" for i in row[real]] for row, real in zip(batch.source, batch.mask, strict=True)],
        beam_size=beams,
        num_hypotheses=n_best,
        max_decoding_length=N_NEW,
        min_decoding_length=0,
        return_scores=True,
        return_end_token=True,
        **options,
    )
    tokens = np.full((len(results), n_best, N_NEW), PAD)
    for row, result in enumerate(results):
        for k, words in enumerate(result.hypotheses):
            tokens[row, k, : len(words)] = [int(word[1:]) for word in words]
    return tokens, np.array([result.scores for result in results])
