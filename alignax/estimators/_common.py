"""What the estimators share. Everything here is at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

EXPONENT_LIMIT = 20.0
"""Exponents above this (ratios above 4.9e8) are continued by the tangent, so that
values stay finite and gradients neither vanish nor change sign."""


def masked(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"] | None
) -> Float[Array, "*shape"]:
    """Float32 at least, zero where masked; NaN there cannot reach a gradient."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return values if mask is None else jnp.where(mask, values, 0)


def log_ratio(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None,
) -> Float[Array, "*shape"]:
    """``logp − logp_ref``, zero where masked; the second argument is constant."""
    return masked(logp, mask) - jax.lax.stop_gradient(masked(logp_ref, mask))


def exp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``e^x``, its tangent beyond ``EXPONENT_LIMIT``."""
    beyond = x > EXPONENT_LIMIT
    inside = jnp.exp(jnp.where(beyond, EXPONENT_LIMIT, x))
    return jnp.where(beyond, inside * (1 + x - EXPONENT_LIMIT), inside)


def expm1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``e^x − 1``, its tangent beyond ``EXPONENT_LIMIT``."""
    beyond = x > EXPONENT_LIMIT
    inside = jnp.expm1(jnp.where(beyond, EXPONENT_LIMIT, x))
    return jnp.where(beyond, inside + (inside + 1) * (x - EXPONENT_LIMIT), inside)


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
