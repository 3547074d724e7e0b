"""Bounds that the batch sets itself: a budget for its drift, its effective size."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from alignax import estimators, numerics, reduce
from alignax.surrogates.regions import diverging
from alignax.surrogates.rules import clean, ratio_of
from alignax.types import InputError


def budget_keep(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], *, budget: float
) -> Bool[Array, "*shape"]:
    """As many of the smallest values as have a mean within the budget.

    The largest go first, none more than is needed. M2PO: ``values = (log r)²`` of the
    ``diverging`` tokens (AReaL: of all). With ``f(r)``, the batch's divergence stays
    within the budget.

    Args:
      values: ``[...]``, not negative; no gradient.
      mask: ``[...]``, True where a value counts.
      budget: for the mean of what is kept, not negative; .04 in M2PO.

    Returns:
      ``[...]``, False where masked.

    Raises:
      InputError: ``budget`` is negative.

    Reference:
      Zheng et al., "Prosperity before collapse" (M2PO), arXiv 2510.01161.

    Example:
      >>> values = jnp.array([0.0, 9.0, 2.0, 1.0])
      >>> print(budget_keep(values, jnp.ones(4, bool), budget=1.0))
      [ True False  True  True]
    """
    if budget < 0:
        raise InputError(f"budget must not be negative, got {budget}")
    flat = jnp.where(mask, numerics.as_float(values), jnp.inf).reshape(-1)
    order = jnp.argsort(flat)
    means = jnp.cumsum(flat[order]) / jnp.arange(1, flat.size + 1)
    kept = jnp.zeros(flat.shape, bool).at[order].set(means <= budget)
    return mask & kept.reshape(mask.shape)


def second_moment_bounds(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    budget: float = 0.04,
    least_low: float = 0.3,
    least_high: float = 0.5,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bounds of PPO's clip from a budget for ``(log r)²`` (M2PO's code).

    Of the ``diverging`` tokens' sorted ``v = (log r)²``, the largest ``τ² = v_k`` with
    ``mean_i min(v_i, v_k)`` below the budget; the bounds are ``1 − e^{−τ}`` and
    ``e^τ − 1``, and never tighter than the least ones. Without need they are 1 and what
    no ratio reaches.

    Args:
      log_ratios: ``[..., T]`` of tokens; no gradient.
      advantages: ``[..., T]``.
      mask: ``[..., T]``, True on generated tokens.
      budget: positive.
      least_low: in [0, 1].
      least_high: not negative.

    Returns:
      ``clip_low`` and ``clip_high`` of ``ppo_surrogate``, float32 scalars of the batch.

    Raises:
      InputError: a number is out of range.

    Reference:
      Zheng et al., arXiv 2510.01161, the official ``compute_m2po_policy_loss``; its
      text drops tokens instead, ``budget_keep``.

    Example:
      >>> ratios, mask = jnp.array([0.1, 0.7, 3.0]), jnp.ones(3, bool)
      >>> low, high = second_moment_bounds(ratios, jnp.ones(3), mask, budget=0.4)
      >>> print(f"{low:.4f} {high:.4f}")
      0.5034 1.0138
    """
    if not (budget > 0 and 0 <= least_low <= 1 and least_high >= 0):
        raise InputError(
            "need budget > 0, 0 <= least_low <= 1 and least_high >= 0, got "
            f"{budget}, {least_low}, {least_high}"
        )
    away = diverging(log_ratios, advantages, mask)
    squares = jnp.square(jax.lax.stop_gradient(reduce.masked(log_ratios, away)))
    count = jnp.sum(away)
    # Zeros of the tokens that do not count come first and change no sum.
    values = jnp.sort(squares.reshape(-1))
    above = jnp.arange(values.size - 1, -1, -1)
    capped = jnp.cumsum(values) + above * values
    tau = jnp.sqrt(jnp.max(jnp.where(capped < budget * count, values, 0)))
    free = jnp.sum(values) <= budget * count
    low = jnp.where(free, 1, jnp.maximum(-jnp.expm1(-tau), least_low))
    most = jnp.finfo(jnp.float32).max
    return low, jnp.where(free, most, jnp.maximum(jnp.expm1(tau), least_high))


def prefix_budget(
    statistic: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    bound: ArrayLike,
    budget: ArrayLike,
    least_weight: float = 0.8,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """A completion's budget, of which early tokens get less and a drift takes (CPPO).

    ``Z_t = w_t D_t`` with w falling from 1 at the first position to ``least_weight``
    at the last, and ``c_t = min(δ, δ + δ_b Σ_{j<t} w_j − Σ_{j<t} Z_j)``. While
    ``Z_t ≤ c_t`` holds, ``Σ_{j≤t} Z_j ≤ δ + δ_b Σ_{j<t} w_j``. Give both to
    ``divergence_masked_surrogate``: Z for its statistic, c for its bounds.

    Args:
      statistic: ``[..., T]``, D, not negative; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      bound: δ, of a token; a number or broadcast.
      budget: δ_b, of the mean token so far; a number or broadcast (``[..., 1]``).
      least_weight: in [0, 1].

    Returns:
      Z and c, each ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``least_weight`` is out of range.

    Reference:
      Mao et al., "Beyond uniform token-level trust region in LLM reinforcement
      learning" (CPPO), arXiv 2606.10968.

    Example:
      >>> moved, mask = jnp.array([0.2, 0.1]), jnp.ones(2, bool)
      >>> moved, limits = prefix_budget(moved, mask, bound=0.15, budget=0.02)
      >>> print(moved, limits)
      [0.2 0.08] [0.15 -0.03]
    """
    if not 0 <= least_weight <= 1:
        raise InputError(f"least_weight must be in [0, 1], got {least_weight}")
    moved = jax.lax.stop_gradient(reduce.masked(statistic, mask))
    steps = jnp.linspace(1, least_weight, mask.shape[-1], dtype=moved.dtype)
    weights = jnp.where(mask, jnp.broadcast_to(steps, mask.shape), 0)
    moved = weights * moved
    slack = budget * weights - moved
    before = jnp.cumsum(slack, axis=-1) - slack
    return moved, jnp.where(mask, bound + jnp.minimum(before, 0), 0)


def effective_share(
    log_ratios: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, ""]:
    """``(Σ r)² / (n Σ r²)`` over the batch's n tokens, in [1/n, 1]; 1 without any.

    Args:
      log_ratios: ``[..., T]`` of tokens; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      a float32 scalar. Over a part of a batch it is that part's.

    Reference:
      Fakoor et al., "Trust the batch, on- or off-policy" (P3O), arXiv 2605.12380.

    Example:
      >>> ratios, mask = jnp.array([0.0, 0.0, -jnp.inf]), jnp.ones(3, bool)
      >>> print(f"{effective_share(ratios, mask):.4f}")
      0.6667
    """
    log_ratios = jax.lax.stop_gradient(reduce.masked(log_ratios, mask))
    weights = jnp.where(mask, ratio_of(log_ratios), 0).reshape(-1)
    count = jnp.sum(mask, dtype=jnp.float32)
    size = estimators.effective_sample_size(weights)
    return jnp.where(count > 0, reduce.divide(size, count), 1)


def p3o_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    penalty: Float[Array, "*B T"],
    share: Float[Array, "..."],
) -> Float[Array, "*B T"]:
    """Weights and pull by the effective sample size s (P3O).

    ``−sg(min(r, s)) A log π + (1 − s) penalty``: on-policy, s = 1, REINFORCE; the
    staler the batch, the smaller its weights and the stronger the pull. Coefficient of
    the first term: ``c = min(r, s)·A``.

    Args:
      log_ratios: ``[..., T]`` of tokens, the policy's over the sampler's,
        differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      penalty: ``[..., T]``, differentiated: ``div.f(log_ratios)``, whose mean over the
        sampler's tokens has the gradient of ``D_f(π‖π_old)`` (the paper's is reverse
        KL); its code has ``log r + 1/r − 1``, which on them is no divergence.
      share: s, of ``effective_share``; broadcast, no gradient.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Reference:
      Fakoor et al., "Trust the batch, on- or off-policy" (P3O), arXiv 2605.12380.

    Example:
      >>> zeros, mask = jnp.zeros(1), jnp.array([True])
      >>> s = effective_share(zeros, mask)
      >>> loss = lambda x: p3o_surrogate(x, jnp.ones(1), mask, x**2, s).sum()
      >>> print(jax.grad(loss)(zeros))
      [-1.]
    """
    share = jax.lax.stop_gradient(numerics.as_float(share))
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    weights = jax.lax.stop_gradient(jnp.minimum(ratio_of(log_ratios), share))
    pull = (1 - share) * reduce.masked(penalty, mask)
    return jnp.where(mask, pull - weights * advantages * log_ratios, 0)
