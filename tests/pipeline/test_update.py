import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from alignax import controllers, reduce
from alignax.pipeline import sharding, update
from alignax.types import InputError


def loss_fn(params, batch):
    """A token-mean regression with ragged rows."""
    predictions = batch["x"] @ params["w"] + params["b"]
    errors = jnp.square(predictions - batch["y"])
    numerator, denominator = reduce.token_mean(errors, batch["mask"])
    rows = jnp.float32(len(batch["y"]))
    return numerator, denominator, {"tokens_a_row": (denominator, rows)}


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "x": jax.random.normal(keys[0], (8, 5, 4)),
        "y": jax.random.normal(keys[1], (8, 5)),
        "mask": jnp.arange(5)[None] < jnp.array([5, 4, 3, 0, 1, 1, 2, 5])[:, None],
    }


def start(tx):
    params = {"w": jnp.ones((4,)), "b": jnp.zeros(())}
    return update.init_state(params, tx, controllers.fixed(beta=0.1), jax.random.key(1))


@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_gradient_is_that_of_the_whole_batch(batch, microbatches):
    tx = optax.sgd(1.0)
    step = update.make_update(loss_fn, tx, microbatches=microbatches)
    state, metrics = jax.jit(step)(start(tx), batch)

    x, y, m = (np.float64(batch[k]) for k in ("x", "y", "mask"))
    errors = (x.sum(-1) - y) * m
    gradient = 2 * np.einsum("bt,btd->d", errors, x) / m.sum()
    np.testing.assert_allclose(1 - state.params["w"], gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (errors**2).sum() / m.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["tokens_a_row"], 21 / 8)
    norm = np.sqrt((gradient**2).sum() + (2 * errors.sum() / m.sum()) ** 2)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert state.step == 1


def test_microbatches_must_divide(batch):
    with pytest.raises(InputError, match=r"microbatches .* 8 rows, got 3"):
        update.accumulate(loss_fn, {}, batch, microbatches=3)


def test_nothing_counted_moves_nothing(batch):
    tx = optax.sgd(1.0)
    empty = batch | {"mask": jnp.zeros_like(batch["mask"])}
    state, metrics = update.make_update(loss_fn, tx)(start(tx), empty)
    chex.assert_trees_all_equal(state.params, start(tx).params)
    assert metrics["loss"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_costs_one_update(batch, value):
    """Twice bad, once good: what stays is one good update of a fresh state."""
    tx = update.optimiser(learning_rate=0.1, steps=10)
    step = jax.jit(update.make_update(loss_fn, tx, microbatches=2))
    bad = batch | {"y": batch["y"].at[1, 2].set(value)}
    state = start(tx)
    for count in (1, 2):
        state, metrics = step(state, bad)
        assert not np.isfinite(metrics["loss"])
        assert metrics["skipped"] == 1
        assert (state.counters.skipped, state.counters.skipped_in_row) == (count, count)
    chex.assert_trees_all_equal(state.params, start(tx).params)
    chex.assert_trees_all_equal(state.opt_state, start(tx).opt_state)
    assert state.step == 2
    state, metrics = step(state, batch)
    expected, _ = step(start(tx), batch)
    chex.assert_trees_all_equal(state.params, expected.params)
    chex.assert_trees_all_equal(state.opt_state, expected.opt_state)
    assert metrics["skipped"] == 0
    assert (state.counters.skipped, state.counters.skipped_in_row) == (2, 0)
    # A long process may hold none of its calls; a recompilation would make two.
    assert step._cache_size() <= 1


def test_a_gradient_that_is_not_finite_is_skipped(batch):
    def steep(params, batch):
        # Of a finite value: the root's slope at zero is not finite.
        numerator, denominator, aux = loss_fn(params, batch)
        return numerator + jnp.sqrt(params["b"]), denominator, aux

    tx = optax.sgd(1.0)
    state, metrics = jax.jit(update.make_update(steep, tx))(start(tx), batch)
    assert np.isfinite(metrics["loss"])
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(state.params, start(tx).params)


def test_skipping_costs_no_copy_of_the_parameters():
    """What says whether to skip is known before the optimiser writes."""

    def deep(params, batch):
        x = batch
        for w in params.values():
            x = jnp.tanh(x @ w)
        return jnp.sum(x), jnp.float32(1), {}

    tx = update.optimiser(learning_rate=0.1, steps=10)
    params = {f"w{i}": jnp.zeros((128, 128)) for i in range(8)}
    size = sum(leaf.nbytes for leaf in params.values())
    state = update.init_state(
        params, tx, controllers.fixed(beta=0.0), jax.random.key(0)
    )
    step = jax.jit(update.make_update(deep, tx), donate_argnums=0)
    memory = step.lower(state, jnp.ones((2, 128))).compile().memory_analysis()
    # Gradients in the accumulator's and the parameters' dtype, and one matrix.
    assert memory.temp_size_in_bytes < 2.5 * size


def test_norm_of_half_precision_does_not_overflow():
    """Squares of 300 do, in float16."""
    try:
        jnp.sum(jnp.ones(4, jnp.float16))
    except jax.errors.JaxRuntimeError as error:
        # A processor without AVX, which jaxlib itself asks for.
        if "materialize" not in str(error):
            raise
        pytest.skip("XLA has no float16 for this processor")
    tx = optax.sgd(1e-3)
    params = {"w": jnp.ones((4,), jnp.float16)}
    state = update.init_state(
        params, tx, controllers.fixed(beta=0.1), jax.random.key(1)
    )
    step = update.make_update(
        lambda params, _: (300.0 * jnp.sum(params["w"]), jnp.float32(1), {}), tx
    )
    state, metrics = step(state, None)
    np.testing.assert_allclose(metrics["grad_norm"], 600, rtol=1e-6)
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(state.params["w"], np.full(4, 0.7), rtol=1e-3)


def test_where_chooses_whole_trees():
    new = {"x": jnp.array([1.0, np.nan]), "key": jax.random.key(1), "n": jnp.int32(4)}
    old = {"x": jnp.array([2.0, 3.0]), "key": jax.random.key(2), "n": jnp.int32(5)}
    chex.assert_trees_all_equal(update.where(jnp.bool(True), new, old), new)
    chex.assert_trees_all_equal(update.where(jnp.bool(False), new, old), old)


def test_bfloat16_parameters_stay_bfloat16(batch):
    tx = optax.sgd(0.1)
    state = start(tx)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
    state = update.init_state(half, tx, controllers.fixed(beta=0.1), state.key)
    state, metrics = update.make_update(loss_fn, tx, microbatches=2)(state, batch)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(state.params))
    assert metrics["loss"].dtype == jnp.float32


def test_sharded_and_donated_step_equals_the_plain_one(batch):
    tx = update.optimiser(learning_rate=0.1, steps=10)
    step = update.make_update(loss_fn, tx, microbatches=2)
    expected, plain_metrics = jax.jit(step)(start(tx), batch)

    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    state = start(tx)
    axes = {"w": ("mlp",), "b": ()}
    shardings = update.state_shardings(
        state,
        tx,
        params=sharding.param_shardings(state.params, axes, mesh),
        replicated=sharding.replicated(mesh),
    )
    state = jax.device_put(state, shardings)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    state, metrics = jitted(state, sharding.shard_rows(batch, mesh))
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-5)
    chex.assert_trees_all_close(metrics, plain_metrics, rtol=1e-5)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (4,)]
    assert len(moments) == 2
    assert all(m.sharding.spec == P("tensor") for m in moments)
    # Outputs keep the shardings of the inputs: the second step does not retrace.
    jitted(state, sharding.shard_rows(batch, mesh))
    assert jitted._cache_size() <= 1


def test_schedule_and_decay_mask():
    tx = update.optimiser(learning_rate=1.0, steps=4, warmup=2, weight_decay=0.5)
    params = {"w": jnp.ones((2, 2)), "scale": jnp.ones((2,))}
    state = tx.init(params)
    moved = []
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        assert (updates["scale"] == 0).all(), "scales are not decayed"
        moved.append(-float(updates["w"][0, 0]))
    np.testing.assert_allclose(moved, [0, 0.25, 0.5, 0.25, 0], atol=1e-6)
