"""The experiment on GSM8K's format: from scratch, from a folder, and bad input."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alignax import cli
from alignax.models import decoder, functional, hf, lora
from alignax.pipeline import checkpoint, data, metrics, rewards
from alignax.train import loop
from alignax.train.options import RL
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import grpo_gsm8k
from experiments.grpo_gsm8k import Config
from tests.pipeline.test_data_tokenizers import TEMPLATE, build_folder


def records(count=12):
    return [
        {
            "question": f"Tim has {i} figs and buys {i + 1}. How many?",
            "answer": f"{i}+{i + 1}=<<{i}+{i + 1}={2 * i + 1}>>\n#### {2 * i + 1}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("gsm8k") / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records()))
    return path


def small(problems, out, **changes):
    fields = {
        "data": problems,
        "out": out,
        "held_out": 3,
        "prompt_length": 64,
        "max_tokens": 24,
        "evaluate_every": 1,
        "save_every": 1,
        "hidden_size": 16,
        "num_layers": 1,
        "sft": SFT(steps=3, batch_size=4, warmup=1),
        "rl": RL(steps=2, prompts=2, completions=2, warmup=1),
    }
    return Config(**fields | changes)


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def unbroken(problems, tmp_path_factory):
    config = small(problems, tmp_path_factory.mktemp("unbroken") / "run")
    grpo_gsm8k.main(config)
    return config


def test_everything_is_written(unbroken):
    out = unbroken.out
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = metrics.read(out)
    for name in ("reward", "accuracy", "kl", "reward_half", "kl_half"):
        # At the start, after one step, at the end.
        assert len(metrics.column(rows, f"grpo/eval/{name}")[1]) == 3
    assert len(metrics.column(rows, "sft/loss")[1]) == 3
    samples = (out / "samples.md").read_text()
    for record in records()[-3:]:
        assert f"## {record['question']}" in samples
        assert record["answer"] in samples
    assert samples.count("before:") == samples.count("after:") == 3
    config, params = checkpoint.load_model(out / "model")
    functional.check_params(decoder.DecoderConfig.from_dict(config), params)


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 6])
def test_resumed_run_equals_an_unbroken_one(unbroken, tmp_path, monkeypatch, after):
    config = dataclasses.replace(unbroken, out=tmp_path / "run")
    calls = []
    log = metrics.Writer.log

    def killing(self, step, values):
        if len(calls) == after:
            raise Killed
        calls.append(step)
        return log(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Writer, "log", killing)
        with pytest.raises(Killed):
            grpo_gsm8k.main(config)
    grpo_gsm8k.main(dataclasses.replace(config, resume=True))
    for name in ("metrics.jsonl", "samples.md"):
        assert (config.out / name).read_text() == (unbroken.out / name).read_text()


MODEL = {
    "vocab_size": 259,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "mlp_size": 16,
    "max_length": 128,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen3 with a chat template, as somebody might have downloaded it."""
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    path = build_folder(
        tmp_path_factory.mktemp("hub") / "tiny", chat_template=TEMPLATE, **special
    )
    config = decoder.DecoderConfig(**MODEL, qk_norm=True)
    hf.save(path, config, functional.init(config, jax.random.key(0)))
    return path


@pytest.mark.slow
def test_a_hugging_face_folder_is_trained_and_saved(problems, folder, tmp_path):
    config = small(
        problems,
        tmp_path / "run",
        model=folder,
        prompt_length=100,
        rl=RL(steps=2, prompts=2, completions=2, warmup=0, learning_rate=1e-2),
    )
    grpo_gsm8k.main(config)
    before, _ = hf.load(folder)
    after, params = hf.load(config.out / "huggingface")
    assert after == before
    _, trained = checkpoint.load_model(config.out / "model")
    jax.tree.map(np.testing.assert_array_equal, trained, params)
    # The tokenizer comes along.
    tokenizer = data.load_tokenizer(config.out / "huggingface")
    assert tokenizer.encode("7 figs") == data.load_tokenizer(folder).encode("7 figs")
    # No teaching: the folder's policy is the reference.
    assert not (config.out / "sft").exists()


@pytest.mark.slow
def test_adapters_of_a_hugging_face_folder_are_trained_and_saved(
    problems, folder, tmp_path
):
    config = small(
        problems,
        tmp_path / "run",
        model=folder,
        lora_rank=2,
        prompt_length=100,
        rl=RL(steps=2, prompts=2, completions=2, warmup=0, learning_rate=1e-2),
    )
    grpo_gsm8k.main(config)
    rows = metrics.read(config.out)
    np.testing.assert_allclose(metrics.column(rows, "grpo/kl")[1][0], 0, atol=1e-4)
    settings, adapters = lora.load(config.out / "adapters", hf.read_config(folder))
    assert settings.rank == 2
    _, trained = checkpoint.load_model(config.out / "model")
    jax.tree.map(np.testing.assert_array_equal, trained, adapters)


def test_chat_template_and_plain_prompts(folder):
    record = records()[0]
    plain = grpo_gsm8k.question(record, data.byte_tokenizer())
    assert plain == f"Question: {record['question']}\nAnswer: "
    tokenizer = data.load_tokenizer(folder)
    text = grpo_gsm8k.question(record, tokenizer)
    assert text.endswith("assistant: ")
    assert "####" in text
    # The template begins with the bos token; it is not put there twice.
    prompts = data.encode_prompts([text], tokenizer, length=128)
    row = np.asarray(prompts.tokens)[0][np.asarray(prompts.mask)[0]]
    assert (row == tokenizer.bos_id).sum() == 1


def test_reward_is_the_sum_of_its_parts(problems, tmp_path):
    config = small(problems, tmp_path, format_weight=0.2, marks_weight=0.5)
    record = {"answer": "2+3=<<2+3=5>>5\n#### 1,005"}
    texts = {
        "1+4=<<1+4=5>>5\n#### 1005": 1.0 + 0.2 + 0.5,
        "#### 1005.0": 1.0 + 0.2,
        "1+4=<<1+4=6>>6\n#### 7": 0.2,
        "no number": 0.0,
    }
    found = grpo_gsm8k.make_reward(config)(list(texts), [record] * len(texts))
    np.testing.assert_allclose(found, list(texts.values()), rtol=1e-6)


def test_right_number_is_gsm8ks(problems):
    texts = ["so #### 3", "so #### 4", "3"]
    found = grpo_gsm8k.right_number(texts, [{"answer": "x\n#### 3"}] * 3)
    assert found.tolist() == [1, 0, 0]
    assert rewards.extract_answer(records()[1]["answer"]) == "3"


def bad(name, tmp_path, problems, folder):
    """``(options, what the message says)`` of each kind of bad input."""
    lines = problems.read_text().splitlines()
    lines[4] = json.dumps({"question": "And the answer?"})
    (tmp_path / "field.jsonl").write_text("\n".join(lines))
    (tmp_path / "json.jsonl").write_text("\n".join([*lines[:2], "{"]))
    (tmp_path / "empty").mkdir()
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    raw = json.loads((folder / "config.json").read_text())
    other = raw | {"architectures": ["MambaForCausalLM"]}
    (unknown / "config.json").write_text(json.dumps(other))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((folder / file).read_bytes())
    data, model = ["--data", str(problems)], "--model"
    return {
        "no file": (["--data", str(tmp_path / "none.jsonl")], ["none.jsonl"]),
        "no field": (
            ["--data", str(tmp_path / "field.jsonl")],
            ["field.jsonl", "line 5", "'answer'"],
        ),
        "no json": (["--data", str(tmp_path / "json.jsonl")], ["line 3", "JSON"]),
        "few records": ([*data, "--held-out", "7"], ["held_out", "12", "7"]),
        "no model": ([*data, model, str(tmp_path / "none")], ["none", "no folder"]),
        "no config": ([*data, model, str(tmp_path / "empty")], ["config.json"]),
        "no family": (
            [*data, model, str(unknown)],
            ["MambaForCausalLM", "Qwen3ForCausalLM"],
        ),
        "no tokenizer": ([*data, model, str(bare)], ["tokenizer.json"]),
        "short context": (
            [*data, model, str(folder), "--max-tokens", "100"],
            ["prompt_length + max_tokens", "128"],
        ),
        "long prompts": (
            [*data, "--prompt-length", "8", "--held-out", "1"],
            ["length", "8"],
        ),
        "out of range": ([*data, "--beta", "-1"], ["beta", "negative", "-1"]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "no file",
        "no field",
        "no json",
        "few records",
        "no model",
        "no config",
        "no family",
        "no tokenizer",
        "short context",
        "long prompts",
        "out of range",
    ],
)
def test_bad_input_is_a_paragraph(name, tmp_path, problems, folder, capsys):
    options, said = bad(name, tmp_path, problems, folder)
    out = tmp_path / "run"
    # Later options win.
    args = ["--held-out", "3", "--prompt-length", "64", "--max-tokens", "24"]
    args += ["--out", str(out), *options]
    with pytest.raises(SystemExit) as exit_info:
        cli.run(grpo_gsm8k.main, Config, args=args)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    for words in said:
        assert words in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert not out.exists()


def test_a_checkpoint_of_another_architecture_is_refused(unbroken):
    before = (unbroken.out / "metrics.jsonl").read_text()
    other = dataclasses.replace(unbroken, resume=True, num_layers=2)
    with pytest.raises(InputError, match=r"num_layers.*1.*2"):
        grpo_gsm8k.main(other)
    assert (unbroken.out / "metrics.jsonl").read_text() == before
    with pytest.raises(InputError, match="--resume"):
        loop.check_folder(unbroken.out, resume=False)
