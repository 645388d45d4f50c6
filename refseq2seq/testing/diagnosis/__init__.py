"""Find every quantity in which another implementation deviates from the reference, and the cause.

    diagnosis = diagnose(module, source, target, source_mask)
    diagnosis.first              "decoder.layers.0.cross_attention.weights", or None
    diagnosis.faults[0].cause    "scale is 1; the model has 0.5 (decoder.cross_attention.scale)"
    print(diagnosis.report())

`diagnose` takes a live module of x-transformers or Hugging Face transformers, or a
torch.nn.Transformer. It may be modified, wrongly assembled, compiled or quantised. Forward hooks
capture the outputs of its submodules under the names of our taps (`x_transformers`, `huggingface`,
`pytorch`). `diagnose_arrays` takes arrays under the same names, from any program.

The reference computes each quantity from those that the other implementation computed before it
(`local`), so that one forward pass shows all independent faults. For each, explanations are tried:
the part of the forward pass that contains it is computed again with another ingredient (`replay`,
`alternatives`), and an explanation is a cause if the quantity then agrees (`explain`). Hooks may
change which code runs, so the logits of a run without hooks are compared with those of the run with
hooks.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...backend import Array
from ...checks import Source, Tokens, as_source, as_tokens, check_int, check_number, on_host
from ...config import ModelConfig
from ...convert import UnsupportedFeature
from ...model import Model, check_model
from ..compare import as_float64
from ..simulation import mask_at
from ..tolerance import refuse_memory
from .explain import Cause
from .hooks import Catch
from .judge import Seen, Tolerance, diagnosed, judged, read_arrays
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
from .result import Diagnosis, Fault

LEAST_RUNS = 8
"""From fewer runs of random rounding, spreads are too uncertain."""

__all__ = ["Cause", "Diagnosis", "Fault", "diagnose", "diagnose_arrays"]


def diagnose(
    module: Any,
    source: Source,
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
    """Run a live module and the reference, and find all that differs, and its causes.

    The module is run twice: once unchanged, and once with hooks that capture what its submodules
    compute. If a quantity deviates, both runs are repeated with permuted tokens, and a cause must
    hold on both inputs. The logits of the two runs are compared too, under the name
    ``unhooked.logits``. If they differ, the fault is in code that hooks change or cannot capture,
    such as fused layers or compiled code, and the report lists such code.

    Parameters
    ----------
    module : XTransformer, model of transformers, nn.Transformer, or pair of stacks
        A module that `refseq2seq.convert` supports. A pair is (encoder, decoder), of
        TransformerWrapper or of nn.TransformerEncoder and nn.TransformerDecoder. A module from
        ``torch.compile`` is run compiled, then recompiled with the hooks, and recompiled again
        when it is used next.
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids: integers, or lists of lists of them. Masked positions are replaced by the pad
        token of the model before the module runs. For Whisper, frames (batch, n_frames, n_mels),
        of which transformers demands ``2 * max_source_positions``. ``run`` may take embeddings.
    target : integer array (batch, n_target), or list of lists, optional
        Input of the decoder, the start token first. With ``max_new_tokens``, the prefix of the
        generated target: by default the start token of ``model``, and without ``model`` that of
        the module, or 0 for x-transformers, which defines none.
    source_mask : boolean array (batch, n_source), optional
        True = real token. transformers' Whisper supports none: its padding is silence.
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
        Number of runs with random rounding from which spreads are estimated, at least 8.

    Returns
    -------
    Diagnosis

    Raises
    ------
    UnsupportedFeature
        If the converter does not accept the module and ``model`` is not given, if the module
        is compiled in a way that cannot be run here, or if its library does not run it on such a
        source, or its family is not supported.
    TypeError, ValueError
        If the module is of another kind, or the tokens do not fit the model.

    Notes
    -----
    All runs are in evaluation mode, without gradients, and start from the same random state.
    The fast paths of torch.nn are disabled in the runs with hooks, because hooks cannot capture
    quantities inside them. The modes and hooks of the module, ``torch.backends.mha`` and the
    random state of PyTorch are restored afterwards.
    """
    peer = as_peer(module, run)
    if max_new_tokens is not None and is_compiled(peer):
        raise UnsupportedFeature(
            "max_new_tokens does not support a compiled module, which would be recompiled with the "
            "hooks in every step: give a target, or the module as it was before torch.compile"
        )
    refuse_memory(source)
    model = _converted(peer) if model is None else model
    ids, real = as_source(model.config.encoder, source, source_mask)
    if ids.ndim == 2:
        ids = np.where(real, ids, model.config.pad_id)
    mask = None if real.all() else real  # modules may compute otherwise with a mask
    kind = "tokens" if ids.ndim == 2 else "vectors"
    if kind not in peer.reads:
        raise UnsupportedFeature(
            f"source is {kind}, and diagnose runs this module on {peer.reads[0]} only: pass what "
            "it computes to diagnose_arrays"
        )
    if target is None:
        if max_new_tokens is None:
            raise TypeError("target is missing: pass a target, or max_new_tokens to generate one")
        target = np.full((len(ids), 1), model.config.decoder_start_id)
    fed, _ = as_tokens("target", target, model.config.decoder.vocab_size)
    own = dtype_of(peer)
    dtype = dtype or ("float32" if own == "float64" else own)
    how = Tolerance(
        dtype=dtype,
        z=check_number("z", z, "[0, inf)"),
        runs=check_int("runs", runs, LEAST_RUNS),
        rounds_weights=own != "float64",
        is_exact=True,
    )
    seen = [_run(peer, model.config, ids, fed, mask, max_new_tokens)]
    first = judged(model, seen[0], how)
    other = _permuted(ids, real), _permuted(fed, np.arange(fed.shape[1]) > 0)
    is_other = any(not np.array_equal(a, b) for a, b in zip(other, (ids, fed), strict=True))
    if first.deviations and is_other:  # what explains a fault must explain it on another input too
        seen.append(_run(peer, model.config, *other, mask, max_new_tokens))
    return diagnosed(
        model, [first, *(judged(model, s, how) for s in seen[1:])], how, changed_by_hooks(peer)
    )


def diagnose_arrays(
    model: Model,
    arrays: Mapping[str, Array] | str | os.PathLike[str],
    source: Source,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    dtype: str,
    z: float = 8.0,
    runs: int = 32,
) -> Diagnosis:
    """Find the faults of another implementation in the arrays that it computed.

    Parameters
    ----------
    model : Model
        The model that it should implement.
    arrays : mapping of arrays, or path of an ``.npz`` or ``.safetensors`` file
        Some or all of the quantities of `forward`, under the names of a `Trace`. Or those of a
        greedy loop, whose names begin with ``step.0.``, ``step.1.`` and so on; the scores and
        choices of the loop are not judged.
    source, target, source_mask
        As in `forward`. For a loop, the target is the prefix and all tokens that it then read.
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
        Number format in which the other implementation computes, or in which its arrays were
        stored, if that is coarser.
    z, runs
        As in `diagnose`.

    Returns
    -------
    Diagnosis
        The fewer arrays there are, the more steps lie between them, and the fewer faults can be
        told apart and explained. Causes are verified on this one input.

    Raises
    ------
    TypeError, ValueError
        If an array has a name that no quantity of the model has, if there are none, or if the
        tokens do not fit the model.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model, faulty = rs.load("g2p"), rs.Trace()
    >>> def unscaled(name, x):
    ...     is_wrong = name == "decoder.layers.1.cross_attention.scores"
    ...     return faulty(name, x * 40**0.5 if is_wrong else x)
    >>> _ = rs.forward(model, [[5, 6]], [[1, 7]], tap=rs.FunctionTap(unscaled))
    >>> diagnosis = diagnose_arrays(model, faulty, [[5, 6]], [[1, 7]], dtype="float32")
    >>> for fault in diagnosis.faults:
    ...     print(f"{fault.name}: {fault.cause.flag}")
    decoder.layers.1.cross_attention.scores: AttentionScale
    """
    check_model(model)
    refuse_memory(source)
    c = model.config
    ids, real = as_source(model.config.encoder, source, source_mask)
    fed, fed_mask = as_tokens("target", target, c.decoder.vocab_size)
    how = Tolerance(
        dtype=dtype,
        z=check_number("z", z, "[0, inf)"),
        runs=check_int("runs", runs, LEAST_RUNS),
        rounds_weights=True,
        is_exact=dtype not in ("float16", "bfloat16"),
    )
    caught = read_arrays(arrays)
    pads = np.zeros_like(mask_at("encoder.embed", c.encoder, real))
    if ids.ndim == 2:
        given = ids if isinstance(source, Sequence) else on_host("source", source)
        pads = np.where(real, ids, given if given.shape == ids.shape else 0) == c.pad_id
    lengths = _step_lengths(caught, fed.shape[1])
    seen = Seen(caught, (ids, fed), (real, fed_mask), pads, lengths, None)
    return diagnosed(model, [judged(model, seen, how)], how, ())


def _step_lengths(arrays: Mapping[str, np.ndarray], n_target: int) -> list[int] | None:
    """The number of tokens that each step reads; None without a loop."""
    steps = {int(found[1]) for name in arrays if (found := re.match(r"step\.(\d+)\.", name))}
    if not steps:
        return None
    n = max(steps) + 1
    if n_target < n:
        raise ValueError(
            f"target must have the tokens that all {n} steps read, got {n_target}: the prefix, and "
            "the new tokens but the last"
        )
    return [n_target - n + 1, *[1] * (n - 1)]


def _permuted(ids: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The ids, or vectors, with those at the ``free`` places exchanged at random."""
    free = np.broadcast_to(free, ids.shape[:2])
    other = ids.copy()
    other[free] = np.random.default_rng(0).permutation(ids[free])
    return other


def _run(
    peer: Peer,
    config: ModelConfig,
    ids: np.ndarray,
    fed: np.ndarray,
    mask: np.ndarray | None,
    max_new_tokens: int | None,
) -> Seen:
    """Run the module without hooks and with them."""
    given = ids, fed, mask, max_new_tokens
    tokens, logits = run_once(peer, *given)
    catch = Catch(by_step=max_new_tokens is not None)
    with watching(peer, catch, config):
        catch.keep("logits", run_once(peer, *given)[1])  # unless a hook has captured them
    lengths = None
    if max_new_tokens is not None:
        read = catch.fed_tokens()
        fed, lengths = np.concatenate(read, axis=1), [x.shape[1] for x in read]
    real = np.ones(ids.shape[:2], bool) if mask is None else mask
    masks = real, np.ones(fed.shape, bool)
    pads = ids == config.pad_id if ids.ndim == 2 else ~masks[0]
    return Seen(catch.arrays(), (ids, fed), masks, pads, lengths, (tokens, as_float64(logits)))


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
