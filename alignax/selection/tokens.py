"""Which tokens are trained: by score, by entropy, by who generated them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import reduce
from alignax.numerics import as_float
from alignax.types import InputError


def top_tokens(
    scores: Float[Array, "B T"], mask: Bool[Array, "B T"], *, fraction: float
) -> Bool[Array, "B T"]:
    """The ``max(1, ⌊fraction · tokens⌋)`` tokens of the highest score in the batch.

    Scores: the entropy (the 80/20 rule), ``|A| H`` (D3S), the covariance (KL-Cov).

    Args:
      scores: ``[B, T]``; no gradient.
      mask: ``[B, T]``, True on generated tokens.
      fraction: in (0, 1].

    Returns:
      ``[B, T]``, True on the chosen ones; of equal scores the earlier.

    Raises:
      InputError: ``fraction`` is outside (0, 1].

    Reference:
      Wang et al., "Beyond the 80/20 rule", arXiv 2506.01939, eq. 5; D3S,
      arXiv 2509.22115, eq. 7; Cui et al., arXiv 2505.22617, eq. 12.

    Example:
      >>> scores = jnp.array([[3.0, 1.0, 2.0, 9.0]])
      >>> mask = jnp.array([[True, True, True, False]])
      >>> print(top_tokens(scores, mask, fraction=0.7))
      [[ True False  True False]]
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction must be in (0, 1], got {fraction}")
    scores = jax.lax.stop_gradient(reduce.masked(scores, mask))
    # Masked tokens come last, whatever the scores.
    order = jnp.lexsort((-scores.reshape(-1), ~mask.reshape(-1)))
    rank = jnp.argsort(order).reshape(mask.shape)
    count = jnp.sum(mask)
    wanted = jnp.maximum(1, jnp.floor(fraction * count))
    return mask & (rank < wanted)


def calm_completions(
    entropy: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    initial: Float[Array, ""] | float,
    *,
    threshold: float = 0.6931472,
) -> Bool[Array, "*B"]:
    """Completions whose mean entropy has not risen above a threshold (GTPO).

    All are kept if the policy's entropy was above the threshold at the start.

    Args:
      entropy: ``[..., T]`` in nats.
      mask: ``[..., T]``, True on generated tokens.
      initial: the policy's mean entropy when training began.
      threshold: nats; the paper's log 2, 0.7 in the official code.

    Returns:
      ``[...]``, False for completions to drop.

    Raises:
      InputError: ``threshold`` is not positive.

    Reference:
      Simoni et al., "GTPO", arXiv 2508.03772, eq. 9.

    Example:
      >>> entropy, mask = jnp.array([[0.1, 0.2], [0.9, 1.0]]), jnp.ones((2, 2), bool)
      >>> print(calm_completions(entropy, mask, 0.3))
      [ True False]
    """
    if not threshold > 0:
        raise InputError(f"threshold must be positive, got {threshold}")
    total = jnp.sum(reduce.masked(entropy, mask), axis=-1)
    mean = reduce.divide(total, jnp.sum(mask, axis=-1, dtype=jnp.float32))
    return (mean <= threshold) | (jnp.asarray(initial) >= threshold)


def critical_tokens(
    key: Key[Array, ""],
    entropy: Float[Array, "*B T"],
    eligible: Bool[Array, "*B T"],
    *,
    k: int = 20,
) -> Int[Array, "*B"]:
    """A position to generate again from: one of the k most uncertain (CURE).

    The new prompt is the old one and the tokens before the position, which itself is
    drawn again. The group of the advantages are all of a prompt's completions, and
    the mask leaves the prefix out.

    Args:
      key: of the choice.
      entropy: ``[..., T]`` in nats.
      eligible: ``[..., T]``, True where a continuation may start: generated tokens,
        not the first, no special ones.
      k: how many to choose from, positive.

    Returns:
      ``[...]`` positions; 0, a fresh start, where none is eligible.

    Raises:
      InputError: ``k`` is not positive.

    Reference:
      Li et al., "CURE: Critical-token-guided re-concatenation", arXiv 2508.11016,
      §3.1.

    Example:
      >>> entropy, eligible = jnp.array([0.1, 2.0, 0.5]), jnp.array([False, True, True])
      >>> print(critical_tokens(jax.random.key(0), entropy, eligible, k=1))
      1
    """
    if k < 1:
        raise InputError(f"k must be positive, got {k}")
    k = min(k, entropy.shape[-1])
    scores = jnp.where(eligible, as_float(entropy), -jnp.inf)
    top, index = jax.lax.top_k(scores, k)
    logits = jnp.where(jnp.isfinite(top), 0.0, -jnp.inf)
    some = jnp.any(eligible, axis=-1)
    logits = jnp.where(some[..., None], logits, 0)
    choice = jax.random.categorical(key, logits)
    position = jnp.take_along_axis(index, choice[..., None], axis=-1)[..., 0]
    return jnp.where(some, position, 0)


def prefix_cuts(
    key: Key[Array, ""], lengths: Int[Array, "*B"], *, probability: float = 1.0
) -> Int[Array, "*B"]:
    """How much of a given completion to start from: resets to data (DR-PO).

    With ``probability`` a cut drawn evenly from 0 to the length, else 0. The prefix is
    the data's (DR-PO) or a guide policy's (RLGF's PPO++); the policy goes on from it.

    Args:
      key: of the draws.
      lengths: ``[...]`` tokens of the given completions.
      probability: of a reset, in [0, 1].

    Returns:
      ``[...]`` tokens to keep, from 0 to the length.

    Raises:
      InputError: ``probability`` is outside [0, 1].

    Reference:
      Chang et al., "Dataset reset policy optimization for RLHF", arXiv 2404.08495;
      Chang et al., "Learning to generate better than your LLM", arXiv 2306.11816.

    Example:
      >>> print(prefix_cuts(jax.random.key(0), jnp.array([0, 0])))
      [0 0]
    """
    if not 0 <= probability <= 1:
        raise InputError(f"probability must be in [0, 1], got {probability}")
    draw, coin = jax.random.split(key)
    cut = jax.random.randint(draw, lengths.shape, 0, lengths + 1)
    reset = jax.random.bernoulli(coin, probability, lengths.shape)
    return jnp.where(reset, cut, 0)
