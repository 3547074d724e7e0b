"""Best policies against what is known of them: moments, modes, the picture."""

import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax.types import InputError
from experiments import mode_seeking
from experiments.mode_seeking import Config

CONFIG = Config()


def moments(logp):
    x, p = np.asarray(mode_seeking.line(CONFIG)), np.exp(np.float64(logp))
    mean = p @ x
    return mean, p @ (x - mean) ** 2


def test_forward_kl_matches_the_moments():
    """The best member of an exponential family has the target's sufficient statistics,
    to the grid's steps."""
    _, _, logp = mode_seeking.best_policy(CONFIG, dv.forward_kl())
    mean, variance = moments(logp)
    truth_mean, truth_variance = moments(mode_seeking.target(CONFIG))
    assert mean == pytest.approx(truth_mean, abs=0.1)
    assert variance == pytest.approx(truth_variance, rel=0.05)


def test_reverse_kl_is_the_larger_mode():
    """Alone on a mode of weight w its divergence is −log w."""
    mean, width, logp = mode_seeking.best_policy(CONFIG, dv.reverse_kl())
    assert mean == pytest.approx(-CONFIG.distance, abs=0.1)
    assert width == pytest.approx(1, abs=0.05)
    value = dv.exact(dv.reverse_kl(), logp, mode_seeking.target(CONFIG))
    assert float(value) == pytest.approx(-np.log(CONFIG.weight), abs=0.01)
    right, _, _ = mode_seeking.best_policy(Config(weight=0.3), dv.reverse_kl())
    assert right == pytest.approx(CONFIG.distance, abs=0.1)


def test_no_member_of_the_grid_is_better():
    x, logp = mode_seeking.line(CONFIG), mode_seeking.target(CONFIG)
    for div in mode_seeking.DIVERGENCES.values():
        _, _, best = mode_seeking.best_policy(CONFIG, div)
        least = dv.exact(div, best, logp)
        for mean in (-4.0, 0.0, 4.0):
            for width in (0.9, 4.0):
                other = -((x - mean) ** 2) / (2 * width**2)
                assert least <= dv.exact(div, other, logp) + 1e-3
        assert jnp.isfinite(least)


def test_everything_is_written(tmp_path):
    mode_seeking.main(Config(out=tmp_path / "run", grid=9))
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| reverse KL |" in text
    assert (tmp_path / "run" / "mode_seeking.png").stat().st_size > 5_000


@pytest.mark.parametrize("changes", [{"weight": 1.0}, {"grid": 1}, {"categories": 0}])
def test_settings(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        Config(**changes)
