"""Baselines and scales among the K completions of a prompt.

Every function takes rewards ``[..., K]`` and returns advantages of the same shape,
float32, without gradient; a group of equal rewards has advantages of zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.numerics import as_float
from alignax.types import InputError


def at_least_two(rewards: Array) -> Array:
    if rewards.shape[-1] < 2:
        raise InputError(
            "rewards must hold at least two completions a prompt to compare them, "
            f"got shape {rewards.shape}; sample more completions"
        )
    return jax.lax.stop_gradient(as_float(rewards))


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise InputError(f"eps must be positive, got {eps}")


def _check_ddof(ddof: int) -> None:
    if ddof not in (0, 1):
        raise InputError(f"ddof must be 0 or 1, got {ddof}")


def group_centred(
    rewards: Float[Array, "*G K"], where: Bool[Array, "*G K"] | None = None
) -> Float[Array, "*G K"]:
    """Rewards less their group's mean (Dr. GRPO).

    ``A_k = r_k − mean_j r_j``. Its policy gradient is ``(K − 1)/K`` times that
    of the expected reward: unbiased in direction.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      where: ``[..., K]``, whose mean is the baseline (default: all): the policy's
        own completions and not a teacher's (RL-PLUS), those that the same version
        of a judge has scored (MPO).

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2.

    Reference:
      Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783, §3.

    Example:
      >>> print(group_centred(jnp.array([1.0, 0.0, 0.0, 1.0])))
      [0.5 -0.5 -0.5 0.5]
    """
    rewards = at_least_two(rewards)
    return rewards - _mean(rewards, where)


def _mean(rewards: Array, where: Array | None) -> Array:
    if where is None:
        return jnp.mean(rewards, axis=-1, keepdims=True)
    total = jnp.sum(reduce.masked(rewards, where), axis=-1, keepdims=True)
    count = jnp.sum(where, axis=-1, keepdims=True, dtype=jnp.float32)
    return reduce.divide(total, count)


def group_standardised(
    rewards: Float[Array, "*G K"],
    where: Bool[Array, "*G K"] | None = None,
    *,
    eps: float = 1e-4,
    ddof: int = 1,
) -> Float[Array, "*G K"]:
    """Rewards standardised within their group (GRPO).

    ``A_k = (r_k − mean) / (std + eps)``, zero for a group of equal rewards.
    Dividing by the sampled deviation weighs a prompt of success rate p by
    ``1/√(p(1−p))``: the objective is not the expected reward.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      where: ``[..., K]``, whose mean and deviation are used (default: all).
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
      [1. -1.]
    """
    _check_eps(eps)
    _check_ddof(ddof)
    values = at_least_two(rewards)
    counted = jnp.ones(values.shape, bool) if where is None else where
    centred = values - _mean(values, where)
    inside = jnp.where(counted, centred, 0)
    variance = jnp.sum(jnp.square(inside), axis=-1, keepdims=True)
    count = jnp.sum(counted, axis=-1, keepdims=True) - ddof
    deviation = jnp.sqrt(variance / jnp.maximum(count, 1))
    # Equal rewards whose mean rounds would give rounding noise over eps.
    highest = jnp.max(jnp.where(counted, values, -jnp.inf), axis=-1, keepdims=True)
    lowest = jnp.min(jnp.where(counted, values, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(highest > lowest, centred / (deviation + eps), 0)


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
      [2.6667 -1.3333 -1.3333 0.]
    """
    count = rewards.shape[-1]
    return group_centred(rewards) * (count / max(count - 1, 1))


def greedy_centred(
    rewards: Float[Array, "*G K"], greedy: Float[Array, "*G"]
) -> Float[Array, "*G K"]:
    """Rewards less that of the greedy completion (ReMax).

    ``A_k = r_k − r(greedy)``. The baseline is a function of the prompt alone, so
    the policy gradient is exactly that of the expected reward, with K = 1 too.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      greedy: ``[...]``, the reward of each prompt's greedy completion.

    Returns:
      ``[..., K]`` float32, without gradient.

    Reference:
      Li et al., "ReMax", arXiv 2310.10505, eq. 6.

    Example:
      >>> print(greedy_centred(jnp.array([[1.0, 0.0]]), jnp.array([1.0])))
      [[0. -1.]]
    """
    difference = as_float(rewards) - as_float(greedy)[..., None]
    return jax.lax.stop_gradient(difference)


def batch_standardised(
    rewards: Float[Array, "G K"], *, eps: float = 1e-4, ddof: int = 1
) -> Float[Array, "G K"]:
    """Rewards less their group's mean, over the deviation of the whole batch.

    ``A = (r − mean_group) / (std_batch + eps)``: one scale for all prompts, so that
    the direction stays that of the centred rewards (TRL's ``scale_rewards=batch``).

    Args:
      rewards: ``[G, K]``, the K completions of one prompt last.
      eps: added to the deviation; positive.
      ddof: 1 for the sample deviation, 0 for the population's.

    Returns:
      ``[G, K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2, ``eps`` is not positive, ``ddof`` not 0 or 1.

    Reference:
      Liu et al., "Part I: Tricks or traps?", arXiv 2508.08221, §4.

    Example:
      >>> rewards = jnp.array([[1.0, 0.0], [3.0, 3.0]])
      >>> print(batch_standardised(rewards, ddof=0))
      [[0.3849 -0.3849]
       [0. 0.]]
    """
    _check_eps(eps)
    _check_ddof(ddof)
    centred = group_centred(rewards)
    overall = jnp.std(jax.lax.stop_gradient(as_float(rewards)), ddof=ddof)
    equal = jnp.ptp(rewards, axis=-1, keepdims=True) == 0
    return jnp.where(equal, 0, centred / (overall + eps))


def decoupled_standardised(
    rewards: Float[Array, "G K R"], weights: Float[Array, " R"], *, eps: float = 1e-4
) -> Float[Array, "G K"]:
    """Several rewards, each standardised before they are added (GDPO).

    Each reward is standardised within the group, the weighted sum over the batch:
    rescaling one reward changes nothing, where the standardised sum would follow
    the largest one.

    Args:
      rewards: ``[G, K, R]``, R rewards of each completion.
      weights: ``[R]``.
      eps: added to the deviations; positive.

    Returns:
      ``[G, K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2 or ``eps`` is not positive.

    Reference:
      "GDPO: Group reward-decoupled normalization policy optimization",
      arXiv 2601.05242.

    Example:
      >>> rewards = jnp.array([[[1.0, 10.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
      >>> print(decoupled_standardised(rewards, jnp.ones(2)))
      [[1.0954 -1.0954]
       [0.5477 -0.5477]]
    """
    apart = group_standardised(jnp.moveaxis(rewards, -1, 0), eps=eps)
    weights = jax.lax.stop_gradient(as_float(weights))
    summed = jnp.einsum("rgk,r->gk", apart, weights)
    flat = group_standardised(summed.reshape(-1), eps=eps)
    return flat.reshape(summed.shape)


def hardness_scaled(
    rewards: Float[Array, "*G K"], *, slope: float = -0.256, constant: float = 1.256
) -> Float[Array, "*G K"]:
    """Centred rewards, heavier for harder prompts (Confucius3-Math's PSHW).

    ``A = (r − μ) · (slope · μ + constant)`` for rewards of ±1 with group mean μ.

    Args:
      rewards: ``[..., K]``, each −1 or 1.
      slope: negative to favour prompts that are mostly failed.
      constant: larger than ``|slope|``, so that no weight is negative.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2 or ``constant`` is not above ``|slope|``.

    Reference:
      Wu et al., "Confucius3-Math", arXiv 2506.18330, policy-specific hardness
      weighting.

    Example:
      >>> rewards = jnp.array([1.0, -1, -1, -1, -1, -1, -1, -1])
      >>> print(hardness_scaled(rewards)[:2])
      [2.534 -0.362]
    """
    if not constant > abs(slope):
        raise InputError(
            f"constant must be above |slope| for positive weights, got constant "
            f"{constant} and slope {slope}"
        )
    centred = group_centred(rewards)
    mean = _mean(at_least_two(rewards), None)
    return centred * (slope * mean + constant)


def mean_normalised(
    rewards: Float[Array, "*G K"], *, lowest: float = 0.0, failed: float = 0.0
) -> Float[Array, "*G K"]:
    """Rewards less their group's mean, over it (MaxRL): ``(r − m)/(m − lowest)``.

    For rewards of two values, ``lowest`` and one more, K completions and a success
    rate p, the mean over completions of ``A ∇log π`` has the expectation
    ``∇ Σ_{k≤T} (1/k) pass@k``, which goes to ``∇ log p``. T is K − 1 where groups
    without a success are dropped (``failed=0``, as in the official code and
    prime-rl), and K where their completions have ``failed=−1``, a baseline of the
    mean score at work in every group.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      lowest: the reward of a failure: −1 for rewards of ±1, which by the mean alone
        would have their signs turned where most fail.
      failed: the advantage in a group whose mean is ``lowest`` or, for rewards that
        are not of two values, below.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2.

    Reference:
      Tajwar et al., "Maximum likelihood reinforcement learning", arXiv 2602.02710.

    Example:
      >>> print(mean_normalised(jnp.array([1.0, 0.0, 0.0, 0.0])))
      [3. -1. -1. -1.]
    """
    mean = _mean(at_least_two(rewards), None)
    some = mean > lowest
    scale = jnp.where(some, mean - lowest, 1)
    return jnp.where(some, group_centred(rewards) / scale, failed)


def best_less_second(rewards: Float[Array, "*G K"]) -> Float[Array, "*G K"]:
    """Only the best completion gets an advantage: its lead over the second.

    The leave-one-out form of the objective ``E max_k r_k`` (pass@K).

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.

    Returns:
      ``[..., K]`` float32, without gradient; of equal best ones, the first.

    Raises:
      InputError: K is less than 2.

    Reference:
      Tang et al., "Optimizing language models for inference time objectives",
      arXiv 2503.19595 (verl's ``grpo_passk``).

    Example:
      >>> print(best_less_second(jnp.array([0.9, 0.5, 0.2, 0.1])))
      [0.4 0. 0. 0.]
    """
    rewards = at_least_two(rewards)
    top, index = jax.lax.top_k(rewards, 2)
    position = jnp.broadcast_to(jnp.arange(rewards.shape[-1]), rewards.shape)
    winner = position == index[..., :1]
    return jnp.where(winner, top[..., :1] - top[..., 1:], 0)
