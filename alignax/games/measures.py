"""How far a policy is from an equilibrium."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences
from alignax.games.game import KL, Game, best_response, win_rate
from alignax.numerics import as_float


def exploitability(
    preference: Float[Array, "*batch N N"], logp: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``max_y P(y ≻ π) − ½``: what the best opponent of π wins above a half.

    Args:
      preference: ``[..., N, N]``.
      logp: ``[..., N]``.

    Returns:
      ``[...]``, not negative; 0 at a Nash equilibrium of the unregularised game.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886.

    Example:
      >>> rps = jnp.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
      >>> print(exploitability(rps, jnp.log(jnp.array([1.0, 0.0, 0.0]))))
      0.5
    """
    return jnp.max(win_rate(preference, logp), axis=-1) - 0.5


def duality_gap(
    preference: Float[Array, "*batch N N"],
    logp: Float[Array, "*batch N"],
    logp_opponent: Float[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """``max_y P(y ≻ π') − min_y P(π ≻ y)`` of the profile (π, π').

    Since preferences are antisymmetric, the sum of both exploitabilities.

    Args:
      preference: ``[..., N, N]``.
      logp: ``[..., N]`` of π.
      logp_opponent: ``[..., N]`` of π'.

    Returns:
      ``[...]``, not negative; 0 where both are equilibria.

    Example:
      >>> rps = jnp.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
      >>> rock = jnp.log(jnp.array([1.0, 0.0, 0.0]))
      >>> print(duality_gap(rps, rock, rock))
      1.0
    """
    return exploitability(preference, logp) + exploitability(preference, logp_opponent)


def regularised_exploitability(
    game: Game, logp: Float[Array, "*batch N"], *, div: divergences.Divergence = KL
) -> Float[Array, "*batch"]:
    """``max_π' P_β(π' ≻ π) − ½``: the exploitability of the regularised game.

    With the KL, ``β log Σ_y ρ e^{P(y≻π)/β} + β KL(π‖ρ) − ½``, and at least
    ``β KL(π‖π*)``.

    Args:
      game: of N outcomes.
      logp: ``[..., N]``.
      div: the game's divergence.

    Returns:
      ``[...]``, not negative; 0 at the regularised equilibrium alone.

    Reference:
      Tiapkin et al., "Accelerating Nash learning from human feedback via mirror
      prox", arXiv 2505.19731.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> game = Game(jnp.full((2, 2), 0.5), half, 1.0)
      >>> print(f"{regularised_exploitability(game, half):.4f}")
      0.0000
    """
    logp = as_float(logp)
    _, value = best_response(game, logp, div=div)
    return value + game.beta * divergences.exact(div, logp, game.logp_ref) - 0.5


def equilibrium_residual(
    game: Game, logp: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``max_y |log π − log π'|`` with ``π' ∝ ρ e^{P(·≻π)/β}``, of which π* is the
    fixed point.

    Args:
      game: of N outcomes, regularised by the KL.
      logp: ``[..., N]``.

    Returns:
      ``[...]``, not negative; over the reference's support.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> print(equilibrium_residual(Game(jnp.full((2, 2), 0.5), half, 1.0), half))
      0.0
    """
    response, _ = best_response(game, logp)
    gap = _difference(response, as_float(logp))
    return jnp.max(jnp.sign(gap) * gap, axis=-1)


def span_seminorm(
    logp: Float[Array, "*batch N"], logp_other: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """The span semi-norm ``max_y l − min_y l`` of ``l = log π − log π'``.

    It sees every outcome alike, however unlikely: zero only for equal laws, and at
    least twice the total variation distance.

    Args:
      logp: ``[..., N]``.
      logp_other: ``[..., N]``, of the same support.

    Returns:
      ``[...]`` in nats; over the common support.

    Reference:
      Tiapkin et al., "Accelerating Nash learning from human feedback via mirror
      prox", arXiv 2505.19731.

    Example:
      >>> p, q = jnp.log(jnp.array([[0.5, 0.5], [0.8, 0.2]]))
      >>> print(f"{span_seminorm(p, q):.4f}")
      1.3863
    """
    l = _difference(as_float(logp), as_float(logp_other))
    support = (logp > -jnp.inf) & (logp_other > -jnp.inf)
    top = jnp.max(l, axis=-1, where=support, initial=-jnp.inf)
    return top - jnp.min(l, axis=-1, where=support, initial=jnp.inf)


def _difference(logp: Float[Array, "*batch N"], logp_other: Float[Array, "*batch N"]):
    """``logp − logp_other``, 0 where either has no mass."""
    support = (logp > -jnp.inf) & (logp_other > -jnp.inf)
    return jnp.where(support, logp, 0) - jnp.where(support, logp_other, 0)
