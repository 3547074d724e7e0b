"""What stands beside this library's subject: each idea a function, with an exact world.

Score distillation, conditional control, occupancies, adversarial rewards, offline
data, bilevel penalties and collapsed posteriors: what they share with
divergence-regularised policies is exact where the world is small.
"""

from alignax.adjacent.adversarial import adversarial_payoff, adversarial_reward_loss
from alignax.adjacent.bilevel import hypergradient, penalised_value
from alignax.adjacent.collapse import LinearVae, linear_vae, linear_vae_loss
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
from alignax.adjacent.offline import (
    advantage_guided_targets,
    age_weights,
    constrained_actor_losses,
    nearest_actions,
    policy_backup,
    subset_minimum,
    variational_bound,
)

__all__ = [
    "LinearVae",
    "Mixture",
    "SoftOptimalChain",
    "advantage_guided_targets",
    "adversarial_payoff",
    "adversarial_reward_loss",
    "age_weights",
    "constrained_actor_losses",
    "correlation",
    "diffused",
    "discriminator_losses",
    "distribution_matching",
    "entropic_objective",
    "entropic_score",
    "half_square",
    "hypergradient",
    "last_state",
    "linear_vae",
    "linear_vae_loss",
    "log_density",
    "mixture_divergence",
    "nearest_actions",
    "occupancy",
    "penalised_value",
    "policy_backup",
    "proxy_bound",
    "pseudo_huber",
    "quadrature",
    "root_step_penalties",
    "score",
    "score_divergence",
    "soft_optimal_chain",
    "step_penalties",
    "subset_minimum",
    "variational_bound",
]
