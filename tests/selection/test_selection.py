"""What is kept: worked numbers, brute force, invariants of the buffers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages, selection
from alignax.types import InputError


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_dynamic_sampling_is_neutral_up_to_a_factor():
    """Reference A10: the kept groups' expected gradient is (Σ∇)/(Σ P_mix)."""
    rates, size = np.array([0.5, 0.1]), 4
    groups = np.array(list(itertools.product([0.0, 1.0], repeat=size)))
    kept = np.asarray(selection.mixed_groups(jnp.array(groups) > 0))
    relative = np.asarray(advantages.leave_one_out(jnp.array(groups)))
    gradients, mixed = [], []
    for p in rates:
        law = np.prod(np.where(groups > 0, p, 1 - p), axis=1)
        # The score of one logit: y − p.
        each = (relative * (groups - p)).mean(1)
        assert law @ (each * kept) == pytest.approx(law @ each, abs=1e-7)
        gradients.append(law @ (each * kept))
        mixed.append(law @ kept)
    close(gradients, [0.25, 0.09], 1e-6)
    close(mixed, 1 - rates**size - (1 - rates) ** size, 1e-6)
    close(sum(gradients) / sum(mixed), 0.278966, 1e-5)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.5, 0.999969), (0.1, 0.814698), (0.01, 0.148542)]
)
def test_keep_probability_of_sixteen(p, kept):
    draws = jax.random.bernoulli(jax.random.key(0), p, (20_000, 16))
    assert selection.mixed_groups(draws).mean() == pytest.approx(kept, abs=6e-3)


def test_difficulty_band_and_its_theory():
    """Reference C2: p* − p ≥ (1 − e^{−1/β}) p(1 − p) and Jeffreys = (p* − p)/β."""
    accuracy = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    kept = selection.difficulty_band(accuracy)
    assert kept.tolist() == [False, True, True, True, False]
    for p, beta in itertools.product((0.1, 0.5, 0.9), (0.1, 1.0)):
        best = p * np.exp(1 / beta) / (1 - p + p * np.exp(1 / beta))
        assert best - p >= (1 - np.exp(-1 / beta)) * p * (1 - p) - 1e-12


def test_filtration_worked_numbers():
    """PF-PPO, reference B18."""
    rewards = jnp.array([-1.0, 0.2, 0.5, 2.0, 0.1])
    close(selection.best_worst_weights(rewards), [0.5, 0, 0, 0.5, 0])


def test_widest_subset_is_the_best_of_all():
    """D3S, reference B17: worked numbers, and brute force over every subset."""
    values = jnp.array([1.2, 0.3, -0.1, -0.4, -1.0])
    for size, variance in ((2, 1.21), (3, 0.862222), (4, 0.671875)):
        kept = selection.widest_subset(values, size=size)
        assert kept.sum() == size
        close(np.var(np.asarray(values)[kept]), variance, 1e-5)
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    for size in (2, 3, 6):
        kept = np.asarray(selection.widest_subset(jnp.array(rows), size=size))
        chosen = [row[mask].var() for row, mask in zip(rows, kept, strict=True)]
        best = [
            max(np.var(subset) for subset in itertools.combinations(row, size))
            for row in rows
        ]
        close(chosen, best, 1e-5)


def test_top_tokens_counts_and_ranks():
    scores = jax.random.normal(jax.random.key(0), (4, 10))
    mask = jnp.arange(10)[None] < jnp.array([10, 5, 1, 0])[:, None]
    kept = selection.top_tokens(scores, mask, fraction=0.25)
    assert kept.sum() == 4
    assert scores[kept].min() > scores[mask & ~kept].max()
    assert not (kept & ~mask).any()
    # The fraction of one token is a token; of none, none.
    assert selection.top_tokens(scores, mask, fraction=1e-6).sum() == 1
    assert not selection.top_tokens(scores, mask & False, fraction=0.5).any()


def test_calm_completions():
    """GTPO's filter: only where the policy began below the threshold."""
    entropy, mask = jnp.array([[0.1], [0.9]]), jnp.ones((2, 1), bool)
    assert selection.calm_completions(entropy, mask, 0.3).tolist() == [True, False]
    assert selection.calm_completions(entropy, mask, 0.8).all()


def test_critical_tokens():
    """CURE, reference B2: deterministic by key, the argmax for k = 1, 0 for none."""
    entropy = jax.random.uniform(jax.random.key(0), (200, 12))
    eligible = jnp.arange(12)[None] < jnp.where(jnp.arange(200) < 100, 12, 0)[:, None]
    eligible = eligible.at[:, 0].set(False)
    pick = jax.jit(
        lambda key, k: selection.critical_tokens(key, entropy, eligible, k=k),
        static_argnums=1,
    )
    key = jax.random.key(1)
    np.testing.assert_array_equal(pick(key, 3), pick(key, 3))
    best = jnp.argmax(jnp.where(eligible, entropy, -1), axis=-1)
    np.testing.assert_array_equal(pick(key, 1)[:100], best[:100])
    assert not pick(key, 3)[100:].any()
    top = np.argsort(-np.where(eligible, entropy, -1), axis=-1)[:100, :3]
    chosen = np.asarray(pick(key, 3))[:100, None]
    assert (top == chosen).any(-1).all()
    assert {int(np.argmax(row)) for row in top == chosen} == {0, 1, 2}


def test_prefix_cuts_are_uniform():
    """DR-PO, reference B25: from the whole completion to none of it."""
    lengths = jnp.full(3000, 4)
    cut = selection.prefix_cuts(jax.random.key(0), lengths)
    counts = np.bincount(cut, minlength=5) / 3000
    close(counts, 0.2, 0.03)
    assert not selection.prefix_cuts(jax.random.key(0), lengths, probability=0.0).any()


def test_recovery_uses_each_row_once():
    """Confucius3-Math: full batches, nothing twice, nothing older than a step."""
    buffer = selection.replay_buffer(jnp.zeros((), jnp.int32), capacity=5).init()
    step = jax.jit(
        lambda buffer, rows, keep: selection.recent_sample_recovery(
            buffer, rows, keep, size=4
        )
    )
    rng, used = np.random.default_rng(0), []
    for number in range(12):
        rows = 1 + jnp.arange(6) + 6 * number
        keep = jnp.array(rng.random(6) < 0.7)
        before = int((buffer.age >= 0).sum())
        batch, valid, buffer = step(buffer, rows, keep)
        taken = np.asarray(batch)[np.asarray(valid)]
        assert valid.sum() == min(4, before + int(keep.sum()))
        # At most a step old: of this step's rows or the last one's.
        assert ((taken - 1) // 6 >= number - 1).all()
        used += taken.tolist()
    assert len(used) == len(set(used))
    assert 0 not in used


def test_buffer_ages_and_drops_the_oldest():
    replay = selection.replay_buffer({"x": jnp.zeros(2)}, capacity=3)
    buffer = replay.init()
    everyone = jnp.ones(2, bool)
    for number in range(3):
        rows = {"x": jnp.full((2, 2), float(number))}
        buffer = replay.update(buffer, rows, everyone)
    assert buffer.rows["x"][:, 0].tolist() == [2, 2, 1]
    assert buffer.age.tolist() == [0, 0, 1]
    _, valid = selection.replay_sample(buffer, jax.random.key(0), count=3, most_age=0)
    assert valid.sum() == 2


def test_sampling_follows_ages():
    buffer = selection.Buffer(jnp.arange(2.0), jnp.array([0, 3]))
    draw = jax.jit(
        jax.vmap(
            lambda key: selection.replay_sample(
                buffer, key, count=1, most_age=9, decay=0.5
            )[0][0]
        )
    )
    share = draw(jax.random.split(jax.random.key(0), 20_000)).mean()
    close(share, 1 / 9, 0.08)


def test_objective_weights_worked_numbers():
    """RECAP, reference B16; the code's form with the same c and i."""
    spread = np.array([0.01, 0.2])[:, None] * np.array([1.0, -1.0])
    recent = jnp.array(np.array([0.2, 0.5])[:, None] + spread)
    earlier = jnp.array([[0.2, 0.2], [0.8, 0.8]])
    weights = selection.objective_weights(recent, earlier)
    close(weights, [1.024610, 0.975390], 1e-5)
    code = selection.objective_weights(recent, earlier, alpha=0.5)
    c, i = np.array([1, 0.625]) / 5, np.array([0.025, 0.153846]) / 5
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    close(code, softmax(c) + softmax(i), 1e-5)
    close(weights.sum(), 2)


def test_roles_exchange_and_return():
    first, second = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    for step, turned in ((0, False), (4, False), (5, True), (9, True), (10, False)):
        pioneer, observer = selection.exchanged_roles(first, second, jnp.int32(step))
        assert bool(pioneer["w"][0] == 0) == turned
        back, _ = selection.exchanged_roles(pioneer, observer, jnp.int32(step))
        np.testing.assert_array_equal(back["w"], first["w"])


def test_team_reward_is_exact_for_both_roles():
    """CORY, preference reference 7.5, in a game of two steps: the score-function
    weights of the shared reward give ∇E[r₁ + r₂] for pioneer and observer; the
    observer's gradient of the pioneer's reward is zero."""
    keys = jax.random.split(jax.random.key(0), 4)
    pioneer, observer = (
        jax.random.normal(keys[0], (3,)),
        jax.random.normal(keys[1], (3, 3)),
    )
    own, other = jax.random.normal(keys[2], (3,)), jax.random.normal(keys[3], (3, 3))

    def law(pioneer, observer):
        first, second = jax.nn.log_softmax(pioneer), jax.nn.log_softmax(observer)
        return first[:, None] + second

    def value(pioneer, observer):
        return jnp.sum(jnp.exp(law(pioneer, observer)) * (own[:, None] + other))

    def surrogate(pioneer, observer, reward):
        logp = law(pioneer, observer)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logp)) * reward * logp)

    team = jax.grad(surrogate, (0, 1))(pioneer, observer, own[:, None] + other)
    for actual, expected in zip(
        team, jax.grad(value, (0, 1))(pioneer, observer), strict=True
    ):
        close(actual, expected)
    alone = jax.grad(surrogate, 1)(pioneer, observer, own[:, None] + 0 * other)
    close(alone, 0)


def test_versions_and_teachers():
    versions = jnp.array([[1, 2, 2], [3, 3, 3]])
    newest = selection.newest_version(versions)
    assert newest.tolist() == [[False, True, True], [True] * 3]
    rewards = jnp.array([[100.0, 1, 0], [1, 0, 0]])
    relative = advantages.group_centred(rewards, newest)
    close(relative[0, 1:], [0.5, -0.5])
    correct = jnp.array([[True, False], [False, False]])
    assert selection.unsolved_completions(correct).tolist() == [
        [False, True],
        [True, True],
    ]
    whole = selection.unsolved_completions(correct, whole_group=True)
    assert whole.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: selection.difficulty_band(jnp.ones(1), low=0.8, high=0.2),
        lambda: selection.widest_subset(jnp.ones(2), size=3),
        lambda: selection.top_tokens(
            jnp.ones((1, 2)), jnp.ones((1, 2), bool), fraction=0.0
        ),
        lambda: selection.critical_tokens(
            jax.random.key(0), jnp.ones(2), jnp.ones(2, bool), k=0
        ),
        lambda: selection.prefix_cuts(
            jax.random.key(0), jnp.ones(1, int), probability=2.0
        ),
        lambda: selection.replay_buffer(jnp.zeros(()), capacity=0),
        lambda: selection.objective_weights(
            jnp.ones((1, 1)), jnp.ones((1, 1)), alpha=2.0
        ),
        lambda: selection.exchanged_roles(
            jnp.ones(1), jnp.ones(1), jnp.int32(0), every=0
        ),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
