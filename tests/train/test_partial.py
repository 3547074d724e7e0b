"""Completions in parts: one policy's are those of one stretch, and versions say who
wrote what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import assembly, partial
from alignax.train.options import RL
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close
from tests.train.test_every_method import MODEL, PARAMS

MODEL = dataclasses.replace(MODEL, max_length=64)
N, K, PART, W = 3, 4, 3, 10
OTHER = functional.init(MODEL, jax.random.key(3))
SCORE = jax.jit(rollouts.score_by_logits(functional.make_apply(MODEL)))


def parts_of(method="unbiased"):
    return assembly.make(
        RL(method=method, prompts=N, completions=K),
        functional.make_apply(MODEL),
        hidden_fn=functional.make_hidden(MODEL),
        max_tokens=PART,
        eos_id=1,
    )


def batch(number):
    # Padded on the right: the parts go on behind the last token all the same.
    return Prompts(
        tokens=jax.random.randint(jax.random.key(number), (N, 3), 2, 8),
        mask=jnp.array([[True] * 3, [True, True, False], [True] * 3]),
        index=N * number + jnp.arange(N),
    )


@pytest.fixture(scope="module")
def steps():
    """Six steps of two policies in turn, nobody trained between them."""
    parts = partial.in_parts(parts_of(), max_tokens=W)
    state, found = parts.init(PARAMS, jax.random.key(2), prompts=batch(0)), []
    for number in range(6):
        policy = (PARAMS, OTHER)[number % 2]
        state = dataclasses.replace(state, params=policy, step=jnp.int32(number))
        samples = parts.sample(state, batch(number))
        state = dataclasses.replace(state, memory=samples.memory)
        found.append(jax.device_get(samples.scored))
    return found


def test_every_token_is_its_own_policys(steps):
    versions = set()
    for number, scored in enumerate(steps):
        rollout = scored.rollout
        by_policy = [np.asarray(SCORE(p, rollout).logp) for p in (PARAMS, OTHER)]
        logp = np.where(rollout.version % 2 == 0, *by_policy)
        expected = np.where(scored.mask, logp, 0)
        assert_close(scored.logp_old, expected, rel=128 * EPS)
        assert_close(rollout.logp_behaviour, expected, rel=128 * EPS)
        versions |= {number - v for v in rollout.version[scored.mask].tolist()}
    # Parts of up to three earlier steps.
    assert {0, 1, 2, 3} <= versions


def test_a_group_keeps_its_place_until_all_have_ended(steps):
    trained = 0
    for number, scored in enumerate(steps):
        rollout = scored.rollout
        attended = rollout.attended.reshape(N, K, W)
        length = attended.sum(-1)
        ended = rollout.finished.reshape(N, K) | (length == W)
        own = scored.mask.reshape(N, K, W)
        np.testing.assert_array_equal(own.any((1, 2)), ended.all(1))
        assert (own[ended.all(1)] == attended[ended.all(1)]).all()
        trained += ended.all(1).sum()
        last = np.take_along_axis(
            rollout.tokens, rollout.attended.sum(1)[:, None] - 1, 1
        )
        np.testing.assert_array_equal(rollout.finished, last[:, 0] == 1)
        if number + 1 < len(steps):
            after = steps[number + 1]
            fresh = batch(number + 1).index
            expected = np.where(ended.all(1), fresh, scored.index)
            np.testing.assert_array_equal(after.index, expected)
            # What was written stays, whoever goes on.
            kept = ~ended.all(1)
            was = attended[kept]
            now = after.rollout.attended.reshape(N, K, W)[kept]
            assert (now & was == was).all()
            tokens = (x.rollout.tokens.reshape(N, K, W)[kept] for x in (scored, after))
            np.testing.assert_array_equal(*(x[was] for x in tokens))
    assert trained >= N


@pytest.mark.slow
def test_windows_train_on_each_steps_tokens():
    parts = partial.in_parts(parts_of("t_ppo"), max_tokens=W, window=True)
    state = parts.init(PARAMS, jax.random.key(2), prompts=batch(0))
    for number in range(3):
        state = dataclasses.replace(state, step=jnp.int32(number))
        samples = parts.sample(state, batch(number))
        rollout = samples.rollout
        state = dataclasses.replace(state, memory=samples.memory)
        assert (rollout.version[rollout.trained] == number).all()
        assert bool(rollout.trained.any())
        assert int(rollout.trained.sum(1).max()) <= PART


def test_what_would_be_biased_is_refused():
    with pytest.raises(InputError, match="holds its ratio at 1"):
        partial.in_parts(parts_of("rloo"), max_tokens=W)
    with pytest.raises(InputError, match="max_tokens must be at least 1"):
        partial.in_parts(parts_of(), max_tokens=0)
