"""``experiments/launch``: what each script asks of its cluster, by stubs of it."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent.parent / "experiments" / "launch"
STUB = """#!/bin/bash
name=$(basename "$0")
if [ "$name" = alignax ]; then printf '0 waiting\\n1 waiting\\n2 waiting\\n'; exit; fi
[ "$name" = gcloud ] && cat > /dev/null
(flock 9; printf '%s\\n' "$name $*" >> "$CALLS") 9>> "$CALLS.lock"
"""


@pytest.fixture
def launch(tmp_path):
    for name in ("alignax", "sbatch", "gcloud", "xpk"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def run(script, *args, **more):
        calls = tmp_path / "calls"
        path = f"{tmp_path}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "CALLS": str(calls), **more}
        subprocess.run([LAUNCH / script, *args], check=True, env=env)
        return calls.read_text()

    return run


def test_slurm_gets_an_array_of_as_many_trials(launch):
    said = launch("slurm_array.sh", "my sweep.yaml", "--", "--time=1:00")
    head, wrapped, *_ = said.splitlines()
    assert "--array=0-2" in head
    assert "--requeue" in head
    assert "--time=1:00 --wrap" in head
    index = "--index $SLURM_ARRAY_TASK_ID"
    assert wrapped == f"srun alignax sweep my\\ sweep.yaml {index} || code=$?"


def test_tpu_vms_share_the_trials(launch):
    said = launch("tpu_vm.sh", "sweep.yaml", "a", "b", ZONE="z")
    by_vm = sorted(
        (line.split()[5], line.rpartition("--index ")[2]) for line in said.splitlines()
    )
    assert by_vm == [("a", "0"), ("a", "2"), ("b", "1")]


def test_xpk_gets_a_workload_a_trial(launch):
    given = {"CLUSTER": "c", "TPU": "v5litepod-16", "IMAGE": "i"}
    said = launch("xpk.sh", "sweep.yaml", "--out", "/shared/x", **given)
    lines = said.splitlines()
    assert len(lines) == 3
    assert "--workload sweep-2 " in lines[2]
    command = "--command alignax sweep sweep.yaml --out /shared/x --index 2"
    assert lines[2].endswith(command)
