"""Find the first quantity in which a live PyTorch module deviates from the reference.

    diagnosis = diagnose(module, source, target, source_mask)
    diagnosis.first        "decoder.layers.0.cross_attention.weights", or None
    print(diagnosis.report())

Supported are modules of x-transformers and Hugging Face transformers, and torch.nn.Transformer.
They may be modified, wrongly assembled, compiled or quantised. Forward hooks capture the outputs
of their submodules under the names of our taps (`x_transformers`, `huggingface`, `pytorch`). The
reference computes the same quantities from the converted weights, and the first difference
locates the fault. Hooks may change which code runs, so the logits of a run without hooks are
compared last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ...backend import Array
from ...checks import Tokens, as_tokens
from ...config import ModelConfig
from ...convert import UnsupportedFeature
from ...model import Model, forward
from ...watching.trace import Trace
from ..compare import Difference, as_float64, as_json, first_difference
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
"""Name of the logits of a run without hooks, which are compared last."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result of `diagnose`; ``print(diagnosis.report())`` prints it."""

    difference: Difference | None  # the first; of "unhooked.logits" if all others agree
    unhooked: Difference | None  # of the logits of a run without hooks
    compared: tuple[str, ...]  # names of quantities, in order; the last is "unhooked.logits"
    not_compared: tuple[str, ...]  # names of quantities that no hook captured
    changed_by_hooks: tuple[str, ...]  # code that runs differently, or not at all, with hooks
    dtype: str  # number format whose rounding is allowed
    z: float  # largest allowed error of an element, in spreads
    config: ModelConfig

    @property
    def first(self) -> str | None:
        """The name of the first quantity that deviates; None if all agree."""
        return None if self.difference is None else self.difference.name

    def report(self) -> str:
        """Text: which quantities agree, the first difference, and what that quantity depends on."""
        if self.difference is None:
            return (
                f"All {len(self.compared)} compared quantities agree, {self._allowed()}. "
                "The logits of a run without hooks are among the compared quantities."
            )
        told = self._without_hooks if self.first == UNHOOKED else self._with_hooks
        return "\n".join(told(self.difference))

    def _with_hooks(self, difference: Difference) -> list[str]:
        """The report if a quantity deviates that hooks capture."""
        agreed = difference.agreed
        last = f", the last of them {self.compared[agreed - 1]}" if agreed else ""
        hidden = unseen(difference.name, self.compared, self.not_compared)
        return [
            f"{difference.name} is the first of {len(self.compared)} compared quantities that "
            "deviates.",
            f"The {agreed} before it agree{last}, {self._allowed()}.",
            f"The logits of a run without hooks {'deviate' if self.unhooked else 'agree'}.",
            "",
            str(difference),
            *(f"  intermediate, not compared: {name}" for name in hidden),
            "",
            "It also depends on:",
            *(f"  {line}" for line in entering(self.config, [*hidden, difference.name])),
        ]

    def _without_hooks(self, difference: Difference) -> list[str]:
        """The report if only the logits of the run without hooks deviate."""
        return [
            f"All {difference.agreed} quantities captured by hooks agree, {self._allowed()}.",
            "The logits of a run without hooks deviate.",
            "",
            str(difference),
            "",
            "Changed by hooks:",
            *(f"  {line}" for line in self.changed_by_hooks),
            "",
            "Not captured by hooks:",
            *(f"  {line}" for line in by_place(self.not_compared) or ["nothing"]),
        ]

    def _allowed(self) -> str:
        """The tolerance, and the number of quantities that were not compared."""
        n = len(self.not_compared)
        missing = f"{n} more were not captured" if n else "every quantity was captured"
        return f"up to {self.z:g} spreads of rounding to {self.dtype}; {missing}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without ``config``."""
        names = [field.name for field in fields(self) if field.name != "config"]
        return {"first": self.first} | {name: as_json(getattr(self, name)) for name in names}


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
    """Run a live module and the reference, and find the first quantity in which they differ.

    The module is run twice: once unchanged, and once with hooks that capture what its
    submodules compute. The logits of the first run are compared last, under the name
    ``unhooked.logits``. If they alone deviate, the fault is in code that hooks change or cannot
    capture, such as fused layers or compiled code, and the report lists such code.

    Parameters
    ----------
    module : XTransformer, pair of TransformerWrapper, model of transformers, nn.Transformer
        A module that `refseq2seq.convert` supports. A pair is (encoder, decoder). A module from
        ``torch.compile`` is run compiled, then recompiled with the hooks, and recompiled again
        when it is used next.
    source : integer array (batch, n_source), or list of lists of token ids
        Masked positions are replaced by the pad token of the model before the module runs.
    target : integer array (batch, n_target), or list of lists, optional
        Input of the decoder, the start token first. With ``max_new_tokens``, the prefix of the
        generated target: by default the start token of ``model``, and without ``model`` that of
        the module, or 0 for x-transformers, which defines none.
    source_mask : boolean array (batch, n_source), optional
        True = real token.
    model : Model, optional
        The model that the module should implement; by default it is converted from the module.
        It is required if the converter does not accept the module, because the module was
        changed, is quantised, or is an nn.Transformer. Convert it before the change.
    run : function (source, target, source_mask) of tensors, giving logits
        Required for an nn.Transformer, and only for it: embeds the tokens, runs the module and
        returns logits (batch, n_target, vocab_size). The mask is boolean, True = real token, or
        None.
    max_new_tokens : int, optional
        Generate this many tokens, greedily and with the module's own cache. Names then begin
        with the step, as in `decode_steps`. The reference reads the tokens that the module
        chose, so that a near-tie does not end the comparison. No token ends a row, not even
        EOS. If the run without hooks chooses another token, its row is not compared after that
        token.
    dtype : str, optional
        Number format whose rounding is allowed, see `spread`; by default the module's dtype.
        The default for a float64 module is ``"float32"``, because softmax in x-transformers and
        norms in transformers always compute in float32.
    z : float
        Largest allowed error of an element, in spreads of that rounding. It is larger than the
        6 of `assert_agrees` because every quantity is compared: of 1,413 diagnoses of correct
        modules, 20 found a difference at 6, and one at 8.
    runs : int
        Number of runs with random rounding from which spreads are estimated.

    Returns
    -------
    Diagnosis

    Raises
    ------
    UnsupportedFeature
        If the converter does not accept the module and ``model`` is not given, or if the module
        is compiled in a way that cannot be run here.
    TypeError, ValueError
        If the module is of another kind, or the tokens do not fit the model.

    Notes
    -----
    Both runs are in evaluation mode, without gradients, and start from the same random state.
    The fast paths of torch.nn are disabled in the second run, because hooks cannot capture
    quantities inside them. The modes and hooks of the module, ``torch.backends.mha`` and the
    random state of PyTorch are restored afterwards.
    """
    peer = as_peer(module, run)
    if max_new_tokens is not None and is_compiled(peer):
        raise UnsupportedFeature(
            "max_new_tokens does not support a compiled module, which would be recompiled with the "
            "hooks in every step: give a target, or the module as it was before torch.compile"
        )
    model = _converted(peer) if model is None else model
    ids, real = as_tokens("source", source, model.config.encoder.vocab_size, source_mask)
    ids = np.where(real, ids, model.config.pad_id)
    mask = None if real.all() else real  # modules may compute otherwise with a mask
    if target is None:
        if max_new_tokens is None:
            raise TypeError("target is missing: pass a target, or max_new_tokens to generate one")
        target = np.full((len(ids), 1), model.config.decoder_start_id)
    fed, _ = as_tokens("target", target, model.config.decoder.vocab_size)
    given = ids, fed, mask, max_new_tokens
    tokens, logits = run_once(peer, *given)
    catch = Catch(by_step=max_new_tokens is not None)
    with watching(peer, catch, model.config):
        catch.keep("logits", run_once(peer, *given)[1])  # unless a hook has captured them
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
            raise UnsupportedFeature(f"{part}, whose weights are quantised")
        return peer.convert()
    except UnsupportedFeature as error:
        raise UnsupportedFeature(
            f"{error}. Pass model= to diagnose: the model that the module should implement, such "
            "as its conversion before the change, or refseq2seq.load of a checkpoint"
        ) from error


def _expected(
    model: Model,
    own: str,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None,
    dtype: str,
    runs: int,
) -> dict[str, Expected]:
    """The float64 reference with its spreads; weights of a float64 module are not rounded."""
    model = model.to("numpy").astype("float64")
    spreads = spread(rounded(model, dtype), source, target, mask, dtype=dtype, runs=runs)
    if own != "float64":
        return dict(spreads)
    exact = Trace()
    forward(model, source, target, mask, tap=exact)
    return {name: replace(expected, value=exact[name]) for name, expected in spreads.items()}


def _fitted(name: str, x: np.ndarray, reference: Mapping[str, Expected]) -> np.ndarray:
    """``x`` in the shape of the reference, if they differ only by a batch axis of equal rows."""
    if name not in reference:
        raise ValueError(
            f"model must have the architecture of the module, which computes {name}: the model "
            "has no such quantity"
        )
    shape = reference[name].value.shape
    if x.ndim + 1 == len(shape) and x.shape == shape[1:]:
        return np.broadcast_to(x, shape)
    if x.ndim == len(shape) + 1 and x.shape[1:] == shape and (x == x[:1]).all():
        return x[0]
    return x
