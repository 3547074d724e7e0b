"""Bounds that the batch sets: against loops, the official code and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import reduce, surrogates
from alignax.types import InputError

B, T = 6, 5
KEYS = jax.random.split(jax.random.key(7), 3)
RATIOS = 0.4 * jax.random.normal(KEYS[0], (B, T))
ADVANTAGES = jax.random.normal(KEYS[1], (B, T))
MASK = jnp.arange(T)[None] < jnp.array([5, 4, 3, 2, 1, 0])[:, None]
d, a, m = (np.asarray(x, np.float64) for x in (RATIOS, ADVANTAGES, MASK))


def dropped_one_by_one(values, budget):
    """The paper's loop: while the mean is above the budget, the largest one goes."""
    kept = list(range(len(values)))
    while kept and np.mean([values[i] for i in kept]) > budget:
        kept.remove(max(kept, key=lambda i: values[i]))
    return kept


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.04, 0.1, 10.0])
def test_budget_keeps_what_the_loop_keeps(budget):
    values = RATIOS**2
    actual = surrogates.budget_keep(values, MASK, budget=budget)
    places = np.argwhere(np.asarray(MASK))
    listed = np.asarray(values)[np.asarray(MASK)]
    expected = np.zeros((B, T), bool)
    for i in dropped_one_by_one(listed.astype(np.float64), budget):
        expected[tuple(places[i])] = True
    np.testing.assert_array_equal(actual, expected)


def test_budget_of_ties_and_of_nothing():
    kept = surrogates.budget_keep(jnp.ones(4), jnp.ones(4, bool), budget=1.0)
    assert kept.all()
    assert not surrogates.budget_keep(jnp.ones(4), kept, budget=0.5).any()
    assert not surrogates.budget_keep(jnp.ones(4), ~kept, budget=9.0).any()


def official_bounds(d, a, budget, least_low, least_high):
    """Infini-AI-Lab/M2PO ``kpo_clip_harmful_tokens`` and its search, as loops."""
    harmful = ((a > 0) & (d > 0)) | ((a < 0) & (d < 0))
    values = np.sort(d[harmful] ** 2)
    if values.sum() <= budget * len(values):
        return 1.0, np.finfo(np.float32).max
    tau = 0.0
    for k in range(len(values)):
        if values[k] * (len(values) - k - 1) + values[: k + 1].sum() >= budget * len(
            values
        ):
            tau = np.sqrt(values[k - 1]) if k else 0.0
            break
    return max(1 - np.exp(-tau), least_low), max(np.exp(tau) - 1, least_high)


@pytest.mark.parametrize("least", [(0.3, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("budget", [1e-6, 0.04, 0.1, 0.2, 10.0])
def test_second_moment_bounds_are_the_official_ones(budget, least):
    ratios, values = 0.4 * jax.random.normal(KEYS[2], (2, 20, 6))
    mask = jnp.arange(6)[None] < jnp.arange(20)[:, None] % 7
    actual = surrogates.second_moment_bounds(
        ratios, values, mask, budget=budget, least_low=least[0], least_high=least[1]
    )
    listed = [np.float64(x)[np.asarray(mask)] for x in (ratios, values)]
    np.testing.assert_allclose(
        actual, official_bounds(*listed, budget, *least), rtol=1e-5
    )


def test_free_bounds_are_no_clip():
    low, high = surrogates.second_moment_bounds(RATIOS, ADVANTAGES, MASK, budget=10.0)
    clipped = surrogates.ppo_surrogate(
        RATIOS, ADVANTAGES, MASK, clip_low=low, clip_high=high
    )
    plain = surrogates.ratio_surrogate(RATIOS, ADVANTAGES, MASK)
    np.testing.assert_array_equal(clipped, plain)


@pytest.mark.parametrize("budget", [0.02, 0.3])
def test_prefix_budget_is_the_loop(budget):
    """The paper's mask, token by token, and what it promises for the prefix."""
    moved = np.abs(d) / 4
    limits, spent = np.zeros((B, T)), np.zeros((B, T))
    for i in range(B):
        prefix, weights = 0.0, 0.0
        for t in range(int(m[i].sum())):
            weight = 0.8 + 0.2 * (T - 1 - t) / (T - 1)
            limits[i, t] = min(0.1, 0.1 + budget * weights - prefix)
            spent[i, t] = weight * moved[i, t]
            if spent[i, t] <= limits[i, t]:
                assert prefix + spent[i, t] <= 0.1 + budget * weights + 1e-12
            prefix, weights = prefix + spent[i, t], weights + weight
    actual = surrogates.prefix_budget(
        jnp.abs(RATIOS) / 4, MASK, bound=0.1, budget=budget
    )
    np.testing.assert_allclose(actual[0], spent, atol=1e-6)
    np.testing.assert_allclose(actual[1], limits, atol=1e-6)
    if budget == 0.02:
        assert (limits[m > 0] < 0.1).any(), "a prefix that has spent its budget"


def test_prefix_budget_without_limits_is_dppo():
    moved, limits = surrogates.prefix_budget(
        jnp.abs(RATIOS), MASK, bound=0.1, budget=9.0, least_weight=1.0
    )
    np.testing.assert_array_equal(moved, jnp.where(MASK, jnp.abs(RATIOS), 0))
    np.testing.assert_allclose(limits, 0.1 * m, rtol=1e-6)


def test_effective_share_by_hand():
    weights = np.exp(d)[m > 0]
    expected = weights.sum() ** 2 / (weights**2).sum() / len(weights)
    actual = surrogates.effective_share(RATIOS, MASK)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert surrogates.effective_share(0 * RATIOS, MASK) == 1
    assert surrogates.effective_share(RATIOS, ~MASK & MASK) == 1


def test_share_is_the_chi_squared_in_an_enumerated_world():
    """Samples in proportion: ESS/n = 1 / (1 + χ²(π‖π_old))."""
    old = jnp.array([0.5, 0.25, 0.125, 0.125])
    new = jnp.array([0.1, 0.2, 0.3, 0.4])
    sampled = np.repeat(np.arange(4), [4, 2, 1, 1])
    ratios = (jnp.log(new) - jnp.log(old))[sampled][None]
    share = surrogates.effective_share(ratios, jnp.ones((1, 8), bool))
    chi2 = dv.exact(dv.pearson(), jnp.log(new), jnp.log(old))
    np.testing.assert_allclose(share, 1 / (1 + chi2), rtol=1e-6)


def test_p3o_gradient_by_hand_and_by_enumeration():
    """FeynRL ``p3o.py``'s policy term, and a pull that is the exact gradient of
    (1 − s) D_f over the sampler's tokens."""
    logits, old = jax.random.normal(KEYS[2], (2, 4))
    logp_old, values = jax.nn.log_softmax(old), jnp.array([1.0, -0.5, 0.2, -2.0])
    mask = jnp.ones(4, bool)

    @jax.jit
    def gradients(logits, share):
        def loss(logits, div):
            ratios = jax.nn.log_softmax(logits) - logp_old
            losses = surrogates.p3o_surrogate(
                ratios, values, mask, div.f(ratios), share
            )
            return jnp.exp(logp_old) @ losses

        def exact(logits, div):
            logp = jax.nn.log_softmax(logits)
            weights = jnp.minimum(jnp.exp(logp - logp_old), share)
            weights = jax.lax.stop_gradient(weights * values * jnp.exp(logp_old))
            return -weights @ logp + (1 - share) * dv.exact(div, logits, old)

        divs = [dv.reverse_kl(), dv.jensen_shannon(), dv.pearson()]
        return [[jax.grad(f)(logits, div) for f in (loss, exact)] for div in divs]

    for share in (0.3, 0.8, 1.0):
        for actual, expected in gradients(logits, share):
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)


def test_p3o_on_policy_is_reinforce():
    logp = -jnp.ones((B, T))

    @jax.jit
    def loss(x):
        ratios = reduce.log_ratio(x, x, MASK)
        share = surrogates.effective_share(ratios, MASK)
        pull = dv.reverse_kl().f(ratios)
        return surrogates.p3o_surrogate(ratios, ADVANTAGES, MASK, pull, share).sum()

    np.testing.assert_allclose(jax.grad(loss)(logp), np.where(m > 0, -a, 0), rtol=1e-6)


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="budget must not be negative"):
        surrogates.budget_keep(RATIOS, MASK, budget=-1.0)
    with pytest.raises(InputError, match="least_weight must be in"):
        surrogates.prefix_budget(RATIOS, MASK, bound=0.1, budget=0.1, least_weight=2.0)
    for bad in itertools.product(["budget", "least_low", "least_high"], [-0.1]):
        with pytest.raises(InputError, match="need budget > 0"):
            surrogates.second_moment_bounds(RATIOS, ADVANTAGES, MASK, **dict([bad]))
