"""Directories of Hugging Face models, written by transformers and read without it."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[huggingface]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install '.[huggingface]'")
pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install '.[huggingface]'")

import sentencepiece
import sentencepieces
import tokenizers
import torch
import transformers
from comparisons import MERGE, assert_same_model
from hf_models import CASES, error_of_logits, random_batch, random_model
from safetensors.numpy import load_file, save_file

import refseq2seq as rs
from refseq2seq.cli import main
from refseq2seq.convert import UnsupportedFeature, from_huggingface

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"


def edit_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_arrays(path, change):
    save_file(dict(change(load_file(path))), path, metadata={"format": "pt"})


def without(*names):
    return lambda fields: {name: x for name, x in fields.items() if name not in names}


WRITTEN = {
    **{name: (name, torch.float64, {}) for name in CASES},
    "in shards": ("BART", torch.float64, {"max_shard_size": "20KB"}),
    "float32": ("Marian", torch.float32, {}),
    "float16": ("T5 1.1", torch.float16, {}),
    "bfloat16": ("M2M100", torch.bfloat16, {}),
    "bfloat16 in shards": ("T5 1.0", torch.bfloat16, {"max_shard_size": "5KB"}),
}

READ = """
import sys
import refseq2seq as rs
for directory in sys.argv[1:]:
    rs.save(rs.load(directory), directory + "/read.npz")
print(sorted({"torch", "transformers", "safetensors", "ml_dtypes", "jax"} & sys.modules.keys()))
"""


def test_directories_give_the_live_model_without_torch(tmp_path):
    live = {}
    for name, (case, dtype, options) in WRITTEN.items():
        theirs = random_model(case, 5).to(dtype)
        theirs.save_pretrained(tmp_path / name, **options)
        live[name] = from_huggingface(theirs)
    assert (tmp_path / "in shards" / "model.safetensors.index.json").exists()
    assert (tmp_path / "bfloat16 in shards" / "model.safetensors.index.json").exists()
    run = subprocess.run(
        [sys.executable, "-c", READ, *(str(tmp_path / name) for name in WRITTEN)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
    for name, model in live.items():
        read = rs.load(tmp_path / name / "read.npz")
        assert_same_model(read, model)
        batch = random_batch(random_model(WRITTEN[name][0], 5), 5)
        assert np.array_equal(
            rs.forward(read, batch.source, batch.target, batch.mask),
            rs.forward(model, batch.source, batch.target, batch.mask),
        )


def test_generation_config_file(tmp_path):
    random_model("BART", 0).save_pretrained(tmp_path)
    settings = {"decoder_start_token_id": 31, "eos_token_id": 7, "forced_bos_token_id": 0}
    (tmp_path / GENERATION).write_text(json.dumps(settings))
    config = from_huggingface(tmp_path).config
    assert (config.forced_bos_id, config.forced_eos_id) == (0, None)
    assert (config.decoder_start_id, config.eos_ids, config.pad_id) == (31, (7,), 7)
    (tmp_path / GENERATION).unlink()  # as files were written once: all in config.json
    edit_json(tmp_path / CONFIG, lambda fields: fields | {"decoder_start_token_id": 30})
    config = from_huggingface(tmp_path).config
    assert (config.decoder_start_id, config.pad_id) == (30, 1)


# Files of older releases, without fields that the class fills in


def from_arrays(path):
    """The directory's model, converted from its arrays and the JSON of its two configs."""
    config, generation = (json.loads((path / name).read_text()) for name in (CONFIG, GENERATION))
    return from_huggingface(load_file(path / WEIGHTS), config, generation)


@pytest.mark.parametrize("name", CASES)
def test_arrays_and_json_give_the_model_of_the_directory(name, tmp_path):
    theirs = random_model(name, 3)
    theirs.generation_config.forced_bos_token_id = 9
    theirs.save_pretrained(tmp_path)
    model = from_arrays(tmp_path)
    assert_same_model(model, from_huggingface(tmp_path))
    arrays, config = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())
    assert_same_model(from_huggingface(arrays, theirs.config, theirs.generation_config), model)
    assert_same_model(from_huggingface(arrays, config, {"forced_bos_token_id": 9}), model)


def test_a_whole_generation_config_replaces_that_of_the_model(tmp_path):
    """It omits the tokens that are null, as its file does."""
    theirs = random_model("BART", 0)
    arrays, config = theirs.state_dict(), theirs.config.to_dict() | {"forced_bos_token_id": 9}
    whole = theirs.generation_config.to_diff_dict()
    assert "forced_bos_token_id" not in whole
    assert from_huggingface(arrays, config, {"eos_token_id": 7}).config.forced_bos_id == 9
    model = from_huggingface(arrays, config, whole)
    assert (model.config.forced_bos_id, model.config.eos_ids) == (None, (2, 5, 11, 17, 23, 29))
    del whole["eos_token_id"]
    assert from_huggingface(arrays, config, whole).config.eos_ids == ()


def older_files(name, seed, path, change_config, change_arrays=lambda arrays: arrays):
    random_model(name, seed).float().save_pretrained(path)
    edit_json(path / CONFIG, change_config)
    edit_arrays(path / WEIGHTS, change_arrays)
    theirs = CASES[name].model.from_pretrained(path).eval()
    ours = from_huggingface(path)
    assert_same_model(from_arrays(path), ours)
    assert error_of_logits(ours, theirs, random_batch(theirs, seed)) < 1e-5
    return theirs, ours


def with_array(name, like):
    def change(arrays):
        x = np.random.default_rng(0).standard_normal(arrays[like].shape)
        return arrays | {name: x.astype("float32")}

    return change


T5_LATER = ("is_gated_act", "dense_act_fn", "scale_decoder_outputs", "tie_word_embeddings")


def test_t5_as_first_published(tmp_path):
    def change(fields):
        later = ("feed_forward_proj", "relative_attention_max_distance", "num_decoder_layers")
        fields = without(*T5_LATER, *later)(fields)
        return fields | {"num_layers": 2}

    def arrays(x):
        shape = x["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return x | {unused: np.ones(shape, "float32")}

    seed = next(
        seed
        for seed in range(99)
        if (c := random_model("T5 1.0", seed).config).num_layers == c.num_decoder_layers == 2
    )
    _, ours = older_files("T5 1.0", seed, tmp_path, change, arrays)
    assert ours.config.logits_scale == ours.config.decoder.d_model**-0.5
    assert ours.config.decoder.relative_positions.max_distance == 128


def test_t5_1_1_as_published(tmp_path):
    def change(fields):
        return without(*T5_LATER)(fields) | {"tie_word_embeddings": False}

    _, ours = older_files(
        "T5 1.1", 0, tmp_path, change, with_array("lm_head.weight", "shared.weight")
    )
    assert ours.config.logits_scale == 1.0
    assert not ours.config.tied_logits


def test_t5_with_scale_decoder_outputs_in_its_config(tmp_path):
    older_files("T5 1.0", 0, tmp_path, lambda fields: fields | {"scale_decoder_outputs": False})


@pytest.mark.parametrize("name", ["mT5", "UMT5"])
def test_multilingual_t5_as_published(name, tmp_path):
    """They were trained without scaled logits; before 5.24, transformers scales UMT5's anyway."""
    if name == "UMT5" and transformers.__version__ < "5.24":
        pytest.skip("its logits are scaled, whatever the file says")

    def change(fields):
        fields = without(*T5_LATER, "feed_forward_proj")(fields)
        return fields | {"tie_word_embeddings": False}

    _, ours = older_files(name, 0, tmp_path, change, with_array("lm_head.weight", "shared.weight"))
    assert not ours.config.tied_logits
    assert ours.config.logits_scale == 1.0


def test_marian_as_first_published(tmp_path):
    def change(fields):
        later = ("share_encoder_decoder_embeddings", "decoder_vocab_size", "tie_word_embeddings")
        return without(*later)(fields) | {
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "static_position_embeddings": True,
        }

    def arrays(x):
        table = random_model("Marian", 0).model.encoder.embed_positions.weight.float().numpy()
        return x | {
            f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")
        }

    older_files("Marian", 0, tmp_path, change, arrays)


@pytest.mark.parametrize("kept", ["lm_head", "model.decoder.embed_tokens"])
def test_tied_tables_under_any_of_their_names(kept, tmp_path):
    def rename(arrays):
        return without("model.shared.weight")(arrays) | {
            f"{kept}.weight": arrays["model.shared.weight"]
        }

    _, ours = older_files("BART", 0, tmp_path, lambda fields: fields, rename)
    assert ours.config.tied_embeddings
    assert ours.config.tied_logits


def test_missing_logits_bias(tmp_path):
    _, ours = older_files("BART", 0, tmp_path, lambda fields: fields, without("final_logits_bias"))
    assert not ours.config.logits_bias


def test_missing_untied_tables_raise(tmp_path):
    random_model("BART, untied", 0).save_pretrained(tmp_path)
    edit_arrays(tmp_path / WEIGHTS, without("lm_head.weight"))
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        from_huggingface(tmp_path)


def test_weights_of_a_compiled_model(tmp_path):
    theirs = random_model("BART", 0)
    theirs.save_pretrained(tmp_path)
    edit_arrays(tmp_path / WEIGHTS, lambda x: {f"_orig_mod.{name}": y for name, y in x.items()})
    assert_same_model(from_huggingface(tmp_path), from_huggingface(theirs))


# Errors

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-"
LORA = {"model.encoder.layers.0.fc1.lora_A.default.weight": np.ones((2, 3))}


def add_adapter(path):
    (path / "adapter_config.json").write_text("{}")


def add_adapter_without_model(path):
    add_adapter(path)
    (path / CONFIG).unlink()


def remove_weights(path):
    (path / WEIGHTS).unlink()


def leave_a_pickle(path):
    remove_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"never opened")


def quantise(path):
    edit_json(path / CONFIG, lambda fields: fields | {"quantization_config": {}})
    remove_weights(path)  # the config is read first


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (remove_weights, FileNotFoundError, WEIGHTS),
        (leave_a_pickle, ValueError, r"pytorch_model\.bin.*save_pretrained"),
        (quantise, UnsupportedFeature, "quantization_config"),
        (add_adapter, UnsupportedFeature, MERGE),
        (add_adapter_without_model, UnsupportedFeature, MERGE),
        (lambda path: edit_arrays(path / WEIGHTS, lambda x: x | LORA), UnsupportedFeature, MERGE),
        (lambda path: (path / CONFIG).unlink(), FileNotFoundError, f"save_pretrained.*{CONFIG}"),
        (lambda path: (path / CONFIG).write_text("[]"), ValueError, r"config\.json.*object"),
        (lambda path: (path / CONFIG).write_text("{"), ValueError, r"config\.json.*JSON"),
        (
            lambda path: (path / CONFIG).write_text('{"model_type": "bert"}'),
            UnsupportedFeature,
            "bert",
        ),
    ],
)
def test_unreadable_directories_raise(change, error, message, tmp_path):
    random_model("BART", 0).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(error, match=message):
        rs.load(tmp_path)


def elsewhere(fields):
    return fields | {"weight_map": {"a": "../elsewhere.safetensors"}}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda index, _: edit_json(index, without("weight_map")), ValueError, "weight_map"),
        (lambda index, _: edit_json(index, elsewhere), ValueError, "elsewhere"),
        (lambda _, shard: shard.write_bytes(shard.read_bytes()[:-5]), ValueError, SHARD),
        (lambda _, shard: shard.unlink(), FileNotFoundError, SHARD),
    ],
)
def test_unreadable_shards_raise(change, error, message, tmp_path):
    random_model("BART", 0).save_pretrained(tmp_path, max_shard_size="20KB")
    change(tmp_path / INDEX, next(tmp_path.glob(f"{SHARD}*")))
    with pytest.raises(error, match=message):
        from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("package", "file"), [("tokenizers", "tokenizer.json"), ("sentencepiece", "spiece.model")]
)
def test_missing_packages_raise_with_their_extra(package, file, tmp_path, monkeypatch):
    random_model("T5 1.0", 0).save_pretrained(tmp_path)
    (tmp_path / file).write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*refseq2seq\[huggingface\]"):
        from_huggingface(tmp_path)


def test_paths_that_are_no_directory_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="t5-small"):
        from_huggingface("t5-small")
    for name, cure in (
        (WEIGHTS, "directory"),
        (CONFIG, "directory"),
        ("model.gguf", "GGUF.*directory"),
        ("pytorch_model.bin", "Pickles"),
        ("other", "directory"),
    ):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(NotADirectoryError, match=rf"{cure}.*{name}"):
            from_huggingface(tmp_path / name)


# Text


@pytest.fixture(scope="module")
def pieces():
    return sentencepieces.pieces(sentencepieces.SENTENCES, 31)


TEXTS = ["the cat said", "a man", "  two   spaces ", "the zebra", "?"]


def assert_same_text(ours, theirs):
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        assert ours.decode(np.array([*ids, ids[-1]])) == theirs.decode(
            ids, skip_special_tokens=True
        )
    known = [i for i, symbol in enumerate(ours.symbols) if symbol]
    assert [ours.symbols[i] for i in known] == theirs.convert_ids_to_tokens(known)


def test_sentencepiece_of_t5(pieces, tmp_path):
    random_model("T5 1.0", 0).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(pieces)
    ours = rs.load(tmp_path)
    assert ours.source_vocabulary is ours.target_vocabulary
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    scored = [
        (processor.id_to_piece(i), processor.get_score(i))
        for i in range(processor.get_piece_size())
    ]
    theirs = transformers.T5Tokenizer(vocab=scored, extra_ids=0)
    assert_same_text(ours.source_vocabulary, theirs)
    marian = ">>fr<< the cat"  # no code here
    assert ours.source_vocabulary.encode(marian) == theirs(marian).input_ids
    assert ours.source_vocabulary.decode([40, 10**6]) == ""  # T5's vocabulary is padded


def test_sentencepiece_of_marian(pieces, tmp_path):
    random_model("Marian", 0).save_pretrained(tmp_path)
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(pieces)
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    names = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    names = ["</s>", "<unk>", *sorted(names)[::-1], "▁other", ">>fr<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    ours = rs.load(tmp_path)
    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = transformers.MarianTokenizer.from_pretrained(tmp_path)
    assert_same_text(ours.source_vocabulary, theirs)
    in_french = ours.source_vocabulary.encode(">>fr<< the cat")
    assert in_french == theirs(">>fr<< the cat").input_ids
    assert in_french[0] == names.index(">>fr<<")
    spaced = [names.index("▁"), *in_french[1:-1], names.index("▁")]
    assert ours.target_vocabulary.decode(spaced) == theirs.decode(spaced) == "the cat"
    other = [names.index("▁other"), *in_french[1:-1], names.index("▁other")]  # in neither model
    assert ours.target_vocabulary.decode(other) == theirs.decode(other) == "other the cat other"


def test_bytes_of_byt5(tmp_path):
    random_model("T5 1.1", 0).save_pretrained(tmp_path)
    theirs = transformers.ByT5Tokenizer()
    theirs.save_pretrained(tmp_path)
    ours = rs.load(tmp_path).source_vocabulary
    for text in [*TEXTS, "naïve 東京"]:
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs(text).input_ids, skip_special_tokens=True
        )
    assert ours.symbols[3 + ord("a")] == "a"
    assert ours.decode([3 + 0xE6, 3 + ord("x"), 300]) == "x"


@pytest.fixture
def with_tokenizer_json(tmp_path):
    """BART with a tokenizer of words that puts <s> and </s> around them, truncates and pads."""
    words = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *sorted(set(" ".join(sentencepieces.SENTENCES).split())),
    ]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(words[:4])
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=9, pad_id=1, pad_token="<pad>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    random_model("BART", 0).save_pretrained(tmp_path)
    return tmp_path, words


def test_tokenizer_json(with_tokenizer_json):
    path, words = with_tokenizer_json
    ours = rs.load(path).target_vocabulary
    expected = [0, *(words.index(word) for word in ("the", "cat", "sat", "on")), 3, 2]
    assert ours.encode("the cat sat on zebras") == expected
    assert ours.decode(np.array(expected)) == "the cat sat on"
    assert list(ours.symbols) == words


def test_text_to_text(with_tokenizer_json, capsys, tmp_path):
    path, words = with_tokenizer_json
    model = rs.load(path)
    source = [[0, words.index("the"), words.index("cat"), 2]]
    tokens = rs.generate(model, source, max_new_tokens=5).tokens[0]
    special = range(4)
    expected = " ".join(words[i] for i in tokens if i not in special and i < len(words))
    assert rs.generate_text(model, ["the cat"], max_new_tokens=5) == [expected]
    command = ["generate", "--model", str(path), "--max-new-tokens", "5", "the cat"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    assert main([*command, "--steps"]) == 0
    assert words[tokens[0]] in capsys.readouterr().out
    assert main(["info", str(path)]) == 0
    with pytest.raises(TypeError, match="JsonTokenizer"):
        rs.save(model, tmp_path / "model.npz")
