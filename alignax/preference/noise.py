"""Noise: what a loss makes of labels that may be wrong, or are not 0 or 1.

A link's ``ℓ(m)`` becomes ``a ℓ(m) + b ℓ(−m)``: ``label_smoothed`` with weights
``(1 − ε, ε)``, ``debiased`` with ``((1 − ε)/(1 − 2ε), −ε/(1 − 2ε))``, ``soft_labelled``
with ``(p, 1 − p)``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, noise_rate
from alignax.numerics import as_float

Link = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def label_smoothed(
    link: Link, margin: Float[Array, "*batch"], *, noise: Strength
) -> Float[Array, "*batch"]:
    """``(1 − ε) ℓ(m) + ε ℓ(−m)``: the loss expected if labels flip (conservative DPO).

    The logistic's is smallest at ``m = logit(1 − ε)``, the square's at
    ``(1 − 2ε) target``: no margin grows without end.

    Args:
      link: ``ℓ``, such as ``logistic_link``.
      margin: ``[...]``.
      noise: ε, the share of wrong labels, in [0, 0.5).

    Returns:
      ``[...]``.

    Raises:
      InputError: ``noise`` is not in [0, 0.5).

    Reference:
      Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.

    Example:
      >>> from alignax.preference.links import hinge_link
      >>> print(label_smoothed(hinge_link, jnp.array(1.0), noise=0.25))
      0.5
    """
    noise_rate(noise)
    return (1 - noise) * link(margin) + noise * link(-margin)


def debiased(
    link: Link, margin: Float[Array, "*batch"], *, noise: Strength
) -> Float[Array, "*batch"]:
    """``((1 − ε) ℓ(m) − ε ℓ(−m)) / (1 − 2ε)``: robust DPO.

    Value: over labels flipped with probability ε, unbiased for ``ℓ(m)`` under the
      clean one. Of one pair it is unbounded below.
    Gradient: of that expectation; unbiased for the clean loss's.

    Args:
      link: ``ℓ``, such as ``logistic_link``.
      margin: ``[...]``.
      noise: ε, the share of wrong labels, in [0, 0.5).

    Returns:
      ``[...]``.

    Raises:
      InputError: ``noise`` is not in [0, 0.5).

    Reference:
      Chowdhury, Kini and Natarajan, "Provably robust DPO: aligning language models
      with noisy feedback", arXiv 2403.00409, eq. 10.

    Example:
      >>> from alignax.preference.links import hinge_link
      >>> print(debiased(hinge_link, jnp.array(1.0), noise=0.25))
      -1.0
    """
    noise_rate(noise)
    right, wrong = link(margin), link(-margin)
    return right + noise / (1 - 2 * noise) * (right - wrong)


def soft_labelled(
    link: Link, margin: Float[Array, "*batch"], preferences: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``p ℓ(m) + (1 − p) ℓ(−m)``: labels that are probabilities.

    Args:
      link: ``ℓ``, such as ``logistic_link``.
      margin: ``[...]``.
      preferences: ``[...]``, p that the first completion is preferred; no gradient.

    Returns:
      ``[...]``.

    Example:
      >>> from alignax.preference.links import hinge_link
      >>> print(soft_labelled(hinge_link, jnp.array(1.0), jnp.array(0.5)))
      1.0
    """
    p = jax.lax.stop_gradient(as_float(preferences))
    return p * link(margin) + (1 - p) * link(-margin)


def reward_relabelled(
    rewards_w: Float[Array, "*batch"], rewards_l: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch 2"]]:
    """Reward-augmented data: each pair as two, with a goal in the prompt.

    For a goal g the reward is ``−(g − r)²``: under ``g = r_w`` the preferred completion
    stays so, under ``g = r_l`` the other one is what was asked for.

    Args:
      rewards_w: ``[...]``, quality of the preferred completions.
      rewards_l: ``[...]`` of the others.

    Returns:
      goals ``[..., 2]``, and the sign ``[..., 2]`` of the margin under each: 1 keeps
      the pair, −1 swaps it, 0 (equal rewards) says nothing.

    Reference:
      Zhang et al., "Reward-augmented data enhances direct preference alignment of
      LLMs", arXiv 2410.08067, §3.

    Example:
      >>> goals, sign = reward_relabelled(jnp.array(9.0), jnp.array(4.0))
      >>> print(goals, sign)
      [9. 4.] [1. -1.]
    """
    w, l = as_float(rewards_w), as_float(rewards_l)
    goals = jnp.stack([w, l], axis=-1)
    off_w = jnp.square(goals - w[..., None])
    off_l = jnp.square(goals - l[..., None])
    return jax.lax.stop_gradient((goals, jnp.sign(off_l - off_w)))
