"""A sweep's table and pictures, from whatever there is of it."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignax.cli.sweeps import folder, proposals, space
from alignax.cli.sweeps.space import Range, Sweep
from alignax.pipeline import metrics, plots

TABLE = "results.parquet"
Row = dict[str, Any]


def rows(sweep: Sweep, out: Path) -> list[Row]:
    """A row for each trial.

    Args:
      sweep: of the file.
      out: the sweep's folder.

    Returns:
      for each trial ``index``, ``point``, ``seed``, ``state``, ``code``, ``seconds``,
      ``words``, ``step`` (of its log), ``options`` (all, as JSON), a column for each
      option that differs, ``last/NAME`` of each metric, and of the sweep's ``metric``
      also ``best/NAME`` and ``best_step``.
    """
    names = sorted({*space.flat(sweep.space), *itertools.chain(*sweep.points)})
    found = []
    for trial in space.trials(sweep):
        status = folder.status(folder.of(out, trial.index))
        options = proposals.known(sweep, out, trial)
        everything = space.whole(sweep, options)
        row: Row = {
            "index": trial.index,
            "point": trial.point,
            "seed": space.flat(everything).get("seed"),
            "state": status.state,
            "code": status.end.get("code"),
            "seconds": status.end.get("seconds"),
            "words": status.end.get("words") or None,
            "step": status.rows[-1]["step"] if status.rows else None,
            "options": json.dumps(everything),
        }
        row |= {name: options.get(name) for name in names}
        for logged in status.rows:
            row |= {f"last/{k}": float(v) for k, v in logged.items() if k != "step"}
        if sweep.metric is not None:
            row |= _best(status.rows, sweep.metric, sweep.goal)
        found.append(row)
    return found


def _best(logged: Sequence[metrics.Row], metric: str, goal: str) -> Row:
    known = [
        (float(row[metric]), row["step"])
        for row in logged
        if metric in row and math.isfinite(row[metric])
    ]
    if not known:
        return {}
    # Of equals the first.
    sign = 1 if goal == "max" else -1
    value, step = max(known, key=lambda pair: sign * pair[0])
    return {f"best/{metric}": value, "best_step": step}


def save(path: Path, table: Sequence[Row]) -> None:
    """The rows as a Parquet file, whole or not at all.

    Args:
      path: of the file.
      table: of ``rows``; a column of several types becomes one of JSON texts.
    """
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(itertools.chain(*table)))
    columns = {}
    for name in names:
        values = [row.get(name) for row in table]
        kinds = {type(x) for x in values if x is not None}
        if kinds == {int, float}:
            values = [None if x is None else float(x) for x in values]
        elif len(kinds) > 1 or kinds & {list, dict, tuple}:
            values = [None if x is None else json.dumps(x) for x in values]
        columns[name] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    parquet.write_table(pyarrow.table(columns), half)
    half.replace(path)


def numeric(sweep: Sweep) -> list[str]:
    """The options of the space that are numbers, in order."""

    def is_number(x: Any) -> bool:
        return isinstance(x, int | float) and not isinstance(x, bool)

    return [
        name
        for name, law in sweep.space.items()
        if isinstance(law, Range) or (len(law) > 1 and all(map(is_number, law)))
    ]


def groups(sweep: Sweep, table: Sequence[Row], names: Sequence[str]) -> dict[str, list]:
    """Rows by what differs among them beside ``names``, under a label of it."""
    swept = {*sweep.space, *itertools.chain(*sweep.points)}
    apart = [name for name in sorted(swept - {"seed", *names})]
    found: dict[str, list[Row]] = {}
    for row in table:
        parts = [f"{_short(n)} {row[n]}" for n in apart if row[n] is not None]
        found.setdefault(", ".join(parts) or "all trials", []).append(row)
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and both ends of its 95 % interval, the mean itself of one value."""
    mean, half = metrics.mean_and_interval(np.asarray(values, float))
    half = 0.0 if math.isnan(half) else half
    return mean, mean - half, mean + half


def curve(rows: Sequence[Row], name: str, metric: str) -> plots.Curve | None:
    """A metric's mean over all rows with the same value of an option, with its band."""
    at: dict[float, list[float]] = {}
    for row in rows:
        if _number(row.get(metric)) and _number(row.get(name)):
            at.setdefault(float(row[name]), []).append(row[metric])
    if not at:
        return None
    bands = [band(at[x]) for x in sorted(at)]
    y, low, high = (list(column) for column in zip(*bands, strict=True))
    return sorted(at), y, low, high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def frontier(rows: Sequence[Row], kl: str, metric: str) -> plots.Curve | None:
    """A point of the space each, by its KL: the metric's mean over seeds, its band."""
    points: dict[int, list[Row]] = {}
    for row in rows:
        if _number(row.get(metric)) and _number(row.get(kl)):
            points.setdefault(row["point"], []).append(row)
    found = sorted(
        (
            float(np.mean([row[kl] for row in some])),
            *band([row[metric] for row in some]),
        )
        for some in points.values()
    )
    if not found:
        return None
    x, y, low, high = (list(column) for column in zip(*found, strict=True))
    return x, y, low, high


def draw(sweep: Sweep, out: Path, table: Sequence[Row]) -> list[Path]:
    """The frontier and a curve for each numeric option, as far as there are numbers.

    Args:
      sweep: of the file; without a metric nothing is drawn.
      out: the sweep's folder.
      table: of ``rows``; trials that failed are left out.

    Returns:
      the pictures.
    """
    if sweep.metric is None:
        return []
    metric, pictures = f"last/{sweep.metric}", []
    whole = [row for row in table if row["state"] != "failed"]
    kl = f"last/{sweep.kl or sweep.metric.rpartition('/')[0] + '/kl'}"
    names = numeric(sweep)
    lines = {
        label: line
        for label, some in groups(sweep, whole, names).items()
        if (line := frontier(some, kl, metric)) is not None
    }
    if lines and kl != metric:
        pictures.append(out / "frontier.png")
        plots.curves(
            pictures[-1],
            lines,
            title=f"{sweep.metric} by what it costs",
            xlabel=kl.removeprefix("last/"),
            ylabel=sweep.metric,
            points=True,
            from_zero=False,
        )
    for name in names:
        law = sweep.space[name]
        values = list(law[:2]) if isinstance(law, Range) else law
        several = {
            label: line
            for label, some in groups(sweep, whole, names).items()
            if (line := curve(some, name, metric)) is not None
        }
        if several:
            pictures.append(out / f"by_{name.replace('.', '_')}.png")
            plots.curves(
                pictures[-1],
                several,
                title=f"{sweep.metric} by {name}",
                xlabel=name,
                ylabel=sweep.metric,
                points=True,
                from_zero=False,
                logarithmic=min(values) > 0 and max(values) >= 10 * min(values),
            )
    return pictures


def shown(sweep: Sweep, table: Sequence[Row], *, most: int = 10) -> str:
    """The best points as lines, each the mean over its seeds with its interval."""
    if sweep.metric is None:
        return ""
    metric, sign = f"last/{sweep.metric}", 1 if sweep.goal == "max" else -1
    points: dict[int, list[Row]] = {}
    for row in table:
        if row["state"] != "failed" and _number(row.get(metric)):
            points.setdefault(row["point"], []).append(row)
    names = sorted({*sweep.space, *itertools.chain(*sweep.points)})
    best = sorted(
        points.values(), key=lambda some: -sign * band([r[metric] for r in some])[0]
    )
    lines = [sweep.metric]
    for some in best[:most]:
        mean, _, high = band([row[metric] for row in some])
        about = f" ± {high - mean:.2g}" if len(some) > 1 else ""
        options = ", ".join(f"{name} {_told(some[0][name])}" for name in names)
        there = f", {some[0]['step']} steps" if sweep.rungs else ""
        lines.append(f"  {mean:.4g}{about}  {options}{there}")
    return "\n".join(lines)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(sweep: Sweep, out: Path) -> tuple[list[Row], list[Path]]:
    """Table and pictures into the sweep's folder.

    Args:
      sweep: of the file.
      out: the folder.

    Returns:
      the rows, and the files.
    """
    table = rows(sweep, out)
    save(out / TABLE, table)
    return table, [out / TABLE, *draw(sweep, out, table)]


def states(table: Sequence[Mapping[str, Any]]) -> str:
    """How many trials are in each state, in words."""
    names = [row["state"] for row in table]
    counts = {name: names.count(name) for name in sorted(set(names))}
    return ", ".join(f"{count} {name}" for name, count in counts.items())
