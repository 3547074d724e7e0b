"""What a divergence without closed forms solves for: the inverse of ``f'`` and the
conjugate of ``f``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import exp

ElementWise = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def bisected_inverse(
    f_prime: ElementWise, uf2: ElementWise, slopes: tuple[float, float], smooth: bool
) -> ElementWise:
    """The inverse of an increasing ``f'``, on log-ratios up to a thousand."""

    def inverse(x: Float[Array, "..."]) -> Float[Array, "..."]:
        target = jax.lax.stop_gradient(x)
        limit = jnp.full_like(x, 1024.0)

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            right = f_prime(middle) < target
            return jnp.where(right, middle, low), jnp.where(right, high, middle)

        steps = 36 if x.dtype.itemsize == 4 else 66
        low, high = jax.lax.fori_loop(0, steps, halve, (-limit, limit))
        root = jax.lax.stop_gradient((low + high) / 2)
        moves = (x > slopes[0]) & (x < slopes[1])
        if not smooth:
            moves = moves & on_graph(f_prime(root), target)
        # The value is the root's; the derivative 1 / uf2, and 0 at a kink.
        rate = jnp.maximum(uf2(root), jnp.finfo(x.dtype).tiny)
        step = jnp.where(moves, x - target, 0) / jnp.where(moves, rate, 1)
        root = root + step
        root = jnp.where(x <= slopes[0], -jnp.inf, root)
        return jnp.where(x >= slopes[1], jnp.inf, root)

    return inverse


def on_graph(slope: Float[Array, "..."], x: Float[Array, "..."]):
    """Whether ``f'`` takes the value ``x``, or jumps over it (at a kink)."""
    return jnp.abs(slope - x) <= 1e-3 * (1 + jnp.abs(x))


def solved_conjugate(
    f: ElementWise,
    inverse: ElementWise | None,
    slopes: tuple[float, float],
    f_zero: float,
) -> ElementWise:
    """``f*`` from ``f`` and the inverse of its slope; of two straight pieces that meet
    at 1 where there is no inverse."""

    def conjugate(x: Float[Array, "..."]) -> Float[Array, "..."]:
        if inverse is None:
            bent = jnp.maximum(x, slopes[0])
            return jnp.where(x <= slopes[1], bent, jnp.inf)
        root = jax.lax.stop_gradient(inverse(x))
        inside = jnp.isfinite(root)
        root = jnp.where(inside, root, 0)
        # At the optimal u, held fixed: the derivative is u (the envelope).
        value = jnp.where(inside, x, 0) * exp(root) - f(root)
        return jnp.where(inside, value, jnp.where(x <= slopes[0], -f_zero, jnp.inf))

    return conjugate
