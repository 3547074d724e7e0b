"""Divergences from samples of either side, elementwise.

Every function takes log-probabilities of what was sampled. Give it sums over a
sequence and it speaks of the divergence of sequences; give it single tokens and
it speaks of each token's own divergence given its prefix, which for a
divergence other than KL is a different objective.

The estimates of KL by their usual names (k1, k2, k3) are in
:mod:`alignax.estimators`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.divergences.value import Divergence
from alignax.numerics import exp

_FAR = 1e4  # nats; a coefficient of a sample without mass is taken here


def policy_sample_value(
    div: Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    log_weights: Float[Array, "*batch"] | None = None,
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Estimate ``D_f(pi || rho)`` from samples of the policy.

    ``w f_dual(rho / pi)``, non-negative. For the reverse KL this is k3.

    Value: unbiased for ``D_f(pi || rho)`` under the policy, or under a behaviour
      policy ``b`` with ``log_weights = log pi / b``, provided that the policy
      covers the reference; else the mass it misses, times ``f(0)``, is lacking.
    Gradient: none; the result is stopped. See :func:`policy_sample_surrogate`.

    Args:
      div: the divergence.
      logp: log-probabilities of the samples under the policy.
      logp_ref: those under the reference.
      log_weights: log importance weights, default 0.
      mask: True where a sample counts, default everywhere; 0 is returned elsewhere.

    Returns:
      One estimate a sample, float32 or wider.

    Reference: Schulman, "Approximating KL Divergence", 2020 (reverse KL).

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.policy_sample_value(dv.reverse_kl(), jnp.zeros(1), jnp.ones(1)).round(4)
      Array([0.7183], dtype=float32)
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    value = weights * _generator(div.dual(), logp_ref - logp)
    return jax.lax.stop_gradient(reduce.masked(value, mask))


def reference_sample_value(
    div: Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    log_weights: Float[Array, "*batch"] | None = None,
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Estimate ``D_f(pi || rho)`` from samples of the reference.

    ``w f(pi / rho)``, non-negative.

    Value: unbiased for ``D_f(pi || rho)`` under the reference, or under ``b``
      with ``log_weights = log rho / b``, provided that the reference covers the
      policy.
    Gradient: none; the result is stopped. See :func:`reference_sample_surrogate`.

    Args:
      div: the divergence.
      logp: log-probabilities of the samples under the policy.
      logp_ref: those under the reference.
      log_weights: log importance weights, default 0.
      mask: True where a sample counts, default everywhere; 0 is returned elsewhere.

    Returns:
      One estimate a sample, float32 or wider.

    Reference: Li et al., "The Choice of Divergence", arXiv 2509.07430 (DPH-RL).

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.reference_sample_value(dv.forward_kl(), jnp.ones(1), jnp.zeros(1)).round(4)
      Array([0.7183], dtype=float32)
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    value = weights * _generator(div, logp - logp_ref)
    return jax.lax.stop_gradient(reduce.masked(value, mask))


def policy_sample_surrogate(
    div: Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    log_weights: Float[Array, "*batch"] | None = None,
    baseline: Float[Array, "*batch"] | None = None,
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """A loss on samples of the policy with the exact gradient of the divergence.

    ``sg(value) + sg(w (f'(u) - baseline)) (logp - sg(logp))``: the score form.
    Differentiating the estimate itself would be wrong, as the samples move.

    Value: that of :func:`policy_sample_value`.
    Gradient: in expectation that of ``D_f(pi || rho)``, under the policy, or
      under ``b`` with ``log_weights = log pi / b``; any baseline that does not
      depend on the sample keeps it so.

    Args:
      div: the divergence.
      logp: log-probabilities of the samples under the policy, differentiated.
      logp_ref: those under the reference.
      log_weights: log importance weights, default 0; stopped.
      baseline: subtracted from ``f'(u)``, default 0; stopped.
      mask: True where a sample counts, default everywhere.

    Returns:
      One loss a sample, float32 or wider.

    Reference: Go et al., "Aligning Language Models with Preferences through
    f-divergence Minimization", arXiv 2302.08215, theorem 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> loss, div = dv.policy_sample_surrogate, dv.reverse_kl()
      >>> jax.grad(loss, argnums=1)(div, jnp.float32(-0.5), jnp.float32(0.0))
      Array(-0.5, dtype=float32)
    """
    value = policy_sample_value(div, logp, logp_ref, log_weights=log_weights, mask=mask)
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    coefficient = div.f_prime(_log_ratio(logp, logp_ref))
    if baseline is not None:
        coefficient = coefficient - reduce.masked(baseline, mask)
    coefficient = jax.lax.stop_gradient(weights * coefficient)
    # Zero by value; where(…) because -inf - -inf is not.
    finite = jnp.where(jnp.isneginf(logp), 0, logp)
    return value + reduce.masked(
        coefficient * (finite - jax.lax.stop_gradient(finite)), mask
    )


def reference_sample_surrogate(
    div: Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    log_weights: Float[Array, "*batch"] | None = None,
    mask: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """A loss on samples of the reference with the exact gradient of the divergence.

    ``w f(pi / rho)``, differentiated as it stands (pathwise): the reference does
    not move, so there is no score term.

    Value: that of :func:`reference_sample_value`.
    Gradient: in expectation that of ``D_f(pi || rho)``, under the reference, or
      under ``b`` with ``log_weights = log rho / b``.

    Args:
      div: the divergence.
      logp: log-probabilities of the samples under the policy, differentiated.
      logp_ref: those under the reference; stopped.
      log_weights: log importance weights, default 0; stopped.
      mask: True where a sample counts, default everywhere.

    Returns:
      One loss a sample, float32 or wider.

    Reference: Li et al., "The Choice of Divergence", arXiv 2509.07430 (DPH-RL).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> loss, div = dv.reference_sample_surrogate, dv.pearson()
      >>> jax.grad(loss, argnums=1)(div, jnp.float32(0.0), jnp.float32(0.0))
      Array(0., dtype=float32)
    """
    logp, logp_ref, weights = _clean(logp, logp_ref, log_weights, mask)
    l = logp - jax.lax.stop_gradient(logp_ref)
    return reduce.masked(weights * _generator(div, l), mask)


def _clean(logp, logp_ref, log_weights, mask):
    """Float32 inputs with 0 where masked, and the detached weights."""
    logp, logp_ref = reduce.masked(logp, mask), reduce.masked(logp_ref, mask)
    if log_weights is None:
        return logp, logp_ref, jnp.ones_like(logp)
    weights = exp(reduce.masked(log_weights, mask))
    return logp, logp_ref, jax.lax.stop_gradient(weights)


def _log_ratio(logp: Float[Array, "*batch"], logp_ref: Float[Array, "*batch"]):
    """The log-ratio, kept finite where one side has no mass."""
    return jnp.clip(logp - logp_ref, -_FAR, _FAR)


def _generator(div: Divergence, l: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``f(e^l)``, ``l = -inf`` included."""
    nothing = jnp.isneginf(l)
    return jnp.where(nothing, div.f_zero, div.f(jnp.where(nothing, 0, l)))
