"""Best-of-n and binary rewards against brute force, the reference and bounds."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from alignax import exact, targets
from alignax.types import InputError

RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])

# Compiled whole: much faster here than operation by operation.
best_of_n = jax.jit(exact.best_of_n, static_argnames="n")
binary_best_of_n = jax.jit(exact.binary_best_of_n, static_argnames="n")
binary_optimum = jax.jit(exact.binary_optimum, static_argnames="beta")
constrained_optimum = jax.jit(targets.constrained_optimum)
expectation, kl_of, optimum = map(jax.jit, (exact.expectation, exact.kl, exact.optimum))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def brute_force(rho, rewards, n):
    """The law of a random one of the best, over all K^n draws."""
    law = np.zeros(len(rho))
    for draws in itertools.product(range(len(rho)), repeat=n):
        best = max(rewards[d] for d in draws)
        winners = [d for d in draws if rewards[d] == best]
        for winner in winners:
            law[winner] += math.prod(rho[d] for d in draws) / len(winners)
    return law


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    "rewards", [R, [1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 2.0, 1.0], [3.0] * 4]
)
def test_best_of_n_is_what_sampling_gives(rewards, n):
    law = jnp.exp(best_of_n(jnp.log(RHO), jnp.array(rewards), n=n))
    np.testing.assert_allclose(law, brute_force(RHO, list(rewards), n), atol=1e-14)


def test_best_of_four_of_the_fixture():
    """Reference CHECK 7.b."""
    logp = best_of_n(jnp.log(RHO), jnp.array(R), n=4)
    np.testing.assert_allclose(jnp.exp(logp), [0.3439, 0.416, 0.2145, 0.0256])
    np.testing.assert_allclose(kl_of(logp, jnp.log(RHO)), 0.5871136672, atol=1e-10)


@pytest.mark.parametrize(
    ("arms", "kl"),
    [(4, 0.590310163), (10, 0.628825136), (100, 0.636219366), (10_000, 0.636294354)],
)
def test_kl_nears_its_bound_as_atoms_shrink(arms, kl):
    """Reference CHECK 7.b, uniform references."""
    uniform = jnp.full(arms, -jnp.log(arms))
    logp = best_of_n(uniform, jnp.arange(float(arms)), n=4)
    value, bound = kl_of(logp, uniform), exact.best_of_n_kl_bound(n=4)
    np.testing.assert_allclose(value, kl, atol=1e-9)
    assert bound - 1 / arms**1.5 < value < bound


@pytest.mark.parametrize(
    ("n", "bound"),
    [(2, 0.1931471806), (4, 0.6362943611), (8, 1.2044415417), (64, 3.1745080834)],
)
def test_bound(n, bound):
    """Reference CHECK 7.b; Beirami et al., arXiv 2401.01879."""
    np.testing.assert_allclose(exact.best_of_n_kl_bound(n=n), bound, atol=1e-10)


def test_ties_only_lower_the_kl_below_the_bound():
    keys = jax.random.split(jax.random.key(0), 2)
    logp_ref = jax.nn.log_softmax(2 * jax.random.normal(keys[0], (50, 6)))
    rewards = jax.random.randint(keys[1], (50, 6), 0, 3) * 1.0
    distinct = rewards + jnp.arange(6.0)[None] / 100
    for n in (2, 7):
        kl = jax.jit(lambda r, n=n: kl_of(best_of_n(logp_ref, r, n=n), logp_ref))
        tied, untied = kl(rewards), kl(distinct)
        assert (tied <= untied + 1e-12).all()
        assert (untied < exact.best_of_n_kl_bound(n=n)).all()
        assert (tied < untied - 1e-3).any()


def test_best_of_n_is_close_to_the_best_law_of_its_kl():
    """Yang et al., arXiv 2404.01730: as a law of many outcomes, nearly as good as the
    KL-regularised optimum at the same KL, and never better."""
    keys = jax.random.split(jax.random.key(1), 2)
    logp_ref = jnp.full(100, -jnp.log(100))
    rewards = jax.random.normal(keys[1], (100,))
    for n in (2, 16):
        logp = best_of_n(logp_ref, rewards, n=n)
        reached = expectation(logp, rewards)
        kl = kl_of(logp, logp_ref)
        best, eta = constrained_optimum(logp_ref, rewards, kl=kl)
        most = expectation(best, rewards)
        start = expectation(logp_ref, rewards)
        assert reached < most
        assert (reached - start) / (most - start) > 0.85
        assert kl_of(logp, best) < 0.3 * kl
        assert eta > 0


def test_impossible_outcomes_stay_impossible():
    logp_ref = jnp.log(jnp.array([0.0, 0.5, 0.5, 0.0]))
    rewards = jnp.array([-1.0, 0.0, 1.0, 2.0])
    logp = best_of_n(logp_ref, rewards, n=3)
    np.testing.assert_allclose(jnp.exp(logp), [0, 0.125, 0.875, 0])


def test_rare_successes_in_float32():
    """A best outcome of probability 1e-30 becomes n times as likely."""
    with jax.enable_x64(False):
        logp_ref = jnp.array([0.0, -69.0])
        logp = best_of_n(logp_ref, jnp.array([0.0, 1.0]), n=8)
        np.testing.assert_allclose(logp[1], -69 + np.log(8), rtol=1e-6)
        common = best_of_n(logp_ref, jnp.array([1.0, 0.0]), n=8)
        np.testing.assert_allclose(common, [0, -69 * 8], atol=1e-4)


def test_gradient_of_best_of_n():
    """In the reference's logits, against finite differences."""
    rewards = jnp.array([0.0, 2.0, 2.0, 1.0])

    def value(logits):
        logp_ref = jax.nn.log_softmax(jnp.asarray(logits))
        return expectation(best_of_n(logp_ref, rewards, n=3), rewards**2)

    logits = jnp.log(jnp.array(RHO))
    check_grads(jax.jit(value), (logits,), 1, modes=["rev"])


def collapsed(probabilities, beta=None, n=None):
    """A world of binary rewards with several right and wrong outcomes, enumerated."""
    for p in probabilities:
        masses = np.array([0.3 * p, 0.7 * p, 0.4 * (1 - p), 0.6 * (1 - p)])
        logp_ref, rewards = jnp.log(masses), jnp.array([1.0, 1.0, 0.0, 0.0])
        if beta:
            logp, _ = optimum(logp_ref, rewards, beta=beta)
        else:
            logp = best_of_n(logp_ref, rewards, n=n)
        yield expectation(logp, rewards), kl_of(logp, logp_ref)


PROBABILITIES = np.array([1e-12, 1e-3, 0.2, 0.5, 0.9, 0.999])


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
    for function in (
        exact.best_of_n_kl_bound,
        lambda n: binary_best_of_n(log_p, n=n),
    ):
        with pytest.raises(InputError, match="n must be"):
            function(n=0)
    with pytest.raises(InputError, match="n must be"):
        best_of_n(log_p[None], log_p[None], n=0)
