"""A complete test case: a model, its inputs, and the options of a generation.

A case consists of plain values, so that it can be printed, saved in a file and run again:

    >>> from refseq2seq.testing.cases import Case, conventions
    >>> case = Case(conventions(**{"encoder.norm.kind": "rms_norm"}), seed=3, source=[[4, 1]])
    >>> case.logits().shape
    (1, 1, 5)
    >>> print(case)
    from refseq2seq.testing.cases import Case, conventions
    case = Case(conventions(**{'encoder.norm.kind': 'rms_norm'}), seed=3, source=[[4, 1]])
    model, logits, generation = case.model, case.logits(), case.generation()

`refseq2seq.testing.strategies.cases` draws cases and shrinks them to the smallest that fail.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..backend import Array
from ..config import ModelConfig, NormConfig, TokenInput
from ..generation.loop import Generation, generate
from ..generation.sampling import greedy, sample
from ..model import Model, forward
from ..params import Params, build_params, named_arrays, random_params
from ..presets import plain_attention, plain_feed_forward, plain_model, plain_stack

PARAMETERS = ("well_scaled", "large", "tiny_variances", "outliers", "near_ties")


PLAIN = plain_model(
    *(
        plain_stack(
            plain_attention(n_heads=1, d_k=2),
            cross=cross,
            input=TokenInput(vocab_size=5),
            d_model=2,
            n_layers=1,
            positions=None,
            norm=NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=False),
            norm_positions=("before",),
            final_norm=False,
            feed_forward=plain_feed_forward(2, "relu", biases=()),
        )
        for cross in (False, True)
    ),
    tied=False,
    decoder_start_id=0,
    eos_ids=(),
    pad_id=0,
)
"""The simplest conventions of the smallest model, to which cases shrink."""


def conventions(**changes: Any) -> ModelConfig:
    """The conventions `PLAIN` with some fields changed.

    Parameters
    ----------
    **changes
        New values by the path of the field, such as ``**{"decoder.norm.eps": 1e-6}``. Values
        have the form that they have in `ModelConfig.to_dict`.

    Examples
    --------
    >>> conventions(logits_scale=0.5, **{"encoder.n_layers": 3}).encoder.n_layers
    3
    """
    fields = PLAIN.to_dict()
    for path, value in changes.items():
        *places, name = path.split(".")
        inner = fields
        for place in places:
            inner = inner[place]
        if name not in inner:
            raise ValueError(f"changes must name fields of a ModelConfig, got {path}")
        inner[name] = value
    return ModelConfig.from_dict(fields)


def changed_fields(config: ModelConfig) -> dict[str, Any]:
    """The arguments with which `conventions` creates ``config``: values by path."""

    def walk(plain: Any, other: Any, path: str) -> dict[str, Any]:
        if not isinstance(plain, dict) or [*plain] != [*(other or ())]:
            return {} if plain == other else {path: other}
        inside = [walk(plain[name], other[name], f"{path}.{name}".lstrip(".")) for name in plain]
        return {path: value for found in inside for path, value in found.items()}

    return walk(PLAIN.to_dict(), config.to_dict(), "")


@dataclass(frozen=True, repr=False)
class Case:
    """Everything on which a computation depends, as plain values.

    Parameters
    ----------
    config : ModelConfig
    parameters : "well_scaled", "large", "tiny_variances", "outliers" or "near_ties"
        See `make_params`.
    seed : int
        Seed of the parameters.
    dtype : "float16", "float32" or "float64"
        Dtype of the parameters.
    source : list of lists of token ids
        One row per batch element. The rows may be ragged if there is no mask. Instead of an id
        there may be a vector, a list of floats: a frame or an embedding.
    source_mask : list of lists of booleans, optional
        Same shape as ``source``, True = real token.
    target : list of lists of token ids, optional
        Input of teacher forcing, with rows of one length; the prefix by default.
    prefix : list of lists of token ids, optional
        First tokens of each generated target, the start token included; by default the start
        token alone.
    max_new_tokens : int
    uniforms : list of lists of float, optional
        Numbers in [0, 1) for sampling, (batch, max_new_tokens). Without them decoding is
        greedy.
    """

    config: ModelConfig = PLAIN
    parameters: str = "well_scaled"
    seed: int = 0
    dtype: str = "float64"
    source: list[list[Any]] = dataclasses.field(default_factory=lambda: [[0]])
    source_mask: list[list[bool]] | None = None
    target: list[list[int]] | None = None
    prefix: list[list[int]] | None = None
    max_new_tokens: int = 1
    uniforms: list[list[float]] | None = None

    @cached_property
    def model(self) -> Model:
        """The model of these conventions with these parameters."""
        return make_model(self.config, self.parameters, self.seed, self.dtype)

    @property
    def mask(self) -> np.ndarray | None:
        """The source mask as a boolean array (batch, n_source), or None."""
        return None if self.source_mask is None else np.array(self.source_mask)

    def logits(self, **options: Any) -> Array:
        """The teacher-forced logits, (batch, n_target, vocab_size); ``options`` go to `forward`."""
        start = [[self.config.decoder_start_id] for _ in self.source]
        target = self.target or self.prefix or start
        return forward(self.model, self.source, target, self.mask, **options)

    def generation(self, **options: Any) -> Generation:
        """The generation of this case; ``options`` are further options of `decode_steps`."""
        return generate(
            self.model,
            self.source,
            source_mask=self.mask,
            prefix=self.prefix,
            max_new_tokens=self.max_new_tokens,
            choose=greedy() if self.uniforms is None else sample(),
            uniforms=None if self.uniforms is None else np.array(self.uniforms),
            **options,
        )

    def __repr__(self) -> str:
        """The call that creates this case, without arguments that have their defaults."""
        changed = changed_fields(self.config)
        shown = [f"conventions(**{changed!r})"] if changed else []
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != getattr(_DEFAULT, field.name):
                shown.append(f"{field.name}={value!r}")
        return f"Case({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Display in Hypothesis and notebooks: the same as ``repr``."""
        printer.text(repr(self))

    def __str__(self) -> str:
        """Python code that creates this case and runs it."""
        return (
            f"from {__name__} import Case, conventions\ncase = {self!r}\n"
            "model, logits, generation = case.model, case.logits(), case.generation()"
        )


_DEFAULT = Case()


def make_model(config: ModelConfig, parameters: str, seed: int, dtype: str = "float64") -> Model:
    """A model with these conventions and the parameters of `make_params`."""
    return Model(config=config, params=make_params(config, parameters, seed, dtype))


def make_params(config: ModelConfig, kind: str, seed: int, dtype: str = "float64") -> Params:
    """Random parameters that are well scaled, or numerically difficult.

    Parameters
    ----------
    config : ModelConfig
    kind : str
        ``well_scaled``: `refseq2seq.random_params`. The other kinds modify these:

        - ``large``: all matrices are multiplied by 4, so that softmaxes saturate and sums are
          large;
        - ``tiny_variances``: embeddings and the output projections of sublayers are divided by
          1024, so that the eps of the norms is decisive;
        - ``outliers``: one channel of the embeddings and of the output projections is
          multiplied by 64;
        - ``near_ties``: the logits of tokens 2i and 2i + 1 differ by rounding only.
    seed : int
    dtype : "float16", "float32" or "float64"
        Dtype of the parameters.

    Returns
    -------
    Params
    """
    if kind not in PARAMETERS:
        raise ValueError(f"parameters must be one of {PARAMETERS}, got {kind!r}")
    arrays = dict(named_arrays(random_params(config, seed, dtype)))
    channel = np.random.default_rng(seed).random()  # in [0, 1): index / number of channels

    def changed(path: str, shape: tuple[int, ...]) -> Array:
        x, name = arrays[path], path.rpartition(".")[2]
        match kind:
            case "large" if name.startswith("w_") or name == "unembedding":
                return x * 4
            case "tiny_variances" if name in _ADDED:
                return x / 1024
            case "outliers" if name in _ADDED and name != "positions":
                factors = np.ones(x.shape[-1], x.dtype)
                factors[int(channel * x.shape[-1])] = 64
                return x * factors
            case "near_ties" if config.tied_logits and path == "decoder.embedding":
                return _twins(x.T).T
            case "near_ties" if name in ("unembedding", "logits_bias"):
                return _twins(x)
        return x

    return build_params(config, changed)


def _twins(x: Array) -> Array:
    """Set each odd column to the next float above or below the column before it."""
    x = x.copy()
    first = x[..., :-1:2]
    towards = np.where(np.arange(first.shape[-1]) % 2, -np.inf, np.inf)
    x[..., 1::2] = np.nextafter(first, towards.astype(x.dtype))
    return x


_ADDED = ("embedding", "positions", "register_tokens", "w_o", "b_o", "w_out", "b_out")
