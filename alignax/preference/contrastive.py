"""Contrastive policy gradient: policy gradients from any pair of scored samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import surrogates
from alignax._checks import Strength, positive
from alignax.divergences import Divergence, reverse_kl
from alignax.numerics import as_float
from alignax.preference.pairs import Pair, log_ratios

REVERSE_KL = reverse_kl()


def copg(
    pair: Pair,
    rewards_w: Float[Array, "*batch"],
    rewards_l: Float[Array, "*batch"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """``(β/2) h² − (R(w) − R(l)) h``: no order within the pair, no importance ratio.

    Minimised by ``π ∝ ρ e^{R/β}`` whatever law, of full support, samples the two
    completions. With rewards of ±¼ it is ``β/2`` times IPO's loss less a constant; for
    a policy's own pairs it is RLOO's surrogate with two samples.

    Value: not that of the regularised reward; ``[(ΔR − βh)² − ΔR²] / (2β)``.
    Gradient: for independent samples of the policy itself, unbiased for ``−2 ∇J``,
      ``J = E R − β KL(π‖ρ)``; for others, of a loss with the same minimiser as −J.

    Args:
      pair: of ``[...]``, in any order; the fields' lengths are not read.
      rewards_w: ``[...]`` of the first completions.
      rewards_l: ``[...]`` of the second.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Flet-Berliac et al., "Contrastive policy gradient: aligning LLMs on sequence-level
      scores in a supervised-friendly fashion", arXiv 2406.19185, eq. 7.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -2.0, -2.0, -2.0, 1, 1]))
      >>> print(copg(pair, *jnp.array([1.0, 0.5]), beta=0.5))
      -0.25
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    rewards_w, rewards_l = jax.lax.stop_gradient((rewards_w, rewards_l))
    difference = as_float(rewards_w) - as_float(rewards_l)
    h = u - v
    return beta / 2 * jnp.square(h) - difference * h


def rebel(
    pair: Pair,
    rewards_w: Float[Array, "*batch"],
    rewards_l: Float[Array, "*batch"],
    *,
    beta: Strength,
    div: Divergence = REVERSE_KL,
) -> Float[Array, "*batch"]:
    """``(β Δf'(π/ρ) − ΔR)²``, of two completions of one prompt, ρ the policy before.

    With the reverse KL ``2β`` times ``copg`` but for a constant.

    Args:
      pair: of ``[...]``, in any order; the fields' lengths are not read.
      rewards_w: ``[...]`` of the first completions.
      rewards_l: ``[...]`` of the second.
      beta: strength of the regularisation, positive.
      div: as ``surrogates.rebel_surrogate`` takes it.

    Returns:
      ``[...]``.

    Raises:
      InputError: as ``surrogates.rebel_surrogate``.

    Reference:
      Gao et al., "REBEL: Reinforcement learning via regressing relative rewards", arXiv
      2404.16767, Algorithm 1.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -2.0, -2.0, -2.0, 1, 1]))
      >>> print(rebel(pair, *jnp.array([1.0, 0.5]), beta=0.25))
      0.0625
    """
    ratios, rewards = jnp.stack(log_ratios(pair), -1), (rewards_w, rewards_l)
    rewards = jnp.stack(rewards, axis=-1)
    return surrogates.rebel_surrogate(ratios, rewards, div=div, beta=beta)
