"""The commands on a mesh of eight virtual devices, against one device."""

import numpy as np
import pytest

from alignax.cli import main
from alignax.pipeline import metrics
from tests.train.test_runs import arguments, home  # noqa: F401

pytestmark = pytest.mark.slow

MESH = ("--mesh.replica", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
ROWS = ("--batch-size", "4", "--learning-rate", "1e-3")
KINDS = {
    "rl": ("prompts", ("--prompts", "4")),
    "supervised": ("messages", ROWS),
    "preference": ("pairs", (*ROWS, "--lora.rank", "2")),
    "reward": ("pairs", (*ROWS, "--lora.rank", "2", "--remat", "block")),
}


def logged(out):
    rows = metrics.read(out)
    names = sorted({name for row in rows for name in row})
    ours = ("seconds", "tokens_per_second", "memory")
    return {
        name: np.array(metrics.column(rows, name)[1], np.float64)
        for name in names
        if name.split("/")[-1] not in ours
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_run_on_a_mesh_is_the_run_on_one_device(home, tmp_path, name):  # noqa: F811
    data, more = KINDS[name]
    ends = {}
    for mesh in ((), MESH):
        out = tmp_path / f"of{len(mesh)}"
        main(arguments(home, name, data, out, *more, *mesh))
        ends[len(mesh)] = logged(out)
    alone, spread = ends.values()
    assert alone.keys() == spread.keys()
    for column, values in alone.items():
        size = np.abs(values).max() + 1e-3
        np.testing.assert_allclose(spread[column] / size, values / size, atol=2e-3)
