"""Reward-augmented likelihood: the law of given answers, and how they are drawn."""

import json

import jax.numpy as jnp
import numpy as np

from alignax import targets
from alignax.train.runs import payoffs
from tests.train.test_runs import arguments, home, refused

__all__ = ["home"]
REWARDS = [1.0, 0.0, 0.5, 0.25]


def test_the_law_and_its_draws_by_hand():
    """Of all random numbers the mean count is the law; likelihood's minimiser is q."""
    law = targets.exponentiated_payoff(
        jnp.array([*REWARDS[:3], np.nan]),
        jnp.array([True, True, True, False]),
        temperature=0.5,
    )
    weights = np.exp([2.0, 0.0, 1.0])
    by_hand = np.append(weights / weights.sum(), 0)
    np.testing.assert_allclose(law, by_hand, rtol=1e-6)
    grid = (np.arange(1000) + 0.5) / 1000
    counts = np.stack([payoffs.repeats(by_hand, 4, u) for u in grid])
    assert (counts.sum(axis=-1) == 4).all()
    assert np.abs(counts - 4 * by_hand).max() < 1
    np.testing.assert_allclose(counts.mean(axis=0), 4 * by_hand, atol=2e-3)


def test_answers_are_drawn_prompt_by_prompt():
    """Two prompts of unlike sizes and far rewards: each keeps its number of answers."""
    records = [
        {"prompt": "a", "completion": str(i), "reward": r + 1e4}
        for i, r in enumerate(REWARDS)
    ]
    records.insert(2, {"prompt": "b", "completion": "only", "reward": -3})
    counts = np.zeros(5)
    for seed in range(200):
        drawn = payoffs.resampled(records, temperature=0.5, seed=seed)
        assert len(drawn) == 5
        for record in drawn:
            counts[records.index(record)] += 1
    weights = np.exp(2 * np.array(REWARDS))
    expected = np.insert(4 * weights / weights.sum(), 2, 1)
    np.testing.assert_allclose(counts / 200, expected, atol=0.15)


def test_prompts_say_what_their_answers_are_worth():
    rewards = np.array([3.0, 1, 2, 5, 4, 6, 0, 1])
    edges = payoffs.edges_of(rewards, 4)
    np.testing.assert_array_equal(edges, [1, 3, 5])
    chat = [{"role": "user", "content": "hi"}]
    records = [{"prompt": "a", "reward": 5.0}, {"prompt": chat, "reward": 2}]
    text, turns = (x["prompt"] for x in payoffs.told(records, edges, "reward"))
    assert (text, turns[0]["content"]) == ("quality: 4/4\n\na", "quality: 2/4\n\nhi")
    # Where most rewards are alike, the others are still told apart.
    alike = payoffs.edges_of(np.array([0.0] * 9 + [1, 2, 3]), 3)
    np.testing.assert_array_equal(alike, [1, 2])


def test_what_cannot_be_drawn_is_refused(home, tmp_path, capsys):
    cases = {
        "none": ({}, ["payoff_field: record", "no finite number", "'reward'"]),
        "equal": ({"reward": 1}, ["nothing to act on", "no prompt has answers"]),
    }
    for name, (more, said) in cases.items():
        rows = [
            {"prompt": f"{i // 2}+1=", "completion": str(i), **more} for i in range(12)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (home / f"{name}.jsonl").write_text(text)
        args = arguments(home, "supervised", name, tmp_path / "x")
        message = refused(capsys, [*args, "--payoff-temperature", "1"])
        assert all(words in message for words in said), message
    args = arguments(home, "supervised", "messages", tmp_path / "x")
    message = refused(capsys, [*args, "--payoff-temperature", "1"])
    assert "got messages" in message
    message = refused(capsys, [*args, "--objective", "ps_kd"])
    assert "a pass through the data" in message
    assert "past_every must be less than the 3 steps" in message
