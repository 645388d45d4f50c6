"""Where a live PyTorch module leaves the oracle.

    diagnosis = diagnose(module, source, target, source_mask)
    diagnosis.first        "decoder.layers.0.cross_attention.weights", or None
    print(diagnosis.report())

Modules of x-transformers, Hugging Face transformers and torch.nn.Transformer are taken:
perhaps modified, wrongly assembled, compiled or quantised. Forward hooks catch what their
parts compute, under the names of our taps (`x_transformers`, `huggingface`, `pytorch`);
the oracle computes the same from the converted weights; the first difference locates the fault.
Hooks may change what runs: the logits of a run without them are compared last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...backend import Array
from ...checks import Tokens, as_tokens
from ...config import ModelConfig
from ...convert import UnsupportedFeature
from ...model import Model, forward
from ...trace import Trace
from ..compare import Difference, as_float64, first_difference
from ..expected import Expected
from ..rounding import rounded
from ..tolerance import spread
from .hooks import Catch
from .peers import (
    Peer,
    as_peer,
    changed_by_hooks,
    dtype_of,
    is_compiled,
    quantised_part,
    run_once,
    watching,
)
from .steps import by_step, while_same
from .story import by_place, entering, unseen

__all__ = ["Diagnosis", "diagnose"]

UNHOOKED = "unhooked.logits"
"""The name of the logits of a run without hooks, which are compared last."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `diagnose` found; ``print(diagnosis.report())`` prints it."""

    difference: Difference | None  # the first; of "unhooked.logits" if all that hooks see agrees
    unhooked: Difference | None  # of the logits that the module gives without hooks
    compared: tuple[str, ...]  # names in order: what hooks see, and last "unhooked.logits"
    not_compared: tuple[str, ...]  # those that it computes, if at all, where no hook can be
    changed_by_hooks: tuple[str, ...]  # what runs in another way while hooks are in place
    dtype: str  # whose rounding was allowed
    z: float  # how many spreads of it
    config: ModelConfig

    @property
    def first(self) -> str | None:
        """The name of the first quantity that deviates; None if all agree."""
        return None if self.difference is None else self.difference.name

    def report(self) -> str:
        """What agrees, what differs first and by how much, and what enters there."""
        if self.difference is None:
            return (
                f"All {len(self.compared)} quantities that were compared agree, {self._allowed()}. "
                "The logits of a run without hooks are among them."
            )
        told = self._without_hooks if self.first == UNHOOKED else self._with_hooks
        return "\n".join(told(self.difference))

    def _with_hooks(self, difference: Difference) -> list[str]:
        """The report on what hooks see."""
        agreed = difference.agreed
        last = f", the last of them {self.compared[agreed - 1]}" if agreed else ""
        hidden = unseen(difference.name, self.compared, self.not_compared)
        return [
            f"{difference.name} is the first of {len(self.compared)} quantities that deviates.",
            f"Before it {agreed} agree{last}, {self._allowed()}.",
            f"The logits of a run without hooks {'deviate' if self.unhooked else 'agree'}.",
            "",
            str(difference),
            *(f"  on the way, unseen: {name}" for name in hidden),
            "",
            "What enters there:",
            *(f"  {line}" for line in entering(self.config, [*hidden, difference.name])),
        ]

    def _without_hooks(self, difference: Difference) -> list[str]:
        """The report on what only a run without hooks shows."""
        return [
            f"All {difference.agreed} quantities that hooks see agree, {self._allowed()}.",
            "The logits of a run without hooks deviate.",
            "",
            str(difference),
            "",
            "What hooks change:",
            *(f"  {line}" for line in self.changed_by_hooks),
            "",
            "What hooks do not see:",
            *(f"  {line}" for line in by_place(self.not_compared) or ["nothing"]),
        ]

    def _allowed(self) -> str:
        """How far what agrees may be off, and how much was not compared."""
        n = len(self.not_compared)
        missing = f"{n} more could not be seen in the module" if n else "the module shows all"
        return f"up to {self.z:g} spreads of rounding to {self.dtype}; {missing}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "first": self.first,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "unhooked": None if self.unhooked is None else self.unhooked.to_dict(),
            "compared": list(self.compared),
            "not_compared": list(self.not_compared),
            "changed_by_hooks": list(self.changed_by_hooks),
            "dtype": self.dtype,
            "z": self.z,
        }


def diagnose(
    module: Any,
    source: Tokens,
    target: Tokens | None = None,
    source_mask: Array | None = None,
    *,
    model: Model | None = None,
    run: Any = None,
    max_new_tokens: int | None = None,
    dtype: str | None = None,
    z: float = 8.0,
    runs: int = 32,
) -> Diagnosis:
    """Run a live module and the oracle, and find the first quantity in which they differ.

    The module is run twice: as it is, and with the hooks that show what its parts compute.
    The logits of the first run are compared last, under the name ``unhooked.logits``. If they
    alone deviate, the fault is in what hooks change or do not see, such as fused layers or
    compiled code, and the report says what that is.

    Parameters
    ----------
    module : XTransformer, pair of TransformerWrapper, model of transformers, nn.Transformer
        Of the kinds that `refseq2seq.convert` takes. A pair is (encoder, decoder). Any
        may come from ``torch.compile``: it is run compiled, then recompiled with the hooks,
        and recompiled again when it is used next.
    source : integer array (batch, n_source), or list of lists of token ids
        The module is given the model's pad token where the source is masked.
    target : integer array (batch, n_target), or list of lists, optional
        What the decoder is forced to read, the start token first. With ``max_new_tokens``
        the prefix of what it generates: by default the start token of ``model``, and
        without ``model`` that of the module, or 0 for x-transformers, which has none.
    source_mask : boolean array (batch, n_source), optional
        True = real token.
    model : Model, optional
        What the module should be; by default its own weights, converted. To be given where
        the converter refuses the module, because it was changed, quantised, or is an
        nn.Transformer: convert it before.
    run : function (source, target, source_mask) of tensors, giving logits
        For an nn.Transformer: embeds, runs the module, and unembeds. The mask is boolean,
        True = real token, or None.
    max_new_tokens : int, optional
        Generate as many tokens, greedily and with the module's own cache. Names then begin
        with the step, as those of `decode_steps` do, and the oracle is given the tokens
        that the module chose, so that a near-tie does not end the comparison. No token, EOS
        included, ends a row. If the
        run without hooks chooses another token, its row is not compared after that token.
    dtype : str, optional
        Whose rounding is allowed, see `spread`; by default the module's dtype. A float64
        module is judged as float32 unless ``"float64"`` is asked for, because softmax in
        x-transformers and norms in transformers compute in float32 in any case.
    z : float
        How many spreads of that rounding an element may be off. More than the 6 of
        `assert_agrees`, since every quantity is compared: of 1,413 diagnoses of modules
        that were right 20 found a difference at 6, and one at 8.
    runs : int
        Rounding runs from which spreads are estimated.

    Returns
    -------
    Diagnosis

    Raises
    ------
    UnsupportedFeature
        If the converter refuses the module, or the module is compiled where it is not run.
    TypeError, ValueError
        For a module of another kind, or tokens that do not fit.

    Notes
    -----
    Both runs are in evaluation mode, without gradients, and from the same random numbers. The
    fast paths of torch.nn are off in the second, since hooks do not see into them. The modes
    and hooks of the module, ``torch.backends.mha`` and the random numbers of PyTorch are
    afterwards as they were.
    """
    peer = as_peer(module, run)
    if max_new_tokens is not None and is_compiled(peer):
        raise UnsupportedFeature(
            "a compiled module is compiled again in every step, with the hooks inside: force a "
            "target, or generate with the module as it was before torch.compile"
        )
    model = _converted(peer) if model is None else model
    ids, mask = as_tokens("source", source, model.config.encoder.vocab_size, source_mask)
    if mask is not None:
        ids = np.where(mask, ids, model.config.pad_id)
    if target is None:
        target = _start(model, max_new_tokens, len(ids))
    fed, _ = as_tokens("target", target, model.config.decoder.vocab_size)
    given = ids, fed, mask, max_new_tokens
    tokens, logits = run_once(peer, *given)
    catch = Catch(by_step=max_new_tokens is not None)
    with watching(peer, catch, model.config):
        catch.keep("logits", run_once(peer, *given)[1])  # where no hook has caught them
    if max_new_tokens is not None:
        fed = np.concatenate(catch.fed_tokens(), axis=1)
    own = dtype_of(peer)
    dtype = dtype or ("float32" if own == "float64" else own)
    reference = _expected(model, own, ids, fed, mask, dtype, runs)
    unhooked = while_same(reference["logits"], tokens, fed)
    if max_new_tokens is not None:
        reference = by_step(reference, [tokens.shape[1] for tokens in catch.fed_tokens()])
    reference[UNHOOKED] = unhooked
    caught = {**catch.arrays(), UNHOOKED: as_float64(logits)}
    arrays = {name: _fitted(name, x, reference) for name, x in caught.items()}
    return Diagnosis(
        difference=first_difference(reference, arrays, z=z),
        unhooked=first_difference(reference, {UNHOOKED: arrays[UNHOOKED]}, z=z),
        compared=tuple(name for name in reference if name in arrays),
        not_compared=tuple(name for name in reference if name not in arrays),
        changed_by_hooks=changed_by_hooks(peer),
        dtype=dtype,
        z=z,
        config=model.config,
    )


def _converted(peer: Peer) -> Model:
    try:
        if part := quantised_part(peer):
            raise UnsupportedFeature(f"{part}, whose numbers are not the model's")
        return peer.convert()
    except UnsupportedFeature as error:
        raise UnsupportedFeature(
            f"{error}. Give diagnose model=: what the module should be, such as its conversion "
            "before it was changed, or refseq2seq.load of a checkpoint"
        ) from error


def _start(model: Model, max_new_tokens: int | None, batch: int) -> np.ndarray:
    """What the decoder reads first: (batch, 1)."""
    if max_new_tokens is None:
        raise TypeError("target is missing: give one to force, or max_new_tokens to generate")
    return np.full((batch, 1), model.config.decoder_start_id)


def _expected(
    model: Model,
    own: str,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None,
    dtype: str,
    runs: int,
) -> dict[str, Expected]:
    """The oracle in float64, from the weights as the module has them, with its spreads."""
    model = model.to("numpy").astype("float64")
    spreads = spread(rounded(model, dtype), source, target, mask, dtype=dtype, runs=runs)
    if own != "float64":
        return dict(spreads)
    exact = Trace()
    forward(model, source, target, mask, tap=exact)
    return {name: replace(expected, value=exact[name]) for name, expected in spreads.items()}


def _fitted(name: str, x: np.ndarray, reference: Mapping[str, Expected]) -> np.ndarray:
    """``x`` in the shape of the reference, as far as they differ in an axis of equal rows only."""
    if name not in reference:
        raise ValueError(f"the module computes {name}, which the model has not: another model")
    shape = reference[name].value.shape
    if x.ndim + 1 == len(shape) and x.shape == shape[1:]:
        return np.broadcast_to(x, shape)
    if x.ndim == len(shape) + 1 and x.shape[1:] == shape and (x == x[:1]).all():
        return x[0]
    return x
