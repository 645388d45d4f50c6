"""A model's own generation settings, live against ``generate(input)`` of transformers."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
import transformers
from hf_models import CASES, PAD, random_batch, random_model
from searches import Counts, random_options

import refseq2seq as rs
from refseq2seq.convert.huggingface.common import TYPES
from refseq2seq.convert.huggingface.settings import KNOWN

LIMITS = ("length", "new_tokens")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using the model-agnostic default",  # lengths that are not set, or contradict each other
    "ignore:Unfeasible length constraints",
    "ignore:the settings ask for at least",
)


def random_settings(rng):
    """A generation config by transformers' names; the fields of a kind are there together."""
    drawn = random_options(rng, 3).items()
    settings = {name: value for name, value in drawn if rng.random() < 0.3}
    most, least = LIMITS[rng.integers(2)], LIMITS[rng.integers(2)]
    if rng.random() < 0.8:
        settings[f"max_{most}"] = int(rng.integers(3, 12))
    if rng.random() < 0.5:
        settings[f"min_{least}"] = int(rng.integers(1, 12))
    kind = rng.choice(["greedy", "samples", "beams"], p=[0.2, 0.3, 0.5])
    if kind == "beams":
        settings["num_beams"] = int(rng.integers(2, 6))
        settings["num_return_sequences"] = int(rng.integers(1, settings["num_beams"] + 1))
        settings["length_penalty"] = float(rng.choice([0.0, 0.6, 1.0, 2.0]))
        settings["early_stopping"] = [True, False, "never"][rng.integers(3)]
    if kind == "samples":
        filters = {
            "temperature": float(rng.choice([0.6, 1.7])),
            "top_k": int(rng.choice([0, 5, 50])),
            "top_p": 0.8,
            "min_p": 0.07,
            "typical_p": 0.7,
            "epsilon_cutoff": 0.03,
            "eta_cutoff": 0.2,
        }
        settings["do_sample"] = True
        settings["num_return_sequences"] = int(rng.integers(1, 4))
        settings |= {name: value for name, value in filters.items() if rng.random() < 0.3}
    return settings


def contradicts(settings):
    """Whether a token is forced where it is suppressed: both libraries refuse it."""
    bos, eos = settings.get("forced_bos_token_id"), settings.get("forced_eos_token_id")
    suppressed = settings.get("suppress_tokens", []) + settings.get("begin_suppress_tokens", [])
    return bos in suppressed or eos in suppressed


def configured(theirs, settings):
    """The model of transformers with these settings instead of its own."""
    tokens = {
        name: getattr(theirs.generation_config, name)
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
    }
    theirs.generation_config = transformers.GenerationConfig(**tokens | settings)
    return theirs


def generated(theirs, batch, monkeypatch):
    """The result of ``generate(input)``, and the noise of its draws: Exp(1), an array a step."""
    noise = []

    def multinomial(probs, num_samples):
        assert num_samples == 1
        noise.append(torch.empty_like(probs).exponential_())
        return (probs / noise[-1]).argmax(dim=-1, keepdim=True)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        out = theirs.generate(
            torch.tensor(batch.source),
            attention_mask=torch.tensor(batch.mask, dtype=torch.long),
            return_dict_in_generate=True,
            output_scores=True,
        )
    return out, np.array([step.numpy() for step in noise])


def random_case(family, seed, monkeypatch):
    """Settings, the model of transformers, ours, a batch, their result, and its arguments here."""
    rng = np.random.default_rng([len(family), seed])
    settings = random_settings(rng)
    while contradicts(settings):
        settings = random_settings(rng)
    theirs = configured(random_model(family, seed), settings)
    batch = random_batch(theirs, seed)
    batch.mask[:] = True  # transformers counts padding among the source's tokens
    out, noise = generated(theirs, batch, monkeypatch)
    how = {"pick": partial(rs.exponential_race, noise)} if len(noise) else {}
    return settings, rs.convert.from_huggingface(theirs), batch, out, how


FAMILIES = [
    "T5 1.0", "T5 1.1", "mT5", "UMT5", "BART", "mBART", "Marian", "Pegasus", "Blenderbot",
    "Blenderbot-small",
]  # fmt: skip
N_CONFIGS = 30


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_as_configured_equals_generate(family, monkeypatch, say):
    counts, without_token = Counts(), 0
    for seed in range(N_CONFIGS):
        settings, model, batch, out, how = random_case(family, seed, monkeypatch)
        try:
            found = rs.generate_as_configured(model, batch.source, **how)
        except rs.NoTokenLeftError:
            without_token += 1  # transformers takes token 0 then
            continue
        tokens = out.sequences[:, 1:].numpy().reshape(*found.lengths.shape, -1)
        if found.scores is None:
            for place, n in np.ndenumerate(found.lengths):
                assert tokens[place][:n].tolist() == found.tokens[place][:n].tolist(), settings
                assert (tokens[place][n:] == PAD).all()
            counts.equal += len(tokens)
        else:
            plain = dataclasses.replace(model, settings=None)
            searched = rs.beam_search(plain, batch.source, **rs.as_configured(model))
            assert np.array_equal(searched.tokens, found.tokens)
            counts.compare(
                searched, tokens, out.sequences_scores.numpy().reshape(*found.scores.shape)
            )
    say(f"{family}, {N_CONFIGS} settings: {counts}; {without_token} leave no token")
    assert counts.near <= 0.02 * counts.equal


OTHER_NAMES = {  # in the messages of `assert_generation_agrees`
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "bad_words_ids": "bad_words|suppressed_ids",
    "forced_bos_token_id": "forced_bos_id",
    "forced_eos_token_id": "forced_eos_id",
    "suppress_tokens": "suppressed_ids",
    "begin_suppress_tokens": "begin_suppressed_ids",
}


@pytest.mark.parametrize("family", ["BART", "T5 1.0"])
def test_outputs_agree_and_a_setting_left_out_is_named(family, monkeypatch, say):
    named = same = 0
    for seed in range(8):
        settings, model, batch, out, how = random_case(family, seed, monkeypatch)
        asked = rs.as_configured(model, **how)
        rs.testing.assert_generation_agrees(out, model, batch.source, **asked)
        limits = [settings.get(f"min_{x}", 0) >= settings.get(f"max_{x}", 99) for x in LIMITS]
        for name in settings.keys() - {"num_beams", "num_return_sequences", "do_sample"}:
            if "do_sample" in settings or any(limits):
                continue
            less = {other: value for other, value in settings.items() if other != name}
            theirs = configured(random_model(family, seed), less)
            out, _ = generated(theirs, batch, monkeypatch)
            message = ""
            try:
                rs.testing.assert_generation_agrees(out, model, batch.source, **asked)
                same += 1
            except AssertionError as error:
                message = str(error)
                named += 1
            ours = OTHER_NAMES.get(name) or rs.like.SETTINGS[name]
            causes = message.partition("With this change")[2]
            assert not message or re.search(ours, causes), (name, settings, message)
    say(f"{family}: {named} settings left out are named, {same} change nothing")
    assert named > 5


def test_every_option_of_a_generation_config_is_known():
    """A new release's options are those that this prints."""
    assert set(transformers.GenerationConfig().to_dict()) - KNOWN == set()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_option_of_a_model_config_is_known(case):
    """Those that generation reads are in TYPES."""
    general = {
        "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label",
        "label2id", "problem_type", "return_dict", "is_decoder", "initializer_factor", "init_std",
        "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout", "dropout_rate", "dropout",
        "activation_dropout", "attention_dropout", "prompt_length", "prompt_mid_dim",
    }  # fmt: skip
    assert set(case.config().to_dict()) - KNOWN - TYPES.keys() - general == set()


def test_a_live_config_and_its_files_give_the_same_settings(tmp_path):
    settings = {
        "num_beams": 3,
        "length_penalty": 2,
        "sequence_bias": [[[5, 6], -1.5]],
        "exponential_decay_length_penalty": (3, 1.25),
        "bad_words_ids": [[7], [8, 9]],
        "guidance_scale": 1.5,
        "a_new_option": [1],
    }
    theirs = configured(random_model("BART", 1), settings)
    theirs.save_pretrained(tmp_path)
    live, read = rs.convert.from_huggingface(theirs), rs.load(tmp_path)
    assert live.settings == read.settings
    assert live.settings.asked == {
        "beams": 3,
        "length_penalty": 2.0,
        "sequence_bias": (((5, 6), -1.5),),
        "exponential_decay": (3, 1.25),
        "bad_words": ((8, 9),),
        "not_implemented": (("a_new_option", "[1]"), ("guidance_scale", "1.5")),
    }
    assert live.config.suppressed_ids == (7,)
    with pytest.raises(rs.UnsupportedFeature, match="a_new_option"):
        rs.generate_as_configured(live, [[5]])
    assert rs.generate_as_configured(live, [[5]], not_implemented=()).tokens.shape[:2] == (1, 1)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("BART", {"force_bos_token_to_be_generated": True, "bos_token_id": 9}),
        ("Marian", {"max_position_embeddings": 12}),  # which limit the default length
        ("M2M100", {"max_position_embeddings": 20}),
    ],
)
def test_a_config_without_a_generation_config(family, fields, tmp_path):
    random_model(family, 3).float().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    expected = theirs.generate(torch.tensor([[7, 9, 13]])).numpy()[:, 1:]
    found = rs.generate_as_configured(rs.load(tmp_path), [[7, 9, 13]])
    assert found.tokens[:, 0].tolist() == expected.tolist()


def test_several_forced_end_tokens_are_refused_where_they_are_applied():
    model = rs.convert.from_huggingface(
        configured(random_model("BART", 1), {"forced_eos_token_id": [5, 6]})
    )
    with pytest.raises(rs.UnsupportedFeature, match="forced_eos_token_id"):
        rs.generate_as_configured(model, [[5]])
