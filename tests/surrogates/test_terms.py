"""Entropy control, further terms and the critic, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators, preference, surrogates
from alignax.types import InputError


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_covariances_worked_numbers():
    """Reference B10."""
    values = jnp.array([[1.0, 1, 1, -1, -1, -1]])
    logp = jnp.array([[-0.1, -3, -0.5, -2, -0.2, -4]])
    actual = surrogates.covariances(logp, values, logp < 1)
    close(actual[0], [1.5333, -1.3667, 1.1333, 0.3667, -1.4333, 2.3667], 1e-4)


def test_covariance_predicts_the_fall_of_entropy():
    """ΔH ≈ −Cov(log π, Δz) to first order; reference B10."""
    logits, advantages = (
        np.array([1.0, 0.2, -0.5, 0.3]),
        np.array([0.8, -0.3, -0.5, 0.1]),
    )
    policy = np.exp(logits) / np.exp(logits).sum()
    advantages = advantages - policy @ advantages

    def entropy(z):
        p = np.exp(z) / np.exp(z).sum()
        return -(p * np.log(p)).sum()

    for step, expected in ((policy * advantages, -7.1669e-5), (advantages, -2.4455e-4)):
        change = entropy(logits + 1e-3 * step) - entropy(logits)
        assert change == pytest.approx(expected, rel=1e-3)
        mean = policy @ step
        covariance = policy @ (np.log(policy) * (step - mean))
        assert change == pytest.approx(-1e-3 * covariance, rel=1e-3)


def test_kl_cov_has_no_gradient_at_ratio_one():
    """|d| through ``estimators.absolute_log_ratio``: jax.grad(abs)(0) would be 1."""
    logp = jnp.array([-1.0, -2.0])
    chosen = jnp.ones(2, bool)

    def loss(x):
        return jnp.sum(estimators.absolute_log_ratio(x, logp, chosen))

    np.testing.assert_array_equal(jax.grad(loss)(logp), 0)
    np.testing.assert_array_equal(jax.grad(loss)(logp + 0.1), 1)


def test_clip_cov_draws_within_its_bounds():
    covariance = jnp.linspace(0, 6, 60).reshape(6, 10)
    mask = jnp.arange(10)[None] < jnp.full((6, 1), 9)
    draw = jax.jit(
        lambda key: surrogates.clip_cov_dropped(
            jax.random.uniform(key, mask.shape), covariance, mask, fraction=0.1
        )
    )
    dropped = np.stack([draw(key) for key in jax.random.split(jax.random.key(0), 20)])
    assert (dropped.sum((1, 2)) == 5).all()
    inside = np.asarray(mask & (covariance > 1) & (covariance < 5))
    assert not dropped[:, ~inside].any()
    assert (dropped.any(0) == inside).mean() > 0.9
    nothing = surrogates.clip_cov_dropped(covariance, 0 * covariance, mask)
    assert not nothing.any()


def test_entropy_target_is_a_distance():
    entropy = jnp.array([[0.2, 0.6, 9.0]])
    mask = jnp.array([[True, True, False]])

    def loss(entropy, target):
        mean = jnp.sum(jnp.where(mask, entropy, 0)) / 2
        terms = surrogates.entropy_target_surrogate(entropy, mean, mask, target=target)
        return jnp.sum(terms) / 2

    for target, sign in ((0.3, 1), (0.5, -1)):
        value, gradient = jax.value_and_grad(loss)(entropy, target)
        close(value, abs(0.4 - target))
        close(gradient[0], [sign / 2, sign / 2, 0])


def test_adaptive_clip_worked_numbers():
    """HAPO, reference B8."""
    level = jnp.array([-1, -0.397940, 0, 0.5, 1])
    low, high = surrogates.adaptive_clip(level)
    close(low, [0.4, 0.279588, 0.2, 0.2, 0.2])
    close(high, [0.2, 0.2, 0.2, 0.3, 0.4])
    # Arrays of bounds go into a rule; level 0 is PPO.
    values, mask = jnp.ones(5), jnp.ones(5, bool)
    ratios = jnp.log(jnp.array([1.25, 1.25, 1.25, 1.25, 1.25]))
    actual = surrogates.ppo_surrogate(
        ratios, values, mask, clip_low=low, clip_high=high
    )
    close(actual, [-1.2, -1.2, -1.2, -1.25, -1.25])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.39, [1, 0, 0, 0, 0]),
        (0.6, [0.571429, 0.428571, 0, 0, 0]),
        (0.75, [0.444444, 0.333333, 0.222222, 0, 0]),
        (0.95, [0.412371, 0.309278, 0.206186, 0.072165, 0]),
    ],
)
def test_nlpo_worked_numbers(p, expected):
    """Preference reference 7.8."""
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.07, 0.03]))
    masked = surrogates.masked_policy_logits(logits, logits, p=p)
    close(jax.nn.softmax(masked), expected)
    plain = surrogates.masked_policy_logits(logits, logits, p=1.0)
    close(plain, logits)

    def gap(stale):
        return jnp.exp(surrogates.masked_policy_logits(logits, stale, p=p)).sum()

    np.testing.assert_array_equal(jax.grad(gap)(logits), 0)


def test_one_token_rollout_is_dynamic_fine_tuning():
    """Reference C4: at κ = 1 the gradient is (1 − b) π(y) ∇log π(y)."""
    logits, label = jnp.array([0.5, -0.2, 0.1, 0.9]), jnp.array(1)

    def exact(z, temperature):
        """The expectation over all draws: rewards 1 and −0.1, held laws."""
        law = jax.lax.stop_gradient(jax.nn.softmax(z / temperature))
        rewards = jnp.full(4, -0.1).at[label].set(1.0)
        return -jnp.sum(law * rewards * jax.nn.log_softmax(z))

    gradient = jax.grad(exact)(logits, 1.0)
    close(-gradient, [-0.040806, 0.129035, -0.027353, -0.060876], 1e-5)
    probability = jax.nn.softmax(logits)[1]
    supervised = jax.grad(lambda z: jax.nn.log_softmax(z)[1])(logits)
    close(-gradient, 1.1 * probability * supervised, 1e-5)
    close(-jax.grad(exact)(logits, 1.3)[:2], [-0.047544, 0.148527], 1e-5)

    def sampled(z):
        return surrogates.one_token_rollout_surrogate(
            jax.random.key(0), z, label, samples=100_000
        )

    close(jax.grad(sampled)(logits), jax.grad(exact)(logits, 1.3), 4e-3)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_forward_exploration_is_the_generalised_kl(share):
    """RAPO, reference B20: value and gradient over all outcomes."""
    theta = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    ref = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    mask = jnp.ones((3, 1), bool)

    def terms(theta):
        logp = jax.nn.log_softmax(theta)[:, None]
        return surrogates.forward_exploration_surrogate(
            logp, ref[:, None], jnp.full(3, share), mask
        )[:, 0]

    def generalised(theta):
        policy = jax.nn.softmax(theta)
        q = jnp.exp(share * ref)
        return jnp.sum(q * (jnp.log(q) - jnp.log(policy)) - q + policy)

    law = jnp.exp(theta)
    close(law @ terms(theta), generalised(theta))
    if share == 1:
        close(generalised(theta), 0.365274)
    actual = jax.grad(lambda t: law @ terms(t))(theta)
    close(actual, jax.grad(generalised)(theta), 1e-5)


def test_pair_policy_has_its_optimum_for_any_pairs():
    """CoPG, reference C1."""
    ref = jax.nn.log_softmax(jnp.array([0.0, 0.4, -0.2]))
    rewards, beta = jnp.array([1.0, 0.2, -0.5]), 0.5
    behaviour = jnp.array([0.2, 0.5, 0.3])
    first, second = jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij")
    pairs = jnp.stack([first.ravel(), second.ravel()], axis=-1)

    def expected(theta, law):
        logp = jax.nn.log_softmax(theta)
        one = jnp.ones(9, int)
        sides = *logp[pairs].T, *ref[pairs].T, one, one
        losses = preference.copg(preference.Pair(*sides), *rewards[pairs].T, beta=beta)
        return jnp.sum(jnp.prod(law[pairs], axis=-1) * losses)

    best = ref + rewards / beta
    close(jax.nn.softmax(best), [0.745181, 0.224444, 0.030375])
    close(jax.grad(expected)(best, behaviour), 0)
    theta = jnp.array([0.3, -0.2, 0.5])
    policy = jax.nn.softmax(theta)
    close(-jax.grad(expected)(theta, policy), [0.572367, 0.197023, -0.769391], 1e-5)


def test_product_of_experts_is_a_tilted_law():
    base, expert, anti = jax.random.normal(jax.random.key(0), (3, 5))
    logits = surrogates.product_of_experts_logits(
        base, jnp.stack([expert, anti]), jnp.array([2.0, -2.0])
    )
    law = jax.nn.softmax(base) * (jax.nn.softmax(expert) / jax.nn.softmax(anti)) ** 2
    close(jax.nn.softmax(logits), law / law.sum(), 1e-5)


def test_clipped_value_loss_branches():
    """Reference A1: the larger of the two, with a whole gradient at a tie."""
    zeros, mask = jnp.zeros(3), jnp.ones(3, bool)
    values, returns = jnp.array([0.5, 0.5, 0.1]), jnp.array([1.0, -1.0, 1.0])

    def loss(values):
        return surrogates.clipped_value_loss(values, zeros, returns, mask)

    close(loss(values), [0.32, 1.125, 0.405])
    slope = jax.grad(lambda x: loss(x).sum())(values)
    close(slope, [0, 1.5, -0.9])


def test_soft_minimum_worked_numbers():
    """SAFE, divergences reference 8.a."""
    one, two = jnp.float32(1), jnp.float32(2)
    for temperature, expected in (
        (0.3, 1.1974284),
        (0.01, 1.0069315),
        (100.0, 1.4987500),
    ):
        actual = surrogates.soft_minimum(one, two, temperature=temperature)
        close(actual, expected, 1e-5)


def test_dueling_values_are_the_models_own_law():
    """B-Coder, preference reference 7.11: softmax(Q/α) = p, advantages ≤ 0."""
    logits = jax.random.normal(jax.random.key(0), (4, 6))
    values = jnp.arange(4.0)
    q = surrogates.dueling_values(logits, values, temperature=0.3)
    close(jax.nn.softmax(q / 0.3), jax.nn.softmax(logits), 1e-5)
    close(jnp.max(q, axis=-1), values)


def test_conservative_operator_contracts_and_inverts():
    """On a random deterministic MDP: modulus γ, and rewards are recovered."""
    rng = np.random.default_rng(0)
    states, actions, discount = 5, 3, 0.9
    following = rng.integers(0, states, (states, actions))
    rewards = jnp.array(rng.normal(size=(states, actions)), jnp.float32)
    logits = jnp.array(rng.normal(size=(states, actions)), jnp.float32)
    going = jnp.zeros((states, actions), bool)

    def operator(q):
        return surrogates.conservative_targets(
            rewards, q[following], logits[following], going, discount=discount
        )

    first, second = (
        jnp.array(rng.normal(size=(states, actions)), jnp.float32) for _ in range(2)
    )
    gap = jnp.max(jnp.abs(operator(first) - operator(second)))
    assert gap <= discount * jnp.max(jnp.abs(first - second)) + 1e-6
    fixed = jax.lax.fori_loop(0, 300, lambda _, q: operator(q), first)
    recovered = fixed - (operator(fixed) - rewards)
    close(recovered, rewards, 1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: surrogates.soft_minimum(jnp.ones(1), jnp.ones(1), temperature=0.0),
        lambda: surrogates.clipped_value_loss(
            *[jnp.ones(1)] * 3, jnp.ones(1, bool), clip=0.0
        ),
        lambda: surrogates.adaptive_clip(jnp.ones(1), clip_low=0.6),
        lambda: surrogates.masked_policy_logits(jnp.ones(2), jnp.ones(2), p=0.0),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
