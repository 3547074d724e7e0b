"""Pairs from samples, rejection sampling, sampling laws, differential information."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import preference as pf
from alignax.types import InputError
from tests.close import EPS
from tests.games.cases import DICE
from tests.preference.expected import fit_policy


def test_best_and_worst():
    """The first of equals, masked completions never, and equal rewards reported."""
    rewards = jnp.array([[1.0, 3.0, 3.0, 9.0], [2.0, 2.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    best, worst, differ = pf.best_and_worst(rewards, mask)
    np.testing.assert_array_equal(best, [1, 0])
    np.testing.assert_array_equal(worst, [0, 0])
    np.testing.assert_array_equal(differ, [True, False])


def test_best_of_n_estimate_is_the_mean_over_subsets():
    """WebGPT's estimator by brute force, and its golden values."""
    gold = np.array([0.3, 0.9, 0.1, 0.5, 0.7])
    proxy = np.array([0.2, -1.0, 0.4, 3.0, 0.0])
    for n in range(1, 6):
        best = [gold[max(s, key=lambda i: proxy[i])] for s in combinations(range(5), n)]
        found = pf.best_of_n_estimate(jnp.asarray(proxy), jnp.asarray(gold), n=n)
        np.testing.assert_allclose(found, np.mean(best), rtol=1e-5)
    in_order = jnp.arange(5.0)
    own = [
        pf.best_of_n_estimate(in_order, jnp.asarray(gold), n=n) for n in (1, 2, 3, 5)
    ]
    np.testing.assert_allclose(own, [0.5, 0.54, 0.58, 0.7], rtol=1e-5)
    with pytest.raises(InputError, match="n must be in 1 to"):
        pf.best_of_n_estimate(jnp.asarray(proxy), jnp.asarray(gold), n=6)


@pytest.mark.parametrize(("count", "n"), [(4096, 64), (65536, 256), (65536, 4096)])
def test_best_of_n_estimate_of_a_constant(count, n):
    """The weights sum to 1 at any size, and the mean of the best rank is known."""
    proxy = jnp.asarray(np.random.default_rng(n).permutation(count), jnp.float32)
    found = pf.best_of_n_estimate(proxy, jnp.ones(count), n=n)
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)
    # The largest of n of 1 … N is n (N + 1) / (n + 1) on average.
    found = pf.best_of_n_estimate(proxy, (proxy + 1) / count, n=n)
    np.testing.assert_allclose(found, n * (count + 1) / (n + 1) / count, rtol=1e-6)


def test_rejection_law_golden_values():
    """RSO, arXiv 2309.06657, theorem 1: acceptance rate and accepted law."""
    with jax.enable_x64(True):
        ref = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
        rewards = jnp.array([0, 0.5, 1, 2.0])
        logp, log_rate = pf.rejection_law(ref, rewards, beta=0.5)
        expected = (0.049061028508, 0.10002127671, 0.18125734596, 0.669660348821)
        np.testing.assert_allclose(jnp.exp(logp), expected, rtol=1e-8)
        np.testing.assert_allclose(jnp.exp(log_rate), 0.1493294327131754)
        _, log_rate = pf.rejection_law(ref, rewards, beta=1.0)
        np.testing.assert_allclose(jnp.exp(log_rate), 0.2946490495734625)


def test_rejection_sampling_ends():
    """β → 0 keeps the best, β → ∞ the first; never one twice."""
    rewards = jnp.array([0.3, 2.0, -1.0, 1.0, 0.5])
    sample = jax.jit(pf.rejection_sample, static_argnames=("count", "beta"))
    key = jax.random.key(1)
    np.testing.assert_array_equal(
        np.sort(sample(key, rewards, count=3, beta=1e-3)), [1, 3, 4]
    )
    np.testing.assert_array_equal(sample(key, rewards, count=3, beta=1e6), [0, 1, 2])
    np.testing.assert_array_equal(
        np.sort(sample(key, rewards, count=5, beta=0.5)), np.arange(5)
    )
    with pytest.raises(InputError, match="count must be in"):
        pf.rejection_sample(key, rewards, count=6, beta=0.5)


def test_rejection_sampling_follows_its_law():
    """The first accepted of many candidates of ρ has the law ∝ ρ e^{r/β}: 2 000 runs
    against the exact law, within five standard errors."""
    ref, reward = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0.0, 0.5, 1.0])
    law, _ = pf.rejection_law(ref, reward, beta=0.7)

    def run(key):
        draw, keep = jax.random.split(key)
        candidates = jax.random.categorical(draw, ref, shape=(32,))
        kept = pf.rejection_sample(keep, reward[candidates], count=1, beta=0.7)
        return candidates[kept[0]]

    outcomes = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), 2000))
    shares = np.bincount(np.asarray(outcomes), minlength=3) / 2000
    p = np.exp(np.asarray(law))
    assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / 2000)).all()


def test_online_and_offline_ipo_part():
    """Offline IPO fits win rates against the data's law, online IPO the equilibrium:
    on intransitive dice, ``ρ e^{P(·≻μ)/β}`` against uniform (Tang et al., arXiv
    2405.08448; Calandriello et al., arXiv 2403.08635)."""
    dice = jnp.array(DICE)
    uniform = jnp.log(jnp.full(3, 1 / 3))
    data = jnp.array([0.6, 0.3, 0.1])
    loss = partial(pf.ipo, beta=0.1)
    run = partial(fit_policy, loss, uniform, dice, learning_rate=0.2, steps=1500)
    offline = jnp.exp(run(data))
    np.testing.assert_allclose(
        offline, (0.365639092229, 0.247833678806, 0.386527228965), atol=1e-4
    )
    np.testing.assert_allclose(jnp.exp(run()), 1 / 3, atol=1e-4)


def test_dpo_under_bradley_terry_does_not_mind_who_samples():
    """With labels that a reward explains, online and offline DPO agree on π*."""
    rewards, ref = jnp.array([0.5, 0.0, -0.5]), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    wins = jax.nn.sigmoid(rewards[:, None] - rewards[None])
    run = partial(
        fit_policy,
        partial(pf.dpo, beta=0.8),
        ref,
        wins,
        learning_rate=2.0,
        steps=800,
    )
    optimum = jax.nn.softmax(ref + rewards / 0.8)
    for law in (None, jnp.array([0.6, 0.2, 0.2])):
        np.testing.assert_allclose(jnp.exp(run(law)), optimum, atol=2e-3)


TARGET, REF = jnp.array([0.4, 0.3, 0.2, 0.1]), jnp.array([0.1, 0.2, 0.3, 0.4])


def test_divergence_sft_is_the_conjugate():
    """Wang et al., arXiv 2507.00018 (reconstructed): ``−φ(βl)``, ``φ(x) = −f*(−x)``;
    Pearson ``x − x²/4`` up to its scale, Hellinger ``x/(1 + x)``, and the weight of a
    demonstration falls as the policy takes it up."""
    ratio, zero = jnp.array([-0.4, 0.0, 0.7]), jnp.zeros(3)
    pearson = pf.divergence_sft(dv.pearson(), ratio, zero, beta=0.5)
    x = 0.5 * np.asarray(ratio)
    np.testing.assert_allclose(pearson, -(x - x**2 / 4), atol=1e-6)
    # Ours is the squared Hellinger distance, halved: f* (y) = y / (1 − 2y).
    hellinger = pf.divergence_sft(dv.squared_hellinger(), ratio, zero, beta=0.5)
    np.testing.assert_allclose(hellinger, -x / (1 + 2 * x), atol=1e-6)
    slopes = jax.vmap(
        jax.grad(lambda l: pf.divergence_sft(dv.pearson(), l, 0 * l, beta=0.5))
    )(ratio)
    np.testing.assert_allclose(slopes, -0.5 * (1 - x / 2), rtol=1e-5)


@pytest.mark.parametrize(
    "div",
    [
        dv.reverse_kl(),
        dv.forward_kl(),
        dv.jensen_shannon(),
        dv.pearson(),
        dv.jeffreys(),
    ],
    ids=str,
)
def test_divergence_sft_weights_are_bounded(div):
    """At log-ratios of ±10⁴ value and gradient are finite, and the weight is at most
    ``β max_weight``; at the reference it is β."""
    slope = jax.vmap(
        jax.grad(
            lambda l: pf.divergence_sft(div, l, jnp.zeros(()), beta=0.3, max_weight=5.0)
        )
    )
    slopes = slope(jnp.array([-1e4, -10.0, 0.0, 1e4]))
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[2], -0.3, rtol=1e-4)
    np.testing.assert_allclose(slopes[0], -0.3 * 5, rtol=1e-3)
    assert (np.diff(slopes) >= -1e-6).all()


def test_total_variation_sft_is_sft():
    """Every demonstration has the same weight, at any ratio."""
    slopes = jax.vmap(
        jax.grad(lambda l: pf.divergence_sft(dv.total_variation(), l, 0 * l, beta=0.3))
    )(jnp.array([-1e4, 0.0, 50.0]))
    np.testing.assert_allclose(slopes, -0.3, rtol=4 * EPS)
