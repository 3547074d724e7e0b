"""Targets from samples: self-normalised means, quasi-rejection.

Weights are logs, ``log P(y) − log q(y)`` for y sampled from the proposal q; a weight
of ``-inf`` is a sample that the target excludes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import as_float
from alignax.types import InputError


def column(
    x: float | Float[Array, "*batch"], like: Float[Array, "*batch N"]
) -> Float[Array, "*batch 1"]:
    """A number, or one a row, as a column beside ``like``."""
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape[:-1])[..., None]


def kl_to_posterior(
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    rewards: Float[Array, "*batch"],
    log_z: Float[Array, "*batch"],
    *,
    beta: float,
) -> Float[Array, "*batch"]:
    """How far each of a policy's samples says it is from its optimum.

    ``log π(y) − log ρ(y) − r(y)/β + log Z``: constant 0 at the optimum itself.

    Value: of samples of π, the mean is unbiased for KL(π‖p*) in nats.
    Gradient: none to use; its expectation is 0. Train on ``r − β log(π/ρ)``.

    Args:
      logp: ``[...]`` of whole completions under the policy that sampled them.
      logp_ref: ``[...]`` under the reference.
      rewards: ``[...]``.
      log_z: ``[...]`` of each completion's prompt, exact or by ``log_normaliser``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Korbak, Perez and Buckley, arXiv 2205.11275.

    Example:
      >>> zero, r = jnp.zeros(1), jnp.ones(1)
      >>> print(kl_to_posterior(zero, zero, r, jnp.array([2.0]), beta=1.0))
      [1.]
    """
    if not beta > 0:
        raise InputError(f"beta must be positive, got {beta}")
    log_ratio = as_float(logp) - as_float(logp_ref)
    return log_ratio - as_float(rewards) / beta + as_float(log_z)


def importance_expectation(
    log_weights: Float[Array, "*batch N"], values: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """``Σ w_n f(y_n) / Σ w_n``: an expectation under the target, self-normalised.

    Value: consistent for ``E_p f``; biased by O(1/N).
    Gradient: through the values, consistent for ``E_p ∇f``; through the weights,
    consistent for the gradient of ``E_p f`` with q fixed.

    Args:
      log_weights: ``[..., N]``.
      values: ``[..., N]``; where a weight is ``-inf`` anything may stand.

    Returns:
      ``[...]``, 0 where all weights are ``-inf``.

    Example:
      >>> weights = jnp.log(jnp.array([1.0, 3.0]))
      >>> print(f"{importance_expectation(weights, jnp.arange(2.0)):.4f}")
      0.7500
    """
    log_weights = as_float(log_weights)
    possible = log_weights > -jnp.inf
    some = jnp.any(possible, axis=-1, keepdims=True)
    shares = jax.nn.softmax(jnp.where(some, log_weights, 0), where=possible)
    return jnp.sum(shares * jnp.where(possible, as_float(values), 0), axis=-1)


def log_acceptance(
    log_weights: Float[Array, "*shape"], *, log_kappa: float | Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """``log min(1, P / (κ q))``: keep a sample of q with this log-probability.

    What is kept has the law ``p_κ ∝ min(P, κ q)``, ``quasi_rejection_law``. A larger
    κ is nearer the target and keeps less.

    Args:
      log_weights: ``[...]``.
      log_kappa: log κ, broadcast against the weights.

    Returns:
      ``[...]``, at most 0.

    Reference:
      Eikema et al., "An approximate sampler for energy-based models with divergence
      diagnostics", 2022.

    Example:
      >>> print(log_acceptance(jnp.array([-1.0, 2.0]), log_kappa=1.0))
      [-2. 0.]
    """
    excess = as_float(log_weights) - log_kappa
    return jnp.where(excess < 0, excess, 0)


def quasi_rejection_quality(
    log_weights: Float[Array, "*batch N"],
    *,
    log_kappa: float | Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """What a κ costs and what it buys, from samples of the proposal alone.

    ``AR = E_q a``, ``TV(p, p_κ) = ½ E_q |P/(Z q) − a/AR|``, ``a = min(1, P/(κ q))``.

    Value: the acceptance rate is unbiased; the total variation is consistent.
    Gradient: of the acceptance rate's sample mean; the distance's, almost everywhere.

    Args:
      log_weights: ``[..., N]``, not all ``-inf``.
      log_kappa: log κ.

    Returns:
      acceptance rate and total variation from the target, each ``[...]``.

    Reference:
      Eikema et al., "An approximate sampler for energy-based models with divergence
      diagnostics", 2022.

    Example:
      >>> weights = jnp.log(jnp.array([1.0, 3.0]))
      >>> rate, distance = quasi_rejection_quality(weights, log_kappa=0.0)
      >>> print(f"{rate:.4f} {distance:.4f}")
      1.0000 0.2500
    """
    log_weights = as_float(log_weights)
    possible = log_weights > -jnp.inf
    kept = log_acceptance(log_weights, log_kappa=column(log_kappa, log_weights))
    count = log_weights.shape[-1]
    target = jax.nn.softmax(log_weights, axis=-1, where=possible)
    law = jax.nn.softmax(kept, axis=-1, where=possible)
    rate = jnp.sum(jnp.where(possible, jnp.exp(kept), 0), axis=-1) / count
    difference = target - law
    distance = jnp.sum(jnp.sign(difference) * difference, axis=-1) / 2
    return rate, distance
