"""Strengths for each prompt, and the entropy's coefficient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError


def difficulty_weights(accuracy: Float[Array, "*G"]) -> Float[Array, "*G"]:
    """The KL's weight on right answers: less for harder prompts (APO's DADS).

    ``w = 1 − exp(−e · a)`` for accuracy a in (0, 1), 1 at a = 0 and a = 1. Wrong
    answers keep weight 1: ``jnp.where(advantages > 0, w, 1)``.

    Args:
      accuracy: ``[...]``, the share of right completions of each prompt.

    Returns:
      ``[...]`` float32 in (0, 1], without gradient.

    Reference:
      Hong et al., "APO: Asymmetric policy optimization", arXiv 2506.21655, eq. 4.

    Example:
      >>> print(difficulty_weights(jnp.array([0.125, 0.5, 1.0])))
      [0.2881 0.7431 1.]
    """
    accuracy = jax.lax.stop_gradient(accuracy.astype(jnp.float32))
    inside = (accuracy > 0) & (accuracy < 1)
    return jnp.where(inside, -jnp.expm1(-jnp.e * accuracy), 1)


def difficulty_strength(
    accuracy: Float[Array, "*G"], *, easy: float, hard: float
) -> Float[Array, "*G"]:
    """``beta`` between ``hard`` at accuracy 0 and ``easy`` at accuracy 1.

    Args:
      accuracy: ``[...]``, the share of right completions of each prompt.
      easy: β where all are right, not negative.
      hard: β where none is.

    Returns:
      ``[...]`` float32, without gradient.

    Raises:
      InputError: a strength is negative.

    Example:
      >>> print(difficulty_strength(jnp.array([0.0, 0.5]), easy=1.0, hard=0.0))
      [0. 0.5]
    """
    if easy < 0 or hard < 0:
        raise InputError(f"easy and hard must not be negative, got {easy}, {hard}")
    return hard + (easy - hard) * jax.lax.stop_gradient(accuracy.astype(jnp.float32))


class EntropyState(NamedTuple):
    """``coefficient`` of the entropy bonus in force."""

    coefficient: Float[Array, ""]


def entropy_init(*, coefficient: float = 0.0) -> EntropyState:
    """The bonus' coefficient to start with.

    Args:
      coefficient: not negative.

    Returns:
      the state; it belongs in the checkpoint.

    Raises:
      InputError: ``coefficient`` is negative.

    Example:
      >>> print(entropy_init(coefficient=0.01).coefficient)
      0.01
    """
    if coefficient < 0:
        raise InputError(f"coefficient must not be negative, got {coefficient}")
    return EntropyState(jnp.float32(coefficient))


def entropy_update(
    state: EntropyState,
    entropy: Float[Array, ""],
    *,
    target: float,
    step: float,
    most: float = 1.0,
) -> EntropyState:
    """A bonus that grows while the entropy is below its target, and falls above.

    ``c ← clip(c ± step, 0, most)``. The coefficient to apply is 0 while the entropy
    is above the target: ``jnp.where(entropy <= target, state.coefficient, 0)``.

    Args:
      state: the coefficient so far.
      entropy: measured, in nats a token.
      target: to hold, not negative.
      step: positive.
      most: the largest coefficient, positive.

    Returns:
      the new state.

    Raises:
      InputError: ``step`` or ``most`` is not positive or ``target`` is negative.

    Reference:
      He et al., "Skywork open reasoner 1", arXiv 2505.22312, §4.3.

    Example:
      >>> state, low = entropy_init(), jnp.float32(0.1)
      >>> state = entropy_update(state, low, target=0.2, step=0.005)
      >>> print(state.coefficient)
      0.005
    """
    if not (step > 0 and most > 0) or target < 0:
        raise InputError(
            f"need step > 0, most > 0 and target >= 0, got {step}, {most}, {target}"
        )
    sign = jnp.where(entropy.astype(jnp.float32) < target, 1.0, -1.0)
    return EntropyState(jnp.clip(state.coefficient + step * sign, 0, most))
