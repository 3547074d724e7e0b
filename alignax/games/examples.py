"""Preference games with known solutions, and random ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alignax.numerics import as_float
from alignax.types import InputError


def weighted_cycle(
    weights: Float[Array, "*batch 3"],
) -> Float[Array, "*batch 3 3"]:
    """Three outcomes in a cycle, with margins ``c, b, a`` for an equilibrium ∝ weights.

    ``P(1≻2) = ½ − a``, ``P(1≻3) = ½ + b``, ``P(2≻3) = ½ − c``: the equilibrium is
    ``(c, b, a) / (a + b + c)``.

    Args:
      weights: ``[..., 3]``, (c, b, a), each in (0, ½].

    Returns:
      ``[..., 3, 3]``.

    Example:
      >>> print(weighted_cycle(jnp.array([0.5, 0.25, 0.125]))[0])
      [0.5 0.375 0.75]
    """
    weights = as_float(weights)
    c, b, a = (weights[..., i] for i in range(3))
    zero = jnp.zeros_like(a)
    rows = [[zero, -a, b], [a, zero, -c], [-b, c, zero]]
    return 0.5 + jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def cycle(count: int, *, margin: float = 0.5) -> Float[Array, "N N"]:
    """N outcomes round a table: each beats the ⌊(N−1)/2⌋ before it.

    Args:
      count: N, odd for every pair to be decided, at least 3.
      margin: by how much above ½, in (0, ½].

    Returns:
      ``[N, N]``; equilibrium uniform. With 3 and ½, rock, paper, scissors.

    Raises:
      InputError: ``count`` is less than 3 or ``margin`` out of range.

    Example:
      >>> print(cycle(4, margin=0.25)[0])
      [0.5 0.25 0.5 0.75]
    """
    if count < 3:
        raise InputError(f"count must be at least 3, got {count}")
    if not 0 < margin <= 0.5:
        raise InputError(f"margin must be in (0, 0.5], got {margin}")
    ahead = (jnp.arange(count)[:, None] - jnp.arange(count)[None, :]) % count
    decided = (2 * ahead != count) & (ahead != 0)
    sign = jnp.where(decided, jnp.where(2 * ahead < count, 1.0, -1.0), 0.0)
    return 0.5 + margin * as_float(sign)


def random_preference(
    key: Key[Array, ""], *, count: int, scale: float
) -> Float[Array, "N N"]:
    """``P[i, j] = σ(g_ij − g_ji)`` with independent normal g: no order in it.

    Args:
      key: of the normal values.
      count: N.
      scale: standard deviation of g; the larger, the more decided.

    Returns:
      ``[N, N]``.

    Example:
      >>> P = random_preference(jax.random.key(0), count=4, scale=1.0)
      >>> print(jnp.abs(P + P.T - 1).max())
      0.0
    """
    g = scale * jax.random.normal(key, (count, count))
    return jax.nn.sigmoid(g - g.T)
