"""Estimates of a KL divergence from the log-ratio of the taken token alone.

With ``l = logp − logp_ref`` and tokens sampled from the policy. All work on
tokens ``[..., T]``, and on whole sequences if given their summed log-probs.
These are *values*, for metrics and rewards. What automatic differentiation of
each one estimates stands on its ``Gradient:`` line, and is seldom what one wants
to minimise: losses are the ``*_surrogate`` functions.
"""

from jaxtyping import Array, Bool, Float

from alignax.estimators import _common


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
      >>> import jax.numpy as jnp
      >>> print(k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.5])))
      [ 0.5 -0.5]
    """
    return _common.log_ratio(logp, logp_ref, mask)


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
      >>> import jax.numpy as jnp
      >>> print(k2(jnp.array([-1.0, -2.0]), jnp.array([-3.0, -2.0])))
      [2. 0.]
    """
    return _common.log_ratio(logp, logp_ref, mask) ** 2 / 2


def k3(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``expm1(−l) + l``: the log-ratio with the control variate ``ρ/π − 1``.

    For ``−l > 20`` the exponential goes on as its tangent: finite, and still
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
      >>> import jax.numpy as jnp
      >>> print(k3(jnp.zeros(2), jnp.array([0.0, jnp.log(2.0)])))
      [0.         0.30685282]
    """
    l = _common.log_ratio(logp, logp_ref, mask)
    return _common.expm1(-l) + l
