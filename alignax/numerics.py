"""Elementary functions that stay finite and keep a gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError


def exp_linear(x: Float[Array, "*shape"], *, limit: float) -> Float[Array, "*shape"]:
    """``exp(x)`` up to ``limit``, its tangent beyond: finite, increasing, C¹.

    ``e^x`` for x ≤ L, ``e^L (1 + x − L)`` for x > L. A clamp would have gradient
    zero there, and a policy far from its reference would feel no pull back.

    Args:
      x: ``[...]``.
      limit: L, at most 80 so that float32 holds the result.

    Returns:
      ``[...]`` float32.

    Raises:
      InputError: ``limit`` is above 80.

    Example:
      >>> print(exp_linear(jnp.array([0.0, 3.0]), limit=0.0))
      [1. 4.]
    """
    if limit > 80:
        raise InputError(f"limit must be at most 80 to stay in float32, got {limit}")
    x = x.astype(jnp.float32)
    beyond = x > limit
    inside = jnp.exp(jnp.where(beyond, limit, x))
    return jnp.where(beyond, inside * (1 + x - limit), inside)
