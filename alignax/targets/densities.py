"""Unnormalised targets ``log P(y)`` of whole completions, elementwise.

    log P = tilted(logp_ref, rewards, beta=beta)       KL-RL's posterior
    log P = filtered(logp, satisfied)                  every sample meets a constraint
    log P = tilted(logp_ref, features @ multipliers, beta=1)   constraints on means
    log P = product_of_experts(logps, weights)         several models agree
    log P = mixture_of_experts(logps, weights)         one of several models

They are composed by calling one on another's result. With a normaliser for each prompt
a target is conditional, whatever it is made of.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax._checks import Strength, positive
from alignax.numerics import as_float


def tilted(
    logp_ref: Float[Array, "*batch"], rewards: Float[Array, "*batch"], *, beta: Strength
) -> Float[Array, "*batch"]:
    """``log ρ + r/β``: KL-regularised RL's optimum, but for its normaliser.

    ``posterior`` is the same over enumerated outcomes, normalised. With ``r = λ·φ`` and
    β = 1 it is the exponential family of constraints in expectation.

    Args:
      logp_ref: ``[...]`` of whole completions; ``-inf`` stays excluded.
      rewards: ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``log P [...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Korbak, Perez and Buckley, arXiv 2205.11275; Khalifa, Elsahar and Dymetman, "A
      distributional approach to controlled text generation", arXiv 2012.11635.

    Example:
      >>> print(tilted(jnp.array([-1.0]), jnp.array([2.0]), beta=0.5))
      [3.]
    """
    positive(beta=beta)
    logp_ref = as_float(logp_ref)
    possible = logp_ref > -jnp.inf
    inside = jnp.where(possible, logp_ref, 0) + jnp.where(possible, rewards, 0) / beta
    return jnp.where(possible, inside, -jnp.inf)


def filtered(
    logp: Float[Array, "*batch"], satisfied: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``log (P b)``: what does not satisfy b is excluded.

    Args:
      logp: ``[...]``, log P.
      satisfied: ``[...]``, b.

    Returns:
      ``[...]``, ``-inf`` where b is false.

    Example:
      >>> print(filtered(jnp.array([-1.0, -2.0]), jnp.array([True, False])))
      [ -1. -inf]
    """
    return jnp.where(satisfied, as_float(logp), -jnp.inf)


def product_of_experts(
    logps: Float[Array, "*batch M"], weights: Float[Array, "*#batch M"]
) -> Float[Array, "*batch"]:
    """``log Π p_m^{w_m}``: what all experts find likely, or less so if w is negative.

    Args:
      logps: ``[..., M]``, each expert's of the same completions.
      weights: ``[M]``, or of each, ``[..., M]``; an expert of weight 0 excludes
        nothing.

    Returns:
      ``[...]``, unnormalised; ``-inf`` where an expert of positive weight excludes.

    Reference:
      Hinton, "Training products of experts by minimizing contrastive divergence", 2002.

    Example:
      >>> logps = jnp.log(jnp.array([[0.5, 0.125]]))
      >>> print(jnp.exp(product_of_experts(logps, jnp.array([0.5, 0.5]))))
      [0.25]
    """
    logps = as_float(logps)
    weights = jnp.broadcast_to(as_float(weights), logps.shape)
    used = jnp.where(weights != 0, logps, 0)
    return jnp.sum(weights * used, axis=-1)


def mixture_of_experts(
    logps: Float[Array, "*batch M"], weights: Float[Array, "*#batch M"]
) -> Float[Array, "*batch"]:
    """``log Σ w_m p_m``: a completion of one of several experts.

    Of whole completions, and not token by token. Normalised where the weights sum to 1:
    its normaliser is then known.

    Args:
      logps: ``[..., M]``, each expert's of the same completions.
      weights: ``[M]``, or of each, ``[..., M]``, not negative.

    Returns:
      ``[...]``.

    Example:
      >>> logps = jnp.log(jnp.array([[0.5, 0.25]]))
      >>> print(jnp.exp(mixture_of_experts(logps, jnp.array([0.5, 0.5]))))
      [0.375]
    """
    logps = as_float(logps)
    weights = jnp.broadcast_to(as_float(weights), logps.shape)
    counted = (weights > 0) & (logps > -jnp.inf)
    terms = jnp.where(counted, logps, 0) + jnp.log(jnp.where(weights > 0, weights, 1))
    return jax.nn.logsumexp(terms, axis=-1, where=counted)
