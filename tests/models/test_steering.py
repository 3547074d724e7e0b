"""A vector in the residual stream, against the numpy twin that adds it by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.models.steering import residual, steered
from alignax.pipeline import rollout as rollouts
from alignax.types import InputError, Prompts
from tests.close import assert_close, decoder_rel
from tests.models.cases import (
    CONFIGS,
    FAMILIES,
    jitted,
    random_params,
    random_tokens,
    reference,
    stream,
)

CONFIG = CONFIGS["llama"]
CLOSE = decoder_rel(CONFIG.num_layers)
PARAMS = random_params(CONFIG)
VECTOR = jnp.asarray(np.random.default_rng(5).standard_normal(8), jnp.float32)
TOKENS = jnp.asarray(random_tokens(CONFIG, (2, 6)))


@pytest.mark.parametrize("layer", [0, 1])
def test_steered_logits_are_the_patched_forwards(layer):
    """One layer at a time in a full forward, in the loop over layers, and token by
    token behind a shared prompt."""
    params = steered(CONFIG, PARAMS, VECTOR, layer=layer, strength=0.7)
    expected = np.stack(
        [
            reference(CONFIG, PARAMS, row, added={layer: 0.7 * VECTOR})
            for row in np.asarray(TOKENS)
        ]
    )
    plain = np.stack([reference(CONFIG, PARAMS, row) for row in np.asarray(TOKENS)])
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
    apply_fn = jitted(CONFIG)
    assert_close(np.asarray(apply_fn(params, TOKENS).logits), expected, rel=CLOSE)
    out = jax.jit(functional.make_hidden(CONFIG, scan=True))(params, TOKENS)
    assert_close(np.asarray(out.hidden @ out.head.T), expected, rel=CLOSE)

    prefix = apply_fn(params, TOKENS[:, :3], cache_length=3).cache
    cache = apply_fn(params, TOKENS[:, :0], prefix=prefix, cache_length=3).cache
    for t in range(3, 6):
        out = apply_fn(params, TOKENS[:, t : t + 1], cache=cache)
        cache = out.cache
        assert_close(np.asarray(out.logits[:, 0]), expected[:, t], rel=CLOSE)


def test_no_strength_changes_no_bit():
    params = steered(CONFIG, PARAMS, VECTOR, layer=1, strength=0.0)
    apply_fn = jitted(CONFIG)
    np.testing.assert_array_equal(
        apply_fn(params, TOKENS).logits, apply_fn(PARAMS, TOKENS).logits
    )


def test_the_slope_in_strength_is_the_twins():
    """And nothing is lost between two vectors: the second layer's replaces nothing."""
    first = steered(CONFIG, PARAMS, VECTOR, layer=0)
    weights = np.random.default_rng(1).standard_normal((6, CONFIG.vocab_size))

    @jax.jit
    def total(strength):
        params = steered(CONFIG, first, VECTOR, layer=1, strength=strength)
        logits = functional.make_apply(CONFIG)(params, TOKENS[:1]).logits[0]
        return jnp.sum(logits * weights)

    def twin(strength):
        added = {0: VECTOR, 1: strength * np.asarray(VECTOR, np.float64)}
        return np.sum(
            reference(CONFIG, PARAMS, np.asarray(TOKENS)[0], added=added) * weights
        )

    slope = (twin(0.5 + 1e-5) - twin(0.5 - 1e-5)) / 2e-5
    assert_close(np.asarray(jax.grad(total)(0.5)), slope, rel=10 * CLOSE)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_stream_is_the_twins(layer):
    found = residual(CONFIG, PARAMS, TOKENS, layer=layer, logits_from=2)
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    expected = [
        stream(CONFIG, own, row, layers=layer + 1)[2:] for row in np.asarray(TOKENS)
    ]
    assert_close(np.asarray(found), np.stack(expected), rel=CLOSE)


@pytest.mark.slow
def test_slots_sample_the_same_steered_completions():
    """Left-padded prompts, windows, rings; scored again the log-probabilities are the
    sampler's, and the vector is seen."""
    config = FAMILIES["gemma2"]
    prompts = Prompts(
        tokens=jnp.asarray(random_tokens(config, (3, 4))),
        mask=jnp.asarray(np.arange(4)[None] >= np.array([[3], [0], [2]])),
        index=jnp.arange(3),
    )
    plain = random_params(config)
    params = steered(config, plain, 3 * VECTOR, layer=0)
    apply_fn = functional.make_apply(config)
    fixed = {"completions": 4, "max_tokens": 5, "eos_id": 2}

    def sample(params, **options):
        run = jax.jit(partial(rollouts.generate, apply_fn, **fixed, **options))
        return run(params, jax.random.key(1), prompts)

    expected, found = sample(params), sample(params, slots=5)
    rel = decoder_rel(config.num_layers)
    assert_close(found, expected, rel=rel)
    assert np.any(sample(plain).tokens != expected.tokens)
    hidden_fn = functional.make_hidden(config, scan=True)
    scores = rollouts.score_by_hidden(hidden_fn)(params, expected)
    logp = np.where(expected.trained, scores.logp, 0)
    assert_close(logp, np.asarray(expected.logp_behaviour), rel=rel)


def test_what_does_not_fit_is_named():
    for layer in (-1, 2):
        with pytest.raises(InputError, match="layer must be one of the model's 2"):
            steered(CONFIG, PARAMS, VECTOR, layer=layer)
        with pytest.raises(InputError, match="layer must be one of the model's 2"):
            residual(CONFIG, PARAMS, TOKENS, layer=layer)
    with pytest.raises(InputError, match="vector must have the hidden size, 8"):
        steered(CONFIG, PARAMS, VECTOR[:5], layer=0)
    other = PARAMS | {"steering": {"2": VECTOR}}
    with pytest.raises(InputError, match=r"steering\.2 must be absent"):
        functional.make_apply(CONFIG)(other, TOKENS)
    # A folder would lose it.
    params = steered(CONFIG, PARAMS, VECTOR, layer=1)
    with pytest.raises(InputError, match=r"steering\.1 must be absent"):
        functional.check_params(CONFIG, params)
