"""Small worlds whose every expectation is a finite sum: the oracle of the tests."""

from alignax.exact.bandits import (
    Learner,
    exponential_weights,
    importance_weighted_losses,
    regret,
    run_bandit,
    run_full_information,
)
from alignax.exact.best_of_n import best_of_n
from alignax.exact.binary import binary_best_of_n, binary_optimum
from alignax.exact.laws import (
    expectation,
    kl,
    objective,
    policy_gradient,
    total_variation,
)
from alignax.exact.sequences import (
    completion_logp,
    enumerate_completions,
    make_tabular_apply,
    sequence_types,
    tabular_init,
)

__all__ = [
    "Learner",
    "best_of_n",
    "binary_best_of_n",
    "binary_optimum",
    "completion_logp",
    "enumerate_completions",
    "expectation",
    "exponential_weights",
    "importance_weighted_losses",
    "kl",
    "make_tabular_apply",
    "objective",
    "policy_gradient",
    "regret",
    "run_bandit",
    "run_full_information",
    "sequence_types",
    "tabular_init",
    "total_variation",
]
