"""Several constraints at once: Lagrange multipliers by dual ascent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError

Multipliers = Float[Array, " N"]


def multipliers_init(count: int, *, start: float = 0.0) -> Multipliers:
    """One multiplier for each cost.

    Args:
      count: N costs, positive.
      start: their first value, not negative.

    Returns:
      ``[N]`` float32; they belong in the checkpoint.

    Raises:
      InputError: ``count`` is not positive or ``start`` is negative.

    Example:
      >>> print(multipliers_init(2))
      [0. 0.]
    """
    if count < 1 or start < 0:
        raise InputError(f"need count >= 1 and start >= 0, got {count} and {start}")
    return jnp.full((count,), start, jnp.float32)


def multipliers_update(
    state: Multipliers,
    costs: Float[Array, " N"],
    limits: Float[Array, " N"],
    *,
    rate: float,
    most: float = 1e2,
) -> Multipliers:
    """``λ ← clip(λ + rate · (cost − limit), 0, most)``.

    Args:
      state: ``[N]`` multipliers.
      costs: ``[N]``, the batch's mean costs.
      limits: ``[N]``, what is allowed of each.
      rate: positive.
      most: the largest multiplier, positive: an infeasible limit stays finite.

    Returns:
      ``[N]`` float32.

    Raises:
      InputError: ``rate`` or ``most`` is not positive.

    Reference:
      Altman, "Constrained Markov Decision Processes", 1999; Dai et al., "Safe RLHF",
      arXiv 2310.12773, eq. 11.

    Example:
      >>> state, limits = jnp.zeros(2), jnp.array([0.1, 0.1])
      >>> print(multipliers_update(state, jnp.array([0.3, 0.0]), limits, rate=1.0))
      [0.2 0.]
    """
    if not (rate > 0 and most > 0):
        raise InputError(f"rate and most must be positive, got {rate} and {most}")
    costs, limits = (x.astype(jnp.float32) for x in (costs, limits))
    return jnp.clip(state + rate * (costs - limits), 0, most)


def lagrangian_rewards(
    rewards: Float[Array, "*B"], costs: Float[Array, "*B N"], multipliers: Multipliers
) -> Float[Array, "*B"]:
    """``(r − Σ λ_n c_n) / (1 + Σ λ_n)``: rewards less priced costs, on one scale.

    Args:
      rewards: ``[...]``.
      costs: ``[..., N]``.
      multipliers: ``[N]``.

    Returns:
      ``[...]`` float32, without gradient.

    Reference:
      Dai et al., "Safe RLHF", arXiv 2310.12773, eq. 12.

    Example:
      >>> rewards, costs = jnp.array([2.0]), jnp.array([[1.0, 0.0]])
      >>> print(lagrangian_rewards(rewards, costs, jnp.array([1.0, 0.0])))
      [0.5]
    """
    rewards, costs, multipliers = (
        jax.lax.stop_gradient(x.astype(jnp.float32))
        for x in (rewards, costs, multipliers)
    )
    priced = jnp.einsum("...n,n->...", costs, multipliers)
    return (rewards - priced) / (1 + jnp.sum(multipliers))
