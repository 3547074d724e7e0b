"""Baselines, scales and credit: how rewards become advantages.

Advantages multiply a differentiated log-probability and carry no gradient of
their own: every function here returns a stopped gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.types import InputError


def _at_least_two(rewards: Array) -> Array:
    if rewards.shape[-1] < 2:
        raise InputError(
            "rewards must hold at least two completions a prompt to compare them, "
            f"got shape {rewards.shape}; sample more completions"
        )
    return jax.lax.stop_gradient(rewards.astype(jnp.float32))


def group_centred(rewards: Float[Array, "*G K"]) -> Float[Array, "*G K"]:
    """Rewards less their group's mean (Dr. GRPO).

    ``A_k = r_k − mean_j r_j``. Its policy gradient is ``(K − 1)/K`` times that
    of the expected reward: unbiased in direction.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2.

    Reference:
      Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783, §3.

    Example:
      >>> print(group_centred(jnp.array([1.0, 0.0, 0.0, 1.0])))
      [ 0.5 -0.5 -0.5  0.5]
    """
    rewards = _at_least_two(rewards)
    return rewards - jnp.mean(rewards, axis=-1, keepdims=True)


def group_standardised(
    rewards: Float[Array, "*G K"], *, eps: float = 1e-4, ddof: int = 1
) -> Float[Array, "*G K"]:
    """Rewards standardised within their group (GRPO).

    ``A_k = (r_k − mean) / (std + eps)``, zero for a group of equal rewards.
    Dividing by the sampled deviation weighs a prompt of success rate p by
    ``1/√(p(1−p))``: the objective is not the expected reward.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      eps: added to the deviation; positive.
      ddof: 1 for the sample deviation (TRL, verl), 0 for the population's.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2, ``eps`` is not positive, ``ddof`` not 0 or 1.

    Reference:
      Shao et al., "DeepSeekMath", arXiv 2402.03300, §4.1.2.

    Example:
      >>> print(group_standardised(jnp.array([1.0, 0.0]), ddof=0, eps=1e-9))
      [ 1. -1.]
    """
    if eps <= 0:
        raise InputError(f"eps must be positive, got {eps}")
    if ddof not in (0, 1):
        raise InputError(f"ddof must be 0 or 1, got {ddof}")
    centred = group_centred(rewards)
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    deviation = jnp.sqrt(variance / (rewards.shape[-1] - ddof))
    # Equal rewards whose mean rounds would give rounding noise over eps.
    equal = jnp.ptp(rewards.astype(jnp.float32), axis=-1, keepdims=True) == 0
    return jax.lax.stop_gradient(jnp.where(equal, 0, centred / (deviation + eps)))


def leave_one_out(rewards: Float[Array, "*G K"]) -> Float[Array, "*G K"]:
    """Rewards less the mean of the group's other ones (RLOO).

    ``A_k = r_k − (1/(K−1)) Σ_{j≠k} r_j``. The baseline does not depend on the
    completion, so the policy gradient is exactly that of the expected reward.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2.

    Reference:
      Ahmadian et al., "Back to Basics", arXiv 2402.14740, eq. 8.

    Example:
      >>> print(leave_one_out(jnp.array([3.0, 0.0, 0.0, 1.0])))
      [ 2.6666667 -1.3333334 -1.3333334  0.       ]
    """
    count = rewards.shape[-1]
    return group_centred(rewards) * (count / max(count - 1, 1))


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
    start = jnp.zeros(values.shape[:-1], jnp.float32)
    _, sums = jax.lax.scan(earlier, start, time_first, reverse=True)
    return jnp.moveaxis(sums, 0, -1)
