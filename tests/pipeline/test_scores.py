"""Scores of completions without logits and with shared prompts: the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import sampling
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.types import InputError, Rollout
from tests.close import assert_close, decoder_rel
from tests.models.cases import CONFIGS, random_params, random_tokens

CONFIG = CONFIGS["qwen3"]
PARAMS = random_params(CONFIG)
N, K, P, T = 3, 4, 5, 4


def sampled(tokens=T, truncated=False):
    """Left-padded prompts, completions that end early; of a truncated distribution,
    tempered, whose support is all where nothing is sampled."""
    rng = np.random.default_rng(0)
    starts = np.array([0, 2, 4]).repeat(K)
    mask = np.arange(tokens)[None] < rng.integers(1, tokens + 1, (N * K, 1))
    completions = random_tokens(CONFIG, (N * K, tokens), seed=1)
    law = {}
    if truncated:
        kept = rng.random((*mask.shape, CONFIG.vocab_size)) < 0.4
        np.put_along_axis(kept, completions[..., None], True, axis=-1)
        law["temperature"] = jnp.asarray(rng.uniform(0.5, 2, N * K), jnp.float32)
        law["support"] = sampling.support_bits(
            jnp.where(kept | ~mask[..., None], 0.0, -jnp.inf)
        )
    zeros = jnp.zeros((N * K, tokens))
    return Rollout(
        **law,
        prompt_tokens=jnp.asarray(random_tokens(CONFIG, (N, P)).repeat(K, 0)),
        prompt_mask=jnp.asarray(np.arange(P)[None] >= starts[:, None]),
        tokens=jnp.asarray(completions),
        attended=jnp.asarray(mask),
        trained=jnp.asarray(mask),
        logp_behaviour=zeros,
        finished=jnp.zeros(N * K, bool),
    )


def loss_of(score, rollout):
    """Values, and gradients of different weights for each token's three scores."""
    weights = jnp.sin(jnp.arange(rollout.tokens.size)).reshape(rollout.tokens.shape)

    def loss(params):
        scores = score(params, rollout)
        pick = [jnp.where(rollout.trained, x, 0) for x in scores]
        return sum(jnp.sum(weights**i * x) for i, x in enumerate(pick, 1)), pick

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)


@pytest.mark.parametrize(
    ("completions", "tokens", "truncated"),
    [(1, T, False), (2, T, False), (K, T, True), (K, 1, False)],
)
def test_scores_and_gradients_are_those_of_logits(completions, tokens, truncated):
    rollout = sampled(tokens, truncated)
    plain = rollouts.score_by_logits(functional.make_apply(CONFIG))
    hidden = rollouts.score_by_hidden(
        functional.make_hidden(CONFIG), completions=completions
    )
    (_, expected), gradient = loss_of(plain, rollout)
    (_, actual), other = loss_of(hidden, rollout)
    assert_close(actual, expected, rel=decoder_rel(CONFIG.num_layers))
    assert_close(other, gradient, rel=decoder_rel(CONFIG.num_layers, gradient=True))


def test_prompts_are_encoded_once_a_group():
    """The forward's work falls towards that of the completions."""
    rollout = sampled()
    work = []
    for completions in (1, K):
        score = rollouts.score_by_hidden(
            functional.make_hidden(CONFIG), completions=completions
        )
        work.append(jax.jit(score).lower(PARAMS, rollout).cost_analysis()["flops"])
    # 8 positions a row, or 3 and a quarter of 5.
    assert 0.4 < work[1] / work[0] < 0.75


def test_refused():
    hidden_fn = functional.make_hidden(CONFIG)
    with pytest.raises(InputError, match="completions must be at least 1, got 0"):
        rollouts.score_by_hidden(hidden_fn, completions=0)
    with pytest.raises(InputError, match="completions must divide the 12 rows"):
        rollouts.score_by_hidden(hidden_fn, completions=5)(PARAMS, sampled())


def test_groups_stay_together_in_microbatches():
    rows = {"group": jnp.arange(12) // 3, "x": jnp.arange(12.0)}

    def loss_fn(params, part):
        groups = part["group"].reshape(-1, 3)
        alike = jnp.all(groups == groups[:, :1])
        aux = {"alike": (alike.astype(jnp.float32), jnp.float32(1))}
        return jnp.sum(params * part["x"]), jnp.float32(len(part["x"])), aux

    params = jnp.float32(2)
    for microbatches in (1, 2, 4):
        (numerator, count), aux, gradient = update.accumulate(
            loss_fn, params, rows, microbatches=microbatches, group=3
        )
        assert (numerator, count, gradient) == (132, 12, 66)
        assert aux["alike"][0] == aux["alike"][1] == microbatches
    with pytest.raises(InputError, match="12 rows into whole groups of 3, got 3"):
        update.accumulate(loss_fn, params, rows, microbatches=3, group=3)
