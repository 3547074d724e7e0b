"""`alignax train …` on a tiny folder: what it writes, goes on with and refuses."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from alignax.cli import main
from alignax.models import decoder, functional, hf
from alignax.pipeline import metrics
from alignax.train import folders, reward_folders
from alignax.train.runs import (
    configs,
    distil,
    game,
    preference,
    reward,
    rl,
    signs,
    supervised,
    target,
    watch,
)
from alignax.train.runs.options import Data, Model
from alignax.types import RunError
from tests.pipeline.test_data_tokenizers import TEMPLATE, build_folder

MODEL = {
    "vocab_size": 259,
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_size": 8,
    "max_length": 96,
}
REWARD = """
import os
import signal
calls = []

def vowels(completions, records):
    calls.append(1)
    if len(calls) == int(os.environ.get("KILL_AT", "0")):
        raise KeyboardInterrupt
    if len(calls) == int(os.environ.get("TERM_AT", "0")):
        os.kill(os.getpid(), signal.SIGTERM)
    assert all(record["answer"] for record in records)
    return [sum(c in "aeiou" for c in text) + len(text) / 100 for text in completions]

def short(completions, records):
    return [1.0]

def broken(completions, records):
    raise ValueError("no such thing")
"""
SUMS = [(f"{i}+{i}=", str(2 * i)) for i in range(12)]
RECORDS = {
    "prompts": [{"prompt": q, "answer": a} for q, a in SUMS],
    "pairs": [{"prompt": q, "chosen": a, "rejected": "?"} for q, a in SUMS],
    "labels": [
        {"prompt": q, "completion": a, "label": i % 2 == 0}
        for i, (q, a) in enumerate(SUMS)
    ],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": a},
            ]
        }
        for q, a in SUMS
    ],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A random Qwen3 with a chat template, one without, data and rewards."""
    home = tmp_path_factory.mktemp("home")
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    config = decoder.DecoderConfig(**MODEL, qk_norm=True)
    params = functional.init(config, jax.random.key(0))
    for name, template in (("model", {"chat_template": TEMPLATE}), ("bare", {})):
        folder = build_folder(home / name, **template, **special)
        hf.save(folder, config, params)
    for name, records in RECORDS.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (home / f"{name}.jsonl").write_text(lines)
    (home / "my.py").write_text(REWARD)
    return home


def arguments(home, kind, data, out, *more):
    few = {"rl": ("--prompts", "2", "--completions", "2", "--max-tokens", "6")}
    rest = few.get(kind, ("--batch-size", "2", "--length", "48"))
    if kind == "rl":
        rest += ("--reward", f"{home / 'my.py'}:vowels", "--learning-rate", "1e-3")
    return [
        *("train", kind, "--model", str(home / "model")),
        *("--data", str(home / f"{data}.jsonl"), "--out", str(out)),
        *("--steps", "3", "--microbatches", "1", "--held-out", "2"),
        *("--save-every", "1", "--evaluate-every", "2", *rest, *more),
    ]


def rows_of(out):
    """The log without what is the machine's."""
    return [
        {k: v for k, v in row.items() if k.split("/")[-1] not in watch.OF_THE_MACHINE}
        for row in metrics.read(out)
    ]


def refused(capsys, args):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    said = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "Traceback" not in message
    return said[0]


@pytest.fixture(scope="module")
def trained(home):
    """An unbroken run of adapters by rewards."""
    out = home / "rl"
    main(arguments(home, "rl", "prompts", out, "--lora.rank", "2"))
    return out


def test_rl_writes_a_run_that_opens(home, trained):
    run = json.loads((trained / "run.json").read_text())
    assert (run["kind"], run["phase"], run["lora"]["rank"]) == ("rl", "rl", 2)
    assert run["model"] == str(home / "model")
    rows = metrics.read(trained)
    for name in ("reward", "right", "kl", "finished"):
        # At the start, after two steps, at the end.
        assert len(metrics.column(rows, f"rl/eval/{name}")[1]) == 3
    np.testing.assert_allclose(metrics.column(rows, "rl/ratio")[1][0], 1, atol=1e-5)
    for name in ("tokens_per_second", "memory", "signal", "entropy", "length"):
        assert len(metrics.column(rows, f"rl/{name}")[1]) == 3
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    samples = (trained / "samples.md").read_text()
    assert samples.count("**before** (") == samples.count("**after** (") == 2
    assert "- before: " in samples
    adapter = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(home / "model")
    # The export is the last checkpoint, bit for bit.
    ends = [folders.open_policy(trained), folders.open_policy(trained / "adapter")]
    jax.tree.map(np.testing.assert_array_equal, *(end.params for end in ends))


# Completions over several steps: what is open is the checkpoint's, too. Told to stop,
# a run saves the step that it is in.
OPEN = ("--part-tokens", "2", "--save-every", "9")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), OPEN])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    home, trained, monkeypatch, capsys, more
):
    out = home / f"killed{len(more)}"
    args = arguments(home, "rl", "prompts", out, "--lora.rank", "2", *more)
    if more:
        trained = home / "open"
        main(arguments(home, "rl", "prompts", trained, "--lora.rank", "2", *more))
    from alignax.pipeline.rewards import loading

    # Before the first step there is one call for the evaluation.
    loading._module.cache_clear()
    monkeypatch.setenv("TERM_AT" if more else "KILL_AT", "3")
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == (75 if more else 130)
    assert ("told to stop and did, at step 2 of 3" in capsys.readouterr().err) == bool(
        more
    )
    monkeypatch.undo()
    assert 1 < len(rows_of(out)) < len(rows_of(trained))
    assert "--resume" in refused(capsys, args)
    main([*args, "--resume"])
    assert rows_of(out) == rows_of(trained)
    for name in ("samples.md", "adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_supervised_learns_its_messages(home):
    out = home / "supervised"
    main(arguments(home, "supervised", "messages", out, "--learning-rate", "0.01"))
    rows = metrics.read(out)
    losses = metrics.column(rows, "supervised/eval/loss")[1]
    assert losses[-1] < losses[0]
    policy = folders.open_policy(out)
    assert policy.tokenizer.chat is not None
    exported = folders.open_policy(out / "model")
    jax.tree.map(np.testing.assert_array_equal, policy.params, exported.params)


@pytest.mark.parametrize(
    ("data", "more"),
    [
        ("pairs", ()),
        pytest.param("labels", ("kto",), marks=pytest.mark.slow),
    ],
)
def test_preferences_move_the_margin(home, data, more):
    out = home / f"preference-{data}"
    more = [f"--loss={name}" for name in more] or ["--divergence", "jensen_shannon"]
    args = arguments(home, "preference", data, out, "--learning-rate", "0.01", *more)
    main(args)
    rows = metrics.read(out)
    margins = metrics.column(rows, "preference/margin")[1]
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert margins[-1] > 0.01
    evaluated = metrics.column(rows, "preference/eval/forward_kl")[1]
    assert evaluated[0] == pytest.approx(0, abs=1e-5)
    assert evaluated[-1] != 0


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--lora.rank", "2"), marks=pytest.mark.slow)]
)
def test_a_reward_model_is_a_reward(home, tmp_path, more):
    out = tmp_path / "reward"
    main(arguments(home, "reward", "pairs", out, "--learning-rate", "0.01", *more))
    rows = metrics.read(out)
    margins = metrics.column(rows, "reward/eval/margin")[1]
    assert margins[-1] > margins[0]
    with reward_folders.open_rewards([f"model:{out}"]) as judge:
        prompt = [{"role": "user", "content": "1+1="}]
        better, worse = judge(["2", "?"], [{"prompt": prompt}] * 2)
    assert better > worse


@pytest.mark.slow
def test_rl_takes_the_reward_model_and_all_parameters(home, tmp_path):
    main(arguments(home, "reward", "labels", tmp_path / "reward"))
    args = arguments(home, "rl", "prompts", tmp_path / "rl")
    main([*args, "--reward", f"model:{tmp_path / 'reward'}", "--remat", "block"])
    assert hf.load(tmp_path / "rl" / "model")[0] == hf.load(home / "model")[0]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["simpo", "sparse_po", "tdpo2", "kto", "copg"])
def test_losses_with_needs_train(home, tmp_path, loss):
    more = ("--reward", "length,target=3") if loss == "copg" else ()
    args = arguments(home, "preference", "pairs", tmp_path / loss, *more)
    held = ["--target-kl", "1.0"] if loss != "simpo" else []
    main([*args, "--loss", loss, *held])
    assert len(metrics.column(metrics.read(tmp_path / loss), "preference/loss")[1]) == 3


@pytest.mark.slow
def test_stops_further_prompts_and_sampling_ahead_go_through_a_run(home, tmp_path):
    more = ("--stop", "a", "e", "--rounds", "1", "--ahead", "1", "--mask-truncated")
    main(arguments(home, "rl", "prompts", tmp_path / "run", *more))
    rows = metrics.read(tmp_path / "run")
    # Later steps train what the policy before them sampled, or fresh further rows.
    first, *later = metrics.column(rows, "rl/staleness")[1]
    assert first == 0
    assert all(0 < x <= 1 for x in later)
    assert len(metrics.column(rows, "rl/resampled")[1]) == 3


@pytest.mark.slow
def test_a_method_with_demonstrations_takes_the_completions(home, tmp_path):
    records = [{**r, "completion": r["answer"]} for r in RECORDS["prompts"]]
    file = tmp_path / "shown.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    args = arguments(home, "rl", "prompts", tmp_path / "run", "--data", str(file))
    main([*args, "--method", "rl_plus"])
    assert len(metrics.read(tmp_path / "run"))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_adapter_loads_in_peft(home, trained):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(home / "model")
    model = peft.PeftModel.from_pretrained(base, trained / "adapter")
    policy = folders.open_policy(trained / "adapter")
    tokens = np.arange(3, 13)[None]
    import torch

    theirs = model(torch.tensor(tokens)).logits.detach().numpy()
    ours = policy.apply_fn(policy.params, tokens).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_a_file_of_options_reads_what_is_printed(home, tmp_path, capsys):
    args = arguments(home, "rl", "prompts", tmp_path, "--lora.rank", "2", "--chat=True")
    main([*args, "--print-config"])
    printed = capsys.readouterr().out
    file = tmp_path / "run.yaml"
    file.write_text(printed)
    main(["train", "rl", "--config", str(file), "--print-config"])
    assert capsys.readouterr().out == printed
    main(["train", "rl", "--config", str(file), "--lora.rank=8", "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["lora"]["rank"] == 8
    config = rl.Config(
        model=Model(folder=home), data=Data(source="x"), reward=("exact",)
    )
    assert configs.as_mapping(config)["method"] == "grpo"


def test_options_of_the_page_are_options():
    """docs/train.md names no option that no command has."""
    root = Path(__file__).parent.parent.parent
    page = (root / "docs" / "train.md").read_text(encoding="utf-8")

    def flags(kind, prefix=""):
        for option in configs.options_of(kind).values():
            name = prefix + option.key.replace("_", "-")
            if option.group is None:
                yield f"--{name}"
            else:
                yield from flags(option.group, "" if option.flat else f"{name}.")

    kinds = (rl, preference, reward, supervised, game, distil, target)
    known = {"--help", "--config", "--print-config"}
    known = known.union(*(flags(kind.Config) for kind in kinds))
    named = set(re.findall(r"--[a-z][a-z.-]*", page))
    assert len(named) > 20
    assert named <= known


BAD = {
    "unknown key": ("modle: x\n", ["options.yaml", "modle", "did you mean model?"]),
    "unknown group": ("lora: {rnk: 2}\n", ["key lora.rnk", "did you mean rank?"]),
    "no mapping": ("- 1\n", ["options.yaml", "list"]),
    "no yaml": ("a: [\n", ["is not YAML"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_of_options_are_named(name, tmp_path, capsys):
    file = tmp_path / "options.yaml"
    file.write_text(BAD[name][0])
    message = refused(capsys, ["train", "rl", "--config", str(file)])
    assert all(words in message for words in BAD[name][1])


def bad(home):
    file, model, rewarded = "--data", "--model", "--reward"
    (home / "line.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    (home / "field.jsonl").write_text('{"question": "1"}\n')
    long = json.dumps({"prompt": "7" * 200, "answer": "1"})
    (home / "long.jsonl").write_text(f"{long}\n" * 2 + long.replace("7", "8"))
    my = home / "my.py"
    return {
        "no file": ([file, str(home / "no.jsonl")], ["no.jsonl"]),
        "no json": ([file, str(home / "line.jsonl")], ["line.jsonl, line 2"]),
        "no field": (
            [file, str(home / "field.jsonl")],
            ["field.jsonl, line 1", "'question'", "prompt=question"],
        ),
        "no model": ([model, str(home / "none")], ["none", "is no folder"]),
        "no template": ([model, str(home / "bare"), "--chat=True"], ["chat template"]),
        "no GPU": (["--attention", "cudnn"], ["NVIDIA GPU", "got cpu"]),
        "no function": ([rewarded, f"{my}:no"], ["'no'", "broken"]),
        "no reward": ([rewarded, "exactly"], ["exactly", "numeric"]),
        "wrong shape": ([rewarded, f"{my}:short"], ["my.py:short", "(1,)"]),
        "raises": (
            [rewarded, f"{my}:broken", "--reward-errors", "raise"],
            ["my.py:broken", "record", "no such thing"],
        ),
        "long prompts": (
            [file, str(home / "long.jsonl"), "--held-out", "1"],
            ["prompt_length + max_tokens", "96"],
        ),
        "no method": (["--method", "gpro"], ["gpro", "did you mean ", "grpo?"]),
        "demonstrations": (["--method", "rl_plus"], ["guide"]),
        "held out": (["--held-out", "40"], ["held_out", "12", "40"]),
    }


NAMES = (
    *("no file", "no json", "no field", "no model", "no template", "no function"),
    *("no reward", "wrong shape", "long prompts", "no method", "demonstrations"),
    *("held out", pytest.param("raises", marks=pytest.mark.slow)),
)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_a_paragraph(name, home, tmp_path, capsys):
    options, said = bad(home)[name]
    args = arguments(home, "rl", "prompts", tmp_path / "run")
    message = refused(capsys, [*args, *options])
    for words in said:
        assert words in message


def test_losses_that_do_not_fit_the_data_are_refused(home, tmp_path, capsys):
    out = tmp_path / "run"
    args = arguments(home, "preference", "labels", out, "--loss", "simpo")
    assert "kto, apo_zero, bco" in refused(capsys, args)
    args = arguments(home, "preference", "pairs", out, "--loss", "copg")
    assert "needs rewards" in refused(capsys, args)
    args = arguments(home, "preference", "pairs", out, "--divergence", "pearson")
    refused(capsys, args)
    args = arguments(home, "preference", "pairs", out, "--loss", "simpo")
    assert "no reference" in refused(capsys, [*args, "--target-kl", "1"])
    args = arguments(home, "preference", "prompts", out)
    assert "chosen, rejected" in refused(capsys, args)
    assert preference.BETAS.keys() < preference.pf.LOSSES.keys()


def test_signs_are_read_off_the_numbers():
    healthy = {"signal": 0.5, "finished": 0.9, "ratio": 1.0, "kl": 3.0}
    assert signs.signs([healthy] * 20) == {}
    assert signs.signs([]) == {}
    for changed, name in (
        ({"signal": 0.0}, "no_signal"),
        ({"finished": 0.4}, "cut"),
        ({"ratio": 1.02}, "ratio"),
        ({"ratio": 0.98}, "ratio"),
        ({"kl": 51.0}, "divergence"),
        ({"reward_failed": 0.25}, "failed"),
    ):
        found = signs.signs([healthy, healthy | changed])
        assert list(found) == [name]
    ahead = {"ratio": 1.1, "staleness": 1.0}
    assert signs.signs([healthy | ahead]) == signs.signs([healthy | {"ratio": 0}]) == {}
    doubling = [healthy | {"kl": 2.0 * 1.1**i} for i in range(20)]
    assert list(signs.signs(doubling)) == ["divergence"]
    # From next to nothing it doubles in any run.
    small = [healthy | {"kl": 0.01 * 1.1**i} for i in range(20)]
    assert signs.signs(small) == {}


def test_other_tokens_than_those_sampled_are_not_trained(home):
    """A step that is given another rollout ends the run."""

    def rollout(token):
        row = np.full((2, 3), token)
        return rl.tasks.Rollout(
            tokens=row,
            attended=row == token,
            trained=row == token,
            finished=row[:, 0] == token,
            logp_behaviour=row * 0.0,
            version=row,
            prompt_tokens=row,
            prompt_mask=row == token,
        )

    watch._check_tokens([rollout(4), rollout(5)], rollout(5))
    with pytest.raises(RunError, match="completion 0 and 1 more have other tokens"):
        watch._check_tokens([rollout(5)], rollout(6))
    prompts = rl.Prompts(
        tokens=np.full((2, 3), 5), mask=np.ones((2, 3), bool), index=np.array([7, 8])
    )
    watch._check_prompts(prompts, rollout(5))
    with pytest.raises(RunError, match="record 7"):
        watch._check_prompts(prompts, rollout(6))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["otr", "f_sft", "ps_kd", "steer"])
def test_other_objectives_of_answers_train(home, tmp_path, objective):
    args = arguments(home, "supervised", "messages", tmp_path / "run")
    more = ("--past-every", "1") if objective == "ps_kd" else ()
    main([*args, "--objective", objective, "--learning-rate", "0.01", *more])
    losses = metrics.column(metrics.read(tmp_path / "run"), "supervised/eval/loss")[1]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_sweep_pauses_runs_at_a_rung_and_goes_on(home, tmp_path, capfd):
    """The worse of two stops at its rung, saved; the better is one unbroken log."""
    base = {
        **{"model": str(home / "model"), "data": str(home / "messages.jsonl")},
        **{"batch_size": 2, "length": 48, "microbatches": 1, "held_out": 2},
        **{"steps": 300, "evaluate_every": 50, "save_every": 1000},
    }
    content = {
        "run": "train supervised",
        "base": base,
        "points": [{"learning_rate": 1e-6}, {"learning_rate": 1e-2}, {"lora.rank": -1}],
        "metric": "supervised/eval/loss",
        "goal": "min",
        "rungs": [50],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    main(["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "o")])
    assert "1 begun, 1 done, 1 failed" in capfd.readouterr().out
    slow, fast = (metrics.read(tmp_path / f"o/trials/000{i}") for i in (0, 1))
    assert 50 <= slow[-1]["step"] < 300
    steps = [row["step"] for row in fast if "supervised/loss" in row]
    assert steps == list(range(1, 301))
    said = (tmp_path / "o/trials/0001/output.txt").read_text()
    assert "stopped: supervised was told to stop" in said
    failed = json.loads((tmp_path / "o/trials/0002/end.json").read_text())
    assert (failed["code"], "lora.rank" in failed["words"]) == (2, True)
