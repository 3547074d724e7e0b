"""The main job at a small size: what it writes, resuming, compilations, shards."""

import dataclasses
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import exact
from alignax.models import decoder, functional
from alignax.pipeline import checkpoint, data, metrics, sharding, update
from alignax.train import assembly, options
from alignax.train.options import RL
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import grpo_arithmetic
from experiments.grpo_arithmetic import Config
from tests.exact.optimum import optimum


def small(out, **changes):
    fields = {
        "out": out,
        "terms": 2,
        "held_out": 8,
        "betas": (0.5, 0.1),
        "evaluate_every": 2,
        "save_every": 20,
        "hidden_size": 16,
        "num_layers": 1,
        "sft": SFT(steps=60, batch_size=32, warmup=1, learning_rate=2e-2),
        "rl": RL(steps=3, prompts=8, completions=8, warmup=1),
    }
    return Config(**fields | changes)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    config = small(tmp_path_factory.mktemp("unbroken") / "run")
    grpo_arithmetic.main(config)
    # Something was learnt, so that equal parameters mean something.
    for name in ("beta_0.5/grad_norm", "beta_0.1/reward", "beta_0.1/eval/kl"):
        assert metrics.column(metrics.read(config.out), name)[1][-1] > 0
    return config


def test_everything_is_written(unbroken):
    out = unbroken.out
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())
    table = (out / "samples.md").read_text().splitlines()[2:]
    assert table[0] == "| problem | answer | reference | beta_0.5 | beta_0.1 |"
    assert len(table) == 2 + 8 + 1
    marks = [row.split(" | ")[2][0] for row in table[2:-1]]
    assert table[-1].split(" | ")[2] == f"{marks.count('✓')} of 8 right"
    assert set(marks) <= {"✓", "✗"}
    rows = metrics.read(out)
    numbers = [row["step"] for row in rows]
    assert numbers == sorted(numbers)
    for name in ("reward", "kl", "entropy", "grad_norm", "beta", "length"):
        _, values = metrics.column(rows, f"beta_0.1/{name}")
        assert len(values) == 3
        assert np.isfinite(values).all()
    # At the start, after two steps, at the end.
    assert len(metrics.column(rows, "beta_0.5/eval/kl")[1]) == 3


def test_first_measurement_is_the_reference(unbroken):
    rows = metrics.read(unbroken.out)
    first = metrics.column(rows, "beta_0.5/eval/kl")[1][0]
    np.testing.assert_allclose(first, 0, atol=1e-5)
    rewards = [
        metrics.column(rows, f"beta_{beta}/eval/reward")[1][0] for beta in (0.5, 0.1)
    ]
    assert rewards[0] == rewards[1]


def test_the_model_loads_again(unbroken):
    config, params = checkpoint.load_model(unbroken.out / "beta_0.1" / "model")
    model = decoder.DecoderConfig.from_dict(config)
    logits, _ = functional.make_apply(model)(params, jnp.array([[257, 49, 43, 50, 61]]))
    assert logits.shape == (1, 5, 259)
    assert np.isfinite(logits).all()


class Killed(Exception):
    """Stands for a kill: nothing catches it."""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "after", [30, *(pytest.param(steps, marks=SLOW) for steps in (0, 65))]
)
def test_resumed_run_equals_an_unbroken_one(unbroken, tmp_path, monkeypatch, after):
    """Bit for bit: the log, every policy's parameters, the samples."""
    config = small(tmp_path / "run")
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
            grpo_arithmetic.main(config)
    grpo_arithmetic.main(dataclasses.replace(config, resume=True))

    for name in ("metrics.jsonl", "samples.md"):
        assert (config.out / name).read_text() == (unbroken.out / name).read_text()
    for beta in config.betas:
        folder = f"beta_{beta}/model"
        _, resumed = checkpoint.load_model(config.out / folder)
        _, whole = checkpoint.load_model(unbroken.out / folder)
        chex.assert_trees_all_equal(resumed, whole)


def test_resuming_a_finished_run_changes_nothing(unbroken):
    before = (unbroken.out / "metrics.jsonl").read_text()
    grpo_arithmetic.main(dataclasses.replace(unbroken, resume=True))
    assert (unbroken.out / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_one_bad_reward_costs_one_update(tmp_path, monkeypatch, capsys):
    """NaN in the second rollout of the first policy, beta adapted to the KL."""
    score, calls = grpo_arithmetic.score, []

    def scoring(*args):
        calls.append(score(*args))
        return calls[-1].at[3].set(jnp.nan if len(calls) == 2 else 0.0)

    monkeypatch.setattr(grpo_arithmetic, "score", scoring)
    config = small(tmp_path / "run")
    config = dataclasses.replace(
        config, rl=dataclasses.replace(config.rl, updates=2, target_kl=0.1)
    )
    grpo_arithmetic.main(config)
    assert "step 2 of beta_0.5 left the parameters" in capsys.readouterr().err
    rows = metrics.read(config.out)
    skipped = metrics.column(rows, "beta_0.5/skipped")[1]
    np.testing.assert_array_equal(skipped, [0, 1, 0])
    for name in ("beta", "loss", "eval/kl"):
        assert np.isfinite(metrics.column(rows, f"beta_0.5/{name}")[1][-1])
    assert not metrics.column(rows, "beta_0.1/skipped")[1].any()
    _, params = checkpoint.load_model(config.out / "beta_0.5" / "model")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_one_compilation_for_each_function(tmp_path, monkeypatch):
    """Over two phases of two betas, each jitted function compiles once."""
    jitted = []
    jit = jax.jit

    def recording(function, *args, **kwargs):
        result = jit(function, *args, **kwargs)
        jitted.append((function.__qualname__, result))
        return result

    monkeypatch.setattr(jax, "jit", recording)
    grpo_arithmetic.main(small(tmp_path / "run"))
    counts = [
        (name.split(".")[-1], function._cache_size())
        for name, function in jitted
        if "<locals>" in name and any(room in name for room in ("jitted", "main"))
    ]
    named = {"sample", "step", "write", "kl_of", "log_success"}
    assert {name for name, _ in counts} >= named
    # A long process may hold none of its calls; a recompilation would make two.
    assert {count for _, count in counts} <= {0, 1}, counts


def test_other_folders_and_settings_are_refused(unbroken, tmp_path):
    with pytest.raises(InputError, match="--resume"):
        grpo_arithmetic.main(unbroken)
    with pytest.raises(InputError, match="holds no run"):
        grpo_arithmetic.main(small(tmp_path / "none", resume=True))
    other = dataclasses.replace(unbroken, resume=True, hidden_size=24)
    with pytest.raises(InputError, match=r"hidden_size.*16.*24"):
        grpo_arithmetic.main(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": 1},
        {"held_out": 0},
        {"held_out": 150},
        {"mistakes": 1.0},
        {"betas": ()},
        {"betas": (0.0,)},
        {"betas": (0.1, 0.1)},
        {"save_every": 0},
        {"hidden_size": 12},
        {"rl": RL(beta=0.1)},
        {"betas": (0.5, 0.1), "rl": RL(method="dapo")},
    ],
)
def test_configuration_out_of_range(changes, tmp_path):
    with pytest.raises(InputError, match=f"{next(iter(changes))}.*got"):
        small(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"completions": 0},
        {"learning_rate": 0.0},
        {"learning_rate": np.inf},
        {"clip_norm": 0.0},
        {"top_k": 0},
        {"slots": -1},
        {"temperature": 0.0},
        {"microbatches": 3},
    ],
)
def test_grpo_out_of_range(changes):
    with pytest.raises(InputError, match=f"{next(iter(changes))} .*got"):
        RL(**changes)


def test_command_line_reports_bad_input_in_a_paragraph(tmp_path):
    command = [sys.executable, "-m", "experiments.grpo_arithmetic"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--mistakes", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "mistakes must be in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_problems_are_split_and_right():
    config = Config()
    train, held_out = grpo_arithmetic.problems(config)
    questions = [record["question"] for record in train + held_out]
    assert len(set(questions)) == len(questions) == 4000
    assert len(held_out) == 256
    for record in held_out:
        text = record["question"]
        value = int(text[0]) + sum(int(text[i : i + 2]) for i in (1, 3))
        assert text.endswith("=")
        assert int(record["answer"]) == value


def test_demonstrations_are_wrong_as_often_as_asked():
    config = Config(mistakes=0.4)
    train, _ = grpo_arithmetic.problems(config)
    taught = grpo_arithmetic.demonstrations(config, train)
    errors = np.array(
        [
            int(shown["answer"]) - int(train[i // 8]["answer"])
            for i, shown in enumerate(taught)
        ]
    )
    assert set(errors.tolist()) == {-2, -1, 0, 1, 2}
    assert abs(np.mean(errors != 0) - 0.4) < 0.02


@pytest.fixture(scope="module")
def problem():
    """A decoder, a reference beside it, and one scored batch."""
    tokenizer = data.byte_tokenizer()
    model = decoder.DecoderConfig(
        vocab_size=tokenizer.vocab_size + 1,
        hidden_size=16,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_size=32,
        max_length=16,
        initializer_range=0.2,
    )
    config = RL(prompts=4, completions=4, microbatches=2, steps=10, warmup=1)
    params = functional.init(model, jax.random.key(0))
    questions = ["1+2=", "3-4=", "9+9=", "0-0="]
    prompts = data.encode_prompts(questions, tokenizer, length=6)
    return model, config, params, prompts, tokenizer


def parts_of(problem, shardings=None):
    model, config, _, _, tokenizer = problem
    return assembly.make(
        config,
        functional.make_apply(model),
        hidden_fn=functional.make_hidden(model),
        max_tokens=4,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        shardings=shardings,
    )


def run_steps(problem, place, shardings=None, steps=2):
    _, _, params, prompts, _ = problem
    parts = parts_of(problem, shardings)
    state = parts.init(params, jax.random.key(3))
    if shardings is not None:
        state = jax.device_put(state, shardings)
    history = []
    for _ in range(steps):
        samples = parts.sample(state, place(prompts))
        tokens = samples.rollout.tokens
        rewards = jnp.sin(jnp.sum(tokens, axis=-1).astype(jnp.float32))
        scored = samples.rewarded(rewards)
        scored = dataclasses.replace(scored, rewards=place(scored.rewards))
        state, values = parts.step(state, scored)
        history.append((tokens, values))
    assert max(parts.sample._cache_size(), parts.step._cache_size()) <= 1
    return state, history


@pytest.mark.slow
def test_whole_step_on_eight_devices_equals_one(problem):
    """Sampling, reference, update: a 4 × 2 mesh, parameters split by their axes."""
    model, config, params, _, _ = problem
    expected, plain = run_steps(problem, lambda x: x)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    param_shardings = sharding.param_shardings(
        params, functional.logical_axes(model), mesh
    )
    shardings = update.state_shardings(
        parts_of(problem).init(params, jax.random.key(3)),
        options.optimiser(config),
        params=param_shardings,
        replicated=sharding.replicated(mesh),
    )
    split = [s.spec for s in jax.tree.leaves(param_shardings) if any(s.spec)]
    assert len(split) >= 7, "most matrices are split"
    state, sharded = run_steps(
        problem, lambda x: sharding.shard_rows(x, mesh), shardings
    )
    for (tokens, values), (other_tokens, other) in zip(plain, sharded, strict=True):
        np.testing.assert_array_equal(tokens, other_tokens)
        chex.assert_trees_all_close(values, other, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(state.params, expected.params, atol=2e-5)
    placed = jax.tree.map(lambda x: x.sharding.spec, state.params)
    assert placed == jax.tree.map(lambda s: s.spec, param_shardings)


@pytest.mark.slow
def test_microbatches_do_not_change_the_step(problem):
    model, config, params, prompts, tokenizer = problem
    whole = dataclasses.replace(config, microbatches=1)
    split, _ = run_steps(problem, lambda x: x, steps=1)
    joined, _ = run_steps(
        (model, whole, params, prompts, tokenizer), lambda x: x, steps=1
    )
    chex.assert_trees_all_close(split.params, joined.params, atol=1e-5)


def test_score_needs_the_exact_tokens_and_the_end():
    tokenizer = data.byte_tokenizer()
    rows = {
        "12": [49, 50, tokenizer.eos_id],
        "12 unended": [49, 50, 50],
        "1": [49, tokenizer.eos_id, tokenizer.pad_id],
        "blank": [32, 49, 50],
    }
    tokens = np.array(list(rows.values()))
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)

    @dataclasses.dataclass
    class Sampled:
        tokens: np.ndarray
        attended: np.ndarray

    scored = grpo_arithmetic.score(Sampled(tokens, mask), ["12", "1"], tokenizer)
    assert scored.tolist() == [1, 0, 1, 0]


def test_frontier_of_the_reference_is_exact():
    """The curves drawn equal enumeration: p of one right completion among many."""
    tokens, _ = exact.enumerate_completions(4, 3, eos_id=3)
    logp = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (len(tokens),)))
    rewards = jnp.zeros_like(logp).at[5].set(1.0)
    best, _ = optimum(rewards, logp, beta=0.3)
    success, kl = exact.binary_optimum(logp[5], beta=0.3)
    np.testing.assert_allclose(success, jnp.exp(best[5]), rtol=1e-5)
    np.testing.assert_allclose(kl, exact.kl(best, logp), rtol=1e-4)
