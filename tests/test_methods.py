"""Methods against their papers: each beside NumPy, brute force, or a smaller batch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages, algorithms
from alignax.types import InputError
from tests.algorithm_batch import (
    ALGORITHMS,
    ENTROPY,
    LOGP,
    MASK,
    OLD,
    REF,
    REWARDS,
    B,
    G,
    K,
    T,
    loss,
    scored,
    several,
)

m = np.asarray(MASK)
n = m.sum(1)
H = np.where(m, np.float64(ENTROPY), 0)
R = np.float64(REWARDS)
# Rewards of a model: all positive, none equal.
MODEL = 3 + jax.random.uniform(jax.random.key(1), (G, K))


def prepared(name, data):
    algorithm = ALGORITHMS[name]
    data = dataclasses.replace(data, values=several(algorithm, data.values))
    return algorithms.prepare(algorithm, data)


def gradient(name, data, logp=LOGP, rows=None):
    """Of the loss in the tokens' log-probabilities."""
    rows = prepared(name, data) if rows is None else rows
    return np.asarray(jax.grad(loss, argnums=1)(ALGORITHMS[name], logp, ENTROPY, rows))


def close(found, expected, rtol=1e-5):
    """Relative to the norm of the whole."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


def standardised(rewards):
    deviation = rewards.std(1, ddof=1, keepdims=True)
    centred = rewards - rewards.mean(1, keepdims=True)
    return np.where(deviation > 0, centred / (deviation + 1e-4), 0)


def clipped(ratio, a, low=0.2, high=0.2):
    """PPO's coefficient on the score."""
    dead = ((a > 0) & (ratio > 1 + high)) | ((a < 0) & (ratio < 1 - low))
    return np.where(dead, 0, ratio * a)


RATIO = np.exp(np.where(m, np.float64(LOGP) - np.float64(OLD), 0))


@pytest.mark.parametrize("start", [0.5, 5.0])
def test_gtpo_drops_by_the_entropy_at_the_start(start):
    """A policy that was uncertain from the start keeps all completions; dropped ones
    stay in the denominator. Tokens are all different: no conflicts."""
    data = scored(initial_entropy=jnp.float32(start))
    tokens = jnp.arange(B * T).reshape(B, T)
    rollout = dataclasses.replace(data.rollout, tokens=tokens)
    data = dataclasses.replace(data, rollout=rollout)
    mean = H.sum(1) / n
    calm = (mean <= np.log(2)) | (start >= np.log(2))
    assert 0 < calm.sum() < B or start > 1
    a = standardised(R).reshape(B) - 0.1 * mean
    expected = m * -(calm * a / n / B)[:, None]
    close(gradient("gtpo", data), expected)


def test_d3s_takes_the_widest_half_and_its_telling_tokens():
    """Against all subsets, and a sort."""
    data = scored(rewards=MODEL)
    a = standardised(np.float64(MODEL)).reshape(B)
    best = max(itertools.combinations(range(B), B // 2), key=lambda s: a[list(s)].var())
    rows = prepared("d3s", data)
    kept = m & np.isin(np.arange(B), best)[:, None]
    np.testing.assert_array_equal(rows.mask, kept)
    scores = np.where(kept, np.abs(a)[:, None] * H, -1)
    chosen = scores >= np.sort(scores.ravel())[::-1][int(0.5 * kept.sum()) - 1]
    expected = -clipped(RATIO, a[:, None]) * chosen * kept / kept.sum()
    close(gradient("d3s", data), expected)


def test_scale_rl_is_more_than_its_clip():
    """Uneven prompts alone, one deviation of theirs, a mean for each prompt."""
    data = scored(rewards=REWARDS + 2)
    uneven = np.ptp(R, axis=1) > 0
    centred = R - R.mean(1, keepdims=True)
    a = (centred / centred[uneven].std()).reshape(B, 1)
    kept = m & np.repeat(uneven, K)[:, None]
    tokens = np.repeat(kept.reshape(G, -1).sum(1), K)[:, None]
    expected = -np.minimum(RATIO, 5) * a * kept / np.maximum(tokens, 1) / uneven.sum()
    close(gradient("cispo (ScaleRL)", data), expected)


def test_confucius_holds_the_mean_entropy():
    """The term in all is 0.001 |H̄ − 0.55|, whatever the lengths."""
    rows = prepared("confucius3", scored())
    kept = np.asarray(rows.mask)
    found = jax.grad(loss, argnums=2)(ALGORITHMS["confucius3"], LOGP, ENTROPY, rows)
    mean = H[kept].mean()
    close(found, 0.001 * np.sign(mean - 0.55) * kept / kept.sum())


def test_dph_rl_has_the_papers_jensen_shannon():
    """``f = u log u − (u + 1) log((u + 1)/2)`` at 0.1, of stored rows."""
    data = scored()
    rows = prepared("dph_rl (JS)", data)
    kept = np.asarray(rows.mask)
    last = (np.arange(B) % K == K - 1)[:, None] & kept
    u = np.exp(np.float64(LOGP) - np.float64(REF))
    expected = 0.1 * u * (np.log(u) - np.log((u + 1) / 2)) * last / kept.sum()
    close(gradient("dph_rl (JS)", data) * last, expected)


def test_cure_is_dapo_with_branches():
    """The group's filter included: groups of one outcome are left out."""
    cure, dapo = ALGORITHMS["cure"], ALGORITHMS["dapo (official script)"]
    assert dataclasses.replace(cure, sampling=dapo.sampling) == dapo
    kept = np.repeat((R.mean(1) > 0) & (R.mean(1) < 1), K)[:, None]
    np.testing.assert_array_equal(prepared("cure", scored()).mask, m & kept)


def test_eighty_twenty_ranks_what_is_trained():
    kept = m & np.repeat((R.mean(1) > 0) & (R.mean(1) < 1), K)[:, None]
    scores = np.where(kept, H, -1)
    count = max(1, int(0.2 * kept.sum()))
    chosen = scores >= np.sort(scores.ravel())[::-1][count - 1]
    np.testing.assert_array_equal(prepared("eighty_twenty", scored()).weights, chosen)


def subset(data, rows):
    """The batch of the given rows, as many of each group."""

    def some(x):
        if not hasattr(x, "shape") or x.ndim == 0:
            return x
        if x.shape[0] == B:
            return x[rows]
        if x.shape[:2] == (G, K):
            return x.reshape(B, *x.shape[2:])[rows].reshape(G, -1, *x.shape[2:])
        return x

    return jax.tree.map(some, data)


def test_pf_ppo_is_ppo_on_the_best_and_the_worst():
    """A batch without the others, critic, whitening, denominator and all."""
    data = scored(rewards=MODEL)
    rows = np.sort(
        np.concatenate(
            [
                np.arange(G) * K + np.asarray(pick(MODEL, axis=1))
                for pick in (jnp.argmax, jnp.argmin)
            ]
        )
    )
    small = prepared("ppo", subset(data, rows))
    wanted = jax.grad(loss, argnums=1)(
        ALGORITHMS["ppo"], LOGP[rows], ENTROPY[rows], small
    )
    found = gradient("pf_ppo", data)
    close(found[rows], wanted)
    assert not np.delete(found, rows, axis=0).any()
    close(prepared("pf_ppo", data).returns[rows], small.returns)


def test_mpo_is_ppo_on_what_the_newest_rubric_judged():
    version = jnp.array([[3, 3, 2, 3], [2, 2, 2, 2], [3, 3, 3, 3], [1, 3, 3, 3]])
    data = scored(rewards=MODEL, reward_version=version)
    kept = MASK & (version == 3).reshape(B, 1)
    close(gradient("mpo", data), gradient("ppo", scored(rewards=MODEL, mask=kept)))


def test_ppo_ends_cut_completions_unless_told():
    """GAE by a loop: a cut completion is worth nothing after its last token, or by
    ``bootstrapped`` that token's value."""
    data = scored()
    values, done = np.float64(data.values), np.asarray(data.rollout.finished)
    k1 = np.float64(OLD) - np.float64(REF)
    assert not done.all()
    for name, go_on in (("ppo", False), ("ppo (bootstrapped)", True)):
        expected = np.zeros((B, T))
        for i in range(B):
            last = n[i] - 1
            after = values[i, last] if go_on and not done[i] else 0
            gain = 0.0
            for t in range(last, -1, -1):
                reward = -0.05 * k1[i, t] + (R.reshape(B)[i] if t == last else 0)
                gain = reward + after - values[i, t] + 0.95 * gain
                after = values[i, t]
                expected[i, t] = gain + values[i, t]
        close(prepared(name, data).returns, expected)


def test_ppo_max_normalises_rewards_by_all_so_far():
    state = advantages.Moments(*map(jnp.float32, (3.2, 0.01, 100.0)))
    data = scored(rewards=MODEL, moments=state)
    by_hand = np.clip((np.float64(MODEL) - 3.2) / np.sqrt(0.01 * 100 / 99), -10, 10)
    found = prepared("ppo_max", data)
    ppo = dataclasses.replace(ALGORITHMS["ppo"], beta=0.02)
    wanted = algorithms.prepare(ppo, scored(rewards=jnp.float32(by_hand)))
    close(found.advantages, wanted.advantages)
    close(found.returns, wanted.returns)


def test_t_ppo_trains_the_window_and_its_critic_whole_completions():
    version = jnp.broadcast_to(jnp.where(jnp.arange(T) < 1, 6, 7), (B, T))
    data = scored()
    rollout = dataclasses.replace(data.rollout, version=version)
    rows = prepared("t_ppo", dataclasses.replace(data, rollout=rollout))
    np.testing.assert_array_equal(rows.mask, m & (np.arange(T) >= 1))
    done = np.asarray(rollout.finished)
    np.testing.assert_array_equal(rows.learned, rows.mask & done[:, None])
    # λ = 1 without a penalty: the outcome.
    close(
        np.where(rows.learned, rows.returns, 0),
        np.where(rows.learned, R.reshape(B, 1), 0),
    )


def test_safe_has_two_heads_and_its_own_controller():
    data = scored()
    both = several(ALGORITHMS["safe"], np.float64(data.values))
    soft = -0.3 * (np.log(np.exp(-both / 0.3).sum(-1)) - np.log(2))
    close(prepared("safe", data).values_old, np.where(m, soft, 0))
    with pytest.raises(InputError, match="2 heads"):
        algorithms.prepare(ALGORITHMS["safe"], data)
    controller = ALGORITHMS["safe"].controller(beta=0.0)
    state = controller.init()
    for _ in range(80):
        state = controller.update(
            state,
            jnp.float32(40),
            8,
            entropy=jnp.float32(0.9),
            reward=jnp.float32(0),
            tokens=jnp.float32(160),
        )
    # Two nats a token, long over the threshold of 0.24: 2 w (k − τ) · 2 / (H + 0.1).
    np.testing.assert_allclose(state.beta, 0.2 * (2 - 0.24) * 2, rtol=5e-3)


def test_kdrl_relaxes_its_teacher():
    controller = ALGORITHMS["kdrl"].controller(beta=5e-3)
    state = controller.init()
    for _ in range(100):
        state = controller.update(state, jnp.float32(1), 8, entropy=jnp.float32(1))
    np.testing.assert_allclose(state.beta, 3e-3, rtol=1e-5)
    # A run that starts elsewhere goes on from there, whichever rule updates it.
    other = ALGORITHMS["kdrl"].controller(beta=9e-3).init()
    other = controller.update(other._replace(count=99), jnp.float32(1), 8)
    np.testing.assert_allclose(other.beta, 5e-3, rtol=1e-5)
    rows = algorithms.prepare(ALGORITHMS["kdrl"], scored(beta=state.beta))
    np.testing.assert_allclose(rows.beta, 3e-3 * (1 - R.reshape(B)), rtol=1e-5)


def test_rewards_made_of_several():
    """RECAP, RLUF and CaRL are their plain method on a reward made by hand."""
    data = scored()
    several = np.float64(data.objectives)
    weights = np.float64(data.objective_weights)
    for name, rewards, plain in (
        ("recap", several @ weights, "hapo_history"),
        ("gdpo (RLUF)", several.sum(-1), "hapo_history"),
        ("carl", R * several.prod(-1), "carl"),
    ):
        base = dataclasses.replace(ALGORITHMS[plain], shape=ALGORITHMS["grpo"].shape)
        wanted = algorithms.prepare(base, scored(rewards=jnp.float32(rewards)))
        close(prepared(name, data).advantages, wanted.advantages)


def test_rto_adds_what_preferences_say():
    """PPO with token rewards: the same returns, by a loop."""
    data = scored()
    values = np.float64(data.values)
    dense = 0.05 * 0.1 * np.float64(REF) - 0.01 * (np.float64(OLD) - np.float64(REF))
    expected = np.zeros((B, T))
    for i in range(B):
        gain = after = 0.0
        for t in range(n[i] - 1, -1, -1):
            reward = dense[i, t] + (R.reshape(B)[i] if t == n[i] - 1 else 0)
            gain = reward + after - values[i, t] + 0.95 * gain
            after = values[i, t]
            expected[i, t] = gain + after
    close(prepared("rto", data).returns, expected, rtol=1e-4)


def test_opsm_follows_the_policy():
    """What the policy leaves behind after the rollout counts no longer."""
    data = scored(logp_behaviour=OLD)
    moved = OLD - 3.0 * (jnp.arange(B) % 2 == 0)[:, None]
    a = standardised(R).reshape(B, 1)
    gone = (a < 0) & (np.arange(B)[:, None] % 2 == 0)
    assert gone.any()
    ratio = np.exp(np.where(m, np.float64(moved) - np.float64(OLD), 0))
    expected = -clipped(ratio, a) * ~gone * m / n[:, None] / B
    # A bad completion below the clip is dead with the clip alone: take one above it.
    close(gradient("opsm", data, moved), expected)
    sampler = scored(logp_behaviour=OLD + 3.0)
    assert not gradient("opsm", sampler, OLD)[(a < 0)[:, 0]].any()
    assert gradient("opsm", data, OLD)[(a < 0)[:, 0]].any()


def covariance(logp, a):
    logp, a = np.where(m, np.float64(logp), 0), np.where(m, a, 0)
    return np.where(m, (logp - logp[m].mean()) * (a - a[m].mean()), -np.inf)


@pytest.mark.parametrize("moved", [False, True])
def test_kl_cov_chooses_by_the_policy_before_each_update(moved):
    """The official loss in NumPy; 2e-3 of the tokens is one token here."""
    a = np.broadcast_to(standardised(R).reshape(B, 1), (B, T))
    logp = OLD + 4 * jax.random.normal(jax.random.key(3), (B, T)) if moved else OLD
    before, now = (covariance(x, a) for x in (OLD, logp))
    top = now == now.max()
    assert moved == (before.argmax() != now.argmax())
    data, algorithm = scored(), ALGORITHMS["kl_cov"]
    rows = algorithms.followed(algorithm, logp, prepared("kl_cov", data))
    ratio = np.exp(np.where(m, np.float64(logp) - np.float64(OLD), 0))
    sign = np.sign(np.float64(logp) - np.float64(OLD))
    expected = (-ratio * a + top * sign) * m / m.sum()
    close(gradient("kl_cov", data, logp, rows), expected)


def test_clip_cov_chooses_by_the_policy_before_each_update():
    """One of those in the bounds that the clip has not taken, by the lowest draw."""
    old, algorithm = 6 * OLD, ALGORITHMS["clip_cov"]
    data = scored(logp_old=old)
    a = np.broadcast_to(standardised(R).reshape(B, 1), (B, T))
    first = prepared("clip_cov", data)
    logp = old + 0.5 * jax.random.normal(jax.random.key(8), (B, T))
    rows = algorithms.followed(algorithm, logp, first)
    draws = 1 - np.asarray(jax.random.uniform(data.key, (B, T)))
    for at, found in ((old, first), (logp, rows)):
        ratio = np.exp(np.where(m, np.float64(at) - np.float64(old), 0))
        dead = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
        cov = covariance(at, a)
        inside = (cov > 1) & (cov < 5) & ~dead
        assert inside.sum() > 1
        dropped = inside & (draws == draws[inside].min())
        expected = -clipped(ratio, a) * ~dropped * m / m.sum()
        close(gradient("clip_cov", data, at, found), expected)
    assert [int((x.level < 0).sum()) for x in (first, rows)] == [1, 1]


GRADED = ["dapo", "hapo", "confucius3", "gtpo", "pass_at_k", "eighty_twenty", "cure"]
GRADED += ["online_difficulty", "dph_rl", "gpg", "kdrl"]


@pytest.mark.parametrize("name", GRADED)
def test_a_reward_models_rewards_teach(name):
    """All of them positive: what is right is the task's word."""
    data = scored(rewards=MODEL, right=REWARDS > 0, initial_entropy=jnp.float32(1))
    assert np.abs(gradient(name, data)).sum() > 0
