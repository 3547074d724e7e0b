"""What preference data say about a policy: differential information, SFT's reward."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences as dv
from alignax import logprobs
from alignax.numerics import as_float
from alignax.preference._checks import positive
from alignax.types import InputError


def _log_normalised(logits: Float[Array, "*batch K"], support) -> Array:
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=support)
    return jnp.where(support, logits - total, -jnp.inf)


def differential_information(
    logp: Float[Array, "*batch K"], logp_ref: Float[Array, "*batch K"]
) -> Float[Array, "*batch K"]:
    """The law ``q ∝ π/ρ``: the evidence that turns ρ into π by Bayes' rule.

    ``π ∝ ρ q``. Over whole completions it needs all of them; per token it is exact.

    Args:
      logp: ``[..., K]`` over all outcomes.
      logp_ref: ``[..., K]``; ``-inf`` excludes an outcome.

    Returns:
      ``log q [..., K]``.

    Reference:
      Won et al., "Differential information distribution: a Bayesian perspective on
      direct preference optimization", arXiv 2505.23761, definition 1.

    Example:
      >>> p, ref = jnp.array([0.6, 0.4]), jnp.array([0.2, 0.4])
      >>> q = differential_information(jnp.log(p), jnp.log(ref))
      >>> print(jnp.exp(q).round(4))
      [0.75 0.25]
    """
    support = logp_ref > -jnp.inf
    ratio = as_float(logp) - jnp.where(support, as_float(logp_ref), 0)
    return _log_normalised(jnp.where(support, ratio, 0), support)


def differential_entropy(
    logp: Float[Array, "*batch K"], logp_ref: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """The entropy of ``differential_information``.

    Low where training reinforces a few outcomes, high where it smooths.

    Args:
      logp: ``[..., K]`` over all outcomes.
      logp_ref: ``[..., K]``.

    Returns:
      ``[...]`` in nats.

    Reference:
      Won et al., arXiv 2505.23761, §4.

    Example:
      >>> p = jnp.log(jnp.array([0.6, 0.4]))
      >>> print(differential_entropy(p, p).round(4))
      0.6931
    """
    return logprobs.entropy(differential_information(logp, logp_ref))


def optimal_rejected(
    logp_target: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    beta: float,
) -> Float[Array, "*batch K"]:
    """Which law should supply the losers, if ρ supplies the winners.

    ``π_l ∝ ρ (ρ/π*)^β``: then pairs' labels are Bradley-Terry with reward
    ``β log π*/ρ``, and DPO(β) finds π*.

    Args:
      logp_target: ``[..., K]`` of π*, finite where ρ is positive.
      logp_ref: ``[..., K]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``log π_l [..., K]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Won et al., arXiv 2505.23761, theorem 2.

    Example:
      >>> p, ref = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.5, 0.5]))
      >>> print(jnp.exp(optimal_rejected(p, ref, beta=0.5)).round(4))
      [0.3333 0.6667]
    """
    positive(beta=beta)
    support = logp_ref > -jnp.inf
    ref = jnp.where(support, as_float(logp_ref), 0)
    return _log_normalised(ref + beta * (ref - as_float(logp_target)), support)


def divergence_sft(
    div: dv.Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    beta: float,
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
