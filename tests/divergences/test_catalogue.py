"""The functions of each divergence against each other, autodiff and theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from alignax import divergences as dv
from alignax.types import InputError
from tests.close import EPS
from tests.divergences.cases import (
    DIVERGENCES,
    KINKED,
    PI,
    RHO,
    SMOOTH,
    exact,
    few,
    heavy,
    logits,
    x64,
)

GRID = np.array([-30.0, -7.3, -2.0, -0.6, -0.4, -1e-3, 1e-6, 0.01, 0.3, 0.7, 3.1, 12.0])


@jax.jit
def _functions(div, l):
    return {
        "f": div.f(l),
        "slope": div.f_prime(l),
        "uf2": div.uf2(l),
        "df": jax.grad(lambda x: div.f(x).sum())(l),
        "dslope": jax.grad(lambda x: div.f_prime(x).sum())(l),
    }


@jax.jit
def _inverses(div, x):
    return {
        "inverse": div.log_inverse(x),
        "conjugate": div.conjugate(x),
        "dinverse": jax.grad(lambda y: div.log_inverse(y).sum())(x),
        "dconjugate": jax.grad(lambda y: div.conjugate(y).sum())(x),
    }


def evaluate(functions, div, at, dtype=np.float64):
    """Numbers at the points, padded to one length: one compilation a dtype."""
    at = np.atleast_1d(np.asarray(at, dtype))
    padded = np.resize(at, 704)
    if dtype == np.float64:
        with x64():
            out = functions(div, padded)
            return {k: np.asarray(v)[: len(at)] for k, v in out.items()}
    return {k: np.asarray(v)[: len(at)] for k, v in functions(div, padded).items()}


@heavy(SMOOTH)
def test_check_2b_derivatives_in_log_space(name):
    """d f(e^l)/dl = u f'(u) and d f'(e^l)/dl = u f''(u)."""
    of = evaluate(_functions, DIVERGENCES[name], GRID)
    np.testing.assert_allclose(
        of["df"], np.exp(GRID) * of["slope"], rtol=1e-9, atol=1e-14
    )
    np.testing.assert_allclose(of["dslope"], of["uf2"], rtol=1e-9, atol=1e-15)


@heavy(DIVERGENCES)
def test_centred_with_the_stated_curvature(name):
    """f(1) = f'(1) = 0 exactly, f''(1) = curvature."""
    div = DIVERGENCES[name]
    of = evaluate(_functions, div, 0.0)
    assert of["f"] == of["slope"] == of["df"] == 0
    if name in KINKED:
        assert div.curvature == np.inf
        with pytest.raises(InputError, match="kink"):
            dv.normalise(div)
    else:
        np.testing.assert_allclose(of["uf2"][0], div.curvature, rtol=1e-12)
        np.testing.assert_allclose(dv.normalise(div).curvature, 1, rtol=1e-12)


@heavy(SMOOTH)
def test_check_2b_inverse_and_conjugate(name):
    """inv(f'(l)) = l, f*(f'(u)) = u f'(u) - f(u), (f*)' = (f')^{-1}; below the range
    of f' no mass and f* = -f(0), above it f* is infinite."""
    div = DIVERGENCES[name]
    # Saturated f' (1 - e^-l and the like) does not determine l further out.
    l = GRID[np.abs(GRID) < 8]
    of, (low, high) = evaluate(_functions, div, l), div.slopes
    back = evaluate(_inverses, div, of["slope"])
    u = np.exp(l)
    np.testing.assert_allclose(back["inverse"], l, rtol=1e-7, atol=1e-9)
    legendre = u * of["slope"] - of["f"]
    np.testing.assert_allclose(back["conjugate"], legendre, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(back["dconjugate"], u, rtol=1e-6)
    np.testing.assert_allclose(back["dinverse"], 1 / of["uf2"], rtol=1e-6)
    if np.isfinite(low):
        out = evaluate(_inverses, div, low - 0.5)
        assert out["inverse"] == -np.inf
        np.testing.assert_allclose(out["conjugate"], -div.f_zero, rtol=1e-9)
    if np.isfinite(high):
        out = evaluate(_inverses, div, high + 0.5)
        assert out["inverse"] == out["conjugate"] == np.inf


@jax.jit
def fenchel_gap(div, l, x):
    return div.f(l) + div.conjugate(x) - x * jnp.exp(l)


@heavy(DIVERGENCES)
@given(l=logits(6), x=logits(6))
@few
def test_fenchel_inequality(name, l, x):
    """f(u) + f*(x) >= x u for every u and x."""
    with x64():
        assert (fenchel_gap(DIVERGENCES[name], l, x) >= -1e-9).all()


@heavy(DIVERGENCES)
def test_slopes_and_end_points_are_the_limits(name):
    div = DIVERGENCES[name]
    dual = dv.swap(div)
    of = evaluate(_functions, div, [-300.0, 300.0])
    for number, limit in zip(of["slope"], div.slopes, strict=True):
        if np.isfinite(limit):
            np.testing.assert_allclose(number, limit, rtol=1e-6)
        else:
            assert abs(number) > 50
    ends = of["f"][0], evaluate(_functions, dual, -300.0)["f"][0]
    for number, limit in zip(ends, (div.f_zero, dual.f_zero), strict=True):
        if np.isfinite(limit):
            np.testing.assert_allclose(number, limit, rtol=1e-6)
        else:
            assert number > 50


@heavy(DIVERGENCES)
def test_dual_is_the_perspective(name):
    """f_dual(u) = u f(1/u), f_dual'(u) = f(1/u) - f'(1/u) / u, and the dual of the
    dual is the divergence."""
    div, l = DIVERGENCES[name], GRID[np.abs(GRID) < 8]
    dual, again = dv.swap(div), dv.swap(dv.swap(div))
    assert again == div or name == "jensen_shannon_0.3"  # 1 - 0.3 rounds
    of, mirror = evaluate(_functions, dual, l), evaluate(_functions, div, -l)
    np.testing.assert_allclose(of["f"], np.exp(l) * mirror["f"], rtol=1e-8)
    np.testing.assert_allclose(
        of["slope"], mirror["f"] - np.exp(-l) * mirror["slope"], rtol=1e-8, atol=1e-9
    )


@heavy(DIVERGENCES)
def test_float32_over_eighty_nats(name):
    """Finite, non-negative, increasing slopes, and a gradient that is not cut,
    for log-ratios of -80 to 80 and far beyond (the tangent takes over at 40)."""
    div = DIVERGENCES[name]
    l = np.linspace(-80, 80, 641, dtype=np.float32)
    single = evaluate(_functions, div, l, np.float32)
    double = evaluate(_functions, div, l)
    for array in single.values():
        assert np.isfinite(array).all()
    assert (single["f"] >= 0).all()
    slope = single["slope"]
    assert (np.diff(slope) >= -3e-7 * np.abs(slope[1:])).all()
    for key in ("f", "slope"):
        ok = np.abs(double[key]) < 1e16
        np.testing.assert_allclose(
            single[key][ok], double[key][ok], rtol=2e-5, atol=1e-6
        )
    far = evaluate(_functions, div, [-1e4, -1e3, 1e3, 1e4], np.float32)
    for array in far.values():
        assert np.isfinite(array).all()
    # Beyond the cap f goes on in its direction: the gradient keeps its sign.
    assert (far["df"][2:] > 0).all()
    assert (far["df"][:2] <= 0).all()


@heavy(DIVERGENCES)
def test_float32_near_one_has_no_cancellation(name):
    """f ~ l^2: relative accuracy and sign survive at tiny log-ratios."""
    div = DIVERGENCES[name]
    l = np.array([-1e-1, -1e-3, -1e-5, 1e-6, 1e-4, 1e-2, 0.3], np.float32)
    single = evaluate(_functions, div, l, np.float32)["f"]
    assert (single > 0).all()
    np.testing.assert_allclose(single, evaluate(_functions, div, l)["f"], rtol=2e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-7])
def test_alpha_tends_to_the_kls(sign, eps):
    """alpha -> -1 is the reverse KL and -> +1 the forward KL, continuously, in
    float32 too (the textbook formula is 0/0 there)."""
    near = dv.alpha(sign * (1 - eps))
    limit = dv.reverse_kl() if sign < 0 else dv.forward_kl()
    l = jnp.array([-5.0, -0.3, 1e-3, 0.2, 4.0])
    np.testing.assert_allclose(near.f(l), limit.f(l), rtol=3 * eps + 1e-5)
    np.testing.assert_allclose(near.f_prime(l), limit.f_prime(l), rtol=4 * eps + 1e-5)
    np.testing.assert_allclose(
        near.log_inverse(l / 9), limit.log_inverse(l / 9), rtol=3 * eps + 1e-5
    )


def test_members_of_the_alpha_family():
    """Amari's -1, 1, 0, -3, 3 are rkl, fkl, 4 H^2, Pearson / 2, Neyman / 2."""
    l = jnp.array(GRID[1:-1], jnp.float32)
    for order, div, factor in [
        (-1.0, dv.reverse_kl(), 1),
        (1.0, dv.forward_kl(), 1),
        (0.0, dv.squared_hellinger(), 4),
        (-3.0, dv.pearson(), 0.5),
        (3.0, dv.neyman(), 0.5),
    ]:
        np.testing.assert_allclose(dv.alpha(order).f(l), factor * div.f(l), rtol=1e-6)


@pytest.mark.parametrize("s", [-2.2, -0.4, 0.3, 1.7])
def test_maps_between_alpha_conventions(s):
    """Each convention's own formula, at the parameter its map gives."""
    a = (1 + s) / 2
    with x64():
        for order in (
            dv.amari_from_fdpo(a),
            dv.amari_from_trl(1 - a),
            dv.amari_from_cressie_read(-a),
            dv.amari_from_tsallis(1 - a),
        ):
            np.testing.assert_allclose(order, s, atol=1e-12)
        value = exact(dv.alpha(s), jnp.log(PI), jnp.log(RHO))
        u, lam, q = PI / RHO, -a, 1 - a
        fdpo = (RHO * (u ** (1 - a) - (1 - a) * u - a)).sum() / (a * (a - 1))
        cressie_read = (PI * (u**lam - 1)).sum() / (lam * (lam + 1))
        power = (PI**q * RHO ** (1 - q)).sum()
        np.testing.assert_allclose(value, fdpo, rtol=1e-12)
        np.testing.assert_allclose(value, cressie_read, rtol=1e-12)
        np.testing.assert_allclose(q * value, (power - 1) / (q - 1), rtol=1e-12)
        np.testing.assert_allclose(
            np.log1p(q * (q - 1) * value) / (q - 1), np.log(power) / (q - 1), rtol=1e-9
        )
        # TRL's f' = (u^(c-1) - 1) / (c - 1).
        c = 1 - a
        np.testing.assert_allclose(
            dv.alpha(s).f_prime(jnp.log(u)), (u ** (c - 1) - 1) / (c - 1), rtol=1e-12
        )


def test_equality_and_hash():
    """A divergence is a value: equal by name."""
    assert dv.reverse_kl() == dv.reverse_kl()
    assert dv.alpha(0.5) == dv.alpha(0.5) != dv.alpha(0.25)
    assert hash(dv.jensen_shannon(0.3)) == hash(dv.jensen_shannon(0.3))
    assert dv.scale(dv.pearson(), 2.0) == dv.scale(dv.pearson(), 2.0) != dv.pearson()
    assert dv.swap(dv.chi2_kl(0.5)) == dv.swap(dv.chi2_kl(0.5))
    assert repr(dv.alpha(0.5)) == "alpha(0.5)"


def test_combinations_have_names_of_their_own():
    """A name is the key of a plot: no two combinations share it, and it says what
    they are."""
    kls, tv = [dv.reverse_kl(), dv.forward_kl()], dv.total_variation()
    named = {
        "0.5*reverse_kl+0.5*forward_kl": dv.mix(kls, [0.5, 0.5]),
        "reverse_kl+0.1*forward_kl": dv.mix(kls, [1.0, 0.1]),
        "2*total_variation": dv.scale(tv, 2.0),
        "2*(0.5*reverse_kl+0.5*forward_kl)": dv.scale(dv.mix(kls, [0.5, 0.5]), 2.0),
        "4*squared_hellinger": dv.normalise(dv.squared_hellinger()),
        "2*jensen_shannon(0.75)+pearson": dv.swap(
            dv.mix([dv.jensen_shannon(0.25), dv.neyman()], [2.0, 1.0])
        ),
        "chi2_kl(0.2)": dv.chi2_kl(0.2),
        "jeffreys": dv.swap(dv.jeffreys()),
    }
    assert {div.name: div for div in named.values()} == named


def test_no_retracing():

    traces = []

    def value(div, l):
        traces.append(div)
        return div.f(l)

    as_static = jax.jit(value, static_argnums=0)
    as_argument = jax.jit(value)
    for function in (as_static, as_argument):
        function(dv.alpha(0.5), jnp.ones(2))
        function(dv.alpha(0.5), jnp.zeros(2))
        function(dv.alpha(0.25), jnp.ones(2))
    assert traces == [dv.alpha(0.5), dv.alpha(0.25)] * 2


def test_mix_is_the_sum():
    parts, weights = [dv.jeffreys(), dv.neyman(), dv.total_variation()], [0.5, 0.0, 2.0]
    both, l = dv.mix(parts, weights), jnp.array(GRID[1:-1], jnp.float32)
    for field in ("f", "f_prime", "uf2"):
        terms = [getattr(d, field)(l) for d in parts]
        total = sum(w * term for w, term in zip(weights, terms, strict=True))
        np.testing.assert_allclose(getattr(both, field)(l), total, rtol=1e-6, atol=1e-7)
    # Inside the jump of the slope the ratio stays at 1.
    np.testing.assert_allclose(both.log_inverse(jnp.array([-0.9, 0.9])), 0, atol=1e-6)
    assert dv.mix([dv.pearson()], [1.0]) == dv.pearson()
    kinks = dv.mix([dv.total_variation()] * 2, [0.5, 0.5])
    np.testing.assert_allclose(
        kinks.conjugate(jnp.array([-1.0, 0.2, 0.6])), [-0.5, 0.2, np.inf], rtol=4 * EPS
    )


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: dv.jensen_shannon(0.0), "weight"),
        (lambda: dv.jensen_shannon(1.0), "weight"),
        (lambda: dv.alpha(float("nan")), "alpha"),
        (lambda: dv.chi2_kl(0.0), "gamma"),
        (lambda: dv.scale(dv.reverse_kl(), 0.0), "factor"),
        (lambda: dv.mix([dv.reverse_kl()], [1.0, 2.0]), "weights"),
        (lambda: dv.mix([dv.reverse_kl()], [-1.0]), "weights"),
        (lambda: dv.mix([dv.reverse_kl()], [0.0]), "weights"),
    ],
)
def test_refusals_name_the_argument(call, argument):
    with pytest.raises(InputError, match=argument):
        call()


@heavy(DIVERGENCES)
def test_float32_slopes_far_below_the_reference(name):
    """df/dl = u f'(u), small there, and autodiff has it to its own digits."""
    div = DIVERGENCES[name]
    l = jnp.array([-60.0, -30.0, -20.0, -10.0, -3.0], jnp.float32)
    found = jax.vmap(jax.grad(div.f))(l)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(l), jnp.float64)
        expected = jnp.exp(wide) * div.f_prime(wide)
        near = jnp.abs(div.f_prime(wide)) < 1e8  # no tangent has taken over
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-4)
