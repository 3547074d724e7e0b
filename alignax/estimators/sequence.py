"""Losses for the KL divergence between whole sequences, KL(π‖ρ).

Each returns token terms ``[..., T]``. Their *sum* over tokens has the stated
gradient: a mean over each sequence's own length would reweight it.
"""

from jaxtyping import Array, Bool, Float

from alignax.estimators import _common


def sequence_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """The exact one: each token's score times the KL from it onwards.

    ``∇ = Σ_t ∇log π_t · (Σ_{n ≥ t} l_n − baseline_t)``, with ``l = logp − logp_ref``.

    Value: k1, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the sequence KL(π‖ρ), unbiased, for tokens from the policy.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      baseline: ``[..., T]``, or 1 in place of any axis. May depend on what comes
        before the token, not on the token or after: then it changes the
        variance alone. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Tang and Munos, "On a few pitfalls in KL divergence gradient estimation
      for RL", arXiv 2506.09477.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda logp: sequence_kl_surrogate(logp, 3 * logp, mask).sum()
      >>> print(loss(logp), jax.grad(loss)(logp))
      4.0 [4. 2.]
    """
    l = _common.log_ratio(logp, logp_ref, mask)
    coefficient = _common.to_go(l)
    if baseline is not None:
        coefficient = coefficient - baseline
    return _common.attach(l, coefficient, _common.masked(logp, mask))
