"""`alignax train game`: who is preferred to whom, and what a run writes."""

import json

import numpy as np
import pytest

from alignax.pipeline import data, metrics
from alignax.train import folders
from alignax.train.runs import game
from alignax.types import InputError, Rollout
from tests.train.test_runs import home, main, refused

__all__ = ["home"]
JUDGE = """
import math

def more_vowels(first, second, records):
    count = [[sum(c in "aeiou" for c in t) for t in side] for side in (first, second)]
    assert len(records) == len(first)
    return [1 / (1 + math.exp(b - a)) for a, b in zip(*count)]

def beyond(first, second, records):
    return [1.5] * len(first)

def one(texts):
    return texts
"""
TOKENIZER = data.byte_tokenizer()


@pytest.fixture(scope="module")
def judges(home):
    file = home / "judge.py"
    file.write_text(JUDGE)
    return file


def rollout_of(texts):
    rows = [list(text.encode()) for text in texts]
    width = max(map(len, rows))
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    mask = np.array([[i < len(row) for i in range(width)] for row in rows])
    fields = dict.fromkeys(Rollout.__dataclass_fields__)
    return Rollout(**fields | {"tokens": tokens, "attended": mask, "trained": mask})


def arguments(home, out, *more):
    return [
        *("train", "game", "--model", str(home / "model"), "--out", str(out)),
        *("--data", str(home / "prompts.jsonl"), "--steps", "3", "--batch-size", "2"),
        *("--completions", "2", "--opponents", "3", "--max-tokens", "6"),
        *("--microbatches", "1", "--held-out", "2", "--learning-rate", "1e-3"),
        *("--save-every", "1", "--evaluate-every", "2", *more),
    ]


def test_pairs_are_judged_alike_by_rewards_and_by_a_file(judges):
    """Two prompts, two against three; the second prompt's texts have more vowels."""
    own, other = ["a", "xx", "aeiou", "b"], ["ae", "x", "a", "eee", "y", "aa"]
    records = [{"prompt": "first"}, {"prompt": "second"}]

    def vowels(texts, asked):
        assert [x["prompt"] for x in asked] == sorted(x["prompt"] for x in asked)
        return [sum(c in "aeiou" for c in text) for text in texts]

    sides = rollout_of(own), rollout_of(other), np.array([0, 1]), 2
    by_file = game.by_file(records, f"{judges}:more_vowels", TOKENIZER)(*sides)
    by_rewards = game.by_rewards(records, vowels, TOKENIZER, 1.0)(*sides)
    gaps = np.array([[[-1, 1, 0], [-2, 0, -1]], [[2, 5, 3], [-3, 0, -2]]])
    expected = 1 / (1 + np.exp(-gaps))
    np.testing.assert_allclose(by_file, expected, rtol=1e-6)
    np.testing.assert_allclose(by_rewards, expected, rtol=1e-6)
    outright = game.by_rewards(records, vowels, TOKENIZER, np.inf)(*sides)
    np.testing.assert_array_equal(outright, (np.sign(gaps) + 1) / 2)
    with pytest.raises(InputError, match=r"from 0 to 1 .* 12 pairs.*1\.5 to 1\.5"):
        game.by_file(records, f"{judges}:beyond", TOKENIZER)(*sides)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nash_md", "inpo"])
def test_a_game_is_a_run_that_opens_and_goes_on(home, judges, tmp_path, method):
    judge = ("--judge", f"{judges}:more_vowels", "--method", method)
    more = (*judge, "--lora.rank", "2")
    main(arguments(home, tmp_path / "run", *more))
    rows = metrics.read(tmp_path / "run")
    assert len(metrics.column(rows, "game/eval/win_rate")[1]) == 3
    kl = metrics.column(rows, "game/eval/kl")[1]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert kl[-1] > 0
    assert 0 < metrics.column(rows, "game/preference")[1][0] < 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["kind"], run["config"]["method"]) == ("game", method)
    assert folders.open_policy(tmp_path / "run").lora.rank == 2
    # With one step more to go, a resumed run is refused as another; as itself it ends.
    main(arguments(home, tmp_path / "run", *more, "--resume"))
    assert len(metrics.read(tmp_path / "run")) == len(rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ["judge or reward, one of the two"]),
        (("--judge", "{}:none"), ["judge: 'none' is no function", "more_vowels"]),
        (("--judge", "{}:one"), ["(first, second, records)"]),
        (("--reward", "exact", "--mixture", "1"), ["mixture must be at least 0"]),
        (("--reward", "exact", "--beta", "0"), ["beta must be positive, got 0"]),
        (
            ("--reward", "exact", "--method", "inpo", "--eta", "11"),
            ["eta must be at most 1 / beta = 10 with inpo, got 11"],
        ),
    ],
)
def test_bad_games_are_refused(home, judges, tmp_path, capsys, more, said):
    more = [x.format(judges) for x in more]
    message = refused(capsys, arguments(home, tmp_path / "x", *more))
    assert all(words in message for words in said)
