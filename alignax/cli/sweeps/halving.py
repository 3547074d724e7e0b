"""Which trials go on: successive halving, decided from the scores alone."""

import math
from collections.abc import Sequence


def standing(
    scores: Sequence[Sequence[float | None]], *, rungs: int, factor: int
) -> list[int]:
    """How many rungs each point has passed, or may still run to.

    At a rung one in ``factor`` of the points that reached it stays, at least one: the
    best, of equals the first. It is decided once all of them are there, so that the
    outcome does not depend on who came first.

    Args:
      scores: of each point at each rung so far, higher is better; None where it is not
        there yet, NaN where it never will be or is no number.
      rungs: their number.
      factor: at least 2.

    Returns:
      for each point the rung that it may run to, ``rungs`` for the end of its run.

    Reference:
      Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
      Optimization", arXiv 1502.07943, Algorithm 1.

    Example:
      >>> standing([[0.1], [0.9], [0.4], [0.8]], rungs=1, factor=2)
      [0, 1, 0, 1]
      >>> standing([[0.1], [0.9], [None], [0.8]], rungs=1, factor=2)
      [0, 0, 0, 0]
    """
    level = [0] * len(scores)
    alive = list(range(len(scores)))
    for rung in range(rungs):
        found = {point: _at(scores[point], rung) for point in alive}
        if any(score is None for score in found.values()):
            return level
        kept = max(1, len(alive) // factor)
        numbers = {
            p: s for p, s in found.items() if s is not None and not math.isnan(s)
        }
        # Python's sort keeps the order of equals.
        alive = sorted(numbers, key=lambda point: -numbers[point])[:kept]
        for point in alive:
            level[point] = rung + 1
    return level


def _at(scores: Sequence[float | None], rung: int) -> float | None:
    return scores[rung] if rung < len(scores) else None
