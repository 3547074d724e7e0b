"""docs/targets.md says what the code does now: its exact tables."""

import importlib.util
from pathlib import Path

import jax

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location(
    "generate_targets", DOCS / "generate_targets.py"
)
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_document_has_the_sensitivity():
    with jax.enable_x64(True):
        assert generate.sensitivity() in (DOCS / "targets.md").read_text("utf-8")


def test_document_has_what_is_refused():
    with jax.enable_x64(True):
        assert generate.refused() in (DOCS / "targets.md").read_text("utf-8")
