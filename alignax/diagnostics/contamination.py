"""Whether a model has been trained on a question before: Self-Critique."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.numerics import as_float


def entropy_similarity(
    first: Float[Array, "*batch T"],
    first_mask: Bool[Array, "*batch T"],
    second: Float[Array, "*batch U"],
    second_mask: Bool[Array, "*batch U"],
) -> Float[Array, "*batch"]:
    """Self-Critique's score: how alike the entropies of two answers run.

    The second answer is asked for by another way than the first's, and both are greedy.
    After reinforcement learning on the question the policy has collapsed to one path,
    and goes it twice: high says contaminated. ``cos(E₁, E₂) · min(n₁, n₂)/max(n₁, n₂)``
    of the token entropies, the shorter one followed by zeros.

    Args:
      first: ``[..., T]``, nats.
      first_mask: True on the answer's n₁ tokens, from the first on.
      second: ``[..., U]``.
      second_mask: its n₂ tokens.

    Returns:
      ``[...]`` in [0, 1]; 0 where one of the two is empty or without any entropy, and
      there without a gradient.

    Reference:
      arXiv 2510.09259, and its code (yongding-tao/RL-Data-Contamination,
      ``detectors/self_critique.py``).

    Example:
      >>> first, second = jnp.array([1.0, 0.5, 0.2, 0.1]), jnp.array([1.0, 0.5])
      >>> print(entropy_similarity(first, first > 0, second, second > 0).round(4))
      0.4903
    """
    x = reduce.masked(as_float(first), first_mask)
    y = reduce.masked(as_float(second), second_mask)
    common = min(x.shape[-1], y.shape[-1])
    dot = jnp.sum(x[..., :common] * y[..., :common], axis=-1)
    square = jnp.sum(x**2, axis=-1) * jnp.sum(y**2, axis=-1)
    some = square > 0
    cosine = jnp.where(some, dot / jnp.sqrt(jnp.where(some, square, 1)), 0)
    sizes = [jnp.sum(mask, axis=-1) for mask in (first_mask, second_mask)]
    longest = jnp.maximum(jnp.maximum(*sizes), 1)
    return cosine * as_float(jnp.minimum(*sizes)) / as_float(longest)
