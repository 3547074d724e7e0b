"""The functions of each divergence against each other, autodiff and theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from alignax import divergences as dv
from alignax.types import InputError
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

every = pytest.mark.parametrize("name", DIVERGENCES)
smooth = pytest.mark.parametrize("name", SMOOTH)
GRID = np.array([-30.0, -7.3, -2.0, -0.6, -0.4, -1e-3, 1e-6, 0.01, 0.3, 0.7, 3.1, 12.0])


def slope_of(function, x):
    return jax.grad(lambda y: function(y).sum())(x)


@heavy(SMOOTH)
def test_check_2b_derivatives_in_log_space(name):
    """d f(e^l)/dl = u f'(u) and d f'(e^l)/dl = u f''(u)."""
    div = DIVERGENCES[name]
    with x64():
        l = jnp.array(GRID)
        np.testing.assert_allclose(
            slope_of(div.f, l), jnp.exp(l) * div.f_prime(l), rtol=1e-9, atol=1e-14
        )
        np.testing.assert_allclose(
            slope_of(div.f_prime, l), div.uf2(l), rtol=1e-9, atol=1e-15
        )


@every
def test_centred_with_the_stated_curvature(name):
    """f(1) = f'(1) = 0 exactly, f''(1) = curvature."""
    div = DIVERGENCES[name]
    zero = jnp.zeros(1)
    assert div.f(zero) == 0
    assert div.f_prime(zero) == 0
    if name in KINKED:
        assert div.curvature == np.inf
        with pytest.raises(InputError, match="kink"):
            dv.normalise(div)
    else:
        np.testing.assert_allclose(div.uf2(zero)[0], div.curvature, rtol=1e-6)
        np.testing.assert_allclose(dv.normalise(div).uf2(zero), 1, rtol=1e-6)


@heavy(SMOOTH)
def test_check_2b_inverse_and_conjugate(name):
    """inv(f'(l)) = l, f*(f'(u)) = u f'(u) - f(u), (f*)' = (f')^{-1}."""
    div = DIVERGENCES[name]
    with x64():
        # Saturated f' (1 - e^-l and the like) does not determine l further out.
        l = jnp.array(GRID[np.abs(GRID) < 8])
        x, u = div.f_prime(l), jnp.exp(l)
        np.testing.assert_allclose(div.log_inverse(x), l, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(
            div.conjugate(x), u * x - div.f(l), rtol=1e-7, atol=1e-9
        )
        np.testing.assert_allclose(slope_of(div.conjugate, x), u, rtol=1e-6)
        np.testing.assert_allclose(
            slope_of(div.log_inverse, x), 1 / div.uf2(l), rtol=1e-6
        )


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


@smooth
def test_beyond_the_range_of_the_slope(name):
    """Below the range of f' no mass and f* = -f(0); above it f* is infinite."""
    div = DIVERGENCES[name]
    low, high = div.slopes
    if np.isfinite(low):
        x = jnp.array([low - 0.5])
        assert div.log_inverse(x) == -np.inf
        np.testing.assert_allclose(div.conjugate(x), -div.f_zero, rtol=1e-6)
    if np.isfinite(high):
        x = jnp.array([high + 0.5])
        assert div.log_inverse(x) == np.inf
        assert div.conjugate(x) == np.inf


@every
def test_slopes_and_end_points_are_the_limits(name):
    div = DIVERGENCES[name]
    with x64():
        far = jnp.array([-300.0, 300.0])
        slope, dual = div.f_prime(far), div.dual()
        for number, limit in zip(slope, div.slopes, strict=True):
            if np.isfinite(limit):
                np.testing.assert_allclose(number, limit, rtol=1e-6)
            else:
                assert abs(number) > 50
        for each in (div, dual):
            if np.isfinite(each.f_zero):
                np.testing.assert_allclose(each.f(far[:1]), each.f_zero, rtol=1e-6)
            else:
                assert each.f(far[:1]) > 50


@heavy(DIVERGENCES)
def test_dual_is_the_perspective(name):
    """f_dual(u) = u f(1/u), and the dual of the dual is the divergence."""
    div = DIVERGENCES[name]
    with x64():
        l = jnp.array(GRID[np.abs(GRID) < 8])
        dual, again = dv.swap(div), dv.swap(dv.swap(div))
        np.testing.assert_allclose(dual.f(l), jnp.exp(l) * div.f(-l), rtol=1e-8)
        np.testing.assert_allclose(again.f(l), div.f(l), rtol=1e-12)
        # f_dual'(u) = f(1/u) - f'(1/u) / u
        np.testing.assert_allclose(
            dual.f_prime(l),
            div.f(-l) - jnp.exp(-l) * div.f_prime(-l),
            rtol=1e-8,
            atol=1e-9,
        )
    if name not in ("jensen_shannon_0.3",):
        assert again == div


@heavy(DIVERGENCES)
def test_float32_over_eighty_nats(name):
    """Finite, non-negative, increasing slopes, and a gradient that is not cut,
    for log-ratios of -80 to 80 and far beyond (the tangent takes over at 70)."""
    div = DIVERGENCES[name]
    l = jnp.linspace(-80, 80, 641)
    f, slope = div.f(l), div.f_prime(l)
    for array in (f, slope, div.uf2(l), slope_of(div.f, l), slope_of(div.f_prime, l)):
        assert np.isfinite(array).all()
    assert (f >= 0).all()
    assert (np.diff(slope) >= -3e-7 * np.abs(slope[1:])).all()
    with x64():
        l64 = jnp.array(np.asarray(l, np.float64))
        for mine, true in ((f, div.f(l64)), (slope, div.f_prime(l64))):
            ok = np.abs(true) < 1e29
            np.testing.assert_allclose(
                np.asarray(mine)[ok], np.asarray(true)[ok], rtol=2e-5, atol=1e-6
            )
    far = jnp.array([-1e3, 1e3])
    for array in (div.f(far), div.f_prime(far), slope_of(div.f_prime, far)):
        assert np.isfinite(array).all()


@every
def test_float32_near_one_has_no_cancellation(name):
    """f ~ l^2: relative accuracy and sign survive at tiny log-ratios."""
    div = DIVERGENCES[name]
    l = jnp.array([-1e-1, -1e-3, -1e-5, 1e-6, 1e-4, 1e-2, 0.3])
    mine = np.asarray(div.f(l))
    assert (mine > 0).all()
    with x64():
        true = div.f(jnp.array(np.asarray(l, np.float64)))
        np.testing.assert_allclose(mine, true, rtol=2e-6)


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


def test_equality_hash_and_no_retracing():
    """A divergence is a value: equal by parameters, one trace for equal ones."""
    assert dv.reverse_kl() == dv.reverse_kl()
    assert dv.alpha(0.5) == dv.alpha(0.5) != dv.alpha(0.25)
    assert hash(dv.jensen_shannon(0.3)) == hash(dv.jensen_shannon(0.3))
    assert dv.scale(dv.pearson(), 2.0) == dv.scale(dv.pearson(), 2.0) != dv.pearson()
    assert dv.swap(dv.chi2_kl(0.5)) == dv.swap(dv.chi2_kl(0.5))
    assert repr(dv.alpha(0.5)) == "Divergence(name='alpha', parameters=(0.5,))"

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
        kinks.conjugate(jnp.array([-1.0, 0.2, 0.6])), [-0.5, 0.2, np.inf]
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
