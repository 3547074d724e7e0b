"""What there is of a trial, from its folder alone.

``trials/0007`` is the run's own folder. Beside what the run writes it has
``trial.json`` (its options), ``output.txt`` (what it said), ``end.json`` (done or
failed, once it is) and ``.claim``, which whoever is at work on it has locked.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignax.pipeline import metrics
from alignax.types import InputError

State = Literal["waiting", "begun", "done", "failed"]


class Status(NamedTuple):
    """How far a trial is."""

    state: State
    end: Mapping[str, Any]
    """``code``, ``seconds`` and ``words`` of one that ended."""
    rows: list[metrics.Row]
    """Of its log."""


def of(out: Path, index: int) -> Path:
    """The folder of a trial."""
    return out / "trials" / f"{index:04d}"


def status(place: Path) -> Status:
    """How far a trial is.

    Args:
      place: its folder.

    Returns:
      the status; a log that cannot be read has no rows.
    """
    end = _json(place / "end.json")
    rows: list[metrics.Row] = []
    if (place / metrics.FILE).is_file():
        with contextlib.suppress(InputError):
            rows = metrics.read(place)
    state: State = "begun" if rows else "waiting"
    return Status(end["state"] if end else state, end, rows)


def ended(place: Path) -> bool:
    """Whether a trial is done or failed."""
    return (place / "end.json").is_file()


def value_at(status: Status, metric: str, step: int | None = None) -> float | None:
    """A trial's last value of a metric, or its last up to a step of the log.

    Args:
      status: of the trial.
      metric: its name.
      step: None for the newest there is.

    Returns:
      the value; None where the log may still get to it, NaN where it cannot.
    """
    known = [r for r in status.rows if metric in r]
    if step is None:
        return float(known[-1][metric]) if known else math.nan
    if status.state in ("done", "failed"):
        beyond = True
    else:
        # A measurement stands in a row of its own, behind the step's.
        beyond = any(
            row["step"] > step or (row["step"] == step and metric in row)
            for row in status.rows
        )
    if not beyond:
        return None
    if status.state == "failed":
        return math.nan
    before = [r for r in known if r["step"] <= step]
    return float(before[-1][metric]) if before else math.nan


def keep_options(place: Path, index: int, options: Mapping[str, Any]) -> None:
    """Write a trial's options down, or see that they are those written before.

    Raises:
      InputError: the folder is of a trial with others.
    """
    path = place / "trial.json"
    before = _json(path)
    now = json.loads(json.dumps({"index": index, "options": options}))
    if before and before != now:
        raise InputError(
            f"out: trial {index} in {place} has other options than the sweep's file "
            "says now; give another folder, or the file as it was"
        )
    if not before:
        write(path, now)


def write(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """A lock of the operating system's, which goes with whoever holds it.

    Args:
      path: of the lock's file.
      wait: until it is free.

    Yields:
      its descriptor, for a child to hold it as well; None where another has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()
