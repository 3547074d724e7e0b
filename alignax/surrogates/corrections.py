"""A sampler whose log-probabilities differ from the trainer's: weights and reports.

The trainer's ratio is ``π/π_old``; the sampler's tokens came from μ. Multiply the
surrogate *and the divergence's token terms* by a weight of ``π_old/μ``, a constant:

- TIS: ``estimators.truncated_weights(estimators.token_weights(logp_old,
  logp_behaviour, mask), cap=2.0)``, or of ``sequence_weights``.
- MIS, IcePop: ``estimators.masked_weights(…, low=0.5, high=2.0)``.
- whole completions: ``off_policy_sequences`` here, as a mask.

Or leave the old policy out, with μ in its place in the ratio and no weight.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import estimators, numerics, reduce
from alignax.types import InputError


def _constant_ratio(logp: Array, logp_behaviour: Array, mask: Array) -> Array:
    return jax.lax.stop_gradient(reduce.log_ratio(logp, logp_behaviour, mask))


def off_policy_sequences(
    logp: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    threshold: float,
) -> Bool[Array, "*B"]:
    """Bad completions that the policy has left behind: to be dropped.

    True where the mean advantage is negative and ``mean_t (log μ − log π)`` exceeds
    ``threshold``.

    Args:
      logp: ``[..., T]`` of the policy; no gradient.
      logp_behaviour: ``[..., T]`` of the law that sampled.
      advantages: ``[..., T]``.
      mask: ``[..., T]``, True on generated tokens.
      threshold: nats a token, not negative.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``threshold`` is negative.

    Reference:
      "DeepSeek-V3.2", arXiv 2512.02556, eq. 9 (off-policy sequence masking).

    Example:
      >>> mask, behaviour = jnp.ones((2, 1), bool), jnp.zeros((2, 1))
      >>> advantages = jnp.array([[1.0], [-1.0]])
      >>> rows = behaviour - 3, behaviour, advantages, mask
      >>> print(off_policy_sequences(*rows, threshold=1.0))
      [False  True]
    """
    if threshold < 0:
        raise InputError(f"threshold must not be negative, got {threshold}")
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    gap = -jnp.sum(_constant_ratio(logp, logp_behaviour, mask), axis=-1)
    total = jnp.sum(reduce.masked(advantages, mask), axis=-1)
    return (total < 0) & (reduce.divide(gap, lengths) > threshold)


class Mismatch(NamedTuple):
    """How far the sampler was from the trainer, over a batch."""

    effective_tokens: Float[Array, ""]
    """Effective sample size of the token weights, as a share of the tokens."""
    effective_sequences: Float[Array, ""]
    """The same of the completions' weights."""
    kl: Float[Array, ""]
    """``KL(μ‖π_old)`` in nats a token, by k3, never negative."""
    chi2: Float[Array, ""]
    """``χ²(π_old‖μ)`` a token: the variance of the token weights."""
    largest: Float[Array, ""]
    """The largest difference of a token's log-probabilities, in nats."""


def mismatch(
    logp: Float[Array, "B T"],
    logp_behaviour: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Mismatch:
    """What to report of a sampler's log-probabilities beside the trainer's.

    Args:
      logp: ``[B, T]`` of the trainer's policy.
      logp_behaviour: ``[B, T]`` of the sampler's.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      a ``Mismatch`` of float32 scalars; zeros where nothing was generated.

    Example:
      >>> logp, mask = -jnp.ones((2, 3)), jnp.ones((2, 3), bool)
      >>> report = mismatch(logp, logp, mask)
      >>> print(report.effective_tokens, report.kl, report.largest)
      1.0 0.0 0.0
    """
    difference = _constant_ratio(logp, logp_behaviour, mask)
    tokens = jnp.sum(mask, dtype=jnp.float32)
    weights = estimators.token_weights(logp, logp_behaviour, mask)
    size = estimators.effective_sample_size(weights.reshape(-1))
    present = jnp.any(mask, axis=-1)
    summed = numerics.exp(jnp.sum(difference, axis=-1))
    whole = estimators.effective_sample_size(jnp.where(present, summed, 0))
    k3 = estimators.k3(logp_behaviour, logp, mask)
    centred = jnp.where(mask, weights - 1, 0)
    return Mismatch(
        effective_tokens=reduce.divide(size, tokens),
        effective_sequences=reduce.divide(whole, jnp.sum(present, dtype=jnp.float32)),
        kl=reduce.divide(jax.lax.stop_gradient(jnp.sum(k3)), tokens),
        chi2=reduce.divide(jnp.sum(centred**2), tokens),
        largest=jnp.max(jnp.abs(difference)),
    )
