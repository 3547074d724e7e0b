"""One run on two processes of this machine, against one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alignax.cli import main
from alignax.pipeline import hosts
from tests.train.test_runs import arguments, home  # noqa: F401
from tests.train.test_runs_mesh import logged

pytestmark = pytest.mark.slow

COMMAND = "import sys; from alignax.cli import main; main(sys.argv[1:])"
BROKEN = """
import jax

def here(completions, records):
    if jax.process_index() == 1:
        raise ValueError("no such key")
    return [0.0] * len(completions)
"""


def several(args, *, count=2):
    """The command on processes with two devices each: exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    join = ("--mesh.coordinator", f"localhost:{port}", "--mesh.processes", str(count))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, *args, *join, "--mesh.process", str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], said


def test_two_processes_do_as_one(home, tmp_path):  # noqa: F811
    """A run of two steps, gone on with to its third by two processes, is that of one:
    the log, the samples and the adapters."""
    more = ("--prompts", "4", "--lora.rank", "2")
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    main(arguments(home, "rl", "prompts", alone, *more))
    args = arguments(home, "rl", "prompts", spread, *more)
    mesh = ("--mesh.fsdp", "2", "--mesh.tensor", "2")
    codes, said = several([*args, *mesh])
    assert codes == [0, 0], said
    assert [text.count("done: ") for text in said] == [1, 0]
    expected, found = logged(alone), logged(spread)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=2e-3, abs=1e-4), name
    texts = [(out / "samples.md").read_text() for out in (alone, spread)]
    assert texts[0] == texts[1]
    # One process, one device: a checkpoint of four devices goes on there, at its end.
    main([*args, "--resume"])
    run = json.loads((spread / "run.json").read_text())
    assert run["config"]["mesh"]["fsdp"] == 1


def test_what_one_process_cannot_do_ends_all(home, tmp_path):  # noqa: F811
    (tmp_path / "my.py").write_text(BROKEN)
    args = arguments(home, "rl", "prompts", tmp_path / "run", "--prompts", "4")
    args[args.index("--reward") + 1] = f"{tmp_path / 'my.py'}:here"
    codes, said = several([*args, "--reward-errors", "raise", "--mesh.fsdp", "4"])
    assert codes == [2, 2]
    for text in said:
        assert "error: process 1 of 2 cannot go on: " in text
        assert "no such key" in text


def test_shares_are_all_rows():
    assert hosts.own_share(7) == slice(0, 7)
    assert hosts.divided(len) is len
