"""Targets of sampled completions: densities, normalisers, multipliers, f-DPG, rates."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from alignax import divergences as dv
from alignax import exact, targets
from alignax.types import InputError

PI = np.array([0.5, 0.25, 0.15, 0.10])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])
B = np.array([0.3, 0.3, 0.2, 0.2])
DIVERGENCES = [
    dv.reverse_kl(),
    dv.forward_kl(),
    dv.jensen_shannon(),
    dv.alpha(0.3),
    dv.squared_hellinger(),
    dv.pearson(),
    dv.neyman(),
    dv.jeffreys(),
    dv.chi2_kl(),
    dv.total_variation(),
]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def normalised(log_p):
    return log_p - jax.nn.logsumexp(log_p)


def test_densities_are_the_laws():
    rho, satisfied = jnp.log(RHO), jnp.array([True, False, True, True])
    tilted = targets.tilted(rho, jnp.array(R), beta=0.5)
    expected, _ = targets.posterior(jnp.array(R), rho, beta=0.5)
    np.testing.assert_allclose(normalised(tilted), expected, rtol=1e-12)
    filtered = targets.filtered(rho, satisfied)
    expected, _ = targets.conditioned(rho, satisfied)
    np.testing.assert_allclose(normalised(filtered), expected, rtol=1e-12)
    both = jnp.stack([rho, jnp.log(PI)], axis=-1)
    np.testing.assert_allclose(
        jnp.exp(targets.product_of_experts(both, jnp.array([0.25, 0.75]))),
        RHO**0.25 * PI**0.75,
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        jnp.exp(targets.mixture_of_experts(both, jnp.array([0.25, 0.75]))),
        0.25 * RHO + 0.75 * PI,
        rtol=1e-12,
    )


def test_experts_of_no_weight_exclude_nothing():
    logps = jnp.array([[-1.0, -jnp.inf], [-jnp.inf, -jnp.inf]])
    one = jnp.array([1.0, 0.0])
    for combine in (targets.product_of_experts, targets.mixture_of_experts):
        np.testing.assert_array_equal(combine(logps, one), [-1.0, -jnp.inf])
        slopes = jax.grad(lambda x: combine(x, one)[0])(logps)  # noqa: B023
        np.testing.assert_array_equal(slopes, [[1, 0], [0, 0]])


@pytest.mark.slow
def test_normaliser_error_is_the_spread_of_estimates():
    """Of 4000 runs of 64 samples in three batches."""
    log_w = jnp.log(RHO) + 2 * R - jnp.log(PI)
    draws = jax.random.choice(jax.random.key(0), 4, (4000, 64), p=jnp.array(PI))
    weights = log_w[draws]
    rule = targets.running_log_normaliser((4000,))
    state = rule.init()
    for part in (weights[:, :10], weights[:, 10:11], weights[:, 11:]):
        state = rule.update(state, part)
    found = targets.normaliser_error(state)
    w = np.exp(weights)
    np.testing.assert_allclose(
        found.effective, w.sum(1) ** 2 / (w**2).sum(1), rtol=1e-10
    )
    np.testing.assert_allclose(np.mean(found.error), np.std(state.log_z), rtol=0.05)


def test_decay_forgets():
    rule = targets.running_log_normaliser(decay=0.5)
    state = rule.init()
    for weight in (8.0, 2.0, 4.0):
        state = rule.update(state, jnp.log(jnp.array([weight])))
    expected = (0.25 * 8 + 0.5 * 2 + 4) / 1.75
    np.testing.assert_allclose(jnp.exp(state.log_z), expected, rtol=1e-12)
    with pytest.raises(InputError, match="decay must be in"):
        targets.running_log_normaliser(decay=0.0)


def test_normaliser_without_mass():
    rule = targets.running_log_normaliser()
    state = rule.update(rule.init(), jnp.full(3, -jnp.inf))
    assert state.log_z == -jnp.inf
    assert targets.normaliser_error(state) == (jnp.inf, 0)
    others = targets.others_log_normaliser(state, jnp.full(2, -jnp.inf))
    np.testing.assert_array_equal(others, -jnp.inf)


def test_normaliser_of_the_others():
    rule = targets.running_log_normaliser()
    before = rule.update(rule.init(), jnp.log(jnp.array([5.0, 1.0, 3.0])))
    weights = np.array([2.0, 0.0, 4.0])
    with np.errstate(divide="ignore"):
        found = targets.others_log_normaliser(before, jnp.log(jnp.array(weights)))
    expected = (9 + weights.sum() - weights) / 5
    np.testing.assert_allclose(jnp.exp(found), expected, rtol=1e-12)
    with np.errstate(divide="ignore"):
        alone = targets.others_log_normaliser(
            rule.init(), jnp.log(jnp.array([2.0, 0.0, 0.0]))
        )
    np.testing.assert_allclose(jnp.exp(alone), [2 / 3, 1, 1], rtol=1e-12)
    with pytest.raises(InputError, match="at least two samples"):
        targets.others_log_normaliser(before, jnp.zeros(1))


def test_bounds_hold_and_their_distance_is_jeffreys():
    log_w = jnp.log(RHO) + 2 * R - jnp.log(PI)
    counts = (PI * 100).astype(int)
    bounds = targets.normaliser_bounds(jnp.repeat(log_w, counts))
    posterior, log_z = targets.posterior(jnp.array(R), jnp.log(RHO), beta=0.5)
    assert bounds.lower < log_z < bounds.upper
    jeffreys = exact.kl(jnp.log(PI), posterior) + exact.kl(posterior, jnp.log(PI))
    np.testing.assert_allclose(bounds.upper - bounds.lower, jeffreys, rtol=1e-10)


@pytest.mark.parametrize("sizes", [(2, 1, 7, 3)])
def test_windowed_mean_is_the_queue(sizes):
    rule, queue = targets.windowed_mean(4), collections.deque(maxlen=4)
    state, value = rule.init(), 0.0
    for size in sizes:
        values = np.arange(value, value + size)
        value += size
        where = values % 3 != 1
        state = rule.update(state, jnp.array(values), jnp.array(where))
        queue.extend(values[where])
        assert int(state.count) == len(queue)
        np.testing.assert_allclose(jnp.sum(state.values), sum(queue))


def features_of(groups, size, seed=0):
    key = jax.random.key(seed)
    return jax.random.normal(key, (groups, size, 2)) * jnp.array([[[1.0, 0.5]]])


def test_multipliers_against_scipy():
    features, moments = features_of(3, 40), np.array([0.6, -0.2])
    weights = jax.random.normal(jax.random.key(1), (3, 40))
    fit = targets.fit_multipliers(features, jnp.array(moments), weights)

    def dual(values):
        logits = np.asarray(weights) + np.asarray(features) @ values
        return np.mean(np.log(np.exp(logits).sum(1))) - values @ moments

    best = scipy.optimize.minimize(dual, np.zeros(2), tol=1e-12).x
    np.testing.assert_allclose(fit.values, best, atol=1e-5)
    np.testing.assert_allclose(fit.moments, moments, atol=1e-10)
    logits = np.asarray(weights) + np.asarray(features) @ np.asarray(fit.values)
    np.testing.assert_allclose(fit.log_z, np.log(np.exp(logits).mean(1)), rtol=1e-10)
    targets.refuse_unmet(fit, moments.tolist(), ["first", "second"])


def test_one_prompt_is_the_information_projection():
    features, moments = features_of(1, 30), jnp.array([0.3, 0.1])
    fit = targets.fit_multipliers(features, moments)
    _, expected = dv.information_projection(jnp.zeros(30), features[0], moments)
    np.testing.assert_allclose(fit.values, expected, rtol=1e-6)


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_fits():
    features = features_of(4, 60 * 100).reshape(4, 60, 100, 2).swapaxes(0, 1)
    fits = jax.vmap(lambda x: targets.fit_multipliers(x, jnp.array([0.4, 0.1])))(
        features
    )
    spread = np.std(fits.values, axis=0)
    np.testing.assert_allclose(np.mean(fits.errors, axis=0), spread, rtol=0.25)
    # Normal features of variance σ²: λ = μ/σ².
    found = np.mean(fits.values, axis=0)
    np.testing.assert_allclose(found, [0.4, 0.4], atol=4 * spread.max() / 60**0.5)


def test_unmet_constraints_say_which_and_how_far():
    binary = (jax.random.uniform(jax.random.key(0), (2, 20)) < 0.5).astype(float)
    never = jnp.zeros((2, 20))
    features = jnp.stack([binary, never], axis=-1)
    moments = [0.7, 0.3]
    fit = targets.fit_multipliers(features, jnp.array(moments))
    with pytest.raises(InputError) as said:
        targets.refuse_unmet(fit, moments, ["exclaims", "rhymes"])
    assert "moment of rhymes cannot be 0.3" in str(said.value)
    assert "between 0 and 0" in str(said.value)
    assert "0.3 away" in str(said.value)
    assert "exclaims" not in str(said.value)


def test_an_edge_is_refused():
    """Half of the prompts have the feature in no sample: a mean of half asks for all of
    the others', which no finite multiplier gives."""
    features = jnp.zeros((4, 10, 1)).at[:2, 3].set(1.0)
    for wanted in (0.5, 0.4):
        fit = targets.fit_multipliers(features, jnp.array([wanted]))
        np.testing.assert_allclose(fit.moments, wanted, atol=1e-3)
        np.testing.assert_allclose(fit.highest, 0.5)
        if wanted == 0.4:
            targets.refuse_unmet(fit, [wanted], ["exclaims"])
        else:
            with pytest.raises(InputError, match="no multiplier is finite"):
                targets.refuse_unmet(fit, [wanted], ["exclaims"])


def test_excluded_samples_and_prompts_do_not_count():
    features, moments = features_of(2, 20), jnp.array([0.2, 0.1])
    some = targets.fit_multipliers(features[:1, :12], moments)
    weights = jnp.full((2, 20), -jnp.inf).at[0, :12].set(0.0)
    spoiled = features.at[1].set(jnp.nan).at[0, 12:].set(jnp.nan)
    fit = targets.fit_multipliers(spoiled, moments, weights)
    np.testing.assert_allclose(fit.values, some.values, rtol=1e-8)
    np.testing.assert_allclose(fit.errors, some.errors, rtol=1e-8)
    np.testing.assert_allclose(fit.lowest, some.lowest, rtol=1e-8)
    assert fit.log_z[1] == -jnp.inf
    assert fit.effective[1] == 0
    none = targets.fit_multipliers(features, moments, jnp.full((2, 20), -jnp.inf))
    with pytest.raises(InputError, match="exclude every sample"):
        targets.refuse_unmet(none, [0.2, 0.1], ["a", "b"])


@pytest.mark.parametrize(
    "div",
    [
        pytest.param(div, marks=[] if i < 3 else [pytest.mark.slow])
        for i, div in enumerate(DIVERGENCES)
    ],
    ids=str,
)
def test_fdpg_is_unbiased_whatever_sampled(div):
    """Sums over the fixture, with any baseline; Go et al., eq. 6."""
    logits, goal = jnp.log(PI), targets.tilted(jnp.log(RHO), jnp.array(R), beta=0.5)
    posterior, log_z = targets.posterior(jnp.array(R), jnp.log(RHO), beta=0.5)

    def surrogate(logits):
        logp = jax.nn.log_softmax(logits)
        losses = targets.fdpg_surrogate(
            div, logp, goal, log_z, logp_behaviour=jnp.log(B), baseline=0.7
        )
        return jnp.sum(jnp.array(B) * losses)

    def divergence(logits):
        return dv.exact(div, jax.nn.log_softmax(logits), posterior)

    actual, expected = jax.grad(surrogate)(logits), jax.grad(divergence)(logits)
    np.testing.assert_allclose(actual, expected, atol=1e-10)


def test_check_3b_of_the_surrogate():
    """A normaliser half too large: the reference's numbers."""
    logits, goal = jnp.log(PI), jnp.log(RHO)

    def gradient(div, log_z):
        def loss(logits):
            logp = jax.nn.log_softmax(logits)
            return jnp.sum(
                jnp.array(PI) * targets.fdpg_surrogate(div, logp, goal, log_z)
            )

        return jax.grad(loss)(logits)

    expected = {"reverse_kl": 1.0, "forward_kl": 2 / 3, "pearson": 1.5}
    for name, factor in expected.items():
        div = getattr(dv, name)()
        true, off = gradient(div, jnp.log(1.0)), gradient(div, jnp.log(1.5))
        np.testing.assert_allclose(off, factor * true, rtol=1e-9)


def test_fdpg_of_excluded_samples_is_finite():
    logp = jnp.log(jnp.array([0.5, 0.5]))
    for log_z in (0.0, -jnp.inf):
        for div in DIVERGENCES[:3]:

            def loss(logp, div=div, log_z=log_z):
                goal = jnp.array([-jnp.inf, -0.7])
                return jnp.sum(
                    targets.fdpg_surrogate(div, logp, goal, jnp.array(log_z))
                )

            value, slope = jax.value_and_grad(loss)(logp)
            assert np.isfinite(value)
            assert np.isfinite(slope).all()
            # What the target excludes becomes less likely, unless nothing is known.
            assert slope[0] >= slope[1] or (log_z == -jnp.inf and not slope.any())


def test_rate_is_the_price_of_a_mean():
    """CHECK 7.a: a KL of 0.3 buys a mean reward of 0.4051071723 at η 1.4612756965."""
    rho, r = jnp.log(RHO), jnp.array(R)
    found = targets.rate_function(r, rho, mean=0.4051071723)
    np.testing.assert_allclose(found.rate, 0.3, atol=1e-9)
    np.testing.assert_allclose(found.eta, 1.4612756965, rtol=1e-8)
    slope = jax.grad(lambda x: targets.rate_function(r, rho, mean=x).rate)(0.3)
    np.testing.assert_allclose(
        slope, targets.rate_function(r, rho, mean=0.3).eta, rtol=1e-8
    )
    # Below the mean it is the price of a lower one; at it nothing; at the end all.
    values = [-0.4, float(RHO @ R), 1.0]
    low, none, end = (targets.rate_function(r, rho, mean=x) for x in values)
    assert low.rate > 0 > low.eta
    np.testing.assert_allclose([none.rate, none.eta], 0, atol=1e-9)
    np.testing.assert_allclose(end.rate, -np.log(RHO[0]), atol=1e-6)


def test_deviations_of_means_follow_the_rate():
    """Cramér: ``−log P(mean ≥ x) / m`` falls to the rate, like log m / m."""
    x = 0.4
    rate = float(targets.rate_function(jnp.array(R), jnp.log(RHO), mean=x).rate)
    gaps = []
    for length in (10, 40):
        counts, logp = exact.sequence_types(jnp.log(RHO), length=length)
        mean = counts @ R / length
        log_tail = jax.nn.logsumexp(logp, where=mean >= x - 1e-9)
        gaps.append(float(-log_tail / length) - rate)
    assert 0 < gaps[1] < gaps[0] / 2.5


def test_types_are_sequences_counted():
    counts, logp = exact.sequence_types(jnp.log(RHO), length=3)
    assert counts.shape == (20, 4)
    np.testing.assert_allclose(jnp.sum(jnp.exp(logp)), 1, rtol=1e-12)
    all_same = np.asarray(counts)[:, 1] == 3
    np.testing.assert_allclose(np.exp(logp)[all_same], 0.2**3, rtol=1e-10)
    with pytest.raises(InputError, match="at most"):
        exact.sequence_types(jnp.log(RHO), length=10_000)


@pytest.mark.slow
def test_best_of_n_reaches_what_the_budget_buys():
    """n = e^{mΔ} of sequences of m symbols: reward and KL a symbol tend to those of
    the KL-constrained optimum (arXiv 2404.01730)."""
    budget, gaps = 0.3, []
    best, _ = targets.constrained_optimum(jnp.array(R), jnp.log(RHO), kl=budget)
    goal = float(jnp.exp(best) @ R)
    for length in (8, 32):
        counts, logp = exact.sequence_types(jnp.log(RHO), length=length)
        rewards = counts @ R
        kept = exact.best_of_n(rewards, logp, n=round(np.exp(length * budget)))
        gaps.append(
            (
                goal - float(exact.expectation(kept, rewards)) / length,
                budget - float(exact.kl(kept, logp)) / length,
            )
        )
    (far_reward, far_kl), (near_reward, near_kl) = np.abs(gaps)
    assert near_reward < 0.6 * far_reward
    assert near_kl < 0.6 * far_kl
