"""Numbers of a run: written as they come, shown as it goes, read afterwards.

``metrics.jsonl`` holds one strict JSON object a line: ``step`` and the numbers.
A number that is not finite is ``null``, and ``nonfinite`` names it:
``{"step": 3, "kl": null, "nonfinite": {"kl": "inf"}}``.
"""

import collections
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import ArrayLike

from alignax.types import InputError

FILE = "metrics.jsonl"
RESERVED = ("step", "nonfinite")

Row = dict[str, int | float]
"""``step`` and the numbers logged with it."""


class Writer:
    """Appends to ``metrics.jsonl`` and to TensorBoard's event files.

    A context manager. Arrays stay on the device until they are due: with
    ``delay=1`` the numbers of a step are fetched while the next one computes,
    so that the host never waits. ``flush`` before a checkpoint is saved, and the
    lines of a resumed run are those of an unbroken one. Of several processes
    only the first writes or fetches.

    Args:
      folder: made where there is none; event files go to ``tensorboard`` in it.
      resume_step: the step restored; later lines of the file are dropped. None
        starts the file anew.
      tensorboard: write event files too.
      delay: how many calls of ``log`` stay in flight, not negative.

    Raises:
      InputError: ``delay`` is negative.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
        delay: int = 1,
    ):
        if delay < 0:
            raise InputError(f"delay must not be negative, got {delay}")
        self._delay = delay
        self._pending: collections.deque[tuple[int, dict[str, Any]]]
        self._pending = collections.deque()
        self._row: Row = {}
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(path, -1 if resume_step is None else resume_step)
        # Line by line, so that a killed run loses none that was written.
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if tensorboard:
            # Protobuf is slow to import and not everyone's need.
            from tensorboardX import SummaryWriter

            first = 0 if resume_step is None else resume_step + 1
            self._events = SummaryWriter(
                str(path.parent / "tensorboard"),
                purge_step=first,
                flush_secs=10,
                # The name has the second; a quick restart must not overwrite.
                filename_suffix=f".from{first}",
            )

    def log(self, step: int, metrics: Mapping[str, ArrayLike]) -> Row:
        """Log the numbers of a step, to be written when they are due.

        Args:
          step: steps done so far.
          metrics: scalars, on the device or not, by name.

        Returns:
          the last row written, empty before the first: for ``progress``.

        Raises:
          InputError: a metric is not a scalar or has a reserved name.
        """
        if self._file is None:
            return self._row
        for name, value in metrics.items():
            if name in RESERVED:
                raise InputError(
                    f"metrics must not be named {' or '.join(RESERVED)}, got {name}; "
                    "give it another name"
                )
            if np.shape(value) != ():
                raise InputError(
                    f"metrics must be scalars, got {name} of shape {np.shape(value)}; "
                    "reduce it first"
                )
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._pending.append((step, dict(metrics)))
        self._write(self._delay)
        return self._row

    def flush(self) -> Row:
        """Write all that is pending; returns the last row written."""
        self._write(0)
        return self._row

    def close(self) -> None:
        """Write all that is pending and close the files."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()
            if self._events is not None:
                self._events.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, leave: int) -> None:
        while len(self._pending) > leave:
            step, metrics = self._pending.popleft()
            numbers = {
                name: _number(value) for name, value in jax.device_get(metrics).items()
            }
            self._row = {"step": step, **numbers}
            assert self._file is not None
            self._file.write(_line(self._row) + "\n")
            if self._events is not None:
                for name, value in numbers.items():
                    if math.isfinite(value):
                        self._events.add_scalar(name, value, step)


def read(path: str | Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``, what is not finite restored.

    Args:
      path: the file, or the folder it is in.

    Returns:
      a dict for each line. A last line that a killed run left incomplete does
      not count.

    Raises:
      InputError: there is no such file, or a line is not one of ``Writer``'s.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"path must be a {FILE} or a folder that holds one, got {path}, which "
            "does not exist"
        )
    *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            raise InputError(
                f"path must be a file that Writer wrote, got {path}, whose line "
                f"{number} is not an object with a step and numbers: {line[:80]!r}"
            )
        rows.append(row)
    return rows


def column(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """One metric over a run: ``(steps, values)`` of the rows that have it.

    Args:
      rows: from ``read``.
      name: of the metric.

    Returns:
      two arrays ``[n]``.

    Raises:
      InputError: no row has it.

    Example:
      >>> print(column([{"step": 1, "kl": 0.5}, {"step": 2}], "kl"))
      (array([1]), array([0.5]))
    """
    having = [row for row in rows if name in row]
    if not having:
        known = sorted({key for row in rows for key in row} - {"step"})
        raise InputError(f"name must be one of the metrics {known}, got {name!r}")
    return (
        np.array([row["step"] for row in having]),
        np.array([row[name] for row in having]),
    )


def mean_and_interval(
    values: ArrayLike, *, clusters: ArrayLike | None = None
) -> tuple[float, float]:
    """A mean and the half-width of its normal 95 % confidence interval.

    ``m = Σ x / n``, ``h = 1.96 · √(C/(C−1) · Σ_c (Σ_{i∈c} (x_i − m))²) / n`` over C
    clusters; without clusters, C = n and ``h = 1.96 · s / √n``.

    Args:
      values: any shape, ``n`` numbers.
      clusters: the same shape; values with the same number are dependent, such
        as the completions of one prompt.

    Returns:
      ``(mean, half_width)``; the half-width of a single cluster is NaN.

    Raises:
      InputError: there are no values, or ``clusters`` has another shape.

    Reference:
      Miller, "Adding Error Bars to Evals", arXiv 2411.00640, §2.2.

    Example:
      >>> solved = np.array([0.0, 1.0, 1.0, 0.0])
      >>> print("%.2f ± %.2f" % mean_and_interval(solved))
      0.50 ± 0.57
    """
    x = np.asarray(values, np.float64)
    ids = np.arange(x.size).reshape(x.shape) if clusters is None else clusters
    if x.size == 0:
        raise InputError("values must hold at least one number, got none")
    if np.shape(ids) != x.shape:
        raise InputError(
            f"clusters must have the shape of values, {x.shape}, got {np.shape(ids)}"
        )
    mean = float(x.mean())
    _, index = np.unique(np.ravel(ids), return_inverse=True)
    sums = np.bincount(index, weights=(x - mean).ravel())
    if sums.size == 1:
        return mean, math.nan
    variance = np.sum(sums**2) * sums.size / (sums.size - 1)
    return mean, float(1.96 * np.sqrt(variance) / x.size)


@contextlib.contextmanager
def progress(
    total: int,
    *,
    initial: int = 0,
    description: str = "",
    names: Sequence[str] = ("reward", "kl", "entropy"),
    every: float = 30.0,
) -> Iterator[Callable[[int, Row], None]]:
    """Show how a run goes, on standard error.

    A bar on a terminal; elsewhere, as in a log file, a plain line for the first
    step, the last and at most one every ``every`` seconds between. Of several
    processes only the first shows anything.

    Args:
      total: steps of the whole run.
      initial: steps done before.
      description: goes first.
      names: the metrics to show, where a row has them; its ``tokens`` are shown
        per second.
      every: seconds between plain lines.

    Yields:
      ``show(step, row)``: steps done so far, and what ``Writer.log`` returned.
    """
    if jax.process_index() != 0:
        yield lambda step, row: None
        return
    stream = sys.stderr
    on_terminal = stream.isatty()
    bar = tqdm.tqdm(
        total=total,
        initial=initial,
        desc=description or None,
        file=stream,
        disable=not on_terminal,
        dynamic_ncols=True,
    )
    latest: Row = {}
    began = last = -math.inf
    tokens = 0.0

    def show(step: int, row: Row) -> None:
        nonlocal began, last, tokens
        now = time.monotonic()
        # Rows run behind the steps, so that one can come twice.
        if row.get("step") != latest.get("step"):
            tokens += row.get("tokens", 0.0)
        # Neither the first step's compilation nor its tokens count.
        if began == -math.inf:
            began, tokens = now, 0.0
        latest.update(row)
        parts = [f"{name} {latest[name]:.3g}" for name in names if name in latest]
        if tokens and now > began:
            parts.append(f"{tokens / (now - began):,.0f} tokens/s")
        if on_terminal:
            bar.set_postfix_str("  ".join(parts), refresh=False)
            bar.update(step - bar.n)
        elif step >= total or now - last >= every:
            last = now
            head = [description] if description else []
            print(*head, f"{step}/{total}", *parts, sep="  ", file=stream, flush=True)

    try:
        yield show
    finally:
        bar.close()


def _number(value: Any) -> int | float:
    number = np.asarray(value).item()
    return number if type(number) is int else float(number)


def _line(row: Row) -> str:
    bad = {name: repr(x) for name, x in row.items() if not math.isfinite(x)}
    values: dict[str, Any] = {n: None if n in bad else x for n, x in row.items()}
    if bad:
        values["nonfinite"] = bad
    return json.dumps(values, allow_nan=False)


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    nonfinite = row.pop("nonfinite", {})
    if not isinstance(nonfinite, dict):
        return None
    try:
        row |= {name: float(value) for name, value in nonfinite.items()}
    except (TypeError, ValueError):
        return None
    return row if all(type(x) in (int, float) for x in row.values()) else None


def _truncate(path: Path, last_step: int) -> None:
    """Keep the lines up to a step, whole lines only; all or nothing."""
    lines = path.read_bytes().splitlines(True) if path.exists() else []
    kept, lost = [], []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            lost.append(number)
        elif row["step"] <= last_step and line.endswith(b"\n"):
            kept.append(line)
    # A killed run leaves its last line incomplete.
    if lost and not lines[-1].endswith(b"\n"):
        lost = [number for number in lost if number < len(lines)]
    if lost:
        print(
            f"warning: {len(lost)} lines of {path} are no rows of numbers and are "
            f"dropped, the first is line {lost[0]}",
            file=sys.stderr,
            flush=True,
        )
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
