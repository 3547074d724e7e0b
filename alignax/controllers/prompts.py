"""Strengths for each prompt, and the entropy's coefficient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError, Stateful


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


def entropy_target(
    *, target: float, step: float, start: float = 0.0, most: float = 1.0
) -> Stateful:
    """A bonus that grows while the entropy is below its target, and falls above.

    ``c ← clip(c ± step, 0, most)``. The coefficient to apply is 0 while the entropy
    is above the target: ``jnp.where(entropy <= target, state.coefficient, 0)``.

    Args:
      target: the entropy to hold, in nats a token, not negative.
      step: positive.
      start: the coefficient to start with, not negative.
      most: the largest coefficient, positive.

    Returns:
      ``init() -> state`` and ``update(state, entropy) -> state`` with the measured
      entropy in nats a token.

    Raises:
      InputError: an argument is out of range.

    Reference:
      He et al., "Skywork open reasoner 1", arXiv 2505.22312, §4.3.

    Example:
      >>> bonus = entropy_target(target=0.2, step=0.005)
      >>> print(bonus.update(bonus.init(), jnp.float32(0.1)).coefficient)
      0.005
    """
    if not (step > 0 and most > 0) or target < 0 or start < 0:
        raise InputError(
            f"need step > 0, most > 0, target >= 0 and start >= 0, got {step}, {most}, "
            f"{target} and {start}"
        )

    def init():
        return EntropyState(jnp.float32(start))

    def update(state, entropy):
        sign = jnp.where(entropy.astype(jnp.float32) < target, 1.0, -1.0)
        return EntropyState(jnp.clip(state.coefficient + step * sign, 0, most))

    return Stateful(init, update)
