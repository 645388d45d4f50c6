"""The generation settings of a checkpoint: how its authors decode it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin

from .config import Config, annotations, from_json

FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical", "epsilon", "eta")


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """What a checkpoint's generation config asks for, in the names of this package.

    The defaults are those of Hugging Face transformers 5. `refseq2seq.generate_as_configured`
    applies the settings. The start token and the tokens that are forced, suppressed or end a target
    are fields of `refseq2seq.config.ModelConfig`.
    """

    max_new_tokens: int | None = None  # of two maxima, the smaller one applies
    max_length: int | None = None  # prefix included
    min_new_tokens: int | None = None
    min_length: int = 0  # prefix included; without effect beside min_new_tokens
    num_return_sequences: int = 1
    prefix: tuple[int, ...] = ()  # the tokens after the start token that begin every target

    beams: int = 1  # 1 = no beam search
    length_penalty: float = 1.0  # the exponent of the length
    early_stopping: Literal[True, False, "never"] = False

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50  # 0 = all tokens; ties are kept
    top_p: float = 1.0
    min_p: float | None = None
    typical: float = 1.0
    epsilon: float = 0.0
    eta: float = 0.0

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # token ids and their bias
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0  # 0 = none
    encoder_no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()  # without those in the config's suppressed_ids
    exponential_decay: tuple[int, float] = (0, 1.0)  # start, in new tokens, and factor
    renormalize_logits: bool = False

    not_implemented: tuple[tuple[str, str], ...] = ()  # names and values in their own library

    def _check(self) -> None:
        self._require_positive("beams", "num_return_sequences")

    @property
    def asked(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in values.items() if value != defaults[name]}

    @property
    def in_effect(self) -> dict[str, Any]:
        """The fields of `asked`, without filters if nothing is sampled, nor rules of beam search if
        there is one beam.
        """
        moot = set(() if self.do_sample else FILTERS)
        moot |= set(() if self.beams > 1 else ("length_penalty", "early_stopping"))
        return {name: value for name, value in self.asked.items() if name not in moot}

    def __str__(self) -> str:
        asked = self.asked
        asked |= dict(asked.pop("not_implemented", ()))
        return ", ".join(f"{name}={value}" for name, value in asked.items())

    def with_fields(self, fields: dict[str, Any]) -> Self:
        """The settings with other fields. Values may be lists, dicts or numbers of NumPy.

        Raises
        ------
        TypeError, ValueError
            If there is no such field, or a value does not have its type. The message names it.
        """
        types = annotations(type(self))
        if unknown := sorted(fields.keys() - types.keys()):
            raise ValueError(f"Settings has no field {unknown[0]!r}; its fields are {[*types]}")
        plain = {name: _plain(types[name], value) for name, value in fields.items()}
        parsed = {name: from_json(name, types[name], value) for name, value in plain.items()}
        return dataclasses.replace(self, **parsed)


def _plain(annotation: Any, value: Any) -> Any:
    """The value in the types of JSON. An integer becomes a float where the field is one."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        value = list(value.items())
    if get_origin(annotation) is tuple and isinstance(value, list | tuple):
        kinds = get_args(annotation)
        if kinds[-1] is Ellipsis or len(kinds) != len(value):  # a wrong length is reported later
            kinds = kinds[:1] * len(value)
        return [_plain(kind, x) for kind, x in zip(kinds, value, strict=True)]
    if annotation in (float, float | None) and type(value) is int and abs(value) < 2**1023:
        return float(value)
    return value
