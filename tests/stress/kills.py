"""Runs killed by −9 at random moments, and gone on with: what was lost.

    python -m tests.stress.kills --moments 50 --processes 1 2 --report docs/kills.md

A run of `alignax train rl` on a tiny model is killed once, at a moment drawn uniformly
over the time that an unbroken one takes, starting and saving included; the same
command with ``--resume`` goes on (or, where no checkpoint was there yet, begins again).
Then its log, its samples and its model must be those of the unbroken run.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from alignax.models import decoder, functional, hf
from alignax.pipeline import metrics
from alignax.train.runs.watch import OF_THE_MACHINE
from tests.pipeline.test_data_tokenizers import TEMPLATE, build_folder
from tests.train.test_runs import MODEL, RECORDS, REWARD

COMMAND = "import sys; from alignax.cli import main; main(sys.argv[1:])"
ROOT = Path(__file__).parents[2]
STEPS = 8


@dataclasses.dataclass(frozen=True)
class Trial:
    """A kill, and what was found."""

    processes: int
    second: float
    """After the start."""
    phase: str
    """What the run's folder had come to."""
    saved: int | None
    """Steps of the newest checkpoint then."""
    logged: int
    """Steps that were in the log."""
    equal: bool
    """Whether all is as of the unbroken run."""
    said: str = ""
    """What went wrong, where it did."""


def home_of(folder: Path) -> Path:
    """A random model, data and a reward."""
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    config = decoder.DecoderConfig(**MODEL, qk_norm=True)
    made = build_folder(folder / "model", chat_template=TEMPLATE, **special)
    hf.save(made, config, functional.init(config, jax.random.key(0)))
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS["prompts"])
    (folder / "prompts.jsonl").write_text(lines)
    (folder / "my.py").write_text(REWARD)
    return folder


def started(home: Path, out: Path, processes: int, *more: str):
    """The command, on so many processes."""
    args = [
        *("train", "rl", "--model", str(home / "model")),
        *("--data", str(home / "prompts.jsonl"), "--out", str(out)),
        *("--reward", f"{home / 'my.py'}:vowels", "--learning-rate", "1e-3"),
        *("--prompts", "4", "--completions", "2", "--max-tokens", "6"),
        *("--microbatches", "1", "--steps", str(STEPS), "--held-out", "2"),
        *("--save-every", "1", "--evaluate-every", "4", *more),
    ]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Programs are found where the unbroken run left them.
        "JAX_COMPILATION_CACHE_DIR": str(home / f"compiled{processes}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    joins: list[list[str]] = [[]]
    if processes > 1:
        env["JAX_NUM_CPU_DEVICES"] = "1"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        joins = [
            [
                *("--mesh.coordinator", f"localhost:{port}"),
                *("--mesh.fsdp", str(processes)),
                *("--mesh.processes", str(processes), "--mesh.process", str(i)),
            ]
            for i in range(processes)
        ]
    return [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, *args, *join],
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for join in joins
    ]


def ended(running: Sequence[subprocess.Popen]) -> tuple[list[int], str]:
    """Exit codes, and the last that was said on standard error."""
    said = [process.communicate()[1] for process in running]
    return [process.returncode for process in running], said[0][-400:]


def found(out: Path) -> dict[str, Any]:
    """What a run leaves, less what is the machine's."""
    rows = [
        {k: v for k, v in row.items() if k.split("/")[-1] not in OF_THE_MACHINE}
        for row in metrics.read(out)
    ]
    files = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted((out / "model").rglob("*"))
        if path.is_file()
    }
    return {"rows": rows, "samples": (out / "samples.md").read_text(), "model": files}


def state_of(out: Path) -> tuple[str, int | None, int]:
    """What had been come to: the newest whole checkpoint, and the steps logged."""
    saves = [p for p in (out / "rl").glob("*") if p.is_dir()] if out.exists() else []
    whole = [int(p.name) for p in saves if p.name.isdigit()]
    half = [p for p in saves if not p.name.isdigit()]
    logged = 0
    if (out / "metrics.jsonl").exists():
        # The last line may be half a line.
        text = (out / "metrics.jsonl").read_text(errors="replace")
        logged = sum("rl/reward" in line for line in text.splitlines())
    phase = "before the first row"
    if half:
        phase = "while saving"
    elif (out / "samples.md").exists():
        phase = "at its end"
    elif logged:
        phase = "in its steps"
    return phase, max(whole, default=None), logged


def trial(home: Path, out: Path, processes: int, second: float, like: Any) -> Trial:
    """One kill of all processes at once, and the run gone on with."""
    running = started(home, out, processes)
    time.sleep(second)
    for process in running:
        process.send_signal(signal.SIGKILL)
    codes, _ = ended(running)
    phase, saved, logged = state_of(out)
    if codes == [0] * processes:
        phase = "after its end"
    resume = ["--resume"] if (out / "metrics.jsonl").exists() else []
    codes, said = ended(started(home, out, processes, *resume))
    now: Any = None
    if codes == [0] * processes:
        said, now = "", found(out)
        for name in ("rows", "samples", "model"):
            if now[name] != like[name]:
                said += f"{name} differ; "
    shutil.rmtree(out)
    return Trial(processes, second, phase, saved, logged, now == like, said)


def report(trials: Sequence[Trial], lengths: dict[int, float]) -> str:
    """A page of what was lost."""
    lines = []
    for processes, length in lengths.items():
        own = [x for x in trials if x.processes == processes]
        for phase in sorted({x.phase for x in own}):
            some = [x for x in own if x.phase == phase]
            lost = [x.logged - (x.saved or 0) for x in some]
            lines.append(
                f"| {processes} | {length:.0f} s | {phase} | {len(some)} | "
                f"{sum(x.equal for x in some)} | {max(lost)} |"
            )
    bad = [f"- {x}" for x in trials if not x.equal]
    return "\n".join(
        [
            "| processes | unbroken run | killed | times | equal to the unbroken run | "
            "steps done again, at most |",
            "| --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
            *(bad or ["Nothing differed."]),
        ]
    )


def main(moments: int, counts: Sequence[int], seed: int = 0) -> str:
    """Kill runs, and say what was found.

    Args:
      moments: kills of each number of processes.
      counts: numbers of processes.
      seed: of the moments.

    Returns:
      the table.
    """
    rng, trials, lengths = random.Random(seed), [], {}
    with tempfile.TemporaryDirectory() as folder:
        home = home_of(Path(folder))
        for processes in counts:
            for name in ("first", "unbroken"):
                # The second time programs are there, as for those to be killed.
                began = time.monotonic()
                codes, said = ended(
                    started(home, home / f"{name}{processes}", processes)
                )
                assert codes == [0] * processes, said
                lengths[processes] = time.monotonic() - began
            like = found(home / f"unbroken{processes}")
            for number in range(moments):
                second = rng.uniform(0, lengths[processes])
                out = home / f"trial{processes}"
                trials.append(trial(home, out, processes, second, like))
                print(number + 1, trials[-1], flush=True)
    return report(trials, lengths)


TEXT = """# Killed, and gone on with

{text}

Made by `python -m tests.stress.kills {how}` ({steps} steps, a checkpoint after each):
every run is killed once by −9, all processes at a moment drawn uniformly over the time
of an unbroken run, and the same command with `--resume` goes on; one without a
checkpoint begins again. Equal is the log but for times, the samples and the model's
files, byte for byte.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    text = main(given.moments, given.processes)
    print(text)
    if given.report:
        counts = " ".join(map(str, given.processes))
        how = f"--moments {given.moments} --processes {counts}"
        given.report.write_text(TEXT.format(text=text, how=how, steps=STEPS))
