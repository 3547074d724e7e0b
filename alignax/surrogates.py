"""Policy-gradient surrogates: losses whose gradient is the update's direction.

A surrogate is minimised. Its gradient in ``logp`` is ``−c`` with the
coefficient c that its docstring states; its value means little: read rewards,
not losses. ``logp_old`` and ``advantages`` get no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.types import InputError

# A ratio above e^LIMIT means a broken sampler; it is continued by its tangent.
LIMIT = 30.0


def log_ratio(
    logp: Float[Array, "*B T"],
    logp_old: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``logp − logp_old`` in float32, exactly zero where masked.

    Args:
      logp: ``[..., T]`` log-probabilities, differentiated.
      logp_old: ``[..., T]``, the denominator; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, in nats.

    Example:
      >>> mask = jnp.array([True, False])
      >>> print(log_ratio(jnp.array([-1.0, -jnp.inf]), -2 * jnp.ones(2), mask))
      [1. 0.]
    """
    old = jax.lax.stop_gradient(reduce.masked(logp_old, mask))
    return reduce.masked(logp, mask) - old


def policy_gradient_surrogate(
    logp: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``−A · logp``: REINFORCE. Coefficient: c = A.

    Args:
      logp: ``[..., T]`` log-probabilities, differentiated.
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
    advantages = jax.lax.stop_gradient(reduce.masked(advantages, mask))
    return -advantages * reduce.masked(logp, mask)


def clipped_surrogate(
    logp: Float[Array, "*B T"],
    logp_old: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*B T"]:
    """PPO's pessimistic bound ``−min(rA, clip(r, 1 − clip_low, 1 + clip_high)A)``.

    Coefficient: ``c = r·A`` unless clipped (``A > 0`` and ``r > 1 + clip_high``,
    or ``A < 0`` and ``r < 1 − clip_low``), then 0. At the bound itself the
    gradient is whole, where autodiff of ``minimum`` would give half of it.

    Args:
      logp: ``[..., T]`` log-probabilities, differentiated.
      logp_old: ``[..., T]``, the policy's when the update began; no gradient.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      clip_low: how far below 1 the ratio may fall, in [0, 1].
      clip_high: how far above 1 the ratio may rise, not negative.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a bound is out of range.

    Reference:
      Schulman et al., "Proximal Policy Optimization", arXiv 1707.06347, eq. 7;
      asymmetric bounds: Yu et al., "DAPO", arXiv 2503.14476, eq. 10.

    Example:
      >>> logp, mask = jnp.log(jnp.array([1.3, 1.1])), jnp.array([True, True])
      >>> print(clipped_surrogate(logp, jnp.zeros(2), jnp.ones(2), mask))
      [-1.2 -1.1]
    """
    if not 0 <= clip_low <= 1:
        raise InputError(f"clip_low must be in [0, 1], got {clip_low}")
    if clip_high < 0:
        raise InputError(f"clip_high must not be negative, got {clip_high}")
    difference = log_ratio(logp, logp_old, mask)
    ratio = numerics.exp_linear(difference, limit=LIMIT)
    advantages = jax.lax.stop_gradient(reduce.masked(advantages, mask))
    low, high = 1 - clip_low, 1 + clip_high
    clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    bound = jnp.where(advantages > 0, high, low)
    return -jnp.where(clipped, bound * advantages, ratio * advantages)
