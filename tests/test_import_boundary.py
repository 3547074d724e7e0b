"""Who may import whom: the walls of the house, walked through the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "alignax"
# Rooms from the ground up; a room sees its own floor and those below.
FLOORS = {
    "__init__": 1,
    "exact": 1,
    "adjacent": 1,
    "testing": 1,
    "pipeline": 2,
    "models": 2,
    "train": 3,
    "plan": 4,
    "cli": 5,
}
MATHS_PACKAGES = {"jax", "numpy", "chex", "jaxtyping"}
# A heavy package lives in these files alone.
HOMES = {
    "transformers": {"models/hf.py", "pipeline/data"},
    "flax": {"models"},
    "orbax": {"pipeline/checkpoint.py", "models/hf.py"},
    "tensorflow_datasets": {"pipeline/data"},
    "grain": {"pipeline/data"},
    "optax": {"pipeline/update.py", "train"},
    "tokenizers": {"models/gguf_tokenizer.py"},
    "matplotlib": {"pipeline/plots.py"},
    "tensorboardX": {"pipeline/metrics.py"},
    "optuna": {"cli/sweeps/proposals.py"},
    "sacrebleu": {"diagnostics/diversity.py"},
}
STANDARD = {"tensorflow", "torch"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "alignax":
                yield from (f"alignax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(room):
    return FLOORS.get(room, 0)


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    name, room = path.relative_to(ROOT).as_posix(), room_of(path)
    for module in imports_of(path):
        package = module.split(".")[0]
        if package == "alignax":
            other = module.split(".")[1] if "." in module else ""
            assert floor(other) <= floor(room), f"{name} looks up at {module}"
            if room == "pipeline" and other == "pipeline":
                arrow = "/".join(module.split(".")[1:3])
                assert name.startswith(f"{arrow}/"), f"{name} imports {module}"
        elif package in HOMES:
            homes = HOMES[package]
            at_home = name in homes or any(name.startswith(f"{h}/") for h in homes)
            assert at_home, f"{package} lives in {sorted(homes)}, not in {name}"
        else:
            assert package not in STANDARD, f"{name} imports {package}"
            if floor(room) <= 1:
                known = package in sys.stdlib_module_names
                assert known or package in MATHS_PACKAGES, f"{name}: {package}"


def test_files_stay_readable():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_heavy_rooms_come_when_they_are_read():
    """``import alignax`` loads none of their packages, and all names complete."""
    code = """
import sys, alignax as ax
assert not {"flax", "optax", "transformers", "orbax"} & sys.modules.keys()
assert {"models", "train", "pipeline", "algorithms"} <= set(dir(ax))
assert "grpo" in dir(ax.algorithms) and ax.algorithms.grpo.beta == 0.04
assert "LoRA" in dir(ax.models) and ax.models.LoRA.__name__ == "LoRA"
assert not hasattr(ax, "nothing") and not hasattr(ax.algorithms, "copg")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
