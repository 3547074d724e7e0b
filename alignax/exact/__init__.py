"""Small worlds whose every expectation is a finite sum: the oracle of the tests."""

from alignax.exact.binary import binary_best_of_n, binary_optimum
from alignax.exact.sequences import (
    completion_logp,
    enumerate_completions,
    expectation,
    kl,
    make_tabular_apply,
    objective,
    optimum,
    tabular_init,
)

__all__ = [
    "binary_best_of_n",
    "binary_optimum",
    "completion_logp",
    "enumerate_completions",
    "expectation",
    "kl",
    "make_tabular_apply",
    "objective",
    "optimum",
    "tabular_init",
]
