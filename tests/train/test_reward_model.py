"""Reward models' steps: their losses by hand, and what they learn from counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignax import preference as pf
from alignax.pipeline import data
from alignax.train import reward_model, supervised

TOKENIZER = data.byte_tokenizer()


def reward_fn(params, tokens, *, mask=None):
    """A reward a letter: at each place the sum of those so far."""
    values = jnp.where(mask, params[tokens], 0)
    return jnp.cumsum(values, axis=1)[..., None]


def pairs_of(*texts):
    return data.encode_pairs(texts, TOKENIZER, length=6)


# Bradley-Terry among a, b and c with strengths 1, 2, 4, in whole counts.
COUNTS = {"ba": 10, "ab": 5, "ca": 12, "ac": 3, "cb": 10, "bc": 5}
PAIRS = pairs_of(
    *(("?", w, l) for (w, l), count in COUNTS.items() for _ in range(count))
)


def train(step, batch, tx, *, steps, params=None):
    params = jnp.zeros(259) if params is None else params
    state = supervised.init_state(params, tx, jax.random.key(0))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state.params, metrics


def test_bradley_terry_learns_the_strengths():
    """Differences of rewards are log-strengths; accuracy and margin are those of the
    counts; with centring the level is fixed."""
    tx = optax.sgd(1.0)
    loss = partial(pf.bradley_terry_loss, centring=1e-3)
    step = reward_model.make_step(loss, reward_fn, tx, microbatches=3)
    params, metrics = train(step, PAIRS, tx, steps=300)
    a, b, c = np.asarray(params)[[97, 98, 99]]
    np.testing.assert_allclose([b - a, c - b], np.log([2, 2]), atol=0.01)
    np.testing.assert_allclose(metrics["accuracy"], 32 / 45, rtol=1e-6)
    margin = np.log(2) * (10 - 5 + 2 * (12 - 3) + 10 - 5) / 45
    np.testing.assert_allclose(metrics["margin"], margin, rtol=0.02)
    assert step._cache_size() <= 1


def test_labels_are_learned_as_rates():
    """Yes and no: σ of the reward is the rate of yes."""
    texts, labels = [("?", "a")] * 4 + [("?", "b")] * 4, [True] * 3 + [False] * 5
    batch = data.encode_unpaired(texts, labels, TOKENIZER, length=4)
    tx = optax.sgd(2.0)

    def shared_off(params, tokens, *, mask=None):
        """Only the letters count, so that each has its own rate."""
        letters = jnp.isin(tokens, jnp.array([97, 98]))
        return reward_fn(params, tokens, mask=mask & letters)

    step = reward_model.make_label_step(pf.binary_feedback_loss, shared_off, tx)
    params, metrics = train(step, batch, tx, steps=200)
    np.testing.assert_allclose(jax.nn.sigmoid(params[97]), 0.75, atol=1e-3)
    assert jax.nn.sigmoid(params[98]) < 0.05
    np.testing.assert_allclose(metrics["accuracy"], 7 / 8)


def test_an_ensemble_is_the_step_under_vmap():
    """Stacked states take the steps that each would take alone."""
    tx = optax.adam(0.1)
    step = reward_model.make_step(pf.bradley_terry_loss, reward_fn, tx)
    starts = 0.1 * jax.random.normal(jax.random.key(1), (3, 259))
    states = jax.vmap(lambda p: supervised.init_state(p, tx, jax.random.key(0)))(starts)
    together, _ = jax.vmap(step, (0, None))(states, PAIRS)
    for member, start in enumerate(starts):
        alone, _ = train(step, PAIRS, tx, steps=1, params=start)
        error = np.linalg.norm(together.params[member] - alone)
        assert error < 1e-5 * np.linalg.norm(alone)
