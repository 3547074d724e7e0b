"""The equilibrium of a regularised game, to the last digits of the precision."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences import Divergence
from alignax.games.game import KL, Game, check_game, column, divergence_optimum
from alignax.numerics import as_float, varying_as
from alignax.types import InputError

# Proximal steps, each of a few Newton steps. Random games of 30 outcomes take about
# 10 at beta = 0.1 and 200 at beta = 1e-6.
MAX_STEPS = 4000


def regularised_equilibrium(
    game: Game, *, div: Divergence = KL
) -> Float[Array, "*batch N"]:
    """The policy that no other is preferred to: ``min_π' P_β(π* ≻ π') = ½``.

    ``π* = argmax_π P(π ≻ π*) − β D(π‖ρ)``; with the KL, ``π* ∝ ρ e^{P(·≻π*)/β}``.

    The proximal point method: each step solves the game with the further penalty
    ``B(π‖π_k)/η`` (B the Bregman divergence of D) by Newton's method, whose matrix
    ``I − P ∂π/∂s`` is never singular, an antisymmetric matrix times a semi-definite
    one having imaginary eigenvalues. η grows when Newton converges and shrinks when
    not; each step contracts ``B(π*‖π)`` by ``1 + ηβ``, for every η. Derivatives are
    the implicit ones.

    Args:
      game: of N outcomes; ``-inf`` in ``logp_ref`` excludes one. ``beta`` positive.
      div: D, with a strictly convex f.

    Returns:
      ``log π* [..., N]`` in the precision of the game: it differs
      from its own best response by about 1e-14 in float64 (``jax.enable_x64``) at
      beta = 0.1, growing like ``1/beta``.

    Raises:
      InputError: ``beta`` is a number and not positive, or f is not strictly convex.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886,
      proposition 1; Tiapkin et al., arXiv 2505.19731v2 (the proximal point).

    Example:
      >>> rps = jnp.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
      >>> game = Game(rps, jnp.log(jnp.array([0.6, 0.3, 0.1])), 0.5)
      >>> print(f"{jnp.exp(regularised_equilibrium(game))[1]:.4f}")
      0.4458
    """
    if div.log_inverse is None:
        raise InputError(
            f"div must have a strictly convex f for the equilibrium to be unique, got "
            f"{div}; reverse_kl() or a mix() with it would do"
        )
    check_game(game)
    preference, logp_ref = as_float(game.preference), as_float(game.logp_ref)
    dtype = jnp.result_type(preference, logp_ref)
    preference, logp_ref = preference.astype(dtype), logp_ref.astype(dtype)
    beta = column(game.beta, logp_ref)[..., 0]
    solve = jnp.vectorize(
        functools.partial(_equilibrium, div), signature="(n,n),(n),()->(n)"
    )
    logp = solve(preference, logp_ref, jnp.where(beta > 0, beta, 1))
    # A traced strength cannot be refused.
    return jnp.where(beta[..., None] > 0, logp, jnp.nan)


def _respond(div: Divergence, dual: Float[Array, " N"], logp_ref: Float[Array, " N"]):
    """``log argmax_π ⟨s, π⟩ − D(π‖ρ)``."""
    if div == KL:
        support = logp_ref > -jnp.inf
        tilted = jnp.where(support, logp_ref, 0) + dual
        log_z = jax.nn.logsumexp(tilted, where=support)
        return jnp.where(support, tilted - log_z, -jnp.inf)
    return divergence_optimum(div, dual, logp_ref, beta=1.0)[0]


def _response_jacobian(
    div: Divergence, logp: Float[Array, " N"], logp_ref: Float[Array, " N"]
) -> Float[Array, "N N"]:
    """``∂π/∂s = diag(w) − w wᵀ / Σw`` with ``w = π / (u f''(u))``."""
    alive = logp > -jnp.inf
    l = jnp.where(alive, logp, 0) - jnp.where(alive, logp_ref, 0)
    w = jnp.where(alive, jnp.exp(jnp.where(alive, logp, 0)) / div.uf2(l), 0)
    return jnp.diag(w) - jnp.outer(w, w) / jnp.sum(w)


def _newton(div, payoff, logp_ref, start, target, temperature, tolerance):
    """``s`` with ``temperature · s = payoff π(s) + target``, and its residual."""

    def residual(dual):
        logp = _respond(div, dual, logp_ref)
        error = dual - (payoff @ jnp.exp(logp) + target) / temperature
        error = error - jnp.mean(error)
        return logp, error, jnp.max(jnp.abs(error))

    def step(carry):
        dual, (logp, error, size), count, _ = carry
        slope = payoff @ _response_jacobian(div, logp, logp_ref) / temperature
        identity = jnp.eye(len(error), dtype=error.dtype)
        dual = dual - jnp.linalg.solve(identity - slope, error)
        new = residual(dual - jnp.mean(dual))
        return dual, new, count + 1, new[-1] < 0.9 * size

    def going(carry):
        _, (_, _, size), count, improving = carry
        return improving & (size > tolerance) & (count < 12)

    start = (start, residual(start), 0, True)
    start = varying_as(start, payoff, logp_ref, target, temperature)
    dual, (_, _, size), _, _ = jax.lax.while_loop(going, step, start)
    return dual, size


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _equilibrium(div, preference, logp_ref, beta):
    return _respond(div, _dual(div, preference, logp_ref, beta), logp_ref)


def _dual(div, preference, logp_ref, beta):
    """``s* = P π(s*) / β``, up to a constant."""
    payoff = preference - 0.5
    eps = jnp.finfo(payoff.dtype).eps

    def distance(dual):
        logp = _respond(div, dual, logp_ref)
        error = dual - payoff @ jnp.exp(logp) / beta
        return (jnp.max(error) - jnp.min(error)) / 2

    def step(carry):
        dual, eta, _, count = carry
        temperature = beta + 1 / eta
        tolerance = 4 * eps * (1 + 1 / temperature)
        new, size = _newton(
            div, payoff, logp_ref, dual, dual / eta, temperature, tolerance
        )
        solved = size < 1e-3 * jnp.sqrt(jnp.sqrt(eps))
        dual = jnp.where(solved, new, dual)
        eta = jnp.where(solved, 4 * eta, eta / 4)
        return dual, eta, distance(dual), count + 1

    def going(carry):
        dual, _, size, count = carry
        scale = 1 / beta + jnp.max(jnp.abs(dual))
        return (size > 8 * eps * scale) & (count < MAX_STEPS)

    dual = jnp.zeros_like(logp_ref)
    carry = dual, jnp.full_like(beta, 4.0), distance(dual), 0
    carry = varying_as(carry, payoff, logp_ref, beta)
    return jax.lax.while_loop(going, step, carry)[0]


@_equilibrium.defjvp
def _equilibrium_jvp(div, primals, tangents):
    preference, logp_ref, beta = primals
    dual = _dual(div, *primals)
    logp = _respond(div, dual, logp_ref)

    def response(dual, logp_ref):
        return jnp.exp(_respond(div, dual, logp_ref))

    def implied(preference, logp_ref, beta):
        return preference @ response(dual, logp_ref) / beta

    # ds = P ∂π/∂s ds / β + what the game's own change adds.
    _, change = jax.jvp(implied, primals, tangents)
    slope = (preference - 0.5) @ _response_jacobian(div, logp, logp_ref) / beta
    d_dual = jnp.linalg.solve(jnp.eye(len(dual)) - slope, change - jnp.mean(change))
    return jax.jvp(
        functools.partial(_respond, div), (dual, logp_ref), (d_dual, tangents[1])
    )
