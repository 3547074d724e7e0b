"""Regret: the reference's numbers, and the bounds' inequalities, path by path where
they hold so and in expectation over seeds where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import exact
from alignax.types import InputError


def game(key, rounds, arms, contexts):
    """Losses in [0, 1] whose best arm changes halfway, and a context each round."""
    k1, k2, k3 = jax.random.split(key, 3)
    losses = jax.random.uniform(k1, (rounds, arms))
    late = jnp.arange(rounds)[:, None] > rounds // 2
    tilt = 0.4 * jax.random.uniform(k2, (2, arms))
    losses = jnp.clip(losses - jnp.where(late, tilt[:1], tilt[1:]), 0, 1)
    return losses, jax.random.randint(k3, (rounds,), 0, contexts)


def test_hedge_on_alternating_losses():
    """Reference preference.md 7.15: K = 2, T = 1000, losses (t % 2, 1 − t % 2)."""
    with jax.enable_x64(True):
        t = jnp.arange(1000)
        losses = jnp.stack([t % 2, 1 - t % 2], axis=1).astype(jnp.float64)
        contexts = jnp.zeros(1000, jnp.int32)
        learner = exact.exponential_weights(learning_rate=np.sqrt(8 * np.log(2) / 1000))
        logp = exact.run_full_information(learner, losses, contexts, num_contexts=1)
        played = jnp.sum(jnp.exp(logp) * losses)
        np.testing.assert_allclose(played, 509.3039445896252, rtol=1e-13)
        regret = exact.regret(logp, losses, contexts, num_contexts=1)
        np.testing.assert_allclose(regret, 9.303944589625, rtol=1e-12)
        assert regret <= 18.6164870553


def test_hedge_is_the_product_of_its_updates():
    learner = exact.exponential_weights(learning_rate=0.7)
    losses, contexts = game(jax.random.key(2), 6, 3, 2)
    logp = np.array(
        exact.run_full_information(learner, losses, contexts, num_contexts=2)
    )
    losses, contexts = np.array(losses), np.array(contexts)
    for t in range(6):
        past = losses[:t][contexts[:t] == contexts[t]].sum(0)
        weights = np.exp(-0.7 * past)
        np.testing.assert_allclose(np.exp(logp[t]), weights / weights.sum(), rtol=1e-5)


def test_hedge_regret_is_bounded_on_every_path():
    """``√(C T log K / 2)``; Slivkins, arXiv 1904.07272, chapter 5."""
    rounds, arms, contexts = 400, 4, 3
    rate = np.sqrt(8 * contexts * np.log(arms) / rounds)
    learner = exact.exponential_weights(learning_rate=rate)

    @jax.jit
    @jax.vmap
    def regrets(key):
        losses, at = game(key, rounds, arms, contexts)
        logp = exact.run_full_information(learner, losses, at, num_contexts=contexts)
        return exact.regret(logp, losses, at, num_contexts=contexts)

    worst = jnp.max(regrets(jax.random.split(jax.random.key(0), 32)))
    assert 0 < worst <= np.sqrt(contexts * rounds * np.log(arms) / 2)


def mean_regret(learner, rounds, arms, contexts, seeds=64):
    losses, at = game(jax.random.key(5), rounds, arms, contexts)

    @jax.jit
    @jax.vmap
    def regrets(key):
        logp, _ = exact.run_bandit(learner, losses, at, key, num_contexts=contexts)
        return exact.regret(logp, losses, at, num_contexts=contexts)

    values = regrets(jax.random.split(jax.random.key(1), seeds))
    return values.mean(), values.std() / np.sqrt(seeds)


@pytest.mark.parametrize(("arms", "contexts"), [(3, 1), (3, 2)])
def test_exp3_expected_regret(arms, contexts):
    """``E regret ≤ √(2 C T K log K)``; Slivkins, arXiv 1904.07272, chapter 6."""
    rounds = 600
    rate = np.sqrt(2 * contexts * np.log(arms) / (rounds * arms))
    learner = exact.exponential_weights(learning_rate=rate)
    mean, error = mean_regret(learner, rounds, arms, contexts)
    bound = np.sqrt(2 * contexts * rounds * arms * np.log(arms))
    assert 3 * error < mean < bound - 3 * error
    assert bound < 2 * np.sqrt(contexts * rounds * arms * np.log(arms))


def test_a_constant_added_to_all_losses_changes_nothing():
    losses, at = game(jax.random.key(7), 50, 3, 2)
    learner = exact.exponential_weights(learning_rate=0.5)
    np.testing.assert_allclose(
        exact.run_full_information(learner, losses + 2, at, num_contexts=2),
        exact.run_full_information(learner, losses, at, num_contexts=2),
        atol=1e-4,
    )


def test_importance_weighted_losses_are_unbiased():
    p, losses = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.4, 1.0, 0.7])
    estimates = jnp.stack(
        [
            exact.importance_weighted_losses(jnp.log(p), jnp.array(a), losses[a])
            for a in range(3)
        ]
    )
    np.testing.assert_allclose(p @ estimates, losses, rtol=1e-6)
    variance = p @ jnp.square(estimates) - jnp.square(losses)
    np.testing.assert_allclose(variance, losses**2 * (1 / p - 1), rtol=1e-5)


def test_contexts_do_not_meet():
    learner = exact.exponential_weights(learning_rate=1.0)
    state = learner.update(learner.init(2, 3), 1, jnp.array([1.0, 0.0, 2.0]))
    np.testing.assert_allclose(learner.logp(state, 0), -np.log(3), rtol=1e-6)
    assert learner.logp(state, 1)[1] > learner.logp(state, 1)[0]


def test_bandit_feedback_uses_the_played_arm_alone():
    """Changing the losses of the arms that were not played changes nothing."""
    learner = exact.exponential_weights(learning_rate=0.3)
    losses, at = game(jax.random.key(8), 30, 3, 1)
    run = jax.jit(
        lambda losses: exact.run_bandit(
            learner, losses, at, jax.random.key(0), num_contexts=1
        )
    )
    logp, arms = run(losses)
    played = jax.nn.one_hot(arms, 3)
    other, _ = run(losses * played + 9 * (1 - played))
    np.testing.assert_array_equal(logp, other)


def test_range_checks():
    with pytest.raises(InputError, match="learning_rate"):
        exact.exponential_weights(learning_rate=0.0)
