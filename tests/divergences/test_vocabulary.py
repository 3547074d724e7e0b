"""Exact sums over a vocabulary: definitions, inequalities, edges, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from alignax import divergences as dv
from alignax.types import InputError
from tests.divergences.cases import (
    CASES,
    DIVERGENCES,
    KINKED,
    PI,
    RHO,
    chi2,
    exact,
    few,
    heavy,
    hellinger,
    jsd,
    kl,
    logits,
    softmax,
    tv,
    x64,
)


@jax.jit
def probe(div, x, y, where):
    """One compilation a divergence and dtype: values, both gradients, slopes."""

    def total(x, y):
        value = dv.exact(div, x, y, where=where)
        return value.sum(), value

    grads, value = jax.grad(total, argnums=(0, 1), has_aux=True)(x, y)
    return value, grads


SHAPE = (6, 5)
ALL = np.ones(SHAPE, bool)


def rows(*arrays):
    """Rows stacked and padded to the one shape."""
    out = np.zeros(SHAPE)
    stacked = np.concatenate(arrays)
    out[: len(stacked)] = stacked
    return out


@heavy(CASES)
@given(x=logits(*SHAPE), y=logits(*SHAPE), t=st.floats(0, 1))
@few
def test_axioms(name, x, y, t):
    """Definition, non-negativity, zero iff equal, joint convexity, data
    processing and the logit gradient of reference 1.4, in float64."""
    div, define = CASES[name]
    p, q = softmax(x), softmax(y)
    with x64():
        value, (grad, _) = map_numpy(probe(div, x, y, ALL))
        slope = np.asarray(div.f_prime(jnp.log(p) - jnp.log(q)))
        # Convex combinations of rows 0 and 1; rows 2 and 3 with two outcomes
        # merged; row 4 against itself shifted.
        mixed = [t * r[:1] + (1 - t) * r[1:2] for r in (p, q)]
        merged = [merge(z[2:4]) for z in (x, y)]
        other, _ = map_numpy(
            probe(
                div,
                rows(np.log(mixed[0]), merged[0], x[4:5]),
                rows(np.log(mixed[1]), merged[1], x[4:5] + 1),
                ALL,
            )
        )
    np.testing.assert_allclose(value, define(p, q), rtol=1e-9, atol=1e-12)
    assert (value >= 0).all()
    assert (value[tv(p, q) > 1e-3] > 1e-9).all()
    np.testing.assert_allclose(other[3], 0, atol=1e-14)
    chord = t * value[0] + (1 - t) * value[1]
    assert other[0] <= chord + 1e-9 * (1 + chord)
    assert (other[1:3] <= value[2:4] * (1 + 1e-9) + 1e-12).all()
    expected = p * (slope - (p * slope).sum(-1, keepdims=True))
    if name not in KINKED or (np.abs(x - y) > 1e-9).all():
        size = 1 + np.abs(expected).max()
        np.testing.assert_allclose(grad, expected, atol=1e-9 * size)


def map_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def merge(z):
    """The law with the first two outcomes made one."""
    out = z.copy()
    out[:, 0], out[:, 1] = np.logaddexp(z[:, 0], z[:, 1]), -np.inf
    return out


@heavy(CASES)
def test_gradients_against_finite_differences(name):
    """Both arguments, float64, central differences in a random direction."""
    div = DIVERGENCES[name]
    draw = np.random.default_rng(0)
    x, y, dx, dy = draw.normal(size=(4, *SHAPE))
    h = 1e-6
    with x64():
        _, (grad, grad_ref) = probe(div, x, y, ALL)
        up, _ = probe(div, x + h * dx, y + h * dy, ALL)
        down, _ = probe(div, x - h * dx, y - h * dy, ALL)
    slope = (np.asarray(grad) * dx + np.asarray(grad_ref) * dy).sum(-1)
    np.testing.assert_allclose(
        (np.asarray(up) - np.asarray(down)) / (2 * h), slope, rtol=1e-6, atol=1e-8
    )


def test_second_derivatives():
    """They exist at equal distributions too: the Fisher metric times f''(1)."""
    div = dv.pearson()
    with x64():
        y = jnp.array([0.3, -1.0, 0.7])
        hessian = jax.jit(jax.hessian(lambda x: dv.exact(div, x, y)))(y)
        p = jax.nn.softmax(y)
        fisher = jnp.diag(p) - p[:, None] * p[None, :]
        np.testing.assert_allclose(hessian, div.curvature * fisher, atol=1e-12)


@heavy(CASES)
def test_float32_against_float64(name):
    div = DIVERGENCES[name]
    draw = np.random.default_rng(1)
    x, y = (draw.normal(size=(2, *SHAPE)) * 4).astype(np.float32)
    with x64():
        value, grads = map_numpy(probe(div, x.astype(float), y.astype(float), ALL))
    single, single_grads = probe(div, x, y, ALL)
    np.testing.assert_allclose(single, value, rtol=1e-5)
    for mine, true in zip(single_grads, grads, strict=True):
        np.testing.assert_allclose(
            mine, true, rtol=1e-4, atol=1e-5 * np.abs(true).max()
        )


CHECK_2A = {
    "reverse_kl": (dv.reverse_kl(), 0.617903330850, 0.556889397110),
    "2 jsd": (dv.scale(dv.jensen_shannon(), 2.0), 0.270192338830, 0.270192338830),
    "jsd": (dv.jensen_shannon(), 0.135096169415, 0.135096169415),
    "jsd_0.3": (dv.jensen_shannon(0.3), 0.112780270429, 0.116820362142),
    "alpha_a=.5": (
        dv.alpha(dv.amari_from_fdpo(0.5)),
        0.562617480576,
        0.562617480576,
    ),
    "pearson": (dv.pearson(), 1.9125, 1.38),
    "neyman": (dv.neyman(), 1.38, 1.9125),
    "hellinger": (dv.squared_hellinger(), 0.140654370144, 0.140654370144),
    "jeffreys": (dv.jeffreys(), 1.174792727959, 1.174792727959),
    "chi2_kl": (dv.chi2_kl(), 1.574153330850, 1.246889397110),
    "tv": (dv.total_variation(), 0.45, 0.45),
    "tsallis_2": (
        dv.scale(dv.alpha(dv.amari_from_tsallis(2.0)), 2.0),
        1.9125,
        1.38,
    ),
}


@pytest.mark.parametrize("name", CHECK_2A)
def test_check_2a_values(name):
    """Reference, CHECK 2.a: D(PI || RHO) and D(RHO || PI)."""
    div, forth, back = CHECK_2A[name]
    with x64():
        p, q = jnp.log(PI), jnp.log(RHO)
        np.testing.assert_allclose(exact(div, p, q), forth, atol=1e-11)
        np.testing.assert_allclose(exact(div, q, p), back, atol=1e-11)


def test_check_2a_renyi():
    """Reference, CHECK 2.a: Renyi of order 2 and 1/2."""
    with x64():
        p, q = jnp.log(PI), jnp.log(RHO)
        for order, value in ((2.0, 1.069011818892), (0.5, 0.303168149758)):
            np.testing.assert_allclose(dv.renyi(p, q, order=order), value, atol=1e-11)


def test_check_2c_orderings():
    """2 TV^2 <= KL <= log(1 + chi2) <= chi2; H^2 <= TV <= sqrt 2 H; JSD <= log 2 TV."""
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(2, 200, 5)) * draw.gamma(1.0, 2.0, size=(200, 1))
    with x64():
        total, rkl, chi, h2, js = (
            np.asarray(exact(div, x, y))
            for div in (
                dv.total_variation(),
                dv.reverse_kl(),
                dv.pearson(),
                dv.squared_hellinger(),
                dv.jensen_shannon(),
            )
        )
    eps = 1e-9
    assert (2 * total**2 <= rkl + eps).all()
    assert (rkl <= np.log1p(chi) + eps).all()
    assert (h2 <= total + eps).all()
    assert (total <= np.sqrt(2 * h2) + eps).all()
    assert (js <= np.log(2) * total + eps).all()


LARGEST = {
    "reverse_kl": 200.0,
    "forward_kl": 200.0,
    "jensen_shannon_0.3": 0.7 * -np.log(0.7) + 0.3 * -np.log(0.3),
    "squared_hellinger": 1.0,
    "jeffreys": 400.0,
    "total_variation": 1.0,
}


@heavy(CASES)
def test_check_2d_logits_of_a_hundred(name):
    """Reference, CHECK 2.d: finite values and gradients for float32 logits of
    +-100, where the naive sums are NaN; the chi-squareds, truly e^200, go on
    linearly from e^40."""
    x = np.full(SHAPE, -100.0, np.float32)
    x[0, 0] = x[1, 1] = x[2] = 100.0
    y = x[[1, 0, 2, 3, 4, 5]]
    value, grads = probe(DIVERGENCES[name], x, y, ALL)
    assert np.isfinite(value).all()
    if name in LARGEST:
        np.testing.assert_allclose(value[:2], LARGEST[name], rtol=1e-6)
    np.testing.assert_allclose(value[2:], 0, atol=1e-6)
    for grad in grads:
        assert np.isfinite(grad).all()


ZERO_PROBABILITIES = {
    # contribution of pi alone (times pi), of rho alone (times rho)
    "reverse_kl": (np.inf, 1.0),
    "forward_kl": (1.0, np.inf),
    "pearson": (np.inf, 1.0),
    "neyman": (1.0, np.inf),
    "jensen_shannon_0.3": (-0.7 * np.log(0.7), -0.3 * np.log(0.3)),
    "squared_hellinger": (0.5, 0.5),
    "jeffreys": (np.inf, np.inf),
    "total_variation": (0.5, 0.5),
    "chi2_kl": (np.inf, 0.7),
}


@heavy(ZERO_PROBABILITIES)
def test_zero_probabilities(name):
    """Reference 2.2: what each side's own support contributes; -inf in both is 0.

    The remaining gradient is finite (optax's KL of log targets is NaN here)."""
    pi_alone, rho_alone = ZERO_PROBABILITIES[name]
    p, q = np.zeros((2, *SHAPE), np.float32)
    p[0, :2], q[0, [0, 2]] = (0.3, 0.7), (0.6, 0.4)
    p[1, 0], q[1, :2] = 1.0, (0.5, 0.5)
    p[2, :2], q[2, 0] = (0.5, 0.5), 1.0
    p[3, 0], q[3, 1] = 1.0, 1.0
    p[4:, 3], q[4:, 3] = 1.0, 1.0
    with np.errstate(divide="ignore"):
        x, y = np.log(p), np.log(q)
    div = DIVERGENCES[name]
    value, grads = probe(div, x, y, ALL)
    half, double = div.f(jnp.log(jnp.array([0.5, 2.0])))
    expected = [
        0.6 * half + 0.7 * pi_alone + 0.4 * rho_alone,
        0.5 * double + 0.5 * rho_alone,
        half + 0.5 * pi_alone,
        pi_alone + rho_alone,
        0,
        0,
    ]
    np.testing.assert_allclose(value, np.array(expected), rtol=1e-5, atol=1e-7)
    for grad in grads:
        assert np.isfinite(grad).all()


@heavy(CASES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 5.0])
def test_masked_entries_do_not_exist(name, poison):
    """Value and gradient of the rest, exactly 0 under the mask, whatever is there."""
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=(2, *SHAPE)).astype(np.float32)
    where = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 0])[:, None]
    value, grads = probe(
        DIVERGENCES[name], np.where(where, x, poison), np.where(where, y, poison), where
    )
    p, q = (softmax(np.where(where, z, -np.inf)[:5].astype(float)) for z in (x, y))
    for n in range(1, 6):
        row = 5 - n
        expected = CASES[name][1](p[row, :n], q[row, :n])
        np.testing.assert_allclose(value[row], expected, rtol=1e-5, atol=1e-7)
    assert value[5] == 0
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(np.asarray(grad)[~where], 0)


def test_nan_is_not_hidden():
    assert np.isnan(exact(dv.reverse_kl(), jnp.array([np.nan, 0.0]), jnp.zeros(2)))


def test_jensen_shannon_is_scipys():
    """scipy.spatial.distance.jensenshannon is the square root of the true JSD."""
    with x64():
        value = exact(dv.jensen_shannon(), jnp.log(PI), jnp.log(RHO))
    np.testing.assert_allclose(value, distance.jensenshannon(PI, RHO) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    "order", [0.3, 0.9, 0.97, 0.999999, 1.0, 1.00001, 1.04, 1.6, 4]
)
def test_renyi_is_its_definition_and_smooth_at_one(order):
    order = float(order)
    with x64():
        value = dv.renyi(jnp.log(PI), jnp.log(RHO), order=order)
        power = np.log((PI**order * RHO ** (1 - order)).sum())
        expected = kl(PI, RHO) if order == 1 else power / (order - 1)
        np.testing.assert_allclose(value, expected, rtol=1e-8)
    single = dv.renyi(
        jnp.log(jnp.asarray(PI, jnp.float32)),
        jnp.log(jnp.asarray(RHO, jnp.float32)),
        order=order,
    )
    np.testing.assert_allclose(single, value, rtol=2e-5)


def test_renyi_edges():
    one, other = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    wide = jnp.zeros(2)
    for order in (0.5, 2.0):
        assert dv.renyi(one, other, order=order) == np.inf
        np.testing.assert_allclose(
            dv.renyi(one, wide, order=order), np.log(2), rtol=1e-6
        )
    assert dv.renyi(wide, one, order=2.0) == np.inf
    np.testing.assert_allclose(dv.renyi(wide, one, order=0.5), np.log(2), rtol=1e-6)
    with pytest.raises(InputError, match="order"):
        dv.renyi(one, wide, order=0.0)


def test_check_6j_cauchy_schwarz():
    """Reference, CHECK 6.j (Yu et al., arXiv 2404.17951, natural logarithms)."""
    with x64():
        p, q = jnp.log(PI), jnp.log(RHO)
        np.testing.assert_allclose(
            dv.cauchy_schwarz(p, q), 1.1066152415309114, rtol=1e-12
        )
        np.testing.assert_allclose(
            dv.cauchy_schwarz(q, p), 1.1066152415309114, rtol=1e-12
        )
        first = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])
        np.testing.assert_allclose(dv.cauchy_schwarz(first, jnp.zeros(4)), np.log(4))
        grad = jax.jit(jax.grad(dv.cauchy_schwarz))(p, q)
        step = 1e-6 * np.array([1.0, -2.0, 0.5, 0.3])
        slope = dv.cauchy_schwarz(p + step, q) - dv.cauchy_schwarz(p - step, q)
        np.testing.assert_allclose(2 * (grad @ step), slope, rtol=1e-6)
        np.testing.assert_allclose(dv.cauchy_schwarz(p + 90.0, p), 0, atol=1e-6)


@pytest.mark.parametrize("name", ["jensen_shannon_0.3", "alpha_2", "chi2_kl"])
def test_small_divergence_law(name):
    """D_f ~ f''(1) / 2 chi2: normalise makes the divergences agree nearby."""
    draw = np.random.default_rng(4)
    p, q = softmax(1e-4 * draw.normal(size=(2, *SHAPE)))
    with x64():
        div = dv.normalise(DIVERGENCES[name])
        value = exact(div, np.log(p), np.log(q))
    np.testing.assert_allclose(value, chi2(p, q) / 2, rtol=2e-3)


def test_definitions_themselves_agree():
    """The oracles against each other, where two are known to coincide."""
    with x64():
        np.testing.assert_allclose(
            4 * hellinger(PI, RHO), exact(dv.alpha(0.0), jnp.log(PI), jnp.log(RHO))
        )
    np.testing.assert_allclose(jsd(PI, RHO, 0.5), jsd(RHO, PI, 0.5))
