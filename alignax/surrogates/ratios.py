"""Log-ratios ``[..., T]`` at their levels: token, sequence, geometric mean, mixture.

A level is a map of token log-ratios; a sequence's is the same at each of its tokens,
so that one rule and one reduction serve all. Its gradient reaches every token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.numerics import as_float
from alignax.types import InputError


class RatioTail(NamedTuple):
    """Of token ratios that should be 1; fractions add over microbatches."""

    mean: reduce.Fraction
    outside: reduce.Fraction
    """The share outside [0.9, 1.1]."""
    largest: Float[Array, ""]
    """The largest distance of a log-ratio from 0, in nats."""


def ratio_tail(
    logp: Float[Array, "B T"],
    logp_behaviour: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> RatioTail:
    """What to report at the first update of a rollout, where the policy is its sampler.

    The mean of ``π/μ`` over μ's tokens is 1 where both are distributions over the same
    tokens, however coarse: another mean says that another one was scored. A tail
    around 1 is rounding.

    Args:
      logp: ``[B, T]`` of the policy; no gradient.
      logp_behaviour: ``[B, T]`` of the sampler.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      a ``RatioTail`` of float32 scalars.

    Example:
      >>> mask, old = jnp.ones((1, 4), bool), jnp.zeros((1, 4))
      >>> tail = ratio_tail(jnp.log(jnp.array([[1.2, 0.8, 1.0, 1.0]])), old, mask)
      >>> print(reduce.divide(*tail.mean), reduce.divide(*tail.outside))
      1.0 0.5
    """
    ratios = jax.lax.stop_gradient(reduce.log_ratio(logp, logp_behaviour, mask))
    outside = jnp.abs(jnp.expm1(ratios)) > 0.1
    return RatioTail(
        mean=reduce.token_mean(numerics.exp(ratios), mask),
        outside=reduce.token_mean(outside.astype(jnp.float32), mask),
        largest=jnp.max(jnp.abs(ratios)),
    )


def sequence_log_ratio(
    log_ratios: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """The whole completion's log-ratio at each of its tokens: ``Σ_n d_n``.

    The only level whose ratio makes an outcome's gradient exact off-policy.

    Args:
      log_ratios: ``[..., T]``, of ``log_ratio``.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> mask = jnp.array([True, True, False])
      >>> print(sequence_log_ratio(jnp.array([1.0, 2.0, 9.0]), mask))
      [3. 3. 0.]
    """
    total = jnp.sum(reduce.masked(log_ratios, mask), axis=-1, keepdims=True)
    return jnp.where(mask, total, 0)


def geometric_log_ratio(
    log_ratios: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """The mean log-ratio at each token: ``(1/n) Σ_n d_n`` (GSPO).

    No importance weight, but of a scale that does not grow with the length. One
    token alone is PPO's.

    Args:
      log_ratios: ``[..., T]``, of ``log_ratio``.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Zheng et al., "Group sequence policy optimization", arXiv 2507.18071, eq. 7.

    Example:
      >>> mask = jnp.array([True, True, False])
      >>> print(geometric_log_ratio(jnp.array([1.0, 2.0, 9.0]), mask))
      [1.5 1.5 0.]
    """
    total = jnp.sum(reduce.masked(log_ratios, mask), axis=-1, keepdims=True)
    count = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.float32)
    return jnp.where(mask, reduce.divide(total, count), 0)


def geometric_token_log_ratio(
    log_ratios: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """The mean log-ratio, each token with a gradient of its own only (GSPO-token).

    With the same advantage at every token and the mean over tokens the gradient is
    GSPO's; token advantages may differ.

    Args:
      log_ratios: ``[..., T]``, of ``log_ratio``.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Zheng et al., "Group sequence policy optimization", arXiv 2507.18071, eq. 13.

    Example:
      >>> mask = jnp.array([True, True, False])
      >>> print(geometric_token_log_ratio(jnp.array([1.0, 2.0, 9.0]), mask))
      [1.5 1.5 0.]
    """
    mean = geometric_log_ratio(log_ratios, mask)
    return token_gradient(mean, reduce.masked(log_ratios, mask))


def token_gradient(
    log_ratios: Float[Array, "*B T"], logp: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """A level's value with each token's own gradient: ``sg(d) + logp − sg(logp)``.

    A weight of the whole sequence times the token's score is then summed over tokens
    once, and not once for each token that the level reaches.

    Args:
      log_ratios: ``[..., T]`` of any level; no gradient.
      logp: ``[..., T]`` token log-ratios or log-probabilities, differentiated, finite
        where ``log_ratios`` is not masked.

    Returns:
      ``[..., T]`` float32.

    Example:
      >>> loss = lambda x: token_gradient(jnp.array([3.0, 3.0]), x).sum()
      >>> print(jax.grad(loss)(jnp.zeros(2)))
      [1. 1.]
    """
    logp = as_float(logp)
    value = jax.lax.stop_gradient(as_float(log_ratios))
    return value + (logp - jax.lax.stop_gradient(logp))


def clipped_log_ratio(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    low: float = 0.4,
    high: float = 0.4,
) -> Float[Array, "*B T"]:
    """PPO's bound in log space, before the sequence's mean (GMPO).

    ``min(d, high)`` for positive advantages, ``max(d, −low)`` for negative ones. A
    clipped token has no gradient and still counts in the mean.

    Args:
      log_ratios: ``[..., T]``, of ``log_ratio``.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      low: nats below 0, not negative.
      high: nats above 0, not negative.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: a bound is negative.

    Reference:
      Zhao et al., "Geometric-mean policy optimization", arXiv 2507.20673, eq. 4.

    Example:
      >>> mask, ratios = jnp.ones(2, bool), jnp.array([0.9, -0.9])
      >>> print(clipped_log_ratio(ratios, jnp.ones(2), mask))
      [0.4 -0.9]
    """
    if low < 0 or high < 0:
        raise InputError(f"low and high must not be negative, got {low}, {high}")
    values = reduce.masked(log_ratios, mask)
    sign = jnp.sign(jax.lax.stop_gradient(reduce.masked(advantages, mask)))
    above = (sign > 0) & (values > high)
    below = (sign < 0) & (values < -low)
    return jnp.where(above, high, jnp.where(below, -low, values))


def blind_mixture_logp(
    logp_old: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """The denominator for demonstrations by nobody knows whom (RL-PLUS).

    The demonstrator is taken for ``π_ω = (π_old + 1)/2``, midway between the policy
    and certainty; the mixture of both in equal parts is ``¾ π_old + ¼``, and the
    ratio ``2π/(π_ω + π_old)`` is at most 4.

    Args:
      logp_old: ``[..., T]`` of the demonstrated tokens under the old policy.
      mask: ``[..., T]``, True on the demonstration's tokens.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Reference:
      Dong et al., "RL-PLUS", arXiv 2508.00222, eq. 5.

    Example:
      >>> old = jnp.log(jnp.array([0.25]))
      >>> print(0.3 / jnp.exp(blind_mixture_logp(old, jnp.array([True]))))
      [0.6857]
    """
    old = jax.lax.stop_gradient(reduce.masked(logp_old, mask))
    return jnp.where(mask, jnp.log(0.75 * jnp.exp(old) + 0.25), 0)


def continuous_log_ratio(
    logp: Float[Array, "*B T N"],
    logp_old: Float[Array, "*B T N"],
    mask: Bool[Array, "*B T"],
    *,
    root: bool = False,
) -> Float[Array, "*B T"]:
    """The log-ratio of a continuous token made of N sampled ones (CoT2-MTS).

    A step feeds the mean embedding of N tokens drawn with replacement; its ratio is
    the product of theirs, or the N-th root. N = 1 is the token ratio.

    Args:
      logp: ``[..., T, N]`` of the drawn tokens, differentiated.
      logp_old: ``[..., T, N]``; no gradient.
      mask: ``[..., T]``, True on generated steps.
      root: take the N-th root.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Gozeten et al., "Continuous chain of thought enables parallel exploration and
      reasoning", arXiv 2505.23648, §5.

    Example:
      >>> logp, old = jnp.log(jnp.array([[0.5, 0.3]])), jnp.log(jnp.array([[0.4, 0.4]]))
      >>> print(jnp.exp(continuous_log_ratio(logp, old, jnp.array([True]))))
      [0.9375]
    """
    counts = jnp.broadcast_to(mask[..., None], logp.shape)
    apart = reduce.log_ratio(logp, logp_old, counts)
    return jnp.mean(apart, axis=-1) if root else jnp.sum(apart, axis=-1)
