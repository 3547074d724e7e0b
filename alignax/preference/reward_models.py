"""Losses of reward models; ``models.heads`` has the models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.numerics import as_float
from alignax.preference._checks import Strength, not_negative
from alignax.types import InputError


def bradley_terry_loss(
    rewards_w: Float[Array, "*batch"],
    rewards_l: Float[Array, "*batch"],
    margin: Float[Array, "*batch"] | Float[Array, ""] | float = 0.0,
    *,
    centring: Strength = 0.0,
) -> Float[Array, "*batch"]:
    """``−log σ(r(w) − r(l) − m) + λ (r(w) + r(l))²``.

    Rewards are learned up to a constant a prompt; a little λ fixes it near 0.

    Args:
      rewards_w: ``[...]`` of the preferred completions, differentiated.
      rewards_l: ``[...]`` of the others.
      margin: ``[...]`` or a number: how clear each preference is.
      centring: λ, not negative.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``centring`` is negative.

    Reference:
      Bradley and Terry, "Rank analysis of incomplete block designs", 1952; Touvron et
      al., "Llama 2", arXiv 2307.09288, eq. 2 (margins).

    Example:
      >>> print(bradley_terry_loss(*jnp.zeros((2, 1))).round(4))
      [0.6931]
    """
    not_negative(centring=centring)
    w, l = as_float(rewards_w), as_float(rewards_l)
    return jax.nn.softplus(-(w - l - margin)) + centring * jnp.square(w + l)


def ties_loss(
    rewards_a: Float[Array, "*batch"],
    rewards_b: Float[Array, "*batch"],
    outcome: Float[Array, "*batch"],
    *,
    threshold: Strength,
) -> Float[Array, "*batch"]:
    """Bradley-Terry with ties, after Rao and Kupper.

    ``P(a ≻ b) = σ(d − θ)``, ``P(b ≻ a) = σ(−d − θ)``, and a tie with what is left,
    ``(e^{2θ} − 1) σ(d − θ) σ(−d − θ)``; ``d = r(a) − r(b)``.

    Args:
      rewards_a: ``[...]``, differentiated.
      rewards_b: ``[...]``, differentiated.
      outcome: ``[...]``: 1 where a was preferred, 0 where b, ½ for a tie.
      threshold: θ, positive: how near rewards must be to be called equal.

    Returns:
      ``[...]``, the negative log-likelihood.

    Raises:
      InputError: ``threshold`` is not positive.

    Reference:
      Rao and Kupper, "Ties in paired-comparison experiments", 1967; Liu et al.,
      "Reward modeling with ties", arXiv 2410.05328.

    Example:
      >>> zero, tie = jnp.zeros(1), jnp.array([0.5])
      >>> print(jnp.exp(-ties_loss(zero, zero, tie, threshold=1.0)).round(4))
      [0.4621]
    """
    if isinstance(threshold, (int, float)) and not threshold > 0:
        raise InputError(f"threshold must be positive, got {threshold}")
    d = as_float(rewards_a) - as_float(rewards_b)
    theta = jnp.asarray(threshold, d.dtype)
    first, second = jax.nn.softplus(theta - d), jax.nn.softplus(theta + d)
    # −log(e^{2θ} − 1), for θ of any size.
    tie = first + second - 2 * theta - jnp.log(-jnp.expm1(-2 * theta))
    outcome = as_float(outcome)
    return jnp.where(outcome > 0.75, first, jnp.where(outcome < 0.25, second, tie))


def preference_model_loss(
    logits_ab: Float[Array, "*batch"],
    logits_ba: Float[Array, "*batch"],
    preferences: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Cross-entropy of a model that reads both completions, whatever their order.

    ``P(a ≻ b) = σ(f(a, b) − f(b, a))``: antisymmetric by construction, and free to be
    intransitive, as no reward is.

    Args:
      logits_ab: ``[...]``, f with a first, differentiated.
      logits_ba: ``[...]``, f with b first, differentiated.
      preferences: ``[...]``, probability or label of a being preferred.

    Returns:
      ``[...]``.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §3.

    Example:
      >>> print(preference_model_loss(*jnp.zeros((2, 1)), jnp.ones(1)).round(4))
      [0.6931]
    """
    logit = as_float(logits_ab) - as_float(logits_ba)
    return binary_feedback_loss(logit, preferences)


def binary_feedback_loss(
    logits: Float[Array, "*batch"], reactions: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of users' yes or no (P[Love]); at best the rate of yes.

    Args:
      logits: ``[...]``, differentiated.
      reactions: ``[...]``, 1, 0 or a rate; no gradient.

    Returns:
      ``[...]``.

    Reference:
      Han et al., "Reinforcement learning from user feedback", arXiv 2505.14946.

    Example:
      >>> print(binary_feedback_loss(jnp.zeros(1), jnp.ones(1)).round(4))
      [0.6931]
    """
    logits = as_float(logits)
    rate = jax.lax.stop_gradient(as_float(reactions))
    return jax.nn.softplus(logits) - rate * logits


def process_reward_loss(
    logits: Float[Array, "*batch T"],
    labels: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
) -> Float[Array, "*batch T"]:
    """Cross-entropy at the end of every step of a solution.

    Args:
      logits: ``[..., T]``, differentiated.
      labels: ``[..., T]``, 1 where the step is right, or its estimated rate.
      mask: ``[..., T]``, True on the last token of a labelled step.

    Returns:
      ``[..., T]``, 0 elsewhere.

    Reference:
      Lightman et al., "Let's verify step by step", arXiv 2305.20050.

    Example:
      >>> mask = jnp.array([True, False])
      >>> print(process_reward_loss(*jnp.zeros((2, 2)), mask).round(4))
      [0.6931 0.]
    """
    logits, labels = reduce.masked(logits, mask), reduce.masked(labels, mask)
    return reduce.masked(binary_feedback_loss(logits, labels), mask)


def process_score(
    logits: Float[Array, "*batch T"], mask: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
    """A solution's log-probability that all its steps are right: ``Σ log σ``.

    Args:
      logits: ``[..., T]``.
      mask: ``[..., T]``, True on the last token of a step.

    Returns:
      ``[...]``, 0 without a step.

    Reference:
      Lightman et al., arXiv 2305.20050, §2.6.

    Example:
      >>> print(process_score(jnp.zeros(2), jnp.array([True, True])).round(4))
      -1.3863
    """
    logits = reduce.masked(logits, mask)
    return jnp.sum(reduce.masked(jax.nn.log_sigmoid(logits), mask), axis=-1)
