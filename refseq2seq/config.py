"""Every numerical convention of a model, as a named field.

Encoder-decoder Transformers share their equations and differ in conventions: the positions of
norms, the use of their eps, the variant of GELU, the encoding of positions. Each convention is
a field here. Fields have no defaults, because a default would be a guess about another
library's model; `refseq2seq.presets` has two complete configurations.
"""

import dataclasses
import reprlib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self

from .shown import Shown

NormKind = Literal["layer_norm", "rms_norm", "l2_norm", "std_norm"]
Activation = Literal["relu", "relu_squared", "silu", "gelu_erf", "gelu_tanh"]
SinusoidLayout = Literal["interleaved", "concatenated", "tensor2tensor"]

MAX_LIST = 2**19
"""The maximum length of a list in JSON; the longest is a vocabulary's symbols."""

MAX_CONFIGS = 2**14
"""That of a list of configs, one for each layer. A file cannot have arrays for as many layers."""


class Config(Shown):
    """Base of dataclasses that check fields against annotations and convert to JSON's types."""

    TYPE: ClassVar[str] = ""
    """The ``type`` in JSON, which distinguishes the members of a union."""

    def __post_init__(self) -> None:
        for name, annotation in annotations(type(self)).items():
            check_type(f"{type(self).__name__}.{name}", annotation, getattr(self, name))
        self._check()

    def _check(self) -> None:
        """Raise unless the fields, which have their types, are consistent."""

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            where = f"{type(self).__name__}.{name}"
            raise ValueError(f"{where} {rule}, got {getattr(self, name)}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) >= 1, name, "must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of JSON's types; the members of a union have a key ``type``."""
        return _to_json(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """The inverse of `to_dict`. A ValueError or TypeError names the field that does not fit."""
        if not isinstance(fields, dict):
            raise TypeError(f"{cls.__name__} must be a dict of fields, got {type(fields).__name__}")
        return from_json(cls.__name__, cls, fields)


@dataclass(frozen=True, kw_only=True)
class NormConfig(Config):
    """One kind of normalisation over the last axis; the functions are in `refseq2seq.ops`.

    ``layer_norm`` adds eps to the variance, ``rms_norm`` to the mean square; ``l2_norm``
    clamps the Euclidean norm from below by eps; ``std_norm`` adds eps to the unbiased
    standard deviation. The result is multiplied by a ``gain``, one number for each element
    (``vector``) or one for all (``scalar``), if there is one.
    """

    kind: NormKind
    eps: float
    gain: Literal["vector", "scalar", "none"]
    bias: bool

    def _check(self) -> None:
        self._require(self.eps >= 0, "eps", "must not be negative")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    """Conventions of one multi-head attention.

    ``scale`` multiplies the scores (1/sqrt(d_k) in Vaswani et al. 2017, 1 in T5).
    ``biases`` lists the projections with a bias. With fewer key-value heads than heads, query
    head h uses key-value head ``h // (n_heads // n_kv_heads)`` if ``grouped`` and
    ``h % n_kv_heads`` if ``tiled``. ``qk_norm`` normalises each head's queries and keys. Every
    query may attend to ``n_learned_kv`` learned key-value pairs. ``gate`` multiplies the heads'
    output by sigmoid(x W_gate + b_gate), one gate per value or per head. With ``head_scale``, one
    learned number multiplies the output of each head. ``softcap`` bounds the scores, see
    `refseq2seq.ops.soft_cap`.
    """

    n_heads: int
    n_kv_heads: int
    kv_head_order: Literal["grouped", "tiled"]
    d_k: int
    d_v: int
    scale: float
    biases: tuple[Literal["q", "k", "v", "o"], ...]
    qk_norm: NormConfig | None
    n_learned_kv: int
    gate: Literal["none", "per_value", "per_head"]
    head_scale: bool
    softcap: float | None

    def _check(self) -> None:
        self._require_positive("n_heads", "n_kv_heads", "d_k", "d_v")
        self._require(self.softcap is None or self.softcap > 0, "softcap", "must be more than 0")
        divides = self.n_heads % self.n_kv_heads == 0
        self._require(divides, "n_kv_heads", f"must divide n_heads = {self.n_heads}")


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(Config):
    """activation(x W_in + b_in) W_out + b_out, or, if ``gated``,
    (activation(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out.

    ``hidden_norm`` is applied to the factor of W_out.
    """

    d_ff: int
    activation: Activation
    gated: bool
    biases: tuple[Literal["in", "gate", "out"], ...]
    hidden_norm: NormConfig | None

    def _check(self) -> None:
        self._require_positive("d_ff")
        if "gate" in self.biases and not self.gated:
            raise ValueError("FeedForwardConfig.biases names 'gate', but gated is False")


@dataclass(frozen=True, kw_only=True)
class LearnedPositions(Config):
    """Row ``position + offset`` of a learned table, times ``scale``, added to the embedding."""

    TYPE: ClassVar = "learned"
    n_positions: int
    offset: int
    scale: float

    def _check(self) -> None:
        fits = self.n_positions > self.offset
        self._require(fits, "n_positions", f"must be more than offset = {self.offset}")


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions(Config):
    """Sines and cosines of ``position + offset``, times ``scale``, added to the embedding."""

    TYPE: ClassVar = "sinusoidal"
    layout: SinusoidLayout
    offset: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class RotaryPositions(Config):
    """The first ``d_rotary`` elements of each query and key are rotated by their position."""

    TYPE: ClassVar = "rotary"
    d_rotary: int
    base: float
    pairing: Literal["interleaved", "halves"]

    def _check(self) -> None:
        self._require(self.base > 0, "base", "must be more than 0")


@dataclass(frozen=True, kw_only=True)
class AlibiPositions(Config):
    """``-slope * |query position - key position|`` is added to the scores of each head."""

    TYPE: ClassVar = "alibi"
    slopes: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BucketedPositions(Config):
    """T5's relative positions: a learned bias per head and bucket of distances, times ``scale``.

    If ``per_layer``, each layer has its own table; otherwise all share one.
    """

    TYPE: ClassVar = "bucketed"
    n_buckets: int
    max_distance: int
    bidirectional: bool
    per_layer: bool
    scale: float

    def _check(self) -> None:
        one_way = self.n_buckets // 2 if self.bidirectional else self.n_buckets
        if one_way < 2:
            raise ValueError(
                "BucketedPositions.n_buckets must be at least 2 for each direction, "
                f"got {self.n_buckets} with bidirectional = {self.bidirectional}"
            )
        rule = f"must be more than {one_way // 2}, up to which each distance has its own bucket"
        self._require(self.max_distance > one_way // 2, "max_distance", rule)


@dataclass(frozen=True, kw_only=True)
class TokenInput(Config):
    """Token ids (batch, n); the embedding of a token is a row of a table."""

    TYPE: ClassVar = "tokens"
    vocab_size: int

    def _check(self) -> None:
        self._require_positive("vocab_size")

    def length(self, n: int) -> int:
        """The number of embeddings of n tokens: n."""
        return n


@dataclass(frozen=True, kw_only=True)
class FrameLayerConfig(Config):
    """norm_after(activation(windows(norm_before(x)) W_in + b_in)), a convolution over time.

    Each window has ``window`` successive vectors, and windows are ``stride`` apart. There are
    ``padding`` zeros before and after the frames: see `refseq2seq.frames.windows`.
    """

    d_out: int
    window: int
    stride: int
    padding: int
    bias: bool
    activation: Literal["none", Activation]
    norm_before: NormConfig | None
    norm_after: NormConfig | None

    def _check(self) -> None:
        self._require_positive("d_out", "window", "stride")
        rule = f"must be less than half of window = {self.window}"  # or windows of zeros alone
        self._require(2 * self.padding < self.window, "padding", rule)

    def length(self, n: int) -> int:
        """The number of windows of n vectors."""
        return max(0, (n + 2 * self.padding - self.window) // self.stride + 1)


@dataclass(frozen=True, kw_only=True)
class FrameInput(Config):
    """Vectors (batch, n_frames, n_features): the frames of speech, the patches of an image, or the
    output of another encoder. ``layers`` map them to embeddings, and ``n_class_tokens`` learned
    vectors are prepended.
    """

    TYPE: ClassVar = "frames"
    n_features: int
    layers: tuple[FrameLayerConfig, ...]
    n_class_tokens: int

    def _check(self) -> None:
        self._require_positive("n_features")

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the frames and of the output of each layer."""
        return self.n_features, *(layer.d_out for layer in self.layers)

    def length(self, n: int) -> int:
        """The number of embeddings of n frames; 0 if they fill no window."""
        for layer in self.layers:
            n = layer.length(n)
        return n + self.n_class_tokens if n else 0


@dataclass(frozen=True, kw_only=True)
class WindowConfig(Config):
    """A query at position i attends to the positions i - ``back`` to i + ``ahead`` only."""

    back: int
    ahead: int


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """An encoder or a decoder.

    ``input`` is what it reads; a decoder reads tokens. ``embedding_scale`` multiplies the
    embeddings, ``positions`` are added to them, and ``embedding_norm`` is a norm before or after
    that; ``final_norm`` is one after the last layer. An encoder may have 0 layers.
    ``relative_positions`` act inside self-attention, and ``windows`` limit it: a window or None for
    each layer, or () for no windows. ``norm_positions`` lists the norms of each sublayer:

        x = after(x + branch(sublayer(before(x))))

    so that ("before",) is pre-norm, ("after",) post-norm and ("before", "branch") the
    sandwich norm. ``n_register_tokens`` learned vectors are prepended to the sequence and
    removed from the output.
    """

    input: TokenInput | FrameInput
    d_model: int
    n_layers: int
    embedding_scale: float
    embedding_norm: Literal["none", "before_positions", "after_positions"]
    positions: LearnedPositions | SinusoidalPositions | None
    relative_positions: RotaryPositions | AlibiPositions | BucketedPositions | None
    n_register_tokens: int
    windows: tuple[WindowConfig | None, ...]
    norm: NormConfig
    norm_positions: tuple[Literal["before", "branch", "after"], ...]
    final_norm: bool
    self_attention: AttentionConfig
    cross_attention: AttentionConfig | None
    feed_forward: FeedForwardConfig

    def _check(self) -> None:
        self._require_positive("d_model")
        relative, attention = self.relative_positions, self.self_attention
        if isinstance(self.input, FrameInput) and self.input.widths[-1] != self.d_model:
            raise ValueError(
                f"FrameInput.layers must end with the width d_model = {self.d_model}, got "
                f"{self.input.widths[-1]}"
            )
        if self.windows:
            rule = f"must have one entry for each of n_layers = {self.n_layers}"
            self._require(len(self.windows) == self.n_layers, "windows", rule)
            self._require(not self.n_register_tokens, "n_register_tokens", "must be 0 with windows")
        if isinstance(relative, AlibiPositions) and len(relative.slopes) != attention.n_heads:
            raise ValueError(
                f"AlibiPositions.slopes must have one slope per head, {attention.n_heads}, "
                f"got {len(relative.slopes)}"
            )
        if isinstance(relative, RotaryPositions) and (
            relative.d_rotary % 2 or not 0 < relative.d_rotary <= attention.d_k
        ):
            raise ValueError(
                "RotaryPositions.d_rotary must be even, positive and at most "
                f"d_k = {attention.d_k}, got {relative.d_rotary}"
            )

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the stack can read, 0 if it reads frames."""
        return self.input.vocab_size if isinstance(self.input, TokenInput) else 0

    @property
    def max_length(self) -> int | None:
        """The maximum number of tokens, by the size of the position table; None without a table."""
        if isinstance(self.positions, LearnedPositions):
            return self.positions.n_positions - self.positions.offset
        return None


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """An encoder-decoder and the meaning of its special tokens.

    ``tied_embeddings``: encoder and decoder share one table. ``tied_logits``: the
    unembedding is the decoder's table transposed. ``logits_scale`` multiplies the last
    hidden state before the unembedding; ``logits_softcap`` bounds the logits, see
    `refseq2seq.ops.soft_cap`. ``decoder_start_id`` begins a target,
    any of ``eos_ids`` ends it, ``pad_id`` follows. ``forced_bos_id`` is the first new token after
    a prefix of one token, regardless of the logits, ``forced_eos_id`` the last one at the maximum
    length; ``suppressed_ids`` are never chosen, ``begin_suppressed_ids`` not as the first new token
    that is not forced.
    """

    encoder: StackConfig
    decoder: StackConfig
    tied_embeddings: bool
    tied_logits: bool
    logits_scale: float
    logits_bias: bool
    logits_softcap: float | None
    decoder_start_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    forced_bos_id: int | None
    forced_eos_id: int | None
    suppressed_ids: tuple[int, ...]
    begin_suppressed_ids: tuple[int, ...]

    def _check(self) -> None:
        if self.encoder.cross_attention is not None:
            raise ValueError("ModelConfig.encoder.cross_attention must be None")
        if self.decoder.cross_attention is None:
            raise ValueError("ModelConfig.decoder.cross_attention must not be None")
        if self.decoder.n_register_tokens:
            raise ValueError(
                "ModelConfig.decoder.n_register_tokens must be 0: only an encoder has them"
            )
        if not isinstance(self.decoder.input, TokenInput) or not self.decoder.n_layers:
            raise ValueError("ModelConfig.decoder must read tokens and have at least one layer")
        cap = self.logits_softcap
        self._require(cap is None or cap > 0, "logits_softcap", "must be more than 0")
        for name in (
            "decoder_start_id", "eos_ids", "pad_id", "forced_bos_id", "forced_eos_id",
            "suppressed_ids", "begin_suppressed_ids",
        ):  # fmt: skip
            ids = getattr(self, name)
            for token in ids if isinstance(ids, tuple) else (ids,):
                if token is not None and not 0 <= token < self.decoder.vocab_size:
                    raise ValueError(
                        f"ModelConfig.{name} must be in the decoder's vocabulary, "
                        f"0 to {self.decoder.vocab_size - 1}, got {token}"
                    )
        if self.tied_embeddings:
            tables = [(s.vocab_size, s.d_model) for s in (self.encoder, self.decoder)]
            if tables[0] != tables[1]:
                raise ValueError(
                    "ModelConfig.tied_embeddings needs one vocabulary and width, got "
                    f"{tables[0]} for the encoder and {tables[1]} for the decoder"
                )


_hints = cache(typing.get_type_hints)


def annotations(config: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = _hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def check_type(where: str, annotation: Any, value: Any) -> None:
    """Raise unless ``value`` has the annotated type; ints are 0 to 2**31 - 1, floats finite."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if not any(type(value) is type(x) and value == x for x in members):  # 1 is not True
            raise ValueError(f"{where} must be one of {members}, got {value!r}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise TypeError(f"{where} must be a tuple, got {type(value).__name__}")
        for kind, member in zip(_of_members(where, members, value), value, strict=True):
            check_type(where, kind, member)
    elif annotation is int or (int in members and value is not None):
        if type(value) is not int:
            raise TypeError(f"{where} must be an int, got {type(value).__name__}")
        if not 0 <= value < 2**31:
            excess = "negative" if value < 0 else "2**31 or more"
            raise ValueError(f"{where} must not be {excess}, got {reprlib.repr(value)}")
    elif annotation is float or (float in members and value is not None):
        if type(value) is not float:
            raise TypeError(f"{where} must be a Python float, got {type(value).__name__}")
        if not abs(value) < float("inf"):
            raise ValueError(f"{where} must be finite, got {value}")
    elif not isinstance(value, members or annotation):
        names = " or ".join(t.__name__ for t in members or (annotation,))
        raise TypeError(f"{where} must be {names}, got {type(value).__name__}")


def _of_members(where: str, members: tuple[Any, ...], value: Any) -> Sequence[Any]:
    """The type of each entry of a tuple, which has any length if ``members`` ends with ``...``."""
    if members[-1] is Ellipsis:
        return members[:1] * len(value)
    if len(value) != len(members):
        raise ValueError(f"{where} must have {len(members)} entries, got {reprlib.repr(value)}")
    return members


def _to_json(value: Any) -> Any:
    if isinstance(value, Config):
        fields = {name: _to_json(getattr(value, name)) for name in annotations(type(value))}
        return {"type": value.TYPE} | fields if value.TYPE else fields
    return [_to_json(member) for member in value] if isinstance(value, tuple) else value


def from_json(where: str, annotation: Any, value: Any) -> Any:
    """Convert ``value`` from JSON's types to the annotated type; `check_type` checks the result."""
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and isinstance(value, list):
        most = MAX_CONFIGS if dict in map(type, value) else MAX_LIST
        if len(value) > most:
            raise ValueError(f"{where} must have at most {most:,} entries, got {len(value):,}")
        kinds_of = _of_members(where, members, value)
        return tuple(from_json(where, k, x) for k, x in zip(kinds_of, value, strict=True))
    types = [t for t in members or (annotation,) if isinstance(t, type)]
    kinds = {config.TYPE: config for config in types if issubclass(config, Config)}
    if not kinds or not isinstance(value, dict):
        return value
    found = dict(value)
    kind = "" if "" in kinds else found.pop("type", None)
    if kind not in list(kinds):  # a list, because JSON's lists and objects have no hash
        raise ValueError(f"{where}.type must be one of {sorted(kinds)}, got {kind!r}")
    fields = annotations(kinds[kind])
    if missing := sorted(fields.keys() - found.keys()):
        raise ValueError(f"{where} lacks the fields {missing}")
    if unknown := sorted(found.keys() - fields.keys()):
        raise ValueError(f"{where} has the unknown fields {unknown}")
    return kinds[kind](**{n: from_json(f"{where}.{n}", t, found[n]) for n, t in fields.items()})
