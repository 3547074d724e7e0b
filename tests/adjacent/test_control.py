"""CTRL's chain, against the list of all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax.types import InputError

STATES, STEPS = 3, 3
keys = jax.random.split(jax.random.key(0), 3)
INITIAL, STEP = (
    np.asarray(jax.nn.softmax(jax.random.normal(k, shape)), np.float64)
    for k, shape in zip(keys, ((STATES,), (STEPS, STATES, STATES)), strict=False)
)
INITIAL, STEP = INITIAL / INITIAL.sum(), STEP / STEP.sum(-1, keepdims=True)
LIKELIHOOD = np.array([0.9, 0.2, 0.05])
PATHS = np.array(list(itertools.product(range(STATES), repeat=STEPS + 1)))


def of_paths(initial, steps):
    """The probability of every path."""
    p = initial[PATHS[:, 0]]
    for t in range(STEPS):
        p = p * steps[t, PATHS[:, t], PATHS[:, t + 1]]
    return p


def tilted(beta):
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray,
            ad.soft_optimal_chain(
                *map(jnp.log, (INITIAL, STEP, LIKELIHOOD)), beta=beta
            ),
        )


@pytest.mark.parametrize("beta", [0.4, 1.0, 3.0])
def test_chain_is_the_tilted_law_of_paths(beta):
    """All 81 paths, reweighted; its objective is β log Z, no other chain's is more."""
    chain, before = tilted(beta), of_paths(INITIAL, STEP)
    weights = before * LIKELIHOOD[PATHS[:, -1]] ** (1 / beta)
    found = of_paths(np.exp(chain.log_initial), np.exp(chain.log_steps))
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(np.exp(chain.log_z), weights.sum(), rtol=1e-12)

    def objective(p):
        reward = np.log(LIKELIHOOD[PATHS[:, -1]])
        return p @ reward - beta * p @ np.log(p / before)

    best = objective(found)
    np.testing.assert_allclose(best, beta * chain.log_z, rtol=1e-12)
    random = np.random.default_rng(0)
    for _ in range(50):
        steps = np.exp(chain.log_steps + random.normal(size=STEP.shape) / 5)
        steps /= steps.sum(-1, keepdims=True)
        assert objective(of_paths(np.exp(chain.log_initial), steps)) < best


def test_last_state_is_the_conditional_law():
    """At β = 1 Bayes' rule, and the values are log p(y|x_t), classifier guidance's.
    The pretrained first state instead of the tilted one is a bias."""
    chain = tilted(1.0)
    with jax.enable_x64(True):
        before = np.exp(ad.last_state(jnp.log(INITIAL), jnp.log(STEP)))
        steps = jnp.asarray(chain.log_steps)
        after = np.exp(ad.last_state(jnp.asarray(chain.log_initial), steps))
        untilted = np.exp(ad.last_state(jnp.log(INITIAL), steps))
    posterior = before * LIKELIHOOD / (before @ LIKELIHOOD)
    np.testing.assert_allclose(after, posterior, rtol=1e-12)
    assert np.abs(untilted - posterior).sum() > 1e-3
    guidance = LIKELIHOOD
    for t in reversed(range(STEPS)):
        guidance = STEP[t] @ guidance
        np.testing.assert_allclose(np.exp(chain.values[t]), guidance, rtol=1e-12)


def test_beta_is_checked():
    with pytest.raises(InputError, match="beta"):
        ad.soft_optimal_chain(
            jnp.zeros(2), jnp.zeros((1, 2, 2)), jnp.zeros(2), beta=0.0
        )
