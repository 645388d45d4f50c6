"""Exercises: functions of a Transformer to write, each graded by the reference.

:doc:`/exercises` has the signature and the conventions of each function.
"""

from collections.abc import Callable
from typing import Any

from .exercise import Exercise


def implements(name: str, function: Callable[..., Any]) -> None:
    """Check that your function computes what an exercise asks for.

    The function is called with arguments of ascending size. Its results are compared with the
    reference, up to rounding, and the properties of the exercise are checked.

    Parameters
    ----------
    name : str
        ``"softmax"``, ``"attention"``, ``"layer_norm"``, ``"rms_norm"``, ``"gelu"``,
        ``"sinusoids"``, ``"rotation"``, ``"causal_mask"``, ``"split_heads"``,
        ``"cross_attention"``, ``"top_k"``, ``"top_p"``, ``"cached_step"``, ``"greedy"`` or
        ``"beam_search"``.
    function : callable
        With the signature that :doc:`/exercises` states.

    Raises
    ------
    AssertionError
        With the smallest arguments for which the result is wrong, the numbers, and up to three
        mistakes that explain it: the reference with these mistakes gives the results of your
        function for all arguments.
    ValueError
        If there is no such exercise.

    Examples
    --------
    >>> import numpy as np
    >>> implements("causal_mask", lambda q, k: k <= q[:, None])
    >>> implements("causal_mask", lambda q, k: k > q[:, None])
    Traceback (most recent call last):
        ...
    AssertionError: causal_mask(q_positions, k_positions): the mask is inverted: True = may attend
      q_positions  [0]
      k_positions  [0]
      expected     [[ True]]
      got          [[False]]
    """
    from .grading import grade

    exercises = all_exercises()
    if name not in exercises:
        raise ValueError(f"name must be one of {', '.join(exercises)}; got {name!r}")
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}: pass {name}")
    grade(exercises[name], function)


def all_exercises() -> dict[str, Exercise]:
    """The exercises by name."""
    from . import arrays, attention, choosing, positions, searching

    topics = (arrays, positions, attention, choosing, searching)
    found = (e for topic in topics for e in vars(topic).values() if isinstance(e, Exercise))
    return {e.written.__name__: e for e in found}
