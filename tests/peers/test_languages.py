"""Tokenizers that know languages, and targets in a language, beside those of transformers.

The tokenizers are trained here on a few lines. Their directories have the files of transformers
5, which ``save_pretrained`` writes, and those that transformers 4 wrote for the models as they
were published.
"""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install '.[huggingface]'")
pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install '.[huggingface]'")

import sentencepiece
import tokenizers
import torch
import transformers
from hf_models import PAD, make_exact, randomize
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs

LINES = [
    "the cat sat on the mat", "a dog ran to the door", "le chat est sur le tapis",
    "der Hund lief zur Tür", "el perro come", "où est la bibliothèque", "ein Haus am See",
] * 9  # fmt: skip
TEXTS = [
    "the cat", "le chat est là", "  two   spaces ", "zebra ü?", "東京", "der Hund, lief.",
    ">>fr<< the cat", "en_XX", "a\tb",
]  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model: its bytes, and its pieces with their scores."""
    prefix = tmp_path_factory.mktemp("spm") / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(prefix), vocab_size=43, minloglevel=2
    )
    content = prefix.with_suffix(".model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    return content, [
        (model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())
    ]


def nllb(pieces, path, **options):
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    how = {"vocab_size": 67, "special_tokens": SPECIAL, "show_progress": False}
    trained.train_from_iterator(LINES, tokenizers.trainers.BpeTrainer(**how))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.NllbTokenizer(vocab=model["vocab"], merges=merges, **options)


def mbart(pieces, path, **options):
    vocab = [(token, 0.0) for token in SPECIAL] + pieces[1][3:]
    codes = transformers.models.mbart.tokenization_mbart.FAIRSEQ_LANGUAGE_CODES
    vocab += [(token, 0.0) for token in (*codes, "<mask>")]
    return transformers.MBartTokenizer(vocab=vocab, **options)


def mbart50(pieces, path, **options):
    return transformers.MBart50Tokenizer(vocab=pieces[1], **options)


def m2m100(pieces, path, **options):
    names = [*SPECIAL, *(piece for piece, _ in pieces[1][3:][::-1])]
    (path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (path / "sentencepiece.bpe.model").write_bytes(pieces[0])
    files = (str(path / "vocab.json"), str(path / "sentencepiece.bpe.model"))
    return transformers.M2M100Tokenizer(*files, **options)


MAKERS = {
    "NLLB": (nllb, "eng_Latn fra_Latn zho_Hant ace_Arab zul_Latn"),
    "M2M100": (m2m100, "en fr zh af zu ceb"),
    "mBART": (mbart, "en_XX fr_XX ar_AR zh_CN"),
    "mBART-50": (mbart50, "en_XX fr_XX ar_AR sl_SI"),
}


# Layouts of the files


def as_saved(path, theirs):
    theirs.save_pretrained(path)


def as_published(path, theirs):
    """The files of transformers 4: the special tokens are additional, there is no backend.

    NLLB's tokenizer.json has the language after the text, as it was before version 4.30, and
    mBART's lists no languages among the added tokens.
    """
    theirs.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    kind = config["tokenizer_class"]
    tokens = config.pop("extra_special_tokens")
    if kind == "M2M100Tokenizer":
        codes = transformers.models.m2m_100.tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]
        tokens = [f"__{code}__" for code in codes]
        config.pop("language_codes")
        config.pop("added_tokens_decoder")
    for name in ("backend", "legacy_behaviour"):
        config.pop(name, None)
    config |= {"src_lang": None, "tgt_lang": None, "additional_special_tokens": tokens}
    names = {name: config[name] for name in ("eos_token", "unk_token", "pad_token")}
    (path / "special_tokens_map.json").write_text(
        json.dumps(names | {"additional_special_tokens": tokens})
    )
    if kind != "M2M100Tokenizer":
        config["tokenizer_class"] = f"{kind}Fast"
        content = json.loads((path / "tokenizer.json").read_text())
        if kind == "NllbTokenizer":
            content["post_processor"]["single"].append(content["post_processor"]["single"].pop(0))
        if kind == "MBartTokenizer":
            del config["tokenizer_class"]
            content["added_tokens"] = [
                x for x in content["added_tokens"] if x["content"] not in tokens
            ]
        (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text(json.dumps(config))


LAYOUTS = [as_saved, as_published]
every_family = pytest.mark.parametrize("name", MAKERS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def directory(name, path, pieces, layout=as_saved, **options):
    """A random model and its tokenizer in a directory; returns the live ones of transformers."""
    maker, codes = MAKERS[name]
    made = maker(pieces, path, **options)
    layout(path, made)
    sizes = {
        "vocab_size": len(made) + 111, "d_model": 12, "max_position_embeddings": 31,
        "pad_token_id": PAD, "eos_token_id": 2, "decoder_start_token_id": 2,
        "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19,
        "encoder_attention_heads": 2, "decoder_attention_heads": 3,
    }  # fmt: skip
    kind = "MBart" if "mBART" in name else "M2M100"
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(**sizes)
    )
    model = model.double().eval()
    randomize(model)
    model.save_pretrained(path)
    make_exact(model)
    return transformers.AutoTokenizer.from_pretrained(path), model, codes.split()


# Tokens


@every_family
@every_layout
def test_ids_and_texts_are_those_of_transformers(name, layout, tmp_path, pieces):
    theirs, _, codes = directory(name, tmp_path, pieces, layout)
    ours = rs.load(tmp_path).source_vocabulary
    n = {"NLLB": 202, "M2M100": 100, "mBART": 25, "mBART-50": 52}[name]
    assert len(ours.languages) == n
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids, text
    for code in codes:
        theirs.src_lang = code
        for text in TEXTS:
            ids = theirs(text).input_ids
            assert ours.encode(text, code) == ids, (code, text)
            assert ours.language_id(code) in ids
            decoded = theirs.decode(ids, skip_special_tokens=True)
            if name == "M2M100" and layout is as_saved:  # whose languages are not special then
                decoded = decoded.removeprefix(f"__{code}__").strip()
            assert ours.decode(ids) == decoded


@every_family
def test_any_text(name, tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("any")
    theirs, _, codes = directory(name, path, pieces)
    ours = rs.load(path).source_vocabulary
    letters = st.sampled_from([*"".join(LINES[:7]), *"Éß\u2581\u0301\t\n?,東😀_"])

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(letters | st.characters(codec="utf-8"), max_size=29))
    def same(text):
        assume(name != "M2M100" or not any(token in text for token in SPECIAL))
        code = codes[len(text) % len(codes)]
        theirs.src_lang = code
        ids = theirs(text).input_ids
        assert ours.encode(text, code) == ids
        body = [i for i in ids if i != ours.language_id(code)]
        assert ours.decode(ids) == theirs.decode(body, skip_special_tokens=True)

    same()


@pytest.mark.parametrize("name", ["mBART", "mBART-50"])
def test_mbart_that_has_only_a_sentencepiece_model(name, tmp_path, pieces):
    """Of plain texts; in others, spaces at an end and written codes differ in transformers 5."""
    theirs, _, codes = directory(name, tmp_path, pieces)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces[0])
    ours = rs.load(tmp_path).source_vocabulary
    assert [*ours.symbols] == theirs.convert_ids_to_tokens([*range(len(ours.symbols))])
    for code in codes:
        theirs.src_lang = code
        for text in TEXTS[:2] + TEXTS[3:7]:
            ids = theirs(text).input_ids
            assert ours.encode(text, code) == ids, (code, text)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    if name == "mBART":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 69}))
        with raises_naming(rs.FileError, "sentencepiece.bpe.model", 43, 25, 70, 69):
            rs.load(tmp_path)


@every_family
def test_every_language_has_its_id_and_may_be_the_default(name, tmp_path, pieces):
    code = MAKERS[name][1].split()[1]
    theirs, _, _ = directory(name, tmp_path, pieces, src_lang=code)
    ours = rs.load(tmp_path).source_vocabulary
    mark = "__{}__" if name == "M2M100" else "{}"
    for language in ours.languages:
        assert ours.language_id(language) == theirs.convert_tokens_to_ids(mark.format(language))
    assert ours.encode("the cat") == theirs("the cat").input_ids
    assert ours.language == code


OPTIONS = {
    "as it was before": ("NLLB", {"legacy_behaviour": True}, 202, "fra_Latn"),
    "few languages": (
        "NLLB", {"extra_special_tokens": ["tyv_Cyrl", "rus_Cyrl"], "src_lang": "rus_Cyrl"},
        2, "tyv_Cyrl rus_Cyrl",
    ),
    "WMT21": ("M2M100", {"language_codes": "wmt21"}, 8, "en ha is ja cs ru zh de"),
}  # fmt: skip


@pytest.mark.parametrize("what", OPTIONS)
def test_options_of_the_tokenizers(what, tmp_path, pieces):
    name, options, n, codes = OPTIONS[what]
    theirs, _, _ = directory(name, tmp_path, pieces, **options)
    ours = rs.load(tmp_path).source_vocabulary
    assert len(ours.languages) == n
    assert ours.encode("the cat") == theirs("the cat").input_ids
    for code in codes.split():
        theirs.src_lang = code
        ids = theirs("le chat").input_ids
        assert ours.encode("le chat", code) == ids
        assert ids.index(ours.language_id(code)) == (len(ids) - 1 if "before" in what else 0)


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [
        ("M2M100", {"language_codes": "wmt42"}, ["language_codes", "wmt42"]),
        ("M2M100", {"src_lang": "eng"}, ["tokenizer_config.json", "src_lang", "eng", "100"]),
        ("NLLB", {"src_lang": ["eng_Latn"]}, ["tokenizer_config.json", "src_lang", "202"]),
        ("mBART", {"tokenizer_class": "NllbTokenizer"}, ["NllbTokenizer", "tokenizer_class"]),
    ],
)
def test_files_that_do_not_fit_together_raise(name, change, names, tmp_path, pieces):
    directory(name, tmp_path, pieces)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with raises_naming(rs.FileError, *names):
        rs.load(tmp_path)


# Targets

SOURCES, NEW = ["the cat", "le chat est sur le tapis", "der Hund", "où est"], 7


def asked_of_transformers(name, tokenizer, model, text, source, target, **how):
    """Their tokens and scores of one text: forced as BOS, or for mBART as the start token."""
    tokenizer.src_lang = source
    mark = "__{}__" if name == "M2M100" else "{}"
    token = tokenizer.convert_tokens_to_ids(mark.format(target))
    option = "decoder_start_token_id" if name == "mBART" else "forced_bos_token_id"
    inputs = tokenizer([text], return_tensors="pt")
    options = {option: token, "max_new_tokens": NEW, "return_dict_in_generate": True} | how
    with torch.no_grad():
        found = model.generate(**inputs, output_scores=True, **options)
    return found.sequences[:, 1:].numpy(), getattr(found, "sequences_scores", None)


@every_family
def test_each_row_in_its_languages(name, tmp_path, pieces):
    theirs, module, codes = directory(name, tmp_path, pieces)
    model = rs.load(tmp_path).astype("float64")
    source = [codes[i % len(codes)] for i in range(len(SOURCES))]
    target = source[1:] + source[:1]
    vocabulary = model.source_vocabulary
    ids = [vocabulary.encode(*pair) for pair in zip(SOURCES, source, strict=True)]
    tokens = [vocabulary.language_id(code) for code in target]
    forced = {"prefix": [[i] for i in tokens]} if name == "mBART" else {"forced_bos_ids": tokens}
    how = {"max_new_tokens": NEW, **forced}
    greedy = rs.generate(model, ids, **how)
    beams = rs.beam_search(model, ids, beams=3, n_best=2, **how)
    texts = rs.generate_text(
        model, SOURCES, source_language=source, target_language=target, max_new_tokens=NEW
    )
    assert beams.margin.min() > 1e-5
    for row, languages in enumerate(zip(source, target, strict=True)):
        asked = (name, theirs, module, SOURCES[row], *languages)
        (found,), _ = asked_of_transformers(*asked)
        n = greedy.lengths[row]
        assert greedy.tokens[row, :n].tolist() == found.tolist()
        said = [i for i in found.tolist() if i not in vocabulary.language_ids.values()]
        assert texts[row] == theirs.decode(said, skip_special_tokens=True)
        best, scores = asked_of_transformers(*asked, num_beams=3, num_return_sequences=2)
        for k in range(2):
            n = beams.lengths[row, k]
            assert beams.tokens[row, k, :n].tolist() == best[k, :n].tolist()
            assert (best[k, n:] == PAD).all()
        np.testing.assert_allclose(beams.scores[row], scores, rtol=2e-5, equal_nan=False)
    if name != "mBART":
        assert greedy.tokens[:, 0].tolist() == tokens
        assert (beams.tokens[:, :, 0] == np.array(tokens)[:, None]).all()
