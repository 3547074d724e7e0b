"""Fine-tuning on demonstrations as reward learning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences as dv
from alignax._checks import Strength, positive
from alignax.numerics import as_float
from alignax.types import InputError


def divergence_sft(
    div: dv.Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    beta: Strength,
    max_weight: float = 10.0,
) -> Float[Array, "*batch"]:
    """Fine-tuning on demonstrations as reward learning: ``f*(−β log π/ρ)``.

    Matching demonstrations in an f-divergence, with the reward written as the policy's
    own implicit one. A demonstration weighs ``β (f')^{-1}(−β log π/ρ)``: β at the
    reference, less as the policy has taken it up. Total variation gives all the same
    weight: plain SFT. A reconstruction in the manner of inverse Q-learning, the
    value's term dropped; not the paper's own formula.

    Args:
      div: the divergence.
      logp: ``[...]`` of the demonstrations, differentiated.
      logp_ref: ``[...]`` under the reference.
      beta: strength of the regularisation, positive.
      max_weight: above 1: where the weight would exceed β times this, the loss goes on
        as its tangent.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive or ``max_weight`` not above 1.

    Reference:
      Wang et al., "Implicit reward as the bridge: a unified view of SFT and DPO
      connections", arXiv 2507.00018; Garg et al., "IQ-Learn", arXiv 2106.12142.

    Example:
      >>> logp, ref = jnp.array([-1.0, -3.0]), jnp.array([-2.0, -2.0])
      >>> print(divergence_sft(dv.total_variation(), logp, ref, beta=0.5))
      [-0.5 0.5]
    """
    positive(beta=beta)
    if not max_weight > 1:
        raise InputError(f"max_weight must be above 1, got {max_weight}")
    logp_ref = jax.lax.stop_gradient(as_float(logp_ref))
    x = -beta * (as_float(logp) - logp_ref)
    if div.log_inverse is None:
        return x
    edge = div.f_prime(jnp.log(jnp.asarray(max_weight, x.dtype)))
    beyond = x > edge
    inside = jnp.where(beyond, jax.lax.stop_gradient(edge), x)
    return div.conjugate(inside) + jnp.where(beyond, max_weight * (x - edge), 0)
