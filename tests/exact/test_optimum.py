"""Optima of other divergences than reverse KL, measured with the exact quantities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import exact
from tests.exact.optimum import optimum

RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_forward_kl_optimum_is_its_closed_form():
    """Reference 2.3 and CHECK 2.e, row fkl at β = 0.2: ``π* = ρ β / (β − (r − λ))``."""
    rho, r = jnp.log(RHO), jnp.array(R)
    logp, shift, value = dv.regularised_optimum(dv.forward_kl(), r, rho, beta=0.2)
    np.testing.assert_allclose(shift, 0.82460868, atol=1e-8)
    np.testing.assert_allclose(value, 0.56742066, atol=1e-8)
    expected = [0.8127212692, 0.0762473083, 0.0585589416, 0.0524724809]
    np.testing.assert_allclose(jnp.exp(logp), expected, atol=1e-9)
    closed = RHO * 0.2 / (0.2 - (R - float(shift)))
    np.testing.assert_allclose(jnp.exp(logp), closed, rtol=1e-9)
    reached = exact.expectation(logp, r) - 0.2 * exact.kl(rho, logp)
    np.testing.assert_allclose(reached, value, rtol=1e-9)


def test_policy_gradient_vanishes_at_the_optimum():
    """``∇ J = π (A − E A)`` with ``A = r − β log(π/ρ)``: none left at π*; elsewhere it
    is ``jax.grad`` of the objective."""
    rho, r = jnp.log(RHO), jnp.array(R)
    best, _ = optimum(r, rho, beta=0.2)

    def gradient(logp):
        return exact.policy_gradient(logp, r - 0.2 * (logp - rho))

    np.testing.assert_allclose(gradient(best), 0, atol=1e-12)
    logits = jax.random.normal(jax.random.key(0), (4,))
    by_autodiff = jax.grad(
        lambda x: exact.objective(jax.nn.log_softmax(x), rho, r, beta=0.2)
    )(logits)
    np.testing.assert_allclose(
        gradient(jax.nn.log_softmax(logits)), by_autodiff, atol=1e-14
    )
    assert jnp.linalg.norm(by_autodiff) > 0.1


def test_strength_for_strength_the_divergences_agree_when_strong():
    """Reference 2.3: ``V = E_ρ r + Var_ρ r / (2 β f''(1)) + o(1/β)``; both KLs have
    ``f''(1) = 1``, ``Var_ρ R = 0.25``."""
    rho, r = jnp.log(RHO), jnp.array(R)
    for divergence in (dv.reverse_kl(), dv.forward_kl()):
        _, _, value = dv.regularised_optimum(divergence, r, rho, beta=1e3)
        np.testing.assert_allclose(value, 0.25 / 2e3, rtol=2e-3)
