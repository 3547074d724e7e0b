"""Advantages over the optimum's value, and maximum likelihood, by enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from alignax import advantages
from alignax import divergences as dv
from alignax.types import InputError
from tests.close import EPS

REWARDS = jnp.array([1.0, 0.0, 0.0, 0.6, -0.5])
# (f')^{-1} on probabilities, and the infimum of λ that keeps it finite.
INVERSES = {
    "reverse_kl": (dv.reverse_kl(), np.exp, -np.inf),
    "forward_kl": (dv.forward_kl(), lambda x: 1 / (1 - x), 1.0),
    "pearson": (dv.pearson(), lambda x: np.maximum(1 + x / 2, 0), -np.inf),
    "neyman": (dv.neyman(), lambda x: (1 - x) ** -0.5, 1.0),
    "squared_hellinger": (
        dv.squared_hellinger(),
        lambda x: (1 - 2 * x) ** -2,
        0.5,
    ),
}


@pytest.mark.parametrize("beta", [0.2, 1.0])
@pytest.mark.parametrize("name", INVERSES)
def test_value_is_the_root(name, beta):
    """mean (f')^{-1}((r − λ)/β) = 1, solved by scipy from the textbook inverse."""
    div, inverse, top = INVERSES[name]
    r = np.float64(REWARDS)
    low = r.max() - beta * top + 1e-9 if np.isfinite(top) else r.min() - 1
    root = brentq(lambda x: np.mean(inverse((r - x) / beta)) - 1, low, r.max() + 1)
    actual = advantages.optimal_value(div, REWARDS, beta=beta)
    np.testing.assert_allclose(actual, root, atol=2e-5)
    assert np.mean(r) - 1e-6 <= root <= r.max()
    centred = advantages.optimal_centred(REWARDS, div=div, beta=beta)
    np.testing.assert_allclose(centred, r - root, atol=2e-5)


def test_samples_in_proportion_give_the_exact_value():
    """Every completion as often as the reference draws it: λ̂ is the optimum's λ."""
    rewards, often = jnp.array([1.0, 0.3, -0.4]), jnp.array([1, 2, 5])
    sampled = jnp.repeat(rewards, often, total_repeat_length=8)
    divs = [dv.reverse_kl(), dv.jensen_shannon(), dv.pearson()]

    @jax.jit
    def values(sampled, rewards):
        logp_ref = jnp.log(often / 8)
        return [
            (
                advantages.optimal_value(div, sampled, beta=0.4),
                dv.regularised_optimum(div, rewards, logp_ref, beta=0.4)[1],
            )
            for div in divs
        ]

    np.testing.assert_allclose(*zip(*values(sampled, rewards), strict=True), atol=1e-5)


def test_value_of_some_of_the_samples():
    where = jnp.array([True, False, True, True, False])
    kept = REWARDS[jnp.array([0, 2, 3])]
    for div in (dv.reverse_kl(), dv.jensen_shannon()):
        some = advantages.optimal_value(div, REWARDS, where, beta=0.5)
        np.testing.assert_allclose(
            some, advantages.optimal_value(div, kept, beta=0.5), rtol=1e-5
        )
    assert advantages.optimal_value(dv.pearson(), REWARDS, ~ALL, beta=0.5) == 0


ALL = jnp.ones(5, bool)


def test_equal_rewards_have_no_optimal_advantage():
    for div in (dv.reverse_kl(), dv.pearson(), dv.jensen_shannon()):
        actual = advantages.optimal_centred(jnp.full(4, 0.7), div=div, beta=0.3)
        np.testing.assert_allclose(actual, 0, atol=1e-6)


def expected_gradient(theta, advantage, completions):
    """E[(1/K) Σ_k A_k ∇log π(y_k)] over all groups of a right and a wrong answer."""
    p = 1 / (1 + math.exp(-theta))
    total = 0.0
    for group in itertools.product([1.0, 0.0], repeat=completions):
        rewards = np.array(group)
        weight = np.prod(np.where(rewards > 0, p, 1 - p))
        scores = np.where(rewards > 0, 1 - p, -p)  # d log π / dθ of a logit
        values = np.asarray(advantage(jnp.array(rewards)), np.float64)
        total += weight * np.mean(values * scores)
    return total


def objective_gradient(theta, order):
    """d/dθ Σ_{k≤T} (1/k) (1 − (1 − p)^k)."""
    p = 1 / (1 + math.exp(-theta))
    return sum((1 - p) ** (k - 1) for k in range(1, order + 1)) * p * (1 - p)


@pytest.mark.parametrize("theta", [-2.0, 0.3])
@pytest.mark.parametrize("completions", [2, 4, 6])
def test_mean_normalised_is_truncated_maximum_likelihood(theta, completions):
    """Order K − 1 with failed groups dropped, K with the baseline in them too."""

    def counted(failed):
        return expected_gradient(
            theta,
            lambda r: advantages.mean_normalised(r, failed=failed),
            completions,
        )

    np.testing.assert_allclose(
        counted(0.0), objective_gradient(theta, completions - 1), rtol=1e-5
    )
    np.testing.assert_allclose(
        counted(-1.0), objective_gradient(theta, completions), rtol=1e-5
    )
    signed = expected_gradient(
        theta,
        lambda r: advantages.mean_normalised(2 * r - 1, lowest=-1.0),
        completions,
    )
    np.testing.assert_allclose(
        signed, objective_gradient(theta, completions - 1), rtol=1e-5
    )


def test_mean_normalised_worked_numbers():
    """tajwarfahim/maxrl ``compute_maxrl_outcome_advantage``, its epsilon apart."""
    rewards = jnp.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    expected = [[3, -1, -1, -1], [1, 1, -1, -1], [0] * 4, [0] * 4]
    actual = advantages.mean_normalised(rewards)
    np.testing.assert_allclose(actual, expected, rtol=4 * EPS)


def test_negative_rewards_never_turn_signs():
    """A mean below ``lowest`` says that the rewards are not of this method."""
    rewards = jnp.array([[1.0, -1, -1, -1], [1, 1, 1, -1]])
    signed = advantages.mean_normalised(rewards, lowest=-1.0)
    np.testing.assert_allclose(
        signed, advantages.mean_normalised((rewards + 1) / 2), rtol=1e-6
    )
    dropped = advantages.mean_normalised(rewards)
    np.testing.assert_array_equal(dropped[0], 0)
    assert (np.sign(dropped[1]) == [1, 1, 1, -1]).all()


def test_no_gradient_and_bad_input():
    for function in (
        advantages.mean_normalised,
        lambda r: advantages.optimal_centred(r, div=dv.reverse_kl(), beta=1.0),
    ):
        gradient = jax.grad(lambda r, function=function: function(r).sum())(REWARDS)
        np.testing.assert_array_equal(gradient, 0)
    with pytest.raises(InputError, match="at least two"):
        advantages.mean_normalised(jnp.ones((3, 1)))
    with pytest.raises(InputError, match="beta must be positive"):
        advantages.optimal_value(dv.reverse_kl(), REWARDS, beta=0.0)
    with pytest.raises(InputError, match="derivative at ratio 1"):
        advantages.optimal_value(dv.total_variation(), REWARDS, beta=1.0)
