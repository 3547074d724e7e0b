"""The decoder against its numpy twin; padding, causality, gradients, dtypes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from alignax.models import functional
from alignax.models.decoder import DecoderConfig
from alignax.types import InputError
from tests.close import assert_close, decoder_rel
from tests.models.cases import (
    CONFIGS,
    SIZES,
    jitted,
    needs_float16,
    random_params,
    random_tokens,
    reference,
)

CLOSE = decoder_rel(layers=2)


def run(config, *args, **kwargs):
    return np.asarray(jitted(config)(*args, **kwargs).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_definition(name):
    config = CONFIGS[name]
    params, tokens = random_params(config), random_tokens(config, (2, 6))
    logits = run(config, params, tokens)
    assert logits.dtype == np.float32
    for row in range(2):
        expected = reference(config, params, tokens[row])
        assert_close(logits[row], expected, rel=decoder_rel(config.num_layers))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gradient_equals_the_definitions_slope(name):
    """Along one random direction in every leaf: differences of the float64 twin."""
    config = dataclasses.replace(CONFIGS[name], num_layers=1)
    params, tokens = random_params(config), random_tokens(config, (1, 4))
    weights = np.random.default_rng(1).standard_normal((4, config.vocab_size))

    @jax.jit
    @jax.grad
    def slopes(params):
        logits = functional.make_apply(config)(params, tokens).logits[0]
        return jnp.sum(logits * weights.astype(np.float32))

    leaves, treedef = jax.tree.flatten(params)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    rng = np.random.default_rng(2)
    for i, slope in enumerate(jax.tree.leaves(slopes(params))):
        direction = rng.standard_normal(slope.shape)

        def moved(step, i=i, direction=direction):
            at = leaves.copy()
            at[i] = at[i] + step * direction
            logits = reference(config, jax.tree.unflatten(treedef, at), tokens[0])
            return np.sum(logits * weights)

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            np.sum(np.asarray(slope) * direction), difference, rtol=1e-3, atol=1e-3
        )


def test_check_grads():
    config = dataclasses.replace(CONFIGS["one key"], num_layers=1)
    params, tokens = random_params(config), random_tokens(config, (2, 3))
    mask = jnp.array([[True, True, True], [False, True, True]])

    @jax.jit
    def loss(params):
        logits = functional.make_apply(config)(params, tokens, mask=mask).logits
        return jnp.mean(jax.nn.log_softmax(logits) ** 2)

    check_grads(loss, (params,), 1, modes=["rev"], eps=1e-2, rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="module")
def padded():
    """Rows of 2, 4 and 5 tokens alone, and left-padded to 6 with all kinds of dirt."""
    config = CONFIGS["one key"]
    params, rows = random_params(config), [2, 4, 5]
    clean = [random_tokens(config, (n,), seed=n) for n in rows]
    tokens = np.full((3, 6), -100, np.int32)
    tokens[1:] = config.vocab_size + 5
    mask = np.zeros((3, 6), bool)
    for i, row in enumerate(clean):
        tokens[i, 6 - len(row) :], mask[i, 6 - len(row) :] = row, True
    return config, params, clean, tokens, mask


def test_left_padding_changes_nothing(padded):
    config, params, clean, tokens, mask = padded
    logits = run(config, params, tokens, mask=mask)
    for i, row in enumerate(clean):
        expected = reference(config, params, row)
        assert_close(logits[i, 6 - len(row) :], expected, rel=CLOSE)


def test_padding_in_the_middle_and_on_the_right(padded):
    config, params, clean, _, _ = padded
    row = clean[2]
    tokens = np.array([[row[0], 7, row[1], row[2], 7, row[3], row[4], 7]], np.int32)
    mask = np.array([[1, 0, 1, 1, 0, 1, 1, 0]], bool)
    logits = run(config, params, tokens, mask=mask)
    assert_close(logits[mask], reference(config, params, row), rel=CLOSE)


def test_padding_gets_no_gradient(padded):
    """What stands on padding touches neither values nor gradients."""
    config, params, _, tokens, mask = padded

    @jax.jit
    @jax.grad
    def slopes(params, tokens):
        logits = functional.make_apply(config)(params, tokens, mask=mask).logits
        return jnp.sum(jnp.where(mask[..., None], jnp.square(logits), 0.0))

    one, other = slopes(params, tokens), slopes(params, np.where(mask, tokens, 3))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_positions_can_be_given():
    config = CONFIGS["qwen2"]
    params, tokens = random_params(config), random_tokens(config, (1, 4))
    positions = np.array([[0, 3, 4, 9]], np.int32)
    assert_close(
        run(config, params, tokens, positions=positions)[0],
        reference(config, params, tokens[0], positions[0]),
        rel=CLOSE,
    )


def test_causality():
    config = CONFIGS["qwen3"]
    params, tokens = random_params(config), random_tokens(config, (1, 6))
    before = run(config, params, tokens)
    for t in range(6):
        changed = tokens.copy()
        changed[0, t] = (changed[0, t] + 1) % config.vocab_size
        after = run(config, params, changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert np.all(np.abs(before[:, t:] - after[:, t:]).max(-1) > 1e-4)


def test_a_row_of_padding_is_finite():
    config = CONFIGS["one key"]
    params, tokens = random_params(config), random_tokens(config, (2, 4))
    mask = jnp.array([[False] * 4, [True] * 4])

    def loss(params):
        logits = functional.make_apply(config)(params, tokens, mask=mask).logits
        return jnp.sum(jnp.square(logits)), logits

    slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, logits), gradient = slopes(params)
    assert jnp.all(jnp.isfinite(logits))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert_close(logits[1], reference(config, params, tokens[1]), rel=CLOSE)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16(param_dtype):
    fine = dataclasses.replace(CONFIGS["qwen2"], num_layers=1)
    coarse = dataclasses.replace(fine, dtype="bfloat16", param_dtype=param_dtype)
    params, tokens = random_params(fine), random_tokens(fine, (2, 5))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    given = jax.tree.map(lambda x: x.astype(param_dtype), params)
    gradient = jax.jit(
        jax.grad(lambda p: jnp.mean(jnp.square(jitted(coarse)(p, tokens).logits)))
    )(given)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {
        jnp.dtype(param_dtype)
    }
    got, truth = run(coarse, given, tokens), run(fine, params, tokens)
    assert got.dtype == np.float32
    error = np.abs(got - truth).max() / np.abs(truth).max()
    assert 1e-6 < error < 0.03, "bfloat16 keeps 8 bits, and is not float32"


def test_each_place_of_half_precision():
    """Three bits more, or sums in float32, are nearer to float32's numbers; the head's
    dtype is what its product is made of."""
    fine = dataclasses.replace(CONFIGS["llama"], hidden_size=64, num_layers=8)
    params = functional.init(
        dataclasses.replace(fine, initializer_range=0.25), jax.random.key(0)
    )
    tokens = random_tokens(fine, (4, 12))
    truth = run(fine, params, tokens)

    def error(**places):
        config = dataclasses.replace(fine, **places)
        logits = run(config, params, tokens)
        assert logits.dtype == np.float32
        out = jax.eval_shape(functional.make_hidden(config), params, tokens)
        expected = jnp.dtype(config.head_dtype or config.dtype)
        assert out.hidden.dtype == out.head.dtype == expected
        return np.linalg.norm(logits - truth) / np.linalg.norm(truth)

    half = error(dtype="bfloat16")
    assert 1e-3 < half < 0.05
    wide = {"residual_dtype": "float32", "head_dtype": "float32"}
    assert error(dtype="bfloat16", **wide) < 0.9 * half
    needs_float16()
    assert 1e-5 < error(dtype="float16") < half / 3


BAD = {
    "residual_dtype": "float8",
    "head_dtype": 16,
    "vocab_size": 0,
    "hidden_size": -1,
    "num_layers": 1.5,
    "num_heads": True,
    "num_kv_heads": 3,
    "head_dim": 5,
    "mlp_size": "12",
    "max_length": 0,
    "rope_theta": float("inf"),
    "rope_factor": -1.0,
    "rope_low": "1",
    "rope_high": 0.0,
    "rope_original_length": 1.5,
    "learned_positions": 0,
    "norm": "batch",
    "post_norms": None,
    "scale_embeddings": 1,
    "linear_bias": "yes",
    "query_size": 0,
    "attention_soft_cap": -50.0,
    "logit_soft_cap": True,
    "window": 0,
    "local_layers": [0],
    "local_rope_theta": float("nan"),
    "activation": "relu",
    "gated_mlp": 2,
    "norm_eps": float("nan"),
    "tie_embeddings": 1,
    "attention_bias": None,
    "qk_norm": "no",
    "initializer_range": 0.0,
    "param_dtype": "float8",
    "dtype": "float64",
    "attention": "flash",
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(DecoderConfig)])
def test_every_field_is_checked(name, monkeypatch):
    # The tests' type checks would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=f"^{name} must"):
        DecoderConfig(**(SIZES | {name: BAD[name]}))


def test_a_config_is_json_and_back():
    config = dataclasses.replace(CONFIGS["one key"], window=3, local_layers=(1,))
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(DecoderConfig.from_dict(config.to_dict())) == hash(config)
    with pytest.raises(InputError, match=r"unknown: \['colour'\]"):
        DecoderConfig.from_dict(config.to_dict() | {"colour": 1})
    values = config.to_dict()
    del values["head_dim"]
    with pytest.raises(InputError, match=r"missing: \['head_dim'\]"):
        DecoderConfig.from_dict(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_low": 1.0}, "must be given together"),
        ({"local_layers": (0,)}, "window must be a number"),
        ({"local_layers": (5,), "window": 2}, "among the 2 layers"),
    ],
)
def test_fields_that_need_each_other(fields, message):
    with pytest.raises(InputError, match=message):
        DecoderConfig(**(SIZES | fields))


def test_vmapped_gradients_are_right():
    """One row of gradients for each sequence, by the reverse and the forward pass.

    At this size jaxlib 0.10.2 gets x · rsqrt(mean x²) wrong on CPUs.
    """
    config = dataclasses.replace(CONFIGS["llama"], hidden_size=16, num_layers=1)
    apply_fn, params = functional.make_apply(config), random_params(config)
    tokens = random_tokens(config, (40, 3))

    def totals(params):
        logp = jax.nn.log_softmax(apply_fn(params, tokens).logits)
        return jnp.sum(logp[..., 0], axis=1)

    reverse, forward = (jax.jit(d(totals))(params) for d in (jax.jacrev, jax.jacfwd))
    # Sums of 16 terms instead of 8.
    assert_close(reverse, forward, rel=2 * decoder_rel(1, gradient=True))
