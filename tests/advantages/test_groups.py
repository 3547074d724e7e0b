import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages
from alignax.types import InputError
from tests.close import EPS

REWARDS = jnp.array([1.0, 0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("ddof", "eps", "best", "worst"),
    [(0, 1e-9, 1.290994, -0.774597), (1, 1e-6, 1.207612, -0.724567)],
)
def test_group_standardised_worked_numbers(ddof, eps, best, worst):
    """GRPO (arXiv 2402.03300), reference A5; the second with verl's eps."""
    actual = advantages.group_standardised(REWARDS, ddof=ddof, eps=eps)
    np.testing.assert_allclose(actual, np.where(REWARDS > 0, best, worst), atol=1e-6)


def test_leave_one_out_worked_numbers():
    """RLOO (arXiv 2402.14740), reference A7."""
    expected = np.where(REWARDS > 0, 0.714286, -0.428571)
    np.testing.assert_allclose(advantages.leave_one_out(REWARDS), expected, rtol=2e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1e6, -3.7])
def test_equal_rewards_have_no_advantage(reward):
    rewards = jnp.full((8,), reward)
    np.testing.assert_array_equal(advantages.group_standardised(rewards), 0)
    for function in (advantages.group_centred, advantages.leave_one_out):
        np.testing.assert_allclose(function(rewards), 0, atol=abs(reward) * 1e-6)


def expected_policy_gradient(theta, rewards, advantage, completions):
    """E[Σ_k A_k ∇log π(y_k)] / K by enumeration of every group."""
    policy = jax.nn.softmax(theta)
    scores = jnp.eye(len(theta)) - policy[None]
    total = 0
    for group in itertools.product(range(len(theta)), repeat=completions):
        arms = jnp.array(group)
        weight = jnp.prod(policy[arms])
        gradient = (advantage(rewards[arms])[:, None] * scores[arms]).mean(0)
        total = total + weight * gradient
    return total


@pytest.mark.parametrize(
    ("advantage", "factor"),
    [(advantages.leave_one_out, 1.0), (advantages.group_centred, 0.5)],
)
def test_policy_gradient_is_unbiased(advantage, factor):
    """RLOO is exact, Dr. GRPO is (K − 1)/K of it; reference A6 and its numbers."""
    theta, rewards = jnp.array([0.3, -0.2, 0.1]), jnp.array([1.0, 0.0, 0.4])
    exact = jax.grad(lambda t: jax.nn.softmax(t) @ rewards)(theta)
    np.testing.assert_allclose(exact, [0.186635, -0.136889, -0.049747], atol=1e-6)
    actual = expected_policy_gradient(theta, rewards, advantage, 2)
    np.testing.assert_allclose(actual, factor * exact, atol=32 * EPS)


def test_standardised_groups_bend_the_direction():
    """Reference A5: E[GRPO gradient] / ∇J is no common factor."""
    theta, rewards = jnp.array([0.3, -0.2, 0.1]), jnp.array([1.0, 0.0, 0.4])
    exact = jax.grad(lambda t: jax.nn.softmax(t) @ rewards)(theta)

    def standardised(group):
        return advantages.group_standardised(group, ddof=0, eps=1e-8)

    actual = expected_policy_gradient(theta, rewards, standardised, 2)
    np.testing.assert_allclose(actual / exact, [1.298, 1.370, 1.101], atol=1e-3)


def test_reward_to_go_worked_numbers():
    """REINFORCE++ (arXiv 2501.03262), reference A8."""
    rewards = jnp.array([[0.0, 0, 1], [0, 0.5, 0]])
    mask = jnp.array([[True] * 3, [True, True, False]])
    np.testing.assert_allclose(
        advantages.reward_to_go(rewards, mask, discount=0.9),
        [[0.81, 0.9, 1], [0.45, 0.5, 0]],
        rtol=1e-6,
    )


def test_reward_to_go_passes_over_masked_positions():
    rewards = jnp.array([[1.0, 77.0, 2.0, 4.0]])
    mask = jnp.array([[True, False, True, True]])
    compressed = advantages.reward_to_go(
        jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3), bool), discount=0.5
    )
    actual = advantages.reward_to_go(rewards, mask, discount=0.5)
    np.testing.assert_allclose(actual[mask], compressed[0])
    assert actual[0, 1] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.leave_one_out(jnp.ones((3, 1))),
        lambda: advantages.group_standardised(REWARDS, eps=0.0),
        lambda: advantages.group_standardised(REWARDS, ddof=2),
        lambda: advantages.reward_to_go(
            jnp.ones((1, 2)), jnp.ones((1, 2), bool), discount=1.1
        ),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
