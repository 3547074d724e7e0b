"""The boundary: pure functions over plain dictionaries."""

import cProfile
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import sharding
from alignax.types import ApplyFn, InputError
from tests.close import assert_close, decoder_rel
from tests.models.cases import (
    CONFIGS,
    FAMILIES,
    SIZES,
    jitted,
    random_params,
    random_tokens,
)

CONFIG = CONFIGS["one key"]
CLOSE = decoder_rel(CONFIG.num_layers)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def plain(tree):
    if isinstance(tree, dict):
        return all(isinstance(key, str) and plain(x) for key, x in tree.items())
    return isinstance(tree, jax.Array)


@pytest.mark.parametrize("name", ["one key", "deep"])
def test_init(name):
    config = dataclasses.replace(CONFIGS[name], initializer_range=0.5)
    params = functional.init(config, jax.random.key(0))
    assert plain(params)
    assert jax.tree.structure(params) == jax.tree.structure(functional.shapes(config))
    flat = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(params)}
    for path, leaf in flat.items():
        if "scale" in path:
            assert np.all(leaf == 1), path
        elif "bias" in path:
            assert np.all(leaf == 0), path
    drawn = [x for p, x in flat.items() if "scale" not in p and "bias" not in p]
    values = np.concatenate([x.ravel() for x in drawn])
    assert abs(np.std(values) - 0.5) < 0.5 * 4 / math.sqrt(2 * values.size)
    assert len(np.unique(values)) > 0.99 * values.size, "a key was used twice"
    other = functional.init(config, jax.random.key(1))
    assert not np.allclose(params["embedding"], other["embedding"])


@pytest.mark.parametrize("name", CONFIGS | FAMILIES)
def test_shapes_are_those_of_init(name):
    config = (CONFIGS | FAMILIES)[name]
    params = functional.init(config, jax.random.key(0))
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    given = functional.shapes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), given) == expected


def test_shapes_of_twice_the_layers_are_twice_the_work():
    def calls(layers):
        functional._skeleton.cache_clear()
        profile = cProfile.Profile()
        profile.runcall(
            functional.shapes, dataclasses.replace(CONFIG, num_layers=layers)
        )
        return sum(entry.callcount for entry in profile.getstats())

    functional.shapes(CONFIG)
    few, some, many = (calls(layers) for layers in (8, 16, 32))
    # Of a square it would be 4.
    assert (many - some) / (some - few) < 2.5


def test_param_dtype():
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16")
    params = functional.init(config, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_count_parameters(params):
    d, n, v, f = 8, 2, 13, 12
    heads, keys, head = 4, 1, 4
    attention = d * head * (2 * heads + 2 * keys) + head * (heads + 2 * keys)
    assert functional.count_parameters(params) == (
        v * d + n * (attention + 3 * d * f + 2 * d + 2 * head) + d
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_logical_axes(name):
    config = CONFIGS[name]
    axes = functional.logical_axes(config)
    sizes = {
        "vocab": {config.vocab_size},
        "embed": {config.hidden_size},
        "heads": {config.num_heads * config.head_dim},
        "kv_heads": {config.num_kv_heads * config.head_dim},
        "mlp": {config.mlp_size},
        None: {config.hidden_size, config.head_dim},
    }

    def check(leaf, names):
        assert isinstance(names, tuple)
        assert len(names) == leaf.ndim
        assert all(n in sizes[a] for n, a in zip(leaf.shape, names, strict=True))

    shapes = functional.shapes(config)
    jax.tree.map(check, shapes, axes)
    is_names = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(shapes) == jax.tree.structure(axes, is_leaf=is_names)


def test_the_same_function_for_the_same_config():
    assert functional.make_apply(CONFIG) is functional.make_apply(
        dataclasses.replace(CONFIG)
    )
    assert isinstance(functional.make_apply(CONFIG), ApplyFn)


def test_one_trace(params):
    traces = []

    @jax.jit
    def loss(params, tokens):
        traces.append(1)
        return jnp.sum(functional.make_apply(CONFIG)(params, tokens).logits)

    for seed in range(3):
        fresh = random_params(CONFIG, seed)
        jax.grad(loss)(fresh, random_tokens(CONFIG, (2, 4), seed))
    assert len(traces) == 1


def test_transformations_agree(params):
    apply_fn, tokens = functional.make_apply(CONFIG), random_tokens(CONFIG, (2, 4))
    both = jax.tree.map(lambda *x: jnp.stack(x), params, random_params(CONFIG, 1))
    many = jax.jit(jax.vmap(lambda p: apply_fn(p, tokens).logits))(both)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        compiled = jitted(CONFIG)(one, tokens).logits
        assert_close(many[i], compiled, rel=CLOSE)
    eager = apply_fn(one, tokens).logits
    assert_close(eager, compiled, rel=CLOSE)
    abstract = jax.eval_shape(apply_fn, params, tokens)
    assert abstract.logits.shape == (2, 4, CONFIG.vocab_size)
    assert abstract.cache is None


def test_params_may_be_numpy(params):
    apply_fn, tokens = jitted(CONFIG), random_tokens(CONFIG, (2, 4))
    host = jax.tree.map(np.asarray, params)
    np.testing.assert_array_equal(
        apply_fn(host, tokens).logits, apply_fn(params, tokens).logits
    )


def test_split_over_devices():
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=16)
    params, tokens = random_params(config), random_tokens(config, (8, 5))
    apply_fn = functional.make_apply(config)

    def loss(params, tokens):
        logits = apply_fn(params, tokens).logits
        return jnp.mean(jnp.square(logits)), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, truth), slope = step(params, tokens)
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    places = sharding.param_shardings(
        functional.shapes(config), functional.logical_axes(config), mesh
    )
    init = jax.jit(functional.init, static_argnums=0, out_shardings=places)
    fresh = init(config, jax.random.key(0))
    assert fresh["embedding"].addressable_shards[0].data.shape == (4, 4)
    spread = jax.device_put(params, places)
    (_, logits), gradient = step(spread, sharding.shard_rows(tokens, mesh))
    assert_close(logits, truth, rel=CLOSE)
    assert_close(gradient, slope, rel=decoder_rel(2, gradient=True))


def test_what_does_not_fit(params):
    apply_fn = jitted(CONFIG)
    length = SIZES["max_length"]

    def tokens(n):
        return jnp.zeros((1, n), jnp.int32)

    with pytest.raises(InputError, match=f"max_length of {length}"):
        apply_fn(params, tokens(length + 1))
    with pytest.raises(InputError, match=f"max_length of {length}"):
        apply_fn(params, tokens(4), cache_length=length + 1)
    with pytest.raises(InputError, match="cache_length must have room for the 4"):
        apply_fn(params, tokens(4), cache_length=3)
    cache = apply_fn(params, tokens(2), cache_length=5).cache
    with pytest.raises(InputError, match="the cache's 5 places, got 6"):
        apply_fn(params, tokens(6), cache=cache)
    with pytest.raises(InputError, match="give one"):
        apply_fn(params, tokens(1), cache=cache, cache_length=5)
    for bad in (-1, 4):
        with pytest.raises(InputError, match=f"logits_from .* got {bad}"):
            apply_fn(params, tokens(4), logits_from=bad)


def test_parameters_of_another_config(params):
    tokens = jnp.zeros((1, 2), jnp.int32)
    for change, message in {
        "qk_norm": r"blocks\.0\.attention\.key_norm\.scale must be absent",
        "tie_embeddings": r"head must be \(13, 8\), got nothing",
    }.items():
        value = not getattr(CONFIG, change)
        config = dataclasses.replace(CONFIG, **{change: value})
        with pytest.raises(InputError, match=message):
            functional.make_apply(config)(params, tokens)
    wide = dataclasses.replace(CONFIG, mlp_size=14)
    with pytest.raises(InputError, match=r"must be \(14, 8\), got \(12, 8\)"):
        functional.make_apply(wide)(params, tokens)
