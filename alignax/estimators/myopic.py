"""Losses for the token-myopic KL: ``E_{y~π} Σ_t KL(π(·|y_<t)‖ρ(·|y_<t))`` with the
law of the prefixes held fixed.

Its gradient lacks that of the sequence KL the score of a prefix times the KL to
come: a token is not charged for leading where the policies differ.
"""

from jaxtyping import Array, Bool, Float

from alignax.estimators import _common


def myopic_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Each token's score times its own log-ratio: ``∇ = l · ∇log π``.

    Value: k1, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the token-myopic KL(π‖ρ), unbiased, for tokens from the policy.
      Not of the sequence KL: see ``sequence_kl_surrogate``.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Tang and Munos, "On a few pitfalls in KL divergence gradient estimation
      for RL", arXiv 2506.09477.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda logp: myopic_kl_surrogate(logp, 3 * logp, mask).sum()
      >>> print(loss(logp), jax.grad(loss)(logp))
      4.0 [2. 2.]
    """
    l = _common.log_ratio(logp, logp_ref, mask)
    return _common.attach(l, l, _common.masked(logp, mask))
