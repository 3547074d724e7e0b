"""Steering by uncertain decisions, where it is known what it must do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import decoding, logprobs
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.models.steering import residual, steered
from alignax.train import steering
from alignax.types import InputError

CERTAIN, OPEN = jnp.arange(0, 6), jnp.arange(6, 9)
A, B = 9, 10
CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=8,
    max_length=4,
    tie_embeddings=False,
)


def bandit():
    """Prompts of a token. Behind the first six the model is sure of one arm, A or B,
    behind the next three of none: its layers are silent, its stream is the embedding,
    whose first number speaks for A and whose second says that nothing is known."""
    params = functional.init(CONFIG, jax.random.key(0))
    for block in params["blocks"].values():
        for part, last in (("attention", "out"), ("mlp", "down")):
            block[part][last] = jax.tree.map(jnp.zeros_like, block[part][last])
    noise = 0.2 * jax.random.normal(jax.random.key(1), (11, 8))
    signs = jnp.array([1.0, -1, 1, -1, 1, -1])
    table = noise.at[CERTAIN, 0].add(2 * signs).at[OPEN, 1].add(2.0)
    head = jnp.zeros((11, 8)).at[A, 0].set(0.8).at[B, 0].set(-0.8)
    # No other token is ever written: their logits fall with what all states have.
    table = table.at[:, 2].set(1.0)
    head = head.at[jnp.arange(9), 2].set(-30.0)
    return params | {"embedding": table, "head": head}


@jax.jit
def entropies(params):
    logits = functional.make_apply(CONFIG)(params, jnp.arange(9)[:, None]).logits
    return logprobs.entropy(logits[:, -1])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("layer", [0, 1])
def test_certain_decisions_become_open_with_strength(layer, centred):
    """The centred vector the other way does not make them more certain: it leads away
    from what all states share as well, and a longer stream says less of each arm."""
    params, prompts = bandit(), jnp.arange(9)
    before = entropies(params)
    assert np.all(before[CERTAIN] < 0.3), before
    assert np.all(before[OPEN] > 0.6), before
    states = residual(CONFIG, params, prompts[:, None], layer=layer)[:, -1]
    vector = decoding.entropic_steering(states, before, centred=centred)

    def mean(strength):
        other = steered(CONFIG, params, vector, layer=layer, strength=strength)
        return float(jnp.mean(entropies(other)[CERTAIN]))

    rising = [mean(strength) for strength in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert np.all(np.diff(rising) > 0.004), rising
    assert rising[0] < 0.1 < 0.3 < rising[-1], rising
    if centred:
        assert mean(-0.5) > rising[0]


def test_a_decision_is_what_the_pattern_finds():
    assert steering.decided(" red\n", None) == "red"
    assert steering.decided("I take button 3.", r"button \d") == "button 3"
    assert steering.decided("I take button 3.", r"button (\d)") == "3"
    assert steering.decided("I take none.", r"button (\d)") is None
    assert steering.decided("ab", r"a(c)?b") == ""


def test_entropy_of_decisions():
    three = ["a", "b", "a", None]
    expected = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert steering.decision_entropy(three) == pytest.approx(expected, rel=1e-12)
    assert steering.decision_entropy([None] * 5) == 0
    assert steering.decision_entropy(list("abcd")) == pytest.approx(math.log(4))


def test_options_are_checked():
    with pytest.raises(InputError, match="n of steer must be at least 2, got 1"):
        steering.Steering(n=1)
    with pytest.raises(InputError, match="regular expression, got '\\('"):
        steering.Steering(action="(")
