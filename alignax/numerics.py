"""Elementary functions that stay finite and keep a gradient.

``exp`` grows exponentially up to a limit, one for each dtype, and goes on as its
tangent beyond: finite, increasing, C¹. A clamp would have gradient zero there, and a
policy far from its reference would feel no pull back. At the limit a product of two
exponentials is still finite, and so is the square of a gradient in an optimiser.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

__all__ = [
    "as_float",
    "exp",
    "expm1",
    "exponent_limit",
    "varying_as",
]


def as_float(x: Shaped[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """``x`` in float32, or in float64 if it came so.

    Args:
      x: ``[...]`` of any dtype, or a number.

    Returns:
      ``[...]`` float32 or float64.

    Example:
      >>> print(as_float(jnp.ones(2, jnp.bfloat16)).dtype)
      float32
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def varying_as(constants: Any, *inputs: Any) -> Any:
    """Constants as values that differ by device wherever the inputs do.

    What a loop starts from must be, or ``shard_map`` refuses the loop.

    Args:
      constants: pytree of arrays.
      inputs: pytrees of arrays that the loop will add to them.

    Returns:
      ``constants``; outside ``shard_map`` as they came.

    Example:
      >>> print(varying_as(jnp.zeros(2), jnp.ones(3)))
      [0. 0.]
    """
    varying = [jax.typeof(x).mat.varying for x in jax.tree.leaves(inputs)]

    def vary(x):
        x = jnp.asarray(x)
        missing = frozenset().union(*varying) - jax.typeof(x).mat.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, constants)


def exponent_limit(x: Shaped[Array, "*shape"]) -> Float[np.ndarray, ""]:
    """Where ``exp`` of ``x`` goes on as its tangent: 40 nats, in float64 300.

    Args:
      x: ``[...]``; only its dtype is read.

    Returns:
      A constant of numpy, float32 or float64.

    Example:
      >>> print(exponent_limit(jnp.zeros(3, jnp.bfloat16)))
      40.0
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return np.asarray(40 if dtype == jnp.float32 else 300, dtype)


def exp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``e^x`` up to L, the dtype's ``exponent_limit``, ``e^L (1 + x − L)`` beyond.

    Args:
      x: ``[...]``.

    Returns:
      ``[...]`` float32 or wider, finite for finite x.

    Example:
      >>> print(exp(jnp.array([0.0, 41.0])) / exp(jnp.array([0.0, 40.0])))
      [1. 2.]
    """
    x = as_float(x)
    limit = exponent_limit(x)
    beyond = x > limit
    inside = jnp.exp(jnp.where(beyond, limit, x))
    return jnp.where(beyond, inside * (1 + x - limit), inside)


def expm1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``e^x − 1``, continued as ``exp``.

    Args:
      x: ``[...]``.

    Returns:
      ``[...]`` float32 or wider, finite for finite x.

    Example:
      >>> print(expm1(jnp.array([0.0, 1e-6])))
      [0.e+00 1.e-06]
    """
    x = as_float(x)
    limit = exponent_limit(x)
    beyond = x > limit
    inside = _expm1(jnp.where(beyond, limit, x))
    return jnp.where(beyond, inside + (inside + 1) * (x - limit), inside)


@jax.custom_jvp
def _expm1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.expm1(x)


# JAX takes the value plus 1, which loses all digits at x = -20 (float32).
_expm1.defjvps(lambda tangent, _, x: tangent * jnp.exp(x))
