"""What is wrong with a divergence, in words: its parts against one another."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alignax.divergences import Divergence

# Log-ratios: where parts are compared, where two dtypes are, where all is finite.
_GRID = np.array([-7.3, -4.0, -2.0, -0.6, -0.4, -0.01, 0.02, 0.3, 0.7, 1.5, 3.1, 6.0])
_COMMON = np.linspace(-40.0, 40.0, 321)
_WIDE = np.linspace(-80.0, 60.0, 561)
_STEP = 1e-5


@dataclasses.dataclass(frozen=True)
class DivergenceReport:
    """``problems``: a sentence for each; none means that nothing is wrong."""

    name: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        if not self.problems:
            return f"{self.name}: nothing wrong"
        return "\n- ".join([f"{self.name}:", *self.problems])

    __repr__ = __str__


def check_divergence(div: Divergence) -> DivergenceReport:
    """What is wrong with a divergence, if anything.

    ``f`` is taken at its word: it must be convex, centred and finite, and its slope,
    inverse, conjugate, dual and limits must be its own. Compared in float64 on
    log-ratios of ±7; float32 must say the same up to ±40, and both be finite from -80
    to 60.

    Args:
      div: one of the catalogue, of ``divergences.from_f``, or your own.

    Returns:
      the report; it prints as a list.

    Example:
      >>> import dataclasses
      >>> from alignax import divergences as dv
      >>> check_divergence(dataclasses.replace(dv.reverse_kl(), curvature=2.0))
      reverse_kl:
      - curvature is 2, but u f'' at ratio 1 is 1.
    """
    numbers, checks = _evaluator(div), (_centred, _shape, _slope, _change)
    checks += (_inverse, _conjugate, _dual, _ends, _floats)
    with np.errstate(all="ignore"):
        found = [problem for check in checks for problem in check(div, numbers)]
    return DivergenceReport(div.name, tuple(found))


Numbers = Callable[..., np.ndarray]
Problems = Iterator[str]


def _evaluator(div: Divergence) -> Numbers:
    """``numbers(part, points)``: each part compiled once a dtype, at one length."""

    @functools.cache
    def compiled(part, double):
        del double
        return jax.jit(functools.partial(part, div))

    def numbers(part, points, *, double=True):
        padded = np.resize(points, len(_WIDE))
        with jax.enable_x64(double):
            dtype = jnp.float64 if double else jnp.float32
            found = compiled(part, double)(jnp.asarray(padded, dtype))
            return np.asarray(found)[: len(points)]

    return numbers


def _first(message: str, at, found, wanted, tolerance) -> Problems:
    """The message at the worst of the points that differ by more than is allowed."""
    error = np.abs(found - wanted) - tolerance
    error = np.where((found == wanted) | np.isnan(wanted), -np.inf, error)
    error = np.where(np.isnan(error), np.inf, error)
    if np.any(error > 0):
        i = int(np.argmax(error))
        yield message.format(at=at[i], found=found[i], wanted=wanted[i])


def _smooth(div: Divergence, l):
    """Points whose finite differences do not step over a kink at 1."""
    return l[np.abs(l) > 2 * _STEP] if math.isinf(div.curvature) else l


def _centred(div: Divergence, numbers: Numbers) -> Problems:
    for name, part in (("f(1)", _f), ("f'(1)", _f_prime)):
        (value,) = numbers(part, np.zeros(1))
        if not abs(value) <= 1e-9:
            yield f"{name} is {value:.3g}, not 0: f must be centred."


def _f(div, l):
    return div.f(l)


def _f_prime(div, l):
    return div.f_prime(l)


def _uf2(div, l):
    return div.uf2(l)


def _gradient(div, l):
    return jax.vmap(jax.grad(div.f))(l)


def _log_inverse(div, x):
    return div.log_inverse(x)


def _f_star(div, x):
    return div.conjugate(x)


def _shape(div: Divergence, numbers: Numbers) -> Problems:
    l = np.sort(np.append(_COMMON[np.abs(_COMMON) <= 20], _GRID))
    f, slope = numbers(_f, l), numbers(_f_prime, l)
    if np.any(f < -1e-12):
        at = l[np.argmin(f)]
        yield f"f is negative, {f.min():.3g} at log-ratio {at:.3g}: no divergence."
    fall = np.diff(slope) < -1e-9 * (1 + np.abs(slope[1:]))
    if np.any(fall):
        at = l[np.argmax(fall)]
        yield f"f is not convex: f' falls after log-ratio {at:.3g}."


def _slope(div: Divergence, numbers: Numbers) -> Problems:
    l = _smooth(div, _GRID)
    slope = numbers(_f_prime, l)
    rise = (numbers(_f, l + _STEP) - numbers(_f, l - _STEP)) / (2 * _STEP)
    automatic = numbers(_gradient, l)
    size = 1e-7 * (1 + np.abs(numbers(_f, l))) * np.exp(-l)
    yield from _first(
        "f' is not the slope of f: at log-ratio {at:.3g} it is {found:.5g}, finite "
        "differences of f give {wanted:.5g}.",
        l,
        slope,
        rise * np.exp(-l),
        1e-4 * np.abs(slope) + size,
    )
    yield from _first(
        "f does not differentiate: at log-ratio {at:.3g} automatic differentiation in "
        "the log-ratio gives {found:.5g}, u f' is {wanted:.5g}.",
        l,
        automatic,
        np.exp(l) * slope,
        1e-4 * np.abs(np.exp(l) * slope) + 1e-7,
    )


def _change(div: Divergence, numbers: Numbers) -> Problems:
    l = _smooth(div, _GRID)
    change, slope = numbers(_uf2, l), numbers(_f_prime, l)
    rise = (numbers(_f_prime, l + _STEP) - numbers(_f_prime, l - _STEP)) / (2 * _STEP)
    yield from _first(
        "uf2 is not u f'': at log-ratio {at:.3g} it is {found:.5g}, finite differences "
        "of f' give {wanted:.5g}.",
        l,
        change,
        rise,
        1e-4 * np.abs(change) + 1e-8 * (1 + np.abs(slope)),
    )
    (centre,) = numbers(_uf2, np.zeros(1))
    below, above = numbers(_f_prime, np.array([-1e-8, 1e-8]))
    kinked = above - below > 1e-4 * (1 + abs(centre))
    if kinked != math.isinf(div.curvature):
        yield (
            f"curvature is {div.curvature:g}, but f has {'a' if kinked else 'no'} kink "
            "at ratio 1; it must be inf there, and nowhere else."
        )
    elif not kinked and not abs(centre - div.curvature) <= 1e-6 * abs(centre):
        yield f"curvature is {div.curvature:g}, but u f'' at ratio 1 is {centre:.6g}."


def _inverse(div: Divergence, numbers: Numbers) -> Problems:
    slope, change = numbers(_f_prime, _GRID), numbers(_uf2, _GRID)
    if div.log_inverse is None:
        if np.any(np.abs(change) > 1e-6):
            yield "log_inverse is None, though f' takes more than two values."
        return
    moves = np.abs(change) > 1e-7 * (1 + np.abs(slope))
    back = numbers(_log_inverse, slope)
    yield from _first(
        "log_inverse does not undo f': of f' at log-ratio {wanted:.5g} it gives "
        "{found:.5g}.",
        _GRID[moves],
        back[moves],
        _GRID[moves],
        1e-5 + 1e-12 * (np.abs(slope) / change)[moves],
    )
    for side, end, wanted in (("below", 0, -np.inf), ("above", 1, np.inf)):
        if math.isfinite(div.slopes[end]):
            at = div.slopes[end] + (end - 0.5)
            (found,) = numbers(_log_inverse, np.array([at]))
            if found != wanted:
                yield (
                    f"log_inverse {side} the range of f' must be {wanted}; at {at:.3g} "
                    f"it is {found:.3g}."
                )


def _conjugate(div: Divergence, numbers: Numbers) -> Problems:
    f, slope = numbers(_f, _GRID), numbers(_f_prime, _GRID)
    product = np.exp(_GRID) * slope
    yield from _first(
        "conjugate is not that of f: at the slope of log-ratio {at:.3g} it is "
        "{found:.5g}, u f' - f is {wanted:.5g}.",
        _GRID,
        numbers(_f_star, slope),
        product - f,
        1e-6 * (1e-3 + np.abs(product) + np.abs(f)),
    )
    for side, end, wanted in (("below", 0, -div.f_zero), ("above", 1, np.inf)):
        if math.isfinite(div.slopes[end]):
            at = div.slopes[end] + (end - 0.5)
            (found,) = numbers(_f_star, np.array([at]))
            if not (found == wanted or abs(found - wanted) <= 1e-6 * (1 + abs(wanted))):
                yield (
                    f"conjugate {side} the range of f' must be {wanted:.5g}; at "
                    f"{at:.3g} it is {found:.5g}."
                )


def _dual(div: Divergence, numbers: Numbers) -> Problems:
    mirrored, slope = numbers(_f, -_GRID), numbers(_f_prime, -_GRID)
    wanted = np.exp(_GRID) * mirrored
    for what, part in (
        ("dual", lambda d, l: d.dual().f(l)),
        ("The dual of the dual", lambda d, l: jnp.exp(l) * d.dual().dual().f(-l)),
    ):
        yield from _first(
            what + " is not the exchange of arguments: at log-ratio {at:.3g} it is "
            "{found:.5g}, u f(1/u) of this one is {wanted:.5g}.",
            _GRID,
            numbers(part, _GRID),
            wanted,
            1e-6 * np.abs(wanted) + 1e-12,
        )
    terms = np.exp(-_GRID) * slope
    yield from _first(
        "dual has a wrong f': at log-ratio {at:.3g} it is {found:.5g}, f(1/u) - "
        "f'(1/u)/u is {wanted:.5g}.",
        _GRID,
        numbers(lambda d, l: d.dual().f_prime(l), _GRID),
        mirrored - terms,
        1e-6 * (np.abs(mirrored) + np.abs(terms)) + 1e-9,
    )


def _ends(div: Divergence, numbers: Numbers) -> Problems:
    slope = numbers(_f_prime, np.array([-290.0, -145.0, 145.0, 290.0]))
    f = numbers(_f, np.array([-290.0, -145.0]))
    for name, stated, far, near in (
        ("slopes[0]", div.slopes[0], slope[0], slope[1]),
        ("slopes[1]", div.slopes[1], slope[3], slope[2]),
        ("f_zero", div.f_zero, f[0], f[1]),
    ):
        settled = abs(far - near) <= 1e-6 * (1 + abs(far))
        if math.isinf(stated):
            wrong = settled or math.copysign(1, far) != math.copysign(1, stated)
        else:
            slack = 1e-5 * (1 + abs(stated))
            beyond = (far - stated) * math.copysign(1, far - near)
            wrong = abs(far - stated) > slack if settled else beyond > slack
        if wrong:
            of = "f'" if "slopes" in name else "f"
            yield f"{name} is {stated:.6g}, but {of} goes to {far:.6g}."


def _floats(div: Divergence, numbers: Numbers) -> Problems:
    for name, part in (("f", _f), ("f'", _f_prime), ("uf2", _uf2)):
        for double, dtype in ((True, "float64"), (False, "float32")):
            bad = ~np.isfinite(numbers(part, _WIDE, double=double))
            if np.any(bad):
                at = min(_WIDE[bad], key=abs)
                yield f"{name} is not finite in {dtype} at log-ratio {at:.3g}."
        l = np.append(_COMMON, [-1e-3, 1e-5])
        double, single = (numbers(part, l, double=d) for d in (True, False))
        kept = np.abs(double) < 1e16
        # Near 1 f must keep its relative digits: it is a square there.
        squared = name == "f" and math.isfinite(div.curvature)
        floor = 0 if squared else 1e-5
        yield from _first(
            name + " in float32 is not what it is in float64: at log-ratio {at:.3g} it "
            "is {found:.6g} for {wanted:.6g}.",
            l[kept],
            single[kept],
            double[kept],
            1e-3 * np.abs(double[kept]) + floor,
        )
