"""A divergence from its f alone beside the closed forms; what the check finds."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax.testing import check_divergence
from alignax.types import InputError
from tests.divergences.cases import DIVERGENCES, PI, REWARDS, RHO, exact, heavy, x64


def in_u(g):
    """A textbook formula in u, written as it stands there."""
    return lambda l: g(jnp.exp(l))


# Any multiple of u - 1 and any constant may be missing: f is centred.
DEFINITIONS = {
    "reverse_kl": (lambda l: jnp.exp(l) * l, dv.reverse_kl()),
    "forward_kl": (lambda l: -l, dv.forward_kl()),
    "pearson": (in_u(jnp.square), dv.pearson()),
    "alpha_0.5": (lambda l: -16 / 3 * jnp.exp(l / 4), dv.alpha(0.5)),
    "jensen_shannon": (
        in_u(lambda u: (u * jnp.log(u) - (u + 1) * jnp.log((u + 1) / 2)) / 2),
        dv.jensen_shannon(),
    ),
    "total_variation": (
        in_u(lambda u: jnp.abs(u - 1) / 2),
        dv.total_variation(),
    ),
    "mix_with_tv": (
        lambda l: -0.7 * l + 0.2 * jnp.abs(jnp.exp(l) - 1),
        DIVERGENCES["mix_with_tv"],
    ),
}


@functools.cache
def made_of(name):
    return dv.from_f(name, DEFINITIONS[name][0])


QUICK = ("pearson", "mix_with_tv")
each_definition = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in DEFINITIONS
    ],
)


@each_definition
def test_f_alone_makes_the_closed_forms(name):
    """All that a divergence is, of its dual too, in float64 and, to the digits that
    float32 has, in float32, near 1 as well."""
    made, known = made_of(name), DEFINITIONS[name][1]
    assert made.name == name
    for of in (lambda d: d, dv.swap):
        ours, theirs = of(made), of(known)
        for field in ("slopes", "curvature", "f_zero"):
            np.testing.assert_allclose(
                getattr(ours, field), getattr(theirs, field), rtol=1e-6, atol=1e-6
            )

        def numbers(div, l):
            slope = div.f_prime(l)
            back = [] if div.log_inverse is None else [div.log_inverse(slope)]
            return [div.f(l), slope, div.uf2(l), div.conjugate(slope), *back]

        compared = jax.jit(lambda l: (numbers(ours, l), numbers(theirs, l)))  # noqa: B023
        with x64():
            l = jnp.array([-8, -3.3, -0.6, -0.2, -1e-4, 1e-4, 0.4, 0.9, 6])
            for found, wanted in zip(*compared(l), strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
        # Where f' is flat float32 does not know the way back.
        found, wanted = (x[:2] for x in compared(l.astype(jnp.float32)))
        np.testing.assert_allclose(found, wanted, rtol=1e-3)


@pytest.mark.parametrize("name", QUICK)
def test_a_divergence_of_ones_own_has_its_uses(name):
    """Exact value, regularised optimum and its gradient, as of the closed forms."""
    made, known = made_of(name), DEFINITIONS[name][1]

    def value(div, rewards):
        logp, _, objective = dv.regularised_optimum(
            div, rewards, jnp.log(RHO), beta=0.3
        )
        return objective, jnp.exp(logp)

    with x64():
        np.testing.assert_allclose(
            exact(made, jnp.log(PI), jnp.log(RHO)),
            exact(known, jnp.log(PI), jnp.log(RHO)),
            rtol=1e-9,
        )
        (ours, theirs) = (
            jax.jit(lambda r, d=div: (value(d, r), jax.jacobian(value, 1)(d, r)))(
                jnp.asarray(REWARDS)
            )
            for div in (made, known)
        )
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), ours, theirs
        )


def test_overflow_goes_on_as_a_tangent_in_float32():
    """e^{2l} is too large from 20 on: f and f' stay finite and rise, with gradients."""
    made = made_of("pearson")
    l = jnp.array([-1e4, -300.0, -60.0, 30.0, 60.0, 300.0, 1e4])
    f, slope = made.f(l), made.f_prime(l)
    assert np.isfinite(f).all()
    assert np.isfinite(slope).all()
    assert (np.diff(slope) >= 0).all()
    gradient = jax.vmap(jax.grad(made.f))(l)
    assert np.isfinite(gradient).all()
    assert (gradient[-4:] > 0).all()


def test_overrides_are_used_and_construction_may_be_traced():
    made = dv.from_f(
        "mine", lambda l: jnp.exp(l) * l, f_prime=lambda l: l, log_inverse=lambda x: x
    )
    assert made.log_inverse(3.0) == 3.0
    l = jnp.array([0.3, 2.0])
    np.testing.assert_array_equal(made.f_prime(l[1:]), l[1:])
    traced = jax.jit(lambda l: dv.from_f("inside", lambda l: -l).f(l))
    np.testing.assert_allclose(traced(l), dv.forward_kl().f(l), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "f", "message"),
    [
        ("", lambda l: -l, "name"),
        ("sum", jnp.sum, "elementwise"),
        ("concave", lambda l: -jnp.exp(l) * l, "convex"),
        ("infinite", lambda l: jnp.log(jnp.abs(l)), "finite at ratio 1"),
        # JAX differentiates expm1 by adding 1 again: u is gone from u < 1e-7 on.
        ("rounded", lambda l: jnp.expm1(l) ** 2, "expm1"),
    ],
)
def test_definitions_that_would_be_wrong_are_refused(name, f, message):
    with pytest.raises(InputError, match=message):
        dv.from_f(name, f)


@heavy(DIVERGENCES)
def test_nothing_is_wrong_with_the_catalogue(name):
    report = check_divergence(DIVERGENCES[name])
    assert not report.problems, str(report)


@each_definition
def test_nothing_is_wrong_with_a_definition(name):
    report = check_divergence(made_of(name))
    assert not report.problems, str(report)


KL = dv.reverse_kl()
BROKEN = {
    "f must be centred": {"f": lambda l: KL.f(l) + 0.1},
    "f is negative": {"f": lambda l: KL.f(l) - 0.2 * l**2},
    "f' falls": {"f_prime": lambda l: l - 0.02 * l**3},
    "f' is not the slope of f": {"f_prime": lambda l: 1.01 * l},
    "f does not differentiate": {"f": lambda l: jax.lax.stop_gradient(KL.f(l))},
    "uf2 is not u f''": {"uf2": lambda l: 1 + 0.01 * l},
    "log_inverse does not undo f'": {"log_inverse": lambda x: x + 0.01},
    "log_inverse is None": {"log_inverse": None},
    "conjugate is not that of f": {"conjugate": lambda x: jnp.exp(x)},
    "dual is not the exchange": {"dual": dv.reverse_kl},
    "slopes[0] is -1": {"slopes": (-1.0, math.inf)},
    "slopes[1] is 9": {"slopes": (-math.inf, 9.0)},
    "curvature is 2": {"curvature": 2.0},
    "curvature is inf": {"curvature": math.inf},
    "f_zero is 0.5": {"f_zero": 0.5},
    "f_zero is inf": {"f_zero": math.inf},
    "f is not finite in float32": {"f": lambda l: jnp.exp(l) * l - jnp.exp(2 * l) * 0},
    "f' in float32 is not": {
        "f_prime": lambda l: l * (1.01 if l.dtype == "float32" else 1)
    },
}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(message, marks=[pytest.mark.slow] if i % 3 else [])
        for i, message in enumerate(BROKEN)
    ],
)
def test_what_is_broken_is_named(message):
    report = check_divergence(dataclasses.replace(KL, **BROKEN[message]))
    assert any(message in problem for problem in report.problems), str(report)
    assert message in str(report)
