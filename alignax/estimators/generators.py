"""Any f-divergence from samples of either side, each by itself: values and losses.

Of single tokens it is each token's own divergence given its prefix, which for a
divergence other than the KL is another objective than that of sequences; of sums over
completions it is that of sequences (``sequence_f_surrogate``).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import divergences, reduce
from alignax.numerics import exp

_FAR = 1e4  # nats; a coefficient of a sample without mass is taken here


def f_from_policy(
    divergence: divergences.Divergence,
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
    *,
    log_weights: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``f(u)/u`` with ``u = π/ρ``, on samples of the policy.

    The dual generator at ``1/u``. The reverse KL gives k3; the forward KL gives
    ``v log v − v + 1`` with ``v = 1/u`` (RAPO).

    Value: unbiased for D_f(π‖ρ), never negative. Summed over tokens: for the sum
      of the tokens' divergences at the policy's prefixes, which is the
      divergence of sequences for the reverse KL only.
    Gradient: none; the result is detached. The loss is ``myopic_f_surrogate``.

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference.
      mask: ``[..., T]``, True on generated tokens; none: all count.
      log_weights: ``[..., T]``, log π/b for samples of b; no gradient.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Deng et al., "Unlocking Reasoning Capabilities in LLMs via Reinforcement
      Learning Exploration", arXiv 2510.03865 (the forward KL).

    Example:
      >>> logp, ref = jnp.zeros(2), jnp.array([0.0, jnp.log(2.0)])
      >>> print(f_from_policy(divergences.forward_kl(), logp, ref).round(3))
      [0. 0.386]
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    value = weights * _generator(divergences.swap(divergence), logp_ref - logp)
    return jax.lax.stop_gradient(reduce.masked(value, mask))


def f_from_reference(
    divergence: divergences.Divergence,
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
    *,
    log_weights: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``f(u)`` with ``u = π/ρ``, on samples of the *reference*.

    Value: unbiased for D_f(π‖ρ), never negative. Summed over tokens: for the sum
      of the tokens' divergences at the reference's prefixes, which is the
      divergence of sequences for the forward KL only.
    Gradient: none; the result is detached. The loss is
      ``myopic_f_reference_surrogate``.

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, sampled from the reference.
      logp_ref: ``[..., T]`` under the reference.
      mask: ``[..., T]``, True on sampled tokens; none: all count.
      log_weights: ``[..., T]``, log ρ/b for samples of b; no gradient.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Li et al., "The Choice of Divergence", arXiv 2509.07430 (DPH-RL).

    Example:
      >>> div = divergences.pearson()
      >>> print(f_from_reference(div, jnp.array([0.0, jnp.log(2.0)]), jnp.zeros(2)))
      [0. 1.]
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    value = weights * _generator(divergence, logp - logp_ref)
    return jax.lax.stop_gradient(reduce.masked(value, mask))


def myopic_f_surrogate(
    divergence: divergences.Divergence,
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
    *,
    log_weights: Float[Array, "*shape"] | None = None,
    baseline: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Any f-divergence of tokens: ``∇ = f'(u)·∇log π`` with ``u = π/ρ``.

    Value: ``f(u)/u``, unbiased for the sum of the tokens' D_f(π‖ρ) at the policy's
      prefixes.
    Gradient: of the token-myopic D_f(π‖ρ), unbiased, for tokens from the policy.

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.
      log_weights: ``[..., T]``, log π/b for samples of b; no gradient.
      baseline: ``[..., T]``, taken off ``f'(u)``; of anything but the sample.

    Returns:
      ``[..., T]`` float32, not negative in value, zero where masked.

    Reference:
      Go et al., "Aligning Language Models with Preferences through f-divergence
      Minimization", arXiv 2302.08215, theorem 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask, div = jnp.zeros(1), jnp.array([True]), divergences.pearson()
      >>> loss = lambda x: myopic_f_surrogate(div, x, logp - 1, mask).sum()
      >>> print(jax.grad(loss)(logp).round(1))
      [3.4]
    """
    value = f_from_policy(divergence, logp, logp_ref, mask, log_weights=log_weights)
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    # Finite where one side has no mass.
    coefficient = divergence.f_prime(jnp.clip(logp - logp_ref, -_FAR, _FAR))
    if baseline is not None:
        coefficient = coefficient - reduce.masked(baseline, mask)
    coefficient = jax.lax.stop_gradient(weights * coefficient)
    # Zero by value; where(…) because -inf - -inf is not.
    finite = jnp.where(jnp.isneginf(logp), 0, logp)
    return value + reduce.masked(
        coefficient * (finite - jax.lax.stop_gradient(finite)), mask
    )


def myopic_f_reference_surrogate(
    divergence: divergences.Divergence,
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
    *,
    log_weights: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Any f-divergence of tokens on stored samples of the *reference*: ``f(u)``.

    Value: unbiased for the sum of the tokens' D_f(π‖ρ) at the reference's prefixes.
    Gradient: of the same, unbiased: neither samples nor prefixes move with the
      policy. For the forward KL that is the sequence KL(ρ‖π).

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference, stored with the samples; no
        gradient.
      mask: ``[..., T]``, True on sampled tokens; none: all count.
      log_weights: ``[..., T]``, log ρ/b for samples of b; no gradient.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Li et al., "The Choice of Divergence", arXiv 2509.07430 (DPH-RL).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.log(jnp.array([2.0])), jnp.array([True])
      >>> div = divergences.pearson()
      >>> print(myopic_f_reference_surrogate(div, logp, 0 * logp, mask))
      [1.]
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    l = logp - jax.lax.stop_gradient(logp_ref)
    return reduce.masked(weights * _generator(divergence, l), mask)


def _clean(logp, logp_ref, log_weights, mask):
    """Float32 inputs with 0 where masked, and the detached weights."""
    logp, logp_ref = reduce.masked(logp, mask), reduce.masked(logp_ref, mask)
    if log_weights is None:
        return logp, logp_ref, jnp.ones_like(logp)
    weights = exp(reduce.masked(log_weights, mask))
    return logp, logp_ref, jax.lax.stop_gradient(weights)


def _generator(
    divergence: divergences.Divergence, l: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``f(e^l)``, ``l = -inf`` included."""
    nothing = jnp.isneginf(l)
    return jnp.where(nothing, divergence.f_zero, divergence.f(jnp.where(nothing, 0, l)))
