"""Many rewards of one completion: ensembles, objectives, and reports on them.

``rewards [..., M]``: M members or objectives on the last axis, such as a vmapped model
of ``models.heads`` gives. Pessimism about what members disagree on delays
over-optimisation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import diagnostics, reduce
from alignax._checks import Strength, not_negative
from alignax.numerics import as_float


def standardise(
    rewards: Float[Array, "N M"], reference: Float[Array, "R M"]
) -> Float[Array, "N M"]:
    """Each member less its mean on reference completions, over its deviation there.

    Members' scales are arbitrary; combine them after this.

    Args:
      rewards: ``[N, M]``.
      reference: ``[R, M]``, the same members on completions of the reference.

    Returns:
      ``[N, M]``; a member constant on the reference is centred alone.

    Reference:
      Coste et al., "Reward model ensembles help mitigate overoptimization",
      arXiv 2310.02743, §4.

    Example:
      >>> print(standardise(jnp.array([[3.0]]), jnp.array([[0.0], [2.0]])))
      [[2.]]
    """
    reference = as_float(reference)
    mean = jnp.mean(reference, axis=0, keepdims=True)
    variance = jnp.mean(jnp.square(reference - mean), axis=0, keepdims=True)
    some = variance > 0
    deviation = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), 1)
    return (as_float(rewards) - mean) / deviation


def ensemble_mean(rewards: Float[Array, "*batch M"]) -> Float[Array, "*batch"]:
    """The members' mean: less variance, the same confidence.

    Args:
      rewards: ``[..., M]``.

    Returns:
      ``[...]``.

    Reference:
      Coste et al., arXiv 2310.02743, eq. 3.

    Example:
      >>> print(ensemble_mean(jnp.array([1.0, 3.0])))
      2.0
    """
    return jnp.mean(as_float(rewards), axis=-1)


def ensemble_worst(rewards: Float[Array, "*batch M"]) -> Float[Array, "*batch"]:
    """The lowest member's: worst-case optimisation (WCO).

    Args:
      rewards: ``[..., M]``.

    Returns:
      ``[...]``.

    Reference:
      Coste et al., arXiv 2310.02743, eq. 4.

    Example:
      >>> print(ensemble_worst(jnp.array([1.0, 3.0])))
      1.0
    """
    return jnp.min(as_float(rewards), axis=-1)


def ensemble_uncertain(
    rewards: Float[Array, "*batch M"], *, weight: Strength
) -> Float[Array, "*batch"]:
    """Mean less λ times the members' variance: uncertainty-weighted (UWO).

    Args:
      rewards: ``[..., M]``.
      weight: λ, not negative.

    Returns:
      ``[...]``; the variance is the population's, over M and not M − 1.

    Raises:
      InputError: ``weight`` is negative.

    Reference:
      Coste et al., arXiv 2310.02743, eq. 5.

    Example:
      >>> print(ensemble_uncertain(jnp.array([1.0, 3.0]), weight=0.5))
      1.5
    """
    not_negative(weight=weight)
    rewards = as_float(rewards)
    mean = jnp.mean(rewards, axis=-1)
    return mean - weight * jnp.mean(jnp.square(rewards - mean[..., None]), axis=-1)


class Agreement(NamedTuple):
    """How a reward model does on held-out pairs: the share ranked right (ties half),
    the mean margin, the negative log-likelihood in nats, the calibration error of
    ``σ(margin)``."""

    accuracy: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    nll: Float[Array, "*batch"]
    calibration_error: Float[Array, "*batch"]


def agreement(
    margins: Float[Array, "*batch N"], mask: Bool[Array, "*batch N"], *, bins: int = 10
) -> Agreement:
    """A report on margins ``r(w) − r(l)`` of pairs with known labels.

    Args:
      margins: ``[..., N]``.
      mask: ``[..., N]``, True on pairs.
      bins: of the calibration error, of equal mass over confidences of ½ and above.

    Returns:
      ``Agreement`` of ``[...]``.

    Example:
      >>> report = agreement(jnp.array([2.0, -1.0]), jnp.array([True, True]))
      >>> print(report.accuracy, report.margin)
      0.5 0.5
    """
    safe = reduce.masked(margins, mask)
    count = jnp.sum(mask, axis=-1, dtype=jnp.float32)

    def mean(values):
        return reduce.divide(jnp.sum(reduce.masked(values, mask), axis=-1), count)

    # Confidence in the side that the model takes: labels alone are all "w".
    confidence = jax.nn.sigmoid(jnp.where(safe < 0, -safe, safe))
    error = diagnostics.calibration_error_equal_mass(
        confidence, safe > 0, mask, bins=bins
    )
    return Agreement(
        accuracy=mean((jnp.sign(safe) + 1) / 2),
        margin=mean(safe),
        nll=mean(jax.nn.softplus(-safe)),
        calibration_error=error,
    )


def pairwise_agreement(
    first: Float[Array, "*batch N"],
    second: Float[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """How often two reward models rank the same pair the same way.

    Args:
      first: ``[..., N]``, margins of one.
      second: ``[..., N]``, of the other.
      mask: ``[..., N]``, True on pairs.

    Returns:
      ``[...]``; a tie of one of them counts half.

    Example:
      >>> ones = jnp.ones(2)
      >>> print(pairwise_agreement(ones, jnp.array([2.0, -1.0]), ones > 0))
      0.5
    """
    same = jnp.sign(reduce.masked(first, mask)) * jnp.sign(reduce.masked(second, mask))
    count = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    total = jnp.sum(reduce.masked((same + 1) / 2, mask), axis=-1)
    return reduce.divide(total, count)
