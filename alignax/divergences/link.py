"""A divergence's ``f'`` and ``u f''`` at work: preference links, pseudo-rewards,
score weights."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences.value import Divergence
from alignax.numerics import as_float
from alignax.types import InputError


def preference_link(
    div: Divergence,
    logp_w: Float[Array, "*batch"],
    logp_l: Float[Array, "*batch"],
    ref_w: Float[Array, "*batch"],
    ref_l: Float[Array, "*batch"],
    *,
    beta: float | Float[Array, ""],
    clip: float | None = None,
) -> Float[Array, "*batch"]:
    r"""The preference margin of f-DPO: the difference of implicit rewards.

    .. math:: m = \beta f'(\pi_w / \rho_w) - \beta f'(\pi_l / \rho_l)

    with the ratios of whole sequences. The reverse KL gives DPO's margin, and
    ``chi2_kl(1)`` with ``clip = 2 R_max`` chi-PO's. The loss is
    ``softplus(-m)``: :func:`preference_loss`.

    Args:
      div: a divergence whose ``f'`` goes to minus infinity at ratio 0.
      logp_w: the policy's log-probability of the preferred sequence.
      logp_l: that of the other.
      ref_w: the reference's of the preferred one.
      ref_l: that of the other.
      beta: strength, positive and finite.
      clip: bound on the margin's size (not on either reward), default none. A
        clipped margin has no gradient: that is chi-PO's algorithm.

    Returns:
      The margins, float32 or wider.

    Raises:
      InputError: if ``f'(0)`` is finite: the optimum then gives some sequences
        no mass, where the margin does not determine the reward; or if beta or
        clip is not positive.

    Reference: Wang et al., "Beyond Reverse KL", arXiv 2309.16240, theorem 1;
    Huang et al., "Correcting the Mythos of KL-Regularization", arXiv
    2407.13399, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> w, l, ref = jnp.array(-1.0), jnp.array(-3.0), jnp.array(-2.0)
      >>> dv.preference_link(dv.reverse_kl(), w, l, ref, ref, beta=0.5)
      Array(1., dtype=float32)
    """
    if math.isfinite(div.slopes[0]):
        raise InputError(
            f"div must have f'(0) = -inf to define a preference link, got {div} "
            f"with f'(0) = {div.slopes[0]:g}. reverse_kl(), forward_kl(), "
            "jensen_shannon(), alpha(s) with s >= -1, or adding a KL as in "
            "chi2_kl() would do."
        )
    if isinstance(beta, (int, float)) and not 0 < beta < math.inf:
        raise InputError(f"beta must be positive and finite, got {beta}.")
    if clip is not None and not clip > 0:
        raise InputError(f"clip must be positive or None, got {clip}.")
    reward_w = div.f_prime(as_float(logp_w) - as_float(ref_w))
    reward_l = div.f_prime(as_float(logp_l) - as_float(ref_l))
    margin = beta * (reward_w - reward_l)
    if clip is None:
        return margin
    return jnp.where(
        jnp.abs(margin) < clip, margin, clip * jax.lax.stop_gradient(jnp.sign(margin))
    )


def preference_loss(
    div: Divergence,
    logp_w: Float[Array, "*batch"],
    logp_l: Float[Array, "*batch"],
    ref_w: Float[Array, "*batch"],
    ref_l: Float[Array, "*batch"],
    *,
    beta: float | Float[Array, ""],
    clip: float | None = None,
) -> Float[Array, "*batch"]:
    """The f-DPO loss ``-log sigmoid(margin)``, chi-PO's included.

    Its gradient with respect to ``logp`` is ``-beta sigmoid(-m) u f''(u)``: the
    factor ``uf2`` is all that distinguishes one divergence from another.

    Args:
      div: as for :func:`preference_link`.
      logp_w: the policy's log-probability of the preferred sequence.
      logp_l: that of the other.
      ref_w: the reference's of the preferred one.
      ref_l: that of the other.
      beta: strength, positive and finite.
      clip: bound on the margin's size, default none.

    Returns:
      One loss a pair, float32 or wider.

    Raises:
      InputError: as :func:`preference_link`.

    Reference: Wang et al., "Beyond Reverse KL", arXiv 2309.16240, eq. 10.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.preference_loss(dv.chi2_kl(), *jnp.zeros(4), beta=0.5, clip=2.0).round(4)
      Array(0.6931, dtype=float32)
    """
    margin = preference_link(div, logp_w, logp_l, ref_w, ref_l, beta=beta, clip=clip)
    return jax.nn.softplus(-margin)


def pseudo_reward(
    div: Divergence,
    logp: Float[Array, "*batch"],
    log_target: Float[Array, "*batch"],
    log_z: Float[Array, "*batch"] | Float[Array, ""],
    *,
    impossible: float = 70.0,
) -> Float[Array, "*batch"]:
    """The reward whose policy gradient descends a divergence to a target (f-DPG).

    ``-f'(pi / p)`` with ``p = P / Z``, so that
    ``-grad D_f(pi || p) = E_pi[pseudo_reward * grad log pi]``.

    Value: minus the centred ``f'``; peers that drop constants differ by +1
      (reverse KL) or -1 (forward KL), which a baseline absorbs. A
      sample that the target excludes counts as a ratio of ``e^impossible``.
    Gradient: none; the result is stopped.

    Args:
      div: the divergence, the target in the reference's place.
      logp: log-probabilities of samples under the policy.
      log_target: log of the unnormalised target ``P``; may be ``-inf``.
      log_z: log of its normaliser, see ``targets.running_log_normaliser``.
      impossible: nats; above the log-ratios of the other samples, or an excluded
        one is not the worst.

    Returns:
      One reward a sample, float32 or wider.

    Reference: Go et al., "Aligning Language Models with Preferences through
    f-divergence Minimization", arXiv 2302.08215, table 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> logp, log_target, log_z = jnp.array([-1.0, 0.5, 0.0])
      >>> dv.pseudo_reward(dv.reverse_kl(), logp, log_target, log_z)
      Array(1.5, dtype=float32)
    """
    log_target = as_float(log_target)
    excluded = jnp.isneginf(log_target)
    l = as_float(logp) - jnp.where(excluded, 0, log_target) + as_float(log_z)
    l = jnp.where(excluded, impossible, l)
    return jax.lax.stop_gradient(-div.f_prime(l))


def score_weight(
    div: Divergence, log_r: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""The weight of the score difference in f-distill.

    .. math:: h(r) = r^2 f_\text{their}''(r) = u f''(u) \big|_{u = 1/r}, \qquad
       r = p_\text{teacher} / p_\text{student}

    f-distill writes a divergence as ``E_student f_their(r)``, so its generator
    is the dual of ours; by this identity the weight is the same ``uf2`` that
    weighs preference gradients. Reverse KL 1, forward KL ``r``, Jeffreys
    ``1 + r``, twice the JSD ``r / (1 + r)``, Pearson ``2 / r``.

    Args:
      div: the divergence of the student from the teacher.
      log_r: log-ratio of teacher to student, e.g. a discriminator's logit.

    Returns:
      The weights, positive, float32 or wider.

    Reference: Xu et al., "One-step Diffusion Models with f-Divergence
    Distribution Matching", arXiv 2502.15681, table 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.score_weight(dv.jeffreys(), jnp.log(jnp.array([1.0, 3.0])))
      Array([2., 4.], dtype=float32)
    """
    return div.uf2(-as_float(log_r))
