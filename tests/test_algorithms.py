"""Every composition: against updates written by hand, split in four, and degenerate."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms, divergences
from alignax.types import Rollout, Scored
from tests.algorithm_batch import (
    ALGORITHMS,
    BEHAVIOUR,
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
    compiled,
    each,
    loss,
    scored,
)

ROOT = Path(__file__).parent.parent


@each(ALGORITHMS)
def test_every_composition(name):
    """A batch in four has the gradient of the whole; nothing reaches masked tokens;
    degenerate batches teach nothing and give no NaN."""
    run = compiled(name)
    (value, gradient), split, rows = run(LOGP, ENTROPY, scored())
    assert np.isfinite(value)
    assert np.abs(gradient).sum() > 0
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(rows.mask)], 0)
    np.testing.assert_allclose(split, gradient, rtol=2e-4, atol=1e-7)

    nothing = jnp.zeros_like(MASK)
    (value, gradient), _, _ = run(LOGP, ENTROPY, scored(mask=nothing))
    assert value == 0
    assert not gradient.any()

    one_empty = MASK.at[0].set(False)
    one_token = jnp.broadcast_to(jnp.arange(T)[None] < 1, MASK.shape)
    drift = jnp.where(jnp.arange(B)[:, None] % 2 == 0, 50.0, -50.0)
    for logp, data in (
        (LOGP, scored(mask=one_empty)),
        (LOGP, scored(mask=one_token)),
        (LOGP, scored(rewards=1e6 * REWARDS)),
        (OLD + drift, scored()),
        (
            jnp.where(MASK, LOGP, jnp.nan),
            scored(logp_old=jnp.where(MASK, OLD, jnp.nan)),
        ),
    ):
        (value, gradient), _, _ = run(logp, ENTROPY, data)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


EQUAL_MEANS_NOTHING = [
    "grpo (TRL default)",
    "dr_grpo",
    "dapo",
    "dual_clip",
    "gspo",
    "gmpo",
    "cispo",
    "sapo",
    "vespo",
    "bnpo",
    "pass_at_k",
    "seed_grpo",
    "clip_cov",
    "hapo",
    "d3s",
    "online_difficulty",
    "eighty_twenty",
    "opo",
    "gpg",
    "tis",
    "opsm",
    "dppo",
    "drpo",
    "vaco",
    "cppo",
    "m2po",
    "max_rl",
]


@each(EQUAL_MEANS_NOTHING)
def test_equal_rewards_have_no_gradient(name):
    rewards = jnp.broadcast_to(jnp.array([[0.0], [1.0], [1.0], [0.0]]), (G, K))
    algorithm = ALGORITHMS[name]
    if name == "dapo":
        assert not algorithms.prepare(algorithm, scored(rewards=rewards)).mask.any()
    (_, gradient), _, _ = compiled(name)(LOGP, ENTROPY, scored(rewards=rewards))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


m = np.asarray(MASK)
n = m.sum(1, keepdims=True)
r = np.exp(np.where(m, np.float64(LOGP) - np.float64(OLD), 0))
R = np.float64(REWARDS)
lengths = n.reshape(G, K)


def standardised(rewards):
    deviation = rewards.std(1, ddof=1, keepdims=True)
    return np.where(
        deviation > 0,
        (rewards - rewards.mean(1, keepdims=True)) / (deviation + 1e-4),
        0,
    )


def ppo(a, high=0.2):
    return r * a * ~(((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 0.8)))


def column(x):
    return np.asarray(x).reshape(B, 1)


def grpo_by_hand():
    a = column(standardised(R))
    x = np.where(m, np.float64(LOGP) - np.float64(REF), 0)
    # ∇(e^{−x} − 1 + x) = 1 − e^{−x}; the policy descends it.
    return (ppo(a) - 0.04 * (1 - np.exp(-x))) / (B * n)


def dapo_by_hand():
    # Five tokens at the most: one of them is the buffer.
    penalty = -np.clip(lengths - (T - 1), 0, 1)
    kept = column(np.repeat((R.mean(1, keepdims=True) % 1 > 0), K, 1))
    a = column(standardised(R + penalty))
    return ppo(a, 0.28) * kept / (m * kept).sum()


def rloo_by_hand():
    gap = np.where(m, np.float64(OLD) - np.float64(REF), 0).sum(1).reshape(G, K)
    shaped = R - 0.05 * gap
    a = K / (K - 1) * (shaped - shaped.mean(1, keepdims=True))
    return column(a) / B


def gpg_by_hand():
    return column(R - R.mean(1, keepdims=True)) / 0.5 / m.sum()


def remax_by_hand():
    a = R - np.array([[1.0], [0], [0], [1]])
    return (column(a) - 0.05 * (np.float64(OLD) - np.float64(REF))) / m.sum()


def tis_by_hand():
    weight = np.minimum(np.exp(np.float64(OLD) - np.float64(BEHAVIOUR)), 2)
    return weight * ppo(column(standardised(R))) / m.sum()


def rl_plus_by_hand(current=True):
    old, new = np.exp(np.float64(OLD)), np.exp(np.float64(LOGP))
    shown = (np.arange(B) % K == K - 1)[:, None]
    own = R[:, : K - 1].mean(1, keepdims=True)
    a = column(R - own)
    explored = a * np.sqrt(np.maximum(1 - (new if current else old), 0))
    mixture = 2 * new / (old + (old + 1) / 2)
    return np.where(shown, mixture * explored, new / old * a) / (B * T)


def dppo_by_hand():
    new, old = np.exp(np.float64(LOGP)), np.exp(np.float64(BEHAVIOUR))
    a = column(standardised(R))
    gone = np.where(a > 0, new - old > 0.15, new - old < -0.15)
    assert (m & gone).any()
    return new / old * a * ~gone / m.sum()


def m2po_by_hand():
    """The batch is where the update begins: its own log-ratios choose."""
    a = column(standardised(R))
    start = np.where(m, np.float64(OLD) - np.float64(BEHAVIOUR), 0)
    away = m & (start * a > 0)
    kept = np.sort(start[away] ** 2)
    while len(kept) and kept.mean() > 0.04:
        kept = kept[:-1]
    gone = away & (start**2 > (kept[-1] if len(kept) else -1))
    assert gone.sum() > 0
    d = np.where(m, np.float64(LOGP) - np.float64(BEHAVIOUR), 0)
    return np.exp(d) * a * ~gone / m.sum()


def oapl_by_hand():
    value = 0.1 * np.log(np.exp(R / 0.1).mean(1, keepdims=True))
    d = np.where(m, np.float64(LOGP) - np.float64(BEHAVIOUR), 0).sum(1, keepdims=True)
    return -2 * 0.1 * (0.1 * d - column(R - value)) / B


def a_star_po_by_hand():
    sampled = np.array([[1.0, 0], [0, 0], [0, 1], [1, 1]])
    value = 0.5 * np.log(np.exp(sampled / 0.5).mean(1, keepdims=True))
    d = np.where(m, np.float64(LOGP) - np.float64(REF), 0).sum(1, keepdims=True)
    return -2 * 1e-3 * (1e-3 * d - column(R - value)) / B


def max_rl_by_hand():
    mean = R.mean(1, keepdims=True)
    return ppo(column(np.where(mean > 0, R / np.maximum(mean, 1e-9) - 1, 0))) / m.sum()


BY_HAND = {
    "dppo": dppo_by_hand,
    "m2po": m2po_by_hand,
    "oapl": oapl_by_hand,
    "a_star_po": a_star_po_by_hand,
    "max_rl": max_rl_by_hand,
    "grpo": grpo_by_hand,
    "dapo": dapo_by_hand,
    "rloo": rloo_by_hand,
    "gpg": gpg_by_hand,
    "remax": remax_by_hand,
    "tis": tis_by_hand,
    "rl_plus": rl_plus_by_hand,
    "rl_plus (by the old policy)": functools.partial(rl_plus_by_hand, current=False),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_updates_by_hand(name):
    """The paper's update as one NumPy formula, nothing of the package in it."""
    (_, gradient), _, _ = compiled(name)(LOGP, ENTROPY, scored())
    expected = -np.where(m, BY_HAND[name](), 0)
    np.testing.assert_allclose(gradient, expected, rtol=3e-5, atol=1e-7)


REGRESSIONS = [name for name in ALGORITHMS if name.startswith(("oapl", "f_oapl"))]


def test_regression_ends_at_the_optimum():
    """All four completions of two tokens, sampled evenly by the law they came from: at
    the exact optimum of its divergence the whole method moves nothing."""
    tokens = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    even, mask = jnp.full((4, 2), -jnp.log(2.0)), jnp.ones((4, 2), bool)
    rewards = jnp.array([[0.1, 0.0, 0.06, -0.04]])
    data = Scored(
        rollout=Rollout(
            tokens=tokens, attended=mask, trained=mask, logp_behaviour=even
        ),
        rewards=rewards,
        logp_old=even,
    )

    @jax.jit
    def run():
        found = []
        for name in REGRESSIONS:
            algorithm = ALGORITHMS[name]
            div = dict(algorithm.rule.settings)["div"]
            whole, _, _ = divergences.regularised_optimum(
                div, rewards[0], even.sum(-1), beta=algorithm.beta
            )
            first = jax.nn.logsumexp(whole.reshape(2, 2), axis=-1)[tokens[:, 0]]
            logp = jnp.stack([first, whole - first], axis=-1)
            rows = algorithms.prepare(algorithm, data)
            step = jax.grad(functools.partial(loss, algorithm))
            found.append((step(logp, even, rows), step(even, even, rows)))
        return found

    assert len(REGRESSIONS) == 5
    for name, (there, before) in zip(REGRESSIONS, run(), strict=True):
        scale = np.abs(before).max()
        assert scale > 0
        np.testing.assert_allclose(there, 0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.slow
def test_luspo_is_gspo_without_the_length():
    gradients = [
        np.asarray(compiled(name)(LOGP, ENTROPY, scored())[0][1])
        for name in ("gspo", "gspo (LUSPO)")
    ]
    np.testing.assert_allclose(gradients[1], n * gradients[0], rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_two_gspo_forms_have_one_gradient():
    gradients = [
        np.asarray(compiled(name)(LOGP, ENTROPY, scored())[0][1])
        for name in ("gspo", "gspo (GSPO token)")
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-8)


def test_stored_rows_are_only_regularised():
    """DPH-RL: the reference's completions move the policy by the divergence alone."""
    _, _, rows = compiled("dph_rl")(LOGP, ENTROPY, scored())
    stored = np.arange(B) % K == K - 1
    assert not np.asarray(rows.weights)[stored].any()
    np.testing.assert_array_equal(np.asarray(rows.beta) > 0, stored)
    (_, gradient), _, _ = compiled("dph_rl")(LOGP, ENTROPY, scored())
    # KL(ρ‖π) on ρ's tokens: the gradient of f(u) = u − 1 − log u is u − 1.
    u = np.exp(np.float64(LOGP) - np.float64(REF))
    kept = np.asarray(rows.mask)
    expected = 0.05 * (u - 1) * kept / kept.sum()
    np.testing.assert_allclose(
        np.asarray(gradient)[stored], expected[stored], rtol=1e-4, atol=1e-7
    )


def test_text_in_context_is_off_policy():
    """TriMPI: ratios are to what sampled, so only those of other laws differ from 1."""
    behaviour = jnp.where((jnp.arange(B) % K < 2)[:, None], OLD, BEHAVIOUR)
    _, _, rows = compiled("trimpi")(OLD, ENTROPY, scored(logp_behaviour=behaviour))
    ratio = np.asarray(rows.logp_old) - np.where(m, OLD, 0)
    assert not ratio[np.arange(B) % K < 2].any()
    assert np.abs(ratio[np.arange(B) % K >= 2]).max() > 0.1
