"""docs/estimators.md says what the code does now."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

from alignax import estimators

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location(
    "generate_estimators", DOCS / "generate_estimators.py"
)
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def written():
    """The main table's cells by estimator."""
    table = (DOCS / "estimators.md").read_text(encoding="utf-8").split("\n\n")
    lines = next(part for part in table if part.startswith("| estimator |"))
    rows = [line.strip("| ").split(" | ") for line in lines.splitlines()[2:]]
    return {row[0].strip("`"): row for row in rows}


def test_every_estimator_is_in_the_document():
    assert list(written()) == list(estimators.TABLE)


QUICK = ["k1", "myopic_forward_k3_surrogate", "sequence_kl_surrogate"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in estimators.TABLE
        # Its line is simulated, in minutes.
        if name != "estimated_control_variate"
    ],
)
def test_numbers_are_those_of_the_code(name):
    with jax.enable_x64(True):
        found = generate.main_table([name])[name]
    for cell, shown in zip(found, written()[name], strict=True):
        numbers, others = (re.findall(r"-?\d+\.?\d*", x) for x in (cell, shown))
        assert re.sub(r"[\d.-]+", "", cell) == re.sub(r"[\d.-]+", "", shown)
        for x, y in zip(numbers, others, strict=True):
            # One in the last digit: another machine may round the other way.
            digits = len(y.partition(".")[2])
            assert float(x) == pytest.approx(float(y), abs=1.5 * 10**-digits)
