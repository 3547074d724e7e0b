"""What stands beside this library's subject: each idea a function, with an exact world.

Score distillation and conditional control: what they share with
divergence-regularised policies is exact where the world is small.
"""

from alignax.adjacent.control import SoftOptimalChain, last_state, soft_optimal_chain
from alignax.adjacent.diffusion import (
    Mixture,
    diffused,
    distribution_matching,
    entropic_objective,
    entropic_score,
    half_square,
    log_density,
    mixture_divergence,
    pseudo_huber,
    quadrature,
    score,
    score_divergence,
)

__all__ = [
    "Mixture",
    "SoftOptimalChain",
    "diffused",
    "distribution_matching",
    "entropic_objective",
    "entropic_score",
    "half_square",
    "last_state",
    "log_density",
    "mixture_divergence",
    "pseudo_huber",
    "quadrature",
    "score",
    "score_divergence",
    "soft_optimal_chain",
]
