"""The sweeps against what no policy can beat, and one tiny report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.types import InputError
from experiments import overoptimization
from experiments.overoptimization import Config

TINY = Config(seeds=3, candidates=64, members=3, steps=40, hidden=8)


@pytest.fixture(scope="module")
def results():
    return overoptimization.curves(TINY)


@pytest.mark.slow
def test_golds_own_kl_optima_are_above_everybody(results):
    """At each KL no law has more gold reward than the tilt by gold itself."""
    frontier = results["gold itself, KL"]
    assert len(results) == 15
    for name, curve in results.items():
        for seed in range(TINY.seeds):
            x, y = frontier["kl"][seed], frontier["gold"][seed]
            order = np.argsort(x)
            best = np.interp(curve["kl"][seed], x[order], y[order])
            # The frontier is concave: between its points it is above the chords.
            assert (curve["gold"][seed] <= best + 0.02).all(), name


@pytest.mark.slow
def test_chi_squared_optima_have_the_least_chi_squared_for_their_reward(results):
    """Of gold itself: at equal KL they have less gold reward than KL's own."""
    kl, chi = (results[f"gold itself, {word}"] for word in ("KL", "χ²"))
    x, y = kl["kl"][0], kl["gold"][0]
    order = np.argsort(x)
    inner = (chi["kl"][0] > 0.1) & (chi["kl"][0] < 2)
    gap = np.interp(chi["kl"][0][inner], x[order], y[order]) - chi["gold"][0][inner]
    assert gap.max() > 1e-3


def test_best_of_n_stays_below_its_bound(results):
    for name, curve in results.items():
        if name.endswith("best-of-n"):
            n = 2.0 ** np.arange(curve["kl"].shape[1])
            assert (curve["kl"] <= np.log(n) - (n - 1) / n + 1e-5).all()


def test_a_reward_model_learns_the_order():
    """With many comparisons of one feature and no curvature, nearly all of it."""
    config = Config(features=1, curvature=0.01, pairs=2000, members=2, candidates=200)
    world = jax.jit(lambda key: overoptimization.make_world(config, key))(
        jax.random.key(0)
    )
    for name in ("one model", "mean", "worst case"):
        assert jnp.corrcoef(world[name], world["gold"])[0, 1] > 0.95


def test_at_kl_reads_between_points_and_not_beyond():
    rows = overoptimization.at_kl(
        np.array([0.5, 3.0]), np.array([[2.0, 0.0, 1.0]]), np.array([[5.0, 1.0, 2.0]])
    )
    np.testing.assert_array_equal(rows, [[1.5, np.nan]])


@pytest.mark.slow
def test_everything_is_written(tmp_path):
    config = Config(out=tmp_path / "run", seeds=2, candidates=32, members=2, steps=5)
    overoptimization.main(config)
    text = (config.out / "report.md").read_text(encoding="utf-8")
    assert "| worst case, χ² |" in text
    assert (config.out / "overoptimization.png").stat().st_size > 10_000
    assert (config.out / "curves.json").exists()


@pytest.mark.parametrize("name", ["seeds", "candidates", "members", "pairs", "steps"])
def test_settings(name):
    with pytest.raises(InputError, match=f"{name} must be at least"):
        Config(**{name: 0})
