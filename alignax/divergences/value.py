"""What a divergence is: a value made of pure functions of the log-ratio."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from alignax.divergences._solved import ElementWise, bisected_inverse, solved_conjugate
from alignax.types import InputError


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Divergence:
    """An f-divergence ``D_f(π‖ρ) = E_ρ f(u)``, ``u = π / ρ``.

    ``f`` is convex and *centred*: ``f(1) = f'(1) = 0``, so that every sampled
    ``f(u)`` is non-negative. All functions are elementwise; those of ``l`` take
    the log-ratio ``l = log u`` in float32 or wider, never the ratio. They are
    finite for every finite ``l``: an exponential beyond ``e^40`` (float32) goes
    on as its tangent.

    Two divergences are equal, and hash alike, when their names are: the functions
    do not count. It is therefore a good static argument of ``jax.jit`` (no
    retracing), and being a pytree without leaves it may as well be an ordinary one.
    Give a divergence of your own a name of its own.

    Attributes:
      name: the constructor with its numbers, as printed: ``alpha(0.5)``,
        ``0.5*reverse_kl+2*pearson``.
      f: ``f(e^l)``.
      f_prime: ``f'(e^l)``.
      uf2: ``u f''(u) = d f'(e^l) / dl``: the gradient weight of f-DPO, the
        ``h`` of f-distill, the Jacobian of the regularised optimum.
      log_inverse: ``log (f')^{-1}(x)``: ``-inf`` below the range of ``f'``,
        ``+inf`` above. None if ``f'`` only takes its two extreme values (total
        variation): the regularised optimum is then a linear programme.
      conjugate: ``f*(x) = sup_{u >= 0} (x u - f(u))``.
      dual: returns the divergence with the arguments swapped,
        ``f_dual(u) = u f(1 / u)``.
      slopes: infimum and supremum of ``f'``.
      curvature: ``f''(1)``; ``inf`` where ``f`` has a kink at 1.
      f_zero: ``f(0)``, may be ``inf``. ``f(0) + dual().f(0)`` is the largest
        value that the divergence takes.
    """

    name: str
    f: ElementWise = dataclasses.field(compare=False)
    f_prime: ElementWise = dataclasses.field(compare=False)
    uf2: ElementWise = dataclasses.field(compare=False)
    log_inverse: ElementWise | None = dataclasses.field(compare=False)
    conjugate: ElementWise = dataclasses.field(compare=False)
    dual: Callable[[], "Divergence"] = dataclasses.field(compare=False)
    slopes: tuple[float, float] = dataclasses.field(compare=False)
    curvature: float = dataclasses.field(compare=False)
    f_zero: float = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return self.name


def _times(factor: float, div: Divergence) -> str:
    if factor == 1:
        return div.name
    name = f"({div.name})" if "+" in div.name else div.name
    return f"{str(factor).removesuffix('.0')}*{name}"


def swap(div: Divergence) -> Divergence:
    """The divergence with its arguments exchanged: ``D(π‖ρ) -> D(ρ‖π)``.

    ``f_swap(u) = u f(1 / u)``.

    Args:
      div: any divergence.

    Returns:
      The dual divergence; ``swap(reverse_kl()) == forward_kl()``.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.swap(dv.pearson())
      neyman
    """
    return div.dual()


def scale(div: Divergence, factor: float) -> Divergence:
    """``factor * D``.

    Args:
      div: any divergence.
      factor: positive and finite.

    Returns:
      The scaled divergence; a factor of 1 gives ``div`` itself.

    Raises:
      InputError: if the factor is not positive and finite.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.scale(dv.jensen_shannon(), 2.0).curvature  # the JS of f-DPO and GANs
      0.5
    """
    c = float(factor)
    if not (c > 0 and math.isfinite(c)):
        raise InputError(f"factor must be positive and finite, got {factor}.")
    if c == 1:
        return div
    inverse = div.log_inverse
    return Divergence(
        name=_times(c, div),
        f=lambda l: c * div.f(l),
        f_prime=lambda l: c * div.f_prime(l),
        uf2=lambda l: c * div.uf2(l),
        log_inverse=None if inverse is None else lambda x: inverse(x / c),
        conjugate=lambda x: c * div.conjugate(x / c),
        dual=lambda: scale(div.dual(), c),
        slopes=(c * div.slopes[0], c * div.slopes[1]),
        curvature=c * div.curvature,
        f_zero=c * div.f_zero,
    )


def normalise(div: Divergence) -> Divergence:
    """``D / f''(1)``, which makes one ``beta`` mean the same to every divergence.

    To second order every smooth f-divergence is ``f''(1) / 2`` times Pearson's
    chi-squared; this sets the factor to one half, as for the two KLs.

    Args:
      div: a divergence with a curvature.

    Returns:
      The scaled divergence, of curvature 1.

    Raises:
      InputError: if ``f`` has a kink at 1 (total variation).

    Example:
      >>> from alignax import divergences as dv
      >>> dv.normalise(dv.squared_hellinger()).curvature
      1.0
    """
    if not math.isfinite(div.curvature):
        raise InputError(
            f"div has a kink at ratio 1 and so no curvature to divide by; got {div}. "
            "A divergence with a second derivative there would do."
        )
    return scale(div, 1 / div.curvature)


def mix(divergences: Sequence[Divergence], weights: Sequence[float]) -> Divergence:
    """The non-negative combination ``sum_i weights[i] * D_i``.

    The inverse of ``f'`` has no closed form here: it is found by bisection.

    Args:
      divergences: at least one.
      weights: as many non-negative finite numbers; terms of weight 0 are dropped.

    Returns:
      The combination.

    Raises:
      InputError: if the lengths differ, or no weight is positive, or one is
        negative or not finite.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.mix([dv.reverse_kl(), dv.forward_kl()], [0.5, 0.5]).curvature
      1.0
    """
    if len(divergences) != len(weights):
        raise InputError(
            f"weights must be as many as divergences, got {len(weights)} for "
            f"{len(divergences)}."
        )
    if not all(w >= 0 and math.isfinite(w) for w in weights):
        raise InputError(f"weights must be non-negative and finite, got {weights}.")
    terms = tuple(
        (d, float(w)) for d, w in zip(divergences, weights, strict=True) if w > 0
    )
    if not terms:
        raise InputError(f"weights must contain a positive one, got {weights}.")
    if len(terms) == 1:
        return scale(*terms[0])

    def total(pick: Callable[[Divergence], ElementWise]) -> ElementWise:
        return lambda l: sum(
            (w * pick(d)(l) for d, w in terms), start=jnp.zeros_like(l)
        )

    f, f_prime = total(lambda d: d.f), total(lambda d: d.f_prime)
    uf2 = total(lambda d: d.uf2)
    slopes = (
        sum(w * d.slopes[0] for d, w in terms),
        sum(w * d.slopes[1] for d, w in terms),
    )
    f_zero = sum(w * d.f_zero for d, w in terms)
    curvature = sum(w * d.curvature for d, w in terms)
    inverse = None
    if any(d.log_inverse is not None for d, _ in terms):
        inverse = bisected_inverse(f_prime, uf2, slopes, math.isfinite(curvature))
    return Divergence(
        name="+".join(_times(w, d) for d, w in terms),
        f=f,
        f_prime=f_prime,
        uf2=uf2,
        log_inverse=inverse,
        conjugate=solved_conjugate(f, inverse, slopes, f_zero),
        dual=lambda: mix([d.dual() for d, _ in terms], [w for _, w in terms]),
        slopes=slopes,
        curvature=curvature,
        f_zero=f_zero,
    )
