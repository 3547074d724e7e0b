"""docs/regularisers.md says what the code does now."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location(
    "generate_regularisers", DOCS / "generate_regularisers.py"
)
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_document_is_the_code():
    assert (DOCS / "regularisers.md").read_text(encoding="utf-8") == generate.text()


def test_verdicts():
    """Slopes in closed form: bounded, growing with the log-ratio, with the ratio."""
    table = {
        row.split(" | ")[0].strip("| `"): row.split(" | ")[-2]
        for row in generate.pull_table().splitlines()[2:]
    }
    assert table["jensen_shannon"] == "flat"
    assert table["reverse_kl"] == "grows"
    assert table["pearson"] == "explodes"
