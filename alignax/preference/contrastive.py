"""Contrastive policy gradient: policy gradients from any pair of scored samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import as_float
from alignax.preference._checks import Strength, positive
from alignax.preference.pairs import Pair, log_ratios


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


def copg_group(
    logp: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    rewards: Float[Array, "*batch K"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """``copg`` over all pairs of K completions of one prompt, on average.

    In closed form, with ``u = log π/ρ``: ``K/(K−1) · (β Var u − 2 Cov(R, u))``.

    Value: the mean of ``copg`` over the K (K − 1) ordered pairs.
    Gradient: for a policy's own samples, −2 times RLOO's with K of them.

    Args:
      logp: ``[..., K]`` of whole completions, differentiated.
      logp_ref: ``[..., K]``.
      rewards: ``[..., K]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Flet-Berliac et al., arXiv 2406.19185, §3.3.

    Example:
      >>> logp, ref = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.0])
      >>> print(copg_group(logp, ref, jnp.array([1.0, 0.5]), beta=0.5))
      -0.25
    """
    positive(beta=beta)
    logp_ref, rewards = jax.lax.stop_gradient((as_float(logp_ref), as_float(rewards)))
    u = as_float(logp) - logp_ref
    count = u.shape[-1]
    centred = u - jnp.mean(u, axis=-1, keepdims=True)
    rewards = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    total = jnp.sum(beta * jnp.square(centred) - 2 * rewards * centred, axis=-1)
    return total / max(count - 1, 1)
