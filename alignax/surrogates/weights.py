"""Weights instead of clips: every token keeps a gradient, of another size.

``−sg(w) A d``: the loss' gradient is that of ``−w A log π``; d's constants do not
matter.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from alignax.surrogates.rules import check_bounds, clean, ratio_of
from alignax.types import InputError


def _weighted(weights: Array, advantages: Array, log_ratios: Array) -> Array:
    return -jax.lax.stop_gradient(weights) * advantages * log_ratios


def cispo_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    clip_low: ArrayLike = 1.0,
    clip_high: ArrayLike,
) -> Float[Array, "*B T"]:
    """A clipped weight instead of a clipped token: every token has a gradient.

    ``−sg(clip(r, 1 − clip_low, 1 + clip_high)) A log π``. Coefficient:
    ``c = clip(r)·A``.

    Args:
      log_ratios: ``[..., T]`` at any level, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      clip_low: in [0, 1]; 1, as in the paper, is no bound.
      clip_high: not negative. The weight is at most ``1 + clip_high`` (verl); TRL's
        ``epsilon_high`` is that bound itself.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a bound is out of range.

    Reference:
      "MiniMax-M1", arXiv 2506.13585, eqs. 4-5.

    Example:
      >>> ratios, mask = jnp.log(jnp.array([1.5])), jnp.array([True])
      >>> loss = lambda x: cispo_surrogate(x, jnp.ones(1), mask, clip_high=0.28).sum()
      >>> print(jax.grad(loss)(ratios))
      [-1.28]
    """
    check_bounds(clip_low, clip_high)
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    weights = jnp.clip(ratio_of(log_ratios), 1 - clip_low, 1 + clip_high)
    return _weighted(weights, advantages, log_ratios)


def topr_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "*B T"]:
    """Tapered importance sampling: weights for bad completions only (TOPR).

    ``−sg(clip(R, low, high)) A log π`` with bounds by the sign of A. Coefficient:
    ``c = A`` for A ≥ 0 and ``min(R, 1)·A`` for A < 0 at the defaults: what the policy
    no longer does need not be unlearned. On-policy it is REINFORCE.

    Args:
      log_ratios: ``[..., T]`` of the sequence (``sequence_log_ratio``), differentiated;
        give the token log-ratio's gradient with ``token_gradient``.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      positive: bounds of the weight where A ≥ 0.
      negative: bounds of the weight where A < 0.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: bounds are not ``0 ≤ low ≤ high``.

    Reference:
      Le Roux et al., "Tapered off-policy REINFORCE", arXiv 2503.14286, eq. 8.

    Example:
      >>> ratios, mask = jnp.array([-2.0]), jnp.array([True])
      >>> loss = lambda x: topr_surrogate(x, -jnp.ones(1), mask).sum()
      >>> print(jax.grad(loss)(ratios))
      [0.1353]
    """
    for name, (low, high) in {"positive": positive, "negative": negative}.items():
        if not 0 <= low <= high:
            raise InputError(f"{name} must be 0 <= low <= high, got ({low}, {high})")
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    ratio = ratio_of(log_ratios)
    weights = jnp.where(
        advantages >= 0, jnp.clip(ratio, *positive), jnp.clip(ratio, *negative)
    )
    return _weighted(weights, advantages, log_ratios)


def sapo_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    positive: float = 1.0,
    negative: float = 1.05,
) -> Float[Array, "*B T"]:
    """A soft gate for the clip: ``−(4/τ) σ(τ(r − 1)) A`` (SAPO).

    Coefficient: ``c = 4σ(1 − σ)·r·A``, REINFORCE's at r = 1, falling on both sides.

    Args:
      log_ratios: ``[..., T]`` at any level, differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      positive: τ where A > 0, positive.
      negative: τ elsewhere, positive.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a temperature is not positive.

    Reference:
      Gao et al., "Soft adaptive policy optimization", arXiv 2511.20347, eq. 5.

    Example:
      >>> print(sapo_surrogate(jnp.zeros(1), jnp.ones(1), jnp.array([True])))
      [-2.]
    """
    if not (positive > 0 and negative > 0):
        raise InputError(
            f"temperatures must be positive, got positive={positive}, "
            f"negative={negative}"
        )
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    tau = jnp.where(advantages > 0, positive, negative)
    gate = jax.nn.sigmoid(tau * (ratio_of(log_ratios) - 1))
    return -4 / tau * gate * advantages


def vespo_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Float[Array, "*B T"]:
    """A gamma-shaped weight of the sequence's ratio (VESPO).

    ``−sg(φ(W)) A log π`` with ``φ(W) = W^k e^{λ(1 − W)}``, 1 at W = 1. Coefficient:
    c = φ(W)·A.

    Args:
      log_ratios: ``[..., T]`` of the sequence (``sequence_log_ratio``), differentiated;
        give the token log-ratio's gradient with ``token_gradient``.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      positive: (k, λ) where A > 0.
      negative: (k, λ) elsewhere.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a k or λ is not positive.

    Reference:
      "VESPO", arXiv 2602.10693 (as in TRL's ``get_gamma_weights``).

    Example:
      >>> ratios, mask = jnp.log(jnp.array([2.0])), jnp.array([True])
      >>> loss = lambda x: vespo_surrogate(x, jnp.ones(1), mask).sum()
      >>> print(jax.grad(loss)(ratios))
      [-0.1991]
    """
    if min(*positive, *negative) <= 0:
        raise InputError(
            f"k and lambda must be positive, got positive={positive}, "
            f"negative={negative}"
        )
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    power = jnp.where(advantages > 0, positive[0], negative[0])
    rate = jnp.where(advantages > 0, positive[1], negative[1])
    weights = jnp.exp(power * log_ratios + rate * (1 - ratio_of(log_ratios)))
    return _weighted(weights, advantages, log_ratios)
