"""What was lost on several tasks, from evaluations before and after.

Each file is of ``alignax evaluate --out``; the two of a task are of the same data and
the same options. Changes are paired prompt by prompt, so that what makes one prompt
harder than another is not in their intervals.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from alignax.pipeline import metrics
from alignax.types import InputError

# Of the model, not of the task.
OWN = {"model", "base", "step", "out", "reference", "against", "workers", "dtype"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Compare evaluations before and after."""

    before: tuple[Path, ...]
    """Files of alignax evaluate --out, one for each task."""
    after: tuple[Path, ...]
    """Those of the trained model, in the same order."""
    measure: Literal["accuracy", "reward"] = "accuracy"
    """What is compared."""
    out: Path | None = None
    """A JSON file of all numbers."""

    def __post_init__(self):
        if len(self.before) != len(self.after) or not self.before:
            raise InputError(
                f"before and after must be as many files, one a task, got "
                f"{len(self.before)} and {len(self.after)}"
            )


class Row(NamedTuple):
    """A task before and after."""

    task: str
    prompts: int
    before: float
    after: float
    change: float
    half: float
    """Half the width of the change's 95 % interval; NaN of a single prompt."""
    left_out: int = 0
    """Prompts without a number on either side."""


def paired(task: str, before: Sequence[Any], after: Sequence[Any]) -> Row:
    """A task's change with its interval over prompts.

    Args:
      task: its name.
      before: a number for each prompt, None where there is none.
      after: of the same prompts.

    Returns:
      the row, over the prompts with both numbers.

    Raises:
      InputError: no prompt has both.

    Reference:
      Miller, "Adding Error Bars to Evals", arXiv 2411.00640, §4 (paired differences).

    Example:
      >>> row = paired("sums", [1.0, 1.0, 0.0, None], [1.0, 0.0, 0.0, 1.0])
      >>> print(f"{row.change:.4f} ± {row.half:.4f} of {row.prompts}")
      -0.3333 ± 0.6533 of 3
    """
    x, y = (np.array(values, np.float64) for values in (before, after))
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        raise InputError(f"{task}: some prompt must have a number before and after")
    change, half = metrics.mean_and_interval((y - x)[known])
    return Row(
        task,
        prompts=int(known.sum()),
        before=float(x[known].mean()),
        after=float(y[known].mean()),
        change=change,
        half=half,
        left_out=int((~known).sum()),
    )


def over_tasks(rows: Sequence[Row]) -> Row:
    """The mean over tasks, each counted alike, with the tasks' intervals combined.

    Args:
      rows: of independent tasks.

    Returns:
      a row; ``half`` is ``√(Σ half²) / T``, the interval for these very tasks.
    """
    half = math.sqrt(sum(row.half**2 for row in rows)) / len(rows)
    before, after, change = (
        float(np.mean([getattr(row, name) for row in rows]))
        for name in ("before", "after", "change")
    )
    prompts = sum(row.prompts for row in rows)
    return Row("mean of tasks", prompts, before, after, change, half)


def shown(rows: Sequence[Row]) -> str:
    """The rows as they are printed.

    Args:
      rows: of ``paired`` and ``over_tasks``.

    Returns:
      a line for each; "lost" and "gained" where the interval has no zero in it.
    """
    width = max(len(row.task) for row in rows)
    lines = [f"{'task':{width}} prompts  before   after  change"]
    for row in rows:
        about = "" if math.isnan(row.half) else f"± {row.half:.2g}"
        sure = abs(row.change) > row.half
        verdict = ("lost" if row.change < 0 else "gained") if sure else ""
        left_out = f"{row.left_out} left out" if row.left_out else ""
        lines.append(
            f"{row.task:{width}} {row.prompts:7} {row.before:7.3f} {row.after:7.3f} "
            f"{row.change:+7.3f} {about:8} {verdict} {left_out}".rstrip()
        )
    return "\n".join(lines)


def read(path: Path, *, measure: str) -> tuple[Mapping[str, Any], list[Any]]:
    """Options and numbers of an evaluation.

    Args:
      path: of ``alignax evaluate --out``.
      measure: which numbers.

    Returns:
      the options, and a number or None for each prompt.

    Raises:
      InputError: it is no such file, or lacks the measure.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["options"], content["per_prompt"][measure]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} must be a file of alignax evaluate --reward ... --out, with "
            f"{measure} for each prompt"
        ) from None


def main(config: Config) -> None:
    """Pair, print and write.

    Args:
      config: the options.

    Raises:
      InputError: a file is none of evaluations, or two are of different tasks.
    """
    rows = []
    for first, second in zip(config.before, config.after, strict=True):
        sides = [read(path, measure=config.measure) for path in (first, second)]
        (options, before), (others, after) = sides
        differ = [
            name
            for name in sorted({*options, *others} - OWN)
            if options.get(name) != others.get(name)
        ]
        if differ or len(before) != len(after):
            name = differ[0] if differ else "prompts"
            raise InputError(
                f"{first} and {second} must be of the same data and options, "
                f"they differ in {name}"
            )
        rows.append(paired(Path(options["data"]).stem, before, after))
    if len(rows) > 1:
        rows.append(over_tasks(rows))
    print(shown(rows))
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        content = [
            {k: None if v != v else v for k, v in row._asdict().items()} for row in rows
        ]
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
