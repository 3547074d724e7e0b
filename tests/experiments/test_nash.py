"""The Nash experiment at a small size, and the parts that it is made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import games
from alignax.types import InputError
from experiments import nash, nash_texts
from experiments.nash import Config
from experiments.nash_texts import Texts

TINY = Texts(seeds=1, steps=2, batch=4, evaluations=1, hidden_size=8)
SMALL = Config(games=3, outcomes=3, queries=20, texts=TINY)


def test_leading_letter():
    """The commonest, of equals the first; nothing for the empty text."""
    tokens = jnp.array([[1, 2, 2, 0], [3, 1, 0, 0], [0, 2, 2, 2], [3, 3, 1, 1]])
    mask = jnp.array(
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool
    )
    np.testing.assert_array_equal(nash_texts.leading_letter(tokens, mask), [1, 0, 3, 0])


def test_the_judge_s_equilibrium_mixes_the_letters():
    """No style beats (.4, .35, .25), and every text against it is worth a half."""
    judge = np.asarray(nash_texts.judge_of_styles())
    np.testing.assert_allclose(judge + judge.T, 1, atol=1e-6)
    against = judge @ np.array([*nash_texts.EQUILIBRIUM, 0])
    np.testing.assert_allclose(against[:3], 0.5, atol=1e-6)
    assert against[3] < 0.5
    world = nash_texts.make_world()
    assert world.preference.shape == (121, 121)
    np.testing.assert_array_equal(np.bincount(world.styles)[3], 1)


def test_the_reward_model_is_the_maximum_likelihood_one():
    """Stationary: expected wins of each style are those that the scores predict."""
    mass = jnp.array([0.3, 0.4, 0.2, 0.1])
    judge = np.asarray(nash_texts.judge_of_styles())
    scores = np.asarray(jax.jit(nash_texts.fit_reward_model)(jnp.log(mass)))
    predicted = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
    np.testing.assert_allclose((judge - predicted) @ mass, 0, atol=2e-4)


@pytest.mark.slow
def test_solvers_of_the_first_part_obey_the_bounds():
    with jax.enable_x64(True):
        curves = nash.play_random_games(SMALL)
    assert set(nash.solvers(0.1)) < set(curves)
    fast, bound = curves["Nash-MP"], curves["bound of Nash-MP"]
    assert (fast["kl"][1:] <= bound["kl"] + 1e-14).all()
    np.testing.assert_array_equal(fast["queries"][1:], bound["queries"])
    assert len(curves["Nash-MD"]["kl"]) == SMALL.queries + 1
    assert curves["Nash-MP"]["kl"][-1] < curves["Nash-MP"]["kl"][0] / 2


@pytest.mark.slow
def test_everything_is_written(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    nash.main(config)
    for name in ("nash_kl.png", "nash_gap.png", "nash_lm.png"):
        assert (config.out / name).read_bytes().startswith(b"\x89PNG")
    text = (config.out / "nash.md").read_text()
    texts = [name for variants in nash_texts.KINDS.values() for name in variants]
    for name in (*nash.solvers(0.1), *texts):
        assert f"| {name} |" in text
    assert "nan" not in text


@pytest.mark.slow
def test_reward_model_collapses_and_nash_holds_the_mixture():
    """The direction of the report's finding, on two seeds: one letter, or several."""
    config = Texts(seeds=2, steps=300, learning_rate=6e-3, evaluations=50)
    held = ("Nash-MD-PG", "Nash-MP", "IPO-MD")
    results = nash_texts.train(config, seed=0, methods={"reward model", *held})

    def late(name, key):
        return results[name][key][:, -5:].mean()

    def share(name):
        return results[name]["masses"][:, -5:, :3].max(-1).mean()

    assert share("reward model") > 0.95
    assert set(results) == {"reward model", *held}
    for name in held:
        assert share(name) < 0.8
        assert late(name, "kl") < late("reward model", "kl") / 2


def test_the_world_s_equilibrium_is_no_single_style():
    """From a uniform reference: each letter keeps some of the mass."""
    world = nash_texts.make_world()
    uniform = jnp.full(121, -np.log(121), jnp.float32)
    star = games.regularised_equilibrium(games.Game(world.preference, uniform, 0.05))
    masses = np.asarray(nash_texts.style_masses(star, world))
    assert (masses[:3] > 0.15).all()
    assert games.exploitability(world.preference, star) < 0.05


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SMALL, {"queries": 3}, "queries must be even"),
        (SMALL, {"beta": 0.0}, "beta must be positive"),
        (SMALL, {"games": 0}, "games must be at least 1"),
        (TINY, {"steps": 3, "evaluations": 2}, "evaluations must divide"),
        (TINY, {"hidden_size": 12}, "hidden_size"),
        (TINY, {"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_bad_settings_are_named(config, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **changes)
