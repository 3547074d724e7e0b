"""Stages of trust regions by a divergence, and of regression to the optimum.

Ratios are to the law that sampled (``rules.behaviour``).
"""

import jax.numpy as jnp

from alignax import advantages, estimators, reduce, surrogates
from alignax.algorithms import stages as s
from alignax.algorithms.fields import needed


def dppo(ratios, rows, *, div, **bounds):
    """No gradient where the taken token's binary divergence is beyond its bound."""
    moved = surrogates.binary_divergence(
        div, ratios + rows.logp_old, rows.logp_old, rows.mask
    )
    return surrogates.divergence_masked_surrogate(
        ratios, rows.advantages, rows.mask, moved, **bounds
    )


def vaco(ratios, rows, *, div, **bounds):
    """DPPO by the completion's mean divergence."""
    moved = surrogates.completion_divergence(div, ratios, rows.mask)
    return surrogates.divergence_masked_surrogate(
        ratios, rows.advantages, rows.mask, moved, **bounds
    )


def cppo(ratios, rows, *, div, bound, budget, cap):
    """DPPO with a budget for the prefix, itself between once and twice ``budget`` by
    the completion's ninth decile."""
    moved = surrogates.binary_divergence(
        div, ratios + rows.logp_old, rows.logp_old, rows.mask
    )
    counted = jnp.where(rows.mask, moved, jnp.nan)
    usual = jnp.nan_to_num(jnp.nanquantile(counted, 0.9, axis=-1, keepdims=True))
    moved, limits = surrogates.prefix_budget(
        moved, rows.mask, bound=bound, budget=jnp.clip(usual, budget, 2 * budget)
    )
    return surrogates.divergence_masked_surrogate(
        ratios, rows.advantages, rows.mask, moved, low=limits, high=limits, cap=cap
    )


def spo(ratios, rows, **settings):
    return surrogates.penalised_ratio_surrogate(
        ratios, rows.advantages, rows.mask, jnp.ones_like(ratios), **settings
    )


def drpo(ratios, rows, **settings):
    """SPO, weighed by the sampler's probability of the token."""
    return surrogates.penalised_ratio_surrogate(
        ratios, rows.advantages, rows.mask, jnp.exp(rows.logp_old), **settings
    )


def within_budget(logp, rows, *, budget):
    """M2PO: 1 on tokens that keep their gradient at this update, of the batch."""
    ratios = reduce.log_ratio(logp, rows.logp_old, rows.mask)
    away = surrogates.diverging(ratios, rows.advantages, rows.mask)
    kept = surrogates.budget_keep(jnp.square(ratios), away, budget=budget)
    return (kept | ~away).astype(jnp.float32)


def m2po(ratios, rows):
    return jnp.where(rows.level > 0, s.RATIO(ratios, rows), 0)


def second_moment(logp, rows):
    """M2PO's code: the bound of each token's side at this update."""
    ratios = reduce.log_ratio(logp, rows.logp_old, rows.mask)
    low, high = surrogates.second_moment_bounds(ratios, rows.advantages, rows.mask)
    return jnp.where(rows.advantages > 0, high, low)


def bounded(ratios, rows):
    """PPO with the bound that the level holds."""
    return surrogates.ppo_surrogate(
        ratios, rows.advantages, rows.mask, clip_low=rows.level, clip_high=rows.level
    )


def effective_share(logp, rows):
    """The batch's at this update, on each token."""
    ratios = reduce.log_ratio(logp, rows.logp_old, rows.mask)
    share = surrogates.effective_share(ratios, rows.mask)
    return jnp.broadcast_to(share, ratios.shape)


def p3o(ratios, rows, *, div):
    return surrogates.p3o_surrogate(
        ratios, rows.advantages, rows.mask, div.f(ratios), rows.level
    )


def p3o_code(ratios, rows):
    penalty = estimators.k3(ratios, jnp.zeros_like(ratios), rows.mask)
    return surrogates.p3o_surrogate(
        ratios, rows.advantages, rows.mask, penalty, rows.level
    )


def to_reference(scored):
    """Ratios are to the reference of the regularised objective."""
    return needed(scored, "logp_ref")


def optimal(scored, rewards, *, div, beta):
    """OAPL: the group's own estimate of λ, at the beta in force."""
    beta = beta if scored.beta is None else scored.beta
    return advantages.optimal_centred(rewards, div=div, beta=beta)


def above_reference(scored, rewards, *, div, beta):
    """A*-PO: λ from samples of the reference."""
    sampled = needed(scored, "reference_rewards")
    value = advantages.optimal_value(div, sampled, beta=beta)
    return advantages.greedy_centred(rewards, value)


def regression(ratios, rows, *, div):
    """A whole completion's squared error at each of its tokens."""
    level = s.SEQUENCE(ratios, rows.mask)
    return surrogates.regression_surrogate(
        level, rows.advantages, rows.mask, div=div, beta=rows.beta[:, None]
    )
