"""f-DPG: any divergence to any target, descended on samples of any policy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences import Divergence, pseudo_reward
from alignax.numerics import as_float, exp


def fdpg_surrogate(
    div: Divergence,
    logp: Float[Array, "*batch"],
    log_target: Float[Array, "*batch"],
    log_z: Float[Array, "*batch"] | Float[Array, ""],
    *,
    logp_behaviour: Float[Array, "*batch"] | None = None,
    baseline: float | Float[Array, "*batch"] | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch"]:
    """``−(π/b) (R − B) log π`` with ``R = −f'(π/p)``: minimise it to approach p.

    The reverse KL to a posterior ``ρ e^{r/β}`` is KL-regularised RL, its gradient
    independent of ``log_z``; the forward KL is DPG (GDC), whose gradient a wrong
    normaliser rescales and does not turn. Of the others a wrong one changes the
    divergence that is descended: ``f'(k π/p)`` in place of ``f'(π/p)``.

    Value: none to use.
    Gradient: of samples of b, unbiased for ``∇ D_f(π‖p)`` with the exact normaliser and
      a baseline that does not depend on the sample. With an estimated one independent
      of the sample (``others_log_normaliser``) it is ``E_Ẑ[f'(Ẑ π/P)]`` in place of
      ``f'(Z π/P)``: no bias of the reverse KL, a positive factor of the forward KL,
      O(Var(Ẑ)/Z²) of the others.

    Args:
      div: the divergence of the policy from the target.
      logp: ``[...]`` of whole completions under the policy, differentiated.
      log_target: ``[...]``, log P; ``-inf`` where the target excludes a sample, which
        then counts as the largest ratio (``divergences.pseudo_reward``).
      log_z: of each sample's prompt; ``-inf`` where the prompt's target has no known
        mass: such samples are left out.
      logp_behaviour: ``[...]`` under the policy that sampled; by default the policy's
        own.
      baseline: B.

    Returns:
      ``[...]``, unreduced.

    Reference:
      Go et al., "Aligning language models with preferences through f-divergence
      minimization", arXiv 2302.08215, eq. 6 and Algorithm 1.

    Example:
      >>> from alignax import divergences as dv
      >>> logp, log_target, log_z = jnp.log(jnp.array([0.5, 0.25, 1.0]))
      >>> print(f"{fdpg_surrogate(dv.reverse_kl(), logp, log_target, log_z):.4f}")
      -0.4805
    """
    logp = as_float(logp)
    held = jax.lax.stop_gradient(logp)
    known = log_z > -jnp.inf
    rewards = pseudo_reward(div, held, log_target, jnp.where(known, log_z, 0))
    weights = jnp.ones_like(held)
    if logp_behaviour is not None:
        weights = exp(held - as_float(logp_behaviour))
    advantages = jnp.where(known, rewards - baseline, 0)
    return -jax.lax.stop_gradient(weights * advantages) * logp
