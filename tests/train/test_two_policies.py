"""Methods of two policies: who draws what, and under which it is scored."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import sampling
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import tasks
from alignax.train.two_policies import by_role
from tests.close import EPS, assert_close
from tests.train.test_every_method import MODEL, PARAMS, PROMPTS, K, N, T, parts_of

OTHER = functional.init(MODEL, jax.random.key(3))
SCORE = jax.jit(rollouts.score_by_logits(functional.make_apply(MODEL)))
LOGITS = jax.jit(partial(rollouts.completion_logits, functional.make_apply(MODEL)))


@pytest.mark.parametrize(
    "temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7]
)
def test_nlpo_draws_among_the_copys_likeliest(temperature):
    parts = parts_of("nlpo", temperature=temperature)
    state = parts.init(OTHER, jax.random.key(2))
    # The policy has moved on since the copy was taken.
    state = dataclasses.replace(state, memory={"copy": PARAMS})
    scored = parts.sample(state, PROMPTS).scored
    rollout, kept = scored.rollout, np.asarray(scored.mask)
    logits = LOGITS(PARAMS, rollout)
    nucleus = np.asarray(sampling.top_p(logits / temperature, p=0.9)) > -np.inf
    tokens = np.asarray(rollout.tokens)[..., None]
    drawn = np.take_along_axis(nucleus, tokens, -1)
    assert drawn[kept].all()
    assert not nucleus[kept].all()
    found = np.unpackbits(np.asarray(rollout.support), axis=-1, bitorder="little")
    np.testing.assert_array_equal(found[kept], nucleus[kept])
    own = LOGITS(OTHER, rollout)
    law = jax.nn.log_softmax(jnp.where(nucleus, own / temperature, -jnp.inf))
    by_hand = np.take_along_axis(
        np.asarray(law), np.asarray(rollout.tokens)[..., None], -1
    )
    assert_close(scored.logp_old[kept], by_hand[..., 0][kept], rel=64 * EPS)


@pytest.mark.slow
def test_nlpo_renews_its_copy_when_it_is_due():
    parts = parts_of("nlpo")
    state = parts.init(PARAMS, jax.random.key(2))
    state = dataclasses.replace(state, step=jnp.int32(18))

    def judge(rollout, numbers):
        return {"rewards": np.asarray(rollout.tokens == 3).sum(1) / T}

    step = tasks.host_step(parts, judge)
    state, metrics = step(state, PROMPTS)
    assert abs(float(metrics["ratio"]) - 1) < 1e-4
    jax.tree.map(np.testing.assert_array_equal, state.memory["copy"], PARAMS)
    state, _ = step(state, PROMPTS)
    jax.tree.map(np.testing.assert_array_equal, state.memory["copy"], state.params)


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_cory_answers_in_turn(step):
    """The observer's prompt ends with the pioneer's answer, each by its own policy."""
    parts = parts_of("cory")
    state = parts.init(PARAMS, jax.random.key(2))
    state = dataclasses.replace(state, params=(PARAMS, OTHER), step=jnp.int32(step))
    scored = parts.sample(state, PROMPTS).scored
    rows = jax.tree.map(lambda x: x.reshape(N, 2, K // 2, *x.shape[1:]), scored.rollout)
    policies = (PARAMS, OTHER) if step == 0 else (OTHER, PARAMS)
    for role, policy in enumerate(policies):
        part = dataclasses.replace(rows, finished=None)
        part = jax.tree.map(lambda x, i=role: x[:, i].reshape(N * K // 2, -1), part)
        found = scored.logp_old.reshape(N, 2, K // 2, T)[:, role].reshape(-1, T)
        expected = jnp.where(part.trained, SCORE(policy, part).logp, 0)
        assert_close(found, expected, rel=64 * EPS)
    for group in range(N):
        for k in range(K // 2):
            first = rows.tokens[group, 0, k][rows.trained[group, 0, k]]
            prompt = rows.prompt_tokens[group, 1, k][rows.prompt_mask[group, 1, k]]
            expected = [*PROMPTS.tokens[group].tolist(), *first.tolist()]
            assert prompt.tolist() == expected


@pytest.mark.slow
def test_each_role_has_its_own_gradient_and_the_common_reward():
    parts = parts_of("cory")
    state = parts.init(PARAMS, jax.random.key(2))
    rollout = parts.sample(state, PROMPTS).rollout
    score = by_role(
        lambda params, rows: SCORE(params, rows).logp, completions=K, every=5
    )

    def pioneers(params):
        return jnp.sum(score(params, rollout).reshape(N, 2, -1)[:, 0])

    first, second = jax.grad(pioneers)(state.params)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(first)) > 0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(second)) == 0
    scored = parts.sample(state, PROMPTS).rewarded(np.arange(N * K))
    team = np.asarray(parts.algorithm.shape(scored))
    np.testing.assert_array_equal(team[0], [0 + 2, 1 + 3, 0 + 2, 1 + 3])


@pytest.mark.slow
def test_the_references_rewards_are_taken_once():
    parts = parts_of("a_star_po")
    state = parts.init(PARAMS, jax.random.key(2))
    calls = []

    def judge(rollout, numbers):
        calls.append(np.asarray(rollout.tokens))
        return {"rewards": (np.asarray(rollout.tokens) == 3).sum(1) / T}

    step = tasks.host_step(parts, judge)
    state, _ = step(state, PROMPTS)
    assert len(calls) == 2
    state, _ = step(state, PROMPTS)
    assert len(calls) == 3
    # A resumed run draws the same again.
    tasks.reference_rewards(parts, judge)(state, PROMPTS)
    np.testing.assert_array_equal(calls[-1], calls[1])
