"""Estimates from samples, whose expectations are finite sums here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import estimators as es
from tests.close import EPS
from tests.divergences.cases import (
    BEHAVIOUR,
    DIVERGENCES,
    PI,
    RHO,
    SMOOTH,
    exact,
    heavy,
    x64,
)


@jax.jit
def expectations(div, logits, logp_ref, log_b):
    """Every estimator's mean value and mean gradient, by enumeration."""

    def mean(law, estimate):
        def total(logits):
            return jnp.sum(jax.lax.stop_gradient(law) * estimate(logits))

        return total(logits), jax.grad(total)(logits)

    p = jax.nn.softmax(logits)
    log_softmax = jax.nn.log_softmax
    w_pi = jax.nn.log_softmax(logits) - log_b
    b, rho = jnp.exp(log_b), jnp.exp(logp_ref)

    def policy(**options):
        return lambda z: es.myopic_f_surrogate(div, log_softmax(z), logp_ref, **options)

    def reference(**options):
        return lambda z: es.myopic_f_reference_surrogate(
            div, log_softmax(z), logp_ref, **options
        )

    return {
        "policy": mean(p, policy()),
        "baseline": mean(p, policy(baseline=jnp.full(4, 1.7))),
        "policy from behaviour": mean(b, policy(log_weights=w_pi)),
        "reference": mean(rho, reference()),
        "reference from behaviour": mean(b, reference(log_weights=logp_ref - log_b)),
    }


@heavy(DIVERGENCES)
def test_check_1e_all_forms_equal_autodiff_of_the_exact_divergence(name):
    """Reference 1.4, CHECK 1.e: value and gradient of every surrogate are those of
    the exact divergence, on and off policy."""
    div = DIVERGENCES[name]
    with x64():
        logits, logp_ref = jnp.log(PI), jnp.log(RHO)
        true = exact(div, logits, logp_ref)
        grad = jax.jit(jax.grad(lambda z: dv.exact(div, z, logp_ref)))(logits)
        found = expectations(div, logits, logp_ref, jnp.log(BEHAVIOUR))
    for form, (value, slope) in found.items():
        np.testing.assert_allclose(value, true, rtol=1e-9, err_msg=form)
        np.testing.assert_allclose(slope, grad, atol=1e-9, err_msg=form)


def test_check_1b_gradients_of_the_kls():
    """Reference, CHECK 1.b: grad rkl and grad fkl, typed from the file."""
    with x64():
        args = jnp.log(PI), jnp.log(RHO), jnp.log(BEHAVIOUR)
        for div, grad in [
            (
                dv.reverse_kl(),
                [0.4957672908, -0.0986899449, -0.1966575767, -0.2004197692],
            ),
            (dv.forward_kl(), [0.4, 0.05, -0.15, -0.3]),
        ]:
            for _, slope in expectations(div, *args).values():
                np.testing.assert_allclose(slope, grad, atol=1e-9)


def test_check_1f_forward_kl_from_reference_samples():
    """Reference, CHECK 1.a and 1.f: k3 and k3f, their means and variances."""
    with x64():
        p, q = jnp.log(PI), jnp.log(RHO)
        k3f = np.asarray(es.f_from_reference(dv.forward_kl(), p, q))
        k3 = np.asarray(es.f_from_policy(dv.reverse_kl(), p, q))
    np.testing.assert_allclose(RHO @ k3f, 0.5568893971096877)
    np.testing.assert_allclose(RHO @ k3f**2 - (RHO @ k3f) ** 2, 0.4346371182)
    np.testing.assert_allclose(PI @ k3, 0.6179033308496216)
    np.testing.assert_allclose(PI @ k3**2 - (PI @ k3) ** 2, 0.2204526336)


@heavy(DIVERGENCES)
def test_values_are_non_negative_and_stopped(name):
    div = DIVERGENCES[name]
    logp, logp_ref = jnp.array([-90.0, -1.0, 0.0]), jnp.array([0.0, -1.0, -90.0])
    for estimate in (es.f_from_policy, es.f_from_reference):

        def total(x, estimate=estimate):
            return estimate(div, x, logp_ref).sum()

        value, grad = jax.jit(jax.value_and_grad(total))(logp)
        assert np.isfinite(value)
        assert value >= 0
        np.testing.assert_array_equal(grad, 0)


gradients = {
    surrogate: jax.jit(jax.grad(surrogate, argnums=1))
    for surrogate in (es.myopic_f_surrogate, es.myopic_f_reference_surrogate)
}


@heavy(SMOOTH)
def test_far_from_the_reference_the_gradient_pulls_back(name):
    """Peers clamp log-ratios (verl at 20, OpenRLHF the result at 10, TRL at 80) and
    lose the gradient just where the policy is far away; the sign must survive."""
    div = DIVERGENCES[name]

    def slope(surrogate, logp):
        return gradients[surrogate](div, jnp.float32(logp), jnp.float32(-100.0))

    for surrogate in (es.myopic_f_surrogate, es.myopic_f_reference_surrogate):
        for logp in (0.0, -25.0, -75.0):
            up = slope(surrogate, logp)
            assert np.isfinite(up)
            assert up > 0  # above the reference: the loss falls with logp
    down = slope(es.myopic_f_surrogate, -190.0)
    assert np.isfinite(down)
    assert down < 0


def test_no_mass_on_the_other_side():
    """A policy sample impossible under the reference: infinite for the reverse KL,
    f_dual(0) where that is finite."""
    logp, logp_ref = jnp.zeros(1), jnp.array([-jnp.inf])
    assert es.f_from_policy(dv.reverse_kl(), logp, logp_ref) == np.inf
    np.testing.assert_allclose(
        es.f_from_policy(dv.jensen_shannon(), logp, logp_ref),
        np.log(2) / 2,
        rtol=4 * EPS,
    )

    @jax.jit
    @jax.grad
    def grad_of(x):
        return es.myopic_f_surrogate(dv.reverse_kl(), x, logp_ref).sum()

    grad = grad_of(logp)
    assert np.isfinite(grad)
    assert grad > 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_samples_are_zero(poison):
    mask = jnp.array([True, False])
    logp, other = jnp.array([-1.0, poison]), jnp.array([-2.0, poison])
    for estimate in (
        es.f_from_policy,
        es.f_from_reference,
        es.myopic_f_surrogate,
        es.myopic_f_reference_surrogate,
    ):

        def total(logp, other, estimate=estimate):
            out = estimate(dv.jeffreys(), logp, other, log_weights=other, mask=mask)
            return out.sum(), out

        both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, value), grads = both(logp, other)
        assert value[1] == 0
        assert np.isfinite(value[0])
        for grad in grads:
            assert np.isfinite(grad[0])
            assert grad[1] == 0
