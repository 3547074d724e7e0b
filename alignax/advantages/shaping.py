"""Rewards from rewards: several objectives, consistency, contrast, running scales."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import reduce
from alignax.numerics import as_float
from alignax.types import InputError, Stateful


def _constant(x: Array) -> Array:
    return jax.lax.stop_gradient(as_float(x))


def multiplied_rewards(
    base: Float[Array, "*B"], factors: Float[Array, "*B N"]
) -> Float[Array, "*B"]:
    """``base · Π factors``: penalties that no other reward can buy back (CaRL).

    Args:
      base: ``[...]``, the objective.
      factors: ``[..., N]``, clipped to [0, 1]: 1 for no offence.

    Returns:
      ``[...]`` float32, without gradient.

    Reference:
      Jaeger et al., "CaRL: Learning scalable planning policies with simple rewards",
      arXiv 2504.17838, eq. 1.

    Example:
      >>> print(multiplied_rewards(jnp.array([10.0]), jnp.array([[1.0, 0.5]])))
      [5.]
    """
    return _constant(base) * jnp.prod(jnp.clip(_constant(factors), 0, 1), axis=-1)


def weighted_sum(
    rewards: Float[Array, "*B R"], weights: Float[Array, " R"]
) -> Float[Array, "*B"]:
    """``Σ_r w_r R_r``: several objectives as one reward (RLUF).

    Args:
      rewards: ``[..., R]``.
      weights: ``[R]``.

    Returns:
      ``[...]`` float32, without gradient.

    Reference:
      Han et al., "Reinforcement learning from user feedback", arXiv 2505.14946.

    Example:
      >>> print(weighted_sum(jnp.array([[1.0, 0.5]]), jnp.array([1.0, 0.2])))
      [1.1]
    """
    return jnp.einsum("...r,r->...", _constant(rewards), _constant(weights))


def consistency_bonus(
    accuracy: Float[Array, "*G K"],
    confidence: Float[Array, "*G K"],
    *,
    margin: float = 0.01,
    scale: float = 1.0,
    floor: float = 0.1,
    upper: float = 0.95,
) -> Float[Array, "*G K"]:
    """A bonus for right answers that the reasoning makes likely (GRPO-CARE).

    Among the right ones (accuracy above ``floor`` and not below the group's mean),
    those whose confidence reaches the mean of them less ``margin`` get
    ``scale · accuracy``.

    Args:
      accuracy: ``[..., K]``, the outcome's reward.
      confidence: ``[..., K]``, the slow reference's mean probability of the answer's
        tokens given the reasoning; capped at ``upper``.
      margin: not negative.
      scale: of the bonus.
      floor: accuracy below which nothing is right.
      upper: the most confidence that counts.

    Returns:
      ``[..., K]`` float32, to add to the reward.

    Raises:
      InputError: ``margin`` is negative.

    Reference:
      Chen et al., "GRPO-CARE", arXiv 2506.16141, eqs. 5-7.

    Example:
      >>> accuracy = jnp.array([1.0, 1.0, 1.0, 0.0])
      >>> confidence = jnp.array([0.9, 0.6, 0.5, 1.0])
      >>> print(consistency_bonus(accuracy, confidence))
      [1. 0. 0. 0.]
    """
    if margin < 0:
        raise InputError(f"margin must not be negative, got {margin}")
    accuracy = _constant(accuracy)
    confidence = jnp.minimum(_constant(confidence), upper)
    mean = jnp.mean(accuracy, axis=-1, keepdims=True)
    right = (accuracy > floor) & (accuracy >= mean)
    total = jnp.sum(reduce.masked(confidence, right), axis=-1, keepdims=True)
    count = jnp.sum(right, axis=-1, keepdims=True, dtype=jnp.float32)
    threshold = reduce.divide(total, count) - margin
    return jnp.where(right & (confidence >= threshold), scale * accuracy, 0)


def contrastive_rewards(
    queries: Float[Array, "G D"],
    documents: Float[Array, "G K D"],
    negatives: Float[Array, "G D"],
    *,
    temperature: float = 0.1,
    cluster: float = 0.2,
    cross: float = 0.2,
) -> Float[Array, "G K"]:
    """Rewards of representations: near the query, far from what is not (GRACE).

    ``[cos(q, m_i) − cos(q, n) + cluster · mean_{j≠i} cos(m_i, m_j) − cross ·
    mean_{other groups} max_j cos(q, m_j)] / temperature``.

    Args:
      queries: ``[G, D]``.
      documents: ``[G, K, D]``, of K sampled rationales.
      negatives: ``[G, D]``.
      temperature: positive; the class' default in the official code is 0.7.
      cluster: weight of the agreement within the group.
      cross: weight of the likeness to other groups.

    Returns:
      ``[G, K]`` float32, without gradient; a zero vector has cosine 0 with all.

    Raises:
      InputError: ``temperature`` is not positive.

    Reference:
      Sun et al., "GRACE: Generative representation learning via contrastive policy
      optimization", arXiv 2510.04506, eq. 6.

    Example:
      >>> query, negative = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> documents = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
      >>> print(contrastive_rewards(query, documents, negative))
      [[8.4853 11.4142]]
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")

    def unit(x):
        x = _constant(x)
        norm = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
        return reduce.divide(x, jnp.broadcast_to(norm, x.shape))

    q, m, n = unit(queries), unit(documents), unit(negatives)
    groups, count = m.shape[:2]
    positive = jnp.einsum("gd,gkd->gk", q, m)
    negative = jnp.einsum("gd,gd->g", q, n)[:, None]
    alike = jnp.einsum("gkd,gjd->gkj", m, m)
    others = jnp.sum(alike, axis=-1) - jnp.einsum("gkd,gkd->gk", m, m)
    agreement = others / max(count - 1, 1)
    nearest = jnp.max(jnp.einsum("gd,hkd->ghk", q, m), axis=-1)
    confusion = (jnp.sum(nearest, axis=1) - jnp.diagonal(nearest)) / max(groups - 1, 1)
    total = positive - negative + cluster * agreement - cross * confusion[:, None]
    return total / temperature


class Moments(NamedTuple):
    """Running mean, population variance and count of all values so far."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    count: Float[Array, ""]


def running_moments() -> Stateful:
    """Moments of a stream, whatever the sizes of its parts.

    Args: none.

    Returns:
      ``init() -> Moments`` and ``update(state, values, mask=None) -> Moments``: values
      ``[...]``, True in ``mask`` where one counts. Of the implicit rewards
      ``β log π/ρ`` the mean is BCO's shift.

    Reference:
      Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
      computing sample variances", 1979; Jung et al., "Binary classifier optimization
      for large language model alignment", arXiv 2404.04656, §3.3.

    Example:
      >>> moments = running_moments()
      >>> state = moments.update(moments.init(), jnp.array([1.0, 3.0]))
      >>> print(state.mean, state.variance)
      2.0 1.0
    """

    def init():
        return Moments(jnp.float32(0), jnp.float32(0), jnp.float32(0))

    def update(state, values, mask=None):
        values = _constant(values)
        mask = jnp.ones(values.shape, bool) if mask is None else mask
        size = jnp.sum(mask, dtype=jnp.float32)
        mean = reduce.divide(jnp.sum(reduce.masked(values, mask)), size)
        squares = jnp.sum(reduce.masked(values - mean, mask) ** 2)
        total = state.count + size
        difference = mean - state.mean
        share = reduce.divide(size, total)
        spread = state.variance * state.count + squares
        return Moments(
            mean=state.mean + difference * share,
            variance=reduce.divide(spread, total)
            + difference**2 * share * reduce.divide(state.count, total),
            count=total,
        )

    return Stateful(init, update)


def running_standardised(
    values: Float[Array, "*B"],
    state: Moments,
    *,
    clip: float = 10.0,
    centre: bool = True,
) -> Float[Array, "*B"]:
    """Rewards by the moments of all rewards so far, and clipped (PPO-max).

    ``clip((r − mean) / std, ±clip)`` with the sample deviation.

    Args:
      values: ``[...]`` rewards.
      state: the moments, this batch included.
      clip: positive.
      centre: take the mean off; the released script of MOSS-RLHF does not.

    Returns:
      ``[...]`` float32, without gradient; centred only where there is no spread.

    Raises:
      InputError: ``clip`` is not positive.

    Reference:
      Zheng et al., "Secrets of RLHF in large language models part I: PPO",
      arXiv 2307.04964, §5.3.

    Example:
      >>> values, moments = jnp.array([1.0, 3.0]), running_moments()
      >>> print(running_standardised(values, moments.update(moments.init(), values)))
      [-0.7071 0.7071]
    """
    if not clip > 0:
        raise InputError(f"clip must be positive, got {clip}")
    count = jnp.maximum(state.count, 2)
    deviation = jnp.sqrt(state.variance * count / (count - 1))
    deviation = jnp.where(deviation > 0, deviation, 1)
    values = _constant(values) - (state.mean if centre else 0)
    return jnp.clip(values / deviation, -clip, clip)
