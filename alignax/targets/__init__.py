"""Laws that a policy is trained towards, or that are sampled in its stead.

KL-regularised RL fits a posterior ``p*(y) ∝ ρ(y) e^{r(y)/β}``: the reference is the
prior, ``r/β`` the log-likelihood, and the objective is a bound on the evidence,

``E_π r − β KL(π‖ρ) = β log Z − β KL(π‖p*)``.

``laws`` is exact, over all K outcomes; ``samples`` works from the log-weights
``log P − log q`` of N samples of a proposal q, for a target P known up to its
normaliser. The law with given moments is ``divergences.information_projection``.
"""

from alignax.targets.laws import (
    Cumulants,
    conditioned,
    constrained_optimum,
    cumulants,
    posterior,
    quasi_rejection_law,
    renyi_cross_entropy,
)
from alignax.targets.samples import (
    LogNormaliser,
    importance_expectation,
    kl_to_posterior,
    log_acceptance,
    log_normaliser,
    quasi_rejection_quality,
    running_log_normaliser,
)

__all__ = [
    "Cumulants",
    "LogNormaliser",
    "conditioned",
    "constrained_optimum",
    "cumulants",
    "importance_expectation",
    "kl_to_posterior",
    "log_acceptance",
    "log_normaliser",
    "posterior",
    "quasi_rejection_law",
    "quasi_rejection_quality",
    "renyi_cross_entropy",
    "running_log_normaliser",
]
