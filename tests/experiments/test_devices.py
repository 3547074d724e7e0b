"""One update on eight devices is that of one, however it is spelled."""

import numpy as np
import pytest

from alignax.types import InputError
from experiments import devices


def test_spellings_agree():
    rows = devices.run(devices.Config(groups=8, completions=2, tokens=5))
    assert [row[0] for row in rows] == ["one device", "jit", "shard_map", "pmap"]
    for _, loss, norm, apart in rows:
        np.testing.assert_allclose(loss, rows[0][1], rtol=1e-5)
        assert norm > 1e-2
        assert apart < 1e-5


def test_means_of_means_would_be_wrong(monkeypatch):
    """Dividing before the sum is what the comparison sees."""

    def divided(found):
        policy, kl = found
        one = devices.jnp.float32(1)
        return tuple((n / d, one) for n, d in (policy, kl))

    whole = devices.fractions
    monkeypatch.setattr(
        devices, "fractions", lambda *args, **how: divided(whole(*args, **how))
    )
    rows = devices.run(devices.Config(groups=8, completions=2, tokens=5))
    assert {row[0]: row[3] for row in rows}["shard_map"] > 1e-3


def test_devices_that_are_not_there():
    with pytest.raises(InputError, match="multiple of the 8"):
        devices.Config(groups=9)
    with pytest.raises(InputError, match="at most the"):
        devices.run(devices.Config(devices=64, groups=64))
