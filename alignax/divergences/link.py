"""A divergence's ``f'`` and ``u f''`` at work: pseudo-rewards, score weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences.value import Divergence
from alignax.numerics import as_float


def pseudo_reward(
    div: Divergence,
    logp: Float[Array, "*batch"],
    log_target: Float[Array, "*batch"],
    log_z: Float[Array, "*batch"] | Float[Array, ""],
    *,
    impossible: float = 70.0,
) -> Float[Array, "*batch"]:
    """The reward whose policy gradient descends a divergence to a target (f-DPG).

    ``-f'(π / p)`` with ``p = P / Z``, so that
    ``-grad D_f(π‖p) = E_π[pseudo_reward * grad log π]``.

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

    Reference:
      Go et al., "Aligning Language Models with Preferences through f-divergence
      Minimization", arXiv 2302.08215, table 1.

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
    """The weight of the score difference in f-distill.

    ``h(r) = r² f_their''(r) = u f''(u)`` at ``u = 1/r``, ``r = p_teacher/p_student``.

    f-distill writes a divergence as ``E_student f_their(r)``, so its generator
    is the dual of ours; by this identity the weight is the same ``uf2`` that
    weighs preference gradients. Reverse KL 1, forward KL ``r``, Jeffreys
    ``1 + r``, twice the JSD ``r / (1 + r)``, Pearson ``2 / r``.

    Args:
      div: the divergence of the student from the teacher.
      log_r: log-ratio of teacher to student, e.g. a discriminator's logit.

    Returns:
      The weights, positive, float32 or wider.

    Reference:
      Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching",
      arXiv 2502.15681, table 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.score_weight(dv.jeffreys(), jnp.log(jnp.array([1.0, 3.0])))
      Array([2., 4.], dtype=float32)
    """
    return div.uf2(-as_float(log_r))
