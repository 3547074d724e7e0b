"""Many runs of one command: a grid, a list, random draws or Optuna's samplers.

  alignax sweep sweep.yaml                  all trials, and the table and the pictures
  alignax sweep sweep.yaml --index 7        one of them, as a cluster's job does
  alignax sweep sweep.yaml --report         the table and the pictures of what there is

The same command goes on with a sweep that was stopped or killed. docs/sweeps.md says
what the file holds.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from alignax.cli.sweeps import executors, folder, proposals, report, space, work
from alignax.spelling import value_of
from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Run the trials of a sweep."""

    file: tyro.conf.Positional[Path]
    """The sweep's YAML file."""
    out: Path | None = None
    """The sweep's folder; by default the file's name in runs."""
    index: int | None = None
    """Run this trial alone."""
    workers: int = 1
    """Trials at once, each a process."""
    devices: tuple[str, ...] = ()
    """A worker for each, with this as its CUDA_VISIBLE_DEVICES."""
    retry: bool = False
    """Try trials again that failed."""
    list: bool = False
    """List the trials and how far they are, and end."""
    report: bool = False
    """Write the table and the pictures of what there is, and end."""
    executor: Literal["processes", "submitit", "ray"] = "processes"
    """Who runs the trials; the last two are packages of their own."""
    cluster: str | None = None
    """Of submitit: slurm or local; by default slurm where it is."""
    parameters: tuple[str, ...] = ()
    """Of the executor, such as slurm_partition=gpu timeout_min=600, or num_gpus=1."""

    def __post_init__(self):
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")
        bad = [text for text in self.parameters if not all(text.partition("="))]
        if bad:
            raise InputError(
                f"parameters must be pairs such as num_gpus=1, got {bad[0]!r}"
            )


def main(config: Config) -> None:
    """Run what is asked for, and say what came of it.

    Args:
      config: the options.

    Raises:
      InputError: the file is bad, or there is no such trial.
      RunError: the one trial that was asked for failed.
      Preempted: the sweep was told to stop.
    """
    sweep = space.read(config.file)
    out = config.out or Path("runs") / config.file.stem
    trials = space.trials(sweep)
    if config.list:
        for trial in trials:
            state = folder.status(folder.of(out, trial.index)).state
            options = proposals.known(sweep, out, trial)
            said = " ".join(f"{name}={value}" for name, value in options.items())
            print(trial.index, state, said)
        return
    if config.index is not None and not 0 <= config.index < len(trials):
        raise InputError(
            f"index must be from 0 to {len(trials) - 1}, got {config.index}"
        )
    if not config.report:
        if config.retry:
            work.again(sweep, out)
        if config.index is not None:
            work.one(sweep, out, config.index)
            return
        _run(config, sweep, out)
    table, files = report.write(sweep, out)
    print(report.shown(sweep, table))
    print(f"{len(table)} trials: {report.states(table)}")
    print(f"done: {', '.join(map(str, files))}")


def _run(config: Config, sweep: space.Sweep, out: Path) -> None:
    given = [text.partition("=") for text in config.parameters]
    parameters = {name: value_of(value) for name, _, value in given}
    # A cluster's job need not begin where this was typed.
    whole = out.resolve()
    if config.executor == "submitit":
        executors.by_submitit(
            sweep, whole, cluster=config.cluster, parameters=parameters
        )
    elif config.executor == "ray":
        executors.by_ray(sweep, whole, parameters=parameters)
    else:
        work.everything(sweep, out, workers=config.workers, devices=config.devices)
    print(f"{out}: all that can be done is", file=sys.stderr)
