"""numerics, controllers, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from alignax import (
    controllers,
    divergences,
    estimators,
    exact,
    games,
    numerics,
    sampling,
)
from alignax.types import InputError


@pytest.mark.parametrize(
    ("dtype", "limit"), [(jnp.float32, 40.0), (jnp.float64, 300.0)]
)
def test_exp_continues_with_its_tangent(dtype, limit):
    """In float64 it stays float64; a product of two is finite at the limit."""
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.array([-200.0, 1e-9, 1.0, limit - 1, limit, 2 * limit, 1e4], dtype)
        assert numerics.exponent_limit(x) == limit
        e = np.exp(np.minimum(np.asarray(x, np.float64), limit))
        tangent = e * (1 + np.maximum(np.asarray(x, np.float64) - limit, 0))
        rtol = 1e-5 if dtype == jnp.float32 else 1e-14
        for function, less in ((numerics.exp, 0.0), (numerics.expm1, 1.0)):
            value = function(x)
            assert value.dtype == dtype
            np.testing.assert_allclose(value[2:], tangent[2:] - less, rtol=rtol)
            gradient = jax.vmap(jax.grad(function))(x)
            np.testing.assert_allclose(gradient, e, rtol=rtol, atol=1e-15)
            assert np.isfinite(function(x[:5]) ** 2).all()
        np.testing.assert_allclose(numerics.expm1(x)[1], 1e-9, rtol=1e-6)


def test_one_limit_for_both_sides_of_a_kl():
    """k3 is the reverse KL's sampled value also where the tangent has taken over."""
    l = jnp.array([-100.0, -50.0, -41.0, -30.0, -20.0, 0.0, 50.0])
    k3 = estimators.k3(l, jnp.zeros_like(l))
    value = estimators.f_from_policy(divergences.reverse_kl(), l, 0 * l)
    np.testing.assert_allclose(k3, value, rtol=1e-5)


def test_prefix_weights_are_exact_up_to_the_limit():
    """A log-weight of 30 nats, as long completions reach: 1.07e13."""
    weights = estimators.prefix_weights(
        jnp.zeros(3), jnp.full(3, -10.0), jnp.ones(3, bool)
    )
    np.testing.assert_allclose(weights, np.exp([10.0, 20.0, 30.0]), rtol=1e-5)


def test_adaptive_kl_worked_numbers():
    """Ziegler et al. (arXiv 1909.08593): KL 12, 7, 3 against 6; reference 8.2."""
    controller = controllers.adaptive_kl(beta=0.2, target=6.0)
    state = controller.init()
    for kl in (12.0, 7.0, 3.0):
        state = controller.update(state, jnp.float32(kl), 256)
    np.testing.assert_allclose(state.beta, 0.200848068083712, rtol=1e-6)


def test_fixed_ignores_the_kl():
    controller = controllers.fixed(beta=0.3)
    state = controller.update(controller.init(), jnp.float32(1e9), 8)
    assert state.beta == np.float32(0.3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: controllers.fixed(beta=-1.0),
        lambda: controllers.adaptive_kl(beta=0.0, target=1.0),
        lambda: controllers.adaptive_kl(beta=1.0, target=-1.0),
        lambda: sampling.tempered(jnp.ones(3), temperature=0.0),
        lambda: sampling.top_k(jnp.ones(3), k=0),
        lambda: sampling.top_p(jnp.ones(3), p=0.0),
        lambda: sampling.top_p(jnp.ones(3), p=1.5),
    ],
)
def test_out_of_range_is_named(call):
    with pytest.raises(InputError, match="got"):
        call()


def kept(logits):
    return np.flatnonzero(np.isfinite(np.asarray(logits))).tolist()


def test_top_k_keeps_ties():
    logits = jnp.array([1.0, 3.0, 2.0, 2.0])
    assert kept(sampling.top_k(logits, k=1)) == [1]
    assert kept(sampling.top_k(logits, k=2)) == [1, 2, 3]
    assert kept(sampling.top_k(logits, k=9)) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
    assert kept(sampling.top_p(logits, p=1e-6)) == [1]
    assert kept(sampling.top_p(logits, p=0.39)) == [1]
    assert kept(sampling.top_p(logits, p=0.6)) == [1, 2]
    assert kept(sampling.top_p(logits, p=0.85)) == [1, 2, 3]
    assert kept(sampling.top_p(logits, p=1.0)) == [0, 1, 2, 3]


def test_transforms_compose():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
    law = sampling.top_p(sampling.top_k(logits, k=3), p=0.5)
    assert kept(law) == [1, 2], "top-p is of the mass that top-k left"


def test_dual_ascent_holds_its_error_within_one():
    """KL 30 against 6 moves β as KL 12 does: e^0.1, not e^0.4."""
    controller = controllers.dual_ascent_kl(beta=0.2, target=6.0)
    for kl in (12.0, 30.0):
        state = controller.update(controller.init(), jnp.float32(kl), 256)
        np.testing.assert_allclose(state.beta, 0.2 * np.exp(0.1), rtol=1e-6)


@pytest.mark.parametrize("name", ["sinkd", "play", "play_bandit", "equilibrium"])
def test_loops_under_shard_map(name):
    """What is no row of the table: one world a device, under shard_map's checks."""
    learner = exact.exponential_weights(learning_rate=0.5)
    contexts, key = jnp.zeros(4, int), jax.random.key(0)
    functions = {
        "sinkd": lambda x: divergences.sinkd(x, jnp.zeros_like(x)),
        "play": lambda x: exact.run_full_information(
            learner, x, contexts, num_contexts=1
        ),
        "play_bandit": lambda x: exact.run_bandit(
            learner, x, contexts, key, num_contexts=1
        )[0],
        "equilibrium": lambda x: games.regularised_equilibrium(
            games.Game(jax.nn.sigmoid(x[0][:, None] - x[0][None]), x[1], 0.5)
        ),
    }
    worlds = jax.random.uniform(jax.random.key(1), (8, 4, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        lambda x: functions[name](x[0])[None],
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )
    found = jax.jit(sharded)(worlds)
    expected = jnp.stack([functions[name](x) for x in worlds])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
