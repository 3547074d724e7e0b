"""Importance weights π/b for tokens that came from a behaviour policy b.

Constants: none has a gradient. A token term that depends on the tokens up to its
own is corrected by ``prefix_weights``, one that depends on those before it (a sum
over the vocabulary) by ``context_weights``: multiply, and the expectation is the
policy's. ``token_weights`` correct the token and leave the prefix as it is. The
policy must put no mass where the behaviour has none, or that mass is lost. A weight
beyond ``e^40`` (float32) goes on as the exponential's tangent, less than it should be.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.estimators import _common
from alignax.types import InputError


def token_weights(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``π(y_t|y_<t) / b(y_t|y_<t)``.

    Args:
      logp: ``[..., T]`` of the taken tokens under the policy.
      logp_behaviour: ``[..., T]`` under the law that sampled them.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(token_weights(logp, jnp.log(jnp.array([0.25, 0.5])), mask))
      [2. 1.]
    """
    difference = _constant_ratio(logp, logp_behaviour, mask)
    return jnp.where(mask, numerics.exp(difference), 0)


def prefix_weights(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``Π_{n ≤ t} π(y_n|y_<n) / b(y_n|y_<n)``: the tokens up to t.

    Args:
      logp: ``[..., T]`` of the taken tokens under the policy.
      logp_behaviour: ``[..., T]`` under the law that sampled them.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Precup, Sutton and Singh, "Eligibility traces for off-policy policy
      evaluation", 2000 (per-decision importance sampling).

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(prefix_weights(logp, jnp.log(jnp.array([0.25, 0.5])), mask))
      [2. 2.]
    """
    difference = _constant_ratio(logp, logp_behaviour, mask)
    summed = jax.lax.cumsum(difference, axis=difference.ndim - 1)
    return jnp.where(mask, numerics.exp(summed), 0)


def context_weights(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``Π_{n < t} π(y_n|y_<n) / b(y_n|y_<n)``: the tokens before t.

    Args:
      logp: ``[..., T]`` of the taken tokens under the policy.
      logp_behaviour: ``[..., T]`` under the law that sampled them.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(context_weights(logp, jnp.log(jnp.array([0.25, 0.5])), mask))
      [1. 2.]
    """
    difference = _constant_ratio(logp, logp_behaviour, mask)
    before = jax.lax.cumsum(difference, axis=difference.ndim - 1) - difference
    return jnp.where(mask, numerics.exp(before), 0)


def sequence_weights(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``Π_n π(y_n|y_<n) / b(y_n|y_<n)``: the whole sequence, at each of its tokens.

    As exact as ``prefix_weights``, of higher variance.

    Args:
      logp: ``[..., T]`` of the taken tokens under the policy.
      logp_behaviour: ``[..., T]`` under the law that sampled them.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(sequence_weights(logp, jnp.log(jnp.array([0.25, 0.25])), mask))
      [4. 4.]
    """
    difference = _constant_ratio(logp, logp_behaviour, mask)
    return jnp.where(mask, numerics.exp(_common.total(difference)), 0)


def truncated_weights(
    weights: Float[Array, "*shape"], *, cap: float
) -> Float[Array, "*shape"]:
    """``min(w, cap)``: less variance, and a bias.

    Args:
      weights: ``[...]``, not negative.
      cap: positive.

    Returns:
      ``[...]`` float32; no gradient.

    Raises:
      InputError: ``cap`` is not positive.

    Reference:
      Ionides, "Truncated importance sampling", 2008.

    Example:
      >>> print(truncated_weights(jnp.array([0.5, 1.0, 4.0, 0.1]), cap=2.0))
      [0.5 1. 2. 0.1]
    """
    if not cap > 0:
        raise InputError(f"cap must be positive, got {cap}")
    return jnp.minimum(jax.lax.stop_gradient(numerics.as_float(weights)), cap)


def masked_weights(
    weights: Float[Array, "*shape"], *, low: float, high: float
) -> Float[Array, "*shape"]:
    """``w`` inside ``[low, high]``, 0 outside: what disagrees too much is dropped.

    Args:
      weights: ``[...]``, not negative.
      low: the smallest weight that is kept, not negative.
      high: the largest, not less than ``low``.

    Returns:
      ``[...]`` float32; no gradient.

    Raises:
      InputError: the bounds are not ``0 ≤ low ≤ high``.

    Example:
      >>> print(masked_weights(jnp.array([0.5, 1.0, 4.0, 0.1]), low=0.5, high=2.0))
      [0.5 1. 0. 0.]
    """
    if not 0 <= low <= high:
        raise InputError(f"need 0 <= low <= high, got low={low}, high={high}")
    weights = jax.lax.stop_gradient(numerics.as_float(weights))
    return jnp.where((weights >= low) & (weights <= high), weights, 0)


def effective_sample_size(weights: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """``(Σ w)² / Σ w²``: how many equal weights would average as well.

    Args:
      weights: ``[..., N]``, not negative.

    Returns:
      ``[...]`` float32 between 1 and N; 0 where every weight is 0.

    Reference:
      Kong, "A note on importance sampling using standardized weights", 1992.

    Example:
      >>> print(effective_sample_size(jnp.array([1.0, 1.0, 0.0, 0.0])))
      2.0
    """
    weights = numerics.as_float(weights)
    # Divided by the largest first: its square may overflow.
    largest = jnp.max(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(weights**2, axis=-1)
    return jnp.sum(weights, axis=-1) ** 2 / jnp.where(squares > 0, squares, 1)


def _constant_ratio(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    return jax.lax.stop_gradient(reduce.log_ratio(logp, logp_behaviour, mask))
