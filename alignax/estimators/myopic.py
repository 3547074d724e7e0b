"""Losses for the token-myopic divergence: ``E_{y~π} Σ_t D(π(·|y_<t)‖ρ(·|y_<t))``
with the law of the prefixes held fixed.

Its gradient lacks, of the sequence KL's, the score of a prefix times the KL to
come: a token is not charged for leading where the policies differ. This is what
a KL term in the loss does in the frameworks of today, at best. Given a loss here
whose value is unbiased, ``sequence_surrogate`` adds what lacks.

Off-policy, times ``weights.prefix_weights`` a loss has the same expected gradient;
times ``weights.token_weights`` it has that at the behaviour policy's prefixes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import divergences, logprobs, numerics, reduce
from alignax.divergences.vocabulary import perspective
from alignax.estimators import _common, generators, weights
from alignax.types import InputError


def myopic_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Each token's score times its own log-ratio: ``∇ = l·∇log π``.

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
    l = reduce.log_ratio(logp, logp_ref, mask)
    return _common.attach(l, l, reduce.masked(logp, mask))


def myopic_k2_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``l²/2`` differentiated as it stands: ``∇ = l·∇log π``, sample by sample
    that of ``myopic_kl_surrogate``.

    Value: k2, biased.
    Gradient: of the token-myopic KL(π‖ρ), unbiased, for tokens from the policy.
      Not of the sequence KL: see ``sequence_k2_surrogate``.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Liu et al., "Rethinking KL Regularization in RLHF", arXiv 2510.01555; Xu et
      al., "KDRL", arXiv 2506.02208.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> print(myopic_k2_surrogate(logp, 3 * logp, mask))
      [2. 2.]
    """
    return reduce.log_ratio(logp, logp_ref, mask) ** 2 / 2


def myopic_straight_through_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """The value of k3 with the gradient of k2: "k3+".

    Value: k3, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the token-myopic KL(π‖ρ), unbiased, for tokens from the policy:
      ``l·∇log π``. Not of the sequence KL.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, ref, mask = jnp.zeros(1), -jnp.ones(1), jnp.array([True])
      >>> loss = lambda logp: myopic_straight_through_surrogate(logp, ref, mask).sum()
      >>> print(jax.grad(loss)(logp))
      [1.]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    return _common.attach(numerics.expm1(-l) + l, l, reduce.masked(logp, mask))


def myopic_weighted_k3_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    cap: float | None = None,
) -> Float[Array, "*B T"]:
    """``w·k3`` with the token's importance weight ``w = π/b`` differentiated.

    Sample by sample ``∇(w·k3) = w·l·∇log π``, which is how it is computed: no
    overflow of k3 can turn its sign.

    Value: unbiased for the sum of the tokens' KL(π‖ρ) at the behaviour policy's
      prefixes; with b = π, for the sequence KL.
    Gradient: of the token-myopic KL(π‖ρ) at the behaviour policy's prefixes,
      unbiased without a cap. Not of the sequence KL, on-policy neither.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      logp_behaviour: ``[..., T]`` under the law that sampled them; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      cap: largest weight, positive; none: not truncated.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Raises:
      InputError: ``cap`` is not positive.

    Reference:
      DeepSeek-AI, "DeepSeek-V3.2", arXiv 2512.02556, eq. 7.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.log(jnp.array([0.5])), jnp.array([True])
      >>> print(myopic_weighted_k3_surrogate(logp, 2 * logp, 2 * logp, mask).round(3))
      [0.386]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    w = weights.token_weights(logp, logp_behaviour, mask)
    if cap is not None:
        w = weights.truncated_weights(w, cap=cap)
    value = w * (numerics.expm1(-l) + l)
    return _common.attach(value, w * l, reduce.masked(logp, mask))


def myopic_forward_k3_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``k3`` differentiated as it stands, "k3 in the loss" (GRPO's KL term).

    Value: k3, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: not of what it measures: of the token-myopic KL(ρ‖π), the forward
      direction, unbiased, for tokens from the policy.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Reference:
      Shao et al., "DeepSeekMath", arXiv 2402.03300, eq. 4; its gradient: Tang and
      Munos, arXiv 2506.09477.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, ref, mask = jnp.zeros(1), -jnp.ones(1), jnp.array([True])
      >>> loss = lambda logp: myopic_forward_k3_surrogate(logp, ref, mask).sum()
      >>> print(jax.grad(loss)(logp).round(2))
      [0.63]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    pull = -numerics.expm1(-l)  # autodiff's 1 − e^−l loses small l
    return _common.attach(numerics.expm1(-l) + l, pull, reduce.masked(logp, mask))


def off_policy_myopic_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    cap: float | None = None,
) -> Float[Array, "*B T"]:
    """``myopic_kl_surrogate`` for tokens from a behaviour policy.

    Value: ``w·k1`` with the weight w of the tokens so far; unbiased for the
      sequence KL(π‖ρ) without a cap.
    Gradient: of the token-myopic KL(π‖ρ) at the policy's prefixes, unbiased
      without a cap.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      logp_behaviour: ``[..., T]`` under the law that sampled them; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      cap: largest weight, positive; none: not truncated.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``cap`` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logp, mask = jnp.log(jnp.array([0.5])), jnp.array([True])
      >>> print(off_policy_myopic_kl_surrogate(logp, logp - 1, 2 * logp, mask))
      [2.]
    """
    w = weights.prefix_weights(logp, logp_behaviour, mask)
    if cap is not None:
        w = weights.truncated_weights(w, cap=cap)
    return w * myopic_kl_surrogate(logp, logp_ref, mask)


def myopic_top_k_f_surrogate(
    divergence: divergences.Divergence,
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
) -> Float[Array, "*B T"]:
    """Any f-divergence of tokens: the policy's k likeliest summed, the tail sampled.

    ``Σ_{v ∈ top} ρ_v f(u_v) + 1{y ∉ top} f(u_y)/u_y``.

    Value: unbiased for the sum of the tokens' D_f(π‖ρ) at the policy's prefixes.
    Gradient: of the token-myopic D_f(π‖ρ), unbiased, for tokens from the policy.

    Args:
      divergence: an element of ``alignax.divergences``.
      logits: ``[..., T, V]``, differentiated; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      tokens: ``[..., T]``, the taken ones.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are summed as well.

    Returns:
      ``[..., T]`` float32, not negative in value, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Reference:
      Liu et al., "Rao-Blackwellized Stochastic Gradients for Discrete
      Distributions", arXiv 1810.04777 (the sum-and-sample form).

    Example:
      >>> logits, mask, taken = jnp.zeros((1, 2)), jnp.array([True]), jnp.array([1])
      >>> div = divergences.pearson()
      >>> print(myopic_top_k_f_surrogate(div, logits, logits, taken, mask, k=1))
      [0.]
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    logp, logp_ref = (
        logprobs.log_softmax(jnp.where(mask[..., None], x, 0))
        for x in (logits, jax.lax.stop_gradient(logits_ref))
    )
    fixed = jax.lax.stop_gradient(logp)
    kept = fixed >= jax.lax.top_k(fixed, min(k, fixed.shape[-1]))[0][..., -1:]
    support, support_ref = logp > -jnp.inf, logp_ref > -jnp.inf
    terms = perspective(
        divergence,
        jnp.where(support, logp, 0),
        jnp.where(support_ref, logp_ref, 0),
        support,
        support_ref,
    )
    head = jnp.sum(jnp.where(kept & support, terms, 0), axis=-1)

    def taken(x):
        return jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]

    in_tail = mask & ~taken(kept)
    tail = generators.myopic_f_surrogate(
        divergence, taken(logp), taken(logp_ref), mask=in_tail
    )
    return jnp.where(mask, head, 0) + tail
