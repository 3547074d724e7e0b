"""Mixtures inside the sampler, moving averages, the mirror-prox loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from alignax import exact, games, logprobs
from alignax.models import decoder, functional
from alignax.pipeline import rollout as rollouts
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close

V, T, EOS = 3, 3, 2
TOKENS, MASK = exact.enumerate_completions(V, T, eos_id=EOS)
APPLY = exact.make_tabular_apply(vocab_size=V, horizon=T)
PARAMS, REFERENCE = (
    exact.tabular_init(jax.random.key(k), prompts=1, vocab_size=V, horizon=T)
    for k in (0, 1)
)
PROMPTS = Prompts(
    tokens=jnp.zeros((1, 1), jnp.int32),
    mask=jnp.ones((1, 1), bool),
    index=jnp.zeros(1, jnp.int32),
)
MIXTURE = 0.3
MIXED = games.mixture_policy(APPLY, APPLY, mixture=MIXTURE)
sample = jax.jit(
    partial(rollouts.generate, MIXED, completions=4000, max_tokens=T, eos_id=EOS)
)


def exact_law():
    """The token-level mixture of every completion, in numpy from the tables."""
    prompt = np.asarray(PROMPTS.tokens[0])
    laws = {}
    for tokens, mask in zip(np.asarray(TOKENS), np.asarray(MASK), strict=True):
        logp, code = 0.0, 0
        for t in range(mask.sum()):
            row = sum(V**i for i in range(t)) + code
            z, z_ref = (
                np.asarray(p["logits"][prompt[0], row], np.float64)
                for p in (PARAMS, REFERENCE)
            )
            mixed = (1 - MIXTURE) * z + MIXTURE * z_ref
            logp += mixed[tokens[t]] - np.log(np.exp(mixed).sum())
            code = code * V + tokens[t]
        laws[tuple(tokens[mask].tolist())] = logp
    return laws


def test_mixture_sampler_follows_the_exact_mixture():
    """χ² of 4000 completions at a fixed seed, and the exact log-probabilities."""
    law = exact_law()
    assert abs(sum(np.exp(v) for v in law.values()) - 1) < 1e-12
    rollout = sample((PARAMS, REFERENCE), jax.random.key(5), PROMPTS)
    counts = dict.fromkeys(law, 0)
    rows = zip(*map(np.asarray, (rollout.tokens, rollout.trained)), strict=True)
    for i, (tokens, mask) in enumerate(rows):
        completion = tuple(tokens[mask].tolist())
        counts[completion] += 1
        if i < 50:
            reported = float(rollout.logp_behaviour[i].sum())
            np.testing.assert_allclose(reported, law[completion], atol=1e-5)
    observed = np.array(list(counts.values()))
    expected = 4000 * np.exp(list(law.values()))
    assert expected.min() > 5
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert statistic < chi2.ppf(0.99, len(law) - 1)
    # The test would see the policy's own law in the mixture's place.
    own = 4000 * np.exp(
        exact.completion_logp(APPLY, PARAMS, PROMPTS.tokens[0], TOKENS, MASK)
    )
    assert np.sum((observed - own) ** 2 / own) > chi2.ppf(0.9999, len(law) - 1)


def test_token_level_and_sequence_level_mixtures_differ():
    """The reference's 2×2 tree: tokens mixed one step at a time, and whole
    completions, at m = ½."""
    with jax.enable_x64(True):
        law = jnp.array([0.20852706219, 0.281482091515, 0.26773458011, 0.242256266185])
        step = jnp.array(
            [0.212778741594, 0.287221258406, 0.262489593739, 0.237510406261]
        )
        rng = np.random.default_rng(0)
        apply_fn = exact.make_tabular_apply(vocab_size=2, horizon=2)
        world = exact.enumerate_completions(2, 2)
        pair = tuple(
            {"logits": jnp.asarray(3 * rng.normal(size=(1, 3, 2)))} for _ in "ab"
        )
        prompt = jnp.zeros(1, jnp.int32)
        a, b = (exact.completion_logp(apply_fn, p, prompt, *world) for p in pair)
        whole = np.exp(games.geometric_mixture(a, b, mixture=0.5))
        mixed = games.mixture_policy(apply_fn, apply_fn, mixture=0.5)
        tokens = np.exp(exact.completion_logp(mixed, pair, prompt, *world))
        # By hand: each row of logits averaged, and the product of both tokens.
        z = (pair[0]["logits"] + pair[1]["logits"])[0] / 2
        p = np.asarray(jax.nn.softmax(z, axis=-1))
        by_hand = [p[0, i] * p[1 + i, j] for i in range(2) for j in range(2)]
        np.testing.assert_allclose(tokens, by_hand, atol=1e-7)
        np.testing.assert_allclose(whole.sum(), 1, rtol=1e-6)
        assert np.abs(tokens - whole).max() > 1e-4
        # In the reference's numbers: within a first token both agree on the second.
        np.testing.assert_allclose(law[0] / law[1], step[0] / step[1], rtol=1e-9)
        np.testing.assert_allclose(
            whole[0] / whole[1], tokens[0] / tokens[1], rtol=1e-6
        )


@pytest.mark.parametrize(("mixture", "which"), [(0.0, 0), (1.0, 1)])
def test_end_points_are_the_policy_and_the_reference(mixture, which):
    """The very completions and log-probabilities of either, from the same key."""
    pair = (PARAMS, REFERENCE)
    options = {"completions": 16, "max_tokens": T, "eos_id": EOS}
    mixed = games.mixture_policy(APPLY, APPLY, mixture=mixture)
    key = jax.random.key(3)
    found = rollouts.generate(mixed, pair, key, PROMPTS, **options)
    alone = rollouts.generate(APPLY, pair[which], key, PROMPTS, **options)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    assert_close(found.logp_behaviour, alone.logp_behaviour, rel=32 * EPS)


def test_two_decoders_keep_their_own_caches():
    """Different architectures in one jit; sampled log-probabilities are those of a
    full forward, on prompts of different lengths."""
    sizes = {"vocab_size": 5, "num_heads": 2, "num_kv_heads": 1, "max_length": 8}
    small = decoder.DecoderConfig(
        hidden_size=8, num_layers=1, head_dim=4, mlp_size=8, **sizes
    )
    large = decoder.DecoderConfig(
        hidden_size=16, num_layers=1, head_dim=8, mlp_size=8, **sizes
    )
    pair = tuple(
        jax.tree.map(lambda x: 3 * x, functional.init(c, jax.random.key(i)))
        for i, c in enumerate((small, large))
    )
    applies = tuple(map(functional.make_apply, (small, large)))
    mixed = games.mixture_policy(*applies, mixture=0.6)
    prompts = Prompts(
        tokens=jnp.array([[1, 2, 3], [0, 0, 4]]),
        mask=jnp.array([[True] * 3, [False, False, True]]),
        index=jnp.arange(2),
    )

    @jax.jit
    def run(pair, key):
        rollout = rollouts.generate(
            mixed, pair, key, prompts, completions=3, max_tokens=4, eos_id=0
        )
        parts = [
            rollouts.completion_logits(apply_fn, params, rollout)
            for apply_fn, params in zip(applies, pair, strict=True)
        ]
        return rollout, games.geometric_mixture(*parts, mixture=0.6)

    rollout, logits = run(pair, jax.random.key(1))
    logp = np.where(rollout.trained, logprobs.token_logp(logits, rollout.tokens), 0)
    np.testing.assert_allclose(rollout.logp_behaviour, logp, atol=2e-5)


def test_mirror_prox_loop_alternates_half_and_full_steps():
    """Opponent: π_k, then π_{k+1/2}; the anchor moves after both."""
    loop = games.mirror_prox_loop(inner_steps=2)
    state, seen = loop.init({"w": jnp.float32(0)}), []
    for step in range(1, 9):
        state = jax.jit(loop.update)(state, {"w": jnp.float32(step)})
        seen.append((float(state.anchor["w"]), float(state.opponent["w"])))
    assert seen == [
        (0, 0), (0, 2), (0, 2), (4, 4), (4, 4), (4, 6), (4, 6), (8, 8)
    ]  # fmt: skip


def test_practical_mirror_prox_reaches_the_equilibrium():
    """With exact gradients and a hundred inner steps each proximal step is solved:
    the loop's anchors are those of ``nash_mp``."""
    played = games.Game(
        games.weighted_cycle(jnp.array([0.3, 0.2, 0.1])),
        jnp.log(jnp.array([0.2, 0.5, 0.3])),
        0.1,
    )
    loop = games.mirror_prox_loop(inner_steps=100)

    def loss(logits, state):
        logp = jax.nn.log_softmax(logits)
        anchor, opponent = map(jax.nn.log_softmax, (state.anchor, state.opponent))
        gain = games.policy_preference(played.preference, logp, opponent)
        return 0.1 * exact.kl(logp, played.logp_ref) + exact.kl(logp, anchor) / 2 - gain

    def step(carry, _):
        logits, state = carry
        logits = logits - 1.5 * jax.grad(loss)(logits, state)
        return (logits, loop.update(state, logits)), None

    @jax.jit
    def run(logits):
        carry = logits, loop.init(logits)
        return jax.lax.scan(step, carry, length=600)[0][1].anchor

    found = jax.nn.softmax(run(played.logp_ref))
    expected = games.run_solver(games.nash_mp(), played, played.logp_ref, steps=3)[
        0
    ].logp
    np.testing.assert_allclose(found, np.exp(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: games.mixture_policy(APPLY, APPLY, mixture=1.5), "mixture"),
        (lambda: games.mirror_prox_loop(inner_steps=0), "inner_steps"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
