"""Doing the trials of a sweep, in processes of their own.

A trial is claimed by a lock that its process holds, too: where the sweep is killed and
a trial lives on, the next sweep leaves it alone until it ends. What is done is read
from the folders, hence any number of sweeps, on any number of machines with one file
system, work on one folder together.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alignax.cli import programs
from alignax.cli.sweeps import folder, halving, proposals, space
from alignax.cli.sweeps.space import Sweep, Target, Trial
from alignax.types import Preempted, RunError

WORDS = 600
"""Characters of what a failed trial said last that are kept."""
PAUSE = 0.2
"""Seconds between two looks at a process."""


class Job(NamedTuple):
    """Trials that one process does, and the step at which to pause them."""

    trials: tuple[Trial, ...]
    until: int | None = None


def statuses(sweep: Sweep, out: Path) -> list[folder.Status]:
    """How far each trial is."""
    return [folder.status(folder.of(out, t.index)) for t in space.trials(sweep)]


def levels(sweep: Sweep, found: Sequence[folder.Status]) -> list[int]:
    """The rung that each point may run to.

    Args:
      sweep: of the file.
      found: the status of each trial.

    Returns:
      for each point a number; that of the rungs is the end. A point's score is the
      mean over its seeds, and a failed seed fails it.
    """
    sign = 1.0 if sweep.goal == "max" else -1.0
    scores = []
    for start in range(0, len(found), sweep.seeds):
        several = found[start : start + sweep.seeds]
        row: list[float | None] = []
        for step in sweep.rungs:
            values = [folder.value_at(s, sweep.metric or "", step) for s in several]
            there = [x for x in values if x is not None]
            whole = len(there) == len(values)
            row.append(sign * sum(there) / len(there) if whole else None)
        scores.append(row)
    return halving.standing(scores, rungs=len(sweep.rungs), factor=sweep.factor)


def todo(sweep: Sweep, out: Path) -> list[Job]:
    """What is still to be done, in order.

    Args:
      sweep: of the file.
      out: the sweep's folder.

    Returns:
      jobs of one trial each.
    """
    trials = space.trials(sweep)
    if not sweep.rungs:
        waiting = [t for t in trials if not folder.ended(folder.of(out, t.index))]
        return [Job((trial,)) for trial in waiting]
    found = statuses(sweep, out)
    allowed = levels(sweep, found)
    jobs = []
    for trial, status in zip(trials, found, strict=True):
        level = allowed[trial.point]
        until = sweep.rungs[level] if level < len(sweep.rungs) else None
        there = until and folder.value_at(status, sweep.metric or "", until)
        if status.state not in ("done", "failed") and there is None:
            jobs.append(Job((trial,), until))
    return jobs


def together(sweep: Sweep, goal: Target, jobs: Sequence[Job]) -> list[Job]:
    """Jobs whose trials differ only in numbers that one program can vmap, as one.

    Args:
      sweep: of the file.
      goal: what is run.
      jobs: of one trial each.

    Returns:
      jobs of up to ``batch`` trials.
    """
    if not goal.vmapped or sweep.rungs or sweep.law not in space.OWN:
        return list(jobs)
    alike: dict[str, list[Trial]] = {}
    for job in jobs:
        (trial,) = job.trials
        apart = {
            name: value
            for name, value in trial.options.items()
            if name not in goal.vmapped or not isinstance(value, int | float)
        }
        alike.setdefault(json.dumps(apart, sort_keys=True), []).append(trial)
    return [
        Job(tuple(group[i : i + sweep.batch]))
        for group in alike.values()
        for i in range(0, len(group), sweep.batch)
    ]


class Worker:
    """What does jobs, and can be told to stop.

    Args:
      sweep: of the file.
      out: the sweep's folder.
    """

    def __init__(self, sweep: Sweep, out: Path):
        self.sweep, self.out = sweep, out
        self.goal = space.target(sweep.run)
        self.stop = threading.Event()
        self.alone: set[int] = set()

    def take(self, jobs: Sequence[Job], *, device: str | None = None) -> bool:
        """Do the first job that nobody is at work on; False where there is none."""
        for job in jobs:
            with contextlib.ExitStack() as stack:
                claims = [
                    stack.enter_context(self._claim(trial)) for trial in job.trials
                ]
                if None in claims or not self._open(job):
                    continue
                self.do(job, [c for c in claims if c], device=device)
                return True
        return False

    def _claim(self, trial: Trial):
        return folder.locked(folder.of(self.out, trial.index) / ".claim")

    def _open(self, job: Job) -> bool:
        # Between the look and the claim another may have ended it.
        places = [folder.of(self.out, trial.index) for trial in job.trials]
        return not any(map(folder.ended, places))

    def do(self, job: Job, claims: Sequence[int], *, device: str | None) -> None:
        """Run a job's process, and write down how its trials ended."""
        places, lists = [], []
        for trial in job.trials:
            options = proposals.settled(self.sweep, self.out, trial)
            place = folder.of(self.out, trial.index)
            folder.keep_options(place, trial.index, space.whole(self.sweep, options))
            resume = ["--resume"] if (place / "metrics.jsonl").exists() else []
            given = space.arguments(self.sweep, self.goal.config, options)
            places.append(place)
            lists.append([*given, f"--out={place}", *resume])
        began = time.monotonic()
        code, words = self._run(job, places[0], lists, claims, device)
        if code is None:
            return
        if code != 0 and len(job.trials) > 1:
            # One of them spoils it for all: each by itself.
            self.alone |= {trial.index for trial in job.trials}
            return
        end = {
            "state": "failed" if code else "done",
            "code": code,
            "seconds": round((time.monotonic() - began) / len(places), 3),
            "words": words if code else "",
        }
        for place in places:
            folder.write(place / "end.json", end)
        if code:
            said = words.strip().splitlines() or [f"exit code {code}"]
            _say(f"trial {job.trials[0].index} failed: {said[-1]}")

    def _run(self, job, place, lists, claims, device) -> tuple[int | None, str]:
        """The exit code, None where the job is to go on later; and the last words."""
        several = len(lists) > 1
        if several:
            command = [sys.executable, "-m", "alignax.cli.sweeps.batched"]
            command += [self.goal.module]
        else:
            command = [*self.goal.command, *lists[0]]
        env = dict(os.environ)
        env.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs.place(self.out)))
        env.setdefault(
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(programs.LEAST)
        )
        if device is not None:
            env["CUDA_VISIBLE_DEVICES"] = device
        path = place / "output.txt"
        with path.open("ab") as said:
            before = path.stat().st_size
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=env,
                pass_fds=claims,
                # Ctrl-C is the sweep's, which then tells its trials to save themselves.
                start_new_session=True,
            )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(lists).encode() if several else b"")
            told = False
            while process.poll() is None:
                if not told and (self.stop.is_set() or self._there(job, place)):
                    process.terminate()
                    told = True
                time.sleep(PAUSE)
        code = process.returncode
        if code and told:
            return None, ""
        if code in (75, 130):
            # Told by somebody else: so are we, or will be.
            self.stop.set()
            return None, ""
        with path.open("rb") as said:
            said.seek(before)
            return code, said.read().decode(errors="replace")[-WORDS:]

    def _there(self, job: Job, place: Path) -> bool:
        if job.until is None:
            return False
        found = folder.status(place)
        return folder.value_at(found, self.sweep.metric or "", job.until) is not None

    def loop(self, device: str | None = None) -> None:
        """Do what there is, until there is nothing or it is told to stop."""
        while not self.stop.is_set():
            jobs = todo(self.sweep, self.out)
            if not jobs:
                return
            alone = [job for job in jobs if job.trials[0].index in self.alone]
            rest = [job for job in jobs if job not in alone]
            jobs = together(self.sweep, self.goal, rest) + alone
            if not self.take(jobs, device=device):
                # Others are at work on all of them, whom a rung waits for.
                self.stop.wait(5 * PAUSE)


def everything(
    sweep: Sweep, out: Path, *, workers: int = 1, devices: Sequence[str] = ()
) -> None:
    """Do all that is to be done.

    Args:
      sweep: of the file.
      out: the sweep's folder.
      workers: how many processes at once.
      devices: for each worker what CUDA_VISIBLE_DEVICES is; there are as many.

    Raises:
      Preempted: SIGTERM or an interrupt came; trials under way have saved themselves.
    """
    worker = Worker(sweep, out)
    errors: list[BaseException] = []

    def run(device):
        try:
            worker.loop(device)
        except BaseException as error:
            errors.append(error)
            worker.stop.set()

    names = list(devices) or [None] * workers
    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    with _told(worker):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    _stopped(worker)


def one(sweep: Sweep, out: Path, index: int) -> None:
    """Do one trial, as far as it may go now.

    Args:
      sweep: of the file.
      out: the sweep's folder.
      index: of the trial.

    Raises:
      Preempted: SIGTERM or an interrupt came.
      RunError: the trial failed.
    """
    worker = Worker(sweep, out)
    with _told(worker):
        while not worker.stop.is_set():
            jobs = [job for job in todo(sweep, out) if job.trials[0].index == index]
            if not jobs:
                break
            # Every process of a run on several hosts is one of these, and the run
            # itself knows which of them writes.
            if "coordinator" in space.whole(sweep, jobs[0].trials[0].options).get(
                "mesh", {}
            ):
                worker.do(jobs[0], [], device=None)
            elif not worker.take(jobs):
                _say(f"trial {index}: another process is at work on it")
                return
    _stopped(worker)
    found = folder.status(folder.of(out, index))
    if found.state == "failed":
        words = found.end["words"].strip().removeprefix("error: ")
        raise RunError(f"trial {index} failed: {words}")
    if found.state == "begun":
        _say(f"trial {index} waits at its rung; run it again once the others are there")


def again(sweep: Sweep, out: Path) -> None:
    """Let trials that failed be tried again, from where they were."""
    for trial in space.trials(sweep):
        place = folder.of(out, trial.index)
        if folder.status(place).state == "failed":
            (place / "end.json").unlink()


@contextlib.contextmanager
def _told(worker: Worker) -> Iterator[None]:
    """SIGTERM and an interrupt tell the worker to stop, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda *_: worker.stop.set()) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(worker: Worker) -> None:
    if worker.stop.is_set():
        raise Preempted(
            "the sweep was told to stop and did; the same command goes on with it"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
