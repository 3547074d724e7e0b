"""``alignax sample`` and ``alignax evaluate`` on a tiny folder."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import cli
from alignax.cli import evaluate
from alignax.models import functional, gguf, hf
from alignax.pipeline import data
from alignax.train import evaluation
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one architecture."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        params = random_params(TINY, seed=seed)
        # Closer to uniform: completions differ.
        params["norm"]["scale"] = 0.3 * params["norm"]["scale"]
        gguf_file.write(root / f"{name}.gguf", params)
        gguf.convert(root / f"{name}.gguf", root / name)
    return root


def run(*args):
    cli.main([str(arg) for arg in args])


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_sample_is_printed_and_written(folders, tmp_path, capsys):
    out = tmp_path / "new/out.jsonl"
    args = ("sample", folders / "a", "--max-tokens", 5, "--batch", 2, "--out", out)
    run(*args, "--prompt", "ab", "the hell", "12", "--n", 2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [
        text for text in ("ab", "the hell", "12") for _ in range(2)
    ]
    shown = capsys.readouterr().out
    for row in rows:
        assert 1 <= row["tokens"] <= 5
        assert row["finished"] or row["tokens"] == 5
        end = "finished" if row["finished"] else "cut"
        assert f"> {row['prompt']}\n[{row['tokens']} tokens, {end}]\n" in shown
        assert row["completion"] in shown
    assert len({row["completion"] for row in rows}) > 3
    # A prompt's samples are its own, whatever is sampled beside it.
    run(*args[:-3], 3, "--out", out, "--prompt", "ab", "the hell", "12", "--n", 2)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


@pytest.mark.slow
def test_greedy_takes_the_likeliest_behind_the_template(folders, tmp_path):
    config, params = hf.load(folders / "a")
    tokenizer = data.load_tokenizer(folders / "a")
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "ab"}], "answer": "x"})
    )
    out = tmp_path / "out.jsonl"
    args = ("sample", folders / "a", "--greedy", "--max-tokens", 4, "--out", out)
    chat = tokenizer.chat([{"role": "user", "content": "ab"}])
    system = tokenizer.chat(
        [{"role": "system", "content": "he"}, {"role": "user", "content": "ab"}]
    )
    ways = [
        (("--prompt", "ab"), chat),
        (("--prompts", tmp_path / "prompts.jsonl"), chat),
        (("--prompt", "ab", "--system", "he"), system),
        (("--prompt", "ab", "--plain"), "ab"),
    ]
    apply_fn = jax.jit(functional.make_apply(config))
    for way, text in ways:
        run(*args, *way)
        [row] = [json.loads(line) for line in out.read_text().splitlines()]
        ids, written = tokenizer.encode(text), []
        for _ in range(row["tokens"]):
            seen = [*ids, *written]
            # One shape: what follows is not seen.
            tokens = jnp.array([seen + [0] * (64 - len(seen))])
            logits = apply_fn(params, tokens).logits[0, len(seen) - 1]
            written.append(int(jnp.argmax(logits)))
        assert tokenizer.decode(written) == row["completion"], way


def test_what_cannot_be_sampled_is_refused(folders, capsys):
    one = ("sample", folders / "a")
    assert "one of --prompt" in refused(capsys, *one)
    said = refused(capsys, *one, "--prompt", "a", "--greedy", "--n", 2)
    assert "n must be 1 with greedy" in said
    said = refused(capsys, *one, "--prompt", "a", "--temperature", 0)
    assert "--greedy takes" in said
    said = refused(capsys, *one, "--prompt", "ab" * 40)
    assert "context of 64 tokens: the longest one has" in said
    said = refused(capsys, *one, "--prompt", "a", "--plain", "--system", "b")
    assert "system must be left out" in said
    assert "which is no folder" in refused(capsys, "sample", "none", "--prompt", "a")


def kl_by_forward_passes(folders, rows, tokenizer):
    """Both estimators from the logits of whole texts, one completion at a time."""
    apply_fn = jax.jit(functional.make_apply(TINY))
    models = [hf.load(folders / name)[1] for name in "ab"]
    sampled, whole = [], []
    for prompt, tokens in rows:
        first, last = len(prompt) - 1, len(prompt) + len(tokens) - 1
        ids = jnp.array([prompt + tokens + [0] * (63 - last)])
        laws = [
            jax.nn.log_softmax(apply_fn(p, ids).logits[0])[first:last] for p in models
        ]
        ours, theirs = (np.asarray(x, np.float64) for x in laws)
        at = np.arange(len(tokens)), tokens
        sampled.append((ours[at] - theirs[at]).sum())
        whole.append((np.exp(ours) * (ours - theirs)).sum())
    return np.array(sampled), np.array(whole)


def token_probabilities(folders, rows):
    """Of each completion's tokens, from the logits of whole texts."""
    apply_fn, params = jax.jit(functional.make_apply(TINY)), hf.load(folders / "a")[1]
    found = []
    for prompt, tokens in rows:
        first, last = len(prompt) - 1, len(prompt) + len(tokens) - 1
        ids = jnp.array([prompt + tokens + [0] * (63 - last)])
        law = jax.nn.softmax(apply_fn(params, ids).logits[0])[first:last]
        found.append(np.asarray(law)[np.arange(len(tokens)), tokens])
    return found


def test_an_evaluation_counts_what_was_sampled(folders, tmp_path, capsys, monkeypatch):
    prompts = ["ab", "the hell", "12 ab"]
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"question": p, "answer": "a"}) for p in prompts)
    )
    (tmp_path / "mine.py").write_text(
        "def short(completions, records):\n"
        "    assert all(r['answer'] == 'a' for r in records)\n"
        "    return [float(len(c) % 2) for c in completions]\n"
    )
    seen, real = [], evaluate.measure
    monkeypatch.setattr(
        evaluate, "measure", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    out = tmp_path / "e.json"
    run(
        *("evaluate", folders / "a", "--data", tmp_path / "data.jsonl"),
        *("--fields", "prompt", "question"),
        *("--reward", f"{tmp_path / 'mine.py'}:short", "--n", 4, "--max-tokens", 6),
        *("--reference", folders / "b", "--against", folders / "b"),
        *("--batch", 2, "--out", out),
    )
    found = json.loads(out.read_text())
    table, (ours, theirs) = found["measured"], seen
    assert found["prompts"] == 3
    assert found["options"]["law"]["n"] == 4

    def mean(name, values, half=True):
        values = np.asarray(values, np.float64)
        assert table[name]["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
        if half:
            each = values.reshape(3, -1).mean(1)
            width = 1.96 * each.std(ddof=1) / math.sqrt(3)
            assert table[name]["half_width"] == pytest.approx(width, rel=1e-5)

    tokenizer = data.load_tokenizer(folders / "a")
    texts, rows = [], []
    for g, prompt in enumerate(prompts):
        chat = tokenizer.encode(tokenizer.chat([{"role": "user", "content": prompt}]))
        for k in range(4):
            tokens = ours.tokens[g, k][ours.mask[g, k]].tolist()
            texts.append(tokenizer.decode(tokens))
            rows.append((chat, tokens))
    rewards = np.array([len(text) % 2 for text in texts]).reshape(3, 4)
    np.testing.assert_array_equal(ours.rewards, rewards)
    assert 0 < rewards.mean() < 1
    mean("reward", rewards)
    mean("accuracy", rewards)
    # pass@k by all subsets.
    pairs = [(i, j) for i in range(4) for j in range(i)]
    mean("pass@2", [[max(row[i], row[j]) for i, j in pairs] for row in rewards])
    mean("pass@4", rewards.max(1))
    wins = [
        [(x > y) + (x == y) / 2 for x in a for y in b]
        for a, b in zip(rewards, theirs.rewards, strict=True)
    ]
    mean("win_rate", wins)
    mean("reward_against", theirs.rewards)
    lengths = np.array([len(tokens) for _, tokens in rows]).reshape(3, 4)
    mean("length", lengths)
    ended = np.array([tokens[-1] == tokenizer.eos_id for _, tokens in rows])
    mean("finished", ended, half=False)
    sampled, whole = kl_by_forward_passes(folders, rows, tokenizer)
    np.testing.assert_allclose(ours.kl_sampled.ravel(), sampled, atol=2e-4)
    np.testing.assert_allclose(ours.kl_vocabulary.ravel(), whole, atol=2e-4)
    each = json.loads(out.read_text())["per_prompt"]
    np.testing.assert_allclose(each["accuracy"], rewards.mean(1))
    probabilities = token_probabilities(folders, rows)
    np.testing.assert_allclose(
        ours.confidence.ravel(), [x.mean() for x in probabilities], rtol=2e-4
    )
    gap = ours.confidence - rewards
    mean("confidence", ours.confidence)
    mean("brier_score", gap**2)
    order = np.argsort(ours.confidence.ravel(), kind="stable")
    parts = [order[np.arange(12) * 10 // 12 == i] for i in range(10)]
    error = sum(abs(gap.ravel()[part].sum()) for part in parts) / 12
    assert table["ece_equal_mass"]["mean"] == pytest.approx(error, rel=1e-4)
    parts = np.ceil(ours.confidence.ravel() * 10)
    error = sum(abs(gap.ravel()[parts == i].sum()) for i in set(parts)) / 12
    assert table["ece_equal_width"]["mean"] == pytest.approx(error, rel=1e-4)
    assert 0 < table["embedding_diversity"]["mean"] < 1
    shown = capsys.readouterr().out
    for name in table:
        assert f"\n{name} " in shown
    assert "of the completions were cut at 6 tokens" in shown


def test_wins_by_hand():
    nan = np.nan
    wins = evaluation.win_rate(
        np.array([[1.0, 0.0], [nan, nan]]), np.array([[0.0, nan], [1.0, 2.0]])
    )
    np.testing.assert_allclose(wins, [3 / 4, nan])


def test_rewards_that_fail_are_counted(folders, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "12"}')
    (tmp_path / "bad.py").write_text(
        "def bad(completions, records):\n    return [1 / 0 for _ in completions]\n"
    )
    run(
        *("evaluate", folders / "a", "--data", tmp_path / "data.jsonl", "--limit", 1),
        *("--reward", f"{tmp_path / 'bad.py'}:bad", "--n", 2, "--max-tokens", 2),
    )
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err
    assert "1 prompts, 2 completions each" in said.out
    assert [line.split() for line in said.out.splitlines() if "failed" in line] == [
        ["rewards_failed", "2", "completions"]
    ]
    assert [line.split() for line in said.out.splitlines() if "reward " in line] == [
        ["reward", "-"]
    ]


def test_what_cannot_be_evaluated_is_refused(folders, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text('{"prompt": "ab"}')
    one = ("evaluate", folders / "a", "--data", tmp_path / "data.jsonl")
    said = refused(capsys, *one, "--against", folders / "b")
    assert "against must come with a reward" in said
    other = json.loads((folders / "b/config.json").read_text())
    (tmp_path / "other").mkdir()
    other["rms_norm_eps"] = 0.5
    for file in (folders / "b").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other/config.json").write_text(json.dumps(other))
    said = refused(capsys, *one, "--reference", tmp_path / "other")
    assert "has norm_eps = 0.5, the model 1e-05" in said
    assert "n must be at least 2" in refused(capsys, *one, "--self-bleu", "--n", 1)
    if importlib.util.find_spec("sacrebleu") is None:
        assert '"alignax[text]"' in refused(capsys, *one, "--self-bleu")
    said = refused(capsys, *one, "--reward", "nothing")
    assert "reward: 'nothing' was given" in said


def test_models_beside_are_refused_by_name(folders, capsys):
    one = ("sample", folders / "a", "--prompt", "a")
    beside = (*one, "--max-tokens", 4, "--beside", folders / "b")
    assert "rule must say how" in refused(capsys, *beside)
    assert "rule must be one of" in refused(capsys, *beside, "--rule", "sum")
    said = refused(capsys, *beside, "--rule", "fused")
    assert "a small model and the same tuned), got 1" in said
    said = refused(capsys, *beside, "--rule", "contrastive")
    assert "contrastive needs the option 'strength'" in said
    said = refused(capsys, *one, "--max-tokens", 2, "--draft", folders / "b")
    assert "draft_tokens must be from 1 to max_tokens, 2, got 4" in said
    said = refused(capsys, *one, "--max-tokens", 42, "--draft", folders / "b")
    assert "got 42, and 4 for a draft" in said
    switch = (*beside, "--rule", "switch,threshold=1", "--draft", folders / "b")
    assert "a switch, has none" in refused(capsys, *switch)
    said = refused(capsys, *beside, "--rule", "mixture,mixture=2")
    assert "mixture must be in [0, 1]" in said


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mixture,mixture=1", "switch,threshold=1e9,least=1"])
def test_a_model_beside_writes(folders, tmp_path, rule):
    """At the end of the mixture it is the other model that is sampled; a switch that
    wants more uncertainty than there is leaves it all but the first tokens."""
    rows = []
    options = ("--max-tokens", 5, "--prompt", "ab", "the hell", "--out")
    out = tmp_path / "out.jsonl"
    for args in (
        (folders / "b", *options, out),
        (folders / "a", *options, out, "--beside", folders / "b", "--rule", rule),
    ):
        run("sample", *args)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_draft_changes_no_greedy_token(folders, tmp_path, capsys):
    """Also of models that are combined; what it took is said."""
    rows, out = [], tmp_path / "out.jsonl"
    beside = ("--beside", folders / "b", "--rule", "product,weight=0.5")
    for more in (beside, (*beside, "--draft", folders / "b", "--draft-tokens", 3)):
        args = ("sample", folders / "a", "--greedy", "--max-tokens", 6, "--out", out)
        run(*args, *more, "--prompt", "ab", "the hell", "12", "--batch", 2)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    assert rows[0] == rows[1]
    assert "tokens a pass of the model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_steered_model_writes(folders, tmp_path, capsys):
    """At no strength what it wrote before, with a draft too; with one other texts."""
    (tmp_path / "before.jsonl").write_text(
        "".join(f'{{"prompt": "{text}"}}\n' for text in ("ab", "he", "l", "12", "o"))
    )
    options = ("--max-tokens", 5, "--prompt", "ab", "the hell", "--greedy")
    steer = ("--steer.by", tmp_path / "before.jsonl", "--steer.action", "^.")
    rows, out = [], tmp_path / "out.jsonl"
    draft = ("--draft", folders / "b", "--draft-tokens", 2)
    for more in (
        (),
        (*steer, "--steer.strength", 0),
        (*steer, "--steer.strength", 0, *draft),
        (*steer, "--steer.strength", 50, "--steer.layer", 0),
    ):
        run("sample", folders / "a", *options, "--out", out, *more)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    assert rows[0] == rows[1] == rows[2] != rows[3]
    assert "steer: decisions behind 5 prompts have" in capsys.readouterr().err


def test_steering_is_refused_by_name(folders, tmp_path, capsys):
    (tmp_path / "before.jsonl").write_text('{"prompt": "ab"}\n')
    steer = ("--steer.by", tmp_path / "before.jsonl", "--steer.n", 2)
    one = ("sample", folders / "a", "--max-tokens", 2, "--prompt", "a", *steer)
    said = refused(capsys, *one)
    assert "decisions of all 1 prompts have the same entropy" in said
    assert "layer must be one of the model's" in refused(
        capsys, *one, "--steer.layer", 99
    )
    assert "n of steer must be" in refused(capsys, *one, "--steer.n", 1)
