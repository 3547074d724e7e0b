"""The host's loop with a policy of a few numbers: what is skipped, what is damaged."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import cli, controllers
from alignax.pipeline import checkpoint, metrics, update
from alignax.train import loop
from alignax.types import InputError, RunError

PHASES = [
    loop.Phase(name="first", steps=12),
    loop.Phase(name="second", steps=6),
]
TX = update.optimiser(learning_rate=0.1, steps=20)


class Numbers:
    """A grain iterator's interface: 0, 1, 2, …"""

    def __init__(self):
        self.next = 0

    def __next__(self):
        self.next += 1
        return self.next - 1

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def loss_fn(params, rewards):
    """REINFORCE over one token of four."""
    centred = rewards - jnp.mean(rewards)
    logp = jax.nn.log_softmax(params["logits"])
    return -jnp.sum(centred * logp), jnp.float32(4), {}


UPDATE = jax.jit(update.make_update(loss_fn, TX), donate_argnums=0)


def fresh():
    params = {"logits": jnp.zeros(4)}
    return update.init_state(params, TX, controllers.fixed(beta=0.0), jax.random.key(0))


def run(
    out,
    *,
    bad=lambda number: None,
    resume=False,
    stop=None,
    phases=PHASES,
    start=None,
    one_update=UPDATE,
    **more,
):
    """Both phases; the reward of a batch has ``bad(number)`` in it where not None."""

    def step(state, number):
        if number == stop:
            raise KeyboardInterrupt
        rewards = np.sin(number + np.arange(4.0))
        if bad(number) is not None:
            rewards[2] = bad(number)
        state, values = one_update(state, jnp.array(rewards, jnp.float32))
        found = {"bad_row/reward": 2.0 if bad(number) else -1.0, "bad_record": 40.0}
        return state, values | {"reward": jnp.mean(jnp.float32(rewards))} | found

    with loop.open_log(out, phases, resume=resume) as writer:
        for phase, number in zip(phases, loop.starts(phases), strict=True):
            result = loop.train(
                fresh() if start is None else start,
                Numbers(),
                step,
                phase=phase,
                number=number,
                out=out,
                config={},
                writer=writer,
                save_every=4,
                **more,
            )
    return result


def restored(out, name="first"):
    with checkpoint.open_run(out / name) as checkpoints:
        return checkpoint.restore(checkpoints, fresh(), config={})[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_reward_costs_one_update(tmp_path, capsys, value):
    state = run(tmp_path, bad=lambda n: value if n == 7 else None, phases=PHASES[:1])
    assert np.isfinite(state.params["logits"]).all()
    assert np.ptp(state.params["logits"]) > 0.1
    assert (state.counters.skipped, state.counters.skipped_in_row) == (1, 0)
    rows = metrics.read(tmp_path)
    skipped = metrics.column(rows, "first/skipped")[1]
    np.testing.assert_array_equal(skipped, np.arange(12) == 7)
    said = "step 8 of first left the parameters as they were, not finite: grad_norm nan"
    err = capsys.readouterr().err
    assert said in err
    assert "; first the reward in row 2, which is of record 40\n" in err
    assert not any("bad_row" in name for row in rows for name in row)
    assert restored(tmp_path).counters.skipped == 1


def test_nothing_but_bad_rewards_stops_the_run(tmp_path, capsys):
    """From the third on: what is saved is from before them."""
    with pytest.raises(
        RunError, match=r"first stopped at step 7: 5 updates .* reward n"
    ):
        run(tmp_path, bad=lambda n: np.nan if n >= 2 else None)
    assert capsys.readouterr().err.count("left the parameters") == 5
    # The step before it was known is logged too.
    assert len(metrics.read(tmp_path)) == 8
    saved = restored(tmp_path)
    assert saved.step == 4
    assert saved.counters.skipped_in_row == 2
    two = fresh()
    for number in range(2):
        rewards = jnp.array(np.sin(number + np.arange(4.0)), jnp.float32)
        two, _ = UPDATE(two, rewards)
    np.testing.assert_array_equal(saved.params["logits"], two.params["logits"])
    # It goes on in the same row, and ends once the rewards are mended.
    with pytest.raises(RunError, match="stopped at step 7: 5 updates"):
        run(tmp_path, bad=lambda n: np.nan, resume=True)
    assert np.isfinite(run(tmp_path, resume=True).params["logits"]).all()


def test_bad_rewards_at_the_end_are_said(tmp_path, capsys):
    bad = {"bad": lambda n: np.nan if n >= 10 else None, "phases": PHASES[:1]}
    with pytest.raises(RunError, match="stopped at step 12: 2 updates"):
        run(tmp_path / "strict", **bad, stop_after_skips=2)
    assert np.isfinite(restored(tmp_path / "strict").params["logits"]).all()
    run(tmp_path, **bad, stop_after_skips=3)
    assert "step 12 of first left" in capsys.readouterr().err


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """Whatever made them so: here an optimiser, of finite gradients."""

    def broken(state, rewards):
        state, values = UPDATE(state, rewards)
        logits = jnp.where(state.step >= 6, jnp.inf, 1.0) * state.params["logits"]
        return dataclasses.replace(state, params={"logits": logits}), values

    with pytest.raises(RunError, match=r"step 8, before its .*params\.logits and"):
        run(tmp_path / "a", one_update=broken)
    assert restored(tmp_path / "a").step == 4
    given = dataclasses.replace(fresh(), params={"logits": jnp.full(4, jnp.nan)})
    with pytest.raises(RunError, match=r"step 0, .* model that was given is damaged"):
        run(tmp_path / "b", start=given)


def test_the_command_line_prints_why_a_run_stopped(capsys):
    def main(config):
        raise RunError("it stopped")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, loop.Phase, args=["--name", "a", "--steps", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: it stopped\n"


def damage(out, name, step):
    (out / name / str(step) / "state/_METADATA").write_text("{")


def test_resumes_from_the_newest_whole_checkpoint(tmp_path, capsys):
    """Log and parameters are those of a run that nothing has happened to."""
    whole = run(tmp_path / "whole")
    expected = (tmp_path / "whole/metrics.jsonl").read_text()
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop=10)
    assert len(metrics.read(out)) == 10
    damage(out, "first", 8)
    assert loop.resume_step(out, PHASES) == 4
    assert "step 8: state/_METADATA has 1 bytes of" in capsys.readouterr().err
    np.testing.assert_array_equal(
        run(out, resume=True).params["logits"], whole.params["logits"]
    )
    assert (out / "metrics.jsonl").read_text() == expected


def test_what_was_computed_after_a_damaged_phase_is_computed_again(tmp_path, capsys):
    whole = run(tmp_path)
    expected = (tmp_path / "metrics.jsonl").read_text()
    damage(tmp_path, "first", 12)
    np.testing.assert_array_equal(
        run(tmp_path, resume=True).params["logits"], whole.params["logits"]
    )
    assert (tmp_path / "metrics.jsonl").read_text() == expected
    assert "second is computed again, as first before it is" in capsys.readouterr().err
    assert (tmp_path / "second.damaged").is_dir()


def test_without_a_whole_checkpoint_a_run_does_not_start_anew(tmp_path):
    run(tmp_path)
    for step in (8, 12):
        damage(tmp_path, "first", step)
    with pytest.raises(InputError, match="put back a copy, or delete the folder"):
        run(tmp_path, resume=True)


def test_a_second_process_is_refused(tmp_path):
    """While a run is open; not once it has ended, or been killed."""
    other = """
import pathlib, sys, time
from alignax.train import loop
phases = [loop.Phase(name="first", steps=12)]
with loop.open_log(pathlib.Path(sys.argv[1]), phases, resume=False):
    print("open", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", other, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for resume in (False, True):
            with pytest.raises(InputError, match="out: another process is at work in"):
                run(tmp_path, resume=resume)
        process.kill()
    run(tmp_path, resume=True, phases=PHASES[:1])
    run(tmp_path, resume=True, phases=PHASES[:1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            b"",
            "lacks the rows of 1 steps before the checkpoint, the first is step 3",
        ),
        (b"\xff\xfe\n", "1 lines of .* are no rows of numbers .* the first is line 3"),
        (b'{"step": "3"}\n', "no rows of numbers"),
        (b'{"step": 3, "loss": "1"}\n', "no rows of numbers"),
        (b'{"step": 3, "loss": null, "nonfinite": 3}\n', "no rows of numbers"),
        (b"[3]\n", "no rows of numbers"),
    ],
)
def test_a_damaged_log_is_said(tmp_path, capsys, line, said):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=10, phases=PHASES[:1])
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(True)
    file.write_bytes(b"".join([*lines[:2], line, *lines[3:], b'{"step": 11, "lo']))
    if line:
        with pytest.raises(InputError, match="line 3 is not an object with a step"):
            metrics.read(tmp_path)
    run(tmp_path, resume=True, phases=PHASES[:1])
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert "lacks the rows of 1 steps" in error
    steps = [row["step"] for row in metrics.read(tmp_path)]
    assert steps == [1, 2, *range(4, 13)]
