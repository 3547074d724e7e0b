"""Solvers that follow the gradient of a loss, in expectation.

The policy is a softmax of free logits, and each update is one step of gradient
descent on the expected loss over all pairs of outcomes, the sampling law held fixed:
what the language-model method does with infinitely many samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import not_negative, positive, share
from alignax.games import losses
from alignax.games.game import Game
from alignax.games.mirror import geometric_mixture
from alignax.games.solvers import Rate, Solver, memoryless
from alignax.logprobs import log_softmax
from alignax.numerics import as_float

ExpectedLoss = Callable[[Float[Array, "*batch N"], Game], Float[Array, "*batch"]]


def _descend(expected_loss: ExpectedLoss, learning_rate: Rate) -> Solver:
    """Gradient descent in the logits; ``log π`` are the logits up to a constant."""
    positive(learning_rate=learning_rate)

    def step(state, game):
        def total(logits):
            return jnp.sum(expected_loss(log_softmax(logits), game))

        return log_softmax(state.logp - learning_rate * jax.grad(total)(state.logp))

    return memoryless(step)


def _over_pairs(logp, game, sampler, sampler_other, loss):
    """``E_{y~sampler, y'~sampler_other} loss(pair)``; the samplers held fixed."""
    logp_ref = as_float(game.logp_ref)
    shape = game.preference.shape

    def first(x):
        return jnp.broadcast_to(x[..., :, None], shape)

    def second(x):
        return jnp.broadcast_to(x[..., None, :], shape)

    beta = jnp.broadcast_to(jnp.asarray(game.beta, logp.dtype), shape[:-2])
    pairs = loss(
        first(logp),
        second(logp),
        first(logp_ref),
        second(logp_ref),
        as_float(game.preference),
        beta=beta[..., None, None],
    )
    weights = jnp.exp(first(sampler) + second(sampler_other))
    return jnp.sum(jax.lax.stop_gradient(weights) * pairs, axis=(-2, -1))


def online_ipo(*, learning_rate: Rate) -> Solver:
    """Online IPO: descends ``online_ipo_loss`` over pairs from the policy itself.

    ``θ ← θ + (4/β)·learning_rate · ∇P_β(π_θ ≻ sg π_θ)``, whose rest point is π*.

    Args:
      learning_rate: of the loss as the paper scales it; steps of β/4 follow the
        preference's own gradient.

    Returns:
      a ``Solver``; the policy and the reference must give every outcome some mass.

    Raises:
      InputError: ``learning_rate`` is not positive.

    Reference:
      Calandriello et al., "Human alignment of large language models through online
      preference optimisation", arXiv 2403.08635, propositions 4.1 and 4.2.

    Example:
      >>> from alignax.games.solvers import run_solver
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> solver = online_ipo(learning_rate=0.1)
      >>> print(run_solver(solver, game, game.logp_ref, steps=1)[1].round(4))
      [[-0.6539 -0.7339]]
    """
    return ipo_md(learning_rate=learning_rate, mixture=0.0)


def ipo_md(*, learning_rate: Rate, mixture: Rate) -> Solver:
    """IPO-MD: descends the IPO loss over pairs from ``π^{1−m} ρ^m``.

    Its rest point is ``π ∝ ρ e^{P(·≻π_m)/β}``, where the mixture ``π_m`` is the
    equilibrium at the temperature ``β/(1 − m)``: not π* unless m = 0.

    Args:
      learning_rate: as for ``online_ipo``.
      mixture: m in [0, 1]; 0 is online IPO, 1 IPO on pairs from the reference.

    Returns:
      a ``Solver``; the policy and the reference must give every outcome some mass.

    Raises:
      InputError: ``learning_rate`` is not positive, or ``mixture`` not in [0, 1].

    Reference:
      Calandriello et al., "Human alignment of large language models through online
      preference optimisation", arXiv 2403.08635, §5.

    Example:
      >>> from alignax.games.solvers import run_solver
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> solver = ipo_md(learning_rate=0.1, mixture=0.5)
      >>> print(run_solver(solver, game, game.logp_ref, steps=1)[1].round(4))
      [[-0.6539 -0.7339]]
    """
    share(mixture=mixture)

    def expected_loss(logp, game):
        mixed = geometric_mixture(logp, game.logp_ref, mixture=mixture)
        return _over_pairs(logp, game, mixed, mixed, losses.online_ipo_loss)

    return _descend(expected_loss, learning_rate)


def xpo(*, learning_rate: Rate, alpha: Rate) -> Solver:
    """XPO: descends ``xpo_loss`` over pairs of a policy and a reference sample.

    DPO's link fits a reward, so that its rest point solves the game only where a
    reward explains the preferences (and alpha is 0).

    Args:
      learning_rate: of the loss.
      alpha: weight of the exploration bonus.

    Returns:
      a ``Solver``; the policy and the reference must give every outcome some mass.

    Raises:
      InputError: ``learning_rate`` is not positive, or ``alpha`` negative.

    Reference:
      Xie et al., "Exploratory preference optimization", arXiv 2405.21046.

    Example:
      >>> from alignax.games.solvers import run_solver
      >>> half, wins = jnp.log(jnp.full(2, 0.5)), jnp.array([[0.5, 0.9], [0.1, 0.5]])
      >>> game = Game(wins, half, 1.0)
      >>> solver = xpo(learning_rate=0.1, alpha=0.0)
      >>> print(run_solver(solver, game, game.logp_ref, steps=1)[1].round(4))
      [[-0.6733 -0.7133]]
    """
    not_negative(alpha=alpha)

    def expected_loss(logp, game):
        def loss(*pair, beta):
            return losses.xpo_loss(*pair, beta=beta, alpha=alpha)

        return _over_pairs(logp, game, logp, as_float(game.logp_ref), loss)

    return _descend(expected_loss, learning_rate)
