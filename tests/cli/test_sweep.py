"""``alignax sweep``: what the trials are, which go on, and that none is lost."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from pyarrow import parquet

from alignax.cli import main
from alignax.cli.sweeps import folder, report, space
from alignax.cli.sweeps.halving import standing
from alignax.cli.sweeps.space import Range, Sweep

ROOT = Path(__file__).parent.parent.parent
# A run with the manners of alignax's: a log by steps, --resume, SIGTERM, exit codes.
TOY = """
import dataclasses, json, os, pathlib, signal, sys, time

VMAPPED = ("x", "seed")

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    out: pathlib.Path = pathlib.Path("out")
    resume: bool = False
    x: float = 0.0
    kind: str = "good"
    seed: int = 0
    steps: int = 3
    wait: float = 0.0
    holds: str = ""

def row(config, step):
    reward = step - (config.x - 0.5) ** 2 + 0.01 * config.seed
    return {"step": step, "eval/reward": reward, "eval/kl": config.x}

def main(config):
    if config.kind == "bad":
        sys.exit("error: kind must be good, got bad")
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "metrics.jsonl"
    lines = path.read_bytes().splitlines(True) if path.exists() else []
    assert config.resume == bool(lines)
    lines = [x for x in lines if x.endswith(b"\\n")]
    path.write_bytes(b"".join(lines))
    (config.out / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    with (config.out / "starts").open("a") as file:
        file.write(f"{len(lines)}\\n")
    for step in range(len(lines), config.steps + 1):
        with path.open("a") as file:
            file.write(json.dumps(row(config, step)) + "\\n")
        time.sleep(config.wait)
        # Long enough to be told to pause, however busy the machine is.
        until = time.monotonic() + 30 * (str(step) in config.holds.split(","))
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        if told:
            sys.exit(75)

def batch(configs):
    assert not any(config.x == 13 for config in configs)
    for config in configs:
        config.out.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps(row(config, n)) + "\\n" for n in range(config.steps + 1)]
        (config.out / "metrics.jsonl").write_text("".join(rows))
        (config.out / "rows").write_text(str(len(configs)))

if __name__ == "__main__":
    given = dict(arg[2:].split("=") for arg in sys.argv[1:] if "=" in arg)
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    given = {name: kinds[name](value) for name, value in given.items()}
    main(Config(resume="--resume" in sys.argv, **given))
"""
METRIC = {"metric": "eval/reward"}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")

    def write(**content):
        given = {"run": "toy", "batch": 1, **METRIC, **content}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(given))
        return ["sweep", "sweep.yaml", "--out", "o"]

    yield write
    sys.modules.pop("toy", None)


def table(out="o"):
    return parquet.read_table(f"{out}/results.parquet").to_pylist()


def same(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def states(out, count):
    return [folder.status(folder.of(Path(out), i)).state for i in range(count)]


def refused(capsys, args):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_grid_counts_like_nested_loops():
    points = ({"method": "grpo"}, {"method": "dapo", "updates": 2})
    law = {"beta": [0.1, 1.0], "lora.rank": [4, 8, 16]}
    sweep = Sweep(run="train rl", points=points, space=law, seeds=2)
    found = space.trials(sweep)
    wanted = [
        {**own, "beta": beta, "lora.rank": rank, "seed": seed}
        for own in points
        for beta in (0.1, 1.0)
        for rank in (4, 8, 16)
        for seed in (0, 1)
    ]
    assert [trial.options for trial in found] == wanted
    assert [trial.index for trial in found] == list(range(24))
    assert [trial.point for trial in found] == [i // 2 for i in range(24)]
    nested = space.whole(sweep, wanted[0])
    assert nested["lora"] == {"rank": 4}


def test_random_points_depend_on_their_number_alone():
    law = {"a": Range(1e-5, 1e-1, log=True), "b": Range(2, 5), "c": ["x", "y"]}
    few, many = (
        [t.options for t in space.trials(Sweep(run="r", space=law, trials=n, seed=3))]
        for n in (5, 4000)
    )
    assert many[:5] == few
    other = space.trials(Sweep(run="r", space=law, trials=5, seed=4))
    assert [t.options for t in other] != few
    # Uniform in the logarithm: mean and variance of U(log 1e-5, log 1e-1), four
    # standard errors about them.
    logs = np.log([options["a"] for options in many])
    low, high = math.log(1e-5), math.log(1e-1)
    deviation = (high - low) / math.sqrt(12)
    assert abs(logs.mean() - (low + high) / 2) < 4 * deviation / math.sqrt(4000)
    assert abs(logs.std() / deviation - 1) < 0.04
    for value in (2, 3, 4, 5):
        share = np.mean([options["b"] == value for options in many])
        assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert {options["c"] for options in many} == {"x", "y"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"nonsense": 1}, "got 'nonsense'"),
        ({"run": "train nothing"}, "run must be one of train rl"),
        ({"space": {"xx": [1]}}, "key xx: there is no such option"),
        ({"base": {"out": "here"}}, "out: a sweep sets it"),
        ({"space": {"x": {"low": 1}}}, "x must be a list, or low and high"),
        ({"space": {"x": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"space": {"x": {"low": 0, "high": 1}}}, "must be told how many points"),
        (
            {"sampler": "grid", "space": {"x": {"low": 0, "high": 1}}},
            "grid is of lists",
        ),
        ({"rungs": [2, 1]}, "rungs must be rising"),
        ({"rungs": [2], "metric": None}, "rungs compare a metric"),
        ({"seeds": 0}, "seeds must be a whole number from 1"),
    ],
)
def test_a_bad_file_is_refused(toy, capsys, content, said):
    assert said in refused(capsys, toy(**content))


def test_numbers_that_yaml_takes_for_texts():
    assert space._law("x", ["1e-5", "2"]) == [1e-5, 2]
    assert space._law("x", {"low": "1e-5", "high": 1}) == Range(1e-5, 1, False)
    assert space._law("x", ["alpha:0.5", True, None]) == ["alpha:0.5", True, None]


def test_halving_by_hand():
    """Nine points, one in three stays: 9, then 3, then 1."""
    first = [0.1, 0.9, 0.5, 0.5, math.nan, 0.2, 0.8, 0.3, 0.4]
    scores = [[x] for x in first]
    assert standing(scores, rungs=2, factor=3) == [0, 1, 1, 0, 0, 0, 1, 0, 0]
    # Of the three the one that was second is now the first.
    for point, score in ((1, 0.9), (2, 0.1), (6, 0.95)):
        scores[point].append(score)
    assert standing(scores, rungs=2, factor=3) == [0, 1, 1, 0, 0, 0, 2, 0, 0]
    scores[2][1] = None
    assert standing(scores, rungs=2, factor=3) == [0, 1, 1, 0, 0, 0, 1, 0, 0]
    # Failed ones leave, even where few are left.
    assert standing([[math.nan], [math.nan], [0.0]], rungs=1, factor=2) == [0, 0, 1]
    assert standing([], rungs=1, factor=2) == []


def test_a_sweep_by_the_command(toy, capsys):
    """Four trials, two of which fail: the others' numbers, and nothing done twice."""
    args = toy(space={"kind": ["good", "bad"], "x": [0.25, 1]}, base={"steps": 2})
    main([*args, "--devices", "5", "6"])
    said = capsys.readouterr()
    assert "4 trials: 2 done, 2 failed" in said.out
    assert said.err.count("failed: error: kind must be good, got bad") == 2
    rows = table()
    assert [row["state"] for row in rows] == ["done", "done", "failed", "failed"]
    assert [row["x"] for row in rows] == [0.25, 1, 0.25, 1]
    assert [row["last/eval/reward"] for row in rows] == [2 - 0.0625, 1.75, None, None]
    assert [row["best_step"] for row in rows] == [2, 2, None, None]
    assert rows[3]["code"] == 1
    assert "got bad" in rows[3]["words"]
    assert json.loads(rows[1]["options"]) == {"steps": 2, "kind": "good", "x": 1}
    devices = [Path(f"o/trials/000{i}/device").read_text() for i in (0, 1)]
    assert set(devices) <= {"5", "6"}
    for name in ("frontier.png", "by_x.png"):
        assert Path("o", name).read_bytes().startswith(b"\x89PNG")
    main(args)
    assert same(table()) == same(rows)
    assert Path("o/trials/0000/starts").read_text() == "0\n"
    capsys.readouterr()
    main([*args, "--list"])
    assert capsys.readouterr().out.splitlines()[2] == "2 failed kind=bad x=0.25"
    assert "trial 2 failed: kind must be" in refused(capsys, [*args, "--index", "2"])
    assert "index must be from 0 to 3" in refused(capsys, [*args, "--index", "4"])
    changed = toy(space={"kind": ["good", "bad"], "x": [0.5, 1]}, base={"steps": 2})
    said = refused(capsys, [*changed, "--retry"])
    assert "trial 2 in o/trials/0002 has other options" in said


def test_one_trial_and_a_report_of_part(toy, capsys):
    args = toy(space={"x": [0.0, 0.5]}, seeds=2, base={"steps": 1})
    for index in (2, 3):
        main([*args, "--index", str(index)])
    main([*args, "--report"])
    out = capsys.readouterr().out
    # Seeds 0 and 1 are 0.01 apart: 1.96 · 0.01/√2 / √2.
    assert "  1.005 ± 0.0098  x 0.5\n" in out
    assert "4 trials: 2 done, 2 waiting" in out
    assert [row["seed"] for row in table()] == [0, 1, 0, 1]
    assert [row["state"] for row in table()] == ["waiting"] * 2 + ["done"] * 2


def test_a_claim_is_anothers(toy, capsys):
    args = toy(space={"x": [0.0, 0.5]})
    with folder.locked(Path("o/trials/0000/.claim")) as claim:
        assert claim is not None
        main([*args, "--index", "0"])
        assert "another process is at work" in capsys.readouterr().err
        main([*args, "--index", "1"])
    assert states("o", 2) == ["waiting", "done"]


def test_successive_halving_leaves_the_worst_at_their_rung(toy, capsys):
    """(x − ½)² is least at 0.5: 6 trials to step 1, 3 to step 3, 1 to the end."""
    xs = [0.0, 0.45, 1.0, 0.6, 0.9, 0.3]
    args = toy(
        space={"x": xs}, rungs=[1, 3], factor=2, base={"holds": "1,3", "steps": 5}
    )
    main([*args, "--workers", "3"])
    rows = table()
    assert [row["step"] for row in rows] == [1, 5, 1, 3, 1, 3]
    assert [row["state"] for row in rows] == ["begun", "done", *["begun"] * 4]
    assert Path("o/trials/0001/starts").read_text().split() == ["0", "2", "4"]
    capsys.readouterr()
    main([*args, "--index", "0"])
    assert "trial 0 waits at its rung" in capsys.readouterr().err


def test_values_at_a_rung():
    rows = [{"step": 0, "a": 1.0}, {"step": 2}, {"step": 2, "a": 3.0}, {"step": 3}]

    def at(count, step, state="begun"):
        return folder.value_at(folder.Status(state, {}, rows[:count]), "a", step)

    # The measurement of step 2 comes behind the step's own row.
    assert [at(2, 2), at(3, 2), at(4, 2), at(4, 3)] == [None, 3.0, 3.0, None]
    assert at(2, 2, "done") == 1.0
    assert math.isnan(at(4, 2, "failed"))
    assert at(4, None) == 3.0


def test_bands_and_curves_of_rows():
    rows = [
        {"point": p, "x": x, "last/r": r, "last/kl": kl}
        for p, x, r, kl in [(0, 1, 1.0, 0.2), (0, 1, 3.0, 0.4), (1, 2, 5.0, 0.1)]
    ]
    half = 1.96 * math.sqrt(2) / math.sqrt(2)
    x, y, low, high = report.curve([*rows, {"point": 2}], "x", "last/r")
    assert (x, y) == ([1.0, 2.0], [2.0, 5.0])
    np.testing.assert_allclose((low, high), [[2 - half, 5], [2 + half, 5]])
    x, y, low, _ = report.frontier(rows, "last/kl", "last/r")
    np.testing.assert_allclose((x, y, low), [[0.1, 0.3], [5, 2], [5, 2 - half]])


def test_columns_of_several_types(tmp_path):
    rows = [{"a": 1, "b": "x", "c": [1]}, {"a": 0.5, "b": 2}, {"a": None}]
    report.save(tmp_path / "t.parquet", rows)
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"a": 1.0, "b": '"x"', "c": "[1]"},
        {"a": 0.5, "b": "2", "c": None},
        {"a": None, "b": None, "c": None},
    ]


def begin(*args):
    command = [sys.executable, "-m", "alignax.cli", *args]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_for(truth, seconds=60.0):
    until = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.stress
def test_sixty_four_trials_killed_twice(toy, tmp_path):
    """SIGKILL of the sweep, then of the sweep and its trials: the same table."""
    xs = [round(0.1 * n, 1) for n in range(8)]
    law = {"space": {"x": xs, "kind": ["good", "bad"]}, "seeds": 4}
    args = toy(**law, base={"steps": 4, "wait": 0.02})
    main([*args[:-1], "unbroken", "--workers", "8"])
    assert [row["state"] for row in table("unbroken")].count("done") == 32
    for target, children in ((10, False), (40, True)):
        with begin(*args, "--workers", "8") as process:
            wait_for(lambda n=target: 64 - states("o", 64).count("waiting") > n)
            there = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            )
            process.kill()
            for number in there.stdout.split() if children else []:
                with_it = int(number)
                if Path(f"/proc/{with_it}").exists():
                    os.kill(with_it, signal.SIGKILL)
        assert any(x in ("waiting", "begun") for x in states("o", 64))
    main([*args, "--workers", "8"])
    assert same(table()) == same(table("unbroken"))


@pytest.mark.slow
def test_told_to_stop_it_goes_on_later(toy):
    args = toy(space={"x": [0.1, 0.2]}, base={"steps": 100, "wait": 0.05})
    with begin(*args) as process:
        wait_for(Path("o/trials/0000/metrics.jsonl").exists)
        process.terminate()
    assert process.returncode == 75
    assert states("o", 2) == ["begun", "waiting"]
    begun = len(Path("o/trials/0000/metrics.jsonl").read_text().splitlines())
    assert begun < 100
    main([*args, "--index", "0"])
    starts = Path("o/trials/0000/starts").read_text().split()
    assert starts == ["0", str(begun)]
    assert table_rows("o/trials/0000") == list(range(101))


def table_rows(place):
    lines = Path(place, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
def test_numbers_share_a_program_and_a_bad_one_spoils_none(toy):
    args = toy(space={"steps": [2, 3], "x": [0.1, 0.2]}, seeds=2, batch=3)
    main(args)
    # Of each number of steps four trials: a program of three, and one by itself.
    found = [Path(f"o/trials/{i:04d}/rows") for i in range(8)]
    assert [x.exists() and x.read_text() for x in found] == ["3", "3", "3", False] * 2
    assert [row["state"] for row in table()] == ["done"] * 8
    assert [row["step"] for row in table()] == [2] * 4 + [3] * 4


@pytest.mark.slow
def test_a_program_that_fails_is_done_one_by_one(toy):
    args = toy(space={"x": [0.1, 13.0]}, batch=8)
    main(args)
    assert [row["state"] for row in table()] == ["done", "done"]
    assert not Path("o/trials/0000/rows").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_optuna_proposes_and_is_told(toy, sampler):
    optuna = pytest.importorskip("optuna")
    law = {"x": {"low": 0.0, "high": 2.0}, "kind": ["good", "bad"], "steps": [1, 2]}
    args = toy(space=law, sampler=sampler, trials=6, seeds=2)
    main([*args, "--workers", "2"])
    rows = table()
    assert [row["x"] for row in rows[::2]] == [row["x"] for row in rows[1::2]]
    assert all(0 <= row["x"] <= 2 for row in rows)
    assert len({row["x"] for row in rows}) == 6
    journal = optuna.storages.journal.JournalFileBackend("o/points/journal.log")
    storage = optuna.storages.JournalStorage(journal)
    study = optuna.load_study(study_name="sweep", storage=storage)
    told = {t.params["x"]: t for t in study.trials if t.state.is_finished()}
    assert len(told) >= 4
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        if first["x"] not in told:
            continue
        value = told[first["x"]].value
        if first["state"] == "failed":
            assert value is None
        else:
            mean = (first["last/eval/reward"] + second["last/eval/reward"]) / 2
            assert value == pytest.approx(mean)


@pytest.mark.slow
def test_submitit_on_this_machine(toy):
    pytest.importorskip("submitit")
    args = toy(space={"kind": ["bad", "good"], "x": [0.1]})
    main([*args, "--executor", "submitit", "--cluster", "local"])
    assert [row["state"] for row in table()] == ["failed", "done"]
    assert list(Path("o/jobs").glob("*_submitted.pkl"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_on_this_machine(toy):
    pytest.importorskip("ray")
    args = toy(space={"kind": ["bad", "good"], "x": [0.1]})
    main([*args, "--executor", "ray", "--parameters", "num_cpus=0.5"])
    assert [row["state"] for row in table()] == ["failed", "done"]


def test_the_page_shows_a_file_that_is_one(tmp_path):
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    shown = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "beta.yaml").write_text(shown)
    sweep = space.read(tmp_path / "beta.yaml")
    assert (
        f"alignax sweep beta.yaml                # {len(space.trials(sweep))} trials"
        in text
    )
    args = space.arguments(sweep, space.target(sweep.run).config, {"beta": 0.01})
    assert {"--lora.rank=16", "--beta=0.01", "--reward"} <= set(args)
    keys = set(re.findall(r"`(\w+)`", re.findall(r"(?s)\| key \|.*?\n\n", text)[0]))
    fields = {field.name for field in dataclasses.fields(Sweep)}
    assert fields - keys <= {"run", "base"}
