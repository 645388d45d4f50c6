"""Directories that CTranslate2's converters wrote, beside its engine."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")

import ctranslate2
import sentencepieces
import transformers
from benchmarks.peers import save_for_ctranslate2
from ctranslate2.specs import TransformerSpec
from ctranslate2.specs.common_spec import Activation
from searches import CT2_FAMILIES, Counts, ctranslate2_beams, ctranslate2_model, our_beams

import refseq2seq as rs

N_SEEDS = 5  # the figures of docs/peers.md are those of 25
FAMILIES = [*CT2_FAMILIES, "Marian", "T5 1.1", "UMT5"]


def words(ids):
    return [f"t{i}" for i in ids]


def source_rows(batch):
    return [row[real].tolist() for row, real in zip(batch.source, batch.mask, strict=True)]


def engine(directory, compute_type="float32"):
    return ctranslate2.Translator(str(directory), intra_threads=1, compute_type=compute_type)


def runs(name, path, monkeypatch, quantization=None, compute_type="float32"):
    """For each seed: the module, a batch, the model read, the engine's new tokens, their logits.

    The tokens are those of each row; the logits, from which each was chosen, (n, vocab_size).
    """
    for seed in range(N_SEEDS):
        theirs, _, batch = ctranslate2_model(name, seed, monkeypatch)
        if name == "Marian":
            batch.source[batch.source == 40] = 3  # the token that the converter removes
        save_for_ctranslate2(theirs, path / str(seed), quantization)
        results = engine(path / str(seed), compute_type).translate_batch(
            [words(row) for row in source_rows(batch)],
            beam_size=1, max_decoding_length=7, min_decoding_length=0, return_end_token=True,
            return_logits_vocab=True,
        )  # fmt: skip
        rows = [[int(word[1:]) for word in result.hypotheses[0]] for result in results]
        logits = [np.array(result.logits[0]) for result in results]
        logits = [x.reshape(len(row), -1) for x, row in zip(logits, rows, strict=True)]
        yield theirs, batch, rs.load(path / str(seed)), rows, logits


def our_logits(model, batch, rows):
    """Of each row, those that its tokens were chosen from, given the tokens before."""
    start = model.config.decoder_start_id
    return [
        rs.forward(model, [source], [[start, *row[:-1]]])[0]
        for source, row in zip(source_rows(batch), rows, strict=True)
    ]


def distances(model, batch, rows, theirs):
    """The largest difference of each step's logits, relative to the largest logit."""
    return [
        difference
        for ours, other in zip(our_logits(model, batch, rows), theirs, strict=True)
        for difference in abs(ours[:, : other.shape[-1]] - other).max(axis=-1) / abs(other).max()
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_gives_the_engines_tokens_and_scores(name, tmp_path, monkeypatch, say):
    counts, worst, greedy = Counts(), 0.0, 0
    runs_of_seeds = runs(name, tmp_path, monkeypatch)
    for seed, (theirs, batch, model, rows, logits) in enumerate(runs_of_seeds):
        worst = max(worst, *distances(model, batch, rows, logits))
        ours = rs.generate(model, batch.source, source_mask=batch.mask, max_new_tokens=7)
        for row, tokens, n in zip(rows, ours.tokens, ours.lengths, strict=True):
            greedy += row == tokens[:n].tolist()
        found = ctranslate2_beams(theirs, batch, tmp_path / f"{seed} beams", 4, 2)
        counts.compare(our_beams(model, batch, 4, 2, early_stopping=True), *found)
    say(f"{name}: logits {worst:.1e}, greedy {greedy} of {3 * N_SEEDS}, beams: {counts}")
    assert worst < 5e-6
    assert greedy == 3 * N_SEEDS
    assert counts.near == 0


@pytest.mark.parametrize("quantization", ["float16", "bfloat16", "int16", "int8", "int8_float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_in_float32_computes_with_our_numbers(
    name, quantization, tmp_path, monkeypatch, say
):
    """Any file: the engine dequantises it to the numbers that we read."""
    worst = 0.0
    for _, batch, model, rows, logits in runs(name, tmp_path, monkeypatch, quantization):
        worst = max(worst, *distances(model, batch, rows, logits))
    say(f"{name}, {quantization}: {worst:.1e}")
    assert worst < 5e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_in_int8_stays_near(name, tmp_path, monkeypatch, say):
    """It rounds each matrix product's input to 8 bits too, which no reference can state."""
    differences, same = [], []
    for _, batch, model, rows, logits in runs(name, tmp_path, monkeypatch, "int8", "int8"):
        differences += list(distances(model, batch, rows, logits))
        for row, ours in zip(rows, our_logits(model, batch, rows), strict=True):
            same += list(ours.argmax(axis=-1) == row)
    told = f"median {np.median(differences):.1e}, largest {max(differences):.1e}"
    say(f"{name}: logits {told}, the same token in {np.mean(same):.1%} of {len(same)} steps")
    assert np.median(differences) < 0.03
    assert np.mean(same) > 0.9


SPECS = {
    "post-norm": {"pre_norm": False},
    "pre-norm": {},
    "embedding norm": {"layernorm_embedding": True, "activation": Activation.GELUTanh},
    "multi-query": {"multi_query_attention": True, "activation": Activation.SWISH},
    "gated, no final norm": {"ffn_glu": True, "no_final_norm": True, "activation": Activation.GELU},
    "RMS norms, guided alignment": {"rms_norm": True, "alignment_layer": 1, "alignment_heads": 2},
}


@pytest.mark.parametrize("positions", ["table", "sinusoids"])
@pytest.mark.parametrize("options", SPECS)
def test_a_transformer_as_opennmt_and_fairseq_have_it(options, positions, tmp_path):
    """Built from the specification, with vocabularies of two sizes, and EOS added to the source."""
    rng, width, d_ff, n_layers, sizes = np.random.default_rng(7), 12, 19, (2, 3), (23, 29)
    spec = TransformerSpec.from_config(n_layers, 3, **SPECS[options])
    kv = 4 if "multi_query_attention" in SPECS[options] else width
    rows = {
        "encoder/embeddings_0/weight": (sizes[0], width),
        "decoder/embeddings/weight": (sizes[1], width),
        "decoder/projection/weight": (sizes[1], width),
        "self_attention/linear_0/weight": (width + 2 * kv, width),
        "/attention/linear_1/weight": (2 * kv, width),
        "ffn/linear_0/weight": (d_ff, width),
        "ffn/linear_0_noact/weight": (d_ff, width),
        "ffn/linear_1/weight": (width, d_ff),
        "position_encodings/encodings": (31, width),
    }

    def fill(part, name, value):
        last = name.rpartition("/")[2]
        shape = next((rows[tail] for tail in rows if name.endswith(tail)), (width, width))
        if last == "encodings" and positions == "table":
            part.encodings = rng.standard_normal(shape, dtype="float32")
        elif last in ("gamma", "beta"):
            setattr(part, last, rng.standard_normal(width, dtype="float32") / 4 + (last == "gamma"))
        elif last == "weight":
            scale = 1 if "embed" in name else shape[1] ** 0.5
            part.weight = rng.standard_normal(shape, dtype="float32") / np.float32(scale)
            if "embed" not in name:
                part.bias = rng.standard_normal(shape[0], dtype="float32") / 4

    spec._visit(fill)
    tokens = [["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, n))] for n in sizes]
    spec.register_source_vocabulary(tokens[0])
    spec.register_target_vocabulary(tokens[1])
    spec.config.add_source_bos, spec.config.add_source_eos = positions == "table", True
    spec.validate()
    spec.optimize()
    spec.save(str(tmp_path))
    model = rs.load(tmp_path)
    texts = ["t4 t9 none t3", "t17 t5", "t22"]
    results = engine(tmp_path).translate_batch(
        [text.split() for text in texts], beam_size=1, max_decoding_length=7, min_decoding_length=0,
        return_end_token=True, return_logits_vocab=True,
    )  # fmt: skip
    for text, result in zip(texts, results, strict=True):
        row = [tokens[1].index(word) for word in result.hypotheses[0]]
        source = [model.source_vocabulary.encode(text)]
        ours = rs.forward(model, source, [[model.config.decoder_start_id, *row[:-1]]])[0]
        logits = np.array(result.logits[0]).reshape(ours.shape)
        assert abs(ours - logits).max() < 5e-6 * abs(logits).max()
        assert rs.generate(model, source, max_new_tokens=7).tokens[0].tolist()[: len(row)] == row


@pytest.fixture(scope="module")
def pieces():
    """A SentencePiece model, and its pieces with their scores."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install '.[huggingface]'")
    content = sentencepieces.pieces(sentencepieces.SENTENCES, 29)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    return content, [(processor.id_to_piece(i), processor.get_score(i)) for i in range(29)]


def converted(directory, tokenizer, copied, quantization=None):
    """The model that the converter of a directory of transformers makes, after its texts agree."""
    out = directory / "ctranslate2"
    converter = ctranslate2.converters.TransformersConverter(str(directory), copy_files=copied)
    converter.convert(str(out), quantization=quantization)
    model, tokens = rs.load(out), json.loads((out / "shared_vocabulary.json").read_text())
    for text in ["the cat said", "a man", "the mat"]:
        source = tokenizer(text).input_ids
        assert model.source_vocabulary.encode(text) == source
        words = [tokenizer.convert_ids_to_tokens(source)]
        result = engine(out).translate_batch(words, beam_size=3, max_decoding_length=9)[0]
        how = {"beams": 3, "early_stopping": True, "max_new_tokens": 9, "min_new_tokens": 1}
        ours = rs.beam_search(model, [source], **how).tokens[0, 0]
        found = [tokens[i] for i in ours if i not in model.config.eos_ids and i < len(tokens)]
        assert found == result.hypotheses[0]
        theirs = tokenizer.convert_tokens_to_ids(found)
        if tokenizer.unk_token_id not in theirs:  # T5's padded vocabulary
            assert model.target_vocabulary.decode(ours) == tokenizer.decode(theirs)
    return model


@pytest.mark.filterwarnings("ignore:.*sacremoses")
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_converter_of_marian(pieces, quantization, tmp_path, monkeypatch):
    theirs, _, _ = ctranslate2_model("Marian", 0, monkeypatch)
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = 0
    theirs.save_pretrained(tmp_path)
    content, scored = pieces
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(content)
    names = ["</s>", "<unk>", *(piece for piece, _ in scored[3:])]
    names += [f">>{i}<<" for i in range(40 - len(names))] + ["<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path)
    copied = ["source.spm", "target.spm"]
    model = converted(tmp_path, tokenizer, copied, quantization)
    assert model.config.decoder_start_id == tokenizer.pad_token_id
    assert model.source_vocabulary.encode(">>3<< the cat") == tokenizer(">>3<< the cat").input_ids


def test_the_converter_of_t5(pieces, tmp_path, monkeypatch):
    theirs, _, _ = ctranslate2_model("T5 1.0", 0, monkeypatch)
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = 1
    theirs.generation_config.decoder_start_token_id = theirs.config.decoder_start_token_id = 0
    theirs.save_pretrained(tmp_path)
    tokenizer = transformers.T5Tokenizer(vocab=pieces[1], extra_ids=0)
    tokenizer.save_pretrained(tmp_path)
    model = converted(tmp_path, tokenizer, ["tokenizer.json"])
    assert model.config.decoder_start_id == 0
