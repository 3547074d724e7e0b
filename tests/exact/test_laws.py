"""Exact quantities: the reference's numbers, scipy and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from alignax import divergences as dv
from alignax import exact, logprobs
from alignax.types import InputError
from tests.exact.optimum import optimum

PI = np.array([0.5, 0.25, 0.15, 0.10])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def logs(*laws):
    return tuple(jnp.log(jnp.array(law)) for law in laws)


def test_quantities_against_scipy():
    pi, rho = logs(PI, RHO)
    np.testing.assert_allclose(exact.expectation(pi, jnp.array(R)), PI @ R)
    np.testing.assert_allclose(logprobs.entropy(pi), scipy.stats.entropy(PI))
    np.testing.assert_allclose(exact.kl(pi, rho), scipy.stats.entropy(PI, RHO))
    np.testing.assert_allclose(exact.total_variation(pi, rho), 0.45)


def test_kl_of_the_fixture():
    """Reference CHECK 1.a."""
    pi, rho = logs(PI, RHO)
    np.testing.assert_allclose(exact.kl(pi, rho), 0.6179033308496216, rtol=1e-12)
    np.testing.assert_allclose(exact.kl(rho, pi), 0.5568893971096877, rtol=1e-12)


def test_impossible_outcomes_count_nothing():
    pi = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    values = jnp.array([1.0, 2.0, jnp.nan])
    np.testing.assert_allclose(exact.expectation(pi, values), 1.5)
    np.testing.assert_allclose(logprobs.entropy(pi), np.log(2))
    np.testing.assert_allclose(exact.kl(pi, jnp.log(jnp.full(3, 1 / 3))), np.log(1.5))
    assert exact.kl(jnp.log(jnp.full(3, 1 / 3)), pi) == jnp.inf
    for function in (exact.expectation, exact.kl, exact.policy_gradient):
        gradient = jax.grad(lambda p, f=function: jnp.sum(f(p, values)))(pi)
        assert np.isfinite(gradient).all()


def test_optimum_of_the_fixture():
    """Reference CHECK 2.e, row rkl at beta 0.2 and 1."""
    rho, r = jnp.log(RHO), jnp.array(R)
    logp, value = optimum(r, rho, beta=0.2)
    expected = [0.8427466905, 0.1383537219, 0.0170351476, 0.0018644401]
    np.testing.assert_allclose(jnp.exp(logp), expected, atol=1e-10)
    np.testing.assert_allclose(value, 0.57370075, atol=1e-8)
    np.testing.assert_allclose(optimum(r, rho, beta=1.0)[1], 0.13469233, atol=1e-8)


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_optimum_is_the_regularised_optimum_of_reverse_kl(beta):
    rho, r = jnp.log(RHO), jnp.array(R)
    logp, value = optimum(r, rho, beta=beta)
    other, _, best = dv.regularised_optimum(dv.reverse_kl(), r, rho, beta=beta)
    np.testing.assert_allclose(logp, other, atol=1e-9)
    np.testing.assert_allclose(value, best, rtol=1e-9)
    np.testing.assert_allclose(
        exact.objective(logp, rho, r, beta=beta), value, rtol=1e-9
    )


def test_nothing_beats_the_optimum():
    rho, r = jnp.log(RHO), jnp.array(R)
    logp, value = optimum(r, rho, beta=0.3)
    noise = jax.random.normal(jax.random.key(0), (200, 4))
    for scale in (1e-2, 1.0):
        others = jax.nn.log_softmax(logp[None] + scale * noise)
        reached = jax.vmap(lambda p: exact.objective(p, rho, r, beta=0.3))(others)
        assert (reached < value).all()


def test_gain_is_beta_times_jeffreys():
    """Reference 2.3: ``E_π* r − E_ρ r = β (KL(π*‖ρ) + KL(ρ‖π*))``, arXiv 2605.07105."""
    rho, r = jnp.log(RHO), jnp.array(R)
    logp, _ = optimum(r, rho, beta=0.2)
    gain = exact.expectation(logp, r) - exact.expectation(rho, r)
    np.testing.assert_allclose(gain, 0.2 * (exact.kl(logp, rho) + exact.kl(rho, logp)))


def test_value_for_strong_regularisation():
    """Reference 2.3: ``V = E_ρ r + Var_ρ r / (2β) + o(1/β)``; the next term is
    the third cumulant over 6β²."""
    _, value = optimum(jnp.array(R), jnp.log(RHO), beta=100.0)
    third = RHO @ (R - RHO @ R) ** 3
    np.testing.assert_allclose(value, 0 + 0.25 / 200 + third / 6e4, rtol=1e-4)


def test_gradient_of_the_value_is_the_optimum():
    rho, r = jnp.log(RHO), jnp.array(R)
    gradient = jax.grad(lambda r: optimum(r, rho, beta=0.2)[1])(r)
    np.testing.assert_allclose(gradient, jnp.exp(optimum(r, rho, beta=0.2)[0]))
    # dV/dβ = −KL(π*‖ρ).
    slope = jax.grad(lambda beta: optimum(r, rho, beta=beta)[1])(jnp.array(0.2))
    np.testing.assert_allclose(slope, -exact.kl(optimum(r, rho, beta=0.2)[0], rho))


def test_score_function_gradient_is_the_gradient():
    logits, values = jax.random.normal(jax.random.key(1), (2, 6))

    def value(logits):
        return exact.expectation(jax.nn.log_softmax(logits), values)

    logp = jax.nn.log_softmax(logits)
    scores = jax.jacobian(jax.nn.log_softmax)(logits)
    by_scores = jnp.einsum("k,k,kj->j", jnp.exp(logp), values, scores)
    np.testing.assert_allclose(by_scores, jax.grad(value)(logits), atol=1e-14)
    np.testing.assert_allclose(
        exact.policy_gradient(logp, values), by_scores, atol=1e-14
    )


def test_gradients_against_finite_differences():
    def all_of_them(pi, rho, r):
        # The finite differences come as numpy arrays.
        pi, rho, r = map(jnp.asarray, (pi, rho, r))
        return (
            logprobs.entropy(pi),
            exact.kl(pi, rho),
            exact.total_variation(pi, rho),
            exact.objective(pi, rho, r, beta=0.3),
            optimum(r, rho, beta=0.3),
        )

    check_grads(jax.jit(all_of_them), (*logs(PI, RHO), jnp.array(R)), 1, modes=["rev"])


def test_optimum_refuses_beta():
    with pytest.raises(InputError, match="beta"):
        optimum(jnp.array(R), jnp.log(RHO), beta=0.0)
