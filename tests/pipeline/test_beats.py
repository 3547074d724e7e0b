"""A process that is waited for is named, and the wait has an end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from alignax.pipeline import beats

WAITS = """
import sys, time
import jax
jax.process_count, jax.process_index = (lambda: 3), (lambda: 0)
from pathlib import Path
from alignax.pipeline import beats
with beats.watched(Path(sys.argv[1]), patience=0.3), beats.waiting():
    time.sleep(60)
"""


@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with beats.watched(tmp_path, patience=1000.0):
        yield beats._watching[-1]


def other(tmp_path, process, at):
    text = json.dumps({"host": f"host{process}", "at": at})
    (tmp_path / beats.FOLDER / f"{process}.json").write_text(text)


def test_who_is_waited_for(watch, tmp_path):
    with beats.waiting():
        other(tmp_path, 1, [1, 1])
        other(tmp_path, 2, [1, 0])
        assert "it waits for process 2 on host2." in watch.said()
        other(tmp_path, 2, [0, 0])
        assert "waits for process 2 on host2." in watch.said()
        other(tmp_path, 2, [1, 1])
        other(tmp_path, 3, [0, 0])  # of an earlier run on more
        assert "the devices or the network hang" in watch.said()
        (tmp_path / beats.FOLDER / "2.json").write_text("{")
        assert "mesh.timeout" in watch.said()
    other(tmp_path, 2, [1, 0])
    assert "its own work" in watch.said()
    with beats.waiting():
        other(tmp_path, 1, [1, 0])
        said = watch.said()
    assert "process 1 on host1, process 2 on host2" in said


def test_one_process_is_not_watched(tmp_path):
    with beats.watched(tmp_path, patience=1.0), beats.waiting():
        assert not beats._watching
    assert not (tmp_path / beats.FOLDER).exists()


def test_the_wait_has_an_end(tmp_path):
    (tmp_path / beats.FOLDER).mkdir()
    other(tmp_path, 1, [0, 0])
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WAITS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == beats.EXIT
    assert time.monotonic() - began < 45
    assert "process 0 of 3" in done.stderr
    assert "it waits for process 1 on host1" in done.stderr
