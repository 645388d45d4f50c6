"""Beam search and its processors, live against Hugging Face and CTranslate2."""

import dataclasses
import zlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
from hf_models import CASES, PAD, random_batch, random_model
from searches import CT2_FAMILIES, END, compare, translator

import refseq2seq as rs

N_SEEDS, N_NEW = 25, 7
STOPS = [True, False, "never"]


def searched(model, batch, beams, n_best, **options):
    """New tokens (batch, n_best, n) and scores (batch, n_best), of transformers."""
    neutral = {"encoder_no_repeat_ngram_size": None, "do_sample": False}
    with torch.no_grad():
        out = model.generate(
            torch.tensor(batch.source),
            attention_mask=torch.tensor(batch.mask, dtype=torch.long),
            num_beams=beams,
            num_return_sequences=n_best,
            max_new_tokens=N_NEW,
            return_dict_in_generate=True,
            output_scores=True,
            **neutral | options,
        )
    rows = len(batch.source)
    tokens = out.sequences[:, 1:].numpy().reshape(rows, n_best, -1)
    return tokens, out.sequences_scores.numpy().reshape(rows, n_best)


@pytest.mark.parametrize("name", CASES)
def test_the_same_hypotheses_and_scores_as_huggingface(name, capsys):
    equal = near = 0
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
        tokens, scores = searched(theirs, batch, beams, n_best, **options)
        ours = rs.beam_search(
            rs.convert.from_huggingface(theirs),
            batch.source,
            source_mask=batch.mask,
            beams=beams,
            n_best=n_best,
            max_new_tokens=N_NEW,
            **options,
        )
        counted = compare(ours, tokens, scores)
        equal, near = equal + counted[0], near + counted[1]
    with capsys.disabled():
        print(f"\n{name}: {equal} rows equal, {near} at near-ties", end=" ")
    assert near <= 0.05 * (equal + near)


PROCESSORS = {
    "repetition_penalty": (1.7, rs.repetition_penalty),
    "encoder_repetition_penalty": (1.7, rs.encoder_repetition_penalty),
    "no_repeat_ngram_size": (2, rs.no_repeat_ngram),
    "encoder_no_repeat_ngram_size": (1, rs.encoder_no_repeat_ngram),
    "suppress_tokens": ([20, 21, 22, 30], rs.suppress),
    "begin_suppress_tokens": ([3, 4, 6, 7, 8], rs.begin_suppress),
    "bad_words_ids": ([[12], [13, 14], [30, 31]], rs.bad_words),
    "forced_bos_token_id": (9, rs.forced_bos),
    "forced_eos_token_id": (5, lambda x: rs.forced_eos(x, N_NEW)),
    "min_new_tokens": (4, None),
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("setting", PROCESSORS)
def test_processors_as_in_huggingface(setting, beams):
    value, processor = PROCESSORS[setting]
    near = 0
    for seed in range(8):
        theirs = random_model("BART", seed)
        theirs.generation_config.forced_eos_token_id = None
        batch = random_batch(theirs, seed)
        batch.mask[:] = True  # transformers counts padding among the source's tokens
        model = rs.convert.from_huggingface(theirs)
        processors = [processor(value)] if processor else []
        options = {"source_mask": batch.mask, "max_new_tokens": N_NEW}
        if setting == "min_new_tokens":
            options[setting] = value
        if beams == 1:
            with torch.no_grad():
                tokens = theirs.generate(
                    torch.tensor(batch.source),
                    attention_mask=torch.tensor(batch.mask, dtype=torch.long),
                    **{"encoder_no_repeat_ngram_size": None, "max_new_tokens": N_NEW}
                    | {setting: value},
                )[:, 1:].numpy()
            choose = rs.greedy(*processors)
            ours = rs.generate(model, batch.source, choose=choose, **options)
            n = ours.tokens.shape[1]
            assert np.array_equal(ours.tokens, tokens[:, :n])
        else:
            tokens, scores = searched(theirs, batch, beams, 2, **{setting: value})
            ours = rs.beam_search(
                model, batch.source, beams=beams, n_best=2, processors=processors, **options
            )
            near += compare(ours, tokens, scores)[1]
    assert near <= 1


@pytest.mark.parametrize("name", CT2_FAMILIES)
def test_the_same_hypotheses_and_scores_as_ctranslate2(name, tmp_path, monkeypatch, capsys):
    """Which has one number of heads, whose widths add up to d_model, and one eps of each norm."""
    case = CASES[name]
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if case.is_t5:
        sizes = {"d_model": 24, "num_heads": 3, "d_kv": 8, "layer_norm_epsilon": 1e-6}
    options = case.options | sizes | {"eos_token_id": END}
    monkeypatch.setitem(CASES, name, dataclasses.replace(case, options=options))
    equal = near = 0
    for seed in range(N_SEEDS):
        theirs = random_model(name, seed, exact=False).float()
        batch = random_batch(theirs, seed)
        none = {"forced_eos_token_id": None}
        model = rs.convert.from_huggingface(theirs, generation_config=none)
        beams, n_best, penalty = 2 + seed % 3, 2, [0.0, 0.6, 1.0][seed % 3]
        ours = rs.beam_search(
            model,
            batch.source,
            source_mask=batch.mask,
            beams=beams,
            n_best=n_best,
            length_penalty=penalty,
            early_stopping=True,
            max_new_tokens=N_NEW,
        )
        pairs = zip(batch.source, batch.mask, strict=True)
        results = translator(theirs, tmp_path / str(seed)).translate_batch(
            [[f"t{i}" for i in row[real]] for row, real in pairs],
            beam_size=beams,
            num_hypotheses=n_best,
            length_penalty=penalty,
            max_decoding_length=N_NEW,
            min_decoding_length=0,
            return_scores=True,
            return_end_token=True,
        )
        tokens = np.full((len(results), n_best, N_NEW), PAD)
        for row, result in enumerate(results):
            for k, words in enumerate(result.hypotheses):
                tokens[row, k, : len(words)] = [int(word[1:]) for word in words]
        counted = compare(ours, tokens, np.array([result.scores for result in results]))
        equal, near = equal + counted[0], near + counted[1]
    with capsys.disabled():
        print(f"\n{name}: {equal} rows equal, {near} at near-ties", end=" ")
    assert near <= 0.05 * (equal + near)


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_beams_of_x_transformers(stochastic, monkeypatch):
    """Without an end, for one source at a time: more it cannot do with an encoder."""
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
        source = torch.as_tensor(batch.source[:1])
        with torch.no_grad():
            memory = network.encoder(source, return_embeddings=True)
            found, scores = network.decoder.beam_search(
                torch.full((1, 1), START),
                N_NEW,
                beams=beams,
                stochastic=stochastic,
                temperature=0.7,
                filter_logits_fn="top_k",
                filter_kwargs={"k": 6},
                context=memory,
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
