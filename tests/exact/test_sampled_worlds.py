"""The sampler's completions follow the laws that exact worlds give them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from alignax import exact, logprobs
from alignax.pipeline.rollout import generate
from alignax.types import Prompts

V, T, EOS, COMPLETIONS = 3, 3, 1, 4000


@pytest.fixture(scope="module")
def sampled():
    """Two prompts' completions, and every completion's log-probability for each."""
    apply_fn = exact.make_tabular_apply(vocab_size=V, horizon=T)
    params = exact.tabular_init(
        jax.random.key(4), prompts=2, vocab_size=V, horizon=T, scale=1.0
    )
    tokens, mask = exact.enumerate_completions(V, T, eos_id=EOS)
    prompts = Prompts(
        tokens=jnp.array([[0], [1]]), mask=jnp.ones((2, 1), bool), index=jnp.arange(2)
    )
    run = jax.jit(
        partial(generate, apply_fn, completions=COMPLETIONS, max_tokens=T, eos_id=EOS)
    )
    rollout = run(params, jax.random.key(5), prompts)
    logp = jax.vmap(
        lambda prompt: exact.completion_logp(apply_fn, params, prompt, tokens, mask)
    )(prompts.tokens)
    return rollout, tokens, mask, logp


def numbers_of(tokens, mask, listed):
    where = {tuple(row[keep]): i for i, (row, keep) in enumerate(listed)}
    rows = zip(np.array(tokens), np.array(mask), strict=True)
    return np.array([where[tuple(row[keep])] for row, keep in rows])


def test_completions_follow_their_exact_law(sampled):
    """χ² over all completions, prompt by prompt."""
    rollout, tokens, mask, logp = sampled
    listed = list(zip(np.array(tokens), np.array(mask), strict=True))
    found = numbers_of(rollout.tokens, rollout.trained, listed).reshape(2, COMPLETIONS)
    probabilities = np.exp(np.array(logp, np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    for own, other in ((0, 1), (1, 0)):
        counts = np.bincount(found[own], minlength=len(listed))
        fits = stats.chisquare(counts, COMPLETIONS * probabilities[own]).pvalue
        assert fits > 1e-3
        # The test has the power to tell the prompts' laws apart.
        assert stats.chisquare(counts, COMPLETIONS * probabilities[other]).pvalue < 1e-9


def test_sampled_log_probabilities_are_the_exact_ones(sampled):
    rollout, tokens, mask, logp = sampled
    listed = list(zip(np.array(tokens), np.array(mask), strict=True))
    found = numbers_of(rollout.tokens, rollout.trained, listed)
    prompt = np.repeat([0, 1], COMPLETIONS)
    total = jnp.sum(jnp.where(rollout.trained, rollout.logp_behaviour, 0), axis=-1)
    np.testing.assert_allclose(total, np.array(logp)[prompt, found], atol=1e-5)


def test_sample_means_are_the_exact_expectations(sampled):
    """The policy's mean length and its entropy, within five standard errors."""
    rollout, _, mask, logp = sampled
    lengths = jnp.sum(rollout.trained, axis=-1).reshape(2, -1)
    logs = jnp.where(rollout.trained, rollout.logp_behaviour, 0)
    surprise = -jnp.sum(logs, axis=-1).reshape(2, -1)
    mean_length = exact.expectation(logp, jnp.tile(mask.sum(1) * 1.0, (2, 1)))
    for values, expected in (
        (lengths, mean_length),
        (surprise, logprobs.entropy(logp)),
    ):
        error = values.std(axis=1) / COMPLETIONS**0.5
        assert (jnp.abs(values.mean(axis=1) - expected) < 5 * error).all()
