"""The policy-gradient family by its published names, each a composition of pieces.

    METHODS["dapo"].algorithm          a composition, also ``algorithms.dapo``
    rows = prepare(algorithm, scored)  once a rollout
    rows = followed(algorithm, logp, rows)   before an update from a moved policy
    losses(algorithm, logp, entropy, rows), reduced(algorithm, …)   in the loss

``compose`` has the order of the stages; ``stages``, ``methods`` and ``rules`` their
functions; ``table``, ``table_rewards`` and ``table_ratios`` the methods with paper and
defaults. An ``Algorithm`` is a plain value: two are equal where their fields are, and
printed they are the call that makes them.
"""

from alignax.algorithms.compose import (
    Algorithm,
    Critic,
    Method,
    Replay,
    Rows,
    Sampling,
    followed,
    losses,
    pooled,
    prepare,
    reduced,
)
from alignax.algorithms.fields import needed
from alignax.algorithms.needs import needs, reads_behaviour
from alignax.algorithms.table import METHODS
from alignax.algorithms.target import Target
from alignax.algorithms.values import partial

__all__ = [
    "METHODS",
    "Algorithm",
    "Critic",
    "Method",
    "Replay",
    "Rows",
    "Sampling",
    "Target",
    "followed",
    "losses",
    "needed",
    "needs",
    "partial",
    "pooled",
    "prepare",
    "reads_behaviour",
    "reduced",
]


def __getattr__(name: str) -> Algorithm:
    """The table's compositions as attributes: ``algorithms.grpo``."""
    method = METHODS.get(name)
    if method is None or method.algorithm is None:
        raise AttributeError(f"module 'alignax.algorithms' has no attribute {name!r}")
    return method.algorithm


def __dir__() -> list[str]:
    return [*__all__, *(key for key, method in METHODS.items() if method.algorithm)]
