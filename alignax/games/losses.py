"""Losses that play preference games with language models.

``logp [..., T]`` are of tokens, ``preferences [...]`` the (estimated) probabilities
that a completion is preferred to its opponent's. Losses over pairs take the
log-probabilities of whole completions, sums over tokens. Only ``logp`` has a
gradient. What samples the opponents names the method:

=====================  ==========================================================
opponent               method
=====================  ==========================================================
the policy             self-play: online IPO, or the policy gradient with m = 0
``mixture_policy``     Nash-MD-PG, IPO-MD
``moving_average``     Nash-EMA-PG; see ``alignax.references``
``mirror_prox_loop``   Nash-MP, with ``nash_mp_surrogate``
the reference          best response to it; XPO
=====================  ==========================================================
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import estimators, surrogates
from alignax._checks import Strength, not_negative, positive
from alignax.numerics import as_float
from alignax.types import InputError


def _win_term(logp, preferences, mask):
    """``−(P − ½) log π``: the half is a baseline."""
    advantages = jnp.broadcast_to(as_float(preferences)[..., None] - 0.5, logp.shape)
    return surrogates.policy_gradient_surrogate(logp, advantages, mask)


def nash_pg_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    preferences: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    beta: Strength,
) -> Float[Array, "*B T"]:
    """Nash-MD-PG and Nash-EMA-PG: the policy gradient of the regularised preference.

    ``−∇ = Σ_t ∇log π_t · (P(y ≻ y') − ½ − β Σ_{n ≥ t} (log π_n − log ρ_n))``.

    Value: ``−(P − ½) log π_t + β k1``; means little.
    Gradient: summed over tokens, of ``−P_β(π ≻ sg π')``, the sequence KL included,
      unbiased for y from the policy and y' from any π' held fixed.

    Args:
      logp: ``[..., T]`` of the policy's own completions y, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      preferences: ``[...]``, ``P(y ≻ y')`` against the opponents' completions.
      mask: ``[..., T]``, True on generated tokens.
      beta: strength of the regularisation; the paper's τ.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §7.

    Example:
      >>> logp, mask = jnp.array([[-1.0, -1.0]]), jnp.array([[True, True]])
      >>> def loss(x):
      ...     return nash_pg_surrogate(x, 2 * logp, jnp.ones(1), mask, beta=0.5).sum()
      >>> print(jax.grad(loss)(logp))
      [[0.5 0.]]
    """
    kl = estimators.sequence_kl_surrogate(logp, logp_ref, mask)
    return _win_term(logp, preferences, mask) + beta * kl


def nash_pg_myopic_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    preferences: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    beta: Strength,
) -> Float[Array, "*B T"]:
    """The token-local alternative, TRL's: each token feels its own log-ratio alone.

    ``−∇ = Σ_t ∇log π_t · (P(y ≻ y') − ½ − β (log π_t − log ρ_t))``.

    Value: that of ``nash_pg_surrogate``.
    Gradient: that of the preference less β times the token-myopic KL, the law of the
      prefixes held fixed: not of the regularised preference, unless T is 1.

    Args:
      logp: ``[..., T]`` of the policy's own completions, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      preferences: ``[...]``, against the opponents' completions.
      mask: ``[..., T]``, True on generated tokens.
      beta: strength of the regularisation.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      TRL, ``NashMDTrainer``; Tang and Munos, "On a few pitfalls in KL divergence
      gradient estimation for RL", arXiv 2506.09477.

    Example:
      >>> logp, mask = jnp.array([[-1.0, -1.0]]), jnp.array([[True, True]])
      >>> half = jnp.array([0.5])
      >>> def loss(x):
      ...     return nash_pg_myopic_surrogate(x, 2 * logp, half, mask, beta=0.5).sum()
      >>> print(jax.grad(loss)(logp))
      [[0.5 0.5]]
    """
    kl = estimators.myopic_kl_surrogate(logp, logp_ref, mask)
    return _win_term(logp, preferences, mask) + beta * kl


def nash_mp_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp_anchor: Float[Array, "*B T"],
    preferences: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
    *,
    beta: Strength,
    eta: float,
) -> Float[Array, "*B T"]:
    """One proximal step of Nash mirror prox, as a policy gradient.

    Nash-MD-PG's with a second KL, of weight 1/η, to the anchor π_k that both half
    steps start from; see ``mirror_prox_loop``.

    Value: ``−(P − ½) log π_t + β k1 + k1/η``; means little.
    Gradient: summed over tokens, of ``−P(π ≻ sg π') + β KL(π‖ρ) + KL(π‖π_k)/η``,
      unbiased for y from the policy.

    Args:
      logp: ``[..., T]`` of the policy's own completions, differentiated.
      logp_ref: ``[..., T]`` under the reference; no gradient.
      logp_anchor: ``[..., T]`` under π_k; no gradient.
      preferences: ``[...]``, against the completions of π_k, then of π_{k+1/2}.
      mask: ``[..., T]``, True on generated tokens.
      beta: strength of the regularisation.
      eta: step size, positive.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Tiapkin et al., "Accelerating Nash learning from human feedback via mirror
      prox", arXiv 2505.19731.

    Example:
      >>> logp, mask = jnp.array([[-1.0, -1.0]]), jnp.array([[True, True]])
      >>> anchored = (logp, 2 * logp, jnp.array([0.5]), mask)
      >>> loss = lambda x: nash_mp_surrogate(x, *anchored, beta=0.5, eta=2.0).sum()
      >>> print(jax.grad(loss)(logp))
      [[1. 0.5]]
    """
    positive(eta=eta)
    kl = estimators.sequence_kl_surrogate(logp, logp_anchor, mask)
    return nash_pg_surrogate(logp, logp_ref, preferences, mask, beta=beta) + kl / eta


def _margin(logp, logp_other, ref, ref_other):
    """``h = log π(y)/ρ(y) − log π(y')/ρ(y')``; the reference is constant."""
    ref, ref_other = jax.lax.stop_gradient((as_float(ref), as_float(ref_other)))
    return (as_float(logp) - ref) - (as_float(logp_other) - ref_other)


def online_ipo_loss(
    logp: Float[Array, "*B"],
    logp_other: Float[Array, "*B"],
    ref: Float[Array, "*B"],
    ref_other: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    beta: Strength,
) -> Float[Array, "*B"]:
    """Online IPO and IPO-MD: ``p (h − 1/2β)² + (1 − p) (h + 1/2β)²``.

    ``h = log π(y)/ρ(y) − log π(y')/ρ(y')`` and ``p = P(y ≻ y')``. With both
    completions from the policy it is online IPO, with both from its mixture with the
    reference IPO-MD.

    Value: the squared loss over labels drawn with probability p, on average.
    Gradient: for y and y' from the same ν, held fixed, ``−(4/β) E_ν[∇log π(y) f(y)]``
      with ``f = P(y ≻ ν) − ½ − β(l(y) − E_ν l)``, ``l = log π/ρ``. For ν = π that is
      ``−(4/β) ∇P_β(π ≻ sg π)``; for other ν the baseline ``E_ν l`` does not drop out.

    Args:
      logp: ``[...]`` of whole completions y, differentiated.
      logp_other: ``[...]`` of y', differentiated.
      ref: ``[...]`` of y under the reference.
      ref_other: ``[...]`` of y'.
      preferences: ``[...]``, p; 1 or 0 for labels.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]`` float32 or wider.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Calandriello et al., "Human alignment of large language models through online
      preference optimisation", arXiv 2403.08635, propositions 4.2 and 5.1.

    Example:
      >>> pair = jnp.array([-1.0]), jnp.array([-2.0]), jnp.zeros(1), jnp.zeros(1)
      >>> print(online_ipo_loss(*pair, jnp.ones(1), beta=0.5))
      [0.]
    """
    positive(beta=beta)
    h = _margin(logp, logp_other, ref, ref_other)
    p, c = jax.lax.stop_gradient(as_float(preferences)), 1 / (2 * beta)
    return p * jnp.square(h - c) + (1 - p) * jnp.square(h + c)


def inpo_loss(
    logp_w: Float[Array, "*B"],
    logp_l: Float[Array, "*B"],
    ref_w: Float[Array, "*B"],
    ref_l: Float[Array, "*B"],
    prev_w: Float[Array, "*B"],
    prev_l: Float[Array, "*B"],
    *,
    eta: Strength,
    beta: Strength,
) -> Float[Array, "*B"]:
    """INPO: ``(h − 1/2η)²``, IPO from a geometric mixture of reference and policy.

    ``h = Δlog π − (β/η) Δlog ρ − (1 − β/η) Δlog π_t``, Δ the preferred completion's
    less the other's. Minimised over pairs from π_t by one step of mirror descent,
    ``π ∝ ρ^{β/η} π_t^{1−β/η} e^{P(·≻π_t)/η}``.

    Args:
      logp_w: ``[...]`` of the preferred completions, differentiated.
      logp_l: ``[...]`` of the others, differentiated.
      ref_w: ``[...]`` under the reference.
      ref_l: ``[...]``.
      prev_w: ``[...]`` under π_t, which sampled them.
      prev_l: ``[...]``.
      eta: the paper's η, an *inverse* step size, at least beta.
      beta: strength of the regularisation; the paper's τ.

    Returns:
      ``[...]`` float32 or wider.

    Raises:
      InputError: not ``0 <= beta <= eta``, or ``eta`` is 0.

    Reference:
      Zhang et al., "Iterative Nash policy optimization", arXiv 2407.00617.

    Example:
      >>> zero, w = jnp.zeros(1), jnp.array([1.0])
      >>> print(inpo_loss(w, zero, zero, zero, zero, zero, eta=0.5, beta=0.1))
      [0.]
    """
    positive(eta=eta)
    if isinstance(beta / eta, float) and not 0 <= beta <= eta:
        raise InputError(f"beta must be in [0, eta = {eta}], got {beta}")
    share = beta / eta
    anchor_w, anchor_l = (
        share * as_float(ref) + (1 - share) * as_float(prev)
        for ref, prev in ((ref_w, prev_w), (ref_l, prev_l))
    )
    return jnp.square(_margin(logp_w, logp_l, anchor_w, anchor_l) - 1 / (2 * eta))


def sppo_loss(
    logp: Float[Array, "*B"],
    prev: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    eta: Strength,
) -> Float[Array, "*B"]:
    """SPPO: ``(log π(y)/π_t(y) − η (P̂(y ≻ π_t) − ½))²`` of single completions.

    Regression on multiplicative weights, ``log Z ≈ η/2``. A pair's loss is the mean
    of its two; with labels for P̂, the hard form.

    Args:
      logp: ``[...]`` of whole completions, differentiated.
      prev: ``[...]`` under π_t, which sampled them.
      preferences: ``[...]``, P̂: the mean win rate against samples of π_t.
      eta: step size, positive: 1/β of the authors' code.

    Returns:
      ``[...]`` float32 or wider.

    Raises:
      InputError: ``eta`` is not positive.

    Reference:
      Wu et al., "Self-play preference optimization for language model alignment",
      arXiv 2405.00675.

    Example:
      >>> print(sppo_loss(jnp.array([1.0]), jnp.zeros(1), jnp.array([0.75]), eta=4.0))
      [0.]
    """
    positive(eta=eta)
    ratio = as_float(logp) - jax.lax.stop_gradient(as_float(prev))
    target = eta * (jax.lax.stop_gradient(as_float(preferences)) - 0.5)
    return jnp.square(ratio - target)


def xpo_loss(
    logp: Float[Array, "*B"],
    logp_other: Float[Array, "*B"],
    ref: Float[Array, "*B"],
    ref_other: Float[Array, "*B"],
    preferences: Float[Array, "*B"],
    *,
    beta: Strength,
    alpha: Strength,
) -> Float[Array, "*B"]:
    """XPO: DPO between policy and reference samples, with a bonus for exploring.

    ``−p log σ(βh) − (1 − p) log σ(−βh) + α log π(y')``: the last term pushes down
    what the reference already says.

    Args:
      logp: ``[...]`` of completions y sampled from the policy, differentiated.
      logp_other: ``[...]`` of y' sampled from the reference, differentiated.
      ref: ``[...]`` of y under the reference.
      ref_other: ``[...]`` of y'.
      preferences: ``[...]``, ``p = P(y ≻ y')``; 1 or 0 for labels.
      beta: strength of the regularisation, positive.
      alpha: weight of the bonus, not negative.

    Returns:
      ``[...]`` float32 or wider.

    Raises:
      InputError: ``beta`` is not positive or ``alpha`` negative.

    Reference:
      Xie et al., "Exploratory preference optimization", arXiv 2405.21046.

    Example:
      >>> zero = jnp.zeros(1)
      >>> print(xpo_loss(*4 * [zero], jnp.ones(1), beta=0.1, alpha=0.1).round(4))
      [0.6931]
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    margin = beta * _margin(logp, logp_other, ref, ref_other)
    p = jax.lax.stop_gradient(as_float(preferences))
    loss = p * jax.nn.softplus(-margin) + (1 - p) * jax.nn.softplus(margin)
    return loss + alpha * as_float(logp_other)
