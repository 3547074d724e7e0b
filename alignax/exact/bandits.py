"""Adversarial bandits: learners whose regret has a proven bound.

A learner is an ``init``/``update`` pair over cumulative losses, one row for each
context. Fed all losses, exponential weights are Hedge; fed the importance-weighted
estimate from the arm played, EXP3. ``run_full_information`` and ``run_bandit`` play a
whole game in one scan, and ``jax.vmap`` over keys gives the expectation that the bounds
are about.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from alignax.numerics import varying_as
from alignax.types import InputError

State = Float[Array, "C K"]
Context = int | Int[Array, ""]


class Learner(NamedTuple):
    """``init(contexts, arms) -> state``, ``logp(state, context) -> [K]``, and
    ``update(state, context, losses [K]) -> state``."""

    init: Callable[[int, int], State]
    logp: Callable[[State, Context], Float[Array, " K"]]
    update: Callable[[State, Context, Float[Array, " K"]], State]


def _learner(logp: Callable[[Array], Array], learning_rate: float) -> Learner:
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be positive, got {learning_rate}")

    def init(contexts, arms):
        return jnp.zeros((contexts, arms))

    def update(state, context, losses):
        # Only differences of losses matter; this keeps them small.
        row = state[context] + losses
        return state.at[context].set(row - jnp.min(row))

    return Learner(init, lambda state, context: logp(state[context]), update)


def exponential_weights(*, learning_rate: float) -> Learner:
    """``p ∝ e^{−ηL}`` of the cumulative losses L: Hedge, and EXP3.

    With losses in [0, 1] known for every arm, the regret over T rounds is at most
    ``log K / η + ηT/8``. With importance-weighted losses its expectation is at most
    ``log K / η + ηTK/2``.

    Args:
      learning_rate: η, positive: ``√(8 C log K / T)`` over C contexts and T rounds
        where all losses are seen, ``√(2 C log K / (T K))`` where one is.

    Returns:
      a ``Learner``.

    Raises:
      InputError: ``learning_rate`` is not positive.

    Reference:
      Slivkins, "Introduction to multi-armed bandits", arXiv 1904.07272, chapters 5-6.

    Example:
      >>> learner = exponential_weights(learning_rate=1.0)
      >>> state = learner.update(learner.init(1, 2), 0, jnp.array([0.0, 1.0]))
      >>> print(learner.logp(state, 0).round(2))
      [-0.31 -1.31]
    """
    return _learner(
        lambda losses: jax.nn.log_softmax(-learning_rate * losses), learning_rate
    )


def importance_weighted_losses(
    logp: Float[Array, " K"], arm: Int[Array, ""], loss: Float[Array, ""]
) -> Float[Array, " K"]:
    """``ℓ̂_k = 1[k = a] ℓ_a / p_a``: all losses, estimated from that of one arm.

    Value: unbiased for every ``ℓ_k`` where p is positive, with variance
    ``ℓ_k² (1/p_k − 1)``.
    Gradient: none to use; it feeds a learner.

    Args:
      logp: ``[K]`` of the policy that played.
      arm: the arm played.
      loss: its loss.

    Returns:
      ``[K]``, zero except at the arm.

    Example:
      >>> logp = jnp.log(jnp.array([0.25, 0.75]))
      >>> print(importance_weighted_losses(logp, jnp.array(0), jnp.array(0.5)))
      [2. 0.]
    """
    return jnp.zeros_like(logp).at[arm].set(loss * jnp.exp(-logp[arm]))


def run_full_information(
    learner: Learner,
    losses: Float[Array, "T K"],
    contexts: Int[Array, " T"],
    *,
    num_contexts: int,
) -> Float[Array, "T K"]:
    """A game in which every arm's loss is seen after each round.

    Args:
      learner: such as ``exponential_weights(...)``.
      losses: ``[T, K]``.
      contexts: ``[T]``, seen before playing.
      num_contexts: C.

    Returns:
      the learner's log-probabilities ``[T, K]``.

    Example:
      >>> learner = exponential_weights(learning_rate=1.0)
      >>> game = jnp.eye(2), jnp.zeros(2, int)
      >>> logp = run_full_information(learner, *game, num_contexts=1)
      >>> print(logp[1].round(2))
      [-1.31 -0.31]
    """

    def step(state, turn):
        losses, context = turn
        logp = learner.logp(state, context)
        return learner.update(state, context, losses), logp

    state = varying_as(learner.init(num_contexts, losses.shape[1]), losses, contexts)
    return jax.lax.scan(step, state, (losses, contexts))[1]


def run_bandit(
    learner: Learner,
    losses: Float[Array, "T K"],
    contexts: Int[Array, " T"],
    key: Key[Array, ""],
    *,
    num_contexts: int,
) -> tuple[Float[Array, "T K"], Int[Array, " T"]]:
    """A game in which only the played arm's loss is seen.

    Args:
      learner: such as ``exponential_weights(...)``; it is fed
        ``importance_weighted_losses``.
      losses: ``[T, K]``, chosen beforehand.
      contexts: ``[T]``.
      key: of the arms played.
      num_contexts: C.

    Returns:
      the learner's log-probabilities ``[T, K]`` and the arms ``[T]``.

    Example:
      >>> learner, zeros = exponential_weights(learning_rate=1.0), jnp.zeros(4, int)
      >>> game = jnp.ones((4, 3)), zeros, jax.random.key(0)
      >>> logp, arms = run_bandit(learner, *game, num_contexts=1)
      >>> print(logp.shape, arms.shape)
      (4, 3) (4,)
    """

    def step(state, turn):
        losses, context, key = turn
        logp = learner.logp(state, context)
        arm = jax.random.categorical(key, logp)
        estimate = importance_weighted_losses(logp, arm, losses[arm])
        return learner.update(state, context, estimate), (logp, arm)

    state = learner.init(num_contexts, losses.shape[1])
    state = varying_as(state, losses, contexts, key)
    keys = jax.random.split(key, len(losses))
    return jax.lax.scan(step, state, (losses, contexts, keys))[1]


def regret(
    logp: Float[Array, "T K"],
    losses: Float[Array, "T K"],
    contexts: Int[Array, " T"],
    *,
    num_contexts: int,
) -> Float[Array, ""]:
    """Expected loss of what was played less that of the best arm in each context.

    Args:
      logp: ``[T, K]`` of the policies played.
      losses: ``[T, K]``.
      contexts: ``[T]``.
      num_contexts: C.

    Returns:
      the regret, in units of loss.

    Example:
      >>> half = jnp.log(jnp.full((2, 2), 0.5))
      >>> losses = jnp.array([[0.0, 1.0], [0.0, 1.0]])
      >>> print(regret(half, losses, jnp.zeros(2, int), num_contexts=1))
      1.0
    """
    played = jnp.sum(jnp.exp(logp) * losses)
    totals = jax.ops.segment_sum(losses, contexts, num_contexts)
    return played - jnp.sum(jnp.min(totals, axis=-1))
