"""Rules of a model, processors and prefixes together, live against transformers and CTranslate2.

One at a time they are in `test_beam`; here random combinations act in one generation.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

from hf_models import random_batch, random_model
from searches import (
    CT2_FAMILIES,
    N_NEW,
    PROCESSORS,
    VOCABULARY,
    Counts,
    compare_with_huggingface,
    ctranslate2_beams,
    ctranslate2_model,
    our_beams,
    random_options,
)

import refseq2seq as rs

FAMILIES = ["BART", "mBART", "T5 1.0", "Marian", "Pegasus"]
N_COMBINATIONS = 200


def allowed(seed, row, tokens):
    """Two thirds of the vocabulary, others for every target."""
    key = [seed, row, *(int(token) for token in tokens)]
    return np.flatnonzero(np.random.default_rng(key).random(VOCABULARY) < 0.66).tolist()


def combination(rng, seed):
    """Settings by transformers' names: each is there in about two fifths of the combinations."""
    drawn = random_options(rng, 2) | {
        "min_new_tokens": int(rng.integers(1, N_NEW + 1)),
        "prefix_allowed_tokens_fn": partial(allowed, seed),
    }
    del drawn["sequence_bias"], drawn["exponential_decay_length_penalty"]  # see test_settings
    return {name: value for name, value in drawn.items() if rng.random() < 0.4}


RULES = {  # settings that a model has itself
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip


def is_contradictory(settings, n_prefix):
    """Whether a token is forced where it is suppressed."""
    bos, eos = settings.get("forced_bos_token_id"), settings.get("forced_eos_token_id")
    suppressed = settings.get("suppress_tokens", [])
    at_first = settings.get("begin_suppress_tokens", [])
    first_free = int(n_prefix == 1 and bos is not None)
    return bos in suppressed or eos in suppressed or (eos in at_first and first_free == N_NEW - 1)


def ours_of(model, settings, rng):
    """The model with its rules, our processors in any order, the last one last."""
    config = dataclasses.replace(
        model.config,
        forced_bos_id=settings.get("forced_bos_token_id"),
        forced_eos_id=settings.get("forced_eos_token_id"),
        suppressed_ids=tuple(settings.get("suppress_tokens", ())),
        begin_suppressed_ids=tuple(settings.get("begin_suppress_tokens", ())),
    )
    names = [name for name in PROCESSORS if name in settings and name not in RULES]
    penalties = [name for name in names if name.endswith("penalty")]
    bans = [name for name in names if name not in penalties]
    rng.shuffle(bans)  # bans commute; penalties are in transformers' order, the encoder's first
    processors = [PROCESSORS[name](settings[name]) for name in sorted(penalties) + bans]
    if "renormalize_logits" in settings:
        processors.append(rs.renormalize_logits())
    return dataclasses.replace(model, config=config), processors


@pytest.mark.parametrize("beams", [1, 3])
def test_rules_processors_and_prefixes_together_as_in_huggingface(beams, say):
    counts = Counts()
    refused = without_token = compared = seed = 0
    while compared < N_COMBINATIONS:
        seed += 1
        rng = np.random.default_rng([beams, seed])
        theirs = random_model(FAMILIES[seed % len(FAMILIES)], seed)
        theirs.generation_config.forced_eos_token_id = None
        batch = random_batch(theirs, seed)
        batch.mask[:] = True  # transformers counts padding among the source's tokens
        settings = combination(rng, seed)
        n_prefix = int(rng.choice([1, 1, 2, 3]))
        prefix = rng.integers(3, VOCABULARY, (len(batch.source), n_prefix))
        model = rs.convert.from_huggingface(theirs)
        prefix[:, 0] = model.config.decoder_start_id
        model, processors = ours_of(model, settings, rng)
        if is_contradictory(settings, n_prefix):
            refused += 1  # by transformers too, in all cases but forced BOS after a longer prefix
            continue
        try:
            compare_with_huggingface(
                counts, theirs, model, processors, batch, settings, beams, prefix
            )
        except rs.NoTokenLeftError:
            without_token += 1  # transformers takes token 0 then
            continue
        compared += 1
    say(
        f"{beams} beams, {compared} combinations: {counts}; "
        f"{without_token} more combinations leave no token, {refused} are refused"
    )
    assert counts.near <= 0.02 * counts.equal


@pytest.mark.parametrize("name", CT2_FAMILIES[:3])
def test_processors_on_logits_as_in_ctranslate2(name, tmp_path, monkeypatch):
    """Its penalties and bans act on logits, in beam search too."""
    counts, on_log_probs = Counts(), 0
    for seed in range(10):
        theirs, model, batch = ctranslate2_model(name, seed, monkeypatch)
        penalty, n = float([1.3, 1.9][seed % 2]), 1 + seed % 3
        # It does not count the start token among a target's: this one is generated by neither.
        start = model.config.decoder_start_id
        processors = [rs.suppress([start]), rs.repetition_penalty(penalty), rs.no_repeat_ngram(n)]
        ours, other = (
            our_beams(model, batch, 3, 2, early_stopping=True, **{kind: processors})
            for kind in ("logits_processors", "processors")
        )
        settings = {
            "repetition_penalty": penalty,
            "no_repeat_ngram_size": n,
            "suppress_sequences": [[f"t{start}"]],
        }
        tokens, scores = ctranslate2_beams(theirs, batch, tmp_path / str(seed), 3, 2, **settings)
        counts.compare(ours, tokens, scores)
        on_log_probs += sum(
            other.tokens[row, 0, :k].tolist() == tokens[row, 0, :k].tolist()
            for row, k in enumerate(other.lengths[:, 0])
        )
    assert counts.equal + counts.near == 30
    assert counts.near <= 1
    assert on_log_probs < counts.equal  # there the same processors give other hypotheses
