"""Gaussians, worst-case weights and exponential tilting against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm

from alignax import divergences as dv
from alignax.types import InputError
from tests.close import EPS
from tests.divergences.cases import PI, RHO, exact, kl, x64


def test_check_7c_gaussian_kl():
    """Reference, CHECK 7.c (vSAE, arXiv 2509.22994: fixed variance, KL = |mu|^2/2)."""
    with x64():
        one = dv.gaussian_kl(jnp.array(0.5), jnp.log(jnp.array(0.25)))
        fixed = dv.gaussian_kl(jnp.array([0.5, -1.0]), jnp.zeros(2)).sum()
    np.testing.assert_allclose(one, 0.4431471806, atol=1e-10)
    np.testing.assert_allclose(fixed, 0.625)


def test_check_7c_posterior_collapse():
    """Reference, CHECK 7.c: the linear beta-VAE's stationary point
    (lambda, eta^2, beta) = (2, .5, 1), (2, .5, 2), (.4, .5, 1)."""
    with x64():
        for spread, noise, beta, w2, value, s2 in [
            (2.0, 0.5, 1.0, 1.5, 0.693147, 0.25),
            (2.0, 0.5, 2.0, 1.0, 0.346574, 0.5),
            (0.4, 0.5, 1.0, 0.0, 0.0, 1.0),
        ]:

            def loss(z, spread=spread, noise=noise, beta=beta):
                w, v, log_s2 = z
                s2 = jnp.exp(log_s2)
                fit = spread * (1 - w * v) ** 2 + w**2 * s2
                mean2 = v**2 * spread  # E mu^2: KL is linear in it
                penalty = dv.gaussian_kl(jnp.sqrt(mean2), log_s2)
                return fit / (2 * noise) + beta * penalty

            found = minimize(
                jax.jit(jax.value_and_grad(loss)),
                np.array([0.9, 0.6, -0.5]),
                jac=True,
                tol=1e-14,
            ).x
            w, v, log_s2 = found
            penalty = dv.gaussian_kl(jnp.array(v * spread**0.5), jnp.array(log_s2))
            np.testing.assert_allclose(w**2, w2, atol=2e-4)
            np.testing.assert_allclose(np.exp(log_s2), s2, atol=2e-4)
            np.testing.assert_allclose(penalty, value, atol=2e-4)


def test_gaussian_kl_is_the_integral():
    for m, v, m0, v0 in [(0.3, 0.5, -0.2, 1.4), (2.0, 3.0, 1.0, 0.7)]:
        p, q = norm(m, v**0.5), norm(m0, v0**0.5)

        def integrand(x, p=p, q=q):
            return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

        expected, _ = quad(integrand, -30, 30)
        value = dv.gaussian_kl(
            *(jnp.float32(t) for t in (m, np.log(v), m0, np.log(v0)))
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gaussian_kl_has_no_cancellation():
    """Variances a thousandth apart, float32: d^2 / 4, and a gradient."""
    delta = jnp.float32(1e-3)
    value, grad = jax.value_and_grad(lambda t: dv.gaussian_kl(jnp.float32(0), t))(delta)
    np.testing.assert_allclose(value, 1e-6 / 4, rtol=1e-3)
    np.testing.assert_allclose(grad, 1e-3 / 2, rtol=1e-3)


LOSSES = np.array([0.2, 1.0, 0.5, 2.0])


dro = jax.jit(dv.kl_dro, static_argnames="strength")
dro_slope = jax.jit(
    jax.grad(lambda x, strength: dv.kl_dro(x, strength=strength)[0]), static_argnums=1
)


def test_check_6k_kl_dro():
    """Reference, CHECK 6.k (doubly-robust adversarial training)."""
    with x64():
        losses = jnp.array(LOSSES)
        far, _ = dro(losses, strength=1e3)
        (value, weights), grad = dro(losses, strength=0.7), dro_slope(losses, 0.7)
        (_, near_weights), near_grad = (
            dro(losses, strength=50.0),
            dro_slope(losses, 50.0),
        )
    np.testing.assert_allclose(
        weights, [0.053318316, 0.1671910307, 0.0818469746, 0.6976436787], atol=1e-9
    )
    np.testing.assert_allclose(value, 1.2816267040809446, rtol=1e-12)
    np.testing.assert_allclose(far, 0.92523347, atol=1e-8)
    np.testing.assert_allclose(grad, weights, rtol=1e-9)
    np.testing.assert_allclose(near_grad, near_weights, rtol=1e-9)
    # The worst case really is: value = max_w sum w l - strength KL(w || 1/n).
    others = np.random.default_rng(0).dirichlet(np.ones(4), 500)
    objective = others @ LOSSES - 0.7 * kl(others, np.full(4, 0.25))
    assert (objective <= float(value)).all()


def test_kl_dro_limits_in_float32():
    """Strength to 0: the maximum; large: mean + var / (2 strength), resolved."""
    losses = jnp.asarray(LOSSES, jnp.float32)
    sharp, weights = dro(losses, strength=1e-3)
    np.testing.assert_allclose(sharp, 2.0, rtol=1e-3)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-6)
    flat, _ = dro(losses, strength=1e5)
    np.testing.assert_allclose(flat, LOSSES.mean() + LOSSES.var() / 2e5, rtol=4 * EPS)


def test_kl_dro_masks():
    losses = jnp.array([[0.2, np.nan, 0.5, 2.0], [np.inf] * 4])
    where = jnp.array([[True, False, True, True], [False] * 4])
    (value, weights), pullback = jax.vjp(
        lambda x: dv.kl_dro(x, strength=0.7, where=where), losses
    )
    (grad,) = pullback((jnp.ones(2), jnp.zeros((2, 4))))
    alone, alone_weights = dv.kl_dro(losses[0, np.array([0, 2, 3])], strength=0.7)
    np.testing.assert_allclose(value, [alone, 0], rtol=1e-6)
    np.testing.assert_allclose(
        weights[0, np.array([0, 2, 3])], alone_weights, rtol=1e-6
    )
    np.testing.assert_array_equal(np.asarray(grad)[~np.asarray(where)], 0)
    np.testing.assert_allclose(grad[0], weights[0], rtol=1e-6)
    with pytest.raises(InputError, match="strength"):
        dv.kl_dro(losses, strength=0.0)


project = jax.jit(dv.information_projection)


def test_check_3c_gdc_moment():
    """Reference, CHECK 3.c (Khalifa et al., arXiv 2012.11635)."""
    features = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    with x64():
        logp, multipliers = project(
            jnp.log(RHO), features.astype(float), jnp.array([0.8])
        )
    np.testing.assert_allclose(multipliers, [1.3862943611], atol=1e-9)
    np.testing.assert_allclose(np.exp(logp), [0.16, 0.08, 0.12, 0.64], atol=1e-12)


def test_check_3c_pointwise_constraint():
    """b = [1, 0, 1, 0]: Z = .4, p = [.25, 0, .75, 0], KL(p || rho) = -log Z."""
    with x64():
        p = jnp.where(jnp.array([True, False, True, False]), jnp.log(RHO), -jnp.inf)
        np.testing.assert_allclose(jax.nn.softmax(p), [0.25, 0, 0.75, 0])
        np.testing.assert_allclose(
            exact(dv.reverse_kl(), p, jnp.log(RHO)), 0.916290731874, atol=1e-12
        )


def test_projection_is_the_closest_law_with_the_moments():
    """Two features, one candidate excluded: the moments hold, and scipy's
    constrained minimum of KL is the same law."""
    draw = np.random.default_rng(1)
    rho, features = draw.dirichlet(np.ones(6)), draw.normal(size=(6, 2))
    law = draw.dirichlet(np.ones(5))
    keep = np.array([0, 1, 2, 4, 5])
    moments = law @ features[keep]
    where = np.ones(6, bool)
    where[3] = False
    with x64():
        logp, multipliers = project(
            jnp.log(rho), jnp.array(features), jnp.array(moments), where=where
        )
        p = np.exp(np.asarray(logp))
    np.testing.assert_allclose(p @ features, moments, atol=1e-9)
    assert p[3] == 0
    base = rho[keep] / rho[keep].sum()
    tilted = base * np.exp(features[keep] @ np.asarray(multipliers))
    np.testing.assert_allclose(p[keep], tilted / tilted.sum(), rtol=1e-9)
    constraints = [
        {"type": "eq", "fun": lambda q: q.sum() - 1},
        {"type": "eq", "fun": lambda q: q @ features[keep] - moments},
    ]
    best = minimize(
        lambda q: kl(q, base),
        law,
        constraints=constraints,
        bounds=[(1e-9, 1)] * 5,
        tol=1e-12,
    )
    np.testing.assert_allclose(p[keep], best.x, atol=1e-4)


def test_projection_derivatives():
    """Implicit: d p / d moments and d p / d logits_ref by central differences."""
    features = np.array([[1.0, 0.2], [0.0, -1.0], [0.3, 0.4], [-0.7, 1.0]])
    moments, h = np.array([0.1, 0.2]), 1e-6
    draw = np.random.default_rng(2)
    d_ref, d_moments, weights = draw.normal(size=4), draw.normal(size=2), PI

    def objective(logits_ref, moments):
        logp, multipliers = dv.information_projection(
            logits_ref, jnp.array(features), moments
        )
        return jnp.exp(logp) @ jnp.array(weights) + multipliers.sum()

    with x64():
        function = jax.jit(objective)
        grads = jax.jit(jax.grad(objective, argnums=(0, 1)))(
            jnp.log(RHO), jnp.array(moments)
        )
        ends = [
            function(
                jnp.array(np.log(RHO) + t * d_ref), jnp.array(moments + t * d_moments)
            )
            for t in (h, -h)
        ]
        slope = grads[0] @ d_ref + grads[1] @ d_moments
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-5)


def test_projection_on_weighted_samples_in_float32():
    """GDC's use: log importance weights of samples in the reference's place, far
    below float32's range; and a start that a bare Newton step overshoots."""
    features = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    log_weights = jnp.asarray(np.log(RHO), jnp.float32) - 400.0
    logp, multipliers = project(log_weights, features, jnp.array([1 - 1e-4]))
    np.testing.assert_allclose((jnp.exp(logp) @ features)[0], 1 - 1e-4, atol=2e-6)
    np.testing.assert_allclose(multipliers[0], np.log(1e4 - 1), rtol=1e-2)
