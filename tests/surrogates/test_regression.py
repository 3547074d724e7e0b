"""Regression to the optimum: enumerated policies, every divergence with a curvature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import advantages, preference, surrogates
from alignax import divergences as dv
from alignax.types import InputError

BETA = 1.0
REWARDS = jnp.array([1.0, 0.4, 0.0, -2.5, 0.7])
LOGP_REF = jnp.log(jnp.array([0.1, 0.3, 0.25, 0.2, 0.15]))
ONES = jnp.ones(5, bool)
# Steep f'(0): the optimum has mass everywhere. Pearson's excludes the worst.
STEEP = {
    "reverse_kl": dv.reverse_kl(),
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(),
    "squared_hellinger": dv.squared_hellinger(),
    "neyman": dv.neyman(),
    "chi2_kl": dv.chi2_kl(1.0),
    "alpha": dv.alpha(0.5),
    "jeffreys": dv.jeffreys(),
}
ALL = {**STEEP, "pearson": dv.pearson(), "alpha_sparse": dv.alpha(-2.0)}


def regression(div, logits, target, logp_ref=LOGP_REF):
    ratios = jax.nn.log_softmax(logits) - logp_ref
    return surrogates.regression_surrogate(ratios, target, ONES, div=div, beta=BETA)


@pytest.fixture(scope="module")
def optima():
    """Of every divergence, in one compilation: optimum, λ, loss and gradient there.

    In float64: where f' is steep, the gradient multiplies the optimum's rounding.
    """

    @jax.jit
    def run(rewards, logp_ref):
        found = {}
        for name, div in ALL.items():
            logp, value, _ = dv.regularised_optimum(div, rewards, logp_ref, beta=BETA)
            # Where the optimum has no mass, a policy that has almost none.
            logits = jnp.maximum(logp, -25.0)

            def total(x, div=div, value=value):
                return regression(div, x, rewards - value, logp_ref).sum()

            found[name] = logp, value, total(logits), jax.grad(total)(logits)
        return found

    with jax.enable_x64(True):
        rewards, logp_ref = (jnp.asarray(x, jnp.float64) for x in (REWARDS, LOGP_REF))
        found = run(rewards, jax.nn.log_softmax(logp_ref))
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradient_vanish_at_the_optimum(optima, name):
    _, _, loss, gradient = optima[name]
    np.testing.assert_allclose(loss, 0, atol=1e-9)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_pearson_excludes_a_completion(optima):
    logp, value, _, _ = optima["pearson"]
    excluded = np.isneginf(logp)
    assert excluded.any()
    slope = dv.pearson().slopes[0]
    np.testing.assert_array_equal(excluded, (REWARDS - value) / BETA <= slope)


@pytest.mark.parametrize("law", ["reference", "other"])
def test_the_minimiser_is_the_optimum_whatever_sampled(optima, law):
    """Adam from the reference, losses weighed by a law that the policy never had."""
    weights = {
        "reference": jnp.exp(LOGP_REF),
        "other": jnp.array([0.4, 0.05, 0.05, 0.4, 0.1]),
    }[law]
    names = list(STEEP)
    values = [optima[name][1] for name in names]
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 3000))

    @jax.jit
    def run(logits):
        def loss(logits):
            return sum(
                weights @ regression(STEEP[name], row, REWARDS - value)
                for name, row, value in zip(names, logits, values, strict=True)
            )

        def step(carry, _):
            logits, state = carry
            updates, state = optimiser.update(jax.grad(loss)(logits), state)
            return (optax.apply_updates(logits, updates), state), None

        (logits, _), _ = jax.lax.scan(
            step, (logits, optimiser.init(logits)), length=3000
        )
        return jax.nn.softmax(logits)

    start = jnp.broadcast_to(LOGP_REF, (len(names), 5))
    for name, law in zip(names, run(start), strict=True):
        np.testing.assert_allclose(
            law, jnp.exp(optima[name][0]), atol=2e-3, err_msg=name
        )


def test_a_star_po_is_the_reverse_kl():
    """TRL ``a2po_trainer.py``: V* by logsumexp, the squared error by hand."""
    v = BETA * np.log(np.mean(np.exp(np.float64(REWARDS) / BETA)))
    value = advantages.optimal_value(dv.reverse_kl(), REWARDS, beta=BETA)
    np.testing.assert_allclose(value, v, rtol=1e-6)
    ratios = jnp.array([0.3, -0.2, 1.0, -2.0, 0.0])
    expected = (1e-3 * np.float64(ratios) - (np.float64(REWARDS) - v)) ** 2
    actual = surrogates.regression_surrogate(
        ratios, REWARDS - value, ONES, div=dv.reverse_kl(), beta=1e-3
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_oapl_is_its_published_loss():
    """NeMo-RL ``docs/guides/oapl.md``: (β (log π − log ρ + log Z) − r)²."""
    ratios = jnp.array([0.3, -0.2, 1.0, -2.0, 0.0])
    log_z = np.log(np.mean(np.exp(np.float64(REWARDS) / BETA)))
    expected = (BETA * (np.float64(ratios) + log_z) - np.float64(REWARDS)) ** 2
    target = advantages.optimal_centred(REWARDS, div=dv.reverse_kl(), beta=BETA)
    actual = surrogates.regression_surrogate(
        ratios, target, ONES, div=dv.reverse_kl(), beta=BETA
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_whole_completion_is_regressed_once():
    """At its sequence's level, the mean over tokens is one squared error a row."""
    mask = jnp.array([[True, True, False], [True, False, False]])
    ratios = jnp.array([[0.1, 0.2, 9.0], [-0.4, 9.0, 9.0]])
    target = jnp.array([[0.5] * 3, [-0.5] * 3])

    @jax.jit
    def loss(x):
        level = surrogates.sequence_log_ratio(x, mask)
        values = surrogates.regression_surrogate(
            level, target, mask, div=dv.reverse_kl(), beta=1.0
        )
        return jnp.sum(jnp.sum(values, -1) / jnp.sum(mask, -1))

    value, gradient = jax.value_and_grad(loss)(ratios)
    np.testing.assert_allclose(value, 0.2**2 + 0.1**2, rtol=1e-5)
    np.testing.assert_allclose(
        gradient, [[-0.4, -0.4, 0], [0.2, 0, 0]], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", STEEP)
def test_pairs_need_no_value(optima, name):
    """REBEL's loss is that of all pairs, and zero at the optimum of any f."""
    div, logp = STEEP[name], optima[name][0]

    @jax.jit
    def run(ratios):
        def total(x):
            return surrogates.rebel_surrogate(x, REWARDS, div=div, beta=BETA)

        slopes = BETA * div.f_prime(ratios)
        return jax.value_and_grad(total)(ratios), slopes

    (value, gradient), _ = run(logp - LOGP_REF)
    np.testing.assert_allclose(value, 0, atol=1e-9)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    (value, _), slopes = run(jnp.array([0.3, -0.2, 0.5, -1.0, 0.0]))
    slopes, rewards = np.float64(slopes), np.float64(REWARDS)
    pairs = [
        ((slopes[i] - slopes[j]) - (rewards[i] - rewards[j])) ** 2
        for i, j in itertools.permutations(range(5), 2)
    ]
    np.testing.assert_allclose(value, np.mean(pairs), rtol=1e-5)


def test_rebel_is_its_paper_and_its_code():
    """ZhaolinGao/REBEL ``rebel.py``: (Δ − η Δr)², which is η² times the paper's."""
    logp, old, rewards = jax.random.normal(jax.random.key(0), (3, 7, 2))
    eta = 2.0
    gap = np.float64(logp - old)[:, 0] - np.float64(logp - old)[:, 1]
    code = (gap - eta * np.float64(rewards[:, 0] - rewards[:, 1])) ** 2
    actual = surrogates.rebel_surrogate(
        logp - old, rewards, div=dv.reverse_kl(), beta=1 / eta
    )
    np.testing.assert_allclose(eta**2 * actual, code, rtol=1e-4, atol=1e-6)
    sides = *logp.T, *old.T, jnp.ones(7), jnp.ones(7)
    pairs = preference.rebel(preference.Pair(*sides), *rewards.T, beta=1 / eta)
    np.testing.assert_allclose(pairs, actual, rtol=1e-5)


def test_extreme_ratios_are_finite():
    @jax.jit
    def run(x):
        def loss(x, div):
            return surrogates.regression_surrogate(
                x, REWARDS, ONES, div=div, beta=BETA
            ).sum()

        return [jax.value_and_grad(loss)(x, div) for div in ALL.values()]

    for value, gradient in run(jnp.array([-300.0, -40.0, 40.0, 300.0, 0.0])):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_bad_input_is_refused():
    args = jnp.ones(5), REWARDS, ONES
    with pytest.raises(InputError, match="beta must be positive"):
        surrogates.regression_surrogate(*args, div=dv.reverse_kl(), beta=0.0)
    with pytest.raises(InputError, match="kink"):
        surrogates.regression_surrogate(*args, div=dv.total_variation(), beta=1.0)
    with pytest.raises(InputError, match=r"f'\(0\) = -2"):
        surrogates.rebel_surrogate(*args[:2], div=dv.pearson(), beta=1.0)
    with pytest.raises(InputError, match="at least two"):
        surrogates.rebel_surrogate(
            jnp.ones(1), jnp.ones(1), div=dv.reverse_kl(), beta=1.0
        )
