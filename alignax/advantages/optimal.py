"""Advantages over the regularised optimum's value, for any divergence.

The best policy under ``E_π r − β D_f(π‖ρ)`` has ``β f'(π*/ρ) = r − λ``: the optimal
advantage, which ``surrogates.regression_surrogate`` regresses on.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import divergences, numerics
from alignax.divergences import Divergence
from alignax.types import InputError


def optimal_value(
    div: Divergence,
    rewards: Float[Array, "*G N"],
    where: Bool[Array, "*G N"] | None = None,
    *,
    beta: float | Float[Array, "..."],
) -> Float[Array, "*G"]:
    """λ of a prompt from N samples of its reference ρ.

    The root of ``mean_n (f')^{-1}((r_n − λ)/β) = 1``, which over all of ρ makes π* a
    law. Reverse KL: ``V* = β log mean_n e^{r_n/β}``; Pearson with a large β:
    ``mean r``. Between the mean and the largest of the rewards. Consistent; below λ
    in expectation for the reverse KL. Exact, with ``log ρ`` for weights:
    ``divergences.regularised_optimum``.

    Args:
      div: the divergence of the policy from the reference.
      rewards: ``[..., N]`` of samples of the reference, one prompt's last.
      where: ``[..., N]``, the samples that count (default: all).
      beta: strength of the regularisation, positive: a number, or broadcast to
        ``[...]``; .5 in A*-PO, for rewards in {0, 1}.

    Returns:
      ``[...]`` float32, without gradient; 0 without a sample.

    Raises:
      InputError: ``beta`` is a number and not positive, or f has a kink at 1, where λ
        is any of an interval.

    Reference:
      Brantley et al., "Accelerating RL for LLM reasoning with optimal advantage
      regression" (A*-PO), arXiv 2505.20686 (reverse KL).

    Example:
      >>> from alignax import divergences as dv
      >>> rewards = jnp.array([1.0, 0.0])
      >>> print(f"{optimal_value(dv.reverse_kl(), rewards, beta=1.0):.4f}")
      0.6201
    """
    if not math.isfinite(div.curvature):
        raise InputError(f"div must have a derivative at ratio 1, got {div}")
    rewards = jax.lax.stop_gradient(numerics.as_float(rewards))
    if not isinstance(beta, int | float):
        beta = jnp.broadcast_to(beta, rewards.shape[:-1])
    _, multiplier, _ = divergences.regularised_optimum(
        div, rewards, jnp.zeros_like(rewards), beta=beta, where=where
    )
    return multiplier


def optimal_centred(
    rewards: Float[Array, "*G K"],
    where: Bool[Array, "*G K"] | None = None,
    *,
    div: Divergence,
    beta: float | Float[Array, "..."],
) -> Float[Array, "*G K"]:
    """Rewards less their group's own estimate of λ (OAPL): ``A*_k = r_k − λ̂``.

    The group has to come from the reference of the divergence: in OAPL the lagged law
    that sampled is both. Equal rewards have no advantage.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      where: ``[..., K]``, the completions whose rewards make λ̂ (default: all).
      div: the divergence of the policy from the law that sampled.
      beta: as for ``optimal_value``.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: as ``optimal_value``.

    Reference:
      Ritter et al., "LLMs can learn to reason via off-policy RL" (OAPL), arXiv
      2602.19362 (reverse KL).

    Example:
      >>> from alignax import divergences as dv
      >>> print(optimal_centred(jnp.array([1.0, 0.0]), div=dv.reverse_kl(), beta=1.0))
      [0.3799 -0.6201]
    """
    value = optimal_value(div, rewards, where, beta=beta)
    return jax.lax.stop_gradient(numerics.as_float(rewards)) - value[..., None]
