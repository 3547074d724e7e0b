"""CTRL: a classifier as the reward of a denoising chain, in a world of few states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import positive
from alignax.numerics import as_float, varying_as
from alignax.types import Leaf


class SoftOptimalChain(NamedTuple):
    """A chain that was tilted towards what a classifier asks of its end."""

    log_initial: Leaf  # Float[S], of the first state
    log_steps: Leaf  # Float[T, S, S], from a row's state to a column's
    values: Leaf  # Float[T + 1, S], soft values in units of beta
    log_z: Leaf  # Float[], log of the mean of e^{reward/beta}


def soft_optimal_chain(
    log_initial: Float[Array, " S"],
    log_steps: Float[Array, "T S S"],
    log_likelihood: Float[Array, " S"],
    *,
    beta: float,
) -> SoftOptimalChain:
    """The policy that maximises ``E log p(y|x_T) − β KL(path‖pretrained path)``.

    ``v_T = log p(y|x)/β``, ``v_t(x) = log Σ_x' p(x'|x) e^{v_{t+1}(x')}``, and each step
    becomes ``p(x'|x) e^{v_{t+1}(x') − v_t(x)}``. Its last state has the law
    ``p(x) p(y|x)^{1/β} / Z``: at β = 1 the conditional one, with no classifier of noisy
    states; there ``v_t(x) = log p(y|x_t)``, which classifier guidance has to learn.
    The first state is tilted too; with the pretrained law of it the last one is biased.

    Args:
      log_initial: ``[S]`` of the pretrained chain's first state (pure noise).
      log_steps: ``[T, S, S]``, each row a law.
      log_likelihood: ``[S]``, ``log p(y|x)`` of the last state.
      beta: strength of the regularisation, positive; the paper's γ is 1/β.

    Returns:
      a ``SoftOptimalChain``; ``β log_z`` is the largest regularised reward.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Zhao et al., "Adding Conditional Control to Diffusion Models with Reinforcement
      Learning", arXiv 2406.12120, there for diffusions; a chain's recursion is derived
      in the tests by listing all paths.

    Example:
      >>> half = jnp.log(jnp.full((2, 2), 0.5))
      >>> likelihood = jnp.log(jnp.array([0.9, 0.3]))
      >>> chain = soft_optimal_chain(half[0], half[None], likelihood, beta=1.0)
      >>> print(jnp.exp(chain.log_steps[0, 0]).round(4))
      [0.75 0.25]
    """
    positive(beta=beta)
    log_initial, log_steps = as_float(log_initial), as_float(log_steps)
    last = as_float(log_likelihood) / beta

    def back(value, log_step):
        earlier = jax.nn.logsumexp(log_step + value[None], axis=-1)
        return earlier, (earlier, log_step + value[None] - earlier[:, None])

    start = varying_as(last, log_steps, log_initial)
    first, (values, steps) = jax.lax.scan(back, start, log_steps, reverse=True)
    log_z = jax.nn.logsumexp(log_initial + first)
    values = jnp.concatenate([values, last[None]])
    return SoftOptimalChain(log_initial + first - log_z, steps, values, log_z)


def last_state(
    log_initial: Float[Array, " S"], log_steps: Float[Array, "T S S"]
) -> Float[Array, " S"]:
    """The law of a chain's last state.

    Args:
      log_initial: ``[S]`` of the first.
      log_steps: ``[T, S, S]``, each row a law.

    Returns:
      log-probabilities ``[S]``.

    Example:
      >>> swap = jnp.log(jnp.array([[0.1, 0.9], [0.8, 0.2]]))
      >>> print(jnp.exp(last_state(jnp.array([0.0, -jnp.inf]), swap[None])).round(4))
      [0.1 0.9]
    """

    def forth(logp, log_step):
        return jax.nn.logsumexp(logp[:, None] + log_step, axis=0), None

    log_steps = as_float(log_steps)
    start = varying_as(as_float(log_initial), log_steps)
    return jax.lax.scan(forth, start, log_steps)[0]
