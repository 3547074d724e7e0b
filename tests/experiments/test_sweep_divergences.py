"""β, divergence and seed: a row of the vmapped program is the run by itself."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from alignax.cli.sweeps import space
from alignax.pipeline import data, metrics
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import grpo_arithmetic, sweep_divergences


def small(folder, out, **changes):
    fields = {
        "steps": 6,
        "prompts": 8,
        "completions": 4,
        "evaluate_every": 3,
        "held_out": 4,
        "hidden_size": 16,
        "learning_rate": 5e-2,
        "sft": SFT(steps=150, batch_size=64, warmup=1, learning_rate=2e-2),
    }
    given = {"out": folder / out, "reference": folder / "reference"} | fields
    return sweep_divergences.Config(**given | changes)


def test_the_file_is_sixty_four_trials_of_four_divergences():
    sweep = space.read(Path(sweep_divergences.__file__).with_suffix(".yaml"))
    assert len(space.trials(sweep)) == 64
    assert set(space.target(sweep.run).vmapped) < set(
        field.name for field in dataclasses.fields(sweep_divergences.Config)
    )


def test_right_is_the_demos_score():
    tokenizer = data.byte_tokenizer()
    texts = ["12", "-3", "12", "1"]
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    tokens = np.zeros((4, 4), int)
    attended = np.zeros((4, 4), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], attended[i, : len(row)] = row, True
    attended[2, 2] = False  # cut before its end
    answers = np.full((4, 4), -1)
    answers[:, :3] = rows[0]
    found = sweep_divergences.right(
        jnp.array(tokens), jnp.array(attended), jnp.array(answers)
    )
    assert found.tolist() == [1, 0, 0, 0]
    rollout: Any = SimpleNamespace(tokens=tokens, attended=attended)
    demo = grpo_arithmetic.score(rollout, ["12"] * 4, tokenizer)
    assert found.tolist() == demo.tolist()


@pytest.mark.stress
def test_a_row_of_the_program_is_the_run_by_itself(tmp_path):
    several = [
        small(tmp_path, f"{beta}-{seed}", beta=beta, seed=seed)
        for beta, seed in ((0.1, 0), (5.0, 0), (0.1, 1))
    ]
    sweep_divergences.batch(several)
    alone = small(tmp_path, "alone", beta=5.0)
    sweep_divergences.main(alone)
    rows = [metrics.read(config.out) for config in (*several, alone)]
    assert [row["step"] for row in rows[0]] == [0, 3, 6]
    assert rows[0][0]["eval/kl"] == pytest.approx(0, abs=1e-6)
    for name in ("eval/reward", "eval/kl"):
        first, strong, other, by_itself = (
            np.array([row[name] for row in run]) for run in rows
        )
        np.testing.assert_allclose(strong, by_itself, rtol=1e-3, atol=1e-5)
        # Strength and seed each make another run.
        assert not np.allclose(first, other, rtol=1e-3)
        assert not np.allclose(first, strong, rtol=1e-3)
    with pytest.raises(InputError, match="differ in beta, seed alone"):
        sweep_divergences.batch([alone, small(tmp_path, "x", steps=3)])
    with pytest.raises(InputError, match="holds a run already"):
        sweep_divergences.batch([alone])
