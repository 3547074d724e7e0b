import io
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignax.pipeline import metrics
from alignax.types import InputError


def strict(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON: {line}")

    return json.loads(line, parse_constant=refuse)


def write(folder, steps, **options):
    with metrics.Writer(folder, tensorboard=False, **options) as writer:
        for step in steps:
            numbers = {"kl": jnp.float32(0.1) * step, "tokens": jnp.int32(7 * step)}
            writer.log(step, numbers)
    return (folder / "metrics.jsonl").read_bytes()


class Watched(np.ndarray):
    """Stands for a device array: says when it is fetched."""

    def __array__(self, dtype=None, copy=None):
        self.reads.append(float(self))
        return np.array(float(self), dtype)


def watched(value, reads):
    array = np.array(value).view(Watched)
    array.reads = reads
    return array


def test_every_line_is_strict_json_and_reads_back(tmp_path):
    logged = {
        "loss": jnp.float32(0.1),
        "half": jnp.bfloat16(0.5),
        "tokens": jnp.int32(3),
        "done": jnp.bool_(True),
        "python": 2.5,
        "numpy": np.float64(1 / 3),
        "bad/nan": jnp.float32(jnp.nan),
        "bad/inf": jnp.float32(jnp.inf),
        "bad/minus": -math.inf,
    }
    with metrics.Writer(tmp_path) as writer:
        writer.log(1, logged)
        writer.log(2, {"kl": 0.25})
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = strict(first)
    assert row["bad/nan"] is row["bad/inf"] is row["bad/minus"] is None
    assert row["nonfinite"] == {
        "bad/nan": "nan",
        "bad/inf": "inf",
        "bad/minus": "-inf",
    }
    assert isinstance(row["tokens"], int)
    assert strict(second) == {"step": 2, "kl": 0.25}
    expected = {name: float(value) for name, value in logged.items()}
    read = metrics.read(tmp_path)[0]
    assert read.pop("step") == 1
    assert math.isnan(read.pop("bad/nan"))
    assert math.isnan(expected.pop("bad/nan"))
    assert read == expected


def test_numbers_stay_in_flight_until_they_are_due(tmp_path):
    reads = []
    with metrics.Writer(tmp_path, tensorboard=False) as writer:
        assert writer.log(1, {"x": watched(1.0, reads)}) == {}
        assert reads == []
        assert writer.log(2, {"x": watched(2.0, reads)}) == {"step": 1, "x": 1.0}
        assert reads == [1.0]
        assert writer.flush() == {"step": 2, "x": 2.0}
        writer.log(3, {"x": 3.0})
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]
    with metrics.Writer(tmp_path, tensorboard=False, delay=0) as writer:
        assert writer.log(1, {"x": 1.0}) == {"step": 1, "x": 1.0}
    with pytest.raises(InputError, match="delay must not be negative, got -1"):
        metrics.Writer(tmp_path, delay=-1)


def test_one_transfer_a_row(tmp_path, monkeypatch):
    fetched = []
    device_get = jax.device_get
    monkeypatch.setattr(
        jax, "device_get", lambda x: fetched.append(set(x)) or device_get(x)
    )
    with metrics.Writer(tmp_path) as writer:
        writer.log(1, {"a": jnp.float32(1), "b": jnp.float32(2)})
    assert fetched == [{"a", "b"}]


def test_what_was_logged_is_written_when_the_run_fails(tmp_path):
    def fail():
        with metrics.Writer(tmp_path, tensorboard=False) as writer:
            writer.log(1, {"x": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert metrics.read(tmp_path) == [{"step": 1, "x": 1.0}]


@pytest.mark.parametrize("torn", ["", '{"step": 5, "kl', '{"step": 3, "kl": 0.1}', "["])
def test_a_resumed_file_equals_an_unbroken_one(tmp_path, torn):
    unbroken = write(tmp_path / "unbroken", range(1, 9))
    write(tmp_path / "resumed", range(1, 6))
    with (tmp_path / "resumed/metrics.jsonl").open("a") as file:
        file.write(torn)
    assert write(tmp_path / "resumed", range(4, 9), resume_step=3) == unbroken
    # Killed before its first checkpoint: from the start again.
    assert write(tmp_path / "resumed", range(1, 9)) == unbroken


def test_truncation_is_atomic(tmp_path, monkeypatch):
    before = write(tmp_path, range(1, 6))

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.Writer(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_other_processes_neither_write_nor_fetch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    reads = []
    with (
        metrics.Writer(tmp_path / "run") as writer,
        metrics.progress(2) as show,
    ):
        show(1, writer.log(1, {"x": watched(1.0, reads)}))
        show(2, writer.log(2, {"x": watched(2.0, reads)}))
    assert not reads
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    def events():
        for path in sorted((tmp_path / "tensorboard").iterdir()):
            data, at = path.read_bytes(), 0
            while at < len(data):  # length, its checksum, the record, its checksum
                size = int.from_bytes(data[at : at + 8], "little")
                yield Event.FromString(data[at + 12 : at + 12 + size])
                at += size + 16

    with metrics.Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.log(step, {"a/x": 0.5 * step, "bad": jnp.nan})
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events()
        for value in event.summary.value
    ]
    assert scalars == [(1, "a/x", 0.5), (2, "a/x", 1.0)]
    with metrics.Writer(tmp_path, resume_step=1) as writer:
        writer.log(2, {"a/x": 3.0})
    starts = {event.step for event in events() if event.HasField("session_log")}
    assert starts == {0, 2}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rewards": jnp.ones(3)}, r"scalars, got rewards of shape \(3,\); reduce"),
        ({"step": 3}, r"must not be named step or nonfinite, got step"),
    ],
)
def test_metrics_that_cannot_be_logged(tmp_path, bad, message):
    with (
        metrics.Writer(tmp_path, tensorboard=False) as writer,
        pytest.raises(InputError, match=message),
    ):
        writer.log(1, bad)
    assert metrics.read(tmp_path) == []


def test_read_and_column(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kl": 0.5}\n{"step": 2}\n{"step": 3, "kl": 1}\n{"st')
    rows = metrics.read(path)
    steps, values = metrics.column(rows, "kl")
    np.testing.assert_array_equal(steps, [1, 3])
    np.testing.assert_array_equal(values, [0.5, 1.0])
    with pytest.raises(InputError, match=r"one of the metrics \['kl'\], got 'reward'"):
        metrics.column(rows, "reward")
    path.write_text('{"step": 1}\n[1]\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"whose line 2 is not an object.*'\[1\]'"):
        metrics.read(path)
    with pytest.raises(InputError, match=r"nothing, which does not exist"):
        metrics.read(tmp_path / "nothing")


def test_interval_is_scipys_and_covers():
    x = np.random.default_rng(0).normal(size=(5, 8))
    mean, half = metrics.mean_and_interval(x)
    low, high = scipy.stats.norm.interval(
        0.95, loc=x.mean(), scale=scipy.stats.sem(x.ravel())
    )
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-3)
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(500, 60, 1)) + rng.normal(size=(500, 60, 4))
    ids = np.repeat(np.arange(60)[:, None], 4, axis=1)
    clustered = [metrics.mean_and_interval(d, clusters=ids) for d in draws]
    naive = [metrics.mean_and_interval(d) for d in draws]
    assert abs(np.mean([abs(m) <= h for m, h in clustered]) - 0.95) < 0.03
    assert np.mean([abs(m) <= h for m, h in naive]) < 0.85


def test_interval_of_clusters():
    x = np.random.default_rng(0).normal(size=(6, 4))
    ids = np.repeat(np.arange(6)[:, None], 4, axis=1)
    # Clusters of equal size: the interval of their means.
    np.testing.assert_allclose(
        metrics.mean_and_interval(x, clusters=ids),
        metrics.mean_and_interval(x.mean(axis=1)),
    )
    mean, half = metrics.mean_and_interval(np.array([1.0, 2.0]), clusters=np.zeros(2))
    assert mean == 1.5
    assert math.isnan(half)
    with pytest.raises(InputError, match="values must hold at least one"):
        metrics.mean_and_interval(np.zeros(0))
    with pytest.raises(InputError, match=r"shape of values, \(2,\), got \(3,\)"):
        metrics.mean_and_interval(np.zeros(2), clusters=np.zeros(3))


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_a_log_file_shows_life_without_a_flood(capsys, clock):
    row = {"reward": 0.5, "kl": 1.2345, "entropy": 2.0, "loss": 9.0}
    with metrics.progress(1000, initial=10, description="train") as show:
        for step in range(11, 1001):
            show(step, row | {"step": step - 1, "tokens": 50} if step > 11 else {})
            clock.now += 0.125
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "train  11/1000"
    assert lines[1].startswith("train  251/1000  reward 0.5  kl 1.23  entropy 2  ")
    assert lines[1].endswith("  400 tokens/s")
    assert lines[-1].startswith("train  1000/1000  ")
    assert len(lines) == 6


def test_rows_that_come_twice_count_once(capsys, clock):
    with metrics.progress(4, every=0.0) as show:
        show(1, {})
        clock.now += 10
        show(2, {"step": 1, "tokens": 500})
        show(3, {"step": 1, "tokens": 500})
    assert capsys.readouterr().err.splitlines()[-1] == "3/4  50 tokens/s"


def test_a_bar_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with metrics.progress(10, initial=4, description="train") as show:
        show(10, {"step": 9, "reward": 0.5, "kl": 1.0})
    last = stream.getvalue().rstrip().split("\r")[-1]
    assert "train: 100%" in last
    assert "10/10" in last
    assert "reward 0.5  kl 1" in last
