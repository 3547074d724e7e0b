"""Exact quantities of laws given by the log-probabilities of all their outcomes.

Outcomes are the last axis: arms of a bandit, or completions enumerated by
``exact.enumerate_completions``. Everything is differentiable, so ``jax.grad`` of
``objective`` is the gradient that estimators are compared with.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def expectation(
    logp: Float[Array, "*batch N"], values: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``Σ_y π(y) f(y)``; an outcome without probability counts nothing.

    Args:
      logp: ``[..., N]`` over every outcome.
      values: ``[..., N]``.

    Returns:
      ``[...]``.

    Example:
      >>> print(expectation(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 3.0])))
      2.0
    """
    possible = logp > -jnp.inf
    pi = jnp.exp(jnp.where(possible, logp, 0))
    return jnp.sum(pi * jnp.where(possible, values, 0), axis=-1, where=possible)


def kl(
    logp: Float[Array, "*batch N"], logp_ref: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``KL(π‖ρ)`` in nats; with the arguments exchanged, the forward KL.

    Args:
      logp: ``[..., N]`` of π.
      logp_ref: ``[..., N]`` of ρ.

    Returns:
      ``[...]``; infinite where π has an outcome that ρ has not.

    Example:
      >>> pi, rho = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
      >>> print(f"{kl(jnp.log(pi), jnp.log(rho)):.4f}")
      0.1438
    """
    possible = logp > -jnp.inf
    ratio = jnp.where(possible, logp, 0) - jnp.where(possible, logp_ref, 0)
    return expectation(logp, ratio)


def total_variation(
    logp: Float[Array, "*batch N"], logp_ref: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``½ Σ_y |π(y) − ρ(y)|``.

    Args:
      logp: ``[..., N]`` of π.
      logp_ref: ``[..., N]`` of ρ.

    Returns:
      ``[...]``, in [0, 1].

    Example:
      >>> pi, rho = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
      >>> print(total_variation(jnp.log(pi), jnp.log(rho)))
      0.25
    """
    difference = jnp.exp(logp) - jnp.exp(logp_ref)
    # The sign, not abs: its gradient at equal probabilities is 0.
    return jnp.sum(jnp.sign(difference) * difference, axis=-1) / 2


def objective(
    logp: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    rewards: Float[Array, "*batch N"],
    *,
    beta: float | Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """``J = E_π r − β KL(π‖ρ)``, exactly.

    Args:
      logp: ``[..., N]`` of the policy.
      logp_ref: ``[..., N]`` of the reference.
      rewards: ``[..., N]``.
      beta: strength of the regularisation.

    Returns:
      ``[...]``.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> print(objective(half, half, jnp.array([1.0, 0.0]), beta=1.0))
      0.5
    """
    return expectation(logp, rewards) - beta * kl(logp, logp_ref)


def policy_gradient(
    logp: Float[Array, "*batch N"], values: Float[Array, "*batch N"]
) -> Float[Array, "*batch N"]:
    """``∂ E_π f / ∂ logits = π (f − E_π f)`` of a softmax over outcomes.

    Args:
      logp: ``[..., N]``.
      values: ``[..., N]``, held fixed.

    Returns:
      ``[..., N]``; it sums to 0.

    Example:
      >>> print(policy_gradient(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0])))
      [0.25 -0.25]
    """
    possible = logp > -jnp.inf
    centred = jnp.where(possible, values, 0) - expectation(logp, values)[..., None]
    return jnp.where(possible, jnp.exp(logp) * centred, 0)
