"""The sequence KL from a behaviour policy's tokens, in the form that TRL's loss has."""

from jaxtyping import Array, Bool, Float

from alignax import numerics, reduce
from alignax.estimators import _common, sequence, weights


def sequence_weighted_k3_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    cap: float | None = None,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``w·k3`` with the weight of the tokens so far, ``w_t = Π_{n ≤ t} π_n/b_n``,
    differentiated: the sequence form of the token-weighted k3 in the loss.

    ``Σ_t E_b[w_t k3_t] = Σ_t E_π[k3_t] = KL(π‖ρ)`` for every θ, so the derivative of
    the one is that of the other: with ``k3 + (1 − e^{−l}) = l`` it is
    ``∇ = Σ_t ∇log π_t · (w_t l_t + Σ_{n > t} w_n k3_n)``, which is how it is computed.
    Of ``off_policy_sequence_kl_surrogate`` it differs by k3 in the place of later k1s.

    Value: ``w·k3``, unbiased for the sequence KL(π‖ρ) when summed over tokens, without
      a cap; not negative.
    Gradient: of the sequence KL(π‖ρ), unbiased without a cap, for tokens from the
      behaviour policy.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      logp_behaviour: ``[..., T]`` under the law that sampled them; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      cap: largest weight, positive; none: not truncated.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``cap`` is not positive.

    Reference:
      The token-weighted form: DeepSeek-AI, "DeepSeek-V3.2", arXiv 2512.02556, eq. 7.
      For sequences Shah et al., "A Comedy of Estimators", arXiv 2512.21852, leave it
      open.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> loss = lambda x: sequence_weighted_k3_surrogate(x, logp - 1, logp, mask).sum()
      >>> print(jax.grad(loss)(logp).round(3))
      [1.368 1.   ]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    w = weights.prefix_weights(logp, logp_behaviour, mask)
    if cap is not None:
        w = weights.truncated_weights(w, cap=cap)
    k3 = numerics.expm1(-l) + l
    token = _common.attach(w * k3, w * l, reduce.masked(logp, mask))
    if baseline is not None:
        baseline = w * baseline
    return sequence.sequence_surrogate(token, logp, mask, baseline=baseline)
