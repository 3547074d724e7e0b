"""Reward, ensemble and preference models on a decoder's body."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import preference as pf
from alignax.models import decoder, functional, heads
from alignax.types import InputError
from tests.close import assert_close, decoder_rel

CONFIG = decoder.DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_size=16,
    max_length=16,
)
CLOSE = decoder_rel(CONFIG.num_layers)
KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (3, 6), 0, 11)
MASK = jnp.arange(6)[None] < jnp.array([6, 4, 2])[:, None]


@pytest.fixture(scope="module")
def policy():
    return functional.init(CONFIG, KEY)


@pytest.fixture(scope="module")
def reward_fn():
    return jax.jit(heads.make_reward(CONFIG))


def test_the_head_reads_the_policys_hidden_states(policy, reward_fn):
    """With row v of the embedding as the head, the reward is the logit of v: the body
    is the decoder's own."""
    params = heads.reward_from_policy(CONFIG, policy, KEY)
    params["head"] = policy["embedding"][4:5]
    logits = functional.make_apply(CONFIG)(policy, TOKENS, mask=MASK).logits
    values = reward_fn(params, TOKENS, mask=MASK)
    assert_close(values[..., 0], logits[..., 4], rel=CLOSE)


def test_last_values_ignore_padding(policy, reward_fn):
    """The reward of a completion does not change with the padding behind it."""
    params = heads.reward_from_policy(CONFIG, policy, KEY)
    rewards = heads.last_values(reward_fn(params, TOKENS, mask=MASK), MASK)
    other = jnp.where(MASK, TOKENS, 7)
    again = heads.last_values(reward_fn(params, other, mask=MASK), MASK)
    assert_close(rewards, again, rel=CLOSE)
    none = heads.last_values(jnp.full((1, 3, 1), jnp.nan), jnp.zeros((1, 3), bool))
    np.testing.assert_array_equal(none, 0)


def test_an_ensemble_is_its_members(policy, reward_fn):
    """The vmapped model equals the members one by one; bodies equal, heads not."""
    params = heads.init_ensemble(CONFIG, KEY, members=3, policy=policy)
    rewards = jax.jit(heads.make_ensemble(CONFIG))(params, TOKENS, MASK)
    assert rewards.shape == (3, 3)
    for m in range(3):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], params)
        one = heads.last_values(reward_fn(member, TOKENS, mask=MASK), MASK)[:, 0]
        assert_close(rewards[:, m], one, rel=CLOSE)
    assert np.ptp(params["head"], axis=0).min() > 0
    np.testing.assert_array_equal(np.ptp(params["embedding"], axis=0), 0)
    fresh = heads.init_ensemble(CONFIG, KEY, members=2)
    assert np.ptp(fresh["embedding"], axis=0).max() > 0


def test_a_preference_model_is_antisymmetric_and_learns_a_cycle():
    """``P(a ≻ b) + P(b ≻ a) = 1``; it learns rock, paper, scissors, a cycle
    that no reward explains."""
    preference_fn = heads.make_preference(CONFIG)
    first, second = jnp.array([0, 1, 2]), jnp.array([1, 2, 0])

    def rows(a, b):
        return jnp.stack([a, jnp.full(3, 9), b], axis=1)

    ab, ba, mask = rows(first, second), rows(second, first), jnp.ones((3, 3), bool)
    tx = optax.adam(3e-2)

    def loss_fn(params):
        logit = preference_fn(params, ab, mask, ba, mask)
        return jnp.mean(pf.binary_feedback_loss(logit, jnp.ones(3)))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=60)[0][0]

    params = train(heads.init_reward(CONFIG, KEY))
    logit = preference_fn(params, ab, mask, ba, mask)
    assert (logit > 1).all()
    assert_close(logit, -preference_fn(params, ba, mask, ab, mask), rel=CLOSE)


def test_several_outputs():
    """Objectives share a body."""
    params = heads.init_reward(CONFIG, KEY, outputs=3)
    values = heads.make_reward(CONFIG, outputs=3)(params, TOKENS, mask=MASK)
    assert values.shape == (3, 6, 3)
    assert heads.last_values(values, MASK).shape == (3, 3)


def test_what_is_refused():
    """Outputs and members below one, rows longer than the model."""
    with pytest.raises(InputError, match="outputs must be at least 1"):
        heads.init_reward(CONFIG, KEY, outputs=0)
    with pytest.raises(InputError, match="members must be at least 1"):
        heads.init_ensemble(CONFIG, KEY, members=0)
    short = dataclasses.replace(CONFIG, max_length=4)
    with pytest.raises(InputError, match="max_length of 4, got 6"):
        heads.make_reward(short)(heads.init_reward(short, KEY), TOKENS)
