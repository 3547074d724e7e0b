"""Bilevel problems: an outer loss at an inner loss's minimum, without its Hessian."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, positive
from alignax.numerics import as_float

Loss = Callable[[Float[Array, " N"], Float[Array, " M"]], Float[Array, ""]]


def hypergradient(
    outer: Loss, inner: Loss, x: Float[Array, " N"], solution: Float[Array, " M"]
) -> Float[Array, " N"]:
    """The slope of ``f(x, y*(x))``, ``y*(x) = argmin_y g(x, y)``, by the inner Hessian.

    ``∇_x f − ∇_xy g (∇_yy g)^{−1} ∇_y f``: exact where the minimum is one point with a
    Hessian that can be inverted.

    Args:
      outer: f of x and y, a scalar.
      inner: g of x and y, a scalar, convex in y near its minimum.
      x: ``[N]``.
      solution: ``[M]``, the inner minimum at x.

    Returns:
      ``[N]``.

    Reference:
      Ghadimi and Wang, "Approximation methods for bilevel programming",
      arXiv 1802.02246.

    Example:
      >>> f = lambda x, y: jnp.sum((y - 1) ** 2) / 2
      >>> g = lambda x, y: jnp.sum((y - 2 * x) ** 2) / 2
      >>> x = jnp.array([0.8])
      >>> print(hypergradient(f, g, x, 2 * x).round(4))
      [1.2]
    """
    x, y = as_float(x), as_float(solution)
    direct, through = jax.grad(outer, (0, 1))(x, y)
    weights = jnp.linalg.solve(jax.hessian(inner, 1)(x, y), through)
    _, back = jax.jvp(lambda y: jax.grad(inner)(x, y), (y,), (weights,))
    return direct - back


def penalised_value(
    outer: Loss,
    inner: Loss,
    x: Float[Array, " N"],
    penalised: Float[Array, " M"],
    solution: Float[Array, " M"],
    *,
    sigma: Strength,
) -> Float[Array, ""]:
    """``ψ_σ(x) = min_y f + (g − min_y g)/σ``, with a gradient that needs no Hessian.

    Value: at most ``f(x, y*)``, and below it by O(σ).
    Gradient: of ``ψ_σ`` where both points are the minima that they are said to be
    (they are held fixed); off the hypergradient by O(σ).

    Args:
      outer: f of x and y, a scalar.
      inner: g of x and y, a scalar.
      x: ``[N]``.
      penalised: ``[M]``, the y that minimises ``f + g/σ`` at x.
      solution: ``[M]``, the y that minimises g.
      sigma: σ, positive; 1/σ is the penalty.

    Returns:
      a scalar.

    Raises:
      InputError: ``sigma`` is not positive.

    Reference:
      Kwon et al., "On penalty methods for nonconvex bilevel optimization and
      first-order stochastic approximation", arXiv 2309.01753; both
      orders are measured in the tests.

    Example:
      >>> f = lambda x, y: jnp.sum((y - 1) ** 2) / 2
      >>> g = lambda x, y: jnp.sum((y - 2 * x) ** 2) / 2
      >>> x, both = jnp.array([0.8]), jnp.array([1.3])
      >>> print(penalised_value(f, g, x, both, 2 * x, sigma=1.0).round(4))
      0.09
    """
    positive(sigma=sigma)
    x = as_float(x)
    near, end = (jax.lax.stop_gradient(as_float(y)) for y in (penalised, solution))
    return outer(x, near) + (inner(x, near) - inner(x, end)) / sigma
