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
from alignax.adjacent.occupancies import (
    correlation,
    discriminator_losses,
    occupancy,
    proxy_bound,
    root_step_penalties,
    step_penalties,
)

__all__ = [
    "Mixture",
    "SoftOptimalChain",
    "correlation",
    "diffused",
    "discriminator_losses",
    "distribution_matching",
    "entropic_objective",
    "entropic_score",
    "half_square",
    "last_state",
    "log_density",
    "mixture_divergence",
    "occupancy",
    "proxy_bound",
    "pseudo_huber",
    "quadrature",
    "root_step_penalties",
    "score",
    "score_divergence",
    "soft_optimal_chain",
    "step_penalties",
]
