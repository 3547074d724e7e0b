"""Decoding with a cache is the full forward, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.close import assert_close, decoder_rel
from tests.models.cases import CONFIGS, jitted, random_params, random_tokens

CLOSE = decoder_rel(layers=2)
LENGTH = 9
# Left-padded rows; the last is nothing but padding at first.
MASK = np.array(
    [[1] * 9, [0] * 3 + [1] * 6, [0] * 2 + [1] * 7, [0] * 4 + [1] * 5], bool
)


@pytest.fixture(scope="module", params=["llama", "one key"])
def model(request):
    config = CONFIGS[request.param]
    apply_fn, params = jitted(config), random_params(config)
    tokens = random_tokens(config, MASK.shape)
    return apply_fn, params, tokens, apply_fn(params, tokens, mask=MASK).logits


@pytest.mark.parametrize("steps", [[4, 1, 1, 1, 1, 1], [3, 2, 4]])
def test_in_steps_is_at_once(model, steps):
    apply_fn, params, tokens, whole = model
    parts, cache, at = [], None, 0
    for step in steps:
        here = slice(at, at + step)
        room = {"cache_length": LENGTH + 3} if cache is None else {"cache": cache}
        out = apply_fn(params, tokens[:, here], mask=MASK[:, here], **room)
        parts.append(out.logits)
        cache, at = out.cache, at + step
    got = np.concatenate(parts, axis=1)
    # On padding the two differ by what fills a softmax over nothing.
    assert_close(got[MASK], whole[MASK], rel=CLOSE)
    assert cache["index"] == LENGTH
    np.testing.assert_array_equal(cache["mask"][:, :LENGTH], MASK)
    assert not np.any(cache["mask"][:, LENGTH:])


def test_logits_from_is_a_slice(model):
    apply_fn, params, tokens, whole = model
    got = apply_fn(params, tokens, mask=MASK, logits_from=5).logits
    assert_close(got, whole[:, 5:], rel=CLOSE)


def test_prompt_positions_never_reach_the_head(model):
    apply_fn, params, tokens, whole = model
    text = str(jax.make_jaxpr(lambda p: apply_fn(p, tokens, logits_from=7))(params))
    vocab = whole.shape[-1]
    assert f"f32[4,2,{vocab}]" in text
    assert f"f32[4,9,{vocab}]" not in text


def test_the_batch_leads_in_every_leaf(model):
    apply_fn, params, tokens, _ = model
    cache = apply_fn(params, tokens, cache_length=12).cache
    leaves = jax.tree.leaves(cache)
    assert [leaf.shape for leaf in leaves if not leaf.ndim] == [()]
    assert all(leaf.shape[0] == 4 for leaf in leaves if leaf.ndim)
    assert cache["index"].dtype == jnp.int32


def test_one_prompt_many_completions_in_a_loop(model):
    """Greedy tokens from a while_loop over repeated caches equal those of full
    forwards, and two different continuations do not meet."""
    apply_fn, params, _, _ = model
    prompts = random_tokens(CONFIGS["llama"], (2, 4), seed=3)
    mask = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)
    first = np.array([[2], [7], [2], [7]], np.int32)

    @jax.jit
    def sample(params):
        cache = apply_fn(params, prompts, mask=mask, cache_length=9).cache
        cache = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0) if x.ndim else x, cache)

        def step(carry):
            t, out, cache = carry
            last = jax.lax.dynamic_slice_in_dim(out, t, 1, axis=1)
            logits, cache = apply_fn(params, last, cache=cache)
            token = jnp.argmax(logits[:, -1], axis=-1).astype(out.dtype)
            return t + 1, out.at[:, t + 1].set(token), cache

        out = jnp.zeros((4, 6), jnp.int32).at[:, :1].set(first)
        return jax.lax.while_loop(
            lambda carry: carry[0] < 5, step, (jnp.int32(0), out, cache)
        )[1]

    got = np.asarray(sample(params))
    tokens = np.concatenate([np.repeat(prompts, 2, axis=0), got], axis=1)
    seen = np.concatenate([np.repeat(mask, 2, axis=0), np.ones((4, 6), bool)], axis=1)
    logits = apply_fn(params, tokens, mask=seen).logits
    np.testing.assert_array_equal(got[:, 1:], np.argmax(logits, axis=-1)[:, 4:-1])


def test_the_cache_is_updated_in_place(model):
    """A decoding step that owns its cache copies none of it."""
    apply_fn, params, tokens, _ = model
    cache = apply_fn(params, tokens, cache_length=12).cache
    step = jax.jit(lambda p, t, c: apply_fn(p, t, cache=c).cache, donate_argnums=2)
    compiled = step.lower(params, tokens[:, :1], cache).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes == size
