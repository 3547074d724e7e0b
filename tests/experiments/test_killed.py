"""A run that the operating system kills, and one that nobody does."""

import dataclasses
import signal
import subprocess
import sys
import time

import chex
import pytest

from alignax.pipeline import checkpoint
from experiments import grpo_arithmetic
from tests.experiments.test_arithmetic import small

RUN = """
import pathlib, sys
from experiments import grpo_arithmetic
from tests.experiments.test_arithmetic import small
grpo_arithmetic.main(small(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    config = small(tmp_path_factory.mktemp("unbroken") / "run")
    grpo_arithmetic.main(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("rows", [63])
def test_killed_and_resumed_equals_unbroken(unbroken, tmp_path, rows):
    """SIGKILL in the first policy's run: the same numbers."""
    config = dataclasses.replace(unbroken, out=tmp_path / "run")
    log = config.out / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", RUN, str(config.out)]) as process:
        while process.poll() is None:
            if log.exists() and len(log.read_bytes().splitlines()) >= rows:
                process.kill()
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    grpo_arithmetic.main(dataclasses.replace(config, resume=True))
    for name in ("metrics.jsonl", "samples.md"):
        assert (config.out / name).read_text() == (unbroken.out / name).read_text()
    for beta in config.betas:
        models = [
            checkpoint.load_model(out / f"beta_{beta}/model")
            for out in (config.out, unbroken.out)
        ]
        chex.assert_trees_all_equal(*(params for _, params in models))
