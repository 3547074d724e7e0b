"""Whether confidence is deserved: calibration errors by bins, and the Brier score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.types import InputError


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


def calibration_error_equal_width(
    confidence: Float[Array, "*batch N"],
    correct: Bool[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
    *,
    bins: int,
) -> Float[Array, "*batch"]:
    """Expected calibration error over bins of equal width, the ECE of most papers.

    ``Σ_b (n_b/n) |mean correct − mean confidence|``, with bin ``⌈B · confidence⌉``:
    ``(0, 1/B], (1/B, 2/B], …``, and 0 in the first. Confidences that crowd together
    share a few bins, and what differs within one of those is not seen.

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
      Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, eq. 3.

    Example:
      >>> confidence, correct = jnp.array([0.9, 0.8, 0.3]), jnp.arange(3) < 1
      >>> everyone = jnp.ones(3, bool)
      >>> error = calibration_error_equal_width(confidence, correct, everyone, bins=2)
      >>> print(f"{error:.4f}")
      0.3333
    """

    def assign(confidence, mask):
        return jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)

    return _calibration_error(confidence, correct, mask, bins, assign)


def brier_score(
    confidence: Float[Array, "*batch N"],
    correct: Bool[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """The mean square of ``confidence − correct``.

    A proper score: no other confidence than the probability of being right has a lower
    mean, ``p (1 − p)``. Unlike the errors over bins it also rewards telling right from
    wrong: always saying the base rate is calibrated, and has its variance as score.

    Value: unbiased for the expected score.
    Gradient: ``2 (confidence − correct) / n``, exact.

    Args:
      confidence: ``[..., N]``, probabilities.
      correct: ``[..., N]``.
      mask: ``[..., N]``, True where a sample counts.

    Returns:
      ``[...]`` float32 in [0, 1], 0 where nothing counts.

    Reference:
      Brier, "Verification of forecasts expressed in terms of probability", 1950, for
      the two outcomes as one.

    Example:
      >>> confidence, correct = jnp.array([0.9, 0.8, 0.3]), jnp.arange(3) < 1
      >>> print(f"{brier_score(confidence, correct, jnp.ones(3, bool)):.4f}")
      0.2467
    """
    gap = jnp.where(mask, correct - reduce.masked(confidence, mask), 0)
    return jnp.sum(gap**2, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)


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
