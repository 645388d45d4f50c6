"""Converter for Hugging Face transformers 5.24: a module, a local directory, or arrays and config.

model = from_huggingface("path/of/opus-mt-en-de")      read without PyTorch
model = from_huggingface(module)                       a live ...ForConditionalGeneration
model = from_huggingface(arrays, config)               arrays of any origin, such as JAX or Rust

`t5`, `t5gemma`, `bart` and `whisper` describe what each family computes, and have the tables of
its names.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...backend import c_ordered
from ...checks import UnsupportedFeature
from ...config import ModelConfig
from ...files.reading import FileError, file_errors, read_json
from ...files.safetensors import Stored
from ...generation.configured import DEFAULT_NEW_TOKENS
from ...model import Model
from ...settings import Settings
from ..given import numpy_arrays, plain_module, wrong_module
from ..table import SpecialTokens, Transform, convert_params, numbered
from . import bart, t5, t5gemma, vision, whisper
from .common import Fields, check_layers, in_one_dtype
from .files import CONFIG, GENERATION_CONFIG, check_directory, stored_arrays
from .refused import REASONS
from .settings import KNOWN, SPECIAL_TOKENS, read_settings
from .tokenizer import Vocabularies, read_tokenizers

Parts = tuple[Mapping[str, Any], Fields, Fields, Vocabularies]
FAMILIES = dict.fromkeys(t5.DEFAULTS, t5) | dict.fromkeys(bart.FAMILIES, bart)
FAMILIES |= dict.fromkeys((vision.MODEL, "trocr"), vision)
FAMILIES |= {"t5gemma": t5gemma, "whisper": whisper}


def from_huggingface(model: Any, config: Any = None, generation_config: Any = None) -> Model:
    """Convert T5, ByT5, mT5, UMT5, T5Gemma, BART, mBART, MVP, PLBart, Marian, Pegasus, M2M100,
    NLLB, a Blenderbot, Whisper, or a VisionEncoderDecoderModel such as TrOCR; or a decoder of TrOCR
    or of BART alone.

    Parameters
    ----------
    model : module, path, or mapping of names to arrays
        A live model of transformers that has a language-model head; a directory with
        ``config.json`` and ``model.safetensors`` (or its shards and their index); or the
        arrays of such a model, of NumPy or PyTorch, with the names of its ``state_dict()``.
        Modules and arrays may come from ``torch.compile``.
    config : config of transformers, or mapping such as the JSON of a ``config.json``
        For arrays only. Fields that older files omit have the values of the config's class.
    generation_config : mapping, or generation config of transformers, optional
        Fields, such as a missing start token, that replace those of the model's generation
        config, or for arrays those of ``config``. The value None removes a field. A mapping with
        the field ``transformers_version``, such as a ``generation_config.json``, replaces the
        whole generation config.

    Returns
    -------
    Model
        In float64 if any array is float64, otherwise in float32, which represents float16 and
        bfloat16 exactly. The model of a directory has its tokenizers if they can be read.

    Raises
    ------
    UnsupportedFeature
        If the model is of another family, has an option that is not implemented, or has adapters
        that are not merged.
    ValueError
        If a field of the config or an array is missing, or an array is unused, has no values or
        has the wrong shape. The message names it. Also if the only weights are a pickle.
    FileNotFoundError, NotADirectoryError, IsADirectoryError
        If the path is not a model's directory, or one of its files is missing or a directory.
    TypeError
        If ``model`` is not a module, a path or a mapping of arrays.
    FileError
        For a directory, instead of ValueError. Also if one of its files is not a regular file, is
        too large or damaged, or contains NaN or infinity.

    Notes
    -----
    The tokens of the generation config (start, end, padding, forced, suppressed, and bad words of
    one token) are fields of the model's config and hold in every decoding. All other fields are in
    the model's ``settings``, which `refseq2seq.generate_as_configured` applies.

    Whisper takes frames (batch, n_frames, num_mel_bins); transformers swaps the last two axes. It
    takes at most ``2 * max_source_positions`` frames; transformers takes exactly that number. The
    language, the task and ``<|notimestamps|>`` are ``settings.prefix``. The language must
    be a code such as ``de``; transformers also takes names.

    For every dtype of the model, transformers computes in float32: the norms of T5 and T5Gemma,
    T5Gemma's rotations and softmax, the sinusoids of Marian, Pegasus and M2M100, and the logits
    that it chooses from. It rounds T5Gemma's embedding scale to the model's dtype. Here everything
    has the dtype of the converted model. Here sinusoids do not limit the number of positions.

    A VisionEncoderDecoderModel must have the encoder of ViT or DeiT. Its source is the patches of
    images of the config's ``image_size``: see `refseq2seq.patches`. A projection
    ``enc_to_dec_proj`` of the encoder's output becomes part of the decoder's projections of keys
    and values, which changes the rounding. A decoder alone, such as TrOCRForCausalLM or
    MBartForCausalLM, has an encoder of 0 layers: its source is the output of any encoder. Its
    tokens and settings are its own, unless ``generation_config`` is that of the pair.
    """
    if config is not None and not isinstance(model, Mapping):
        raise TypeError(
            f"config is for a mapping of arrays, got it with {type(model).__name__}: leave it out, "
            "since a module or a directory has its own"
        )
    return converted(model, config, generation_config)


def converted(
    model: Any,
    config: Any = None,
    generation_config: Any = None,
    take: Transform = c_ordered,
    advance: Callable[[int], object] = lambda n: None,
) -> Model:
    """As `from_huggingface`. ``take`` converts each array, and ``advance`` is that of `load`."""
    overrides = {} if generation_config is None else generation_config
    overrides = _fields("generation_config", overrides)
    with ExitStack() as files:
        arrays, fields, generation, vocabularies = _read(model, config, files, advance)
        generation = _whole(overrides) if "transformers_version" in overrides else generation
        generation.update(overrides)
        read = _converted(arrays, fields, generation, take)
    if not read.config.encoder.vocab_size:  # it reads frames
        vocabularies.pop("source_vocabulary", None)
    return replace(read, **vocabularies)


def _limited(settings: Settings, fields: Fields, c: ModelConfig) -> Settings:
    """The settings, where few positions limit the default length, as in transformers.

    Sinusoids have any number of positions here. A learned table limits every length.
    """
    most = fields.get("max_position_embeddings")
    if most is None or most > DEFAULT_NEW_TOKENS or c.decoder.max_length is not None:
        return settings
    is_default = settings.max_length is None and settings.max_new_tokens is None
    return replace(settings, max_length=most) if is_default else settings


def _read(model: Any, config: Any, files: ExitStack, advance: Callable[[int], object]) -> Parts:
    """Arrays, config, generation config and tokenizers, from any kind of ``model``.

    The arrays of a directory are in ``files``, and not read yet.
    """
    if isinstance(model, str | os.PathLike):
        files.enter_context(file_errors(model, UnsupportedFeature, FileError))
        return _read_directory(Path(model), files, advance)
    if isinstance(model, Mapping):
        fields = _completed(_fields("config", config))
        return model, fields, _of_generation(fields), {}
    return *_read_module(model), {}


def _of_generation(fields: Mapping[str, Any]) -> Fields:
    """The fields of a model's config that belong to generation."""
    stated = {name: value for name, value in fields.items() if value is not None}
    fields = dict(fields) | fields.get("decoder", {}) | stated  # a model of two configs has both
    generation = Fields({name: value for name, value in fields.items() if name in KNOWN})
    if Fields(fields).get("force_bos_token_to_be_generated"):  # of BART, before forced_bos_token_id
        generation["forced_bos_token_id"] = generation.get("bos_token_id")
    return generation


def _converted(
    arrays: Mapping[str, Any], fields: Fields, generation: Fields, take: Transform
) -> Model:
    family = _family(fields)
    if not fields["is_encoder_decoder"] and family is not vision:
        raise UnsupportedFeature(
            f"is_encoder_decoder = {fields['is_encoder_decoder']}: only encoder-decoders are "
            "supported"
        )
    arrays = in_one_dtype(numpy_arrays(arrays))
    config, table, unused, made = family.convert(fields, arrays, _special_tokens(generation))
    arrays = {**arrays, **made}
    check_layers(config, arrays)
    rows = numbered(config, table)
    params = convert_params(config, rows, arrays, unused, take)
    for name in arrays.keys() - {theirs for theirs, _ in rows.values()}:
        if isinstance(arrays[name], Stored):  # read what is not needed too: it must be finite
            take(arrays[name])
    if dict.get(generation, "max_new_tokens") is not None:
        generation.pop("max_length", None)  # it has no effect
    prefix: tuple[int, ...] = ()
    if family is whisper:
        generation, prefix = whisper.prompt(generation, fields)
    settings = replace(read_settings(generation, config), prefix=prefix)
    settings = _limited(settings, fields, config)
    return Model(config=config, params=params, settings=settings)


def _read_directory(directory: Path, files: ExitStack, advance: Callable[[int], object]) -> Parts:
    check_directory(directory)
    json_fields = read_json(directory / CONFIG)
    fields = _completed(json_fields)
    path = directory / GENERATION_CONFIG
    generation = read_json(path) if os.path.lexists(path) else _of_generation(fields)
    vocabularies = read_tokenizers(directory, fields)
    arrays = stored_arrays(directory, files, advance)
    return arrays, fields, _whole(generation), vocabularies


def _completed(fields: dict[str, Any]) -> Fields:
    """The fields of a config, those that a file omits or its class derives included."""
    completed: Fields = _family(Fields(fields)).completed(fields)
    return completed


def _whole(generation: dict[str, Any]) -> Fields:
    """The fields of a generation config, those that a file omits as null included."""
    return Fields(dict.fromkeys(SPECIAL_TOKENS) | generation)


def _read_module(module: Any) -> tuple[Mapping[str, Any], Fields, Fields]:
    module = plain_module(module)
    if not hasattr(module, "can_generate"):
        raise wrong_module("model", "a module of transformers, the path of a directory", module)
    fields = _fields("model.config", module.config)
    _family(fields)
    if not module.can_generate():
        raise UnsupportedFeature(
            f"{type(module).__name__} has no language-model head: convert the class that "
            "generates, such as a ...ForConditionalGeneration"
        )
    generation = _fields("model.generation_config", module.generation_config)
    return module.state_dict(), fields, generation


def _fields(argument: str, given: Any) -> Fields:
    """The fields of a config of transformers, or of a mapping."""
    fields = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"{argument} must be a config of transformers or a mapping of its fields, such as "
            f"config.to_dict(), got {type(given).__name__}"
        )
    return Fields(fields)


def _family(c: Fields) -> Any:
    """The module that converts this model type, such as `t5`. Called before other checks."""
    if c["model_type"] not in FAMILIES:
        why = REASONS.get(c["model_type"])
        told = f"not implemented, {why}" if why else f"supported are {', '.join(FAMILIES)}"
        raise UnsupportedFeature(f"model_type = {c['model_type']!r}: {told}")
    if "quantization_config" in c:
        raise UnsupportedFeature(
            "quantization_config: the arrays are not the model's parameters; convert the model "
            "that was quantised"
        )
    if c["model_type"] == vision.MODEL:
        vision.check(c)
    alone = c.get("is_decoder") and c.get("is_encoder_decoder") is False
    return vision if alone and c["model_type"] in vision.DECODERS else FAMILIES[c["model_type"]]


def _special_tokens(generation: Fields) -> SpecialTokens:
    """The tokens with transformers' defaults: bos as the start token, the first eos as padding."""
    start, eos_ids, pad = (generation[name] for name in SPECIAL_TOKENS[:3])
    if start is None:
        start = generation["bos_token_id"]
    if pad is None and eos_ids:
        pad = eos_ids[0]
    for name, token in (("decoder_start_token_id", start), ("pad_token_id", pad)):
        if token is None:
            raise ValueError(f"the model has no {name}: pass generation_config={{{name!r}: ...}}")
    forced_eos = generation.get("forced_eos_token_id", ())
    if len(forced_eos) > 1:  # not implemented, as `read_settings` says
        forced_eos = ()
    single = [word[0] for word in generation.get("bad_words_ids", ()) if len(word) == 1]
    forced = (*forced_eos, generation.get("forced_bos_token_id"))
    # transformers ignores end tokens among bad words; forced tokens win, as `bad_words` lets them.
    banned = [token for token in single if token not in (*eos_ids, *forced)]
    return SpecialTokens(
        decoder_start_id=start,
        eos_ids=eos_ids,
        pad_id=pad,
        forced_bos_id=generation.get("forced_bos_token_id"),
        forced_eos_id=forced_eos[0] if forced_eos else None,
        suppressed_ids=(*generation.get("suppress_tokens", ()), *banned),
        begin_suppressed_ids=generation.get("begin_suppress_tokens", ()),
    )
