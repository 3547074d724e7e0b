"""pass@k as an objective, and over prompts that were sampled unequally often."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import evaluation
from alignax.types import InputError


def test_samples_may_differ_by_prompt():
    """Reference C12: ρ(10,3,5) = .916667, ρ(10,8,5) = 1; ρ(256,1,64) = .25."""
    correct, samples = jnp.array([[3, 8, 1], [0, 5, 2]]), jnp.array([10, 10, 256])
    samples = jnp.broadcast_to(samples, (2, 3))
    values = jax.jit(evaluation.pass_at_k, static_argnames="k")(correct, samples, k=5)
    np.testing.assert_allclose(values[0, :2], [0.916667, 1], atol=1e-6)
    expected = [
        [1 - math.comb(n - c, 5) / math.comb(n, 5) for n, c in zip(ns, cs, strict=True)]
        for ns, cs in zip(samples.tolist(), correct.tolist(), strict=True)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    rare = evaluation.pass_at_k(jnp.array([1]), jnp.array([256]), k=64)
    np.testing.assert_allclose(rare, 0.25, rtol=1e-6)


def test_too_few_samples_for_k_say_nothing():
    values = evaluation.pass_at_k(jnp.array([2, 1, 0]), jnp.array([4, 3, 8]), k=4)
    np.testing.assert_array_equal(jnp.isnan(values), [False, True, False])
    np.testing.assert_allclose(values[jnp.array([0, 2])], [1, 0])
    with pytest.raises(InputError, match="k must be"):
        evaluation.pass_at_k(jnp.array([1]), jnp.array([4]), k=0)


def weights(rewards, k):
    """k/n where right, ``(k/n) ρ(n − 1, c, k − 1)`` where wrong."""
    n = rewards.shape[-1]
    correct = jnp.sum(rewards, axis=-1).astype(jnp.int32)
    # With all right nothing is wrong: any count does there.
    correct = jnp.minimum(correct, n - 1)
    others = 0.0 * correct
    if k > 1:
        others = evaluation.pass_at_k(correct, n - 1, k=k - 1)
    return jnp.where(rewards > 0, k / n, others[..., None] * (k / n))


@pytest.mark.parametrize(
    ("k", "right", "wrong"),
    [(1, 0.125, 0.0), (2, 0.25, 0.071429), (4, 0.5, 0.357143)],
)
def test_weights_of_the_reference(k, right, wrong):
    """Reference C13, R = [1,0,0,0,1,0,0,0]; PKPO, arXiv 2505.15201."""
    rewards = jnp.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    expected = np.where(np.array(rewards) > 0, right, wrong)
    np.testing.assert_allclose(weights(rewards, k), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("k", "right", "wrong"),
    [(1, 1.732051, -0.577350), (2, 1.074172, -0.358057), (4, 0.522233, -0.174078)],
)
def test_standardised_weights_are_the_pass_at_k_advantages(k, right, wrong):
    """Reference C13: ``A = ((n/k) w − ρ)/√(ρ(1 − ρ))`` sums to 0; arXiv 2508.10751."""
    rewards = jnp.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    rho = evaluation.pass_at_k(jnp.array(2), 8, k=k)
    advantages = (8 / k * weights(rewards, k) - rho) / jnp.sqrt(rho * (1 - rho))
    expected = np.where(np.array(rewards) > 0, right, wrong)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(advantages.sum(), 0, atol=1e-5)


def test_weighted_scores_are_the_gradient_of_pass_at_k():
    """Reference C13, n = 3, k = 2: ``E Σ_i w_i ∇ log π(y_i) = ∇ (1 − (1 − p)^k)`` over
    all draws; PKPO, arXiv 2505.15201."""
    with jax.enable_x64(True):
        logits = jnp.array([0.0, 0.5, -0.6])
        draws = jnp.array(list(itertools.product(range(3), repeat=3)))
        right = jnp.where(draws == 0, 1.0, 0.0)

        def expected_score(logits):
            logp = jax.nn.log_softmax(logits)
            chances = jax.lax.stop_gradient(jnp.exp(logp[draws].sum(1)))
            return jnp.sum(chances[:, None] * weights(right, 2) * logp[draws])

        def passes(logits):
            return 1 - (1 - jax.nn.softmax(logits)[0]) ** 2

        gradient = jax.grad(passes)(logits)
        by_scores = jax.jit(jax.grad(expected_score))(logits)
        np.testing.assert_allclose(by_scores, gradient, atol=1e-7)
        np.testing.assert_allclose(
            gradient, [0.295431, -0.221650, -0.073781], atol=1e-6
        )
