"""T5Gemma, live against transformers: the same logits, tokens, beams and files.

transformers computes three things of this family in float32 whatever the model's dtype: the norms,
the rotations and the softmax. For comparisons to 1e-12, all three are computed in float64 instead;
one test measures the difference that each of them makes. Its attention is eager: the model has no
other one that knows soft caps, besides flash and flex attention.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[huggingface]'")

import torch
import transformers
from comparisons import EPS32, assert_same_model, count_near_ties, relative_error
from hf_models import EOS, PAD, error_of_logits, generated, logits, random_batch
from safetensors.numpy import load_file
from searches import Counts, huggingface_beams, our_beams
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.t5gemma import modeling_t5gemma

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_huggingface
from refseq2seq.convert.huggingface import FAMILIES
from refseq2seq.convert.huggingface.refused import REASONS

N_MODELS, N_NEW, BOS = 30, 9, 7
TYPES = ("sliding_attention", "full_attention")
softmax = torch.nn.functional.softmax


def norm_in_any_dtype(module, x):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + module.eps) * (1 + module.weight)


def rotation_in_float64(module, x, position_ids):
    d, base = module.config.head_dim, module.config.rope_parameters["rope_theta"]
    rates = torch.tensor([base ** (-2 * j / d) for j in range(d // 2)], dtype=torch.float64)
    angles = (position_ids[..., None].double() * rates).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


EXACT = {
    "norms": (modeling_t5gemma.T5GemmaRMSNorm, "forward", norm_in_any_dtype),
    "rotations": (modeling_t5gemma.T5GemmaRotaryEmbedding, "forward", rotation_in_float64),
    "softmax": (torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)),
}


@pytest.fixture
def exact(monkeypatch):
    for where, name, function in EXACT.values():
        monkeypatch.setattr(where, name, function)


def stack_fields(rng, vocab_size):
    n_layers, n_kv_heads = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    n_heads = n_kv_heads * int(rng.integers(1, 3))
    return {
        "vocab_size": vocab_size,
        "hidden_size": n_heads * int(rng.integers(3, 6)),  # the class wants a multiple of the heads
        "intermediate_size": int(rng.integers(9, 30)),
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": 2 * int(rng.integers(1, 5)),
        "query_pre_attn_scalar": int(rng.integers(1, 12)),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-3])),
        "sliding_window": int(rng.integers(2, 7)),
        "layer_types": [str(x) for x in rng.choice(TYPES, n_layers)]
        if rng.random() < 0.7
        else None,
        "attention_bias": bool(rng.random() < 0.3),
        "hidden_activation": str(rng.choice(["gelu_pytorch_tanh", "gelu_pytorch_tanh", "silu"])),
        "attn_logit_softcapping": [None, 1.5, 50.0][rng.integers(3)],
        "final_logit_softcapping": [None, 3.0, 30.0][rng.integers(3)],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([50.0, 1e4]))},
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": list(EOS),
    }


def random_model(seed, **fields):
    """In float64; ``fields`` are those of both stacks."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = transformers.T5GemmaConfig(
        encoder=stack_fields(rng, 41) | fields,
        decoder=stack_fields(rng, 43) | fields,
        vocab_size=41,  # read by `random_batch` alone
        tie_word_embeddings=seed % 3 != 0,
    )
    model = transformers.T5GemmaForConditionalGeneration(config).double().eval()
    for name, x in model.named_parameters():
        normal = torch.randn_like(x)
        is_table = "embed" in name or "lm_head" in name
        x.data = normal / 4 if x.ndim == 1 else normal / (1 if is_table else x.shape[1] ** 0.5)
    model.tie_weights()
    return model


def is_rounded_apart(step, row, before):
    """Both choose from logits rounded to float32, which a tie may round apart."""
    return step.margin[row] <= 2 * EPS32 * abs(step.logits[row]).max()


def test_logits_and_greedy_tokens(exact, say):
    worst, near_ties, ended, windows, caps = 0.0, 0, 0, 0, 0
    for seed in range(N_MODELS):
        theirs = random_model(seed)
        ours = from_huggingface(theirs)
        batch = random_batch(theirs, seed, left=seed % 2 == 1)
        worst = max(worst, error_of_logits(ours, theirs, batch))
        start = np.full((3, 1), BOS)
        prefix = np.concatenate([start, batch.target[:, :3]], axis=1) if seed % 3 == 2 else None
        options = {"max_new_tokens": N_NEW, "prefix": prefix}
        for theirs_cached in (True, False):
            expected = generated(theirs, batch, use_cache=theirs_cached, **options)
            for use_cache in (True, False):
                how = {"source_mask": batch.mask, "choose": rs.like.huggingface(), **options}
                steps = list(rs.decode_steps(ours, batch.source, use_cache=use_cache, **how))
                near_ties += count_near_ties(steps, expected, PAD, is_rounded_apart)
        ended += int(steps[-1].finished.sum())
        stacks = ours.config.encoder, ours.config.decoder
        windows += sum(w is not None for stack in stacks for w in stack.windows)
        caps += sum(stack.self_attention.softcap is not None for stack in stacks)
    say(f"logits within {worst:.1e}, {near_ties} of 360 rows at near-ties, {windows} windows")
    assert worst < 1e-12
    assert ended > 5
    assert windows > 30
    assert 20 < caps < 60


def test_what_is_computed_in_float32(monkeypatch, say):
    """Each of the three alone keeps float64 models apart; padded windows give NaN besides."""
    theirs = random_model(2)
    batch = random_batch(theirs, 0)
    batch.mask[:] = True
    ours = from_huggingface(theirs)
    for name in EXACT:
        with monkeypatch.context() as patch:
            for other in EXACT.keys() - {name}:
                patch.setattr(*EXACT[other])
            error = error_of_logits(ours, theirs, batch)
            say(f"{name} in float32: {error:.1e}")
            assert 1e-11 < error < 1e-5, name
    floor = error_of_logits(ours, theirs, batch)
    assert 1e-10 < floor < 1e-5
    for patch in EXACT.values():
        monkeypatch.setattr(*patch)
    assert error_of_logits(ours, theirs, batch) < 1e-12


def test_float32(say):
    worst = 0.0
    for seed in range(N_MODELS):
        theirs = random_model(seed).float()
        ours = from_huggingface(theirs)
        assert ours.dtype == np.float32
        batch = random_batch(theirs, seed, left=seed % 2 == 1)
        worst = max(worst, error_of_logits(ours, theirs, batch))
    say(f"float32 models: logits within {worst / EPS32:.0f} ulps")
    assert worst < 100 * EPS32


@pytest.mark.parametrize(
    ("side", "which"), [("encoder", "back"), ("encoder", "ahead"), ("decoder", "back")]
)
def test_a_window_that_is_one_off_shows(exact, side, which):
    theirs = random_model(
        4, layer_types=["sliding_attention"], num_hidden_layers=1, sliding_window=3
    )
    batch = random_batch(theirs, 0)
    ours = from_huggingface(theirs)
    assert error_of_logits(ours, theirs, batch) < 1e-12
    stack = getattr(ours.config, side)
    for change in (-1, 1):
        (window,) = stack.windows
        wrong = replace(window, **{which: getattr(window, which) + change})
        config = replace(ours.config, **{side: replace(stack, windows=(wrong,))})
        assert error_of_logits(replace(ours, config=config), theirs, batch) > 1e-4


def test_hypotheses_and_scores(exact, say):
    counts = Counts()
    for seed in range(N_MODELS):
        theirs = random_model(seed)
        batch = random_batch(theirs, seed, left=seed % 2 == 1)
        options = {"length_penalty": [0.0, 0.6, 1.0][seed % 3], "early_stopping": seed % 2 == 0}
        ours = our_beams(from_huggingface(theirs), batch, 3, 2, **options)
        counts.compare(ours, *huggingface_beams(theirs, batch, 3, 2, **options))
    say(f"3 beams: {counts}")
    assert counts.near <= 0.05 * (counts.equal + counts.near)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_as_configured(exact, beams):
    for seed in range(8):
        theirs = random_model(seed)
        theirs.generation_config.update(
            num_beams=beams,
            no_repeat_ngram_size=2,
            max_new_tokens=8,
            repetition_penalty=1.3,
        )
        source = random_batch(theirs, seed).source.clip(2)
        mask = torch.ones(source.shape, dtype=torch.long)
        expected = theirs.generate(torch.tensor(source), attention_mask=mask)[:, 1:].numpy()
        found = rs.generate_as_configured(from_huggingface(theirs), source)
        for row, n in enumerate(found.lengths[:, 0]):
            assert found.tokens[row, 0, :n].tolist() == expected[row, :n].tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_directories(dtype, tmp_path):
    for seed in range(5):
        theirs = random_model(seed).to(getattr(torch, dtype))
        theirs.save_pretrained(tmp_path / str(seed))
        live, read = from_huggingface(theirs), rs.load(tmp_path / str(seed))
        assert_same_model(read, live)
        assert read.settings == live.settings
        arrays = (
            load_file(tmp_path / str(seed) / "model.safetensors") if dtype != "bfloat16" else {}
        )
        if arrays:
            config = json.loads((tmp_path / str(seed) / "config.json").read_text())
            assert_same_model(from_huggingface(arrays, config), live)
        (tmp_path / str(seed) / "generation_config.json").unlink()
        assert rs.load(tmp_path / str(seed)).config == live.config


def older_names(side):
    side["rope_theta"] = side.pop("rope_parameters")["rope_theta"]
    return side | {"rope_scaling": None}


def test_rope_of_older_files(tmp_path):
    theirs = random_model(1)
    theirs.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    older = fields | {side: older_names(fields[side]) for side in ("encoder", "decoder")}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert_same_model(rs.load(tmp_path), from_huggingface(theirs))
    again = transformers.T5GemmaConfig.from_pretrained(tmp_path)
    assert again.encoder.rope_parameters == theirs.config.encoder.rope_parameters


def test_fields_that_a_file_omits_have_the_class_values():
    """Each field of a stack, taken away: the class's value, or the same error about the arrays."""
    theirs = random_model(1)
    arrays, config = theirs.state_dict(), theirs.config.to_dict()
    same = 0
    fields = [(side, field) for side in ("encoder", "decoder") for field in config[side]]
    for side, field in fields:
        less = {name: value for name, value in config[side].items() if name != field}
        try:
            completed = transformers.T5GemmaConfig.from_dict(config | {side: dict(less)})
            expected = from_huggingface(arrays, completed)
        except Exception:  # either library's
            with pytest.raises(ValueError, match=r"config|shape|array|n_heads"):
                from_huggingface(arrays, config | {side: less})
        else:
            assert_same_model(from_huggingface(arrays, config | {side: less}), expected)
            same += 1
    assert same > 40


def test_every_encoder_decoder_is_converted_or_refused_by_name():
    """Of all that transformers generates text or audio codes with, by the names of its own."""
    lists = (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )
    for model_type in set().union(*lists):
        config = CONFIG_MAPPING[model_type]
        if config.is_encoder_decoder is True and model_type not in FAMILIES:
            assert model_type in REASONS


def tiny_florence(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    heads, width = int(rng.integers(1, 4)), 12
    text = transformers.BartConfig(
        vocab_size=41,
        d_model=width,
        encoder_layers=int(rng.integers(1, 3)),
        decoder_layers=int(rng.integers(1, 3)),
        encoder_ffn_dim=17,
        decoder_ffn_dim=13,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        max_position_embeddings=53,
    )
    image = {
        "depths": [1], "embed_dim": [8], "num_heads": [2], "num_groups": [2], "patch_size": [3],
        "patch_stride": [2], "patch_padding": [1], "patch_prenorm": [False], "window_size": 3,
        "projection_dim": width, "max_temporal_embeddings": 5, "max_position_embeddings": 9,
    }  # fmt: skip
    config = transformers.Florence2Config(
        text_config=text.to_dict(), vision_config=image, image_token_id=40
    )
    model = transformers.Florence2ForConditionalGeneration(config).double().eval()
    for x in model.model.language_model.parameters():
        x.data = torch.randn_like(x) / (2 if x.ndim == 1 else x.shape[1] ** 0.5)
    return model


def test_the_language_model_of_florence(say):
    """A BART, from its arrays, reads the embeddings of the image and of the prompt."""
    worst, inside = 0.0, "model.language_model."
    for seed in range(N_MODELS):
        theirs = tiny_florence(seed)
        arrays = {
            name.replace(inside, "model."): x
            for name, x in theirs.state_dict().items()
            if name.startswith((inside, "lm_head."))
        }
        ours = from_huggingface(arrays, theirs.config.text_config)
        with torch.no_grad():
            pixels = torch.randn(2, 3, 12, 12, dtype=torch.float64)
            image = theirs.model.get_image_features(pixels).pooler_output
            ids = torch.randint(3, 40, (2, image.shape[1] + 5))
            ids[:, : image.shape[1]] = 40
            target = torch.randint(3, 40, (2, 7))
            expected = theirs(
                input_ids=ids,
                pixel_values=pixels,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=target,
            ).logits.numpy()
            prompt = theirs.get_input_embeddings()(ids[:, image.shape[1] :])
            source = torch.cat([image, prompt], dim=1).numpy()
        worst = max(worst, relative_error(rs.forward(ours, source, target.numpy()), expected))
    say(f"Florence-2: logits within {worst:.1e}")
    assert worst < 1e-12


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, UnsupportedFeature),
        ("layer_types", ["chunked_attention"], UnsupportedFeature),
        ("layer_types", ["full_attention"] * 5, ValueError),
        ("hidden_activation", "quick_gelu", UnsupportedFeature),
        ("query_pre_attn_scalar", 0, ValueError),
        ("attn_logit_softcapping", 0.0, ValueError),
        ("sliding_window", None, ValueError),
        ("head_dim", 7, ValueError),
        ("num_hidden_layers", 2**31 - 1, ValueError),
        ("num_key_value_heads", "two", ValueError),
    ],
)
def test_unsupported_fields_raise(field, value, error):
    theirs = random_model(4, layer_types=["sliding_attention"], num_hidden_layers=1)
    config = theirs.config.to_dict()
    for side in ("encoder", "decoder"):
        changed = config | {side: config[side] | {field: value}}
        with pytest.raises(
            error, match=f"{field.removesuffix('_parameters')}|softcap|n_heads|d_rotary|windows"
        ):
            from_huggingface(theirs.state_dict(), changed)


def test_other_classes_and_stacks_raise():
    config = random_model(0).config
    with pytest.raises(UnsupportedFeature, match="T5GemmaForSequenceClassification"):
        from_huggingface(transformers.T5GemmaForSequenceClassification(config))
    arrays, fields = random_model(0).state_dict(), config.to_dict()
    fields["decoder"]["is_causal"] = False
    with pytest.raises(UnsupportedFeature, match="is_causal"):
        from_huggingface(arrays, fields)
    with pytest.raises(ValueError, match="encoder"):
        from_huggingface(arrays, fields | {"encoder": [1]})


def test_the_peer_has_no_fused_attention():
    """So that its soft caps always act."""
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        random_model(0).set_attn_implementation("sdpa")


def test_a_window_of_one_in_the_peers_cache(exact):
    """The cache keeps the last W - 1 = 0 keys as [-0:], which are all, at wrong positions."""
    theirs = random_model(9, sliding_window=1)
    batch = random_batch(theirs, 3)
    cached, plain = (
        generated(theirs, batch, max_new_tokens=N_NEW, use_cache=kv) for kv in (True, False)
    )
    assert not np.array_equal(cached, plain)
    for use_cache in (True, False):
        how = {"source_mask": batch.mask, "max_new_tokens": N_NEW, "use_cache": use_cache}
        assert np.array_equal(
            rs.generate(from_huggingface(theirs), batch.source, **how).tokens, plain
        )


def test_pad_tokens_in_a_target(exact):
    """The peer hides them if it has no cache, and sees them if it has one. Here they are seen."""
    theirs = random_model(2)
    batch = random_batch(theirs, 0)
    batch.target[:, 1] = PAD
    with torch.no_grad():
        arguments = {
            "input_ids": torch.tensor(batch.source),
            "attention_mask": torch.tensor(batch.mask).long(),
            "decoder_input_ids": torch.tensor(batch.target),
        }
        cached, plain = (theirs(**arguments, use_cache=kv).logits.numpy() for kv in (True, False))
    assert abs(cached - plain).max() > 1e-3
    ours = rs.forward(from_huggingface(theirs), batch.source, batch.target, batch.mask)
    assert relative_error(ours, cached) < 1e-12


def test_a_source_without_a_mask(exact):
    """The encoder hides pad tokens then, cross-attention does not."""
    theirs = random_model(5)
    batch = random_batch(theirs, 3)
    assert not batch.mask.all()
    with torch.no_grad():
        source, target = torch.tensor(batch.source), torch.tensor(batch.target)
        unmasked = theirs(input_ids=source, decoder_input_ids=target).logits.numpy()
    assert abs(unmasked - logits(theirs, batch)).max() > 1e-3
    ours = from_huggingface(theirs)
    memory = rs.encode(ours, batch.source, batch.mask)
    seen = rs.project_memory(ours, memory.hidden, np.ones_like(batch.mask))
    found = rs.decode(ours, batch.target, seen)
    assert abs(found - unmasked)[batch.mask.all(axis=1)].max() < 1e-12
