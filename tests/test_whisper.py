"""Whisper with the names of transformers, CTranslate2 and OpenAI, against a second program."""

import json
import math
import re

import numpy as np
import pytest
from command_line import in_process
from ctranslate2_files import model_bin
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.convert import from_huggingface, from_whisper
from refseq2seq.files import safetensors

DIMS = {
    "n_mels": 5, "n_audio_ctx": 7, "n_audio_state": 6, "n_audio_head": 3, "n_audio_layer": 2,
    "n_vocab": 41, "n_text_ctx": 11, "n_text_state": 6, "n_text_head": 2, "n_text_layer": 3,
}  # fmt: skip
CONFIG = {
    "model_type": "whisper", "vocab_size": 41, "num_mel_bins": 5, "d_model": 6,
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "activation_function": "gelu", "scale_embedding": True, "max_source_positions": 7,
    "max_target_positions": 11,
}  # fmt: skip
GENERATION = {
    "decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "suppress_tokens": [8, 9],
    "begin_suppress_tokens": [7, 2], "transformers_version": "4.31.0",
}  # fmt: skip


def weights(n_vocab=41):
    """Arrays with OpenAI's names. k has no bias."""
    rng, d, found = np.random.default_rng(3), 6, {}

    def draw(name, *shape):
        found[name] = rng.standard_normal(shape, dtype="float32") / np.float32(2)

    def module(name, *shape, bias=True):
        draw(f"{name}.weight", *shape)
        if bias:
            draw(f"{name}.bias", shape[0])

    draw("decoder.token_embedding.weight", n_vocab, d)
    module("encoder.conv1", d, 5, 3)
    module("encoder.conv2", d, d, 3)
    for side, n_layers, n, last in (("encoder", 2, 7, "ln_post"), ("decoder", 3, 11, "ln")):
        draw(f"{side}.positional_embedding", n, d)
        module(f"{side}.{last}", d)
        for i in range(n_layers):
            for part in ["attn", "cross_attn"][: 1 + (side == "decoder")]:
                module(f"{side}.blocks.{i}.{part}_ln", d)
                for our in ("query", "key", "value", "out"):
                    module(f"{side}.blocks.{i}.{part}.{our}", d, d, bias=our != "key")
            module(f"{side}.blocks.{i}.mlp_ln", d)
            module(f"{side}.blocks.{i}.mlp.0", 4 * d, d)
            module(f"{side}.blocks.{i}.mlp.2", d, 4 * d)
    return found


def logits(w, frames, tokens):
    """Of one source (n, 5) and the tokens of one target, in float64."""
    w = {name: x.astype("float64") for name, x in w.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv(name, x, stride):
        kernel, n = w[f"{name}.weight"], len(x)
        out = [w[f"{name}.bias"].copy() for _ in range(0, n, stride)]
        for i, place in enumerate(range(0, n, stride)):
            for k in range(3):
                if 0 <= place + k - 1 < n:
                    out[i] += kernel[:, :, k] @ x[place + k - 1]
        return gelu(np.array(out))

    def attend(name, x, memory, n_heads, causal=False):
        q, k, v = (linear(f"{name}.{of}", y) for of, y in
                   (("query", x), ("key", memory), ("value", memory)))  # fmt: skip
        out, d = np.zeros_like(x), x.shape[1] // n_heads
        for head in range(n_heads):
            part = slice(head * d, (head + 1) * d)
            scores = q[:, part] @ k[:, part].T / math.sqrt(d)
            if causal:
                scores[np.triu_indices_from(scores, 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, part] = p / p.sum(-1, keepdims=True) @ v[:, part]
        return linear(f"{name}.out", out)

    def layers(side, n, x, n_heads, memory=None):
        for i in range(n):
            at = f"{side}.blocks.{i}"
            y = norm(f"{at}.attn_ln", x)
            x = x + attend(f"{at}.attn", y, y, n_heads, causal=memory is not None)
            if memory is not None:
                y = norm(f"{at}.cross_attn_ln", x)
                x = x + attend(f"{at}.cross_attn", y, memory, n_heads)
            y = norm(f"{at}.mlp_ln", x)
            x = x + linear(f"{at}.mlp.2", gelu(linear(f"{at}.mlp.0", y)))
        return x

    x = conv("encoder.conv2", conv("encoder.conv1", frames, 1), 2)
    x = layers("encoder", 2, x + w["encoder.positional_embedding"][: len(x)], 3)
    memory = norm("encoder.ln_post", x)
    table = w["decoder.token_embedding.weight"]
    y = table[tokens] + w["decoder.positional_embedding"][: len(tokens)]
    return norm("decoder.ln", layers("decoder", 3, y, 2, memory)) @ table.T


HUGGINGFACE = {
    r"\bblocks\.": "layers.", r"cross_attn_ln": "encoder_attn_layer_norm",
    r"\.attn_ln": ".self_attn_layer_norm", r"cross_attn\.": "encoder_attn.",
    r"\.attn\.": ".self_attn.", r"\bquery": "q_proj", r"\bkey": "k_proj", r"\bvalue": "v_proj",
    r"\bout\b": "out_proj", r"mlp_ln": "final_layer_norm", r"mlp\.0": "fc1", r"mlp\.2": "fc2",
    r"\bln(_post)?\b": "layer_norm", "positional_embedding": "embed_positions.weight",
    "token_embedding": "embed_tokens", "^": "model.",
}  # fmt: skip


def of_huggingface(w):
    def renamed(name):
        for pattern, new in HUGGINGFACE.items():
            name = re.sub(pattern, new, name)
        return name

    return {renamed(name): x for name, x in w.items()}


def write_huggingface(path, w, config=(), generation=()):
    path.mkdir(exist_ok=True)
    safetensors.write(path / "model.safetensors", of_huggingface(w))
    (path / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    (path / "generation_config.json").write_text(json.dumps(GENERATION | dict(generation)))
    return path


def of_ctranslate2(w):
    def part(name, maps):
        found = {"weight": np.concatenate([w[f"{of}.weight"] for of in maps])}
        biases = [w.get(f"{of}.bias", np.zeros(6, "f4")) for of in maps]
        return {f"{name}/{of}": x for of, x in (found | {"bias": np.concatenate(biases)}).items()}

    def norm(name, of):
        return {f"{name}/gamma": w[f"{of}.weight"], f"{name}/beta": w[f"{of}.bias"]}

    found = {
        "decoder/embeddings/weight": w["decoder.token_embedding.weight"],
        "decoder/scale_embeddings": np.int8(0), "decoder/activation": np.int8(3),
        "decoder/pre_norm": np.int8(1), "encoder/num_heads": np.int16(3),
        "decoder/num_heads": np.int16(2), "decoder/start_from_zero_embedding": np.int8(0),
        "decoder/alignment_layer": np.int16(-1), "decoder/alibi": np.int8(0),
        "encoder/position_encodings/encodings": w["encoder.positional_embedding"],
        "decoder/position_encodings/encodings": w["decoder.positional_embedding"],
        **norm("encoder/layer_norm", "encoder.ln_post"), **norm("decoder/layer_norm", "decoder.ln"),
        **part("encoder/conv1", ["encoder.conv1"]), **part("encoder/conv2", ["encoder.conv2"]),
    }  # fmt: skip
    for side, n in (("encoder", 2), ("decoder", 3)):
        for i in range(n):
            ours, at = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            q, k, v, o = (f"{at}.attn.{of}" for of in ("query", "key", "value", "out"))
            found |= norm(f"{ours}/self_attention/layer_norm", f"{at}.attn_ln")
            found |= part(f"{ours}/self_attention/linear_0", [q, k, v])
            found |= part(f"{ours}/self_attention/linear_1", [o])
            if side == "decoder":
                q, k, v, o = (x.replace("attn", "cross_attn") for x in (q, k, v, o))
                found |= norm(f"{ours}/attention/layer_norm", f"{at}.cross_attn_ln")
                for j, maps in enumerate(([q], [k, v], [o])):
                    found |= part(f"{ours}/attention/linear_{j}", maps)
            found |= norm(f"{ours}/ffn/layer_norm", f"{at}.mlp_ln")
            found |= part(f"{ours}/ffn/linear_0", [f"{at}.mlp.0"])
            found |= part(f"{ours}/ffn/linear_1", [f"{at}.mlp.2"])
    return found


TOKENS = ["!", "<|startoftranscript|>", "<|endoftext|>", *(f"t{i}" for i in range(3, 39)),
          "<|0.00|>", "<|0.02|>"]  # fmt: skip


def write_ctranslate2(path, variables, config=(), tokens=TOKENS, **header):
    path.mkdir(exist_ok=True)
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    header = {"spec": "WhisperSpec", "revision": 3} | header
    (path / "model.bin").write_bytes(model_bin(variables, aliases, **header))
    fields = {"suppress_ids": [8, 9], "suppress_ids_begin": [7, 2], "lang_ids": []} | dict(config)
    (path / "config.json").write_text(json.dumps(fields))
    (path / "vocabulary.json").write_text(json.dumps(tokens))
    return path


def load(door, path, w):
    if door == "transformers":
        return rs.load(write_huggingface(path, w))
    return rs.load(write_ctranslate2(path, of_ctranslate2(w)))


def sources():
    rng = np.random.default_rng(5)
    return [rng.standard_normal((n, 5)) for n in (13, 14, 1, 6)]


def assert_logits(model, w, n_vocab=41):
    targets = np.random.default_rng(7).integers(n_vocab, size=(4, 5))
    ours = rs.forward(model, sources(), targets)
    for row, frames, target in zip(ours, sources(), targets, strict=True):
        expected = logits(w, frames, target)
        assert abs(row - expected).max() < 3e-6 * abs(expected).max()


@pytest.mark.parametrize("door", ["transformers", "CTranslate2"])
def test_directories(door, tmp_path):
    w = weights()
    model = load(door, tmp_path, w)
    assert_logits(model, w)
    c = model.config
    assert (c.decoder_start_id, c.eos_ids, c.pad_id) == (1, (2,), 2)
    assert (c.suppressed_ids, c.begin_suppressed_ids) == ((8, 9), (7, 2))
    assert c.tied_logits
    assert model.source_vocabulary is None


@pytest.mark.parametrize(("n_vocab", "start"), [(51864, 50257), (51865, 50258)])
def test_the_names_of_openai(n_vocab, start):
    w = weights(n_vocab)
    model = from_whisper({"dims": DIMS | {"n_vocab": n_vocab}, "model_state_dict": w})
    assert_logits(model, w, n_vocab)
    assert model.config.decoder_start_id == start
    assert model.config.eos_ids == (start - 1,)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes(dtype, tmp_path):
    w = {name: x.astype(dtype) for name, x in weights().items()}
    model = rs.load(write_huggingface(tmp_path, w))
    assert model.dtype == ("float64" if dtype == "float64" else "float32")
    assert_logits(model, w)


def test_an_untied_projection(tmp_path):
    w, projection = weights(), np.random.default_rng(9).standard_normal((41, 6), dtype="f4")
    arrays = of_huggingface(w) | {"proj_out.weight": projection}
    model = from_huggingface(arrays, CONFIG | GENERATION | {"tie_word_embeddings": False})
    assert not model.config.tied_logits
    assert (model.params.unembedding == projection.T).all()


def test_ctranslate2_quantises_convolutions_by_their_outputs(tmp_path):
    w = weights()
    variables = of_ctranslate2(w)
    for name in ("conv1", "conv2"):
        kernel = w[f"encoder.{name}.weight"]
        scale = 127 / abs(kernel).reshape(6, -1).max(axis=1)
        rounded = np.rint(kernel * scale[:, None, None])
        variables[f"encoder/{name}/weight"] = rounded.astype("int8")
        variables[f"encoder/{name}/weight_scale"] = scale
        w[f"encoder.{name}.weight"] = rounded / scale[:, None, None]
    assert_logits(rs.load(write_ctranslate2(tmp_path, variables)), w)


def test_a_native_file_and_a_description(tmp_path, capsys):
    model = load("transformers", tmp_path / "their", weights())
    rs.save(model, tmp_path / "own.npz")
    again, (frames, *_) = rs.load(tmp_path / "own.npz"), sources()
    assert (again.config, again.settings) == (model.config, model.settings)
    assert (rs.forward(again, [frames], [[1]]) == rs.forward(model, [frames], [[1]])).all()
    for path in (tmp_path / "their", write_ctranslate2(tmp_path / "c", of_ctranslate2(weights()))):
        assert "frames of width 5" in in_process(capsys)("info", path)[1]


LANGUAGES = {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}}
MULTILINGUAL = LANGUAGES | {
    "task_to_id": {"translate": 13, "transcribe": 14}, "no_timestamps_token_id": 15,
    "is_multilingual": True, "alignment_heads": [[1, 0]], "max_initial_timestamp_index": 50,
    "prev_sot_token_id": 16, "return_timestamps": False,
}  # fmt: skip
FORCED = {"forced_decoder_ids": [[1, 12], [2, 13]]}
PROMPTS = [  # fields, the prefix after the start token, fields that are not implemented
    ({}, (), []),
    ({"no_timestamps_token_id": 15}, (15,), []),
    ({"forced_decoder_ids": [[1, 15]], "no_timestamps_token_id": 15}, (15,), []),
    ({"forced_decoder_ids": [[2, 15]]}, (15,), ["forced_decoder_ids"]),
    (MULTILINGUAL, (15,), ["language"]),
    (MULTILINGUAL | {"language": "en"}, (11, 14, 15), []),
    (MULTILINGUAL | {"language": "<|DE|>", "task": "translate"}, (12, 13, 15), []),
    (MULTILINGUAL | {"language": "fr"}, (14, 15), ["language"]),
    (MULTILINGUAL | {"task": "sing", "language": "en"}, (11, 15), ["task"]),
    (MULTILINGUAL | FORCED, (12, 13, 15), []),
    (MULTILINGUAL | FORCED | {"language": "en"}, (11, 14, 15), []),
    (MULTILINGUAL | {"forced_decoder_ids": [[1, None], [2, 14]]}, (14, 15), ["language"]),
    (MULTILINGUAL | FORCED | {"return_timestamps": True}, (12, 13), ["return_timestamps"]),
    ({"no_speech_threshold": 0.6, "temperature": [0.0, 0.2]}, (),
     ["no_speech_threshold", "temperature"]),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "prefix", "others"), PROMPTS)
def test_prompts(fields, prefix, others, tmp_path):
    settings = rs.load(write_huggingface(tmp_path, weights(), generation=fields)).settings
    assert settings.prefix == prefix
    assert [name for name, _ in settings.not_implemented] == others


def test_the_prompt_of_a_config(tmp_path):
    """Of files without a generation config, as of 2022."""
    arrays = of_huggingface(weights())
    model = from_huggingface(arrays, CONFIG | GENERATION | {"forced_decoder_ids": [[1, 15]]})
    assert model.settings.prefix == (15,)


def test_as_configured_begins_with_the_prompt(tmp_path):
    """max_length does not count the prompt, but the table of positions does."""
    fields = MULTILINGUAL | {"language": "en", "max_length": 5, "eos_token_id": 40}
    model = rs.load(write_huggingface(tmp_path, weights(), generation=fields))
    found = rs.generate_as_configured(model, sources())
    ours = rs.generate(model, sources(), prefix=[[1, 11, 14, 15]] * 4, max_new_tokens=5)
    assert (found.tokens[:, 0] == ours.tokens).all()
    assert found.tokens.shape == (4, 1, 5)
    one = rs.beam_search(model, sources(), prefix=[[1, 11, 14, 15]], beams=3, max_new_tokens=5)
    assert (rs.generate_as_configured(model, sources(), beams=3).tokens == one.tokens[:, :1]).all()
    longer = rs.as_configured(model, max_length=11)
    assert longer["max_new_tokens"] == 7


def test_a_given_prompt_has_the_language(tmp_path):
    fields = MULTILINGUAL | {"language": "german", "max_length": 5, "eos_token_id": 40}
    model = rs.load(write_huggingface(tmp_path, weights(), generation=fields))
    with raises_naming(rs.UnsupportedFeature, "language", "german", "prefix="):
        rs.as_configured(model)
    assert rs.as_configured(model, prefix=[[1, 12, 15]])["max_new_tokens"] == 5
    n = model.config.decoder.max_length - 4  # longer prefixes leave fewer
    assert rs.as_configured(model, prefix=[[1] * n])["max_new_tokens"] == 4


def test_rules_of_timestamps_are_those_of_the_settings(tmp_path):
    fields = MULTILINGUAL | {"language": "de", "return_timestamps": True}
    model = rs.load(write_huggingface(tmp_path, weights(), generation=fields))
    with raises_naming(rs.UnsupportedFeature, "return_timestamps", "processors="):
        rs.as_configured(model)
    rules = rs.timestamp_rules(15, 2)
    assert rules in rs.as_configured(model, processors=[rules])["choose"].processors


def test_texts_are_no_source(tmp_path):
    model = load("CTranslate2", tmp_path, weights())
    with raises_naming(ValueError, "frames", "generate"):
        rs.generate_text(model, ["a"])
    assert model.target_vocabulary.decode([1, 40, 5, 39, 6, 2]) == "t5 t6"


def test_times_are_no_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="pip install '.[huggingface]'")
    words = {token: i for i, token in enumerate(TOKENS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="!"))
    made.add_special_tokens(TOKENS[1:3])
    made = json.loads(made.to_str())
    for token in TOKENS[39:]:  # not special, as in the files of multilingual models
        made["added_tokens"].append(
            made["added_tokens"][0]
            | {"id": TOKENS.index(token), "content": token, "special": False}
        )
    for i, door in enumerate((write_huggingface, write_ctranslate2)):
        w = weights()
        path = door(tmp_path / str(i), of_ctranslate2(w) if door is write_ctranslate2 else w)
        (path / "tokenizer.json").write_text(json.dumps(made))
        vocabulary = rs.load(path).target_vocabulary
        assert vocabulary.decode([1, 40, 5, 39, 6, 2]) == "t5 t6"
        assert vocabulary.symbols[39] == "<|0.00|>"


REFUSED = {
    "conv1 of width 5": ({"model.encoder.conv1.weight": np.ones((6, 5, 5), "f4")}, {}, "conv1"),
    "conv1 of two axes": ({"model.encoder.conv1.weight": np.ones((6, 15), "f4")}, {}, "conv1"),
    "no numbers": ({"model.encoder.conv1.weight": np.ones((6, 0, 3), "f4")}, {}, "conv1"),
    "a bias of k": ({"model.encoder.layers.0.self_attn.k_proj.bias": np.ones(6, "f4")}, {}, "bias"),
    "other bins": ({}, {"num_mel_bins": 4}, "conv1"),
    "other positions": ({}, {"max_source_positions": 8}, "embed_positions"),
    "heads": ({}, {"encoder_attention_heads": 4}, "encoder_attention_heads"),
    "activation": ({}, {"activation_function": "mish"}, "mish"),
    "no bins": ({}, {"num_mel_bins": None}, "num_mel_bins"),
    "languages": ({}, {"lang_to_id": [1]}, "lang_to_id"),
    "forced": ({}, {"forced_decoder_ids": [[1, 2, 3]]}, "forced_decoder_ids"),
    "a million layers": ({}, {"encoder_layers": 10**6}, "layers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_named(what):
    arrays, fields, named = REFUSED[what]
    with pytest.raises((ValueError, rs.UnsupportedFeature), match=named):
        from_huggingface(of_huggingface(weights()) | arrays, CONFIG | fields, GENERATION | fields)


LARGE = DIMS | {"n_vocab": 51864}
REFUSED_OF_OPENAI = {
    "a path": ("tiny.pt", TypeError, "tiny.pt"),
    "no sizes": ({"model_state_dict": {}}, ValueError, "dims"),
    "a size missing": ({"dims": {"n_mels": 80}, "model_state_dict": {}}, ValueError, "n_audio_ctx"),
    "no size": ({"dims": DIMS | {"n_mels": None}, "model_state_dict": {}}, TypeError, "n_mels"),
    "no arrays": ({"dims": LARGE, "model_state_dict": None}, TypeError, "NoneType"),
    "no names": ({"dims": LARGE, "model_state_dict": {1: np.ones(1)}}, TypeError, "{1:"),
    "widths": (
        {"dims": DIMS | {"n_text_state": 8}, "model_state_dict": {}}, rs.UnsupportedFeature,
        "n_text_state",
    ),
    "an array": (
        {"dims": LARGE, "model_state_dict": weights(51864) | {"more": np.ones(1)}}, ValueError,
        "more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED_OF_OPENAI)
def test_what_is_not_openais_is_named(what):
    given, kind, named = REFUSED_OF_OPENAI[what]
    with raises_naming(kind, named):
        from_whisper(given)
