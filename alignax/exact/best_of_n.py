"""Best-of-n as a law: what is kept when the best of n samples is."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError


@partial(jnp.vectorize, signature="(k),(k)->(k),(k),(k)")
def _log_masses(
    logp_ref: Float[Array, " K"], rewards: Float[Array, " K"]
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """``log ρ(r < r_y)``, ``log ρ(r ≤ r_y)`` and ``log ρ(r = r_y)``, by sorting."""
    order = jnp.argsort(rewards)
    below = jnp.searchsorted(rewards[order], rewards, side="left")
    upto = jnp.searchsorted(rewards[order], rewards, side="right")
    nothing = jnp.full((1,), -jnp.inf, logp_ref.dtype)
    total = jnp.concatenate([nothing, jax.lax.cumlogsumexp(logp_ref[order])])
    # A class may be far smaller than what is below it, so it has its own sum; where
    # it begins is its number.
    largest = jax.ops.segment_max(jax.lax.stop_gradient(logp_ref), below, len(order))
    largest = jnp.where(largest > -jnp.inf, largest, 0)[below]
    sums = jax.ops.segment_sum(jnp.exp(logp_ref - largest), below, len(order))[below]
    own = jnp.where(sums > 0, jnp.log(jnp.where(sums > 0, sums, 1)) + largest, -jnp.inf)
    # Rounding may take the mass of everything above 1.
    total, own = jnp.where(total < 0, total, 0), jnp.where(own < 0, own, 0)
    return total[below], total[upto], own


def best_of_n(
    rewards: Float[Array, "*batch K"], logp_ref: Float[Array, "*batch K"], *, n: int
) -> Float[Array, "*batch K"]:
    """The law of the best of ``n`` samples, a random one of the best being kept.

    ``π_n(y) = (F(r_y)^n − F(r_y⁻)^n) · ρ(y) / ρ(r = r_y)``, with F(x) = ρ(r ≤ x) and
    F(x⁻) = ρ(r < x). Within a class of equal rewards π_n keeps the proportions of ρ.
    Breaking ties by order instead gives another law, of larger KL, which depends on
    the order; for rewards without ties both are the same.

    Differentiable in ``logp_ref``; the gradient in ``rewards`` is 0, as only their
    order matters.

    Args:
      rewards: ``[..., K]``.
      logp_ref: ``[..., K]`` over every outcome, normalised.
      n: samples, at least 1.

    Returns:
      ``log π_n [..., K]``.

    Raises:
      InputError: ``n`` is less than 1.

    Reference:
      Beirami et al., "Theoretical guarantees on the best-of-n alignment policy",
      arXiv 2401.01879.

    Example:
      >>> uniform = jnp.log(jnp.full(4, 0.25))
      >>> logp = best_of_n(jnp.array([0.0, 1.0, 1.0, 2.0]), uniform, n=2)
      >>> print([f"{p:.4f}" for p in jnp.exp(logp)])
      ['0.0625', '0.2500', '0.2500', '0.4375']
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    possible = logp_ref > -jnp.inf
    log_below, log_upto, log_class = _log_masses(
        logp_ref, jax.lax.stop_gradient(jnp.where(possible, rewards, 0))
    )
    # An impossible outcome of the lowest reward: no mass up to it at all.
    log_upto = jnp.where(possible, log_upto, 0)
    # F^n − F⁻^n = F^n (1 − e^{n log(F⁻/F)}); F⁻/F = 1 − ρ(class)/F where the class
    # is the smaller part, so that nothing cancels.
    lowest = (log_below == -jnp.inf) | ~possible
    share = jnp.where(lowest, -1.0, log_class - log_upto)
    small = share < -math.log(2)
    step = jnp.where(
        small,
        jax.nn.log1mexp(-jnp.where(small, share, -1.0)),
        jnp.where(lowest, -1.0, log_below) - log_upto,
    )
    rise = jnp.where(lowest, 0, jax.nn.log1mexp(-n * jnp.where(lowest, -1.0, step)))
    logp = n * log_upto + rise + jnp.where(possible, logp_ref - log_class, 0)
    return jnp.where(possible, logp, -jnp.inf)
