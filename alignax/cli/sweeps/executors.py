"""A sweep's trials as jobs of a cluster: submitit's and Ray's, each an extra."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignax.cli.sweeps import folder, space, work
from alignax.cli.sweeps.space import Sweep
from alignax.types import InputError, Preempted, RunError


def trial(sweep: Sweep, out: Path, index: int) -> str:
    """One trial as a job: how it ended, in a word, where it did not say more itself."""
    try:
        work.one(sweep, out, index)
    except RunError as error:
        return str(error)
    except Preempted:
        return "told to stop"
    return folder.status(folder.of(out, index)).state


def _open(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"executor: {name} is not installed; `pip install {name}` brings it, and "
            "`alignax sweep FILE --index i` needs none"
        ) from None


def _waiting(sweep: Sweep, out: Path) -> list[int]:
    return [job.trials[0].index for job in work.todo(sweep, out)]


def by_submitit(
    sweep: Sweep, out: Path, *, cluster: str | None, parameters: Mapping[str, Any]
) -> None:
    """All that waits as an array of submitit's jobs, and wait for them.

    Args:
      sweep: of the file.
      out: the sweep's folder, which all machines see.
      cluster: slurm, local, or None for what there is.
      parameters: of submitit's ``update_parameters``, such as ``slurm_partition``.
    """
    submitit = _open("submitit")
    executor = submitit.AutoExecutor(folder=str(out / "jobs"), cluster=cluster)
    executor.update_parameters(**parameters)

    def round_of(indices: Sequence[int]) -> None:
        with executor.batch():
            jobs = [executor.submit(trial, sweep, out, index) for index in indices]
        print(f"{len(jobs)} jobs, the first is {jobs[0].job_id}", file=sys.stderr)
        for job in jobs:
            job.wait()

    _rounds(sweep, out, round_of)


def by_ray(sweep: Sweep, out: Path, *, parameters: Mapping[str, Any]) -> None:
    """All that waits as Ray's tasks, and wait for them.

    Args:
      sweep: of the file.
      out: the sweep's folder, which all machines see.
      parameters: of ``ray.remote``, such as ``num_gpus``.
    """
    ray = _open("ray")
    started = not ray.is_initialized()
    if started:
        ray.init()
    remote = ray.remote(**{"num_cpus": 1} | dict(parameters))(trial)

    def round_of(indices: Sequence[int]) -> None:
        ray.get([remote.remote(sweep, out, index) for index in indices])

    try:
        _rounds(sweep, out, round_of)
    finally:
        if started:
            ray.shutdown()


def _rounds(sweep: Sweep, out: Path, round_of: Any) -> None:
    """One round, and with rungs one more for each."""
    space.target(sweep.run)
    for _ in range(len(sweep.rungs) + 1):
        indices = _waiting(sweep, out)
        if not indices:
            return
        round_of(indices)
