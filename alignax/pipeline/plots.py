"""Pictures of runs; matplotlib stays in here, and is imported when one is drawn."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignax.types import InputError

INK = "#22252b"
SOFT = "#8a8f98"
BEST_OF_N = "#c8553d"
# Okabe and Ito's palette, apart under every common colour blindness.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.labelsize": 12,
    "axes.labelpad": 8,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.title_fontsize": 11,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "alignax",
}

Numbers = Sequence[float] | np.ndarray
Curve = tuple[Numbers, Numbers, Numbers | None, Numbers | None]


class Trajectory(NamedTuple):
    """A run's evaluations in the order of training, ``n`` numbers each."""

    label: str
    kl: np.ndarray
    kl_halfwidth: np.ndarray
    reward: np.ndarray
    reward_halfwidth: np.ndarray


def frontier(
    path: str | Path,
    runs: Sequence[Trajectory],
    *,
    optimum: tuple[Numbers, Numbers] | None = None,
    best_of_n: Sequence[tuple[int, float, float]] = (),
    title: str = "",
    legend_title: str | None = None,
    xlabel: str = "KL to the reference (nats per completion)",
    ylabel: str = "held-out reward",
) -> None:
    """Draw what reward the runs bought for what divergence.

    Args:
      path: of the picture, written whole or not at all; the suffix chooses the
        format, such as ``.png`` or ``.svg``.
      runs: ``Trajectory`` records, the strength of regularisation in order; bars are
        confidence half-widths, and NaN draws none.
      optimum: ``(kl, reward)`` of the best there is, from left to right.
      best_of_n: ``(n, kl, reward)`` of best-of-n sampling.
      title: goes above.
      legend_title: goes above the legend.
      xlabel: of the divergence.
      ylabel: of the reward.

    Raises:
      InputError: a run's columns differ in length, or there is nothing to draw.
    """
    drawn = [_trajectory(run) for run in runs]
    points = [(run.kl + run.kl_halfwidth, run.reward, run.label) for run in drawn]
    points += [(np.array([kl]), np.array([r]), "") for _, kl, r in best_of_n]
    if optimum is not None and not points:
        points = [(np.asarray(optimum[0]), np.asarray(optimum[1]), "")]
    if not points:
        raise InputError("runs must hold at least one trajectory, got none")
    right = 1.04 * float(np.nanmax(np.concatenate([kl for kl, _, _ in points])))

    with _picture(path, title, xlabel, ylabel) as axes:
        if optimum is not None:
            kl, reward = (np.asarray(x, float) for x in optimum)
            axes.plot(kl, reward, color=INK, lw=2.2, zorder=3, label="exact optimum")
            ceiling = 1.08 * float(np.nanmax(reward[kl <= right], initial=0.0))
            axes.fill_between(
                kl, reward, max(ceiling, 0.0), color="#f3f4f6", lw=0, zorder=0.5
            )
        if best_of_n:
            ns, kl, reward = zip(*best_of_n, strict=True)
            axes.plot(
                kl,
                reward,
                ls=(0, (1, 2)),
                lw=1.4,
                marker="D",
                ms=6,
                color=BEST_OF_N,
                markeredgecolor="white",
                zorder=4,
                label="best of n",
            )
            for n, x, y in zip(ns, kl, reward, strict=True):
                # On the left of a point near the legend.
                late = x > 0.9 * right
                axes.annotate(
                    f"n={n}",
                    (x, y),
                    xytext=(-5 if late else 5, -14),
                    textcoords="offset points",
                    ha="right" if late else "left",
                    fontsize=10,
                    color=BEST_OF_N,
                    zorder=6,
                )
        for run, color in zip(drawn, _shades(len(drawn)), strict=True):
            axes.errorbar(
                run.kl,
                run.reward,
                xerr=run.kl_halfwidth,
                yerr=run.reward_halfwidth,
                fmt="none",
                ecolor=color,
                elinewidth=1.1,
                alpha=0.4,
                zorder=4,
            )
            axes.plot(
                run.kl,
                run.reward,
                "-o",
                color=color,
                lw=1.8,
                ms=3.5,
                zorder=5,
                label=run.label,
            )
            axes.plot(
                run.kl[-1:],
                run.reward[-1:],
                "o",
                color=color,
                ms=10,
                markeredgecolor="white",
                markeredgewidth=1.5,
                zorder=6,
            )
            if len(run.kl) == 1:
                # Shades of single points are hard to tell apart; neighbours' names lie
                # on unlike heights.
                rank = sum(other.kl[0] < run.kl[0] for other in drawn)
                axes.annotate(
                    run.label,
                    (run.kl[0], run.reward[0]),
                    xytext=(6, (5, -14, 18)[rank % 3]),
                    textcoords="offset points",
                    fontsize=9,
                    color=color,
                    zorder=8,
                )
        moving = [run for run in drawn if len(run.kl) > 1]
        if moving:
            axes.plot(
                [run.kl[0] for run in moving],
                [run.reward[0] for run in moving],
                "o",
                ms=9,
                color="white",
                markeredgecolor=INK,
                markeredgewidth=1.8,
                zorder=7,
                ls="none",
                label="start",
            )
        axes.set_xlim(0, right)
        lowest = [np.nanmin(run.reward - run.reward_halfwidth) for run in drawn]
        lowest += [reward for _, _, reward in best_of_n]
        _, top = axes.get_ylim()
        if lowest:
            axes.set_ylim(min(lowest) - 0.1 * (top - min(lowest)), top)
        bars = any(np.any(run.kl_halfwidth > 0) for run in drawn)
        _legend(axes, legend_title, note="bars: 95 % intervals" if bars else None)


def curves(
    path: str | Path,
    series: Mapping[str, Curve],
    *,
    title: str = "",
    legend_title: str | None = None,
    xlabel: str = "step",
    ylabel: str = "",
    points: bool = False,
    logarithmic: bool = False,
    from_zero: bool = True,
) -> None:
    """Draw learning curves with their confidence bands.

    Args:
      path: of the picture, written whole or not at all; the suffix chooses the
        format.
      series: ``(x, y, low, high)`` by label; no band where ``low`` or ``high``
        is None.
      title: goes above.
      legend_title: goes above the legend.
      xlabel: of x.
      ylabel: of y.
      points: mark each one.
      logarithmic: the scale of x, which is then positive.
      from_zero: have the zero of y in sight.

    Raises:
      InputError: there is nothing to draw.
    """
    if not series:
        raise InputError("series must hold at least one curve, got none")
    with _picture(path, title, xlabel, ylabel) as axes:
        lowest = [0.0]
        for number, (label, (x, y, low, high)) in enumerate(series.items()):
            # Past the palette's end the dashes tell the lines apart.
            color = PALETTE[number % len(PALETTE)]
            dashes = ("-", "--", ":", "-.")[number // len(PALETTE) % 4]
            mark: dict[str, Any] = {"marker": "o", "ms": 6} if points else {}
            axes.plot(x, y, color=color, ls=dashes, lw=2, label=label, zorder=4, **mark)
            lowest.append(float(np.nanmin(np.asarray(y, float))))
            if low is not None and high is not None:
                axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0, zorder=3)
                lowest.append(float(np.nanmin(np.asarray(low, float))))
        axes.margins(x=0.02)
        if logarithmic:
            axes.set_xscale("log")
        else:
            left = min(0.0, axes.get_xlim()[0]) if _has_negative(series) else 0
            axes.set_xlim(left=left)
        if from_zero:
            _from_zero(axes, min(lowest))
        _legend(axes, legend_title)


def _has_negative(series: Mapping[str, Curve]) -> bool:
    return any(np.nanmin(np.asarray(x, float)) < 0 for x, *_ in series.values())


def _trajectory(run: Sequence[Any]) -> Trajectory:
    label, *columns = run
    kl, kl_half, reward, reward_half = (np.asarray(x, float) for x in columns)
    lengths = [x.shape for x in (kl, kl_half, reward, reward_half)]
    if len(set(lengths)) > 1 or kl.ndim != 1 or kl.size == 0:
        raise InputError(
            f"runs must have four columns of one length, got {lengths} for {label!r}"
        )
    return Trajectory(
        label, kl, np.nan_to_num(kl_half), reward, np.nan_to_num(reward_half)
    )


def _shades(n: int) -> list[Any]:
    # An ordered map, as the runs are; its pale end is left out.
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.12, 0.8, n)))


def _from_zero(axes: Any, lowest: float) -> None:
    _, top = axes.get_ylim()
    axes.set_ylim(0.0 if lowest >= 0 else lowest - 0.04 * (top - lowest), top)


def _legend(axes: Any, title: str | None, *, note: str | None = None) -> None:
    if note is not None:
        axes.plot([], [], " ", label=note)
    axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        alignment="left",
        labelspacing=0.6,
    )


@contextlib.contextmanager
def _picture(path: str | Path, title: str, xlabel: str, ylabel: str) -> Iterator[Any]:
    """Axes to draw on, saved under ``path`` all or nothing."""
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        # A figure outside of pyplot draws with Agg and leaves no state behind.
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.tick_params(length=0)
        yield axes
        temporary = path.with_name(f".{path.name}.new")
        try:
            figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
