"""Which prompts and completions are kept, and how often.

Shapes stay as they are: what is dropped gets a False or a weight of 0, for the mask
or the token weight, and the reduction's denominator follows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.numerics import as_float
from alignax.types import InputError


def mixed_groups(correct: Bool[Array, "*G K"]) -> Bool[Array, "*G"]:
    """Prompts with right and wrong completions: dynamic sampling (DAPO).

    The others have no advantage to give. With centred rewards and a constant
    denominator dropping them only rescales the expected gradient.

    Args:
      correct: ``[..., K]``; judge the outcome, not the shaped reward.

    Returns:
      ``[...]``, False for prompts to replace.

    Reference:
      Yu et al., "DAPO", arXiv 2503.14476, eq. 11.

    Example:
      >>> print(mixed_groups(jnp.array([[True, False], [True, True]])))
      [ True False]
    """
    return jnp.any(correct, axis=-1) & ~jnp.all(correct, axis=-1)


def difficulty_band(
    accuracy: Float[Array, "*G"], *, low: float = 0.25, high: float = 0.75
) -> Bool[Array, "*G"]:
    """Prompts neither too easy nor too hard: balanced online difficulty filtering.

    Args:
      accuracy: ``[...]``, the share of right completions.
      low: kept from here,
      high: to here; 0 ≤ low < high ≤ 1.

    Returns:
      ``[...]``, False for prompts to replace.

    Raises:
      InputError: the bounds are not ``0 ≤ low < high ≤ 1``.

    Reference:
      Bae et al., "Online difficulty filtering for reasoning oriented reinforcement
      learning", arXiv 2504.03380, §3 (the bounds are not the paper's).

    Example:
      >>> print(difficulty_band(jnp.array([0.0, 0.5, 1.0])))
      [False  True False]
    """
    if not 0 <= low < high <= 1:
        raise InputError(f"need 0 <= low < high <= 1, got low={low}, high={high}")
    return (accuracy >= low) & (accuracy <= high)


def best_weights(rewards: Float[Array, "*G K"]) -> Float[Array, "*G K"]:
    """All weight on the best completion of each prompt (BoN).

    Args:
      rewards: ``[..., K]``.

    Returns:
      ``[..., K]`` float32, adding up to 1; of equal best ones the first.

    Reference:
      Zhang et al., "Policy filtration for RLHF" (PF-PPO), arXiv 2409.06957, §4.

    Example:
      >>> print(best_weights(jnp.array([0.2, 2.0, 0.5])))
      [0. 1. 0.]
    """
    best = jnp.argmax(_constant(rewards), axis=-1)
    return jax.nn.one_hot(best, rewards.shape[-1])


def best_worst_weights(rewards: Float[Array, "*G K"]) -> Float[Array, "*G K"]:
    """Half of the weight on the best, half on the worst completion (BW).

    Rewards are most to be trusted at both ends of their ranks.

    Args:
      rewards: ``[..., K]``.

    Returns:
      ``[..., K]`` float32, adding up to 1.

    Reference:
      Zhang et al., arXiv 2409.06957, §4 (verl's port ranks the whole batch).

    Example:
      >>> print(best_worst_weights(jnp.array([0.2, 2.0, 0.5])))
      [0.5 0.5 0.]
    """
    return (best_weights(rewards) + best_weights(-rewards)) / 2


def widest_subset(
    advantages: Float[Array, "*B N"], *, size: int
) -> Bool[Array, "*B N"]:
    """The ``size`` values of the largest variance (D3S, samples).

    The optimum is always the k largest and the ``size − k`` smallest for some k, so
    that all of them are compared from prefix sums.

    Args:
      advantages: ``[..., N]``, standardised within their groups first.
      size: from 1 to N; of a schedule, host-side, as it is a shape.

    Returns:
      ``[..., N]``, True on the kept ones.

    Raises:
      InputError: ``size`` is not from 1 to N.

    Reference:
      "D3S: Dynamic dual-level down-sampling", arXiv 2509.22115, eq. 5.

    Example:
      >>> print(widest_subset(jnp.array([1.2, 0.3, -0.1, -0.4, -1.0]), size=3))
      [ True False False  True  True]
    """
    count = advantages.shape[-1]
    if not 1 <= size <= count:
        raise InputError(f"size must be from 1 to {count}, got {size}")
    values = _constant(advantages)
    values = values - jnp.mean(values, axis=-1, keepdims=True)
    order = jnp.argsort(-values, axis=-1)
    ranked = jnp.take_along_axis(values, order, axis=-1)

    def ends(x):
        """Sums of the k first and the size − k last, for k = 0 … size."""
        start = jnp.zeros((*x.shape[:-1], 1))
        sums = jnp.concatenate([start, jnp.cumsum(x, axis=-1)], axis=-1)
        last = sums[..., -1:] - sums[..., count - size :]
        return sums[..., : size + 1] + last

    variance = ends(ranked**2) / size - (ends(ranked) / size) ** 2
    best = jnp.argmax(variance, axis=-1)[..., None]
    rank = jnp.argsort(order, axis=-1)
    return (rank < best) | (rank >= count - size + best)


def _constant(x: Array) -> Array:
    return jax.lax.stop_gradient(as_float(x))
