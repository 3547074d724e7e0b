"""Losses for the divergence between whole sequences, D(π‖ρ).

Each returns token terms ``[..., T]``. Their *sum* over tokens has the stated
gradient: a mean over each sequence's own length would reweight it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import divergences, numerics, reduce
from alignax.estimators import _common, generators, myopic, weights


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
      >>> import jax
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda logp: sequence_kl_surrogate(logp, 3 * logp, mask).sum()
      >>> print(loss(logp), jax.grad(loss)(logp))
      4.0 [4. 2.]
    """
    loss = myopic.myopic_kl_surrogate(logp, logp_ref, mask)
    return sequence_surrogate(loss, logp, mask, baseline=baseline)


def sequence_surrogate(
    token_loss: Float[Array, "*B T"],
    logp: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """A token-myopic loss made whole: each token's score times the losses after it.

    ``∇ = Σ_t (∇token_loss_t + ∇log π_t · (Σ_{n > t} token_loss_n − baseline_t))``.
    Any token loss whose value estimates a divergence given the prefix, and whose
    gradient estimates that divergence's, will do: sampled, or summed over the
    vocabulary, of KL or another divergence. Off-policy, weight ``token_loss`` and
    ``baseline`` first (``weights.prefix_weights``).

    Value: ``token_loss``.
    Gradient: of ``E_{y~π} Σ_t D_t(prefix)``, unbiased, the law of the prefixes
      included. When D is KL(π‖ρ), that is the sequence KL.

    Args:
      token_loss: ``[..., T]``, value and gradient unbiased for ``D_t``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      mask: ``[..., T]``, True on generated tokens.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Amini, Vieira and Cotterell, "Better Estimation of the KL Divergence Between
      Language Models", arXiv 2504.10637.

    Example:
      >>> import jax
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda logp: sequence_surrogate(logp**2, logp, mask).sum()
      >>> print(loss(logp), jax.grad(loss)(logp))
      2.0 [-1. -2.]
    """
    token_loss = reduce.masked(token_loss, mask)
    future = _common.to_go(token_loss) - token_loss
    if baseline is not None:
        future = jnp.where(mask, future - baseline, 0)
    zero = jnp.zeros_like(token_loss)
    return token_loss + _common.attach(zero, future, reduce.masked(logp, mask))


def sequence_control_variate_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    coefficient: float | Float[Array, "*#B #T"] = 1.0,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``sequence_kl_surrogate`` with less noise in the KL to come.

    ``∇ = Σ_t ∇log π_t · (l_t + Σ_{n > t} (l_n + c·expm1(−l_n)) − baseline_t)``: the
    later terms carry the control variate, which costs no bias there. On the
    token's own term it would: that is the error of "k3 in reward".

    Value: ``l + c·expm1(−l)`` (k3 for c = 1), unbiased for the sequence KL(π‖ρ)
      when summed over tokens.
    Gradient: of the sequence KL(π‖ρ), unbiased, for tokens from the policy.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      coefficient: c, a number or an array with 1 in place of any axis, such as
        ``optimal_coefficient``'s. No gradient.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> import jax
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda x: sequence_control_variate_surrogate(x, 2 * logp, mask).sum()
      >>> print(jax.grad(loss)(logp).round(2))
      [1.37 1.]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    value = l + coefficient * numerics.expm1(-l)
    loss = _common.attach(value, l, reduce.masked(logp, mask))
    return sequence_surrogate(loss, logp, mask, baseline=baseline)


def sequence_k2_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``½ (Σ_t l_t)²``: k2, squared after summing.

    Value: ``½ l_t Σ_n l_n``; summed over tokens a biased estimate of the sequence
      KL(π‖ρ), equal to it to second order.
    Gradient: of the sequence KL(π‖ρ), unbiased, for tokens from the policy. That
      of ``sequence_kl_surrogate`` plus each token's score times the past, which
      has mean zero.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Example:
      >>> import jax
      >>> logp, mask = jnp.array([-1.0, -1.0]), jnp.array([True, True])
      >>> loss = lambda x: sequence_k2_surrogate(x, 2 * logp, mask).sum()
      >>> print(loss(logp), jax.grad(loss)(logp))
      2.0 [2. 2.]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    whole = _common.total(l)
    return _common.attach(l * whole / 2, whole, reduce.masked(logp, mask))


def sequence_ratio_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    cap: float | None = None,
) -> Float[Array, "*B T"]:
    """``W·Σ_t l_t`` with the sequence's importance weight W = π/b differentiated.

    The log-ratio itself is held constant: its own gradient has mean zero and a
    variance that does not vanish as the policies meet.

    Value: ``W·l_t``; summed over tokens unbiased for the sequence KL(π‖ρ) without
      a cap.
    Gradient: of the sequence KL(π‖ρ), unbiased without a cap, for tokens from the
      behaviour policy. ``off_policy_sequence_kl_surrogate`` has less variance.

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

    Reference:
      Shah et al., "A Comedy of Estimators", arXiv 2512.21852.

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(sequence_ratio_kl_surrogate(logp, logp - 1, 2 * logp, mask))
      [4. 4.]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    w = weights.sequence_weights(logp, logp_behaviour, mask)
    if cap is not None:
        w = weights.truncated_weights(w, cap=cap)
    return _common.attach(w * l, w * _common.total(l), reduce.masked(logp, mask))


def off_policy_sequence_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_behaviour: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    cap: float | None = None,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``sequence_kl_surrogate`` for tokens from a behaviour policy b.

    ``∇ = Σ_t ∇log π_t · (Σ_{n ≥ t} w_n l_n − w_t baseline_t)`` with
    ``w_n = Π_{m ≤ n} π_m/b_m``: each term is weighted by what it depends on.

    Value: ``w·k1``, unbiased for the sequence KL(π‖ρ) when summed over tokens,
      without a cap.
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
      Precup, Sutton and Singh, "Eligibility traces for off-policy policy
      evaluation", 2000 (the weights).

    Example:
      >>> logp, mask = jnp.log(jnp.array([0.5, 0.5])), jnp.array([True, True])
      >>> print(off_policy_sequence_kl_surrogate(logp, logp - 1, 2 * logp, mask))
      [2. 4.]
    """
    w = weights.prefix_weights(logp, logp_behaviour, mask)
    if cap is not None:
        w = weights.truncated_weights(w, cap=cap)
    loss = w * myopic.myopic_kl_surrogate(logp, logp_ref, mask)
    if baseline is not None:
        baseline = w * baseline
    return sequence_surrogate(loss, logp, mask, baseline=baseline)


def sequence_f_surrogate(
    divergence: divergences.Divergence,
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Any f-divergence of sequences: ``∇ = f'(U)·∇log π(y)``, ``U = π(y)/ρ(y)``.

    Value: ``f(U)/U``, unbiased for D_f(π‖ρ) of sequences when summed over tokens
      (spread evenly over them).
    Gradient: of D_f(π‖ρ) of sequences, unbiased, for tokens from the policy.

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Go et al., "Aligning Language Models with Preferences through f-divergence
      Minimization", arXiv 2302.08215, theorem 1.

    Example:
      >>> logp, mask, div = jnp.zeros(2), jnp.array([True, True]), divergences.pearson()
      >>> print(sequence_f_surrogate(div, logp, logp - 1, mask).sum().round(3))
      5.524
    """
    whole, whole_ref = _sums(logp, logp_ref, mask)
    loss = generators.myopic_f_surrogate(divergence, whole, whole_ref)
    return _spread(loss, mask)


def sequence_f_reference_surrogate(
    divergence: divergences.Divergence,
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Any f-divergence of sequences on stored samples of the *reference*: ``f(U)``.

    Value: unbiased for D_f(π‖ρ) of sequences when summed over tokens (spread
      evenly over them).
    Gradient: of the same, unbiased: the samples do not move with the policy.

    Args:
      divergence: an element of ``alignax.divergences``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on sampled tokens.

    Returns:
      ``[..., T]`` float32, not negative, zero where masked.

    Example:
      >>> logp, mask = jnp.log(jnp.array([2.0, 1.0])), jnp.array([True, True])
      >>> div = divergences.pearson()
      >>> print(sequence_f_reference_surrogate(div, logp, 0 * logp, mask).sum())
      1.0
    """
    whole, whole_ref = _sums(logp, logp_ref, mask)
    loss = generators.myopic_f_reference_surrogate(divergence, whole, whole_ref)
    return _spread(loss, mask)


def forward_kl_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    coefficient: float | Float[Array, "*#B #T"] = 1.0,
) -> Float[Array, "*B T"]:
    """``−l + c·expm1(l)`` on samples of the *reference*: KL(ρ‖π).

    c = 0 is the negative log-likelihood (supervised fine-tuning), c = 1 is k3 of the
    forward KL, never negative.

    Value: unbiased for the sequence KL(ρ‖π) when summed over tokens.
    Gradient: of the sequence KL(ρ‖π), unbiased, for tokens from the reference and
      every c; for log-ratios of order ε its variance is of order (1 − c)² + ε².

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      mask: ``[..., T]``, True on sampled tokens.
      coefficient: c, or an array of them with 1 in place of any axis; no gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Li et al., "The Choice of Divergence", arXiv 2509.07430 (c = 1).

    Example:
      >>> logp, mask = jnp.log(jnp.array([2.0])), jnp.array([True])
      >>> print(forward_kl_surrogate(logp, 0 * logp, mask).round(3))
      [0.307]
    """
    l = reduce.log_ratio(logp, logp_ref, mask)
    value = coefficient * numerics.expm1(l) - l
    push = coefficient * numerics.expm1(l) + (coefficient - 1)  # c·e^l − 1
    return _common.attach(value, push, reduce.masked(logp, mask))


def _sums(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> tuple[Float[Array, "*B 1"], Float[Array, "*B 1"]]:
    return (
        _common.total(reduce.masked(logp, mask)),
        _common.total(reduce.masked(logp_ref, mask)),
    )


def _spread(loss: Float[Array, "*B 1"], mask: Bool[Array, "*B T"]):
    """A sequence's loss in equal parts over its tokens."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.where(mask, loss / count, 0)
