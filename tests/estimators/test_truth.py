"""Every record of ``TABLE`` against finite sums: value, gradient and variance."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators as e
from tests.estimators.enumerated import World, jit, miss, moments, node_chi2, truths

WORLD = World(V=4, T=3, eos=True)
# Its rows are not independent samples here; see test_batches below.
BATCHED = {"estimated_control_variate"}
NAMES = [name for name in e.TABLE if name not in BATCHED]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def problem(world, seed, scale=1.0):
    ref = world.theta(3 * seed + 1)
    theta = ref + scale * (world.theta(3 * seed) - ref)
    return theta, ref, world.theta(3 * seed + 2)


@functools.cache
def known(world):
    theta, ref, behaviour = problem(world, 0)
    return truths(world, theta, ref, behaviour)


@pytest.mark.parametrize("name", NAMES)
def test_expectations_are_those_of_the_table(name):
    estimator, truth = e.TABLE[name], known(WORLD)
    value, gradient, *_ = moments(WORLD, name, *problem(WORLD, 0))
    if estimator.value is None:
        unbiased = [t for t in truth if abs(value - truth[t][0]) < 1e-6]
        assert not unbiased, f"called biased, but unbiased for {unbiased}"
    else:
        np.testing.assert_allclose(value, truth[estimator.value][0], rtol=1e-9)
    if estimator.gradient is None:
        matches = [t for t in truth if np.allclose(gradient, truth[t][1], atol=1e-6)]
        assert not matches, f"called nobody's gradient, but is that of {matches}"
    else:
        expected = truth[estimator.gradient][1]
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_names_say_the_target(name):
    estimator = e.TABLE[name]
    if name.startswith("sequence_"):
        assert estimator.gradient.startswith("sequence")
    if name.startswith("myopic_"):
        assert not estimator.gradient.startswith("sequence")
    assert estimator.function is getattr(e, name)
    assert estimator.surrogate == name.endswith("_surrogate")


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_variance(name):
    """Halving the log-ratios divides the variance by 2 to the stated power."""
    estimator = e.TABLE[name]
    spread = []
    for scale in (0.02, 0.01):
        theta, ref, _ = problem(WORLD, 1, scale)
        # On-policy, so that the weights add no variance of their own.
        result = moments(WORLD, name, theta, ref, theta)
        spread.append(float(result[3 if estimator.surrogate else 2]))
    assert np.log2(spread[0] / spread[1]) == pytest.approx(estimator.order, abs=0.2)


def test_batches_of_the_estimated_control_variate():
    """All 4³ batches of three independent one-token sequences."""
    world = World(V=4, T=1)
    theta, ref, _ = problem(world, 0)
    p = world.law(theta)
    index = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    law = p[index].prod(axis=-1)
    mask = jnp.ones((3, 1), bool)

    def loss(x):
        logp, logp_ref = world.logps(x)[index], world.logps(ref)[index]
        one = jax.vmap(lambda a, b: e.estimated_control_variate(a, b, mask).mean())
        return jnp.sum(jax.lax.stop_gradient(law) * one(logp, logp_ref))

    truth = truths(world, theta, ref, theta)
    value, gradient = jit(jax.value_and_grad(loss))(theta)
    np.testing.assert_allclose(value, truth[e.table.SEQUENCE_KL][0], rtol=1e-9)

    # The gradient is E[c] times that of the other direction.
    def coefficients(logp, logp_ref):
        return e.optimal_coefficient(logp, logp_ref, mask).mean()

    batches = world.logps(theta)[index], world.logps(ref)[index]
    c = law @ jit(jax.vmap(coefficients))(*batches)
    forward = truth[e.table.SEQUENCE_FORWARD_KL][1]
    np.testing.assert_allclose(gradient, c * forward, rtol=1e-8)


def test_estimated_coefficient_beats_k3_in_a_large_batch():
    world = World(V=3, T=2)
    theta, ref, _ = problem(world, 2)
    law = np.asarray(world.law(theta))
    rows = np.random.default_rng(0).choice(len(law), size=2048, p=law / law.sum())
    logp, logp_ref = world.logps(theta), world.logps(ref)
    mask = jnp.ones((2048, 2), bool)
    coefficient = jit(e.optimal_coefficient)(logp[rows], logp_ref[rows], mask)
    # The best coefficient of the law itself.
    l = np.asarray(logp - logp_ref)
    l, control = l.sum(axis=-1), np.expm1(-l).sum(axis=-1)
    best = -(law @ (l * control)) / (law @ control**2)
    np.testing.assert_allclose(coefficient, np.full((2048, 1), best), rtol=0.1)
    spread = {c: law @ (l + c * control - law @ l) ** 2 for c in (0.0, 1.0, best)}
    assert spread[best] < min(spread[0.0], spread[1.0])


def exact_gradient(world, loss, law_theta, theta):
    law = world.law(law_theta)
    return jit(jax.grad(lambda x: jnp.sum(law * loss(x).sum(axis=-1))))(theta)


BASELINES = ["sequence_kl_surrogate", "sequence_control_variate_surrogate"]
BASELINES += ["rao_blackwell_surrogate", "off_policy_sequence_kl_surrogate"]


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_of_the_prefix_leaves_the_expectation(name):
    world = WORLD
    theta, ref, behaviour = problem(world, 0)
    truth, expected = known(world)[e.table.SEQUENCE_KL]
    of_node = jnp.asarray(np.random.default_rng(0).normal(size=world.n_nodes))
    baseline = of_node[world.nodes]
    estimator = dataclasses.replace(
        e.TABLE[name], keywords={**e.TABLE[name].keywords, "baseline": baseline}
    )
    value, gradient, _, _ = moments(world, estimator, theta, ref, behaviour)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(value, truth, rtol=1e-9)


def test_expected_future_as_baseline_lowers_the_variance():
    world = World(V=3, T=2)
    theta, ref, _ = problem(world, 0)
    estimator = e.TABLE["sequence_kl_surrogate"]
    # At each prefix the mean of what is to come, from the law itself.
    to_go = jnp.cumsum((world.logps(theta) - world.logps(ref))[:, ::-1], 1)[:, ::-1]
    law = world.law(theta)[:, None] * jnp.ones_like(to_go)
    of_node = jnp.zeros(world.n_nodes).at[world.nodes].add(law * to_go)
    of_node = of_node / jnp.zeros(world.n_nodes).at[world.nodes].add(law)
    better = dataclasses.replace(estimator, keywords={"baseline": of_node[world.nodes]})
    assert (
        moments(world, better, theta, ref, theta)[3]
        < moments(world, estimator, theta, ref, theta)[3]
    )


def test_control_variate_in_the_future_lowers_the_variance():
    world = WORLD
    theta, ref, _ = problem(world, 0, 0.3)
    names = "sequence_control_variate_surrogate", "sequence_kl_surrogate"
    spread = [moments(world, name, theta, ref, theta)[3] for name in names]
    assert spread[0] < spread[1]


OFF_POLICY = [
    (e.prefix_weights, e.table.SEQUENCE_KL, e.table.MYOPIC_KL),
    (e.sequence_weights, e.table.SEQUENCE_KL, e.table.MYOPIC_KL),
    (e.token_weights, e.table.BEHAVIOUR_MYOPIC_KL, e.table.BEHAVIOUR_MYOPIC_KL),
]


@pytest.mark.parametrize(("weights", "value", "gradient"), OFF_POLICY)
def test_weights_carry_values_and_losses_to_the_policy(weights, value, gradient):
    world = WORLD
    theta, ref, behaviour = problem(world, 0)
    truth = known(world)
    s = world.samples(theta, ref, behaviour)
    w = weights(s.logp, s.logp_behaviour, s.mask)
    law = world.law(behaviour)
    for estimate in (e.k1, e.k3):
        terms = (w * estimate(s.logp, s.logp_ref, s.mask)).sum(axis=-1)
        np.testing.assert_allclose(law @ terms, truth[value][0], rtol=1e-9)

    def loss(x):
        return w * e.myopic_k2_surrogate(world.logps(x), s.logp_ref, s.mask)

    np.testing.assert_allclose(
        exact_gradient(world, loss, behaviour, theta),
        truth[gradient][1],
        rtol=1e-9,
        atol=1e-12,
    )


def test_off_policy_rao_blackwell_with_context_weights():
    world = WORLD
    theta, ref, behaviour = problem(world, 0)
    _, truth = known(world)[e.table.SEQUENCE_KL]
    mask = jnp.asarray(world.mask)

    def loss(x):
        logp = world.logps(x)
        w = e.context_weights(logp, world.logps(behaviour), mask)
        kl = e.rao_blackwell(x[world.nodes], ref[world.nodes], mask)
        return e.sequence_surrogate(w * kl, logp, mask)

    gradient = exact_gradient(world, loss, behaviour, theta)
    np.testing.assert_allclose(gradient, truth, rtol=1e-9, atol=1e-12)


def test_sequence_surrogate_makes_any_token_divergence_whole():
    """E_π Σ_t χ²_t with the law of its prefixes, from samples."""
    world = WORLD
    theta, ref, _ = problem(world, 0)
    truth = jit(jax.grad(lambda x: world.over_prefixes(x, node_chi2(x, ref))))(theta)
    divergence = e.TABLE["myopic_f_surrogate"].divergence
    mask = jnp.asarray(world.mask)

    def loss(x):
        logp = world.logps(x)
        token = e.myopic_f_surrogate(divergence, logp, world.logps(ref), mask)
        return e.sequence_surrogate(token, logp, mask)

    np.testing.assert_allclose(
        exact_gradient(world, loss, theta, theta), truth, rtol=1e-9, atol=1e-12
    )


def test_truncated_weights_are_biased():
    world = WORLD
    theta, ref, behaviour = problem(world, 0)
    _, truth = known(world)[e.table.SEQUENCE_KL]
    for name in (
        "off_policy_sequence_kl_surrogate",
        "sequence_ratio_kl_surrogate",
        "sequence_weighted_k3_surrogate",
    ):
        misses = []
        for cap in (1.2, 5.0, 1e6):
            estimator = dataclasses.replace(e.TABLE[name], keywords={"cap": cap})
            _, gradient, _, spread = moments(world, estimator, theta, ref, behaviour)
            misses.append((miss(gradient, truth), float(spread)))
        bias, spread = zip(*misses, strict=True)
        assert bias[0] > bias[1] > bias[2] == pytest.approx(0, abs=1e-9)
        assert spread[0] < spread[1] < spread[2]


def test_per_decision_weights_vary_less_than_the_sequence_ratio():
    world = WORLD
    theta, ref, behaviour = problem(world, 0, 0.5)
    names = "off_policy_sequence_kl_surrogate", "sequence_ratio_kl_surrogate"
    spread = [moments(world, name, theta, ref, behaviour)[3] for name in names]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_weighted_k3_is_its_own_derivative(distance):
    """The stated gradient is autodiff's of ``Σ_t w_t k3_t``, sample by sample: w and k3
    both move with the policy."""
    world = WORLD
    theta, ref, behaviour = problem(world, 0, distance)
    logp_ref, logp_b = world.logps(ref), world.logps(behaviour)
    mask = jnp.asarray(world.mask)

    def written_out(x):
        l, weight = world.logps(x) - logp_ref, world.logps(x) - logp_b
        w = jnp.exp(jnp.cumsum(jnp.where(mask, weight, 0), axis=-1))
        return jnp.sum(jnp.where(mask, w * (jnp.expm1(-l) + l), 0), axis=-1)

    def ours(x):
        token = e.sequence_weighted_k3_surrogate(world.logps(x), logp_ref, logp_b, mask)
        return jnp.sum(token, axis=-1)

    np.testing.assert_allclose(ours(theta), written_out(theta), rtol=1e-12)
    actual, expected = jax.jacobian(ours)(theta), jax.jacobian(written_out)(theta)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_k3_ahead_varies_less_than_k1_ahead():
    """Near the reference the later terms are of second order, not of first."""
    world = WORLD
    theta, ref, behaviour = problem(world, 0, 0.5)
    names = "sequence_weighted_k3_surrogate", "off_policy_sequence_kl_surrogate"
    spread = [moments(world, name, theta, ref, behaviour)[3] for name in names]
    assert spread[0] < spread[1]


def test_top_k_of_everything_is_the_whole_vocabulary():
    world = World(V=4, T=2)
    theta, ref, _ = problem(world, 0)
    s = world.samples(theta, ref, theta)
    laws = s.logits, s.logits_ref
    exact = e.rao_blackwell(*laws, s.mask)
    np.testing.assert_allclose(e.top_k_bucket(*laws, s.mask, k=4), exact, rtol=1e-12)
    np.testing.assert_allclose(e.top_k_bucket(*laws, s.mask, k=9), exact, rtol=1e-12)
    np.testing.assert_allclose(e.top_k_partial(*laws, s.mask, k=4), exact, rtol=1e-12)
    tail = e.top_k_sampled_tail(*laws, s.tokens, s.mask, k=4)
    np.testing.assert_allclose(tail, exact, rtol=1e-12)


def test_bucket_is_a_lower_bound_that_grows_with_k():
    logits = jax.random.normal(jax.random.key(0), (64, 8))
    ref = jax.random.normal(jax.random.key(1), (64, 8))
    mask = jnp.ones(64, bool)
    bucket = jit(e.top_k_bucket, static_argnames="k")
    values = [bucket(logits, ref, mask, k=k) for k in (1, 2, 5, 8)]
    assert all((a <= b + 1e-12).all() for a, b in itertools.pairwise(values))
    assert (values[0] >= 0).all()
    assert (e.top_k_bucket(logits, logits + 1, mask, k=3) < 1e-12).all()


def test_no_theorem_orders_the_variances_of_sequences():
    """Uniform on 3 of 8 leaves against uniform on all 8: the log-ratio of whole
    sequences is constant, the KL of the second token depends on the first."""
    world = World(V=4, T=2)
    nowhere = -1e4
    theta, ref = jnp.full((2, world.n_nodes, 4), nowhere)
    theta = theta.at[0, :2].set(jnp.log(jnp.array([1 / 3, 2 / 3])))
    theta = theta.at[1, 0].set(0).at[2, :2].set(0)
    ref = ref.at[0, :2].set(0).at[1:3].set(0)
    whole = moments(world, "k1", theta, ref, theta)
    exact = moments(world, "rao_blackwell", theta, ref, theta)
    np.testing.assert_allclose([whole[0], exact[0]], np.log(8 / 3), rtol=1e-12)
    assert whole[2] < 1e-20
    assert exact[2] > 0.1
