"""What is reported of a policy: pass@k."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax.numerics import as_float
from alignax.types import InputError

__all__ = [
    "pass_at_k",
]


def pass_at_k(
    correct: Int[Array, "*batch"], samples: int | Int[Array, "*batch"], *, k: int
) -> Float[Array, "*batch"]:
    """The probability that one of k completions is right, from n of them.

    ``1 − C(n−c, k)/C(n, k) = 1 − Π_{i<k} (1 − c/(n−i))``; 1 where ``n − c < k``.
    Computed as ``−expm1(Σ log1p(−c/(n−i)))``: exact to rounding for rare successes,
    where factorials or ``gammaln`` in float32 are not.

    Value: unbiased for ``1 − (1 − p)^k``, unlike ``1 − (1 − c/n)^k``, which is above
    or below.
    Gradient: none; c is a count.

    Args:
      correct: ``[...]``, c: how many of the n are right.
      samples: n, the same for all or ``[...]``.
      k: attempts, from 1 to n.

    Returns:
      ``[...]`` float32; NaN where an array's n is below k, as fewer samples than
      attempts say nothing unbiased.

    Raises:
      InputError: ``k`` is below 1, or above a number ``samples``.

    Reference:
      Chen et al., "Evaluating large language models trained on code",
      arXiv 2107.03374, eq. 1.

    Example:
      >>> print(pass_at_k(jnp.array([1, 3, 8]), 10, k=5).round(4))
      [0.5 0.9167 1.]
    """
    most = samples if isinstance(samples, int) else k
    if not 1 <= k <= most:
        raise InputError(f"k must be from 1 to the {samples} samples, got {k}")
    enough = jnp.broadcast_to(jnp.asarray(samples) >= k, correct.shape)
    # One factor (1 − c/(n−i)) a draw.
    drawn = jnp.expand_dims(jnp.arange(k), range(correct.ndim))
    left = jnp.broadcast_to(samples, correct.shape)[..., None] - drawn
    share = correct[..., None] / jnp.where(enough[..., None], left, k)
    # Less than k wrong ones: some draw must be right.
    certain = share >= 1
    logs = jnp.where(certain, -jnp.inf, jnp.log1p(-jnp.where(certain, 0, share)))
    value = as_float(-jnp.expm1(jnp.sum(logs, axis=-1)))
    return jnp.where(enough, value, jnp.nan)
