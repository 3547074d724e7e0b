"""The few scalar functions that keep divergences exact near zero, beside those of
``alignax.numerics``. Elementwise, float32 or wider."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.numerics import exp, expm1

_SERIES_TERMS = 14


def exp_expm1(l: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``e^l (e^x - 1)``; the exponents are added before the limit applies."""
    small = x < 1
    near = exp(l) * expm1(jnp.where(small, x, 0))
    return jnp.where(small, near, exp(l + x) - exp(l))


def excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``e^x - 1 - x >= 0`` for ``|x| <= 1/2``, by its series (no cancellation)."""
    series = jnp.ones_like(x)
    for k in range(_SERIES_TERMS, 2, -1):
        series = 1 + x / k * series
    return x * x / 2 * series


def log_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x - log(1 + x) >= 0`` for ``x > -1``, without cancellation near zero.

    With ``y = x / (2 + x)``, ``log(1 + x) = 2 artanh(y)`` and
    ``x - 2y = x y``: the first order is removed by hand.
    """
    near = jnp.abs(x) < 0.5
    s = jnp.where(near, x, 0)
    y = s / (2 + s)
    tail = jnp.zeros_like(s)
    for k in range(2 * _SERIES_TERMS - 1, 1, -2):
        tail = 1 / k + y * y * tail
    far = jnp.where(near, 1, x)
    return jnp.where(near, s * y - 2 * y * y * y * tail, far - jnp.log1p(far))


def log_omega(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """``L`` with ``e^L + L = z``, that is ``log W(e^z)``; never forms ``e^z``."""
    big = z > 1
    zb = jnp.where(big, z, 2)
    root = jax.lax.stop_gradient(jnp.where(big, jnp.log(zb - jnp.log(zb)), z))

    def newton(root: Float[Array, "..."], z: Float[Array, "..."]):
        # e^L + L = z bounds L by z and log z, so that this exp cannot overflow.
        return root - (jnp.exp(root) + root - z) / (jnp.exp(root) + 1)

    for _ in range(8):
        root = newton(root, jax.lax.stop_gradient(z))
    # One more step, with the root held fixed: dL/dz = 1 / (e^L + 1).
    return newton(root, z)


def support_log_softmax(
    logits: Float[Array, "*batch V"], where: Bool[Array, "*batch V"] | None
) -> tuple[Bool[Array, "*batch V"], Float[Array, "*batch V"]]:
    """Where the probability is positive, and the log-probability there (0
    elsewhere, so that nothing downstream meets an infinity)."""
    support = ~jnp.isneginf(logits)
    if where is not None:
        support = support & where
    safe = jnp.where(support, logits, 0)
    top = jnp.max(jnp.where(support, safe, -jnp.inf), axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    mass = jnp.sum(
        jnp.where(support, jnp.exp(jnp.where(support, safe - top, 0)), 0),
        axis=-1,
        keepdims=True,
    )
    log_mass = jnp.log(jnp.where(mass == 0, 1, mass))
    return support, jnp.where(support, safe - top - log_mass, 0)
