"""Rewards of lengths: overlong completions, and shorter than ever before."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from alignax import reduce
from alignax.numerics import as_float
from alignax.types import InputError


def _constant(x: Array) -> Array:
    return jax.lax.stop_gradient(as_float(x))


def overlong_penalty(
    lengths: Num[Array, "*B"], *, max_length: int, buffer: int
) -> Float[Array, "*B"]:
    """A penalty that grows from 0 to −1 over the last ``buffer`` tokens (DAPO).

    ``0`` up to ``max_length − buffer``, then linear, ``−1`` beyond ``max_length``.

    Args:
      lengths: ``[...]`` tokens.
      max_length: where the penalty is complete.
      buffer: from 1 to ``max_length``.

    Returns:
      ``[...]`` float32, to add to the reward.

    Raises:
      InputError: ``buffer`` is not from 1 to ``max_length``.

    Reference:
      Yu et al., "DAPO", arXiv 2503.14476, eq. 13.

    Example:
      >>> lengths = jnp.array([16384, 18432, 20481])
      >>> print(overlong_penalty(lengths, max_length=20480, buffer=4096))
      [0. -0.5 -1.]
    """
    if not 1 <= buffer <= max_length:
        raise InputError(f"buffer must be from 1 to {max_length}, got {buffer}")
    left = max_length - buffer - _constant(lengths)
    return jnp.clip(left / buffer, -1, 0)


def history_length_reward(
    lengths: Num[Array, "*B"],
    correct: Bool[Array, "*B"],
    history: Float[Array, "*B"],
    *,
    least: float = -0.7,
) -> Float[Array, "*B"]:
    """Shorter than the shortest right answer so far is rewarded (HAPO).

    ``c = cos(π n / 2h)`` for ``n < 2h``, else −1; ``max(least, c)`` for a right answer,
    ``min(0, c)`` for a wrong one, 0 where there is no history: a right answer is
    always worth more than a wrong one if ``least > −1``.

    Args:
      lengths: ``[...]`` tokens n.
      correct: ``[...]``.
      history: ``[...]``, h before this batch, ``inf`` where none; see
        ``history_update``.
      least: of a right answer, in (−1, 0].

    Returns:
      ``[...]`` float32, to add to the reward.

    Raises:
      InputError: ``least`` is outside (−1, 0].

    Reference:
      Huang et al., "HAPO: Training language models to reason concisely via
      history-aware policy optimization", arXiv 2505.11225, eq. 3.

    Example:
      >>> lengths, correct = jnp.array([500, 1500]), jnp.array([True, True])
      >>> print(history_length_reward(lengths, correct, jnp.full(2, 1000.0)))
      [0.7071 -0.7]
    """
    if not -1 < least <= 0:
        raise InputError(f"least must be in (-1, 0], got {least}")
    known = jnp.isfinite(history) & (history > 0)
    ratio = _constant(lengths) / jnp.where(known, _constant(history), 1)
    cosine = jnp.where(ratio < 2, jnp.cos(jnp.pi / 2 * jnp.minimum(ratio, 2)), -1)
    reward = jnp.where(correct, jnp.maximum(least, cosine), jnp.minimum(0, cosine))
    return jnp.where(known, reward, 0)


def history_update(
    history: Float[Array, " Q"],
    index: Int[Array, " B"],
    lengths: Num[Array, " B"],
    correct: Bool[Array, " B"],
) -> Float[Array, " Q"]:
    """The shortest right answer to each problem so far; call it after rewarding.

    Args:
      history: ``[Q]``, ``inf`` where no right answer was seen.
      index: ``[B]``, each row's problem.
      lengths: ``[B]`` tokens.
      correct: ``[B]``.

    Returns:
      ``[Q]`` float32.

    Example:
      >>> history, index = jnp.full(2, jnp.inf), jnp.array([0, 0, 1])
      >>> lengths, correct = jnp.array([7, 5, 3]), jnp.array([True, True, False])
      >>> print(history_update(history, index, lengths, correct))
      [ 5. inf]
    """
    return (
        _constant(history)
        .at[index]
        .min(jnp.where(correct, _constant(lengths), jnp.inf))
    )


def long_failure_multiplier(
    lengths: Num[Array, "*G K"], correct: Bool[Array, "*G K"], *, rate: float = 1e-5
) -> Float[Array, "*G K"]:
    """Above 1 for wrong answers longer than the group's right ones (APO's STCR).

    ``2 − (1 + rate)^{−Δ}`` with Δ the tokens beyond the mean of the right answers.

    Args:
      lengths: ``[..., K]`` tokens.
      correct: ``[..., K]``.
      rate: positive.

    Returns:
      ``[..., K]`` float32, to multiply the advantages with; 1 without a right answer.

    Raises:
      InputError: ``rate`` is not positive.

    Reference:
      Hong et al., "APO: Asymmetric policy optimization", arXiv 2506.21655.

    Example:
      >>> lengths, correct = jnp.array([1000, 6000]), jnp.array([True, False])
      >>> print(long_failure_multiplier(lengths, correct))
      [1. 1.0488]
    """
    if not rate > 0:
        raise InputError(f"rate must be positive, got {rate}")
    lengths = _constant(lengths)
    right = jnp.sum(correct, axis=-1, keepdims=True, dtype=jnp.float32)
    total = jnp.sum(reduce.masked(lengths, correct), axis=-1, keepdims=True)
    excess = jnp.maximum(lengths - reduce.divide(total, right), 0)
    multiplier = 1 - jnp.expm1(-excess * jnp.log1p(rate))
    return jnp.where((right > 0) & ~correct, multiplier, 1)
