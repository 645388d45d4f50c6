"""`assert_generation_agrees` on outputs of transformers and CTranslate2, as they come."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
from hf_models import CASES, outcome, random_batch, random_model
from searches import CT2_FAMILIES, N_NEW, ctranslate2_model
from test_rules import VOCABULARY, combination, is_contradictory, ours_of

import refseq2seq as rs
from refseq2seq.testing import assert_generation_agrees

TEN = [name for name in CASES if name not in ("BART, untied", "T5, gated silu", "UMT5", "M2M100")]
PENALTIES = [0.0, 0.6, 1.0, 2.0]
TOLD = {  # in the report, by transformers' settings
    "repetition_penalty": "without repetition_penalty(",
    "encoder_repetition_penalty": "without encoder_repetition_penalty(",
    "no_repeat_ngram_size": "without no_repeat_ngram(",
    "encoder_no_repeat_ngram_size": "without encoder_no_repeat_ngram(",
    "bad_words_ids": "without bad_words(",
    "min_new_tokens": "without min_new_tokens",
    "prefix_allowed_tokens_fn": "without allowed_tokens(",
    "forced_bos_token_id": "without forced_bos_id",
    "forced_eos_token_id": "without forced_eos_id",
    "suppress_tokens": "without suppressed_ids",
    "begin_suppress_tokens": "without begin_suppressed_ids",
    "renormalize_logits": "without renormalize_logits(",
    "length_penalty": "length_penalty is 1",
}


def requests(name, beams, n):
    """What transformers is asked, with random rules and prefixes, and the same in our names."""
    made = seed = 0
    while made < n:
        seed += 1
        rng = np.random.default_rng([len(name), beams, seed])
        theirs = random_model(name, seed).float()
        theirs.generation_config.forced_eos_token_id = None
        batch = random_batch(theirs, seed)
        batch.mask[:] = True  # transformers counts padding among the source's tokens
        settings = combination(rng, seed) | {"max_new_tokens": N_NEW}
        n_prefix = int(rng.choice([1, 1, 2, 3]))
        if is_contradictory(settings, n_prefix):
            continue
        prefix = rng.integers(3, VOCABULARY, (len(batch.source), n_prefix))
        model = rs.convert.from_huggingface(theirs)
        prefix[:, 0] = model.config.decoder_start_id
        model, processors = ours_of(model, settings, rng)
        how = {"prefix": prefix, "max_new_tokens": N_NEW}
        how["min_new_tokens"] = settings.get("min_new_tokens", 0)
        if beams > 1:
            settings["length_penalty"] = float(PENALTIES[seed % 4])
            settings |= {"num_beams": beams, "num_return_sequences": 2}
            how |= {"beams": beams, "n_best": 2, "processors": processors}
            how["length_penalty"] = settings["length_penalty"]
        else:
            how["choose"] = rs.greedy(*processors)
        try:
            (rs.beam_search if beams > 1 else rs.generate)(model, batch.source, **how)
        except rs.NoTokenLeftError:
            continue
        made += 1
        yield theirs, model, batch, prefix, settings, how


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", TEN)
def test_outputs_of_huggingface(name, beams, say):
    """Accepted; and refused by the name of the rule, if one was left out."""
    diverged = told = 0
    for theirs, model, batch, prefix, settings, how in requests(name, beams, 8 // (1 + beams)):
        found = outcome(theirs, batch, prefix, **settings)
        agreement = assert_generation_agrees(found, model, batch.source, **how)
        diverged += len(agreement.diverged)
        assert agreement.compared > 0
        for rule in TOLD.keys() & settings.keys():
            less = {n: value for n, value in settings.items() if n != rule}
            other = outcome(theirs, batch, prefix, **less)
            if other.sequences.tolist() == found.sequences.tolist():
                continue  # the rule changes nothing here, or only scores
            with pytest.raises(AssertionError) as refused:
                assert_generation_agrees(other, model, batch.source, **how)
            assert TOLD[rule] in str(refused.value), (rule, str(refused.value))
            told += 1
    say(f"{name}, {beams} beams: {diverged} near-ties, {told} rules left out and named")
    assert diverged <= 2
    assert told > 1


@pytest.mark.parametrize("name", CT2_FAMILIES)
def test_results_of_ctranslate2(name, tmp_path, monkeypatch, say):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")
    from benchmarks.peers import save_for_ctranslate2

    diverged = told = 0
    for seed in range(4):
        theirs, model, batch = ctranslate2_model(name, seed, monkeypatch)
        directory, start = tmp_path / str(seed), model.config.decoder_start_id
        save_for_ctranslate2(theirs, directory)
        translator = ctranslate2.Translator(str(directory), intra_threads=1)
        source = [
            [f"t{i}" for i in row[real]] for row, real in zip(batch.source, batch.mask, strict=True)
        ]
        options = {"max_decoding_length": N_NEW, "min_decoding_length": 0, "return_scores": True}
        options |= {"beam_size": 3, "num_hypotheses": 2, "length_penalty": PENALTIES[seed % 4]}
        options |= {"no_repeat_ngram_size": 1, "suppress_sequences": [[f"t{start}"]]}
        processors = [rs.suppress([start]), rs.no_repeat_ngram(1)]
        how = {"beams": 3, "n_best": 2, "early_stopping": True, "source_mask": batch.mask}
        how |= {"length_penalty": PENALTIES[seed % 4], "max_new_tokens": N_NEW}
        how |= {"logits_processors": processors, "vocabulary": [f"t{i}" for i in range(41)]}
        results = translator.translate_batch(source, **options)
        agreement = assert_generation_agrees(results, model, batch.source, **how)
        diverged += len(agreement.diverged)
        without = translator.translate_batch(source, **options | {"no_repeat_ngram_size": 0})
        if [r.hypotheses for r in without] != [r.hypotheses for r in results]:
            with pytest.raises(AssertionError, match="without no_repeat_ngram"):
                assert_generation_agrees(without, model, batch.source, **how)
            told += 1
    say(f"{name}: {diverged} near-ties, {told} rules left out and named")
    assert diverged <= 1
    assert told > 0


def test_a_sample_of_huggingface(monkeypatch):
    """``torch.multinomial`` draws by numbers that are passed on."""
    theirs = random_model("BART", 3).float()
    theirs.generation_config.forced_eos_token_id = None
    model = rs.convert.from_huggingface(theirs)
    batch = random_batch(theirs, 3)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, forced_eos_id=None))
    uniforms = np.random.default_rng(3).random((3, N_NEW))
    drawn = []

    def by_uniforms(probs, num_samples):
        u = torch.tensor(uniforms[:, len(drawn)])[:, None]
        drawn.append(u)
        return (probs.double().cumsum(-1) <= u).sum(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", by_uniforms)
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 7, "max_new_tokens": N_NEW}
    found = outcome(theirs, batch, **settings)
    how = {"uniforms": uniforms, "max_new_tokens": N_NEW, "source_mask": batch.mask}
    filters = rs.temperature(1.5), rs.top_k(7)
    choose = rs.sample(*filters)
    assert_generation_agrees(found, model, batch.source, choose=choose, **how)
    other = rs.sample(rs.temperature(2.0), *filters)
    with pytest.raises(AssertionError, match=r"without temperature\(2.0\)"):
        assert_generation_agrees(found, model, batch.source, choose=other, **how)
