"""From Hugging Face transformers 5.23: a live model, a local directory, or arrays and a config.

model = from_huggingface("path/of/opus-mt-en-de")      read without PyTorch
model = from_huggingface(module)                       a live ...ForConditionalGeneration
model = from_huggingface(arrays, config)               from JAX, Rust, anywhere

The families are in `t5` and `bart`: what each computes, and a table of its names.
"""

import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...model import Model
from ..table import UnsupportedFeature
from . import bart, t5
from .common import Arrays, Fields, SpecialTokens
from .files import CONFIG, GENERATION_CONFIG, read_arrays, read_json
from .tokenizer import Vocabularies, read_tokenizers

FAMILIES = dict.fromkeys(t5.DEFAULTS, t5) | dict.fromkeys(bart.FAMILIES, bart)

SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")


def from_huggingface(
    model: Any,
    config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Model:
    """Convert T5, ByT5, mT5, UMT5, BART, mBART, Marian, Pegasus, M2M100, NLLB or a Blenderbot.

    Parameters
    ----------
    model : module, path, or mapping of names to arrays
        A live model of transformers that has a language-model head; or a directory with
        ``config.json`` and ``model.safetensors`` (or its shards and their index); or the
        arrays of one by their names there.
    config : mapping, for arrays only
        All fields of ``model.config.to_dict()``.
    generation_config : mapping, optional
        Fields that override those of the model's generation config (for arrays: of
        ``config``): a start token where it has none, None for what it should not have.

    Returns
    -------
    Model
        In float64 if an array is, and in float32 otherwise, which holds float16 and
        bfloat16 exactly. From a directory, with its tokenizers where they can be read.

    Raises
    ------
    UnsupportedFeature
        If the model is of another family, or has an option that its family lacks here.
    ValueError
        If a field of the config or an array is missing, or an array has no place or
        another shape; all by name. If the only weights are a pickle.

    Warns
    -----
    UserWarning
        If the generation config bans a sequence of several tokens (``bad_words_ids``).

    Notes
    -----
    Of the generation config, the model takes its tokens: start, end, pad, forced, suppressed.
    `refseq2seq.generate` takes everything else from its arguments: no number of beams, no
    lengths, no penalties.

    transformers computes T5's norms, the sinusoids of Marian, Pegasus and M2M100, and the
    logits that it chooses from in float32, whatever the model's dtype; here everything is
    in the model's dtype. Sinusoids have no last position here.
    """
    if config is not None and not isinstance(model, Mapping):
        raise TypeError("config is for arrays: a module or a directory has its own")
    vocabularies: Vocabularies = {}
    if isinstance(model, Mapping):
        if config is None:
            raise TypeError("arrays need a config: a mapping of all fields of config.to_dict()")
        arrays, fields, settings = model, Fields(config), Fields(config)
    elif isinstance(model, str | os.PathLike):
        arrays, fields, settings, vocabularies = _read_directory(Path(model))
    else:
        arrays, fields, settings = _read_module(model)
    settings.update(generation_config or {})
    if "quantization_config" in fields:
        raise UnsupportedFeature("quantization_config: the arrays are not the model's numbers")
    if not fields["is_encoder_decoder"]:
        raise UnsupportedFeature(f"is_encoder_decoder = {fields['is_encoder_decoder']}")
    tokens = _special_tokens(settings)
    ours, params = _family(fields).convert(fields, _in_one_dtype(arrays), tokens)
    if words := [word for word in settings.get("bad_words_ids") or () if len(word) > 1]:
        warnings.warn(
            f"the generation config has bad_words_ids = {words}, which generate applies when it "
            f"is told to: choose=greedy(bad_words({words}))",
            stacklevel=2,
        )
    return Model(config=ours, params=params, **vocabularies)


def _read_directory(directory: Path) -> tuple[Arrays, Fields, Fields, Vocabularies]:
    if not directory.is_dir():
        why = "no such directory; a hub is not asked: give a local directory or a live model"
        raise FileNotFoundError(errno.ENOENT, why, str(directory))
    json_fields = read_json(directory / CONFIG)
    fields = _family(Fields(json_fields)).completed(json_fields)
    generation = directory / GENERATION_CONFIG
    settings = read_json(generation) if generation.exists() else json_fields
    absent = dict.fromkeys(SPECIAL_TOKENS)  # files leave out what is null
    vocabularies = read_tokenizers(directory, fields["model_type"])
    return read_arrays(directory), fields, Fields(absent | settings), vocabularies


def _read_module(module: Any) -> tuple[Arrays, Fields, Fields]:
    """float16 and bfloat16, which NumPy has not, as float32."""
    if not hasattr(module, "can_generate"):
        raise TypeError(
            "model must be a module of transformers, the path of a directory, or a mapping of "
            f"arrays, got {type(module).__name__}"
        )
    if not module.can_generate():
        raise UnsupportedFeature(f"{type(module).__name__} has no language-model head")
    arrays = {
        name: (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy(force=True)
        for name, x in module.state_dict().items()
    }
    return arrays, Fields(module.config.to_dict()), Fields(module.generation_config.to_dict())


def _family(c: Fields) -> Any:
    if c["model_type"] not in FAMILIES:
        raise UnsupportedFeature(
            f"model_type = {c['model_type']!r}: supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[c["model_type"]]


def _in_one_dtype(arrays: Arrays) -> Arrays:
    """All floating-point arrays as float64 if one of them is, and as float32 otherwise."""
    given = {name: np.asarray(x) for name, x in arrays.items()}
    dtypes = {x.dtype.name for x in given.values()}
    dtype = "float64" if "float64" in dtypes else "float32"
    floating = {"float16", "bfloat16", "float32", "float64"}
    return {
        name: x.astype(dtype, copy=False) if x.dtype.name in floating else x
        for name, x in given.items()
    }


def _special_tokens(settings: Fields) -> SpecialTokens:
    """As transformers reads them: bos begins where no start is set, eos pads where no pad is."""
    start, eos, pad = (settings[name] for name in SPECIAL_TOKENS[:3])
    if start is None:
        start = settings["bos_token_id"]
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    if pad is None and eos_ids:
        pad = eos_ids[0]
    for name, token in (("decoder_start_token_id", start), ("pad_token_id", pad)):
        if token is None:
            raise ValueError(f"the model sets no {name}: give one in generation_config=")
    forced_eos = settings.get("forced_eos_token_id")
    if isinstance(forced_eos, list):
        if len(forced_eos) > 1:
            raise UnsupportedFeature(f"forced_eos_token_id = {forced_eos}: more than one")
        (forced_eos,) = forced_eos
    banned = [word[0] for word in settings.get("bad_words_ids") or () if len(word) == 1]
    return SpecialTokens(
        decoder_start_id=start,
        eos_ids=eos_ids,
        pad_id=pad,
        forced_bos_id=settings.get("forced_bos_token_id"),
        forced_eos_id=forced_eos,
        suppressed_ids=(*(settings.get("suppress_tokens") or ()), *banned),
        begin_suppressed_ids=tuple(settings.get("begin_suppress_tokens") or ()),
    )
