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
