"""What tuning changed in a small model, added to a large one as far as it moved it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import logprobs
from alignax._checks import positive
from alignax.numerics import varying_as

_POINTS = 16


def _change(logits: Array, logits_base: Array, logits_tuned: Array):
    """The large model's log-probabilities, and the small one's change: nothing for a
    token that either small model rules out."""
    large, base, tuned = (
        logprobs.log_softmax(x) for x in (logits, logits_base, logits_tuned)
    )
    known = jnp.isfinite(base) & jnp.isfinite(tuned)
    return large, jnp.where(known, tuned, 0) - jnp.where(known, base, 0)


def _distances(logp: Array, change: Array, weight: Array):
    """Of ``P_α ∝ P e^{αd}``: ``KL(P_α‖P)``, ``KL(P‖P_α)`` and their slopes in α."""
    inside = logp > -jnp.inf
    finite = jnp.where(inside, logp, 0)
    tilted = jnp.where(inside, finite + weight[..., None] * change, -jnp.inf)
    log_mass = jax.nn.logsumexp(tilted, axis=-1)
    law = jnp.where(inside, jnp.exp(tilted - log_mass[..., None]), 0)
    start = jnp.where(inside, jnp.exp(finite), 0)
    mean, first = jnp.sum(law * change, -1), jnp.sum(start * change, -1)
    spread = jnp.sum(law * (change - mean[..., None]) ** 2, -1)
    reverse = weight * mean - log_mass
    forward = log_mass - weight * first
    return (reverse, forward), (weight * spread, mean - first)


def fusion_weight(
    logits: Float[Array, "*batch V"],
    logits_base: Float[Array, "*batch V"],
    logits_tuned: Float[Array, "*batch V"],
    *,
    most: float = 2.0,
) -> Float[Array, "*batch"]:
    """The α at which a large law has moved as far as tuning moved a small one.

    ``min_α (KL(P_α‖P) − KL(Q_t‖Q))² + (KL(P‖P_α) − KL(Q‖Q_t))²`` over [0, most] with
    ``P_α ∝ P e^{α (log Q_t − log Q)}``. Both distances grow with α, so that the
    objective falls before the two places where one of them is met and rises behind
    them; the sign of its derivative is halved from the best of 17 points. The paper
    searches a grid of that interval.

    Args:
      logits: the large model's ``[..., V]``.
      logits_base: the small model's, before it was tuned.
      logits_tuned: the small model's after.
      most: the largest α, positive.

    Returns:
      ``[...]`` in [0, most]; 0 where tuning changed nothing. No gradient.

    Raises:
      InputError: ``most`` is not positive.

    Reference:
      Fan et al., "On giant's shoulders: effortless weak to strong by dynamic logits
      fusion", arXiv 2406.15480, §3, for one expert.

    Example:
      >>> large, base = jnp.array([[1.0, 0.2, -0.5, 0.3], [0.5, 0, 0.1, -0.2]])
      >>> tuned = jnp.array([-0.3, 1.2, 0.1, 0.0])
      >>> print(fusion_weight(large, base, tuned).round(2))
      0.95
    """
    positive(most=most)
    large, change = jax.lax.stop_gradient(_change(logits, logits_base, logits_tuned))
    small = jax.lax.stop_gradient(logprobs.log_softmax(logits_base))
    zero = varying_as(jnp.zeros(large.shape[:-1], large.dtype), large)
    aims, _ = _distances(small, change, zero + 1)

    def missed(weight):
        """The objective, and the half of its slope."""
        values, slopes = _distances(large, change, weight)
        gaps = [value - aim for value, aim in zip(values, aims, strict=True)]
        slope = sum(g * s for g, s in zip(gaps, slopes, strict=True))
        return sum(g**2 for g in gaps), slope

    def look(i, best):
        weight = zero + most * i / _POINTS
        value, _ = missed(weight)
        better = value < best[0]
        return jnp.where(better, value, best[0]), jnp.where(better, weight, best[1])

    start = missed(zero)[0], zero
    _, best = jax.lax.fori_loop(1, _POINTS + 1, look, start)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        falls = missed(middle)[1] < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    step = most / _POINTS
    bounds = jnp.maximum(best - step, 0), jnp.minimum(best + step, most)
    steps = 20 if large.dtype.itemsize == 4 else 48
    low, high = jax.lax.fori_loop(0, steps, halve, bounds)
    moved = jnp.any((change != 0) & (large > -jnp.inf), axis=-1)
    return jax.lax.stop_gradient(jnp.where(moved, (low + high) / 2, 0))


def fused(
    logits: Float[Array, "*batch V"],
    logits_base: Float[Array, "*batch V"],
    logits_tuned: Float[Array, "*batch V"],
    *,
    most: float = 2.0,
) -> Float[Array, "*batch V"]:
    """``log P + α (log Q_t − log Q)``, each position with its own ``fusion_weight``.

    Args:
      logits: the large model's ``[..., V]``.
      logits_base: the small model's, before it was tuned.
      logits_tuned: the small model's after.
      most: the largest α, positive.

    Returns:
      ``[..., V]`` logits, float32 or wider; −inf where the large model has −inf. What
      a small model rules out keeps the large one's.

    Raises:
      InputError: ``most`` is not positive.

    Reference:
      Fan et al., arXiv 2406.15480; α = 1 is proxy tuning (Liu et al., arXiv
      2401.08565).

    Example:
      >>> same = jnp.array([0.0, 1.0])
      >>> print(jnp.exp(fused(same, same, jnp.array([1.0, 0.0]))))
      [0.7311 0.2689]
    """
    large, change = _change(logits, logits_base, logits_tuned)
    weight = fusion_weight(logits, logits_base, logits_tuned, most=most)
    return logprobs.log_softmax(large + weight[..., None] * change)
