"""Solvers of preference games by closed-form steps, as ``init``/``update`` pairs.

A solver's state is a small pytree with the current policy in ``state.logp``; its
update is pure, for ``jax.lax.scan`` (see ``play``), and vmaps over games and over
step sizes. Regularisation is the game's: ``game.beta``, ``game.logp_ref``.

==============================  =====================  =========================
solver                          last iterate goes to   stated rate
==============================  =====================  =========================
``mirror_descent`` (INPO)       π*, or cycles          \\-
``nash_md``                     π*                     KL ≤ 8 / (β² (T + 1))
``nash_ema``                    π*, or cycles          \\-
``nash_mp``                     π*                     KL ≤ (1 + ηβ)^{−k} KL_0
``magnetic_mirror_descent``     π*, or cycles; with    (1 + ηβ)^{−k} for small η
                                refreshed magnets, an
                                unregularised Nash
``sppo``                        no regularisation; its average to a Nash
==============================  =====================  =========================
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax._checks import positive
from alignax.games.game import Game, check_game, win_rate
from alignax.games.mirror import entropic_step, geometric_mixture, proximal_step
from alignax.numerics import as_float
from alignax.types import InputError

Rate = float | Float[Array, ""]


class SolverState(NamedTuple):
    """``logp [..., N]`` is the policy, ``memory`` what else the solver keeps,
    ``step`` the number of updates."""

    logp: Float[Array, "*batch N"]
    memory: Any
    step: Int[Array, ""]


class Solver(NamedTuple):
    """``init(game, logp) -> state`` and ``update(state, game) -> state``.

    ``queries`` is how often an update asks for the win rates against some policy.
    """

    init: Callable[[Game, Float[Array, "*batch N"]], SolverState]
    update: Callable[[SolverState, Game], SolverState]
    queries: int


def memoryless(step: Callable[..., Any], *, queries: int = 1) -> Solver:
    """A solver without memory from ``step(state, game) -> log π⁺``.

    Args:
      step: one update of the policy.
      queries: win rates it asks for.

    Returns:
      a ``Solver``.

    Example:
      >>> lazy = memoryless(lambda state, game: state.logp, queries=0)
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> print(lazy.update(lazy.init(game, game.logp_ref), game).step)
      1
    """

    def init(game, logp):
        return SolverState(as_float(logp), (), jnp.int32(0))

    def update(state, game):
        return SolverState(step(state, game), (), state.step + 1)

    return Solver(init, update, queries)


def run_solver(
    solver: Solver, game: Game, logp: Float[Array, "*batch N"], *, steps: int
) -> tuple[SolverState, Float[Array, "steps *batch N"]]:
    """Run a solver in one scan.

    Args:
      solver: any.
      game: of N outcomes.
      logp: ``[..., N]``, the policy to start with.
      steps: number of updates.

    Returns:
      the last state, and ``log π`` after each update ``[steps, ..., N]``.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> run_solver(sppo(eta=1.0), game, game.logp_ref, steps=3)[1].shape
      (3, 2)
    """
    check_game(game, regularised=False)

    def step(state, _):
        return (state := solver.update(state, game)), state.logp

    return jax.lax.scan(step, solver.init(game, logp), length=steps)


def mirror_descent(*, eta: Rate) -> Solver:
    """Self-play online mirror descent on the regularised game.

    ``π_{t+1} ∝ (π_t^{1−ηβ} ρ^{ηβ}) e^{ηP(·≻π_t)}``. A fixed point is π*, but at a
    constant step it may be circled for ever: the gradient of the game rotates.

    Args:
      eta: step size, ``ηβ ≤ 1``.

    Returns:
      a ``Solver``.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, eq. 7-8.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> path = run_solver(mirror_descent(eta=0.5), game, half, steps=1)[1]
      >>> print(path.round(4))
      [[-0.5981 -0.7981]]
    """
    positive(eta=eta)

    def step(state, game):
        centre = geometric_mixture(state.logp, game.logp_ref, mixture=eta * game.beta)
        return entropic_step(centre, win_rate(game.preference, state.logp), eta=eta)

    return memoryless(step)


def nash_md(*, eta: Rate | None = None) -> Solver:
    """Nash-MD: mirror descent against the mixture of the policy and the reference.

    ``π_t^μ ∝ π_t^{1−ηβ} ρ^{ηβ}``, ``π_{t+1} ∝ π_t^μ e^{ηP(·≻π_t^μ)}``. With the
    default steps ``KL(π*‖π_T) ≤ 8 / (β²(T + 1))``; a constant step is biased, its
    ``π_∞^μ`` being the equilibrium at the temperature ``β/(1 − ηβ)``.

    Args:
      eta: constant step size, ``ηβ ≤ 1``; default ``2 / (β(t + 2))``, the theorem's.

    Returns:
      a ``Solver``.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, theorem 1.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> print(run_solver(nash_md(), game, game.logp_ref, steps=1)[1].round(4))
      [[-0.513 -0.913]]
    """
    if eta is not None:
        positive(eta=eta)

    def step(state, game):
        pull = 2 / (state.step + 2) if eta is None else eta * game.beta
        mixed = geometric_mixture(state.logp, game.logp_ref, mixture=pull)
        return entropic_step(
            mixed, win_rate(game.preference, mixed), eta=pull / game.beta
        )

    return memoryless(step)


def nash_ema(*, eta: Rate, decay: Rate) -> Solver:
    """Nash-EMA: mirror descent against the moving average of the logits.

    The opponent ``log π̄ ← d log π̄ + (1 − d) log π`` is a geometric mean of the past.

    Args:
      eta: step size, ``ηβ ≤ 1``.
      decay: d in [0, 1); 0 is ``mirror_descent``.

    Returns:
      a ``Solver`` whose memory is ``log π̄``.

    Raises:
      InputError: ``eta`` is not positive, or ``decay`` not in [0, 1).

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §7.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> solver = nash_ema(eta=0.5, decay=0.9)
      >>> print(run_solver(solver, game, game.logp_ref, steps=1)[1].round(4))
      [[-0.5981 -0.7981]]
    """
    positive(eta=eta)
    if isinstance(decay, (int, float)) and not 0 <= decay < 1:
        raise InputError(f"decay must be in [0, 1), got {decay}")

    def init(game, logp):
        return SolverState(as_float(logp), as_float(logp), jnp.int32(0))

    def update(state, game):
        centre = geometric_mixture(state.logp, game.logp_ref, mixture=eta * game.beta)
        rate = win_rate(game.preference, state.memory)
        logp = entropic_step(centre, rate, eta=eta)
        average = geometric_mixture(logp, state.memory, mixture=decay)
        return SolverState(logp, average, state.step + 1)

    return Solver(init, update, 1)


def nash_mp(*, eta: Rate = 2.0) -> Solver:
    """Nash mirror prox: a look ahead, then the step from the same place.

    ``π_{k+1/2} = prox_{π_k}(P(·≻π_k))``, ``π_{k+1} = prox_{π_k}(P(·≻π_{k+1/2}))``, of
    ``proximal_step``. For ``η ≤ 2``, ``KL(π*‖π_k) ≤ (1 + ηβ)^{−k} KL(π*‖π_0)``: with
    N = 2k queries and η = 2, ``(1 + 2β)^{−N/2}``.

    Args:
      eta: step size; 2 is the largest with a guarantee.

    Returns:
      a ``Solver``.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Tiapkin et al., "Accelerating Nash learning from human feedback via mirror
      prox", arXiv 2505.19731. Its step size is ``βη``.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> print(run_solver(nash_mp(), game, game.logp_ref, steps=1)[1].round(4))
      [[-0.5687 -0.8353]]
    """
    positive(eta=eta)

    def step(state, game):
        def prox(opponent):
            rate = win_rate(game.preference, opponent)
            return proximal_step(
                state.logp, rate, game.logp_ref, eta=eta, beta=game.beta
            )

        return prox(prox(state.logp))

    return memoryless(step, queries=2)


def sppo(*, eta: Rate) -> Solver:
    """SPPO: multiplicative weights in self-play, ``π_{t+1} ∝ π_t e^{ηP(·≻π_t)}``.

    No regularisation. From the uniform law the *average* policy has exploitability at
    most ``log N / (ηT) + η/8``; the last one leaves an interior equilibrium.

    Args:
      eta: step size; 1/β of the authors' code.

    Returns:
      a ``Solver``.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Wu et al., "Self-play preference optimization for language model alignment",
      arXiv 2405.00675.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> print(run_solver(sppo(eta=0.5), game, game.logp_ref, steps=1)[1].round(4))
      [[-0.5981 -0.7981]]
    """
    positive(eta=eta)
    return memoryless(
        lambda state, game: entropic_step(
            state.logp, win_rate(game.preference, state.logp), eta=eta
        )
    )


def magnetic_mirror_descent(*, eta: Rate, refresh: int | None = None) -> Solver:
    """Magnetic mirror descent: proximal steps towards a magnet of strength ``beta``.

    ``π_{t+1} = argmax η(⟨P(·≻π_t), π⟩ − β KL(π‖magnet)) − KL(π‖π_t)``. The magnet is
    the reference, and π* the limit for small η; or, refreshed to the policy every
    ``refresh`` steps, moves to a Nash equilibrium of the *unregularised* game (MPO).

    Args:
      eta: step size; Sokota et al. ask for ``η ≤ 4β`` (β over L², L = ½).
      refresh: steps between refreshments; None keeps the reference.

    Returns:
      a ``Solver`` whose memory is the magnet's log-probabilities.

    Raises:
      InputError: ``eta`` is not positive, or ``refresh`` less than 1.

    Reference:
      Sokota et al., arXiv 2206.05825; Wang et al., "Magnetic preference
      optimization", arXiv 2410.16714.

    Example:
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> solver = magnetic_mirror_descent(eta=0.5)
      >>> print(run_solver(solver, game, game.logp_ref, steps=1)[1].round(4))
      [[-0.6287 -0.762]]
    """
    positive(eta=eta)
    if refresh is not None and refresh < 1:
        raise InputError(f"refresh must be at least 1 or None, got {refresh}")

    def init(game, logp):
        return SolverState(as_float(logp), as_float(game.logp_ref), jnp.int32(0))

    def update(state, game):
        rate = win_rate(game.preference, state.logp)
        logp = proximal_step(state.logp, rate, state.memory, eta=eta, beta=game.beta)
        count = state.step + 1
        if refresh is None:
            return SolverState(logp, state.memory, count)
        magnet = jnp.where(count % refresh == 0, logp, state.memory)
        return SolverState(logp, magnet, count)

    return Solver(init, update, 1)
