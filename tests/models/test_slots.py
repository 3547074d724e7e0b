"""Caches as rings, and rows that begin anew behind other prompts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.types import InputError, Prompts
from tests.close import assert_close, decoder_rel
from tests.models.cases import CONFIGS, FAMILIES, jitted, random_params, random_tokens


def test_a_full_cache_forgets_its_oldest_tokens():
    """The keys that are left are those of one layer's inputs, which see no others."""
    config = CONFIGS["qwen3"]
    config = type(config)(**(config.to_dict() | {"num_layers": 1}))
    apply_fn, params = jitted(config), random_params(config)
    tokens = random_tokens(config, (2, 7))
    cache = apply_fn(params, tokens[:, :3], cache_length=4).cache
    for t in range(3, 7):
        out = apply_fn(params, tokens[:, t : t + 1], cache=cache)
        cache = out.cache
        kept = slice(max(t - 3, 0), t + 1)
        positions = jnp.broadcast_to(jnp.arange(7)[kept], (2, 4))
        expected = apply_fn(params, tokens[:, kept], positions=positions).logits
        assert_close(out.logits[:, 0], expected[:, -1], rel=decoder_rel(1))


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_slots_do_not_change_the_samples(name):
    """Left-padded prompts, one of a single token, windows of 3, caches that turn."""
    config = FAMILIES[name]
    prompts = Prompts(
        tokens=jnp.asarray(random_tokens(config, (3, 4))),
        mask=jnp.asarray(np.arange(4)[None] >= np.array([[3], [0], [2]])),
        index=jnp.arange(3),
    )
    fixed = {"completions": 8, "max_tokens": 6, "eos_id": 2, "temperature": 5.0}

    def sample(**options):
        apply_fn = functional.make_apply(config)
        run = jax.jit(partial(rollouts.generate, apply_fn, **fixed, **options))
        return run(random_params(config), jax.random.key(1), prompts)

    expected, actual = sample(), sample(slots=5)
    assert len(set(np.asarray(expected.trained).sum(axis=1).tolist())) > 2
    assert_close(actual, expected, rel=decoder_rel(config.num_layers))


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_tokens_that_are_taken_back_leave_no_trace(name):
    """Rows take back different numbers of wrong tokens and go on behind a prefix, each
    at its own place; windows of 3."""
    config = FAMILIES[name]
    apply_fn, params = jitted(config), random_params(config)
    prompt, wrong, right = (
        jnp.asarray(random_tokens(config, (2, n), seed=n)) for n in (3, 4, 4)
    )
    prefix = apply_fn(params, prompt, cache_length=3).cache
    cache = apply_fn(params, wrong[:, :0], prefix=prefix, cache_length=9).cache
    cache = functional.rewind(cache, jnp.zeros(2, int))
    back = jnp.array([1, 3])
    cache = functional.rewind(apply_fn(params, wrong, cache=cache).cache, back)
    logits = apply_fn(params, right, cache=cache).logits
    for row, kept in enumerate(4 - np.asarray(back)):
        parts = prompt[row], wrong[row, :kept], right[row]
        whole = jnp.concatenate(parts)[None]
        expected = apply_fn(params, whole).logits[0, -4:]
        assert_close(logits[row], expected, rel=decoder_rel(config.num_layers))
    with pytest.raises(InputError, match="cache must be a decoder's"):
        functional.rewind({"code": 1}, back)
