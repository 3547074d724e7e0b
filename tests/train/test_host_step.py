"""Prompts replaced within the step, samples ahead of it, completions that were cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import ahead, dynamic, tasks
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close
from tests.train.test_every_method import (
    MODEL,
    PARAMS,
    PROMPTS,
    K,
    N,
    P,
    V,
    parts_of,
)

SCORE = jax.jit(rollouts.score_by_logits(functional.make_apply(MODEL)))


@pytest.fixture(scope="module")
def parts():
    return parts_of("unbiased")


def judge(rollout, numbers):
    """Of the tokens; records that are multiples of 3 are worth the same always."""
    rewards = (np.asarray(rollout.tokens) * np.asarray(rollout.attended)).sum(1)
    return {"rewards": np.where(numbers % 3 == 0, 0.5, rewards).astype(np.float32)}


def batch(start):
    return Prompts(
        tokens=jax.random.randint(jax.random.key(start), (N, P), 2, V),
        mask=jnp.ones((N, P), bool),
        index=jnp.arange(start, start + N),
    )


class Data:
    """Batches by number."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        self.number += 1
        return batch(N * (self.number - 1))

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def test_windows_are_each_batch_and_the_next():
    data = ahead.windows(Data(), ahead=2)
    first = [[int(x.index[0]) // N for x in next(data)] for _ in range(2)]
    assert first == [[0, 1, 2], [1, 2, 3]]
    state = data.get_state()
    again = ahead.windows(Data(), ahead=2)
    again.set_state(state)
    for _ in range(2):
        for x, y in zip(next(data), next(again), strict=True):
            np.testing.assert_array_equal(x.index, y.index)
    with pytest.raises(InputError, match="ahead must be at least 1"):
        ahead.windows(Data(), ahead=0)


def recorded(parts):
    """The same parts, and what their step was given."""
    seen = []

    def step(state, scored):
        seen.append((jax.device_get(state.params), jax.device_get(scored)))
        return parts.step(state, scored)

    return parts._replace(step=step), seen


def test_ahead_is_one_step_behind_and_no_more(parts):
    """Each batch is trained once, its ratios to the policy that drew it."""
    spied, seen = recorded(parts)
    step = tasks.host_step(spied, judge, ahead=1)
    state, data = parts.init(PARAMS, jax.random.key(2)), ahead.windows(Data(), ahead=1)
    metrics = []
    for _ in range(3):
        state, values = step(state, next(data))
        metrics.append(jax.tree.map(float, values))
    for number, (_, scored) in enumerate(seen):
        behind = min(number, 1)
        assert metrics[number]["staleness"] == behind
        assert (scored.rollout.version == number - behind).all()
        assert scored.index[0] == N * number
        policy = seen[number - behind][0]
        logp = jnp.where(scored.mask, SCORE(policy, scored.rollout).logp, 0)
        assert_close(scored.rollout.logp_behaviour, logp, rel=64 * EPS)
        assert_close(scored.logp_old, logp, rel=64 * EPS)
    # It is another policy's ratio that the step sees.
    assert abs(metrics[0]["ratio"] - 1) < 1e-5
    assert all(abs(values["ratio"] - 1) > 1e-4 for values in metrics[1:])
    # A state that was put back finds nothing under way.
    fresh = parts.init(PARAMS, jax.random.key(2))
    _, values = step(fresh, next(ahead.windows(Data(), ahead=1)))
    assert float(values["staleness"]) == 0


def test_without_ahead_it_is_the_synchronous_loop(parts):
    def run(step, shaped):
        state, data = parts.init(PARAMS, jax.random.key(2)), Data()
        for _ in range(2):
            state, metrics = step(state, shaped(next(data)))
        return state.params, metrics["loss"]

    def plain(state, prompts):
        samples = parts.sample(state, prompts)
        numbers = np.repeat(prompts.index, K)
        return parts.step(state, samples.rewarded(**judge(samples.rollout, numbers)))

    jax.tree.map(
        np.testing.assert_array_equal,
        run(plain, lambda x: x),
        run(tasks.host_step(parts, judge, ahead=0), lambda x: x),
    )


@pytest.mark.slow
def test_weights_to_the_sampler_are_of_the_policy_that_is_trained():
    """TIS: ``logp_old`` of the step's policy, ``logp_behaviour`` of its sampler's."""
    tis = parts_of("tis")
    spied, seen = recorded(tis)
    step = tasks.host_step(spied, judge, ahead=1)
    state, data = tis.init(PARAMS, jax.random.key(2)), ahead.windows(Data(), ahead=1)
    for _ in range(2):
        state, _ = step(state, next(data))
    (old, _), (new, scored) = seen
    for policy, field in ((old, scored.rollout.logp_behaviour), (new, scored.logp_old)):
        logp = jnp.where(scored.mask, SCORE(policy, scored.rollout).logp, 0)
        assert_close(field, logp, rel=64 * EPS)
    assert float(np.abs(scored.logp_old - scored.rollout.logp_behaviour).max()) > 1e-3


def test_what_would_be_biased_ahead_is_refused():
    with pytest.raises(InputError, match=r"ahead must be 0.*holds its ratio at 1"):
        tasks.host_step(parts_of("rloo"), judge, ahead=1)
    with pytest.raises(InputError, match="further must be given"):
        tasks.host_step(parts_of("unbiased"), judge, rounds=1)


def test_groups_without_a_spread_are_replaced(parts):
    """Records 0 and 3 of the batch say nothing; further ones take their places."""
    spied, seen = recorded(parts)
    asked = []

    def further(step, number):
        asked.append((step, number))
        # Of the first round one in four has a spread, of the second three.
        index = jnp.array([[6, 9, 12, 7], [13, 14, 15, 16]][number])
        return dataclasses.replace(batch(40 + number), index=index)

    step = tasks.host_step(spied, judge, further=further, rounds=3)
    state = parts.init(PARAMS, jax.random.key(2))
    prompts = dataclasses.replace(PROMPTS, index=jnp.array([0, 1, 2, 3]))
    _, metrics = step(state, prompts)
    assert asked == [(0, 0), (0, 1)]
    scored = seen[0][1]
    assert scored.index.tolist() == [1, 2, 7, 13]
    assert metrics["replaced"] == 2
    assert metrics["resampled"] == 2 * N
    assert metrics["signal"] == 1
    # A group comes with all that is its own.
    own = parts.sample(parts.init(PARAMS, jax.random.key(2)), prompts)
    np.testing.assert_array_equal(
        scored.rollout.tokens[: 2 * K], own.rollout.tokens[K : 3 * K]
    )
    assert (scored.rollout.prompt_tokens[-1] == batch(41).tokens[0]).all()
    expected = jnp.where(scored.mask, SCORE(PARAMS, scored.rollout).logp, 0)
    assert_close(scored.logp_old, expected, rel=64 * EPS)
    assert_close(scored.logp_ref, expected, rel=64 * EPS)
    values = judge(scored.rollout, np.repeat(scored.index, K))["rewards"]
    np.testing.assert_array_equal(scored.rewards.reshape(-1), values)


def test_rounds_are_bounded(parts):
    """Where no prompt has a spread the step goes on with those that it has."""
    nothing = dataclasses.replace(PROMPTS, index=jnp.array([0, 3, 6, 9]))
    calls = []

    def further(step, number):
        calls.append(number)
        return nothing

    step = tasks.host_step(parts, judge, further=further, rounds=2)
    _, metrics = step(parts.init(PARAMS, jax.random.key(2)), nothing)
    assert calls == [0, 1]
    assert metrics["replaced"] == 0
    assert metrics["resampled"] == 2 * N
    assert metrics["no_signal"] == 1


@pytest.mark.slow
def test_the_best_of_several_beside_the_greedy_one(parts):
    key = jax.random.key(5)
    greedy, best, found = tasks.side_by_side(
        parts, PARAMS, key, batch(1), judge, samples=6, best=2
    )
    drawn = parts.generate(PARAMS, key, batch(1), completions=6)
    values = judge(drawn, np.repeat(batch(1).index, 6))["rewards"].reshape(N, 6)
    np.testing.assert_array_equal(found["best"], -np.sort(-values, axis=1)[:, :2])
    np.testing.assert_allclose(found["mean"], values.mean(axis=1))
    again = judge(best, np.repeat(batch(1).index, 2))["rewards"]
    np.testing.assert_array_equal(again, found["best"].reshape(-1))
    logits = rollouts.completion_logits(functional.make_apply(MODEL), PARAMS, greedy)
    likeliest = jnp.where(greedy.trained, jnp.argmax(logits, axis=-1), 0)
    np.testing.assert_array_equal(greedy.tokens, likeliest)
    values = judge(greedy, batch(1).index)["rewards"]
    np.testing.assert_array_equal(found["greedy"], values)
    with pytest.raises(InputError, match="best must be from 1 to 2"):
        tasks.side_by_side(parts, PARAMS, key, batch(1), judge, samples=2, best=3)


def test_further_prompts_are_drawn_by_step_and_round():
    every = batch(0)
    further = dynamic.from_all(every, size=3, seed=1)
    first, other = further(4, 0), further(4, 1)
    np.testing.assert_array_equal(first.index, further(4, 0).index)
    assert len(set(first.index.tolist())) == 3
    assert first.index.tolist() != other.index.tolist()
    for row, number in enumerate(first.index):
        np.testing.assert_array_equal(first.tokens[row], every.tokens[number])


@pytest.mark.slow
def test_completions_that_were_cut_are_not_trained_on():
    """No gradient of theirs, and the others' as if they had not been there but for the
    group's baseline."""
    masked = parts_of("grpo (TRL default)", mask_truncated=True)
    plain = parts_of("grpo (TRL default)")
    state = masked.init(PARAMS, jax.random.key(2))
    samples = masked.sample(state, PROMPTS)
    finished = np.asarray(samples.rollout.finished)
    assert 0 < finished.sum() < len(finished)
    scored = samples.rewarded(**judge(samples.rollout, np.arange(1, 2).repeat(N * K)))
    other = dataclasses.replace(
        scored,
        rollout=dataclasses.replace(
            scored.rollout, trained=scored.mask & finished[:, None]
        ),
    )
    copies = [jax.tree.map(jnp.copy, state) for _ in range(3)]
    by_mask = masked.step(copies[0], scored)[0].params
    by_hand = plain.step(copies[1], other)[0].params
    jax.tree.map(np.testing.assert_array_equal, by_mask, by_hand)
    without = plain.step(copies[2], scored)[0].params
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), by_mask, without)
    assert max(jax.tree.leaves(moved)) > 1e-4
