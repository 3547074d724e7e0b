"""What keeps a policy's entropy: targets, covariances, bounds, masked policies."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce, sampling
from alignax.numerics import as_float
from alignax.types import InputError


def entropy_target_surrogate(
    entropy: Float[Array, "*B T"],
    mean: Float[Array, ""],
    mask: Bool[Array, "*B T"],
    *,
    target: float,
) -> Float[Array, "*B T"]:
    """``|H̄ − target|`` as token losses: their token mean is that distance.

    ``sign(H̄ − target) (H − target)``, with sign 0 at the target. The mean is an
    argument, so that a batch in parts has the gradient of the whole. A plain bonus is
    ``−η · entropy``.

    Args:
      entropy: ``[..., T]`` of the policy in nats, differentiated.
      mean: H̄ over the whole batch; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      target: nats, not negative; Confucius3-Math holds 0.55 with a weight of 0.001.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``target`` is negative.

    Reference:
      Wu et al., "Confucius3-Math", arXiv 2506.18330, targeted entropy
      regularisation; Zheng et al., arXiv 2307.04964 (PPO-max).

    Example:
      >>> entropy, mask = jnp.array([0.2, 0.6]), jnp.ones(2, bool)
      >>> print(entropy_target_surrogate(entropy, entropy.mean(), mask, target=0.5))
      [0.3 -0.1]
    """
    if target < 0:
        raise InputError(f"target must not be negative, got {target}")
    sign = jax.lax.stop_gradient(jnp.sign(as_float(mean) - target))
    return jnp.where(mask, sign * (reduce.masked(entropy, mask) - target), 0)


def covariances(
    logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Each token's part in the entropy's fall: ``(log π − mean)(A − mean)``.

    To first order a policy-gradient step changes the entropy by minus the covariance
    of log-probability and advantage; a few tokens carry most of it.

    Args:
      logp: ``[B, T]``; no gradient.
      advantages: ``[B, T]``; no gradient.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      ``[B, T]`` float32, zero where masked, without gradient.

    Reference:
      Cui et al., "The entropy mechanism of reinforcement learning for reasoning
      language models", arXiv 2505.22617, eq. 10.

    Example:
      >>> logp, advantages = jnp.array([[-1.0, -3.0]]), jnp.array([[1.0, -1.0]])
      >>> print(covariances(logp, advantages, jnp.ones((1, 2), bool)))
      [[1. 1.]]
    """
    count = jnp.sum(mask, dtype=jnp.float32)

    def centred(x):
        x = jax.lax.stop_gradient(reduce.masked(x, mask))
        return jnp.where(mask, x - reduce.divide(jnp.sum(x), count), 0)

    return centred(logp) * centred(advantages)


def clip_cov_dropped(
    draws: Float[Array, "B T"],
    covariance: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low: float = 1.0,
    high: float = 5.0,
    fraction: float = 2e-4,
) -> Bool[Array, "B T"]:
    """Tokens that lose their gradient: a random few of high covariance (Clip-Cov).

    ``max(1, ⌊fraction · tokens⌋)`` of those with ``low < covariance < high``.

    Args:
      draws: ``[B, T]``, uniform in [0, 1]: the lowest are chosen.
      covariance: ``[B, T]``, of ``covariances``; −inf on tokens that are clipped.
      mask: ``[B, T]``, True on generated tokens.
      low: lower bound.
      high: upper bound.
      fraction: of the tokens, in (0, 1].

    Returns:
      ``[B, T]``, True where the loss is to be left out.

    Raises:
      InputError: ``fraction`` is outside (0, 1] or ``high`` not above ``low``.

    Reference:
      Cui et al., arXiv 2505.22617, eq. 11.

    Example:
      >>> covariance, mask = jnp.array([[0.0, 2.0, 9.0]]), jnp.ones((1, 3), bool)
      >>> print(clip_cov_dropped(jnp.zeros((1, 3)), covariance, mask))
      [[False  True False]]
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction must be in (0, 1], got {fraction}")
    if not high > low:
        raise InputError(f"high must be above low, got low={low}, high={high}")
    eligible = mask & (covariance > low) & (covariance < high)
    order = jnp.argsort(jnp.where(eligible, draws, 2.0).reshape(-1))
    rank = jnp.argsort(order).reshape(mask.shape)
    wanted = jnp.maximum(1, jnp.floor(fraction * jnp.sum(mask)))
    return eligible & (rank < wanted)


def adaptive_clip(
    level: Float[Array, "*B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    strength: float = 1.0,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """Clip bounds by entropy: certain tokens may fall further, uncertain ones rise.

    ``clip_low (1 − αĥ)`` where ĥ ≤ 0, ``clip_high (1 + αĥ)`` where ĥ > 0.

    Args:
      level: ``[..., T]`` in [−1, 1], of ``advantages.relative_entropy_level``.
      clip_low: at level 0, with ``clip_low (1 + strength) ≤ 1``.
      clip_high: at level 0, not negative.
      strength: α, not negative.

    Returns:
      ``clip_low`` and ``clip_high`` ``[..., T]``, for a clip rule; no gradient.

    Raises:
      InputError: a bound could leave its range.

    Reference:
      Liu et al., "From uniform to heterogeneous", arXiv 2509.16591.

    Example:
      >>> low, high = adaptive_clip(jnp.array([-1.0, 0.0, 1.0]))
      >>> print(low, high)
      [0.4 0.2 0.2] [0.2 0.2 0.4]
    """
    if clip_low < 0 or clip_high < 0 or strength < 0 or clip_low * (1 + strength) > 1:
        raise InputError(
            "need clip_low, clip_high, strength >= 0 and clip_low (1 + strength) <= 1, "
            f"got {clip_low}, {clip_high}, {strength}"
        )
    level = jax.lax.stop_gradient(as_float(level))
    low = clip_low * (1 - strength * jnp.minimum(level, 0))
    return low, clip_high * (1 + strength * jnp.maximum(level, 0))


def masked_policy_logits(
    logits: Float[Array, "*B V"], logits_mask: Float[Array, "*B V"], *, p: float = 0.9
) -> Float[Array, "*B V"]:
    """The policy on the likeliest actions of a slower copy of itself (NLPO).

    Tokens outside the copy's top-p set get −inf: sample from these logits, and take
    log-probabilities, ratios and penalties from them too, with the same stored mask
    for the old and the new policy. p = 1 is PPO.

    Args:
      logits: ``[..., V]``, differentiated.
      logits_mask: ``[..., V]`` of the copy; no gradient.
      p: the copy's mass that is kept, in (0, 1].

    Returns:
      ``[..., V]`` float32, −inf outside.

    Raises:
      InputError: ``p`` is outside (0, 1].

    Reference:
      Ramamurthy et al., "Is reinforcement learning (not) for natural language
      processing?", arXiv 2210.01241, §4.

    Example:
      >>> logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
      >>> print(jax.nn.softmax(masked_policy_logits(logits, logits, p=0.6)))
      [0.5714 0.4286 0. 0.]
    """
    kept = sampling.top_p(jax.lax.stop_gradient(as_float(logits_mask)), p=p)
    return jnp.where(jnp.isfinite(kept), as_float(logits), -jnp.inf)
