"""Several constraints at once: Lagrange multipliers by dual ascent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError, Stateful


def lagrange_multipliers(
    limits: Float[Array, " N"], *, rate: float, start: float = 0.0, most: float = 1e2
) -> Stateful:
    """``λ ← clip(λ + rate · (cost − limit), 0, most)``, one for each cost.

    Args:
      limits: ``[N]``, what is allowed of each.
      rate: positive.
      start: the multipliers' first value, not negative.
      most: the largest multiplier, positive: an infeasible limit stays finite.

    Returns:
      ``init() -> state`` and ``update(state, costs) -> state`` with the batch's mean
      costs ``[N]``; the state is the multipliers, ``[N]`` float32.

    Raises:
      InputError: ``rate`` or ``most`` is not positive or ``start`` is negative.

    Reference:
      Altman, "Constrained Markov Decision Processes", 1999; Dai et al., "Safe RLHF",
      arXiv 2310.12773, eq. 11.

    Example:
      >>> multipliers = lagrange_multipliers(jnp.array([0.1, 0.1]), rate=1.0)
      >>> print(multipliers.update(multipliers.init(), jnp.array([0.3, 0.0])))
      [0.2 0.]
    """
    if not (rate > 0 and most > 0) or start < 0:
        raise InputError(
            f"need rate > 0, most > 0 and start >= 0, got {rate}, {most}, {start}"
        )
    limits = limits.astype(jnp.float32)

    def init():
        return jnp.full_like(limits, start)

    def update(state, costs):
        return jnp.clip(state + rate * (costs.astype(jnp.float32) - limits), 0, most)

    return Stateful(init, update)


def lagrangian_rewards(
    rewards: Float[Array, "*B"],
    costs: Float[Array, "*B N"],
    multipliers: Float[Array, " N"],
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
