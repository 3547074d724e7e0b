"""Worked numbers of the reference notes, and the reductions between methods."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages
from alignax.types import InputError
from tests.table_advantages import ROWS

REWARDS = jnp.array([1.0, 0, 0, 1, 1, 0, 0, 0])


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def groups_with_rates(counts, size):
    return jnp.array([[1.0] * c + [0.0] * (size - c) for c in counts])


def test_beta_normalised_worked_numbers():
    """BNPO, reference B11: a = b = 2.5, so both parameters are 1.8333."""
    actual = advantages.beta_normalised(groups_with_rates([1, 2, 3, 2], 4))
    close(actual[0, [0, 3]], [0.667379, -0.222460])
    close(actual[1, [0, 3]], [0.350079, -0.350079])
    close(actual[2, [0, 3]], [0.222460, -0.667379])
    # Rewards of −1 and 1 are the same problem.
    signs = 2 * groups_with_rates([1, 2, 3, 2], 4) - 1
    close(advantages.beta_normalised(signs, low=-1.0), actual)


def rewards_with_moments(mean, variance):
    """Two groups whose success rates have the sample mean and variance given."""
    half = np.sqrt(variance / 2)
    return jnp.array([[mean + half, mean + half], [mean - half, mean - half]]) + (
        jnp.array([[0.1, -0.1]])
    )


def test_beta_normalised_reduces_to_grpo_and_reinforce():
    """Parameters of 3/2 (a = b = 3/2) give π/8 of GRPO's, of 1 centred rewards."""
    # Var of Beta(3/2, 3/2) is 1/16; the rates are then .5 ± .1768.
    rewards = rewards_with_moments(0.5, 1 / 16)
    rate = rewards.mean(-1, keepdims=True)
    grpo = (rewards - rate) / jnp.sqrt(rate * (1 - rate))
    close(advantages.beta_normalised(rewards), np.pi / 8 * grpo, 1e-5)
    # A variance above the uniform law's: a, b < 0 and the density is flat.
    wide = groups_with_rates([0, 4, 0, 4, 2], 4)
    close(advantages.beta_normalised(wide)[4], wide[4] - 0.5)


def test_beta_normaliser_is_the_best_one():
    """Reference B11: E[(R−p)²/f²] is least at α = 1 + a/3, β = 1 + b/3."""
    from scipy import integrate, stats

    def variance(alpha, beta, a=2.0, b=3.0):
        def integrand(p):
            density = stats.beta.pdf(p, alpha, beta)
            return stats.beta.pdf(p, a, b) * p * (1 - p) / density**2

        return integrate.quad(integrand, 0, 1)[0]

    best = variance(1 + 2 / 3, 2.0)
    assert best == pytest.approx(0.136687, abs=1e-6)
    for step in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert variance(1 + 2 / 3 + step[0], 2.0 + step[1]) > best
    assert variance(1.5, 1.5) * (np.pi / 8) ** -2 > best
    assert variance(1.0, 1.0) == pytest.approx(0.2, abs=1e-6)


def test_token_group_worked_numbers():
    """HAPO's token-level group average, reference B8, and OPO's baseline, A18."""
    rewards, lengths = jnp.array([1.0, 0.0]), jnp.array([2, 6])
    actual = advantages.token_group_standardised(rewards, lengths)
    close(actual, [1.732051, -0.577350], 1e-5)
    assert abs(float(jnp.sum(actual * lengths))) < 1e-5
    lengths = jnp.array([2, 4, 4, 2, 6, 2, 2, 2])
    baseline = REWARDS[0] - advantages.length_weighted_centred(REWARDS, lengths)[0]
    close(baseline, 0.416667)


def test_token_group_falls_back_for_extremes():
    rewards, lengths = jnp.array([1.0, 0.0, 0.0]), jnp.array([1, 500, 500])
    actual = advantages.token_group_standardised(rewards, lengths)
    close(actual, advantages.group_standardised(rewards, ddof=0, eps=1e-6))


@pytest.mark.parametrize(
    ("k", "right", "wrong"), [(1, 0.125, 0), (2, 0.25, 0.071429), (4, 0.5, 0.357143)]
)
def test_pass_at_k_weights_worked_numbers(k, right, wrong):
    """PKPO, reference C13: two right of eight."""
    correct = jnp.arange(8) % 4 == 0
    actual = advantages.pass_at_k_weights(correct, k=k)
    close(actual, np.where(correct, right, wrong))


@pytest.mark.parametrize(
    ("k", "right", "wrong"),
    [(1, 1.290994, -0.774597), (2, 1.074172, -0.358057), (4, 0.522233, -0.174078)],
)
def test_pass_at_k_training_worked_numbers(k, right, wrong):
    """Pass@k training, reference C13 with two right of eight, and k = 1 is GRPO."""
    correct = REWARDS > 0 if k == 1 else jnp.arange(8) < 2
    actual = advantages.pass_at_k_standardised(correct, k=k)
    close(actual, np.where(correct, right, wrong), 1e-5)
    close(jnp.sum(actual), 0, 1e-5)
    if k == 1:
        grpo = advantages.group_standardised(REWARDS, ddof=0, eps=1e-9)
        close(actual, grpo, 1e-5)


@pytest.mark.parametrize("correct", [jnp.zeros(4, bool), jnp.ones(4, bool)])
def test_pass_at_k_of_uniform_groups(correct):
    for k in (1, 2, 4):
        close(advantages.pass_at_k_standardised(correct, k=k), 0)
        weights = advantages.pass_at_k_weights(correct, k=k)
        close(weights, np.where(correct, k / 4, 0))


def bandit_gradient(theta, weigh, completions):
    """E[Σ_k w_k ∇log π(y_k)] over every group, and each arm's index."""
    policy = jax.nn.softmax(theta)
    scores = jnp.eye(len(theta)) - policy[None]
    arms = jnp.array(list(itertools.product(range(len(theta)), repeat=completions)))
    probability = jnp.prod(policy[arms], axis=-1)
    return jnp.einsum("n,nk,nkd->d", probability, weigh(arms), scores[arms])


def test_pkpo_is_the_gradient_of_pass_at_k():
    """By enumeration of every group of three."""
    theta, right = jnp.array([0.3, -0.2, 0.1]), 0
    exact = jax.grad(lambda t: 1 - (1 - jax.nn.softmax(t)[right]) ** 2)(theta)

    def weigh(arms):
        return advantages.pass_at_k_weights(arms == right, k=2)

    close(bandit_gradient(theta, weigh, 3), exact)


def test_best_less_second_is_the_gradient_of_the_best():
    """E max_k r_k by enumeration, to the last digit: k = n of arXiv 2503.19595."""
    theta, rewards = jnp.array([0.3, -0.2, 0.1]), jnp.array([0.0, 0.4, 1.0])
    arms = jnp.array(list(itertools.product(range(3), repeat=3)))

    def best(theta):
        policy = jax.nn.softmax(theta)
        return jnp.sum(jnp.prod(policy[arms], -1) * jnp.max(rewards[arms], -1))

    def weigh(arms):
        return advantages.best_less_second(rewards[arms])

    close(bandit_gradient(theta, weigh, 3), jax.grad(best)(theta))
    close(advantages.best_less_second(jnp.array([0.9, 0.5, 0.2, 0.1]))[0], 0.4)


def test_greedy_baseline_is_unbiased():
    """ReMax, one sample a prompt, by enumeration."""
    theta, rewards = jnp.array([0.3, -0.2, 0.1]), jnp.array([1.0, 0.0, 0.4])
    greedy = rewards[jnp.argmax(theta)]

    def weigh(arms):
        return advantages.greedy_centred(rewards[arms], jnp.full(len(arms), greedy))

    exact = jax.grad(lambda t: jax.nn.softmax(t) @ rewards)(theta)
    close(bandit_gradient(theta, weigh, 1), exact)


def test_semantic_entropy_worked_numbers():
    """SEED-GRPO, reference B6, and one cluster is plain."""
    clusters, logp = jnp.array([7, 7, 2, 3]), jnp.zeros(4)
    close(advantages.semantic_entropy(clusters, logp), 1.155245)
    one = jnp.zeros(4, int)
    close(advantages.semantic_entropy(one, jnp.array([-1.0, -50, -2, -3])), 0)
    close(advantages.semantic_entropy(jnp.arange(4), logp), np.log(4))
    rewards = jnp.array([1.0, 0, 0, 1])
    scaled = advantages.semantic_entropy_scaled(rewards, jnp.float32(0), most=1.0)
    close(scaled, advantages.group_centred(rewards))


@pytest.mark.parametrize(
    ("right", "best", "worst"),
    [(1, 2.534, -0.362), (4, 1.256, -1.256), (7, 0.266, -1.862)],
)
def test_hardness_worked_numbers(right, best, worst):
    """Confucius3-Math, reference B9."""
    rewards = jnp.where(jnp.arange(8) < right, 1.0, -1.0)
    mean = float(rewards.mean())
    weight = -0.256 * mean + 1.256
    actual = advantages.hardness_scaled(rewards)
    close(actual[0], (1 - mean) * weight)
    close(actual[-1], (-1 - mean) * weight)
    close(actual.sum(), 0, 1e-5)
    if best is not None:
        close([actual[0], actual[-1]], [best, worst])


def test_gdpo_does_not_follow_the_largest_reward():
    """Reference C8: scaling one reward by ten changes the sum, not GDPO."""
    first, second = jnp.array([1.0, 1, 0, 0]), jnp.array([1.0, 0, 1, 0])
    rewards = jnp.stack([first, 10 * second], axis=-1)[None]
    summed = advantages.group_standardised(rewards.sum(-1)[0], eps=1e-9)
    close(summed, [0.9479, -0.7755, 0.7755, -0.9479], 1e-4)
    apart = advantages.decoupled_standardised(rewards, jnp.ones(2), eps=1e-9)
    close(apart[0], [1.2247, 0, 0, -1.2247], 1e-4)


def test_baseline_of_some_completions_only():
    """RL-PLUS: a demonstration does not move the baseline of the policy's own."""
    rewards = jnp.array([1.0, 0.0, 0.0, 9.0])
    own = jnp.array([True, True, True, False])
    actual = advantages.group_centred(rewards, own)
    close(actual[:3], advantages.group_centred(rewards[:3]))
    close(actual[3], 9 - 1 / 3)
    standard = advantages.group_standardised(rewards, own)
    close(standard[:3], advantages.group_standardised(rewards[:3]))


def test_advantages_carry_no_gradient():
    """The gradient of every row of the table is exactly 0: one compilation."""
    rows = [row for row in ROWS if row.name != "advantages.linear_decay"]
    constants = [row.args for row in rows]
    floats = [[x for x in args if x.dtype == jnp.float32] for args in constants]

    def total(values):
        result = 0.0
        for row, args, given in zip(rows, constants, values, strict=True):
            left = iter(given)
            full = [next(left) if x.dtype == jnp.float32 else x for x in args]
            leaves = jax.tree.leaves(row.fn(*full))
            result += sum(
                jnp.sum(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)
            )
        return result

    assert len(rows) > 40
    for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(floats)):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("reward", [0.0, 1.0, 1e6, -3.7])
def test_equal_rewards_teach_nothing(reward):
    """No NaN, and no advantage: exactly 0, or rounding of the mean."""
    rewards, lengths = jnp.full((2, 4), reward), jnp.full((2, 4), 3)
    tolerance = abs(reward) * 1e-6
    for actual in (
        advantages.batch_standardised(rewards),
        advantages.token_group_standardised(rewards, lengths),
        advantages.best_less_second(rewards),
        advantages.decoupled_standardised(rewards[..., None], jnp.ones(1)),
    ):
        np.testing.assert_array_equal(actual, 0)
    close(advantages.length_weighted_centred(rewards, lengths), 0, tolerance + 1e-9)
    if reward in (0.0, 1.0):
        np.testing.assert_array_equal(advantages.beta_normalised(rewards), 0)


def test_huge_rewards_stay_finite():
    rewards = jnp.array([[1e6, -1e6, 0, 0], [1e6, 1e6, 1e6, 1e6]])
    lengths = jnp.array([[0, 0, 1, 5], [0, 0, 0, 0]])
    for actual in (
        advantages.group_standardised(rewards),
        advantages.leave_one_out(rewards),
        advantages.batch_standardised(rewards),
        advantages.token_group_standardised(rewards, lengths),
        advantages.length_weighted_centred(rewards, lengths),
        advantages.decoupled_standardised(rewards[..., None], jnp.ones(1)),
    ):
        assert np.isfinite(actual).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.hardness_scaled(REWARDS, slope=-2.0),
        lambda: advantages.pass_at_k_weights(REWARDS > 0, k=0),
        lambda: advantages.pass_at_k_weights(REWARDS > 0, k=9),
        lambda: advantages.beta_normalised(REWARDS[None], low=1.0),
        lambda: advantages.semantic_entropy_scaled(REWARDS, REWARDS[0], most=0.0),
        lambda: advantages.batch_standardised(REWARDS[None], eps=0.0),
        lambda: advantages.beta_normalised(REWARDS[:, None]),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
