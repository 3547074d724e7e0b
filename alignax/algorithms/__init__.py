"""The policy-gradient family by its published names, each a composition of pieces.

    METHODS["dapo"].algorithm          a composition
    rows = prepare(algorithm, scored)  once a rollout
    losses(algorithm, logp, entropy, rows), reduced(algorithm, …)   in the loss

``compose`` has the order of the stages, ``stages`` and ``methods`` their functions,
``table`` the methods with paper, defaults and check.
"""

from alignax.algorithms.compose import (
    Algorithm,
    Rows,
    losses,
    prepare,
    reduced,
)
from alignax.algorithms.entry import Method
from alignax.algorithms.table import METHODS

__all__ = [
    "METHODS",
    "Algorithm",
    "Method",
    "Rows",
    "losses",
    "prepare",
    "reduced",
]
