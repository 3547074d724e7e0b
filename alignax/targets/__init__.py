"""Laws that a policy is trained towards, or that are sampled in its stead.

KL-regularised RL fits a posterior ``p*(y) ∝ ρ(y) e^{r(y)/β}``: the reference is the
prior, ``r/β`` the log-likelihood, and the objective is a bound on the evidence,

``E_π r − β KL(π‖ρ) = β log Z − β KL(π‖p*)``.

``laws`` is exact, over all K outcomes; ``densities`` are unnormalised ``log P`` of
sampled completions, ``multipliers`` fits those of constraints in expectation, and
``normalisers`` and ``samples`` work from the log-weights ``log P − log q`` of N samples
of a proposal q. ``descent`` is f-DPG: any divergence to any of them. The law with given
moments is ``divergences.information_projection``.
"""

from alignax.targets.densities import (
    filtered,
    mixture_of_experts,
    product_of_experts,
    tilted,
)
from alignax.targets.descent import fdpg_surrogate
from alignax.targets.laws import (
    Cumulants,
    Rate,
    conditioned,
    constrained_optimum,
    cumulants,
    posterior,
    quasi_rejection_law,
    rate_function,
    renyi_cross_entropy,
)
from alignax.targets.multipliers import Multipliers, fit_multipliers, refuse_unmet
from alignax.targets.normalisers import (
    LogNormaliser,
    NormaliserBounds,
    NormaliserError,
    WindowedMean,
    log_normaliser,
    normaliser_bounds,
    normaliser_error,
    others_log_normaliser,
    running_log_normaliser,
    windowed_mean,
)
from alignax.targets.payoffs import exponentiated_payoff
from alignax.targets.samples import (
    importance_expectation,
    kl_to_posterior,
    log_acceptance,
    quasi_rejection_quality,
)

__all__ = [
    "Cumulants",
    "LogNormaliser",
    "Multipliers",
    "NormaliserBounds",
    "NormaliserError",
    "Rate",
    "WindowedMean",
    "conditioned",
    "constrained_optimum",
    "cumulants",
    "exponentiated_payoff",
    "fdpg_surrogate",
    "filtered",
    "fit_multipliers",
    "importance_expectation",
    "kl_to_posterior",
    "log_acceptance",
    "log_normaliser",
    "mixture_of_experts",
    "normaliser_bounds",
    "normaliser_error",
    "others_log_normaliser",
    "posterior",
    "product_of_experts",
    "quasi_rejection_law",
    "quasi_rejection_quality",
    "rate_function",
    "refuse_unmet",
    "renyi_cross_entropy",
    "running_log_normaliser",
    "tilted",
    "windowed_mean",
]
