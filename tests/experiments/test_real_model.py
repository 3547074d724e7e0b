"""The experiments on a real model: their tables by hand-made numbers, tiny runs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alignax.models import decoder, functional, hf
from alignax.types import InputError
from experiments import distill, frontier, prefer, prefer_report, reason, speculate
from experiments import real_model as real
from tests.pipeline.test_data_tokenizers import TEMPLATE, build_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    path = tmp_path_factory.mktemp("hub") / "tiny"
    build_folder(path, begins_with_bos=False, chat_template=TEMPLATE, **special)
    model = decoder.DecoderConfig(
        vocab_size=262,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=16,
        max_length=256,
    )
    hf.save(path, model, functional.init(model, jax.random.key(0)))
    return path


def test_sums_are_apart_and_marked():
    train, held_out = real.sums(30, held_out=6, seed=3)
    assert len(train) == 30
    assert len(held_out) == 6
    asked = [record["prompt"] for record in (*train, *held_out)]
    assert len(set(asked)) == 36
    text = asked[0].removeprefix(real.SHOWN).removesuffix(" =")
    # Of digits, + and − alone: the sum is its own answer.
    total = sum(int(term) for term in text.replace("- ", "-").replace("+ ", "").split())
    assert train[0]["answer"] == str(total)
    texts = [f" {total}\n", f" {total + 1}\n", f"{total + 1} or {total}", ""]
    found = real.solved(texts, [train[0]], 4)
    np.testing.assert_array_equal(found, [[True, False, True, False]])
    np.testing.assert_array_equal(real.tries(found), [1])
    np.testing.assert_array_equal(real.tries(~found & False), [0])


def test_intervals_are_of_the_sums():
    # Two seeds that agree are no more evidence than one.
    one = np.array([[0.0, 1.0, 1.0, 0.0]])
    mean, half = real.estimate(one)
    assert mean == 0.5
    np.testing.assert_allclose(half, 1.96 * np.std(one, ddof=1) / 2)
    np.testing.assert_allclose(real.estimate(np.concatenate([one, one])), (mean, half))
    # Two methods whose seeds disagree about the sign are not told apart.
    ahead = np.full((2, 4), 0.5)
    behind = ahead + np.array([[0.4], [-0.2]])
    mean, half = reason.difference(behind, ahead)
    np.testing.assert_allclose(mean, 0.1)
    np.testing.assert_allclose(half, 12.71 * 0.3 * 2**0.5 / 2**0.5)
    assert reason.difference(ahead[:1], behind[:1])[1] == np.inf


def made_run(accuracy, **more):
    values = {
        name: np.full(2, 1.5).tolist() for name in ("kl", "entropy", "length")
    } | {"accuracy": [accuracy, accuracy], "pass@K": [1.0, 0.0]}
    curves = {name: [0.1, accuracy] for name in reason.SHOWN}
    spent = {"seconds": 60, "cpu_seconds": 90, "code": "abc"}
    where = {"machine": {"device": "CPU", "cores": 2, "load": 1.0}}
    texts = [" 3\n", " 4\n", " 5\n", " 6\n"]
    return {"end": values, "curves": curves, "texts": texts} | spent | where | more


def test_report_of_reasoning(tmp_path):
    runs = {"start": made_run(0.25), "grpo/0": made_run(0.5), "grpo/1": made_run(0.75)}
    text = reason.table(runs)
    assert "| start | – | 0.25 ± 0.00 | – | 0.50 ± 0.98 | 1.50" in text
    assert "| grpo | 2 | 0.62 ± 0.00 | 0.50, 0.75 |" in text
    assert "| grpo | 0.10 → 0.62 | 0.10 → 0.62 |" in reason.progress(runs)
    text = reason.findings(runs)
    assert "accuracy +0.38 ± 0.00; pass@K +0.00 ± 0.00, within its noise" in text
    assert "the worst of 2 seeds +0.25" in text
    held_out = [{"prompt": f"{real.SHOWN}1 + 2 =", "answer": "3"}] * 2
    settings = dataclasses.asdict(reason.Config())
    page = tmp_path / "reason.md"
    reason.write_report(page, {"settings": settings, "runs": runs}, held_out)
    assert page.with_suffix(".png").exists()
    assert "| 1 + 2 = | 3 | ✓ `3` | ✓ `3` |" in page.read_text()
    assert "Right of all 4 answers to the 2 sums: 1 before, 2 after" in page.read_text()
    assert "rounded to 4 bits" in page.read_text()
    assert "Other work shared" not in page.read_text()
    runs["start"]["machine"]["load"] = 7.0
    assert "Other work shared the machine (load 1 to 7)" in real.provenance(runs)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="alignax pretrained"):
        real.load(tmp_path / "nothing", rank=0)
    with pytest.raises(InputError, match="held_out must be at least 2"):
        reason.Config(held_out=1)
    with pytest.raises(InputError, match="did you mean"):
        reason.Config(methods=("grp",))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_tiny_reasoning(folder, tmp_path, monkeypatch, rank):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    config = reason.Config(
        model=folder,
        out=tmp_path / "run",
        report=tmp_path / "reason.md",
        methods=("grpo", "ppo"),
        seeds=1,
        lora_rank=rank,
        steps=2,
        prompts=2,
        completions=2,
        learning_rate=1e-2,
        max_tokens=2,
        prompt_length=40,
        records=8,
        held_out=2,
        halves=2,
    )
    reason.main(config)
    path = config.out / "results.json"
    runs = json.loads(path.read_text())["runs"]
    assert list(runs) == ["start", "grpo/0", "ppo/0"]
    np.testing.assert_allclose(runs["start"]["end"]["kl"], 0, atol=1e-5)
    assert [found["step"] for found in runs["ppo/0"]["between"]] == [1, 2]
    assert "| ppo | 1 |" in config.report.read_text()
    # What is there is not run again.
    before = path.read_text()
    reason.main(config)
    assert path.read_text() == before
    with pytest.raises(InputError, match="another configuration"):
        reason.main(dataclasses.replace(config, steps=3))


def sentiment_run(gold, kl):
    """Eight steps of four sentences; gold and KL of each quarter."""
    noise = np.array([[-0.01, 0.01, -0.01, 0.01]])
    steps = {
        "proxy": np.linspace(0.1, 0.8, 8)[:, None] + noise,
        "gold": np.repeat(gold, 2)[:, None] + noise,
        "kl": np.repeat(kl, 2)[:, None] + noise,
    }
    end = {name: [0.5, 0.6] for name in ("proxy", "gold", "kl", "entropy", "length")}
    return made_run(0.5) | {"curves": steps | {"skipped": [0.0] * 8}, "end": end}


def test_report_of_the_frontier(tmp_path):
    falls = sentiment_run([0.2, 0.5, 0.4, 0.1], [0, 1, 3, 6])
    rises = sentiment_run([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3])
    at, last, fall, half = frontier.turning(frontier.stretches(falls))
    np.testing.assert_allclose([at, last, fall], [1, 6, 0.4], atol=1e-6)
    assert half < 0.02
    assert frontier.turning(frontier.stretches(rises)) is None
    # Best of two among four: the best is one of the two in 7 of 16 pairs.
    scores = {"proxy": np.array([[0.0, 1, 2, 3]]), "gold": np.array([[4.0, 0, 0, 1]])}
    law = np.array([1, 3, 5, 7]) / 16
    found = frontier.best_of(scores, 2)
    np.testing.assert_allclose(found["proxy"], law @ [0, 1, 2, 3], rtol=1e-5)
    np.testing.assert_allclose(found["gold"], law @ [4, 0, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(found["kl"], law @ np.log(4 * law), rtol=1e-5)
    # The reverse KL's optimum is an exponential tilt.
    tilt = np.exp(np.arange(4) / 0.5) / np.exp(np.arange(4) / 0.5).sum()
    found = frontier.optimum(scores, "reverse_kl", 0.5)
    np.testing.assert_allclose(found["proxy"], tilt @ [0, 1, 2, 3], rtol=1e-5)
    names = ("reverse_kl/0.1/0", "jensen_shannon/0.1/0")
    start = made_run(0.5) | {"end": {n: np.repeat(x, 2, 0) for n, x in scores.items()}}
    runs = {"start": start} | dict(zip(names, (falls, rises), strict=True))
    held_out = frontier.split(2)[1]
    page = tmp_path / "frontier.md"
    settings = dataclasses.asdict(frontier.Config())
    frontier.write_report(page, {"settings": settings, "runs": runs}, held_out)
    text = page.read_text()
    assert "gold is at its best at 1.0 nats and has lost 0.40 ± 0.0" in text
    assert "jensen_shannon, β 0.1: proxy +0.60" in text
    assert "at its best at the end" in text
    assert (tmp_path / "frontier_real_gold.png").exists()


@pytest.mark.slow
def test_tiny_frontier(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    config = frontier.Config(
        model=folder,
        out=tmp_path / "run",
        report=tmp_path / "frontier.md",
        divergences=("chi2_kl",),
        betas=(0.1, 0.01),
        lora_rank=2,
        steps=4,
        prompts=2,
        completions=2,
        max_tokens=4,
        prompt_length=200,
        held_out=2,
        best_of=4,
    )
    frontier.main(config)
    runs = json.loads((config.out / "results.json").read_text())["runs"]
    assert list(runs) == ["start", "chi2_kl/0.1/0", "chi2_kl/0.01/0"]
    assert np.shape(runs["start"]["end"]["gold"]) == (2, 4)
    curves = runs["chi2_kl/0.1/0"]["curves"]
    assert np.shape(curves["gold"]) == (4, 4)
    np.testing.assert_allclose(curves["kl"][0], 0, atol=1e-4)
    assert "exact chi2_kl, β 0.1, of samples" in config.report.read_text()


def test_pairs_are_of_one_sum_and_bounded():
    sums = [
        prefer.Sum([1], [[5], [6], [7], [8]], [True, False, False, True]),
        prefer.Sum([2], [[5], [6]], [True, True]),
    ]
    pairs = prefer.pairs_of(sums, np.random.default_rng(0), 3)
    assert len(pairs) == 2
    assert all(prompt == [1] for prompt, _, _ in pairs)
    assert sorted(right for _, right, _ in pairs) == [[5], [8]]
    assert sorted(wrong for _, _, wrong in pairs) == [[6], [7]]
    assert len(prefer.pairs_of(sums, np.random.default_rng(0), 1)) == 1


def test_report_of_preferences(tmp_path):
    def run(right, kl, gained, **more):
        found = {"right": right, "kl": kl, "pair_accuracy": gained, **more}
        return made_run(0.5) | found

    runs = {
        "before/0": run([[0, 0], [0, 1]], [0, 0], [False, False]),
        "dpo/0": run([[1, 1], [1, 1]], [0.5, 1.5], [True, True], pairs=7),
        "ipo/0": run([[0, 0], [0, 1]], [0, 0], [True, False]),
    }
    found = prefer_report.summary(runs, "dpo")
    np.testing.assert_allclose(found["accuracy"][0], 1)
    np.testing.assert_allclose(found["gain"][0], 0.75)
    # Against (0, 0): all won; against (0, 1): half won, half tied.
    np.testing.assert_allclose(found["win rate"][0], (1 + 0.75) / 2)
    np.testing.assert_allclose(found["KL"][0], 1)
    np.testing.assert_allclose(found["held-out pairs"][0], 1)
    settings = dataclasses.asdict(prefer.Config())
    page = tmp_path / "prefer.md"
    prefer_report.write(page, {"settings": settings, "runs": runs})
    text = page.read_text()
    assert "beyond the interval: dpo." in text
    assert "Not told apart from it: ipo." in text
    assert "| before | 0.250" in text
    assert page.with_suffix(".png").exists()


@pytest.mark.slow
def test_tiny_preferences(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def some_right(texts, records, completions):
        return np.arange(len(texts)).reshape(-1, completions) % 2 == 0

    monkeypatch.setattr(prefer.real_model, "solved", some_right)
    few = prefer.SFT(steps=2, batch_size=4, learning_rate=1e-2, warmup=0)
    config = prefer.Config(
        model=folder,
        out=tmp_path / "run",
        report=tmp_path / "prefer.md",
        losses=("dpo", "f_dpo forward_kl", "kto", "online_dpo", "reward_model"),
        seeds=1,
        problems=6,
        held_out=2,
        samples=4,
        online=2,
        measured=2,
        max_tokens=3,
        rank=2,
        reward=few,
        policy=few,
    )
    prefer.main(config)
    runs = json.loads((config.out / "results.json").read_text())["runs"]
    assert list(runs) == ["before/0", *(f"{name}/0" for name in config.losses)]
    np.testing.assert_allclose(runs["before/0"]["kl"], 0, atol=1e-5)
    assert np.mean(runs["dpo/0"]["kl"]) > 1e-5
    # Two losses of the same pairs, one by another divergence.
    assert runs["dpo/0"]["pairs"] == runs["f_dpo forward_kl/0"]["pairs"] == 12
    assert runs["dpo/0"]["kl"] != runs["f_dpo forward_kl/0"]["kl"]
    assert "| online_dpo |" in config.report.read_text()
    with pytest.raises(InputError, match="losses must be some of"):
        prefer.Config(losses=("dop",))


@pytest.mark.slow
def test_drafts_go_on_and_are_reported(folder, tmp_path):
    """Drafts that are there stay as they are; the page is of all."""
    config = speculate.Config(
        model=folder,
        out=tmp_path / "out",
        report=tmp_path / "page.md",
        layers=1,
        requests=4,
        answers=1,
        max_tokens=3,
        steps=4,
        batch=2,
        held_out=2,
        gammas=(2,),
    )
    speculate.main(config)
    file = config.out / "results.json"
    results = json.loads(file.read_text())
    assert list(results["runs"]) == ["none", "kl", "tvd++"]
    results["runs"]["kl"]["acceptance"] = 0.123
    file.write_text(json.dumps(results))
    speculate.main(config)
    assert json.loads(file.read_text()) == results
    page = config.report.read_text()
    assert "| kl | 0.123 |" in page
    assert "| tvd++ |" in page


def test_report_of_a_student(tmp_path):
    """What is told apart from the start, of the same sums, and what is not."""
    start = {"reverse": [2.0, 1.0, 3.0], "forward": [1.0] * 3, "solved": [0.5] * 3}
    start |= {"pass@K": [1.0] * 3, "step": 4, "tokens": 90}
    nearer = start | {"reverse": [1.0, 0.0, 2.0]}
    run = {"code": "abc", "machine": {"device": "CPU", "cores": 2, "load": 1.0}}
    run |= {"seconds": 60.0, "cpu_seconds": 60.0}
    runs = {
        distill.BEFORE: run | {"untaught": start, "curve": [start]},
        "OPD": run | {"curve": [nearer]},
        "ExOPD, scale 1.25": run | {"curve": [start]},
    }
    config = distill.Config(report=tmp_path / "r.md", warm=4)
    but = ("out", "report", "model")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in but}
    settings = json.loads(json.dumps(settings))
    distill.write_report(config, {"settings": settings, "runs": runs})
    text = config.report.read_text()
    assert "--report docs/distill.md --warm 4\n" in text
    assert "- OPD: reverse KL -1.00 ± 0.00; solved" in text
    assert "- ExOPD, scale 1.25: reverse KL +0.00 ± 0.00, not told apart" in text
    assert "90: 2.00" in text
    assert "Not run yet: forward KL" in text
    with pytest.raises(InputError, match="multiple of 4, got 6"):
        distill.Config(prompts=6)
