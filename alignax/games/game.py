"""Preference games: how likely each outcome is preferred to each other one.

A matrix ``P [..., N, N]`` holds ``P[i, j] = P(y_i ≻ y_j)``, with ``P + Pᵀ = 1``. The
papers' τ is ``beta`` here, as everywhere in alignax.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from alignax import divergences, targets
from alignax.numerics import as_float
from alignax.types import InputError, Leaf

KL = divergences.reverse_kl()

Strength = float | Float[Array, "*#batch"]


def column(x: Strength, like: Float[Array, "*batch N"]) -> Float[Array, "*batch 1"]:
    """A number, or one a game, as a column beside ``like``."""
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape[:-1])[..., None]


class Game(NamedTuple):
    """A regularised preference game, for a fixed prompt: a pytree to vmap over.

    ``P_β(π ≻ π') = P(π ≻ π') − β D(π‖ρ) + β D(π'‖ρ)``, with the KL for D unless a
    function is given another divergence. Its symmetric equilibrium is unique.

    Args:
      preference: ``[..., N, N]``, P; see ``preference_matrix``.
      logp_ref: ``[..., N]``, the reference's log-probabilities.
      beta: ``[...]`` or a number, strength of the regularisation.
    """

    preference: Leaf
    logp_ref: Leaf
    beta: Leaf


def check_preference(preference: Float[Array, "*batch N N"]) -> None:
    """Refuses what is no preference matrix; traced arrays pass.

    Args:
      preference: ``[..., N, N]``.

    Raises:
      InputError: an entry is outside [0, 1] or ``P + Pᵀ`` is not 1, beyond rounding.
    """
    if isinstance(preference, jax.core.Tracer):
        return
    table = np.asarray(preference, np.float64)
    # A table may come from a file or a model of half precision, in whatever dtype now.
    rounding = float(jnp.finfo(jnp.bfloat16).eps)
    skew = np.abs(table + np.swapaxes(table, -1, -2) - 1)
    if not (skew <= rounding).all():
        raise InputError(
            "preference must have P + Pᵀ = 1, as P[i, j] is the probability that i is "
            f"preferred to j; got a matrix that misses it by {np.max(skew):.3g}. "
            "preference_matrix() makes a model's answers so; of a payoff A = −Aᵀ in "
            "[−½, ½], ½ + A would do"
        )
    if not ((table >= -rounding) & (table <= 1 + rounding)).all():
        raise InputError(
            "preference must hold probabilities, got entries from "
            f"{np.min(table):.3g} to {np.max(table):.3g}"
        )


def check_game(game: Game, *, regularised: bool = True) -> None:
    """Refuses a game with a wrong matrix or strength; traced arrays pass.

    Args:
      game: any.
      regularised: ``beta`` must not be 0 either.

    Raises:
      InputError: as of ``check_preference``, or ``beta`` is out of range.
    """
    check_preference(game.preference)
    if isinstance(game.beta, jax.core.Tracer):
        return
    beta = np.asarray(game.beta)
    if not (beta > 0 if regularised else beta >= 0).all():
        least = "positive" if regularised else "at least 0"
        raise InputError(f"beta must be {least}, got {game.beta}")


def divergence_optimum(
    div: divergences.Divergence,
    rewards: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    *,
    beta: float | Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch N"], Float[Array, "*batch"]]:
    """``log argmax_π ⟨r, π⟩ − β D(π‖ρ)`` and the value."""
    # Fused with what computes them, rewards round differently from use to use; the
    # optimum looks for the one that equals the largest, which is a literal 0 here.
    possible = jnp.where(logp_ref > -jnp.inf, rewards, -jnp.inf)
    index = jnp.argmax(possible, axis=-1)
    top = jnp.take_along_axis(rewards, index[..., None], axis=-1)
    best = jax.nn.one_hot(index, rewards.shape[-1], dtype=bool)
    gaps = jnp.where(best, 0, rewards - top)
    logp, _, value = divergences.regularised_optimum(div, gaps, logp_ref, beta=beta)
    return logp, value + top[..., 0]


def preference_matrix(
    model: Callable[[Any, Any], Num[Array, ""]], outcomes: Any
) -> Float[Array, "N N"]:
    """A preference model on every pair of outcomes, made antisymmetric.

    ``P[i, j] = ½ (m(y_i, y_j) + 1 − m(y_j, y_i))``: a model that favours what it is
    shown first is averaged over both orders.

    Args:
      model: ``(outcome, outcome) -> probability that the first is preferred``, for
        one pair.
      outcomes: a pytree of arrays ``[N, ...]``, such as the tokens and the mask of
        ``exact.enumerate_completions``.

    Returns:
      ``[N, N]``, float32 or wider.

    Example:
      >>> longer = lambda a, b: jax.nn.sigmoid(a - b)
      >>> print(preference_matrix(longer, jnp.array([1.0, 1.0])))
      [[0.5 0.5]
       [0.5 0.5]]
    """
    rows = jax.vmap(model, in_axes=(None, 0))
    table = as_float(jax.vmap(rows, in_axes=(0, None))(outcomes, outcomes))
    return (table + (1 - table.T)) / 2


def win_rate(
    preference: Float[Array, "*batch N N"], logp: Float[Array, "*batch N"]
) -> Float[Array, "*batch N"]:
    """``P(y ≻ π) = Σ_y' π(y') P(y ≻ y')`` of every outcome: one query of the game.

    Args:
      preference: ``[..., N, N]``.
      logp: ``[..., N]`` of the opponent.

    Returns:
      ``[..., N]``, float32 or wider.

    Raises:
      InputError: ``preference`` is not a matrix of probabilities with ``P + Pᵀ = 1``.

    Example:
      >>> P = jnp.array([[0.5, 1.0], [0.0, 0.5]])
      >>> print(win_rate(P, jnp.log(jnp.array([0.5, 0.5]))))
      [0.75 0.25]
    """
    check_preference(preference)
    return jnp.einsum("...ij,...j->...i", as_float(preference), jnp.exp(as_float(logp)))


def policy_preference(
    preference: Float[Array, "*batch N N"],
    logp: Float[Array, "*batch N"],
    logp_opponent: Float[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """``P(π ≻ π') = E_{y~π, y'~π'} P(y ≻ y')``.

    Args:
      preference: ``[..., N, N]``.
      logp: ``[..., N]`` of π.
      logp_opponent: ``[..., N]`` of π'.

    Returns:
      ``[...]``, in [0, 1].

    Example:
      >>> P = jnp.array([[0.5, 1.0], [0.0, 0.5]])
      >>> first, half = jnp.log(jnp.array([[1.0, 0.0], [0.5, 0.5]]))
      >>> print(policy_preference(P, first, half))
      0.75
    """
    pi = jnp.exp(as_float(logp))
    return jnp.sum(pi * win_rate(preference, logp_opponent), axis=-1)


def regularised_preference(
    game: Game,
    logp: Float[Array, "*batch N"],
    logp_opponent: Float[Array, "*batch N"],
    *,
    div: divergences.Divergence = KL,
) -> Float[Array, "*batch"]:
    """``P_β(π ≻ π') = P(π ≻ π') − β D(π‖ρ) + β D(π'‖ρ)``: what Nash learning plays.

    Args:
      game: of N outcomes.
      logp: ``[..., N]`` of π.
      logp_opponent: ``[..., N]`` of π'.
      div: D.

    Returns:
      ``[...]``; ½ for π against itself.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §4.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> game = Game(jnp.full((2, 2), 0.5), half, 1.0)
      >>> logp = jnp.log(jnp.array([0.75, 0.25]))
      >>> print(f"{regularised_preference(game, logp, half):.4f}")
      0.3692
    """
    logp, logp_opponent, logp_ref = map(as_float, (logp, logp_opponent, game.logp_ref))
    cost = divergences.exact(div, logp, logp_ref)
    cost_opponent = divergences.exact(div, logp_opponent, logp_ref)
    return policy_preference(game.preference, logp, logp_opponent) + game.beta * (
        cost_opponent - cost
    )


def best_response(
    game: Game,
    logp_opponent: Float[Array, "*batch N"],
    *,
    div: divergences.Divergence = KL,
) -> tuple[Float[Array, "*batch N"], Float[Array, "*batch"]]:
    """``argmax_π P(π ≻ π') − β D(π‖ρ)`` and its value.

    With the KL, ``π ∝ ρ e^{P(·≻π')/β}``; against the reference itself, IPO's optimum.

    Args:
      game: of N outcomes.
      logp_opponent: ``[..., N]`` of π'.
      div: D.

    Returns:
      ``log π [..., N]`` and the value ``[...]``.

    Reference:
      Azar et al., "A general theoretical paradigm to understand learning from human
      preferences", arXiv 2310.12036 (IPO).

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> game = Game(jnp.array([[0.5, 0.75], [0.25, 0.5]]), half, 0.25)
      >>> print(f"{jnp.exp(best_response(game, half)[0])[0]:.4f}")
      0.7311
    """
    check_game(game)
    rate = win_rate(game.preference, logp_opponent)
    logp_ref = as_float(game.logp_ref)
    beta = column(game.beta, rate)[..., 0]
    if div == KL:
        logp, log_z = targets.posterior(rate, logp_ref, beta=beta)
        return logp, beta * log_z
    return divergence_optimum(div, rate, logp_ref, beta=beta)
