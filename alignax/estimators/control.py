"""The log-ratio with a control variate: ``l + c·(ρ/π − 1)``.

``ρ/π − 1`` has expectation zero under the policy given any prefix, so that any c
that does not look at the sample leaves the value unbiased. c = 0 is k1, c = 1 is
k3; the best c depends on the policies and can be estimated from the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.estimators import _common


def control_variate(
    logp: Float[Array, "*shape"],
    logp_ref: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
    *,
    coefficient: float | Float[Array, "*#shape"],
) -> Float[Array, "*shape"]:
    """``l + c·expm1(−l)`` with a given coefficient c.

    Value: unbiased for KL(π‖ρ), and for the sequence KL when summed over tokens;
      for log-ratios of order ε its variance is (1 − c)²ε² + O(ε³).
    Gradient: ``c·∇KL(ρ‖π)``, the other direction, token-myopic.

    Args:
      logp: ``[..., T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.
      coefficient: c, or an array of them with 1 in place of any axis; no gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Schulman, "Approximating KL Divergence", 2020.

    Example:
      >>> print(control_variate(jnp.ones(1), jnp.zeros(1), coefficient=0.0))
      [1.]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    return l + jax.lax.stop_gradient(coefficient) * numerics.expm1(-l)


def optimal_coefficient(
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B 1"]:
    """For each row, the best coefficient for its sum over tokens, from the others.

    ``c = −Cov(L, E) / Var(E)`` with ``L = Σ_t l`` and ``E = Σ_t expm1(−l)``, over
    all rows but the row's own: the coefficient does not see the sample that it
    multiplies, and the estimate stays unbiased when rows are independent.

    Args:
      logp: ``[B, T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[B, T]`` under the reference.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      ``[B, 1]`` float32, no gradient; 1 (k3) where the other rows say nothing.

    Example:
      >>> logp = jnp.log(jnp.array([[0.5], [0.5], [0.4]]))
      >>> ref = jnp.log(jnp.array([[0.4], [0.6], [0.3]]))
      >>> print(optimal_coefficient(logp, ref, jnp.ones((3, 1), bool))[2].round(3))
      [1.014]
    """
    l = jax.lax.stop_gradient(reduce.log_ratio(logp, logp_ref, mask))
    ratio, control = _common.total(l), _common.total(numerics.expm1(-l))
    others = max(l.shape[0] - 1, 1)
    mean = _without_own(ratio) / others
    # E has a known mean of zero: its variance needs no estimate of one.
    covariance = _without_own(ratio * control) - mean * _without_own(control)
    variance = _without_own(control**2)
    known = variance > 0
    return jnp.where(known, -covariance / jnp.where(known, variance, 1), 1)


def estimated_control_variate(
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """``l + c·expm1(−l)`` with each row's c from ``optimal_coefficient``.

    Value: unbiased for KL(π‖ρ), and for the sequence KL when summed over tokens,
      when rows are independent; variance of order ε⁴, below that of k3 when the
      batch is large.
    Gradient: ``c·∇KL(ρ‖π)``, the other direction, token-myopic.

    Args:
      logp: ``[B, T]`` of the taken tokens, sampled from the policy.
      logp_ref: ``[B, T]`` under the reference; no gradient.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      ``[B, T]`` float32, zero where masked.

    Example:
      >>> logp = jnp.log(jnp.array([[0.5], [0.5]]))
      >>> print(estimated_control_variate(logp, logp, jnp.ones((2, 1), bool)).sum())
      0.0
    """
    coefficient = optimal_coefficient(logp, logp_ref, mask)
    return control_variate(logp, logp_ref, mask, coefficient=coefficient)


def _without_own(values: Float[Array, "B 1"]) -> Float[Array, "B 1"]:
    """The sum over all other rows, those before plus those after: subtracting
    one's own from the total would leave its rounding error."""
    zero = jnp.zeros_like(values[:1])
    before = jnp.concatenate([zero, jnp.cumsum(values, axis=0)[:-1]])
    after = jax.lax.cumsum(values, axis=0, reverse=True)[1:]
    return before + jnp.concatenate([after, zero])
