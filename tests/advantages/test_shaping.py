"""Shaped rewards and token weights against the reference notes' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages
from alignax.types import InputError


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_overlong_worked_numbers():
    """DAPO, reference A10."""
    lengths = jnp.array([0, 16384, 16385, 18432, 20480, 20481])
    actual = advantages.overlong_penalty(lengths, max_length=20480, buffer=4096)
    close(actual, [0, 0, -0.00024414, -0.5, -1, -1])


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (500, 0.7071068, 0),
        (1000, 0, 0),
        (1500, -0.7, -0.7071068),
        (2000, -0.7, -1),
        (9000, -0.7, -1),
    ],
)
def test_history_length_worked_numbers(length, right, wrong):
    """HAPO, reference B7; with no history there is no reward."""
    lengths = jnp.full(2, length)
    correct, history = jnp.array([True, False]), jnp.full(2, 1000.0)
    actual = advantages.history_length_reward(lengths, correct, history)
    close(actual, [right, wrong])
    unknown = jnp.full(2, jnp.inf)
    without = advantages.history_length_reward(lengths, correct, unknown)
    np.testing.assert_array_equal(without, 0)
    # Every right answer stays above every wrong one.
    totals = correct + actual
    assert totals[0] >= 0.3 - 1e-6
    assert totals[1] <= 0


def test_history_is_the_shortest_right_answer():
    history = jnp.array([jnp.inf, 10.0])
    index, lengths = jnp.array([0, 0, 1, 1]), jnp.array([7, 5, 12, 3])
    correct = jnp.array([True, True, True, False])
    np.testing.assert_array_equal(
        advantages.history_update(history, index, lengths, correct), [5, 10]
    )


@pytest.mark.parametrize(
    ("excess", "extra"), [(500, 0.004987), (5000, 0.048770), (50000, 0.393468)]
)
def test_long_failures_worked_numbers(excess, extra):
    """APO's STCR, reference B4."""
    lengths, correct = jnp.array([1000, 1000 + excess]), jnp.array([True, False])
    close(advantages.long_failure_multiplier(lengths, correct), [1, 1 + extra], 1e-5)
    none = jnp.zeros(2, bool)
    np.testing.assert_array_equal(advantages.long_failure_multiplier(lengths, none), 1)


def test_consistency_bonus_worked_numbers():
    """GRPO-CARE, reference B3, and a group without a right answer."""
    accuracy, confidence = jnp.array([1.0, 1, 1, 0]), jnp.array([0.9, 0.6, 0.5, 0.95])
    bonus = advantages.consistency_bonus(accuracy, confidence)
    close(bonus, [1, 0, 0, 0])
    actual = advantages.group_standardised(accuracy + bonus)
    close(actual, [1.224595, 0, 0, -1.224595])
    np.testing.assert_array_equal(
        advantages.consistency_bonus(jnp.zeros(4), confidence), 0
    )


def test_contrastive_rewards_worked_numbers():
    """GRACE, reference B21."""
    queries = jnp.array([[1.0, 0], [0, 1.0]])
    documents = jnp.array([[[1.0, 1], [1, 0]], [[0, 1.0], [1, 2]]])
    negatives = jnp.array([[0.0, 1], [1, 0]])
    function = jax.jit(advantages.contrastive_rewards)
    actual = function(queries, documents, negatives)
    close(actual[0], [7.590854, 10.519786], 1e-5)
    # A zero vector, and a single group of one.
    zeros = function(0 * queries[:1], 0 * documents[:1, :1], negatives[:1])
    np.testing.assert_array_equal(zeros, 0)


def test_multiplicative_worked_numbers():
    """CaRL, reference B22: no penalty telescopes to the final completion."""
    base, factors = jnp.full(4, 10.0), jnp.array([[1.0], [0.5], [1.0], [0.0]])
    close(advantages.multiplied_rewards(base, factors), [10, 5, 10, 0])
    assert advantages.multiplied_rewards(base, jnp.full((4, 3), 7.0)).sum() == 40


def test_running_moments_do_not_depend_on_the_split():
    """PPO-max, reference A4."""
    values = np.random.default_rng(0).normal(3, 2, 60).astype(np.float32)
    moments = advantages.running_moments()
    for sizes in ([60], [1, 59], [7, 13, 40], [20, 20, 20]):
        state = moments.init()
        for part in np.split(values, np.cumsum(sizes)[:-1]):
            state = moments.update(state, jnp.array(part))
        close(state.mean, values.mean(), 1e-5)
        close(state.variance, values.var(), 1e-5)
    expected = np.clip((values - values.mean()) / values.std(ddof=1), -1, 1)
    actual = advantages.running_standardised(jnp.array(values), state, clip=1.0)
    close(actual, expected, 1e-5)
    # One reward alone has no scale.
    one = moments.update(moments.init(), jnp.array([3.0]))
    close(advantages.running_standardised(jnp.array([3.0]), one), 0)


def test_bco_shift_is_the_mean_of_all_rewards():
    """arXiv 2404.04656, §3.3, over batches of any size, what is masked left out; a
    batch of nothing changes nothing."""
    moments = advantages.running_moments()
    state = moments.init()
    for values, counted in (
        ([np.nan], [0]),
        ([1.0, 2.0, np.inf], [1, 1, 0]),
        ([6.0, np.nan], [1, 0]),
        ([np.nan], [0]),
    ):
        state = moments.update(state, jnp.array(values), jnp.array(counted, bool))
    close(state.mean, 3.0)
    close(state.variance, np.var([1, 2, 6]))
    assert state.count == 3


def test_exploration_worked_number():
    """RL-PLUS, reference B1; a log-probability of 0, or a rounding above, is safe."""
    logp = jnp.log(jnp.array([0.3, 1.0])) + jnp.array([0, 1e-7])
    actual = advantages.exploration_advantages(jnp.ones(2), logp, jnp.ones(2, bool))
    close(actual, [0.836660, 0])


def test_entropy_shaping_worked_numbers():
    """Reference A18."""
    values, entropy = jnp.array([1.0, 1.0, -0.5]), jnp.array([0.2, 3.0, 1.0])
    actual = advantages.entropy_shaped(values, entropy, jnp.ones(3, bool))
    close(actual - values, [0.08, 0.5, 0.25])


def test_relative_entropy_worked_numbers():
    """HAPO, reference B8: signed, and the official code's bug as its magnitude."""
    entropy = jnp.array([[0.05, 0.2, 0.5, 1.0, 2.0]])
    level = advantages.relative_entropy_level(entropy, entropy > 0, pivot=0.5)
    close(level[0], [-1, -0.397940, 0, 0.5, 1], 1e-5)
    close(1 + 0.05 * level[0], [0.95, 0.980103, 1, 1.025, 1.05], 1e-5)
    equal = advantages.relative_entropy_level(0 * entropy + 1, entropy > 0, pivot=0.5)
    np.testing.assert_array_equal(equal, 0)


def test_redistribution_branches():
    ratios = jnp.array([0.0, 0.5, 0.0, 0.5])
    level = jnp.array([0.5, 0.5, -0.5, -0.5])
    actual = advantages.redistributed_advantages(
        jnp.ones(4), level, ratios, jnp.ones(4, bool)
    )
    close(actual, [1, 1.5, 0.5, 1])


def test_conflict_weights_worked_numbers():
    """GTPO, reference B15: the official code's product, and the paper's union."""
    tokens = jnp.array([[5, 6, 7, 2], [5, 8, 7, 2], [5, 6, 9, 2]])
    values, mask = jnp.array([1.0, -1, -1]), jnp.ones((3, 4), bool)
    weights, count = advantages.conflict_weights(tokens, values, mask, product=True)
    np.testing.assert_array_equal(weights, [[4] * 4, [0, 1, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(count, [4, 3, 3])
    weights, _ = advantages.conflict_weights(tokens, values, mask)
    np.testing.assert_array_equal(weights[0], 2)
    # Ends are aligned by length.
    tokens = jnp.array([[5, 6, 2, 0], [8, 9, 7, 2]])
    mask = jnp.array([[True, True, True, False], [True] * 4])
    weights, count = advantages.conflict_weights(tokens, values[:2], mask)
    np.testing.assert_array_equal(weights, [[1, 1, 2, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(count, [1, 1])
    agree, count = advantages.conflict_weights(tokens, jnp.ones(2), mask)
    np.testing.assert_array_equal(agree, mask)
    assert not count.any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages.overlong_penalty(jnp.ones(1), max_length=4, buffer=5),
        lambda: advantages.history_length_reward(
            jnp.ones(1), jnp.ones(1, bool), jnp.ones(1), least=-1.0
        ),
        lambda: advantages.long_failure_multiplier(
            jnp.ones(1), jnp.ones(1, bool), rate=0.0
        ),
        lambda: advantages.consistency_bonus(jnp.ones(2), jnp.ones(2), margin=-1.0),
        lambda: advantages.running_standardised(
            jnp.ones(2), advantages.running_moments().init(), clip=0.0
        ),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
