"""Converter for directories that CTranslate2 3.0 to 4.8 wrote, without CTranslate2.

`files` describes the file ``model.bin``, and `spec` the meaning of its variables.
"""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checks import UnsupportedFeature
from ...config import check_type, from_json
from ...files.reading import FileError, file_errors, read_json
from ...model import Model
from ...speech.whisper import END, START
from ..huggingface.files import INDEX, WEIGHTS
from ..table import special_tokens
from . import files, spec, vocabulary

MODEL, CONFIG = "model.bin", "config.json"
FIELDS: dict[str, Any] = {
    "unk_token": str, "bos_token": str, "eos_token": str, "decoder_start_token": str | None,
    "add_source_bos": bool, "add_source_eos": bool, "layer_norm_epsilon": float | None,
}  # fmt: skip
Ids = tuple[int, ...]
FIELDS_OF_SPEECH = {
    "suppress_ids": Ids, "suppress_ids_begin": Ids, "layer_norm_epsilon": float | None,
}  # fmt: skip


def is_ctranslate2(directory: Path) -> bool:
    """Whether a directory has a ``model.bin`` of CTranslate2, and no safetensors."""
    others = any(os.path.lexists(directory / name) for name in (WEIGHTS, INDEX))
    return not others and files.has_header(directory / MODEL)


def from_ctranslate2(
    directory: str | os.PathLike[str], *, decoder_start_token: str | None = None
) -> Model:
    """Convert a directory of CTranslate2: ``model.bin``, ``config.json`` and the vocabularies.

    Parameters
    ----------
    directory : path
        The directory of an encoder-decoder: BART, mBART, Marian, M2M100, NLLB, Pegasus, T5,
        Whisper, or a Transformer of fairseq, Marian or OpenNMT.
    decoder_start_token : str, optional
        The token that begins a target. It replaces that of ``config.json``. It is needed for
        models whose caller passes it to CTranslate2, such as mBART.

    Returns
    -------
    Model
        In float32, which represents float16 and bfloat16 exactly. A weight of int8 or int16
        becomes its number times the reciprocal of its scale, as in CTranslate2 with
        ``compute_type="float32"``: see :doc:`/peers`.

    Raises
    ------
    UnsupportedFeature
        If the model is not one of these, or has a part that is not implemented.
    FileError
        If a file is damaged, contains NaN or infinity, or does not fit the others. Also if no
        token begins a target, or if ``decoder_start_token`` is given for Marian.
    FileNotFoundError, NotADirectoryError
        If a file is missing, or the path is that of a file.

    Notes
    -----
    A source must contain the tokens that a caller passes to CTranslate2, and those that CTranslate2
    adds: ``bos_token`` before the source if ``config.json`` has ``add_source_bos``, and
    ``eos_token`` after it for ``add_source_eos``. The ``source_vocabulary`` is that of
    ``tokenizer.json`` if there is one, or of ``source.spm`` for Marian; it adds all these tokens.
    Otherwise a text is a sequence of tokens separated by spaces. The text must then contain
    language codes and the ``</s>`` that most models of transformers expect from the caller.

    CTranslate2 has no padding token; here it is ``eos_token``. Marian begins a target with a vector
    of zeros; here an additional last token has this embedding, and the probability 0.

    The directory has no generation settings. The defaults of CTranslate2's ``translate_batch`` are
    two beams, a minimum of 1 and a maximum of 256 tokens, and a stop as in `beam_search` with
    ``early_stopping=True``. ``vmap.txt`` is ignored, as with ``use_vmap=False``.

    Whisper takes frames (batch, n_frames, n_mels); CTranslate2 swaps the last two axes. Tokens of
    ``suppress_ids`` and ``suppress_ids_begin`` are suppressed, as is the default there. For its
    prefix, see `refseq2seq.speech.prompt`. The defaults of CTranslate2's ``generate`` are five
    beams and 224 new tokens.
    """
    directory = Path(directory)
    if directory.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file; give its directory", str(directory))
    with file_errors(directory / MODEL, UnsupportedFeature, FileError):
        name, variables = files.read(directory / MODEL)
        read, is_speech = spec.Spec(variables), name == "WhisperSpec"
        if is_speech != (read.n_features > 0):
            raise FileError(f"{name} {'with' if read.n_features else 'without'} convolutions")
        if is_speech:
            return _speech(directory, read, decoder_start_token)
        sizes = [read.shape(name)[0] for name in spec.TABLES[:2]]
        # The start is a vector of zeros, whatever the first token is.
        is_marian = bool(read.attributes.pop("decoder/start_from_zero_embedding", 0))
    with file_errors(directory, UnsupportedFeature, FileError):
        config = _config(directory / CONFIG, FIELDS)
        bos, eos, start = (config[f"{n}_token"] for n in ("bos", "eos", "decoder_start"))
        start = start if decoder_start_token is None else decoder_start_token
        source, target = (
            vocabulary.SpacedTokens(
                symbols=vocabulary.read_tokens(
                    directory, ("shared_vocabulary", f"{side}_vocabulary"), size
                ),
                first=(bos,) if config["add_source_bos"] else (),
                last=(eos,) if config["add_source_eos"] else (),
                unknown=config["unk_token"],
                special=tuple(token for token in (bos, eos, start) if token is not None),
            )
            for side, size in zip(("source", "target"), sizes, strict=True)
        )
        eos_id = target.id(eos)
        if is_marian:
            if decoder_start_token is not None:
                raise ValueError(f"it begins a target with zeros, not {decoder_start_token!r}")
            spec.add_zero_token(read)
            tokens = special_tokens(sizes[1], (eos_id,), pad_id=sizes[1])
            tokens["suppressed_ids"] = (sizes[1],)
        elif start is None:
            raise ValueError(
                "no token begins a target: call from_ctranslate2(directory, "
                "decoder_start_token=...), with the code of the target language for mBART"
            )
        else:
            tokens = special_tokens(target.id(start), (eos_id,), pad_id=eos_id)
        model = spec.convert(read, config["layer_norm_epsilon"], tokens)
        tokenizers = vocabulary.tokenizers(directory, source, target, is_marian)
    return replace(model, source_vocabulary=tokenizers[0], target_vocabulary=tokenizers[1])


def _speech(directory: Path, read: spec.Spec, start: str | None) -> Model:
    """Whisper, whose ``config.json`` names no special tokens."""
    with file_errors(directory, UnsupportedFeature, FileError):
        config = _config(directory / CONFIG, FIELDS_OF_SPEECH)
        size = read.shape(spec.TABLES[1])[0]
        symbols = vocabulary.read_tokens(directory, ("vocabulary", "shared_vocabulary"), size)
        target = vocabulary.SpacedTokens(
            symbols=symbols,
            first=(),
            last=(),
            unknown=END,
            special=tuple(token for token in symbols if re.fullmatch(r"<\|.+\|>", token)),
        )
        end = target.id(END)
        tokens = special_tokens(target.id(start or START), (end,), pad_id=end)
        tokens["suppressed_ids"] = config["suppress_ids"]
        tokens["begin_suppressed_ids"] = config["suppress_ids_begin"]
        model = spec.convert(read, config["layer_norm_epsilon"], tokens)
        return replace(model, target_vocabulary=vocabulary.tokenizer_of_speech(directory, target))


def _config(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``config.json`` that the engine reads."""
    with file_errors(path, UnsupportedFeature, FileError):
        fields = {"layer_norm_epsilon": None} | read_json(path)
        if fields.get("quantization_type"):
            raise UnsupportedFeature(f"quantization_type = {fields['quantization_type']}, of AWQ")
        for name, kind in expected.items():
            if name not in fields:
                raise FileError(f"it has no field {name}")
            if kind is Ids:
                fields[name] = from_json(name, kind, fields[name] or [])
            check_type(name, kind, fields[name])
    return fields
