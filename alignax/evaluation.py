"""What is reported of a policy: pass@k, and whether confidence is deserved."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import reduce
from alignax.numerics import as_float
from alignax.types import InputError

__all__ = [
    "calibration_error_equal_mass",
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


def calibration_error_equal_mass(
    confidence: Float[Array, "*batch N"],
    correct: Bool[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
    *,
    bins: int,
) -> Float[Array, "*batch"]:
    """Expected calibration error over bins of equally many samples.

    ``Σ_b (n_b/n) |mean correct − mean confidence|``, with bin ``⌊B · rank / n⌋`` by the
    rank of the confidence among those that count, equal ones in their order. No bin is
    nearly empty, as bins of equal width are.

    Value: biased upwards by noise within bins, the more the fewer samples a bin has.
    Gradient: in the confidences, almost everywhere, with the bins held fixed.

    Args:
      confidence: ``[..., N]``, probabilities.
      correct: ``[..., N]``.
      mask: ``[..., N]``, True where a sample counts.
      bins: B, at least 1.

    Returns:
      ``[...]`` float32, 0 where nothing counts.

    Raises:
      InputError: ``bins`` is less than 1.

    Reference:
      Nixon et al., "Measuring calibration in deep learning", arXiv 1904.01685.

    Example:
      >>> confidence, correct = jnp.array([0.9, 0.8, 0.3]), jnp.arange(3) < 1
      >>> everyone = jnp.ones(3, bool)
      >>> error = calibration_error_equal_mass(confidence, correct, everyone, bins=3)
      >>> print(f"{error:.4f}")
      0.4000
    """

    def assign(confidence, mask):
        # What does not count is ranked last.
        order = jnp.argsort(jnp.where(mask, confidence, jnp.inf), axis=-1, stable=True)
        rank = jnp.argsort(order, axis=-1, stable=True)
        count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
        return jnp.minimum(rank * bins // count, bins - 1)

    return _calibration_error(confidence, correct, mask, bins, assign)


def _calibration_error(
    confidence: Array, correct: Array, mask: Array, bins: int, assign: Callable
) -> Float[Array, "*batch"]:
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    confidence = reduce.masked(confidence, mask)
    gap = jnp.where(mask, correct - confidence, 0)
    index = assign(confidence, mask)
    inside = jax.nn.one_hot(index, bins, dtype=bool)
    per_bin = jnp.sum(jnp.where(inside, gap[..., None], 0), axis=-2)
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    # The sign, not abs: its gradient at 0 is 0.
    return jnp.sum(jnp.sign(per_bin) * per_bin, axis=-1) / count
