"""Credit: which token a reward, a value or a penalty belongs to.

All results are token arrays ``[..., T]``, float32, zero where masked and without
gradient. Masked positions inside a completion (a tool's tokens) are passed over.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.numerics import as_float, varying_as
from alignax.types import InputError


def constant(values: Array, mask: Array) -> Array:
    """Float32 without gradient, zero where masked."""
    return jax.lax.stop_gradient(reduce.masked(values, mask))


def at_last_token(
    rewards: Float[Array, "*B"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """The outcome's reward at the last token that counts, zero elsewhere.

    Args:
      rewards: ``[...]``, one a completion.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32; all zeros for an empty completion.

    Example:
      >>> print(at_last_token(jnp.array([3.0]), jnp.array([[True, True, False]])))
      [[0. 3. 0.]]
    """
    left = jax.lax.cumsum(mask.astype(jnp.int32), axis=mask.ndim - 1, reverse=True)
    last = mask & (left == 1)
    return jax.lax.stop_gradient(reduce.masked(rewards[..., None] * last, last))


def reward_to_go(
    token_rewards: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    discount: float = 1.0,
) -> Float[Array, "*B T"]:
    """The discounted sum of this and all later token rewards.

    ``G_t = Σ_{n≥t} γ^{n−t} r_n`` over unmasked positions; masked positions
    inside a completion (a tool's tokens) are passed over without discount.

    Args:
      token_rewards: ``[..., T]``.
      mask: ``[..., T]``, True on generated tokens.
      discount: γ in [0, 1].

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``discount`` is outside [0, 1].

    Example:
      >>> mask = jnp.array([True, True, False])
      >>> print(reward_to_go(jnp.array([1.0, 2.0, 9.0]), mask))
      [3. 2. 0.]
    """
    if not 0 <= discount <= 1:
        raise InputError(f"discount must be in [0, 1], got {discount}")
    values = jax.lax.stop_gradient(reduce.masked(token_rewards, mask))
    if discount == 1:
        sums = jnp.flip(jnp.cumsum(jnp.flip(values, -1), axis=-1), -1)
        return jnp.where(mask, sums, 0)

    def earlier(later, here):
        value, counts = here
        total = jnp.where(counts, value + discount * later, later)
        return total, jnp.where(counts, total, 0)

    time_first = (jnp.moveaxis(values, -1, 0), jnp.moveaxis(mask, -1, 0))
    start = varying_as(jnp.zeros_like(values[..., 0]), values, mask)
    _, sums = jax.lax.scan(earlier, start, time_first, reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def last_value(
    values: Float[Array, "*B T"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B"]:
    """The value at the last token that counts: EGAE's bootstrap.

    A truncated completion goes on; its next state is assumed to be worth what its
    last one is: ``gae(…, jnp.where(finished, 0, last_value(values, mask)))``.

    Args:
      values: ``[..., T]`` of the critic.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[...]`` float32, without gradient; 0 for an empty completion.

    Reference:
      Fan et al., "Truncated proximal policy optimization", arXiv 2506.15050, eq. 7.

    Example:
      >>> print(last_value(jnp.array([0.5, 0.6, 9.0]), jnp.array([True, True, False])))
      0.6
    """
    return jnp.sum(
        at_last_token(jnp.ones(values.shape[:-1]), mask) * constant(values, mask),
        axis=-1,
    )


def gae(
    token_rewards: Float[Array, "*B T"],
    values: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    bootstrap: Float[Array, "*B"] | None = None,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
) -> Float[Array, "*B T"]:
    """Generalised advantage estimation.

    ``δ_t = r_t + γ V_{t+1} − V_t``, ``A_t = δ_t + γλ A_{t+1}``. The value's target is
    ``A + V``. λ = 1 is reward-to-go less value, λ = 0 the one-step error.

    Args:
      token_rewards: ``[..., T]``; rewards at masked positions are lost, so put the
        outcome's at the last token (``at_last_token``).
      values: ``[..., T]`` of the critic before each token; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      bootstrap: ``[...]``, the value after the last token (default 0: an end). For
        truncated completions ``last_value`` gives EGAE.
      discount: γ in [0, 1].
      trace: λ in [0, 1].

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``discount`` or ``trace`` is outside [0, 1].

    Reference:
      Schulman et al., "High-dimensional continuous control using generalized
      advantage estimation", arXiv 1506.02438, eq. 16.

    Example:
      >>> rewards, values = jnp.array([0.0, 0, 0, 1]), jnp.array([0.5, 0.6, 0.7, 0.8])
      >>> print(gae(rewards, values, jnp.ones(4, bool)))
      [0.4567 0.3755 0.29 0.2]
    """
    for name, number in {"discount": discount, "trace": trace}.items():
        if not 0 <= number <= 1:
            raise InputError(f"{name} must be in [0, 1], got {number}")

    def earlier(carry, here):
        next_value, next_advantage = carry
        reward, value, counts = here
        delta = reward + discount * next_value - value
        advantage = delta + discount * trace * next_advantage
        carry = (
            jnp.where(counts, value, next_value),
            jnp.where(counts, advantage, next_advantage),
        )
        return carry, jnp.where(counts, advantage, 0)

    steps = (constant(token_rewards, mask), constant(values, mask), mask)
    steps = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), steps)
    dtype = jnp.result_type(*steps[:2])
    zeros = jnp.zeros(values.shape[:-1], dtype)
    after = zeros if bootstrap is None else bootstrap.astype(dtype)
    start = varying_as((jax.lax.stop_gradient(after), zeros), steps, after)
    _, advantages = jax.lax.scan(earlier, start, steps, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)


def whitened(
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    eps: float = 1e-8,
    centre: bool = True,
) -> Float[Array, "B T"]:
    """Token advantages standardised over the whole batch (REINFORCE++).

    ``(A − mean) / √(var + eps)`` over all unmasked tokens, with the sample variance.

    Args:
      values: ``[B, T]``.
      mask: ``[B, T]``, True on generated tokens.
      eps: added to the variance; positive.
      centre: take the mean off; False only scales.

    Returns:
      ``[B, T]`` float32, zero where masked, without gradient; all zeros where the
      values are equal (for ``centre``).

    Raises:
      InputError: ``eps`` is not positive.

    Reference:
      Hu, "REINFORCE++", arXiv 2501.03262, eq. 8.

    Example:
      >>> mask = jnp.array([[True, True, False]])
      >>> print(whitened(jnp.array([[1.0, 3.0, 9.0]]), mask))
      [[-0.7071 0.7071 0.]]
    """
    if not eps > 0:
        raise InputError(f"eps must be positive, got {eps}")
    values = constant(values, mask)
    count = jnp.sum(mask, dtype=jnp.float32)
    mean = reduce.divide(jnp.sum(values), count)
    centred = jnp.where(mask, values - mean, 0)
    highest = jnp.max(jnp.where(mask, values, -jnp.inf))
    # The rounded mean of equal values would leave noise to divide by eps.
    centred = jnp.where(highest > jnp.min(jnp.where(mask, values, jnp.inf)), centred, 0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return (centred if centre else values) / jnp.sqrt(variance + eps)


def preference_token_rewards(
    logp_teacher: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    logp: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    scale: float = 0.05,
    beta: float = 0.01,
    clip: float | None = None,
) -> Float[Array, "*B T"]:
    """Token rewards that a preference-trained policy implies (RTO).

    ``r_t = scale · (log π_dpo − log π_ref)_t − β (log π − log π_ref)_t``. If π_dpo is
    optimal for a reward, its log-ratios add up to that reward less a function of the
    prompt: a shaping of potentials that leaves the optimum where it is.

    Args:
      logp_teacher: ``[..., T]`` of the policy trained by DPO.
      logp_ref: ``[..., T]`` of its reference.
      logp: ``[..., T]`` of the policy that sampled.
      mask: ``[..., T]``, True on generated tokens.
      scale: β₁, positive.
      beta: β₂, not negative.
      clip: bound on the first term; the paper has none, the official code 0.05.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient; add the outcome's
      reward with ``at_last_token``.

    Raises:
      InputError: ``scale`` is not positive or ``beta`` is negative.

    Reference:
      Zhong et al., "DPO meets PPO: Reinforced token optimization for RLHF",
      arXiv 2404.18922, eq. 4.3.

    Example:
      >>> mask, zeros = jnp.array([True]), jnp.zeros(1)
      >>> print(preference_token_rewards(zeros, zeros - 2, zeros - 1, mask))
      [0.09]
    """
    if not scale > 0 or beta < 0:
        raise InputError(
            f"need scale > 0 and beta >= 0, got scale={scale}, beta={beta}"
        )
    ref = constant(logp_ref, mask)
    preferred = scale * (constant(logp_teacher, mask) - ref)
    if clip is not None:
        preferred = jnp.clip(preferred, -clip, clip)
    return preferred - beta * (constant(logp, mask) - ref)


def smoothed_rewards(
    values: Float[Array, "*B T"], mask: Bool[Array, "*B T"], *, width: int
) -> Float[Array, "*B T"]:
    """Token rewards spread over their neighbours by a box (PCPG's pseudo-convolution).

    The mean over the window of ``width`` positions around each token, over those of
    them that count. Width 1 is REINFORCE.

    Args:
      values: ``[..., T]`` token rewards.
      mask: ``[..., T]``, True on generated tokens.
      width: odd and positive.

    Returns:
      ``[..., T]`` float32, zero where masked, without gradient.

    Raises:
      InputError: ``width`` is even or not positive.

    Reference:
      Peng, Xiao and Ling, "Pseudo-convolutional policy gradient for
      sequence-to-sequence lip-reading", arXiv 2003.03983.

    Example:
      >>> rewards, mask = jnp.array([0.0, 0, 3, 0, 0]), jnp.ones(5, bool)
      >>> print(smoothed_rewards(rewards, mask, width=3))
      [0. 1. 1. 1. 0.]
    """
    if width < 1 or width % 2 == 0:
        raise InputError(f"width must be odd and positive, got {width}")

    def windows(x):
        side = width // 2
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(side, side)])
        return sum(padded[..., i : i + x.shape[-1]] for i in range(width))

    total, count = windows(constant(values, mask)), windows(as_float(mask))
    return jnp.where(mask, reduce.divide(jnp.asarray(total), jnp.asarray(count)), 0)
