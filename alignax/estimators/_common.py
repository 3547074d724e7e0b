"""What the estimators share. Everything here is at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def to_go(values: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """``Σ_{n ≥ t} values_n`` along the last axis."""
    return jax.lax.cumsum(values, axis=values.ndim - 1, reverse=True)


def total(values: Float[Array, "*B T"]) -> Float[Array, "*B 1"]:
    """The sum over the last axis, which is kept."""
    return jnp.sum(values, axis=-1, keepdims=True)


def attach(
    value: Float[Array, "*#shape"],
    coefficient: Float[Array, "*#shape"],
    logp: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """A tensor equal to ``value`` whose gradient is ``coefficient · ∇logp``."""
    value, coefficient, constant = jax.lax.stop_gradient((value, coefficient, logp))
    return value + coefficient * (logp - constant)
