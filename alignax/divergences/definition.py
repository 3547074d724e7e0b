"""A divergence from its ``f`` alone: all else by automatic differentiation, by
quadrature near ratio 1, by bisection, and at the ends by extrapolation."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax.divergences._solved import (
    ElementWise,
    bisected_inverse,
    solved_conjugate,
)
from alignax.divergences.value import Divergence
from alignax.numerics import exp, expm1, exponent_limit
from alignax.types import InputError

Range = tuple[float, float]

_DTYPES = np.float64, np.float32
# Within this log-ratio f and f' are integrals of f'': their own formulas cancel.
_NEAR = 0.5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_NODES, _WEIGHTS = (1 + _NODES) / 2, _WEIGHTS / 2
# A kink at 1 shows between these log-ratios.
_KINK = 1e-9


def from_f(
    name: str,
    f: ElementWise,
    *,
    f_prime: ElementWise | None = None,
    uf2: ElementWise | None = None,
    log_inverse: ElementWise | None = None,
    conjugate: ElementWise | None = None,
    dual: Callable[[], Divergence] | None = None,
    slopes: tuple[float, float] | None = None,
    curvature: float | None = None,
    f_zero: float | None = None,
) -> Divergence:
    """A new divergence from one function, ``f`` of the log-ratio ``l = log u``.

    A formula in u is ``lambda l: g(jnp.exp(l))``; one in l, with ``jnp.expm1(l)`` for
    ``u − 1`` and ``l`` for ``log u``, holds further out. ``f`` is centred here, so that
    ``u log u`` will do for ``u log u − u + 1``. Where it would overflow, the divergence
    goes on as its tangent. ``testing.check_divergence`` says how well it came out.

    From ``f`` alone ``u f''`` is exact to float32's rounding of ``f'``; where that
    matters, or for speed, give closed forms. They are those of the centred ``f``.

    Args:
      name: its own: divergences of one name are equal. With its numbers in it where
        it has any.
      f: elementwise, ``l -> f(e^l)``, convex in u, by functions of ``jax.numpy``.
      f_prime: ``f'(e^l)``; else by differentiation.
      uf2: ``u f''(u)``; else by differentiation.
      log_inverse: of ``f'``; else by bisection.
      conjugate: ``f*``; else at the root.
      dual: ``f_dual(u) = u f(1 / u)``; else that, in the same way.
      slopes: infimum and supremum of ``f'``; else its limits.
      curvature: ``f''(1)``, ``inf`` where ``f`` has a kink at 1; else computed.
      f_zero: ``f(0)``; else the limit of ``f``.

    Returns:
      The divergence.

    Raises:
      InputError: the name is empty, ``f`` is not elementwise, not finite at ratio 1,
        or not convex.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> le_cam = dv.from_f(
      ...     "le_cam", lambda l: (jnp.exp(l) - 1) ** 2 / (jnp.exp(l) + 1)
      ... )
      >>> le_cam.f_zero, le_cam.slopes, le_cam.curvature
      (1.0, (-3.0, 1.0), 1.0)
    """
    if not name:
        raise InputError("name must not be empty: divergences of one name are equal")
    _check_elementwise(f)
    offset, tilt, kinked = _centre(f)

    def centred(l):
        return f(l) - offset - tilt * expm1(l)

    first = f_prime or (lambda l: _derivative(f)(l) * jnp.exp(-l) - tilt)
    second = uf2 or _derivative(first)
    known = _known(name, (centred, first, second))
    near = not kinked and _integrates(centred, second)

    def bounded(l, which):
        return jnp.clip(l, *known.ranges[l.dtype.itemsize == 4][which])

    def curve(l):
        inner = bounded(l, 0)
        value = _pieces(centred, lambda s: _twice(second, s), inner, near)
        return value + _stopped(jnp.exp(inner) * slope(inner)) * (l - inner)

    def slope(l):
        inner = bounded(l, 1)
        value = _pieces(first, lambda s: _once(second, s), inner, near and not f_prime)
        value = value + _stopped(second(inner)) * (l - inner)
        return jnp.where(l == 0, 0, value) if kinked else value

    def change(l):
        return second(bounded(l, 1))

    slopes = slopes or known.slopes
    f_zero = known.f_zero if f_zero is None else f_zero
    if curvature is None:
        curvature = math.inf if kinked else known.curvature
    if log_inverse is None and not (kinked and known.straight):
        log_inverse = bisected_inverse(slope, change, slopes, math.isfinite(curvature))
    div = Divergence(
        name=name,
        f=curve,
        f_prime=slope,
        uf2=change,
        log_inverse=log_inverse,
        conjugate=conjugate or solved_conjugate(curve, log_inverse, slopes, f_zero),
        dual=dual or functools.cache(lambda: _swapped(div)),
        slopes=slopes,
        curvature=curvature,
        f_zero=f_zero,
    )
    return div


def _swapped(div: Divergence) -> Divergence:
    def intercept(l):
        return div.f(l) - exp(l) * div.f_prime(l)

    # Of the tangent at u → ∞, at 0; a little way out, since its terms cancel.
    low, at = -math.inf, np.array([6.0, 12.0, 18.0])
    if math.isfinite(div.slopes[1]):
        low = _limit(_evaluate((intercept,), at, np.float64)[0], tolerance=1e-7)
    return from_f(
        f"swap({div.name})",
        lambda l: exp(l) * div.f(-l),
        f_prime=lambda l: div.f(-l) - exp(-l) * div.f_prime(-l),
        uf2=lambda l: exp(-l) * div.uf2(-l),
        dual=lambda: div,
        slopes=(low, div.f_zero),
        curvature=div.curvature,
        f_zero=div.slopes[1],
    )


def _check_elementwise(f: ElementWise) -> None:
    asked = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    given = jax.eval_shape(f, asked)
    if getattr(given, "shape", None) != asked.shape or given.dtype != asked.dtype:
        raise InputError(
            f"f must be elementwise, of floats: for {asked} it gave {given}"
        )


# A tangent's slope is a number: beside it l - inner is 0 or moves with l alone.
_stopped = jax.lax.stop_gradient


def _derivative(function: ElementWise) -> ElementWise:
    return lambda l: jax.jvp(function, (l,), (jnp.ones_like(l),))[1]


def _evaluate(functions: Sequence[ElementWise], points, dtype) -> list[np.ndarray]:
    """Numbers, now, whatever is being traced; in the order that is written, since a
    rearranged program would overflow elsewhere."""
    options = {"xla_disable_hlo_passes": "algsimp", "xla_backend_optimization_level": 0}
    with jax.ensure_compile_time_eval(), jax.enable_x64(dtype == np.float64):
        compiled = jax.jit(
            lambda l: [f(l) for f in functions], compiler_options=options
        )
        return [np.asarray(x) for x in compiled(jnp.asarray(points, dtype))]


def _centre(f: ElementWise) -> tuple[float, float, bool]:
    """``f(1)``, ``f'(1)`` and whether ``f`` has a kink there."""
    at, df = np.array([-_KINK, 0.0, _KINK]), _derivative(f)
    value, slope, change = _evaluate((f, df, _derivative(df)), at, np.float64)
    below, _, above = slope * np.exp(-at)
    smooth = 20 * _KINK * (1 + np.max(np.abs(change[[0, 2]])))
    kinked = bool(above - below > max(smooth, 1e-7))
    return float(value[1]), float((above + below) / 2), kinked


class _Known(NamedTuple):
    ranges: dict[bool, tuple[Range, Range]]
    """In float64 (False) and float32 (True), those of ``f`` and of ``f'``."""
    slopes: Range
    f_zero: float
    curvature: float
    straight: bool


def _known(name: str, functions: Sequence[ElementWise]) -> _Known:
    """The log-ratios around 0 within which ``f``, and ``f'`` with ``u f''``, are
    neither too large nor lost to rounding, and what they tend to."""

    def top_of(dtype):
        with jax.enable_x64(True):
            return int(exponent_limit(jnp.zeros((), dtype)))

    tops = [top_of(dtype) for dtype in _DTYPES]
    whole, ranges = np.arange(-tops[0], tops[0] + 1.0), {}
    double = _evaluate(functions, whole, np.float64)
    for single, dtype, top in zip((False, True), _DTYPES, tops, strict=True):
        inside = np.abs(whole) <= top
        l, true = whole[inside], [x[inside] for x in double]
        found = _evaluate(functions, l, dtype) if single else true
        ranges[single] = _ranges(name, l, found, true, np.exp(top + 2))
    f, slope, change = double
    (low, _), ends = ranges[False]
    centre, straight = len(whole) // 2, np.abs(whole) < 20

    def limit(values, end):
        third = int(end / 3)
        return _limit(values[centre + third * np.arange(1, 4)])

    return _Known(
        ranges,
        (limit(slope, ends[0]), limit(slope, ends[1])),
        limit(f, low),
        float(change[centre]),
        not np.any(np.abs(change[straight & (whole != 0)]) > 1e-9),
    )


def _ranges(name: str, l, found, true, large: float) -> tuple[Range, Range]:
    f, slope, change = found
    tolerance = 1e-6 if found is true else 1e-3
    with np.errstate(all="ignore"):
        small = [
            (np.abs(f) < large) & (np.abs(np.exp(l) * slope) < large),
            (np.abs(slope) < large) & (np.abs(change) < large),
        ]
        good = [
            np.abs(x - y) <= tolerance * (1 + np.abs(y))
            for x, y in zip((f, slope), true, strict=False)
        ]
        # The slope rises, and far from 1 by what u f'' says.
        slack = tolerance * (1 + np.abs(slope[1:]))
        rise, ends = np.diff(slope), np.stack([change[1:], change[:-1]])
        agree = (rise <= 1.1 * ends.max(0) + slack) & (
            rise >= 0.9 * ends.min(0) - slack
        )
        rises = (rise >= -slack) & (agree | (np.abs(l[1:] - 0.5) < 5))
    # Outwards from 0: each point with its neighbour on the inner side.
    good[1][np.where(l[1:] > 0, 1, 0) + np.arange(len(l) - 1)] &= rises
    if not (small[0] & small[1])[l == 0]:
        raise InputError(f"f of {name} must be finite at ratio 1, with derivatives")
    # A tangent is for what is too large; what is wrong is refused.
    wrong = small[0] & small[1] & ~(good[0] & good[1])
    least = 5 if name.startswith("swap(") else 16
    if np.any(wrong[np.abs(l) < least]):
        at = min(l[wrong], key=abs)
        raise InputError(
            f"f of {name} must be convex in u and keep its digits: about u = e^{at:g} "
            "its slope falls, or float32 differs from float64. Under differentiation "
            "jnp.expm1 and jnp.tanh lose theirs: write jnp.exp(l) - 1, or give f_prime."
        )
    return _around(l, small[0] & good[0]), _around(l, small[1] & good[1])


def _around(l: np.ndarray, ok: np.ndarray) -> Range:
    """The stretch about 0 where all is well, with a margin where it ends early."""
    bad = l[~ok]
    return (
        float(np.max(bad[bad <= 0] + 2, initial=l[0])),
        float(np.min(bad[bad > 0] - 2, initial=l[-1])),
    )


def _pieces(far: ElementWise, near: ElementWise, l, use: bool):
    if not use:
        return far(l)
    small = jnp.abs(l) < _NEAR
    return jnp.where(
        small, near(jnp.where(small, l, 0)), far(jnp.where(small, _NEAR, l))
    )


def _nodes(l):
    """Quadrature of [0, 1] along a last axis of its own: nodes and weights."""
    shape = (1,) * l.ndim + (-1,)
    return (jnp.asarray(x, l.dtype).reshape(shape) for x in (_NODES, _WEIGHTS))


def _once(second: ElementWise, l):
    """``f'`` as the integral of ``u f''`` over the log-ratio."""
    x, weights = _nodes(l)
    return l * jnp.sum(weights * second(l[..., None] * x), axis=-1)


def _twice(second: ElementWise, l):
    """``f(e^l) = ∫_0^l (e^l − e^s) u f''(e^s) ds``: never negative."""
    x, weights = _nodes(l)
    s = l[..., None] * x
    excess = jnp.exp(s) * jnp.expm1(l[..., None] - s)
    return l * jnp.sum(weights * excess * second(s), axis=-1)


def _integrates(f: ElementWise, second: ElementWise) -> bool:
    """Whether ``f''`` is smooth enough for the quadrature to be exact."""
    at = np.array([-1, -0.5, 0.5, 1]) * _NEAR
    found, exact = _evaluate((lambda l: _twice(second, l), f), at, np.float64)
    return np.allclose(found, exact, rtol=1e-9, atol=1e-14)


def _limit(values: np.ndarray, tolerance: float = 1e-9) -> float:
    """Where three values at equal steps go: the last one, extrapolated where they
    settle geometrically, else an infinity."""
    first, second = np.diff(values)
    if abs(second) <= tolerance * (1 + abs(values[-1])):
        return float(values[-1])
    if abs(second) > 0.99 * abs(first) or abs(values[-1]) > 1e9:
        return math.copysign(math.inf, second)
    return float(values[-1] - second**2 / (second - first))
