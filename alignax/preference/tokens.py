"""Inside a completion: scores that see each token's law, token masks and rewards.

A score is what stands in for ``log π/ρ`` in a margin. A margin is
``score(w) − score(l)``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax._checks import Strength, not_negative
from alignax.numerics import as_float
from alignax.preference.pairs import Pair, log_ratios
from alignax.types import InputError


def tdpo1_margin(
    pair: Pair, kl_w: Float[Array, "*batch"], kl_l: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``h − (D(l) − D(w))``: the margin that a token-level Bradley-Terry model has.

    Args:
      pair: of ``[...]``.
      kl_w: ``[...]``, ``Σ_t KL(ρ‖π)`` along the preferred completions.
      kl_l: ``[...]`` along the others.

    Returns:
      ``[...]``, without β.

    Reference:
      Zeng et al., arXiv 2404.11999, eq. 14.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.0, 1.0, 1.0]))
      >>> print(tdpo1_margin(pair, *jnp.array([0.5, 1.0])))
      1.5
    """
    u, v = log_ratios(pair)
    return (u - v) - (as_float(kl_l) - as_float(kl_w))


def tdpo2_margin(
    pair: Pair,
    kl_w: Float[Array, "*batch"],
    kl_l: Float[Array, "*batch"],
    *,
    alpha: float = 0.5,
) -> Float[Array, "*batch"]:
    """``h − α (D(l) − sg D(w))``: the preferred side's KL moves nothing.

    Args:
      pair: of ``[...]``.
      kl_w: ``[...]``, ``Σ_t KL(ρ‖π)`` along the preferred completions.
      kl_l: ``[...]`` along the others.
      alpha: weight of the KL terms, not negative.

    Returns:
      ``[...]``, without β.

    Raises:
      InputError: ``alpha`` is negative.

    Reference:
      Zeng et al., arXiv 2404.11999, eq. 16.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.0, 1.0, 1.0]))
      >>> print(tdpo2_margin(pair, *jnp.array([0.5, 1.0])))
      1.75
    """
    not_negative(alpha=alpha)
    u, v = log_ratios(pair)
    return (u - v) - alpha * (as_float(kl_l) - jax.lax.stop_gradient(as_float(kl_w)))


def sparse_score(
    logp: Float[Array, "*batch T"],
    logp_ref: Float[Array, "*batch T"],
    kl: Float[Array, "*batch T"],
    reward_weights: Float[Array, "*batch T"],
    kl_weights: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
) -> Float[Array, "*batch"]:
    """SparsePO's ``Σ_t m^u_t log π_t/ρ_t + m^d_t KL(ρ_t‖π_t)`` of one completion.

    Weights of 1 make the margin TDPO1's; ``m^d = 0`` makes it DPO's. Those of
    ``activation_weights`` are fixed; weights trained with the policy, under an L1
    penalty, have a degenerate optimum, all at 0.

    Args:
      logp: ``[..., T]`` of the taken tokens.
      logp_ref: ``[..., T]``, held fixed.
      kl: ``[..., T]``, ``divergences.exact(forward_kl(), logits, logits_ref)``.
      reward_weights: ``[..., T]``, m^u.
      kl_weights: ``[..., T]``, m^d; the same array for common weights.
      mask: ``[..., T]``, True on the completion's tokens.

    Returns:
      ``[...]``, without β.

    Reference:
      Christopoulou et al., "SparsePO: controlling preference alignment of LLMs via
      sparse token masks", arXiv 2410.05102, eq. 6.

    Example:
      >>> logp, ones, mask = -jnp.ones(2), jnp.ones(2), jnp.array([True, False])
      >>> print(sparse_score(logp, 2 * logp, ones, ones, 0.5 * ones, mask))
      1.5
    """
    logp_ref = jax.lax.stop_gradient(logp_ref)
    # Before they are multiplied: 0 times what padding holds may be NaN.
    logp, logp_ref, kl, up, down = (
        reduce.masked(x, mask) for x in (logp, logp_ref, kl, reward_weights, kl_weights)
    )
    return jnp.sum(up * (logp - logp_ref) + down * kl, axis=-1)


def activation_weights(
    hidden_ref: Float[Array, "*batch L T D"], mask: Bool[Array, "*batch T"]
) -> Float[Array, "*batch T"]:
    """SparsePO's fixed token weights (MaPO), from the reference's activations.

    In each layer the mean activation of a token is standardised over the completion
    and stretched to [0, 1]; the layers are averaged.

    Args:
      hidden_ref: ``[..., L, T, D]`` of the reference; no gradient.
      mask: ``[..., T]``, True on the completion's tokens.

    Returns:
      ``[..., T]`` in [0, 1]; 0 where masked, and where all tokens are alike.

    Reference:
      Christopoulou et al., arXiv 2410.05102, §3.1.

    Example:
      >>> hidden = jnp.array([[[0.0], [1.0], [4.0], [9.0]]])
      >>> print(activation_weights(hidden, jnp.array([True, True, True, False])))
      [0. 0.25 1. 0.]
    """
    counted = mask[..., None, :]
    hidden = jnp.where(counted[..., None], jax.lax.stop_gradient(hidden_ref), 0)
    # To standardise first would not change what is stretched to [0, 1].
    means = jnp.mean(as_float(hidden), axis=-1)
    high = jnp.max(means, axis=-1, keepdims=True, where=counted, initial=-jnp.inf)
    low = jnp.min(means, axis=-1, keepdims=True, where=counted, initial=jnp.inf)
    some = high > low
    stretched = (means - jnp.where(some, low, 0)) / jnp.where(some, high - low, 1)
    return jnp.mean(jnp.where(counted & some, stretched, 0), axis=-2)


def tail_discounted_logp(
    logp: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    length_other: Float[Array, "*batch"],
    *,
    alpha: float,
) -> Float[Array, "*batch"]:
    """LD-DPO's log-probability: what goes beyond the other's length counts α.

    Use it for policy and reference alike, on both sides of a pair.

    Args:
      logp: ``[..., T]`` of the taken tokens.
      mask: ``[..., T]``, True on the completion's tokens.
      length_other: ``[...]``, tokens of the other completion.
      alpha: weight of the tail, in [0, 1].

    Returns:
      ``[...]``.

    Raises:
      InputError: ``alpha`` is not in [0, 1].

    Reference:
      Liu et al., "Length desensitization in direct preference optimization",
      arXiv 2409.06411, eq. 11.

    Example:
      >>> logp, mask = -jnp.ones(4), jnp.array([True, True, True, False])
      >>> print(tail_discounted_logp(logp, mask, jnp.array(1.0), alpha=0.5))
      -2.0
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], got {alpha}")
    place = jnp.cumsum(mask, axis=-1)
    weights = jnp.where(place <= length_other[..., None], 1.0, alpha)
    return jnp.sum(weights * reduce.masked(logp, mask), axis=-1)


def on_policy_weight(
    logp: Float[Array, "*batch T"],
    log_collision: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
) -> Float[Array, "*batch"]:
    """WPO's weight of a completion: how much the policy itself would write it.

    ``exp(mean_t [log π(y_t) − log Σ_v π(v)²])``. A pair's loss is weighted by the
    product of its two.

    Value: 1 on average for a policy's own tokens, far less for others'.
    Gradient: none; the result is stopped.

    Args:
      logp: ``[..., T]`` of the taken tokens.
      log_collision: ``[..., T]``, ``log Σ_v π(v)²`` of the law at each place.
      mask: ``[..., T]``, True on the completion's tokens.

    Returns:
      ``[...]``, 1 for an empty completion.

    Reference:
      Zhou et al., "WPO: enhancing RLHF with weighted preference optimization",
      arXiv 2406.11827, eq. 8.

    Example:
      >>> quarter = jnp.log(jnp.array([0.25]))
      >>> print(on_policy_weight(quarter, quarter, jnp.array([True])))
      1.0
    """
    logp, log_collision = jax.lax.stop_gradient((logp, log_collision))
    gaps = reduce.masked(logp, mask) - reduce.masked(log_collision, mask)
    length = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    return jnp.exp(reduce.divide(jnp.sum(gaps, axis=-1), length))


def token_rewards(
    logp_dpo: Float[Array, "*batch T"],
    logp_ref: Float[Array, "*batch T"],
    logp: Float[Array, "*batch T"],
    rewards: Float[Array, "*batch"],
    mask: Bool[Array, "*batch T"],
    *,
    beta_dpo: Strength = 0.05,
    beta_kl: Strength = 0.01,
    clip: float = 0.05,
) -> Float[Array, "*batch T"]:
    """RTO's dense rewards: what a DPO-trained policy says of each token.

    ``clip(β₁ log π_dpo/ρ, ±c) − β₂ log π/ρ``, and the completion's reward on its last
    token. For ``π_dpo ∝ ρ e^{r/β₁}`` the first term telescopes to ``r − V(x)``: it is
    shaping by a potential, and changes no optimum.

    Value: a reward a token, for GAE.
    Gradient: none; the result is stopped.

    Args:
      logp_dpo: ``[..., T]`` of the taken tokens under the DPO-trained policy.
      logp_ref: ``[..., T]`` under the reference.
      logp: ``[..., T]`` under the policy.
      rewards: ``[...]`` of the completions, scaled.
      mask: ``[..., T]``, True on the completion's tokens.
      beta_dpo: β₁.
      beta_kl: β₂.
      clip: c, positive; ``inf`` for the unclipped reward.

    Returns:
      ``[..., T]``, 0 where masked.

    Raises:
      InputError: ``clip`` is not positive.

    Reference:
      Zhong et al., "DPO meets PPO: reinforced token optimization for RLHF",
      arXiv 2404.18922, eq. 4.7.

    Example:
      >>> zero, mask = jnp.zeros(3), jnp.array([True, True, False])
      >>> print(token_rewards(zero + 0.5, zero, zero, jnp.array(1.0), mask))
      [0.025 1.025 0.]
    """
    if not clip > 0:
        raise InputError(f"clip must be positive, got {clip}")
    logp_dpo, logp_ref, logp = (
        reduce.masked(x, mask) for x in (logp_dpo, logp_ref, logp)
    )
    dense = jnp.clip(beta_dpo * (logp_dpo - logp_ref), -clip, clip)
    dense = dense - beta_kl * (logp - logp_ref)
    count = jnp.cumsum(mask, axis=-1)
    last = mask & (count == count[..., -1:])
    end = jnp.where(last, as_float(rewards)[..., None], 0)
    return jax.lax.stop_gradient(reduce.masked(dense + end, mask))
