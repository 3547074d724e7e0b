"""Binary rewards: closed forms against enumerated worlds, the reference and bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import exact
from alignax.types import InputError
from tests.exact.optimum import optimum

# Compiled whole: much faster here than operation by operation.
best_of_n = jax.jit(exact.best_of_n, static_argnames="n")
binary_best_of_n = jax.jit(exact.binary_best_of_n, static_argnames="n")
binary_optimum = jax.jit(exact.binary_optimum, static_argnames="beta")
expectation, kl_of = map(jax.jit, (exact.expectation, exact.kl))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def collapsed(probabilities, beta=None, n=None):
    """A world of binary rewards with several right and wrong outcomes, enumerated."""
    for p in probabilities:
        masses = np.array([0.3 * p, 0.7 * p, 0.4 * (1 - p), 0.6 * (1 - p)])
        logp_ref, rewards = jnp.log(masses), jnp.array([1.0, 1.0, 0.0, 0.0])
        if beta:
            logp, _ = optimum(rewards, logp_ref, beta=beta)
        else:
            logp = best_of_n(rewards, logp_ref, n=n)
        yield expectation(logp, rewards), kl_of(logp, logp_ref)


PROBABILITIES = np.array([1e-30, 1e-12, 1e-3, 0.2, 0.5, 0.9, 0.999, 1 - 1e-6])


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 20.0])
def test_binary_optimum_is_the_enumerated_one(beta):
    """Reference C2: ``p* = p e^{1/β} / (1 − p + p e^{1/β})``."""
    success, kl = binary_optimum(jnp.log(PROBABILITIES), beta=beta)
    expected = np.array(list(collapsed(PROBABILITIES, beta=beta)))
    np.testing.assert_allclose(success, expected[:, 0], rtol=1e-10)
    np.testing.assert_allclose(kl, expected[:, 1], rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_binary_best_of_n_is_the_enumerated_one(n):
    success, kl = binary_best_of_n(jnp.log(PROBABILITIES), n=n)
    expected = np.array(list(collapsed(PROBABILITIES, n=n)))
    np.testing.assert_allclose(success, expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(kl, expected[:, 1], rtol=1e-6, atol=1e-13)


def test_binary_facts_at_a_half():
    """Reference C2 (arXiv 2504.03380): p* .731059, Jeffreys = (p* − p)/β = .231059,
    gain ≥ (1 − e^{−1/β}) p (1 − p) = .158030, KL(π0‖π*) = log Z − p/β = .120115."""
    success, kl = binary_optimum(jnp.log(0.5), beta=1.0)
    log_z = np.log(0.5 + 0.5 * np.e)
    np.testing.assert_allclose(success, 0.731059, atol=1e-6)
    np.testing.assert_allclose(kl, success - log_z, rtol=1e-12)
    np.testing.assert_allclose(log_z - 0.5, 0.120115, atol=1e-6)
    np.testing.assert_allclose(kl + log_z - 0.5, 0.231059, atol=1e-6)
    np.testing.assert_allclose(success - 0.5, 0.231059, atol=1e-6)


def test_binary_gain_bounds():
    """Reference C2: gain ≥ (1 − e^{−1/β}) p (1 − p), and Pinsker KL ≥ 2 (p* − p)²."""
    p = np.linspace(0.01, 0.99, 40)
    for beta in (0.1, 1.0, 5.0):
        success, kl = binary_optimum(jnp.log(p), beta=beta)
        assert (success - p >= (1 - np.exp(-1 / beta)) * p * (1 - p) - 1e-12).all()
        assert (kl >= 2 * (success - p) ** 2 - 1e-12).all()


@pytest.mark.parametrize("exponent", [-30, -20, -8, -2])
def test_binary_forms_in_float32_for_tiny_probabilities(exponent):
    """Against integers and logs of Python at 1e-30: n p, and its KL."""
    p, n, beta = 10.0**exponent, 16, 0.1
    with jax.enable_x64(False):
        log_p = jnp.float32(exponent * math.log(10))
        success, kl = binary_best_of_n(log_p, n=n)
        best, best_kl = binary_optimum(log_p, beta=beta)
    miss = math.log1p(-p)
    q = -math.expm1(n * miss)
    np.testing.assert_allclose(success, q, rtol=2e-5)
    exact_kl = q * (math.log(q) - math.log(p)) + math.exp(n * miss) * (n - 1) * miss
    np.testing.assert_allclose(kl, exact_kl, rtol=1e-4)
    # From q = p e^{1/β} / Z: log Z is expm1(1/β) p to first order, by log1p for all.
    log_z = math.log1p(p * math.expm1(1 / beta))
    q = math.exp(math.log(p) + 1 / beta - log_z)
    np.testing.assert_allclose(best, q, rtol=2e-5)
    np.testing.assert_allclose(best_kl, q / beta - log_z, rtol=1e-4)


def test_binary_limits():
    success, kl = binary_best_of_n(jnp.log(jnp.array([0.3, 0.9])), n=1)
    np.testing.assert_allclose(success, [0.3, 0.9])
    np.testing.assert_allclose(kl, 0, atol=1e-15)
    # A weak regularisation puts all mass on the right ones, at −log p.
    success, kl = binary_optimum(jnp.log(jnp.array(0.3)), beta=1e-3)
    np.testing.assert_allclose((success, kl), (1, -np.log(0.3)))


def test_range_checks():
    log_p = jnp.log(jnp.array(0.5))
    with pytest.raises(InputError, match="beta"):
        binary_optimum(log_p, beta=0.0)
    with pytest.raises(InputError, match="n must be"):
        binary_best_of_n(log_p, n=0)
