"""What a report holds; tables, curves and an assertion made of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignax.estimators import TABLE
from alignax.estimators.table import SEQUENCE_KL
from alignax.types import InputError


class Row(NamedTuple):
    """One world's findings; of a batch's mean, for batches of ``samples``.

    ``samples`` None is the exact expectation over one sample, whose half-widths are
    0. Half-widths are of 95 % confidence intervals. The gradient's numbers are
    relative to the norm of the target's: ``gradient_miss`` is
    ``|E g − ∇target| / |∇target|``.
    """

    settings: Mapping[str, Any]
    samples: int | None
    target: float
    value_bias: float
    value_bias_half: float
    value_std: float
    gradient_miss: float
    gradient_miss_half: float
    gradient_cosine: float
    gradient_std: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Findings over worlds and batch sizes; prints as a table."""

    name: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return table([self])

    _repr_markdown_ = __str__


def table(reports: Sequence[Report]) -> str:
    """Reports as one Markdown table, a line for each row.

    Args:
      reports: in the order of their lines.

    Returns:
      lines ended by a newline; gradients are in per cent of the target's norm.
    """
    names = ["estimator", "world", "samples", "target", "bias", "std"]
    names += ["gradient's miss", "cosine", "gradient's std"]
    lines = [names, ["---"] * len(names)]
    for report in reports:
        for row in report.rows:
            world = ", ".join(f"{k} {v:g}" for k, v in row.settings.items())
            lines.append(
                [
                    report.name,
                    world,
                    "exact" if row.samples is None else f"{row.samples}",
                    f"{row.target:.4g}",
                    _interval(row.value_bias, row.value_bias_half, row.target),
                    f"{row.value_std:.3g}",
                    _per_cent(row.gradient_miss, row.gradient_miss_half),
                    f"{row.gradient_cosine:.3f}",
                    _per_cent(row.gradient_std),
                ]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _interval(x: float, half: float, size: float) -> str:
    # Rounding errors of the sums are no bias.
    x = 0.0 if abs(x) < 1e-5 * abs(size) else x
    return f"{x:.3g} ± {half:.1g}" if half else f"{x:.3g}"


def _per_cent(x: float, half: float = 0.0) -> str:
    return f"{100 * x:.1f} ± {100 * half:.1f} %" if half else f"{100 * x:.1f} %"


def series(
    reports: Sequence[Report], *, x: str, y: str, samples: int | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Reports as curves for ``plots.curves``.

    Args:
      reports: a curve each.
      x: a name of the worlds' ``settings``.
      y: a field of ``Row``.
      samples: the batch size; None for the exact rows.

    Returns:
      ``(x, mean, lowest, highest)`` over the worlds of each x, by the report's name.

    Raises:
      InputError: no row has such a setting and batch size.
    """
    result = {}
    for report in reports:
        rows = [r for r in report.rows if r.samples == samples and x in r.settings]
        if not rows or y not in Row._fields:
            raise InputError(
                f"x, y and samples must name rows of {report.name}, got {x!r}, {y!r}, "
                f"{samples}"
            )
        at = sorted({r.settings[x] for r in rows})
        groups = [[getattr(r, y) for r in rows if r.settings[x] == v] for v in at]
        mean, low, high = (
            np.array([f(group) for group in groups]) for f in (np.mean, min, max)
        )
        result[report.name] = (np.array(at, float), mean, low, high)
    return result


def assert_unbiased(
    report: Report,
    *,
    value: bool = True,
    gradient: bool = True,
    tolerance: float = 1e-3,
) -> None:
    """Fail unless a report's values, and its gradients, are unbiased.

    Exact rows may be off by ``tolerance``, relative to the target; simulated ones by
    twice their confidence interval more.

    Args:
      report: of ``estimator_report``.
      value: whether the value must be unbiased.
      gradient: whether the gradient must be the target's.
      tolerance: relative.

    Raises:
      AssertionError: with the worst row, and where the gradient is wrong, with what
        would do.

    Example:
      >>> import jax
      >>> from alignax import estimators
      >>> from alignax.testing import estimator_report, random_world
      >>> world = random_world(jax.random.key(0))
      >>> sound = estimator_report(estimators.sequence_kl_surrogate, [world])
      >>> assert_unbiased(sound)
    """

    wrong = []
    for row in report.rows:
        batch = "one sample" if row.samples is None else f"{row.samples} samples"
        world = ", ".join(f"{k} {v:g}" for k, v in row.settings.items())
        where = f"(mean of {batch}; {world})"
        limit = tolerance * max(abs(row.target), 1e-6)
        if value and abs(row.value_bias) > limit + 2 * row.value_bias_half:
            wrong.append(
                f"its value is off by {row.value_bias:.3g} ± {row.value_bias_half:.1g} "
                f"where the target is {row.target:.4g} {where}"
            )
        if gradient and row.gradient_miss > tolerance + 2 * row.gradient_miss_half:
            wrong.append(
                "its gradient misses the target's by "
                f"{_per_cent(row.gradient_miss, row.gradient_miss_half)} {where}"
            )
    if wrong:
        sound = [n for n, e in TABLE.items() if e.gradient == SEQUENCE_KL]
        raise AssertionError(
            f"{report.name} is biased: {wrong[0]}; {len(wrong)} findings in all. In "
            "alignax.estimators, these have the gradient of the KL between whole "
            f"completions: {', '.join(sound)}"
        )
