"""Estimates of a divergence from the log-ratio of the taken token alone.

With ``l = logp − logp_ref``. All are elementwise: on tokens ``[..., T]``, or on
whole sequences if given their summed log-probabilities. These are *values*, for
metrics and rewards. What automatic differentiation of each one estimates stands
on its ``Gradient:`` line, and is seldom what one wants to minimise: losses are
the ``*_surrogate`` functions.

Off-policy, a value times ``weights.prefix_weights`` has the same expectation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce


def k1(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``l``: the log-ratio.

    Value: unbiased for KL(π‖ρ), of either sign, with a variance of order ε² for
      log-ratios of order ε. Summed over tokens: unbiased for the sequence KL.
    Gradient: zero in expectation. ``∇l = ∇log π`` whatever the reference: as a
      loss it is noise. In a reward (detached, times ∇log π) it is exact.

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Schulman, "Approximating KL Divergence", 2020.

    Example:
      >>> print(k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.5])))
      [0.5 -0.5]
    """
    return reduce.log_ratio(logp, logp_ref, mask)


def k2(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``l²/2``: half the squared log-ratio.

    Value: biased, equal to KL(π‖ρ) to second order in l; variance of order ε⁴.
    Gradient: of the token-myopic KL(π‖ρ), exactly: ``∇k2 = l·∇log π``. Of tokens
      it leaves out the future term of the sequence KL; squared after summing
      (``sequence_k2_surrogate``) it does not.

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Schulman, "Approximating KL Divergence", 2020.

    Example:
      >>> print(k2(jnp.array([-1.0, -2.0]), jnp.array([-3.0, -2.0])))
      [2. 0.]
    """
    return reduce.log_ratio(logp, logp_ref, mask) ** 2 / 2


def k3(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``expm1(−l) + l``: the log-ratio with the control variate ``ρ/π − 1``.

    For ``−l > 40`` (float32) the exponential goes on as its tangent: finite, and still
    pulling towards the reference.

    Value: unbiased for KL(π‖ρ), never negative; variance of order ε⁴, but large
      where ρ ≫ π. Summed over tokens: unbiased for the sequence KL.
    Gradient: of KL(ρ‖π), the *other* direction, at the policy's prefixes
      (token-myopic). Detached in a reward: ∇KL(π‖ρ) − ∇KL(ρ‖π).

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Schulman, "Approximating KL Divergence", 2020; the gradient: Tang and Munos,
      "On a few pitfalls in KL divergence gradient estimation for RL",
      arXiv 2506.09477.

    Example:
      >>> print(k3(jnp.zeros(2), jnp.array([0.0, jnp.log(2.0)])).round(3))
      [0. 0.307]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    return numerics.expm1(-l) + l


def absolute_log_ratio(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``|l|``: the size of the log-ratio.

    Value: biased upwards for KL(π‖ρ): of first order in l where KL is of second.
    Gradient: of the L1 distance ``Σ_v |π_v − ρ_v|`` (twice the total variation),
      token-myopic. Zero at ``l = 0``.

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Example:
      >>> print(absolute_log_ratio(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.5])))
      [0.5 0.5]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    return l * jax.lax.stop_gradient(jnp.sign(l))  # ∇|l| at 0 is 1 in JAX


def forward_k1(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``−l`` on samples of the *reference*: the negative log-likelihood, shifted.

    Value: unbiased for KL(ρ‖π), of either sign, with a variance of order ε².
    Gradient: of the sequence KL(ρ‖π), unbiased: the samples do not move with the
      policy. ``−∇log π``, with a variance of order 1.

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the reference.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on sampled tokens; none: all count.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> print(forward_k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.5])))
      [-0.5 0.5]
    """
    return -reduce.log_ratio(logp, logp_ref, mask)
