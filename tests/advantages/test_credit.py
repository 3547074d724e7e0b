"""Token credit against worked numbers and against trees with every path enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages, estimators, exact
from alignax.types import InputError


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


REWARDS, VALUES = jnp.array([0.0, 0, 0, 1]), jnp.array([0.5, 0.6, 0.7, 0.8])
ALL = jnp.ones(4, bool)


@pytest.mark.parametrize(
    ("discount", "trace", "expected"),
    [
        (1.0, 0.95, [0.456725, 0.3755, 0.29, 0.2]),
        (1.0, 1.0, [0.5, 0.4, 0.3, 0.2]),
        (1.0, 0.0, [0.1, 0.1, 0.1, 0.2]),
        (0.9, 0.95, [0.205276, 0.193305, 0.191, 0.2]),
    ],
)
def test_gae_worked_numbers(discount, trace, expected):
    """Reference A3."""
    actual = advantages.gae(REWARDS, VALUES, ALL, discount=discount, trace=trace)
    close(actual, expected)


def test_gae_passes_over_masked_positions():
    """Reference A3: a tool's tokens are left out, and so is a reward put there."""
    rewards = jnp.array([0.0, 0.1, 9.0, 0.0, 1.0])
    values = jnp.array([0.5, 0.6, 99.0, 0.7, 0.8])
    mask = jnp.array([1, 1, 0, 1, 1]) > 0
    actual = advantages.gae(rewards, values, mask, discount=0.9)
    close(actual, [0.290776, 0.293305, 0, 0.191, 0.2])


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (1.0, [0.28525, 0.195, 0.1, 0.0]),
        (0.99, [0.256189, 0.172450, 0.084476, -0.008]),
    ],
)
def test_egae_worked_numbers(discount, expected):
    """T-PPO's truncated completions, reference B13; padding changes nothing."""
    values = jnp.append(VALUES, jnp.nan)
    mask = jnp.append(ALL, False)
    last = advantages.last_value(values, mask)
    zeros = jnp.zeros(5)
    actual = advantages.gae(zeros, values, mask, last, discount=discount)
    close(actual[:4], expected)
    without = advantages.gae(zeros, values, mask, discount=discount)
    if discount == 1:
        close(without[:4], [-0.40065, -0.527, -0.66, -0.8])


def test_reinforce_plus_plus_worked_numbers():
    """Reference A8: reward-to-go, then whitening over the batch's tokens."""
    rewards = jnp.array([[0.0, 0, 1], [0, 0.5, 0]])
    mask = jnp.array([[True] * 3, [True, True, False]])
    to_go = advantages.reward_to_go(rewards, mask, discount=0.9)
    expected = [[0.318779, 0.686601, 1.095293], [-1.152509, -0.948164, 0]]
    close(advantages.whitened(to_go, mask), expected, 5e-6)


def test_smoothed_worked_numbers():
    """PCPG, reference C7: width 1 is plain, the mass inside is kept."""
    rewards, mask = jnp.array([0.0, 0, 1, 0, 0]), jnp.ones(5, bool)
    close(advantages.smoothed_rewards(rewards, mask, width=1), rewards)
    close(
        advantages.smoothed_rewards(rewards, mask, width=3), [0, 1 / 3, 1 / 3, 1 / 3, 0]
    )
    # At the edges the window shrinks.
    edge = advantages.smoothed_rewards(
        jnp.array([1.0, 0, 0]), jnp.ones(3, bool), width=3
    )
    close(edge, [0.5, 1 / 3, 0])


def test_kl_in_reward_is_the_sequence_gradient():
    """∇(E r − β KL) by enumeration: reward-to-go of r_T − β k1 as weights, which is
    PRL's and FRPO's outcome less the future KL."""
    beta = 0.3
    world = tree_world()
    weights = to_go_of_kl(world, world.rewards, beta)
    close(world.update(weights), world.objective_gradient(beta), 1e-5)
    # At the optimum r − β Σ log(π*/π_ref) is β log Z for every completion.
    log_z = jax.nn.logsumexp(world.logp_ref.sum(-1) + world.rewards / beta)
    gap = world.optimal_logp(beta) - world.logp_ref
    rewards = advantages.at_last_token(world.rewards, world.mask) - beta * gap
    optimal = advantages.reward_to_go(rewards, world.mask)
    close(optimal[:, 0], beta * log_z, 1e-5)


def to_go_of_kl(world, rewards, beta):
    """Reward-to-go of the outcome less ``β (log π − log π_ref)`` at each token."""
    gap = world.logp(world.theta) - world.logp_ref
    token_rewards = advantages.at_last_token(rewards, world.mask) - beta * gap
    return advantages.reward_to_go(token_rewards, world.mask)


def test_preference_token_rewards_are_potential_shaping():
    """RTO, reference 7.3: β Σ log(π*/π_ref) = r − V*(x) for the optimal π*."""
    beta = 0.5
    world = tree_world()
    whole = jnp.sum(jnp.where(world.mask, world.logp_ref, 0), -1)
    value = beta * jax.nn.logsumexp(whole + world.rewards / beta)
    # Token log-ratios of the optimum: differences of soft values along the path.
    optimal = world.optimal_logp(beta)
    rewards = advantages.preference_token_rewards(
        optimal, world.logp_ref, world.logp_ref, world.mask, scale=beta, beta=0.0
    )
    close(rewards.sum(-1), world.rewards - value, 1e-5)
    clipped = advantages.preference_token_rewards(
        optimal, world.logp_ref, world.logp_ref, world.mask, scale=beta, clip=0.05
    )
    assert float(jnp.max(jnp.abs(clipped))) <= 0.05 + 1e-7


class TreeWorld:
    """Two tokens of three, nine completions, rewards on each."""

    def __init__(self):
        self.tokens, self.mask = exact.enumerate_completions(3, 2)
        keys = jax.random.split(jax.random.key(3), 3)
        self.theta = jax.random.normal(keys[0], (4, 3))
        self.ref = jax.random.normal(keys[1], (4, 3))
        self.rewards = jax.random.normal(keys[2], (9,))
        self.logp_ref = self.logp(self.ref)

    def logp(self, theta):
        table = jax.nn.log_softmax(theta)
        first, second = self.tokens[:, 0], self.tokens[:, 1]
        return jnp.stack([table[0, first], table[1 + first, second]], axis=-1)

    def update(self, weights):
        """E[Σ_t w_t ∇log π_t], the weights held."""
        law = jnp.exp(self.logp(self.theta).sum(-1))

        def loss(theta):
            return jnp.sum(law[:, None] * weights * self.logp(theta))

        return jax.grad(loss)(self.theta)

    def objective_gradient(self, beta):
        def objective(theta):
            logp = self.logp(theta).sum(-1)
            kl = logp - self.logp_ref.sum(-1)
            return jnp.sum(jnp.exp(logp) * (self.rewards - beta * kl))

        return jax.grad(objective)(self.theta)

    def optimal_logp(self, beta):
        whole = self.logp_ref.sum(-1) + self.rewards / beta
        log_joint = jax.nn.log_softmax(whole).reshape(3, 3)
        first = jax.nn.logsumexp(log_joint, axis=-1)
        second = log_joint - first[:, None]
        index = self.tokens
        return jnp.stack(
            [first[index[:, 0]], second[index[:, 0], index[:, 1]]], axis=-1
        )


def tree_world():
    return TreeWorld()


def test_whole_sequence_kl_agrees_with_the_estimators_room():
    """Reward-to-go of k1 is estimators.sequence_kl_surrogate's weight."""
    world = tree_world()
    law = jnp.exp(world.logp(world.theta).sum(-1))

    def loss(theta):
        terms = estimators.sequence_kl_surrogate(
            world.logp(theta), world.logp_ref, world.mask
        )
        return jnp.sum(jax.lax.stop_gradient(law)[:, None] * terms)

    weights = to_go_of_kl(world, 0 * world.rewards, 1.0)
    close(jax.grad(loss)(world.theta), -world.update(weights), 1e-5)


EMPTY = jnp.zeros((2, 3), bool)


def test_nothing_generated_is_all_zeros():
    """An empty completion, and a batch that is masked whole: zeros, not NaN."""
    bad = jnp.full((2, 3), jnp.nan)
    for actual in (
        advantages.gae(bad, bad, EMPTY),
        advantages.reward_to_go(bad, EMPTY),
        advantages.whitened(bad, EMPTY),
        advantages.at_last_token(jnp.ones(2), EMPTY),
        advantages.smoothed_rewards(bad, EMPTY, width=3),
        advantages.last_value(bad, EMPTY),
        advantages.exploration_advantages(bad, bad, EMPTY),
        advantages.relative_entropy_level(bad, EMPTY, pivot=0.5),
    ):
        np.testing.assert_array_equal(actual, 0)


def test_one_token_and_huge_rewards():
    one = jnp.array([[True, False]])
    rewards = jnp.array([[1e6, 0.0]])
    np.testing.assert_array_equal(advantages.whitened(rewards, one), 0)
    close(advantages.gae(rewards, 0 * rewards, one), rewards)
    # Equal values whose mean rounds.
    assert not advantages.whitened(
        jnp.full((3, 7), 1e6 / 3), jnp.ones((3, 7), bool)
    ).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.gae(REWARDS, VALUES, ALL, discount=1.5),
        lambda: advantages.gae(REWARDS, VALUES, ALL, trace=-0.1),
        lambda: advantages.whitened(REWARDS[None], ALL[None], eps=0.0),
        lambda: advantages.smoothed_rewards(REWARDS, ALL, width=2),
        lambda: advantages.preference_token_rewards(
            REWARDS, REWARDS, REWARDS, ALL, scale=0.0
        ),
        lambda: advantages.exploration_advantages(REWARDS, REWARDS, ALL, power=-1.0),
        lambda: advantages.entropy_shaped(REWARDS, REWARDS, ALL, kappa=1.0),
        lambda: advantages.relative_entropy_level(REWARDS[None], ALL[None], pivot=1.0),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
