"""Policy-gradient surrogates: losses whose gradient is the update's direction.

A composition is a log-ratio at a level, a rule and a token weight, then a reduction.

- ``ratios``: token, sequence, geometric mean, mixtures, continuous tokens.
- ``rules``, ``weights``: what becomes of a large ratio; each states its coefficient c.
- ``regions``, ``budgets``: trust regions by a divergence, by the batch.
- ``regression``: squared errors to the regularised optimum.
- ``corrections``: a sampler that disagrees with the trainer, and reports of it.
- ``entropy``: entropy targets, covariances, entropy-adaptive bounds, masked policies.
- ``terms``: what is added beside the clipped term.
- ``value``: the critic's losses.
"""

from alignax.surrogates.budgets import (
    budget_keep,
    effective_share,
    p3o_surrogate,
    prefix_budget,
    second_moment_bounds,
)
from alignax.surrogates.corrections import (
    Mismatch,
    mismatch,
    off_policy_sequences,
)
from alignax.surrogates.entropy import (
    adaptive_clip,
    clip_cov_dropped,
    covariances,
    entropy_target_surrogate,
    masked_policy_logits,
)
from alignax.surrogates.ratios import (
    RatioTail,
    blind_mixture_logp,
    clipped_log_ratio,
    continuous_log_ratio,
    geometric_log_ratio,
    geometric_token_log_ratio,
    ratio_tail,
    sequence_log_ratio,
    token_gradient,
)
from alignax.surrogates.regions import (
    binary_divergence,
    completion_divergence,
    divergence_masked_surrogate,
    diverging,
    penalised_ratio_surrogate,
    top_k_divergence,
)
from alignax.surrogates.regression import rebel_surrogate, regression_surrogate
from alignax.surrogates.rules import (
    dual_clip_surrogate,
    policy_gradient_surrogate,
    ppo_surrogate,
    ratio_surrogate,
)
from alignax.surrogates.terms import (
    forward_exploration_surrogate,
    one_token_rollout_surrogate,
    product_of_experts_logits,
)
from alignax.surrogates.value import (
    clipped_value_loss,
    conservative_targets,
    dueling_values,
    huber_value_loss,
    soft_minimum,
)
from alignax.surrogates.weights import (
    cispo_surrogate,
    sapo_surrogate,
    topr_surrogate,
    vespo_surrogate,
)

__all__ = [
    "Mismatch",
    "RatioTail",
    "adaptive_clip",
    "binary_divergence",
    "blind_mixture_logp",
    "budget_keep",
    "cispo_surrogate",
    "clip_cov_dropped",
    "clipped_log_ratio",
    "clipped_value_loss",
    "completion_divergence",
    "conservative_targets",
    "continuous_log_ratio",
    "covariances",
    "divergence_masked_surrogate",
    "diverging",
    "dual_clip_surrogate",
    "dueling_values",
    "effective_share",
    "entropy_target_surrogate",
    "forward_exploration_surrogate",
    "geometric_log_ratio",
    "geometric_token_log_ratio",
    "huber_value_loss",
    "masked_policy_logits",
    "mismatch",
    "off_policy_sequences",
    "one_token_rollout_surrogate",
    "p3o_surrogate",
    "penalised_ratio_surrogate",
    "policy_gradient_surrogate",
    "ppo_surrogate",
    "prefix_budget",
    "product_of_experts_logits",
    "ratio_surrogate",
    "ratio_tail",
    "rebel_surrogate",
    "regression_surrogate",
    "sapo_surrogate",
    "second_moment_bounds",
    "sequence_log_ratio",
    "soft_minimum",
    "token_gradient",
    "top_k_divergence",
    "topr_surrogate",
    "vespo_surrogate",
]
