"""Whisper: a pre-norm BART without biases of k, whose encoder reads speech.

Two convolutions of width 3 with exact GELU map frames of ``num_mel_bins`` features to half as many
embeddings. transformers never applies ``scale_embedding``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ...config import FrameInput, ModelConfig, StackConfig
from ...presets import plain_frame_layer
from ..table import SpecialTokens, Table, Transform, kernel, module_rows, same
from . import bart
from .common import Arrays, Conversion, Fields, Ties, token_tables

DECODER, HEAD = bart.DECODER, "proj_out.weight"
FAMILY = bart.Family(norm="before", embedding_norm=bart.NO_NORM, positions="learned", offset=0)
POSITIONS = {"encoder": "max_source_positions", "decoder": "max_target_positions"}
STRIDES = (1, 2)

# Fields of a generation config that determine the tokens after the start token.
PROMPT = {
    "language", "lang_to_id", "task", "task_to_id", "forced_decoder_ids", "no_timestamps_token_id",
}  # fmt: skip


def completed(json_fields: dict[str, Any]) -> Fields:
    """The fields of a config.json, with the defaults of its config class for missing ones."""
    return Fields({"is_encoder_decoder": True, "tie_word_embeddings": True} | json_fields)


def convert(c: Fields, arrays: Arrays, tokens: SpecialTokens) -> Conversion:
    """The configuration and the table of arrays."""
    tied = (DECODER, HEAD) if c["tie_word_embeddings"] else ()
    tables, ties = token_tables(arrays, bart.ENCODER, DECODER, HEAD, tied=tied)
    config = configured(c, tokens, ties)
    table = {
        **module_rows("encoder.", "model.encoder.", bart.STACK, norm="before"),
        **module_rows("decoder.", "model.decoder.", bart.STACK, norm="before"),
        **convolutions("model.encoder."),
        **tables,
    }
    return Conversion(config, table, {DECODER, HEAD})


def configured(c: Fields, tokens: SpecialTokens, ties: Ties) -> ModelConfig:
    """The configuration for the fields of a config."""
    return ModelConfig(
        encoder=replace(_stack(c, "encoder"), input=frames(c["num_mel_bins"], c["d_model"])),
        decoder=_stack(c, "decoder"),
        logits_scale=1.0,
        logits_bias=False,
        logits_softcap=None,
        **ties,
        **tokens,
    )


def convolutions(theirs: str) -> Table:
    """The rows of the two convolutions; ``theirs`` is the prefix of their names."""
    table: dict[str, tuple[str, Transform]] = {}
    for i in range(len(STRIDES)):
        table[f"encoder.frame_layers.{i}.w_in"] = f"{theirs}conv{i + 1}.weight", kernel
        table[f"encoder.frame_layers.{i}.b_in"] = f"{theirs}conv{i + 1}.bias", same
    return table


def frames(n_features: int, d_model: int) -> FrameInput:
    """The two convolutions of Whisper's encoder."""
    layers = (
        plain_frame_layer(d_model, window=3, stride=stride, padding=1, activation="gelu_erf")
        for stride in STRIDES
    )
    return FrameInput(n_features=n_features, layers=tuple(layers), n_class_tokens=0)


def _stack(c: Fields, side: Literal["encoder", "decoder"]) -> StackConfig:
    of_bart = {"max_position_embeddings": c[POSITIONS[side]], "scale_embedding": False}
    stack = bart.stack(Fields(c | of_bart), FAMILY, side, c["vocab_size"])
    attention = replace(stack.self_attention, biases=("q", "v", "o"))
    cross = attention if side == "decoder" else None
    return replace(stack, self_attention=attention, cross_attention=cross)


def prompt(generation: Fields, c: Fields) -> tuple[Fields, tuple[int, ...]]:
    """The generation config without the fields of `PROMPT`, and the tokens that they determine.

    These are the language, the task and ``<|notimestamps|>``, which follow the start token. If no
    field has the language, transformers detects it in the speech; here ``language`` is then a
    setting that is not implemented.
    """
    rest = {name: value for name, value in generation.items() if name not in PROMPT}
    language, task = (generation.get(name) for name in ("language", "task"))
    languages, tasks = (_ids(generation, name) for name in ("lang_to_id", "task_to_id"))
    tokens: list[int | None] = []
    if language is None and task is None:
        forced = generation.get("forced_decoder_ids") or c.get("forced_decoder_ids", ())
        if [place for place, _ in forced] != [*range(1, len(forced) + 1)]:
            rest["forced_decoder_ids"] = forced
        tokens = [token for _, token in forced]
    if language is not None:
        names = [
            name for name in (language.lower(), f"<|{language.lower()}|>") if name in languages
        ]
        if not names:
            rest["language"] = f"{language}, which is no code of the model's languages"
        tokens = [languages[name] for name in names[:1]]
        task = "transcribe" if task is None and tasks else task
    elif languages and tokens[:1] in ([], [None]):
        rest["language"] = "to be detected"
    if task in tasks:
        tokens.append(tasks[task])
    elif task is not None:
        rest["task"] = task
    no_times = generation.get("no_timestamps_token_id")
    has_times, ends = bool(rest.get("return_timestamps")), tokens[-1:] == [no_times]
    if has_times and ends:
        tokens.pop()
    elif not has_times and not ends:
        tokens.append(no_times)
    found = tuple(token for token in tokens if token is not None)
    if type(rest.get("max_length")) is int:  # without the prompt, which the positions include
        rest["max_new_tokens"], rest["max_length"] = rest["max_length"], c["max_target_positions"]
    return Fields(rest), found


def _ids(generation: Fields, name: str) -> dict[str, int]:
    """A field that maps names to tokens."""
    table = dict.get(generation, name) or {}
    if not isinstance(table, Mapping) or not all(type(i) is int for i in table.values()):
        raise ValueError(f"the config's {name} must map names to token ids, got {table!r:.99}")
    return dict(table)
