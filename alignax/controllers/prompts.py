"""Strengths for each prompt, and the entropy's coefficient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
