"""Right against wrong solutions: the reader, the split, one tiny run."""

import json

import jax
import numpy as np
import pytest

from alignax.train import pairs as pair_rows
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import preference, preference_report

KEYS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def problem(number):
    """Two right and two wrong solutions; one is too long and one is there twice."""
    texts = {
        KEYS[0]: (f"{number}+1={number + 1}\nA: {number + 1}", True),
        KEYS[1]: (f"A: {number + 1}", True),
        KEYS[2]: (f"A: {number}", False),
        KEYS[3]: ("so " * 40, False),
    }
    solutions = {
        key: {"solution": text, "is_correct": right}
        for key, (text, right) in texts.items()
    }
    return {"question": f"How much is {number} and one more? Say it.", **solutions}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "solutions.jsonl"
    lines = [json.dumps(problem(number)) for number in range(24)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny(data, out, **changes):
    fields = {
        "data": data,
        "out": out,
        "losses": ("dpo", "copg", "kto", "f_dpo", "tdpo2", "sparse_po"),
        "question_bytes": 24,
        "answer_bytes": 31,
        "tests": 4,
        "hidden_size": 16,
        "num_layers": 1,
        "sft": SFT(steps=3, batch_size=4, warmup=1),
        "reward": SFT(steps=3, batch_size=4, warmup=1),
        "policy": SFT(steps=3, batch_size=4, warmup=1, learning_rate=3e-2),
    }
    return preference.Config(**fields | changes)


def test_pairs_are_right_against_wrong_within_the_length(data, tmp_path):
    pairs = preference.read_pairs(tiny(data, tmp_path / "run"))
    assert len(pairs) == 2 * 24
    assert pairs[0]["prompt"] == "… 0 and one more? Say it.\n"
    assert {(p["chosen"], p["rejected"]) for p in pairs if p["problem"] == 5} == {
        ("5+1=6\nA: 6", "A: 5"),
        ("A: 6", "A: 5"),
    }


def test_no_problem_is_in_two_parts(data, tmp_path):
    pairs = preference.read_pairs(tiny(data, tmp_path / "run"))
    parts = preference.split_pairs(pairs)
    assert [len(part) for part in parts] == [24, 16, 8]
    sets = [{pair["rejected"] for pair in part} for part in parts]
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    with pytest.raises(InputError, match=r"2 pairs .* too few to split"):
        preference.split_pairs(pairs[:2])


def test_intervals_are_clustered_by_problem(data, tmp_path, monkeypatch):
    """Two pairs of each test problem, alike: the interval is that of the problems."""
    config = tiny(data, tmp_path / "run")
    _, _, test = preference.split_pairs(preference.read_pairs(config))
    model = preference.make_model(config)
    bench = preference.make_bench(config, model, test)
    assert sorted(bench.problems) == [5, 5, 11, 11, 17, 17, 23, 23]
    params = preference.functional.init(model, jax.random.key(0))
    moved = jax.tree.map(lambda x: 1.1 * x, params)
    nothing = {name: np.zeros(8) for name in ("score", "kl", "length")}
    monkeypatch.setattr(preference_report, "sampled", lambda *_: nothing)
    row = preference_report.measure(bench, moved, params, None, nothing)
    logp = [
        np.sum(pair_rows.pair_logp(bench.score, p, bench.test_pairs)[0], axis=1)
        for p in (moved, params)
    ]
    gains = logp[0] - logp[1]
    means = np.array([gains[bench.problems == n].mean() for n in (5, 11, 17, 23)])
    half = 1.96 * means.std(ddof=1) / 2
    np.testing.assert_allclose(row["logp chosen"], (gains.mean(), half), rtol=1e-2)


@pytest.mark.slow
def test_everything_is_written(data, tmp_path):
    config = tiny(data, tmp_path / "run")
    preference.main(config)
    text = (config.out / "report.md").read_text(encoding="utf-8")
    assert "24 pairs train the policy" in text
    for part in ("| reward model |", "| judge |", "“the shorter one”", "| copg |"):
        assert part in text
    report = json.loads((config.out / "report.json").read_text(encoding="utf-8"))
    assert set(report) == set(config.losses)
    for row in report.values():
        assert row["KL"][0] > 0
        assert 0 <= row["win rate"][0] <= 1
        assert 0 <= row["accuracy"][0] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("dpo", "best")}, "losses: 'best' was given"),
        ({"losses": ()}, "losses must be one or more"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"tests": 0}, "tests must be at least 1"),
        ({"hidden_size": 30}, "hidden_size must be a positive multiple of 8, got 30"),
        ({"divergence": "pearson"}, "divergence: 'pearson' was given"),
    ],
)
def test_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        tiny(tmp_path / "x.jsonl", tmp_path / "run", **changes)
