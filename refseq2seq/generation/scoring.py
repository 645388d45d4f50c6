"""Log-probabilities of given targets, by teacher forcing, which can check any search's scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import Array, array_namespace, to_numpy
from ..checks import Source, Tokens, as_tokens
from ..config import ModelConfig
from ..model import Memory, Model, check_model, checked_source, forward
from ..shown import Shown
from .request import as_prefix, token_source
from .sampling import Processor, State, apply, check_processors, no_uniforms, to_log_probs


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Scores(Shown):
    """Log-probabilities in nats, on the host."""

    log_probs: np.ndarray  # (batch, n_target - 1) of each token after the first; 0 if not scored
    total: np.ndarray  # (batch,) their sum
    lengths: np.ndarray  # (batch,) how many tokens are scored: neither prefix nor padding


def score(
    model: Model,
    source: Source,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    target_mask: Array | None = None,
    prefix: Tokens | None = None,
    logits_processors: Sequence[Processor] = (),
    processors: Sequence[Processor] = (),
) -> Scores:
    r"""Log-probability of targets given their sources, by teacher forcing.

    .. math:: \log P(y_t \mid y_{<t}, x), \qquad \sum_{t} \log P(y_t \mid y_{<t}, x)

    Parameters
    ----------
    model : Model
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids, frames, embeddings or a `Memory`: see `refseq2seq.encode`.
    target : integer array (batch, n_target), or list of lists of token ids
        Each row begins with its prefix, which is not scored, followed by at least one token.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    target_mask : boolean array, shape (batch, n_target), optional
        True = real token, False = padding at the end of a row, which is not scored. Lists of
        different lengths are masked by their lengths.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        The first tokens of each target; by default only the model's start token.
    logits_processors, processors : sequence of Processor
        As in `refseq2seq.beam_steps`: applied to logits before, and to log-probabilities
        after the log-softmax. A token that they ban has log-probability -inf.

    Returns
    -------
    Scores
        With the processors of a beam search, the score of its hypothesis is ``total /
        lengths ** length_penalty``. The rules of the model's config (forced and suppressed
        tokens) are not applied unless they are among the processors, such as `forced_bos` and
        `suppress`. NaN where the model's logits are not finite.

    Raises
    ------
    TypeError, ValueError
        If a target does not begin with its prefix, has no token after it, is masked elsewhere
        than at its end, or ends with padding without a ``target_mask``.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model = rs.load("g2p")
    >>> source = [model.source_vocabulary.encode("cat")]
    >>> out = rs.generate(model, source)
    >>> scores = rs.score(model, source, [[model.config.decoder_start_id, *out.tokens[0]]])
    >>> bool(abs(scores.total[0] - out.log_probs.sum()) < 1e-5)
    True
    """
    check_model(model)
    logits_processors = check_processors(logits_processors, instead="logits_processors=[{}]")
    processors = check_processors(processors, instead="processors=[{}]")
    c = model.config
    ids, real = as_tokens("target", target, c.decoder.vocab_size, target_mask)
    prefix_ids, n_prefix = as_prefix(prefix, len(ids), c)
    if target_mask is None and real.all():
        _check_unpadded(ids, n_prefix, c)
    _check_target(ids, real, prefix_ids, n_prefix, is_default=prefix is None)
    scored = real[:, 1:] & (np.arange(1, ids.shape[1]) >= n_prefix[:, None])
    source, source_mask = checked_source(model, source, source_mask)
    log_probs = processed(
        (*logits_processors, to_log_probs, *processors),
        forward(model, source, ids[:, :-1], source_mask),
        tokens=ids[:, :-1],
        emitted=scored,
        n_prefix=n_prefix,
        source=source,
        source_mask=source_mask,
        eos_ids=c.eos_ids,
    )
    of_tokens = model.xp.take_along_axis(log_probs, model.xp.asarray(ids[:, 1:, None]), axis=-1)
    per_token = np.where(scored, to_numpy(of_tokens)[..., 0].astype(np.float64), 0.0)
    return Scores(log_probs=per_token, total=per_token.sum(axis=1), lengths=scored.sum(axis=1))


def processed(
    processors: Sequence[Processor],
    logits: Array,
    *,
    tokens: np.ndarray,
    emitted: np.ndarray,
    n_prefix: np.ndarray,
    source: np.ndarray | Memory,
    source_mask: np.ndarray | None,
    eos_ids: Sequence[int] | np.ndarray,
) -> Array:
    """Scores after each of ``tokens`` (batch, n), from their logits (batch, n, vocab_size).

    ``emitted`` (batch, n) is True where the next token is a new one, ``n_prefix`` is (batch,), and
    the others are those of `State`.
    """
    ids, mask = token_source(source, source_mask)

    def after(t: int) -> Array:
        state = State(
            tokens=tokens[:, : t + 1],
            n_new=np.maximum(t + 1 - n_prefix, 0),
            emitted=emitted[:, t],
            source_index=np.arange(len(tokens)),
            source=ids,
            source_mask=mask,
            uniforms=no_uniforms,
            eos_ids=eos_ids,
        )
        return apply(processors, logits[:, t], state)

    return array_namespace(logits).stack([after(t) for t in range(tokens.shape[1])], axis=1)


def _check_unpadded(ids: np.ndarray, n_prefix: np.ndarray, c: ModelConfig) -> None:
    """Raise if a row without a mask continues with pad tokens after an end token."""
    is_new = np.arange(1, ids.shape[1] - 1) >= n_prefix[:, None]
    ends = np.isin(ids[:, 1:-1], c.eos_ids) & is_new
    has_ended = np.logical_or.accumulate(ends, axis=1)
    n_padding = has_ended.sum(axis=1)
    is_padded = (n_padding > 0) & ((ids[:, 2:] == c.pad_id) | ~has_ended).all(axis=1)
    if is_padded.any():
        row = int(is_padded.argmax())
        raise ValueError(
            f"target row {row} ends with {n_padding[row]} pad tokens after its end token, which "
            "would be scored: give target_mask=, True = real token, or lists without padding"
        )


def _check_target(
    ids: np.ndarray, real: np.ndarray, prefix: np.ndarray, n_prefix: np.ndarray, is_default: bool
) -> None:
    """Raise unless each row is its prefix, at least one more token, and then padding."""
    lengths = real.sum(axis=1)
    if not (real == (np.arange(ids.shape[1]) < lengths[:, None])).all():
        raise ValueError("target_mask must be False at the end of a row only")
    for row, n in enumerate(n_prefix.tolist()):
        begin = ids[row, :n].tolist()
        if begin != prefix[row, :n].tolist():
            own = "the model's start token" if is_default else "its prefix"
            raise ValueError(
                f"target row {row} must begin with {own} {prefix[row, :n].tolist()}, got {begin}: "
                "put it first, or pass prefix= if targets begin otherwise"
            )
        if lengths[row] <= n:
            raise ValueError(f"target row {row} must have a token after its prefix, to be scored")
