"""``alignax forgetting``: paired changes by hand, and what is refused."""

import json
import math

import numpy as np
import pytest

from alignax import cli
from alignax.cli import forgetting


def write(path, values, **options):
    content = {
        "options": {"data": "sums.jsonl", "model": path.stem, **options},
        "per_prompt": {"accuracy": values},
    }
    path.write_text(json.dumps(content))
    return path


def run(*args):
    cli.main(["forgetting", *map(str, args)])


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_changes_are_paired(tmp_path, capsys):
    """Prompts that differ widely and all lose a little: sure, in pairs alone."""
    easy_first = np.linspace(0.05, 0.95, 10)
    lost = easy_first - np.array([0.04, 0.05] * 5)
    rng = np.random.default_rng(0)
    a = write(tmp_path / "a.json", [*easy_first, None])
    b = write(tmp_path / "b.json", [*lost, 1.0])
    first, second = rng.uniform(size=20), rng.uniform(size=20)
    c = write(tmp_path / "c.json", list(first), data="facts.jsonl")
    d = write(tmp_path / "d.json", list(second), data="facts.jsonl")
    out = tmp_path / "panel.json"
    run("--before", a, c, "--after", b, d, "--out", out)
    sums, facts, both = json.loads(out.read_text())
    half = 1.96 * np.std(lost - easy_first, ddof=1) / math.sqrt(10)
    assert sums["change"] == pytest.approx(-0.045)
    assert sums["half"] == pytest.approx(half)
    assert (sums["prompts"], sums["left_out"]) == (10, 1)
    assert facts["change"] == pytest.approx((second - first).mean())
    assert facts["half"] == pytest.approx(
        1.96 * np.std(second - first, ddof=1) / math.sqrt(20)
    )
    assert both["change"] == pytest.approx((sums["change"] + facts["change"]) / 2)
    assert both["half"] == pytest.approx(math.hypot(sums["half"], facts["half"]) / 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "sums", "facts", "mean"]
    assert "lost 1 left out" in lines[1]
    assert "lost" not in lines[2]
    assert "gained" not in lines[2]
    # Unpaired, the prompts' own differences would hide it.
    apart = 1.96 * math.hypot(np.std(lost, ddof=1), np.std(easy_first, ddof=1))
    assert apart / math.sqrt(10) > 0.045


def test_one_prompt_has_no_interval():
    row = forgetting.paired("one", [1.0], [0.0])
    assert math.isnan(row.half)
    assert "lost" not in forgetting.shown([row])


def test_what_cannot_be_paired_is_refused(tmp_path, capsys):
    a, b = write(tmp_path / "a.json", [1.0]), write(tmp_path / "b.json", [1.0], n=2)
    said = refused(capsys, "--before", a, "--after", b)
    assert "they differ in n" in said
    longer = write(tmp_path / "longer.json", [1.0, 0.0])
    assert "differ in prompts" in refused(capsys, "--before", a, "--after", longer)
    assert "as many files" in refused(capsys, "--before", a, "--after", b, a)
    said = refused(capsys, "--before", a, "--after", a, "--measure", "reward")
    assert "with reward for each prompt" in said
    none = write(tmp_path / "none.json", [None])
    said = refused(capsys, "--before", none, "--after", a)
    assert "before and after" in said
