"""Pictures: what is drawn is what was given, written whole or not at all."""

import re

import matplotlib.figure
import numpy as np
import pytest

from alignax.pipeline import plots
from alignax.types import InputError

RUNS = [
    plots.Trajectory(f"run {i}", *(np.array(x) for x in columns))
    for i, columns in enumerate(
        [
            ([0.0, 0.1, 0.3], [0.0, 0.01, 0.02], [0.2, 0.4, 0.5], [0.0, 0.0, 0.0]),
            ([0.0, 0.4], [0.0, np.nan], [0.2, 0.7], [0.0, 0.1]),
        ]
    )
]
OPTIMUM = (np.linspace(0, 0.5, 20), 0.2 + np.sqrt(np.linspace(0, 0.5, 20)))
BEST = [(1, 0.0, 0.2), (4, 0.4, 0.75)]


@pytest.fixture
def axes(monkeypatch):
    """The axes of each figure that is saved."""
    drawn = []
    savefig = matplotlib.figure.Figure.savefig

    def recording(self, *args, **kwargs):
        drawn.extend(self.axes)
        return savefig(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", recording)
    return drawn


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_frontier_draws_what_it_is_given(tmp_path, axes):
    path = tmp_path / "deep" / "frontier.png"
    plots.frontier(path, RUNS, optimum=OPTIMUM, best_of_n=BEST, title="A frontier")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["frontier.png"]
    (ax,) = axes
    drawn = lines(ax)
    for run in RUNS:
        expected = np.stack([run.kl, run.reward], axis=-1)
        np.testing.assert_array_equal(drawn[run.label], expected)
    np.testing.assert_array_equal(drawn["exact optimum"], np.stack(OPTIMUM, axis=-1))
    np.testing.assert_array_equal(drawn["best of n"], [b[1:] for b in BEST])
    np.testing.assert_array_equal(drawn["start"], [[0, 0.2], [0, 0.2]])
    assert {text.get_text() for text in ax.texts} == {"n=1", "n=4"}
    assert ax.get_title(loc="left") == "A frontier"
    # All points are in sight, and little beside them.
    assert ax.get_xlim()[1] >= 0.4
    lowest = min(
        np.nanmin(run.reward - np.nan_to_num(run.reward_halfwidth)) for run in RUNS
    )
    lowest = min(lowest, *(reward for _, _, reward in BEST))
    bottom, top = ax.get_ylim()
    assert top >= 0.75
    assert 0 < lowest - bottom < 0.15 * (top - bottom)
    assert "bars: 95 % intervals" in drawn


def test_confidence_bars_are_their_half_widths(tmp_path, axes):
    plots.frontier(tmp_path / "f.svg", RUNS[:1])
    horizontal, vertical = axes[0].collections[-2:]
    ends = np.array([segment[:, 0] for segment in horizontal.get_segments()])
    kl, half = RUNS[0].kl, RUNS[0].kl_halfwidth
    np.testing.assert_allclose(ends, np.stack([kl - half, kl + half], axis=-1))
    assert len(vertical.get_segments()) == 3


def test_curves_draw_lines_and_bands(tmp_path, axes):
    x, y = np.arange(4.0), np.array([1.0, 2.0, 1.5, 3.0])
    series = {"reward": (x, y, y - 0.5, y + 0.5), "kl": (x, y / 2, None, None)}
    plots.curves(tmp_path / "c.png", series, ylabel="held out")
    (ax,) = axes
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["reward"], np.stack([x, y], axis=-1))
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 0.5
    assert corners[:, 1].max() == 3.5
    assert ax.get_ylabel() == "held out"
    assert ax.get_ylim()[0] == 0


def test_curves_may_have_points_and_a_logarithmic_axis(tmp_path, axes):
    x = np.array([0.01, 0.1, 1.0])
    series = {"a": (x, x + 9, None, None)}
    more = {"points": True, "logarithmic": True, "from_zero": False}
    plots.curves(tmp_path / "c.png", series, **more)
    plots.curves(tmp_path / "d.png", series)
    marked, plain = axes
    assert (marked.get_xscale(), plain.get_xscale()) == ("log", "linear")
    assert marked.get_xlim()[0] > 0
    assert (marked.get_ylim()[0] > 8, plain.get_ylim()[0]) == (True, 0)
    assert [ax.get_lines()[0].get_marker() for ax in axes] == ["o", "None"]


def test_many_curves_differ_in_colour_or_dashes(tmp_path, axes):
    x = np.arange(3.0)
    plots.curves(
        tmp_path / "c.png", {str(i): (x, x + i, None, None) for i in range(14)}
    )
    styles = {(line.get_color(), line.get_linestyle()) for line in axes[0].get_lines()}
    assert len(styles) == 14


def test_negative_values_are_in_sight(tmp_path, axes):
    x = np.array([-1.0, 1.0])
    plots.curves(tmp_path / "c.png", {"a": (x, -x, None, None)})
    assert axes[0].get_xlim()[0] <= -1
    assert axes[0].get_ylim()[0] < -1


def test_text_of_an_svg_and_the_same_bytes_again(tmp_path):
    pages = []
    for name in ("a.svg", "b.svg"):
        plots.frontier(tmp_path / name, RUNS, optimum=OPTIMUM)
        text = (tmp_path / name).read_text()
        # The date is all that may differ.
        pages.append(re.sub(r"<dc:date>.*?</dc:date>", "", text))
    assert pages[0].lstrip().startswith("<?xml")
    assert pages[0] == pages[1]


def test_nothing_is_left_of_a_failed_picture(tmp_path, monkeypatch):
    path = tmp_path / "f.png"
    plots.frontier(path, RUNS)
    before = path.read_bytes()

    def failing(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", failing)
    with pytest.raises(OSError, match="no space"):
        plots.frontier(path, RUNS[:1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="runs must hold"):
        plots.frontier(tmp_path / "f.png", [])
    with pytest.raises(InputError, match="series must hold"):
        plots.curves(tmp_path / "c.png", {})
    short = RUNS[0]._replace(reward=np.zeros(2))
    with pytest.raises(InputError, match=r"one length.*'run 0'"):
        plots.frontier(tmp_path / "f.png", [short])
    assert not list(tmp_path.iterdir())


def test_no_state_is_left_in_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.frontier(tmp_path / "f.png", RUNS)
    assert dict(matplotlib.rcParams) == before
