"""Beam search and its processors, live against Hugging Face and CTranslate2."""

import zlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
from hf_models import CASES, random_batch, random_model
from searches import (
    CT2_FAMILIES,
    N_NEW,
    PROCESSORS,
    Counts,
    compare_with_huggingface,
    ctranslate2_beams,
    ctranslate2_model,
    huggingface_beams,
    our_beams,
)

import refseq2seq as rs

N_SEEDS = 25
STOPS = [True, False, "never"]


@pytest.mark.parametrize("name", CASES)
def test_hypotheses_and_scores_of_huggingface(name, say):
    counts = Counts()
    for seed in range(N_SEEDS):
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        theirs = random_model(name, seed)
        batch = random_batch(theirs, seed)
        beams = int(rng.integers(2, 6))
        options = {
            "length_penalty": float(rng.choice([0.0, 0.6, 1.0, 2.0, -0.5])),
            "early_stopping": STOPS[seed % 3],
        }
        n_best = int(rng.integers(1, beams + 1))
        ours = our_beams(rs.convert.from_huggingface(theirs), batch, beams, n_best, **options)
        counts.compare(ours, *huggingface_beams(theirs, batch, beams, n_best, **options))
    say(f"{name}: {counts}")
    assert counts.near <= 0.05 * (counts.equal + counts.near)


SETTINGS = {
    "repetition_penalty": 1.7,
    "encoder_repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 1,
    "suppress_tokens": [20, 21, 22, 30],
    "begin_suppress_tokens": [3, 4, 6, 7, 8],
    "bad_words_ids": [[12], [13, 14], [30, 31]],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 5,
    "min_new_tokens": 4,
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("setting", "value"), SETTINGS.items(), ids=SETTINGS)
def test_processors_of_huggingface(setting, value, beams):
    processors = [PROCESSORS[setting](value)] if setting in PROCESSORS else []
    counts = Counts()
    for seed in range(8):
        theirs = random_model("BART", seed)
        theirs.generation_config.forced_eos_token_id = None
        batch = random_batch(theirs, seed)
        batch.mask[:] = True  # transformers counts padding among the source's tokens
        model = rs.convert.from_huggingface(theirs)
        settings = {setting: value}
        compare_with_huggingface(counts, theirs, model, processors, batch, settings, beams)
    assert counts.near <= 1


@pytest.mark.parametrize("name", CT2_FAMILIES)
def test_hypotheses_and_scores_of_ctranslate2(name, tmp_path, monkeypatch, say):
    counts = Counts()
    for seed in range(N_SEEDS):
        theirs, model, batch = ctranslate2_model(name, seed, monkeypatch)
        beams, penalty = 2 + seed % 3, [0.0, 0.6, 1.0][seed % 3]
        how = {"length_penalty": penalty, "early_stopping": True}
        ours = our_beams(model, batch, beams, 2, **how)
        directory = tmp_path / str(seed)
        found = ctranslate2_beams(theirs, batch, directory, beams, 2, length_penalty=penalty)
        counts.compare(ours, *found)
    say(f"{name}: {counts}")
    assert counts.near <= 0.05 * (counts.equal + counts.near)


@pytest.mark.parametrize("stochastic", [True, False])
def test_beams_of_x_transformers(stochastic, monkeypatch):
    """Without an end token and for one source at a time, as x-transformers has it."""
    pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")
    from x_transformers import autoregressive_wrapper
    from xt_networks import START, random_network
    from xt_networks import random_batch as xt_batch

    beams = 3
    for seed in range(N_SEEDS):
        rng = np.random.default_rng(seed)
        network = random_network(rng, {})
        batch = xt_batch(rng, network.options, "right")
        model = network.in_float64()
        drawn = []

        def gumbel_noise(logits, drawn=drawn):
            uniform = torch.rand_like(logits).clamp(min=1e-12)
            drawn.append(-torch.log(-torch.log(uniform)))
            return drawn[-1]

        monkeypatch.setattr(autoregressive_wrapper, "gumbel_noise", gumbel_noise)
        with torch.no_grad():
            found, scores = network.decoder.beam_search(
                torch.full((1, 1), START),
                N_NEW,
                beams=beams,
                stochastic=stochastic,
                temperature=0.7,
                filter_logits_fn="top_k",
                filter_kwargs={"k": 6},
                **network.encode(batch.source[:1], None),
                return_beams_and_scores=True,
            )
        proposed = []
        if stochastic:
            noise = np.zeros((N_NEW, beams, drawn[0].shape[-1]))
            for t, x in enumerate(drawn):
                noise[t, : len(x)] = x.numpy()
            # After its first step it has the beams in the order of the draw, we by score.
            logits = rs.forward(model, batch.source[:1], [[START]])[0, 0]
            best = np.argsort(-logits)[:6]
            order = best[np.argsort(-(logits[best] / 0.7 + noise[0, 0, best]))[:beams]]
            noise[1] = noise[1, np.argsort(-logits[order])]
            filters = rs.top_k(6), rs.temperature(0.7)
            proposed = [rs.gumbel_top_k(beams, *filters, noise=noise)]
        ours = rs.beam_search(
            model,
            batch.source[:1],
            beams=beams,
            n_best=beams,
            length_penalty=0.0,
            eos_ids=(),
            max_new_tokens=N_NEW,
            processors=proposed,
        )
        assert ours.margin[0] > 1e-9
        assert np.array_equal(ours.tokens[0], found.numpy().reshape(beams, -1))
        np.testing.assert_allclose(
            ours.scores[0], scores.numpy().reshape(-1), rtol=1e-5, equal_nan=False
        )
