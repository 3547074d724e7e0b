"""Clip rules: losses ``[..., T]`` of log-ratios and advantages.

A surrogate is minimised. Its gradient in the log-ratio is ``−c`` with the
coefficient c that its docstring states, a constant: after the reduction, the update
is ``Σ u · c · ∇log π`` with u the token's share. The value means little: read
rewards, not losses. Advantages get no gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.types import InputError


def clean(log_ratios: Array, advantages: Array, mask: Array):
    advantages = jax.lax.stop_gradient(reduce.masked(advantages, mask))
    return reduce.masked(log_ratios, mask), advantages


def ratio_of(log_ratios: Array) -> Array:
    return numerics.exp(log_ratios)


def check_bounds(clip_low: ArrayLike, clip_high: ArrayLike) -> None:
    """Arrays of bounds come from ``adaptive_clip``, which checks its own."""
    if isinstance(clip_low, int | float) and not 0 <= clip_low <= 1:
        raise InputError(f"clip_low must be in [0, 1], got {clip_low}")
    if isinstance(clip_high, int | float) and clip_high < 0:
        raise InputError(f"clip_high must not be negative, got {clip_high}")


def clipped_at(ratio, advantages, clip_low, clip_high):
    """Where PPO's bound holds, and the bound."""
    low, high = 1 - clip_low, 1 + clip_high
    dead = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    return dead, jnp.where(advantages > 0, high, low)


def policy_gradient_surrogate(
    logp: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``−A · logp``: REINFORCE. Coefficient: c = A.

    Args:
      logp: ``[..., T]`` log-probabilities or log-ratios, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Reference:
      Williams, "Simple statistical gradient-following algorithms", 1992.

    Example:
      >>> ones = jnp.ones(2)
      >>> print(policy_gradient_surrogate(-ones, 2 * ones, jnp.array([True, True])))
      [2. 2.]
    """
    logp, advantages = clean(logp, advantages, mask)
    return -advantages * logp


def ratio_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``−r A``: importance sampling without a bound. Coefficient: c = r·A.

    Args:
      log_ratios: ``[..., T]`` at any level, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Reference:
      Kakade and Langford, "Approximately optimal approximate RL", 2002.

    Example:
      >>> print(ratio_surrogate(jnp.zeros(1), jnp.ones(1), jnp.array([True])))
      [-1.]
    """
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    return -ratio_of(log_ratios) * advantages


def ppo_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    clip_low: ArrayLike = 0.2,
    clip_high: ArrayLike = 0.2,
) -> Float[Array, "*B T"]:
    """PPO's pessimistic bound ``−min(rA, clip(r, 1 − clip_low, 1 + clip_high)A)``.

    Coefficient: ``c = r·A`` unless clipped (``A > 0`` and ``r > 1 + clip_high``,
    or ``A < 0`` and ``r < 1 − clip_low``), then 0. At the bound itself the
    gradient is whole, where autodiff of ``minimum`` would give half of it.

    Args:
      log_ratios: ``[..., T]`` at any level, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      clip_low: how far below 1 the ratio may fall, in [0, 1], or ``[..., T]``.
      clip_high: how far above 1 the ratio may rise, not negative, or ``[..., T]``.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a bound is out of range.

    Reference:
      Schulman et al., "Proximal Policy Optimization", arXiv 1707.06347, eq. 7;
      asymmetric bounds: Yu et al., "DAPO", arXiv 2503.14476, eq. 10.

    Example:
      >>> ratios, mask = jnp.log(jnp.array([1.3, 1.1])), jnp.array([True, True])
      >>> print(ppo_surrogate(ratios, jnp.ones(2), mask))
      [-1.2 -1.1]
    """
    check_bounds(clip_low, clip_high)
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    ratio = ratio_of(log_ratios)
    dead, bound = clipped_at(ratio, advantages, clip_low, clip_high)
    return -jnp.where(dead, bound * advantages, ratio * advantages)


def dual_clip_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    clip_low: ArrayLike = 0.2,
    clip_high: ArrayLike = 0.2,
    cap: float = 3.0,
) -> Float[Array, "*B T"]:
    """PPO with a floor for bad tokens that became likely: ``max(ppo, cap·A)``, A < 0.

    Coefficient: as ``ppo_surrogate``, and 0 where ``A < 0`` and ``r > cap``. The same
    as a bound on the ratio from both sides with ``delta = cap`` (INTELLECT-2, TRL).

    Args:
      log_ratios: ``[..., T]`` at any level, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      clip_low: in [0, 1], or ``[..., T]``.
      clip_high: not negative, or ``[..., T]``.
      cap: above 1; verl's default 3, in DAPO's scripts 10, INTELLECT-2 4.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a bound is out of range or ``cap`` is not above 1.

    Reference:
      Ye et al., "Mastering complex control in MOBA games", arXiv 1912.09729, eq. 5;
      "INTELLECT-2", arXiv 2505.07291, eq. 2.

    Example:
      >>> ratios, mask = jnp.log(jnp.array([4.0])), jnp.array([True])
      >>> print(dual_clip_surrogate(ratios, -jnp.ones(1), mask))
      [3.]
    """
    if not cap > 1:
        raise InputError(f"cap must be above 1, got {cap}")
    plain = ppo_surrogate(
        log_ratios, advantages, mask, clip_low=clip_low, clip_high=clip_high
    )
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    capped = (advantages < 0) & (ratio_of(log_ratios) > cap)
    return jnp.where(capped, -cap * advantages, plain)
