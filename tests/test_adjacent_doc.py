"""docs/adjacent.md says what the code does now, to the digits that round alike."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"
NUMBER = re.compile(r"\d+\.\d+|\d+")
spec = importlib.util.spec_from_file_location(
    "generate_adjacent", DOCS / "generate_adjacent.py"
)
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.slow
def test_document_is_the_code():
    written = (DOCS / "adjacent.md").read_text(encoding="utf-8")
    made = generate.text()
    assert NUMBER.sub("#", written) == NUMBER.sub("#", made)
    numbers = ([float(x) for x in NUMBER.findall(part)] for part in (written, made))
    # One in the last digit shown: another machine may round the other way.
    np.testing.assert_allclose(*numbers, rtol=0.02, atol=1.1e-3)
