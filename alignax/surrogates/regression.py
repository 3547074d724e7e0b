"""Regression to the optimum of a regularised objective: no ratio, no clip.

The best policy under ``E_π r − β D_f(π‖ρ)`` satisfies ``β f'(π*/ρ) = r − λ`` with one
λ a prompt (``divergences.regularised_optimum``). A squared error in this equation is
zero at the optimum whatever law sampled the completions, however long ago. For the
reverse KL ``f' = log`` and λ = V* is ``β log E_ρ e^{r/β}``.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax._checks import Strength
from alignax.divergences import Divergence
from alignax.surrogates.rules import clean
from alignax.types import InputError

# Where f' is unbounded it goes on as its tangent, so that its square is finite.
FAR = 15.0


def _reward(div: Divergence, log_ratios: Array, beta: ArrayLike) -> Array:
    """``β f'(e^d)``, the reward whose optimum is the policy, up to λ."""
    if isinstance(beta, int | float) and not beta > 0:
        raise InputError(f"beta must be positive, got {beta}")
    if not math.isfinite(div.curvature):
        raise InputError(
            f"div must have a derivative everywhere for its optimum to be regressed "
            f"on, got {div}, which has a kink at ratio 1."
        )
    low, high = (FAR if math.isinf(slope) else math.inf for slope in div.slopes)
    near = jnp.clip(log_ratios, -low, high)
    return (div.f_prime(near) + div.uf2(near) * (log_ratios - near)) * beta


def regression_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    div: Divergence,
    beta: ArrayLike,
) -> Float[Array, "*B T"]:
    """``(β f'(π/ρ) − A*)²`` with the optimal advantage ``A* = r − λ``.

    ``reverse_kl()``: A*-PO (ρ the reference, λ from its samples beforehand) and OAPL
    (ρ the law that sampled, λ from the group). Any other f: the same with its optimum.
    With the exact λ, loss and gradient vanish at ``regularised_optimum`` and nowhere
    else, whatever sampled. Where f has a finite ``f'(0)``, advantages below ``β f'(0)``
    belong to completions that the optimum excludes, and count as that.

    Args:
      log_ratios: ``[..., T]`` of whole completions (``sequence_log_ratio`` at each
        token), the policy's over ρ's, differentiated.
      advantages: ``[..., T]``, A*, of ``advantages.optimal_centred`` or
        ``optimal_value``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      div: a divergence with a curvature.
      beta: strength of the regularisation, positive; a number or broadcast.

    Returns:
      ``[..., T]`` float32, the completion's loss at each token: reduce by the mean over
      completions of the token mean. Zero where masked.

    Raises:
      InputError: ``beta`` is a number and not positive, or f has a kink at 1.

    Reference:
      Brantley et al., "Accelerating RL for LLM reasoning with optimal advantage
      regression" (A*-PO), arXiv 2505.20686; Ritter et al., "LLMs can learn to
      reason via off-policy RL" (OAPL), arXiv 2602.19362, eq. 3. For f other than the
      reverse KL by ``regularised_optimum``.

    Example:
      >>> from alignax import divergences as dv
      >>> d, mask = jnp.array([2.0]), jnp.array([True])
      >>> print(regression_surrogate(d, d, mask, div=dv.reverse_kl(), beta=0.5))
      [1.]
    """
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    target = jnp.maximum(advantages, beta * div.slopes[0])
    return jnp.where(mask, jnp.square(_reward(div, log_ratios, beta) - target), 0)


def rebel_surrogate(
    log_ratios: Float[Array, "*G K"],
    rewards: Float[Array, "*G K"],
    *,
    div: Divergence,
    beta: Strength,
) -> Float[Array, "*G"]:
    """``((β f'_i − β f'_j) − (r_i − r_j))²``, the mean over a group's pairs (REBEL).

    Of two completions λ cancels. The paper: two of them, reverse KL, ρ the policy
    before, ``η = 1/β``; its code's loss is η² times this one. In closed form
    ``2/(K − 1) Σ_k e_k²`` with ``e = β f' − r`` less its mean.

    Args:
      log_ratios: ``[..., K]`` of whole completions of one prompt, the policy's over
        ρ's, differentiated.
      rewards: ``[..., K]``; no gradient.
      div: a divergence with a curvature and ``f'(0) = −∞``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]`` float32, one loss a group.

    Raises:
      InputError: K is less than 2, ``beta`` is not positive, f has a kink at 1 or a
        finite ``f'(0)``: the optimum then excludes completions, whose rewards no pair
        determines.

    Reference:
      Gao et al., "REBEL: Reinforcement learning via regressing relative rewards", arXiv
      2404.16767, Algorithm 1.

    Example:
      >>> from alignax import divergences as dv
      >>> d, r = jnp.array([0.5, 0.0]), jnp.array([1.0, 0.0])
      >>> print(rebel_surrogate(d, r, div=dv.reverse_kl(), beta=1.0))
      0.25
    """
    if rewards.shape[-1] < 2:
        raise InputError(
            "rewards must hold at least two completions a prompt to compare them, got "
            f"shape {rewards.shape}; sample more completions"
        )
    if math.isfinite(div.slopes[0]):
        raise InputError(
            f"div must have f'(0) = -inf for differences to determine its optimum, got "
            f"{div} with f'(0) = {div.slopes[0]:g}; regression_surrogate would do"
        )
    everywhere = jnp.ones(rewards.shape, bool)
    rewards = jax.lax.stop_gradient(reduce.masked(rewards, everywhere))
    error = _reward(div, reduce.masked(log_ratios, everywhere), beta) - rewards
    error = error - jnp.mean(error, axis=-1, keepdims=True)
    return 2 * jnp.sum(jnp.square(error), axis=-1) / (rewards.shape[-1] - 1)
