"""Losses of reward models; ``models.heads`` has the models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, not_negative, positive
from alignax.numerics import as_float


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
    positive(threshold=threshold)
    d = as_float(rewards_a) - as_float(rewards_b)
    theta = jnp.asarray(threshold, d.dtype)
    first, second = jax.nn.softplus(theta - d), jax.nn.softplus(theta + d)
    # −log(e^{2θ} − 1), for θ of any size.
    tie = first + second - 2 * theta - jnp.log(-jnp.expm1(-2 * theta))
    outcome = as_float(outcome)
    return jnp.where(outcome > 0.75, first, jnp.where(outcome < 0.25, second, tie))


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
