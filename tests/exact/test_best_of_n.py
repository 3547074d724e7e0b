"""Best-of-n against brute force, the reference and bounds."""

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
constrained_optimum = jax.jit(targets.constrained_optimum)
expectation, kl_of = map(jax.jit, (exact.expectation, exact.kl))


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
    law = jnp.exp(best_of_n(jnp.array(rewards), jnp.log(RHO), n=n))
    np.testing.assert_allclose(law, brute_force(RHO, list(rewards), n), atol=1e-14)


def bound_of(n):
    """``log n − (n − 1)/n``; Beirami et al., arXiv 2401.01879."""
    return np.log(n) - (n - 1) / n


def test_best_of_four_of_the_fixture():
    """Reference CHECK 7.b."""
    logp = best_of_n(jnp.array(R), jnp.log(RHO), n=4)
    np.testing.assert_allclose(jnp.exp(logp), [0.3439, 0.416, 0.2145, 0.0256])
    np.testing.assert_allclose(kl_of(logp, jnp.log(RHO)), 0.5871136672, atol=1e-10)


@pytest.mark.parametrize(
    ("arms", "kl"),
    [(4, 0.590310163), (10, 0.628825136), (100, 0.636219366), (10_000, 0.636294354)],
)
def test_kl_nears_its_bound_as_atoms_shrink(arms, kl):
    """Reference CHECK 7.b, uniform references."""
    uniform = jnp.full(arms, -jnp.log(arms))
    logp = best_of_n(jnp.arange(float(arms)), uniform, n=4)
    value, bound = kl_of(logp, uniform), bound_of(4)
    np.testing.assert_allclose(value, kl, atol=1e-9)
    assert bound - 1 / arms**1.5 < value < bound


def test_ties_only_lower_the_kl_below_the_bound():
    keys = jax.random.split(jax.random.key(0), 2)
    logp_ref = jax.nn.log_softmax(2 * jax.random.normal(keys[0], (50, 6)))
    rewards = jax.random.randint(keys[1], (50, 6), 0, 3) * 1.0
    distinct = rewards + jnp.arange(6.0)[None] / 100
    for n in (2, 7):
        tied, untied = (
            kl_of(best_of_n(r, logp_ref, n=n), logp_ref) for r in (rewards, distinct)
        )
        assert (tied <= untied + 1e-12).all()
        assert (untied < bound_of(n)).all()
        assert (tied < untied - 1e-3).any()


def test_best_of_n_is_close_to_the_best_law_of_its_kl():
    """Yang et al., arXiv 2404.01730: as a law of many outcomes, nearly as good as the
    KL-regularised optimum at the same KL, and never better."""
    keys = jax.random.split(jax.random.key(1), 2)
    logp_ref = jnp.full(100, -jnp.log(100))
    rewards = jax.random.normal(keys[1], (100,))
    for n in (2, 16):
        logp = best_of_n(rewards, logp_ref, n=n)
        reached = expectation(logp, rewards)
        kl = kl_of(logp, logp_ref)
        best, eta = constrained_optimum(rewards, logp_ref, kl=kl)
        most = expectation(best, rewards)
        start = expectation(logp_ref, rewards)
        assert reached < most
        assert (reached - start) / (most - start) > 0.85
        assert kl_of(logp, best) < 0.3 * kl
        assert eta > 0


def test_impossible_outcomes_stay_impossible():
    logp_ref = jnp.log(jnp.array([0.0, 0.5, 0.5, 0.0]))
    for nowhere in ((-1.0, 2.0), (0.0, 1.0), (jnp.nan, -jnp.inf)):
        rewards = jnp.array([nowhere[0], 0.0, 1.0, nowhere[1]])
        logp = best_of_n(rewards, logp_ref, n=3)
        np.testing.assert_allclose(jnp.exp(logp), [0, 0.125, 0.875, 0])
    gradient = jax.grad(lambda q: expectation(best_of_n(rewards, q, n=3), rewards))
    assert np.isfinite(gradient(logp_ref)).all()


def test_rare_successes_in_float32():
    """A best outcome of probability 1e-30 becomes n times as likely."""
    with jax.enable_x64(False):
        logp_ref = jnp.array([0.0, -69.0])
        logp = best_of_n(jnp.array([0.0, 1.0]), logp_ref, n=8)
        np.testing.assert_allclose(logp[1], -69 + np.log(8), rtol=1e-6)
        common = best_of_n(jnp.array([1.0, 0.0]), logp_ref, n=8)
        np.testing.assert_allclose(common, [0, -69 * 8], atol=1e-4)


def test_gradient_of_best_of_n():
    """In the reference's logits, against finite differences."""
    rewards = jnp.array([0.0, 2.0, 2.0, 1.0])

    def value(logits):
        logp_ref = jax.nn.log_softmax(jnp.asarray(logits))
        return expectation(best_of_n(rewards, logp_ref, n=3), rewards**2)

    logits = jnp.log(jnp.array(RHO))
    check_grads(jax.jit(value), (logits,), 1, modes=["rev"])


def test_range_checks():
    logp = jnp.log(jnp.array([0.5, 0.5]))
    with pytest.raises(InputError, match="n must be"):
        best_of_n(logp, logp, n=0)
