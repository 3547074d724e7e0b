"""Ways to forget, where the truth can be trained."""

import numpy as np
import pytest

from alignax.types import InputError
from experiments import unlearning
from experiments.unlearning import Config

CONFIG = Config(examples=60, forget=6, features=4, models=40)


def test_exact_outputs_forget_as_retraining_does():
    """Model by model its own retrained one; what is added up is near, nothing done is
    far, and two lots of retrained models say what is noise."""
    found = unlearning.models(CONFIG)
    np.testing.assert_allclose(
        found["matched, exact outputs"], found["retrained again"], atol=2e-5
    )
    table = unlearning.measured(CONFIG, found)
    noise = table["retrained again"][0]
    assert table["matched, exact outputs"][0] == pytest.approx(noise, abs=0.05)
    assert table["nothing done"][0] > 5 * noise
    assert noise < table["matched, effects added"][0] < table["nothing done"][0]
    assert "| nothing done |" in unlearning.shown(table)


def test_what_cannot_be_forgotten_is_refused():
    with pytest.raises(InputError, match="forget must be"):
        Config(examples=5, forget=5)
