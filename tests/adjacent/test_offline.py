"""Offline regularisers: numbers of the reference, enumerations, a small world."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax.types import InputError


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def normal(key, *shapes):
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(
    ("weight", "target", "distance"),
    [(2.0, 0.1, 0.128062484749), (1e4, -0.6, None), (0.0, 0.1, 0.1)],
)
def test_nearest_point_of_the_data(weight, target, distance):
    """Of states alone the last one is nearest."""
    known = jnp.array([[0.0], [1.0], [0.05]]), jnp.array([[0.1], [0.9], [-0.6]])
    here = jnp.array([0.04]), jnp.array([0.0])
    found, far = ad.nearest_actions(*here, *known, state_weight=weight)
    np.testing.assert_allclose(found, [target])
    if distance is not None:
        np.testing.assert_allclose(far, distance, rtol=1e-10)
    # A batch, by brute force.
    *batch, states, actions = normal(0, (2, 5, 3), (2, 5, 2), (7, 3), (7, 2))
    data = states, actions
    found, far = ad.nearest_actions(*batch, *data, state_weight=weight)
    for i, j in np.ndindex(2, 5):
        apart = [
            np.sqrt(
                weight**2 * np.sum((batch[0][i, j] - s) ** 2)
                + np.sum((batch[1][i, j] - a) ** 2)
            )
            for s, a in zip(*map(np.asarray, data), strict=True)
        ]
        np.testing.assert_allclose(far[i, j], min(apart), rtol=1e-9)
        np.testing.assert_array_equal(found[i, j], data[1][np.argmin(apart)])


def test_gradients_are_finite_where_roots_and_scales_are_zero():
    """On a point of the data, and where every Q is 0."""
    data, none = jnp.array([[0.1], [0.9]]), jnp.zeros((2, 1))
    slope = jax.grad(
        lambda x: ad.nearest_actions(none[0], x, none, data, state_weight=2.0)[1]
    )(data[0])
    np.testing.assert_array_equal(slope, 0)
    slope = jax.grad(
        lambda q: jnp.sum(ad.constrained_actor_losses(q, data, none, q < 1, alpha=2.5))
    )(jnp.zeros(2))
    assert np.isfinite(slope).all()


def test_guided_targets_by_cases():
    """All orders of Q(a), Q(made) and V."""
    q, made, v = jnp.array(list(itertools.permutations([0.0, 1.0, 2.0]))).T
    actions, generated = jnp.full((6, 1), 0.1), jnp.full((6, 1), 0.2)
    targets, kept = ad.advantage_guided_targets(actions, generated, q, made, v)
    for n in range(6):
        assert targets[n, 0] == (0.2 if made[n] >= q[n] else 0.1)
        assert kept[n] == (v[n] < max(q[n], made[n]))
    slope = jax.grad(
        lambda x: jnp.sum(ad.advantage_guided_targets(actions, x, q, made, v)[0])
    )(generated)
    np.testing.assert_array_equal(slope, 0)


def test_actor_losses_and_their_gradient():
    """The optimum of a quadratic Q, in closed form; the scale of Q changes nothing."""
    target, alpha = jnp.array([[0.1], [0.1]]), 2.5
    actions = jnp.array([[0.4], [-0.2]])
    kept = jnp.array([True, False])

    def total(actions, scale=1.0):
        q = scale * (1 - jnp.square(actions[:, 0] - 1))
        return jnp.sum(
            ad.constrained_actor_losses(q, actions, target, kept, alpha=alpha)
        )

    q = 1 - np.square(np.asarray(actions)[:, 0] - 1)
    weight = alpha / np.abs(q).mean()
    expected = (0.4 - 0.1) ** 2 - weight * q.sum()
    np.testing.assert_allclose(total(actions), expected, rtol=1e-12)
    np.testing.assert_allclose(total(actions, 7.0), expected, rtol=1e-12)
    slope = weight * 2 * (np.asarray(actions) - 1) + [[0.6], [0]]
    np.testing.assert_allclose(jax.grad(total)(actions), slope, rtol=1e-12)
    here = jnp.array([[0.0]])
    one = jnp.ones(1)
    # The reference's: no Q, one target.
    loss = ad.constrained_actor_losses(
        one, here, jnp.array([[0.1]]), jnp.ones(1, bool), alpha=0.0
    )
    np.testing.assert_allclose(loss, [0.01], rtol=1e-12)


def test_least_of_a_random_subset():
    """Each of the ten pairs of five critics is drawn, and as often as another."""
    values = jnp.array([3.0, 1.0, 4.0, 1.5, 9.0])
    draws = jax.vmap(lambda key: ad.subset_minimum(key, values[:, None], size=2)[0])(
        jax.random.split(jax.random.key(1), 4000)
    )
    least = [min(pair) for pair in itertools.combinations(values.tolist(), 2)]
    assert set(np.asarray(draws).tolist()) == set(least)
    for value in set(least):
        share = least.count(value) / 10
        error = np.sqrt(share * (1 - share) / 4000)
        assert abs(np.mean(np.asarray(draws) == value) - share) < 4 * error


def test_backups_end_at_the_policy_s_values():
    """``(1 − γP)^{−1} r``; an error shrinks by γ a sweep; ``Σ μ r = (1 − γ) E V``."""
    rewards, *laws = normal(2, (3, 2), (3, 2, 3), (3, 2), (3,))
    steps, logp, initial = map(jax.nn.log_softmax, laws)
    flow = np.einsum("san,nb->sanb", np.exp(steps), np.exp(logp)).reshape(6, 6)
    exact = np.linalg.solve(np.eye(6) - 0.8 * flow, np.ravel(rewards)).reshape(3, 2)
    q, errors = jnp.full((3, 2), -2.0), []
    for _ in range(120):
        errors.append(np.abs(q - exact).max())
        q = ad.policy_backup(q, rewards, steps, logp, discount=0.8)
    np.testing.assert_allclose(q, exact, rtol=1e-9)
    assert (np.array(errors[1:]) <= 0.8 * np.array(errors[:-1]) + 1e-12).all()
    mu = ad.occupancy(initial, steps, logp, discount=0.8)
    value = np.exp(initial) @ (np.exp(logp) * exact).sum(1)
    np.testing.assert_allclose(jnp.sum(mu * rewards), 0.2 * value, rtol=1e-10)


def test_weights_of_a_boosted_mixture():
    """Those of ``m ← (1 − α) m + α new``, step by step."""
    found = ad.age_weights(jnp.arange(4, -1, -1), alpha=0.3)
    np.testing.assert_allclose(found, [0.07203, 0.1029, 0.147, 0.21, 0.3], rtol=1e-12)
    mixture = np.zeros(5)
    for new in np.eye(5):
        mixture = 0.7 * mixture + 0.3 * new
    np.testing.assert_allclose(found, mixture, rtol=1e-12)


@pytest.mark.parametrize("make", [dv.reverse_kl, dv.forward_kl, dv.pearson])
def test_bound_of_a_critic_is_reached_by_the_slope(make):
    div = make()
    law, expert = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
    best = div.f_prime(jnp.log(law / expert))
    value = ad.variational_bound(div, best, law, expert)
    exact = dv.exact(div, jnp.log(law), jnp.log(expert))
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    if make is dv.reverse_kl:
        np.testing.assert_allclose(value, 0.223805, atol=5e-7)
        worse = best + 0.4
        np.testing.assert_allclose(
            ad.variational_bound(div, worse, law, expert),
            law @ worse - expert @ jnp.exp(worse) + 1,
            rtol=1e-12,
        )
    noise = np.random.default_rng(0).normal(size=(100, 3)) / 10
    others = ad.variational_bound(
        div,
        best[None] + noise,
        jnp.broadcast_to(law, (100, 3)),
        jnp.broadcast_to(expert, (100, 3)),
    )
    assert (others < exact).all()


def test_ranges_are_checked():
    two = jnp.ones((2, 1))
    with pytest.raises(InputError, match="state_weight"):
        ad.nearest_actions(two, two, two, two, state_weight=-1.0)
    with pytest.raises(InputError, match="alpha"):
        ad.constrained_actor_losses(two[:, 0], two, two, two[:, 0] > 0, alpha=-1.0)
    with pytest.raises(InputError, match="critics"):
        ad.subset_minimum(jax.random.key(0), two, size=3)
    with pytest.raises(InputError, match="discount"):
        ad.policy_backup(two, two, jnp.zeros((2, 1, 2)), two, discount=1.5)
    with pytest.raises(InputError, match="alpha"):
        ad.age_weights(jnp.arange(2), alpha=0.0)
