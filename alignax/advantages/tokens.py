"""Token advantages that depend on the policy's own uncertainty or on other rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import reduce
from alignax.advantages.credit import constant
from alignax.types import InputError


def exploration_advantages(
    advantages: Float[Array, "*B T"],
    logp: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    power: float = 0.5,
) -> Float[Array, "*B T"]:
    """``A · (1 − π)^γ``: more for demonstrated tokens that the policy neglects.

    Args:
      advantages: ``[..., T]``.
      logp: ``[..., T]`` of the policy; no gradient.
      mask: ``[..., T]``, True on the demonstration's tokens.
      power: γ, not negative; the official code has 0.5.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``power`` is negative.

    Reference:
      Dong et al., "RL-PLUS", arXiv 2508.00222, eq. 6.

    Example:
      >>> logp = jnp.log(jnp.array([0.3]))
      >>> print(exploration_advantages(jnp.ones(1), logp, jnp.array([True])))
      [0.8367]
    """
    if power < 0:
        raise InputError(f"power must not be negative, got {power}")
    # A log-probability a rounding above 0 would have a negative remainder.
    remainder = jnp.maximum(-jnp.expm1(constant(logp, mask)), 0)
    return constant(advantages, mask) * remainder**power


def entropy_shaped(
    advantages: Float[Array, "*B T"],
    entropy: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    alpha: float = 0.4,
    kappa: float = 2.0,
) -> Float[Array, "*B T"]:
    """``A + min(α H, |A|/κ)``: a little more for uncertain tokens.

    For κ > 1 no advantage changes its sign.

    Args:
      advantages: ``[..., T]``.
      entropy: ``[..., T]`` of the policy in nats; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      alpha: α, not negative.
      kappa: κ, above 1.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``alpha`` is negative or ``kappa`` is not above 1.

    Reference:
      Cheng et al., "Reasoning with exploration: an entropy perspective",
      arXiv 2506.14758, eq. 3.

    Example:
      >>> mask = jnp.ones(3, bool)
      >>> advantages, entropy = jnp.array([1.0, 1.0, -0.5]), jnp.array([0.2, 3.0, 1.0])
      >>> print(entropy_shaped(advantages, entropy, mask))
      [1.08 1.5 -0.25]
    """
    if alpha < 0 or kappa <= 1:
        raise InputError(
            f"need alpha >= 0 and kappa > 1, got alpha={alpha}, kappa={kappa}"
        )
    values = constant(advantages, mask)
    bonus = alpha * constant(entropy, mask)
    return values + jnp.minimum(bonus, jnp.abs(values) / kappa)


def relative_entropy_level(
    entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], *, pivot: float
) -> Float[Array, "B T"]:
    """Each token's log-entropy against the batch, from −1 to 1 (HAPO's ĥ).

    ``h = (log H − quantile_pivot) / rms``, divided by its largest value where
    positive and by its smallest one's magnitude where negative. The official code
    divides by the smallest with its sign, which makes every level positive; that is
    ``jnp.abs`` of this.

    Args:
      entropy: ``[B, T]`` in nats; no gradient.
      mask: ``[B, T]``, True on generated tokens.
      pivot: the quantile of level 0, in (0, 1).

    Returns:
      ``[B, T]`` float32 in [−1, 1], zero where masked, without gradient.

    Raises:
      InputError: ``pivot`` is outside (0, 1).

    Reference:
      Liu et al., "From uniform to heterogeneous", arXiv 2509.16591.

    Example:
      >>> entropy = jnp.array([[0.05, 0.2, 0.5, 1.0, 2.0]])
      >>> print(relative_entropy_level(entropy, entropy > 0, pivot=0.5))
      [[-1. -0.3979 0. 0.5 1.]]
    """
    if not 0 < pivot < 1:
        raise InputError(f"pivot must be in (0, 1), got {pivot}")
    level = jnp.log(jnp.maximum(constant(entropy, mask), 1e-8))
    middle = jnp.nanquantile(jnp.where(mask, level, jnp.nan), pivot)
    level = jnp.where(mask, level - middle, 0)
    highest = jnp.maximum(jnp.max(level), 1e-8)
    lowest = jnp.maximum(-jnp.min(level), 1e-8)
    return jnp.where(level > 0, level / highest, level / lowest)


def redistributed_advantages(
    advantages: Float[Array, "*B T"],
    level: Float[Array, "*B T"],
    log_ratios: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    strength: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*B T"]:
    """``A (1 + strength · ĥ)`` where entropy and movement ask for it (HAPO).

    Uncertain tokens (ĥ > 0) that have left the neutral band
    ``(1 − clip_low/2, 1 + clip_high/2)`` of ratios gain, certain ones (ĥ ≤ 0) that
    are still inside it lose.

    Args:
      advantages: ``[..., T]``.
      level: ``[..., T]``, of ``relative_entropy_level``.
      log_ratios: ``[..., T]`` of the policy to the old one; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      strength: β_a in [0, 1].
      clip_low: of the clip rule.
      clip_high: of the clip rule.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``strength`` is outside [0, 1].

    Reference:
      Liu et al., "From uniform to heterogeneous", arXiv 2509.16591.

    Example:
      >>> ones, mask = jnp.ones(2), jnp.ones(2, bool)
      >>> print(redistributed_advantages(ones, ones / 2, jnp.array([0.0, 1]), mask))
      [1. 1.5]
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be in [0, 1], got {strength}")
    movement = jnp.expm1(constant(log_ratios, mask))
    neutral = (movement > -clip_low / 2) & (movement < clip_high / 2)
    level = constant(level, mask)
    changes = jnp.where(level > 0, ~neutral, neutral)
    values = constant(advantages, mask)
    return jnp.where(changes, values * (1 + strength * level), values)


def conflict_weights(
    tokens: Int[Array, "*G K T"],
    advantages: Float[Array, "*G K"],
    mask: Bool[Array, "*G K T"],
    *,
    positive: float = 2.0,
    product: bool = False,
) -> tuple[Float[Array, "*G K T"], Int[Array, "*G K"]]:
    """Protect tokens that good and bad completions share (GTPO).

    A conflict is the same token at the same place, counted from the start or from
    the end, in completions of opposite advantage; only the unbroken run from either
    end is one. Such a token weighs ``positive`` in a good completion and 0 in a bad
    one: the template is not unlearned.

    Args:
      tokens: ``[..., K, T]`` of a group.
      advantages: ``[..., K]``.
      mask: ``[..., K, T]``, True on generated tokens, which come first.
      positive: the weight in good completions.
      product: multiply the weights of the two runs where they overlap, as the
        official code does (``positive²``).

    Returns:
      weights ``[..., K, T]`` float32, zero where masked, and the number of conflict
      tokens ``[..., K]``, by which the official code also divides.

    Reference:
      Simoni et al., "GTPO", arXiv 2508.03772, eqs. 5-8.

    Example:
      >>> tokens = jnp.array([[5, 6, 2], [5, 8, 2]])
      >>> weights, count = conflict_weights(
      ...     tokens, jnp.array([1.0, -1.0]), jnp.ones((2, 3), bool)
      ... )
      >>> print(weights.tolist(), count)
      [[2.0, 1.0, 2.0], [0.0, 1.0, 0.0]] [2 2]
    """
    sign = jnp.sign(jax.lax.stop_gradient(advantages))
    opposite = sign[..., :, None] * sign[..., None, :] < 0
    length = jnp.sum(mask, axis=-1)
    position = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)

    def run(tokens):
        """True on the unbroken run of conflicts from the left."""
        counts = position < length[..., None]
        same = tokens[..., :, None, :] == tokens[..., None, :, :]
        both = counts[..., :, None, :] & counts[..., None, :, :]
        conflict = jnp.any(same & both & opposite[..., None], axis=-2)
        axis = conflict.ndim - 1
        return jax.lax.cumprod(conflict.astype(jnp.int32), axis=axis) > 0

    def flip(x):
        """Each row's generated tokens, last one first."""
        index = jnp.clip(length[..., None] - 1 - position, 0)
        return jnp.take_along_axis(x, index, axis=-1)

    forward, backward = run(tokens), flip(run(flip(tokens)))
    weight = jnp.where(sign > 0, positive, 0.0)[..., None]
    once = jnp.where(forward | backward, weight, 1.0)
    twice = jnp.where(forward, weight, 1.0) * jnp.where(backward, weight, 1.0)
    weights = reduce.masked(twice if product else once, mask)
    return weights, jnp.sum((forward | backward) & mask, axis=-1)
