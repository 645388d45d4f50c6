"""Log-probabilities of given targets, by teacher forcing: they check the score of any search."""

from dataclasses import dataclass

import numpy as np

from .backend import Array, to_numpy
from .model import Model, forward
from .ops import log_softmax
from .tokens import Tokens, as_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Log-probabilities in nats, on the host."""

    log_probs: np.ndarray  # (batch, n_target - 1) of each token after the first; 0 where padded
    total: np.ndarray  # (batch,) their sum
    lengths: np.ndarray  # (batch,) how many they are


def score(model: Model, source: Tokens, target: Tokens, source_mask: Array | None = None) -> Scores:
    r"""Log-probability of targets given their sources, by teacher forcing.

    .. math:: \log P(y_t \mid y_{<t}, x), \qquad \sum_{t \ge 1} \log P(y_t \mid y_{<t}, x)

    Parameters
    ----------
    model : Model
    source : integer array (batch, n_source), or list of lists of token ids
    target : integer array (batch, n_target), or list of lists of token ids
        Begins with the start token, which is given and not scored; at least one more.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.

    Returns
    -------
    Scores
        Without processors, and rules of the model's own such as ``forced_bos_id``, the score
        of a hypothesis of beam search is ``total / lengths ** length_penalty``.

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
    ids, mask = as_tokens("target", target, model.config.decoder.vocab_size)
    if ids.shape[1] < 2:
        raise ValueError("target must have a token after its first, which is not scored")
    log_probs = log_softmax(forward(model, source, ids[:, :-1], source_mask))
    of_tokens = model.xp.take_along_axis(log_probs, model.xp.asarray(ids[:, 1:, None]), axis=-1)
    real = np.ones(ids.shape, dtype=bool) if mask is None else mask
    per_token = np.where(real[:, 1:], to_numpy(of_tokens)[..., 0].astype(np.float64), 0.0)
    return Scores(log_probs=per_token, total=per_token.sum(axis=1), lengths=real[:, 1:].sum(axis=1))
