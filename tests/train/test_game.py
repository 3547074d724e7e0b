"""The expected change of one whole step of a game against its enumerated gradient.

A tabular policy over three tokens and two positions has seven completions. Every pair
of an own completion and an opponent's is a contest, as probable as its sides' laws say;
for each, the public step runs as it is, from the record to the optimiser.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import exact, games
from alignax.pipeline import rollout as rollouts
from alignax.train import game
from alignax.types import InputError, Prompts, Rollout

V, T, BETA, EOS = 3, 2, 0.3, 2
APPLY = exact.make_tabular_apply(vocab_size=V, horizon=T)
PARAMS, REF, OTHER, ANCHOR = (
    exact.tabular_init(
        jax.random.key(seed), prompts=1, vocab_size=V, horizon=T, scale=0.7
    )
    for seed in range(1, 5)
)
TOKENS, MASK = exact.enumerate_completions(V, T, eos_id=EOS)
N = len(TOKENS)
PREFERENCE = games.random_preference(jax.random.key(5), count=N, scale=2.0)
SCORE = rollouts.score_by_logits(APPLY)
TX = optax.sgd(1.0)
PROMPTS = Prompts(
    tokens=jnp.zeros((1, 1), jnp.int32),
    mask=jnp.ones((1, 1), bool),
    index=jnp.zeros(1, jnp.int32),
)


def law(params, apply_fn=APPLY):
    return exact.completion_logp(apply_fn, params, PROMPTS.tokens[0], TOKENS, MASK)


def mixed(params, mixture):
    return law((params, REF), games.mixture_policy(APPLY, APPLY, mixture=mixture))


def objective(params, opponent, anchor=None, eta=1.0):
    """P(π ≻ π') − β KL(π‖ρ), less the anchor's KL."""
    logp = law(params)
    win = jnp.exp(logp) @ PREFERENCE @ jax.lax.stop_gradient(jnp.exp(opponent))
    gain = win - BETA * exact.kl(logp, law(REF))
    return gain if anchor is None else gain - exact.kl(logp, law(anchor)) / eta


def squared(params, mixture):
    """Calandriello et al.'s gradient: E_ν[∇log π (P(y ≻ ν) − ½ − β (l − E_ν l))]."""
    weights = jnp.exp(mixed(PARAMS, mixture))
    ratio = law(PARAMS) - law(REF)
    gain = PREFERENCE @ weights - 0.5 - BETA * (ratio - weights @ ratio)
    return jnp.sum(weights * gain * law(params))


def regression(params, eta=1 / BETA):
    """Wu et al.'s gradient at β/2 times the loss: E_t[∇log π (P − ½ − β log π/π_t)]."""
    weights = jnp.exp(law(OTHER))
    gain = PREFERENCE @ weights - 0.5 - (law(PARAMS) - law(OTHER)) / eta
    return jnp.sum(weights * gain * law(params))


def iterated(params, eta=2.0):
    """Zhang et al.'s: online IPO of strength 1/η towards ρ^{βη} π_t^{1−βη}."""
    weights, share = jnp.exp(law(OTHER)), BETA * eta
    ratio = law(PARAMS) - share * law(REF) - (1 - share) * law(OTHER)
    gain = PREFERENCE @ weights - 0.5 - (ratio - weights @ ratio) / eta
    return jnp.sum(weights * gain * law(params))


def explored(params, alpha=0.3):
    """DPO's loss over all pairs of the policy and the reference, by its formula."""
    ratio = law(params) - law(REF)
    margin = BETA * (ratio[:, None] - ratio[None])
    loss = -PREFERENCE * jax.nn.log_sigmoid(margin)
    loss -= (1 - PREFERENCE) * jax.nn.log_sigmoid(-margin)
    loss += alpha * law(params)[None]
    pairs = jnp.exp(law(PARAMS)[:, None] + law(REF)[None])
    return -jnp.sum(jax.lax.stop_gradient(pairs) * loss) / BETA


def rows_of(numbers):
    """``[len(numbers)]`` completions of the one prompt."""
    return Rollout(
        tokens=TOKENS[numbers],
        attended=MASK[numbers],
        trained=MASK[numbers],
        prompt_tokens=jnp.zeros((len(numbers), 1), jnp.int32),
        prompt_mask=jnp.ones((len(numbers), 1), bool),
    )


def state_of(method, held=None):
    state = game.init_state(
        method, PARAMS, TX, jax.random.key(0), beta=BETA, reference=REF
    )
    if held is None:
        return state
    return dataclasses.replace(state, memory={"opponent": held})


def expected_change(method, state, own, opponent):
    step = game.make_step(method, SCORE, TX, jit=False)
    pairs = jnp.array(list(itertools.product(range(N), repeat=2)))

    def change(pair):
        contest = game.Contest(rollout=rows_of(pair[:1]), opponents=rows_of(pair[1:]))
        wins = PREFERENCE[pair[0], pair[1]].reshape(1, 1, 1)
        return step(state, contest.judged(wins))[0].params

    @jax.jit
    def run(weights):
        new = jax.vmap(change)(pairs)
        return jax.tree.map(
            lambda x, old: jnp.tensordot(weights, x - old[None], 1), new, PARAMS
        )

    return flat(run(jnp.exp(own[pairs[:, 0]] + opponent[pairs[:, 1]])))


def texts(tokens, mask):
    pairs = zip(np.asarray(tokens), np.asarray(mask), strict=True)
    return [tuple(row[keep].tolist()) for row, keep in pairs]


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


PROX = games.MirrorProxState(ANCHOR, OTHER, jnp.int32(0))
CASES = {
    "self-play": (
        game.nash_md(mixture=0.0),
        None,
        lambda: (law(PARAMS), law(PARAMS)),
        lambda p: objective(p, law(PARAMS)),
    ),
    "Nash-MD": (
        game.nash_md(mixture=0.4),
        None,
        lambda: (law(PARAMS), mixed(PARAMS, 0.4)),
        lambda p: objective(p, mixed(PARAMS, 0.4)),
    ),
    "Nash-EMA": (
        game.nash_ema(decay=0.5),
        OTHER,
        lambda: (law(PARAMS), law(OTHER)),
        lambda p: objective(p, law(OTHER)),
    ),
    "Nash-MP": (
        game.nash_mp(eta=2.0, inner_steps=3),
        PROX,
        lambda: (law(PARAMS), law(OTHER)),
        lambda p: objective(p, law(OTHER), ANCHOR, 2.0),
    ),
    "online IPO": (
        game.ipo_md(mixture=0.0),
        None,
        lambda: (law(PARAMS), law(PARAMS)),
        lambda p: objective(p, law(PARAMS)),
    ),
    "IPO-MD": (
        game.ipo_md(mixture=0.4),
        None,
        lambda: (mixed(PARAMS, 0.4), mixed(PARAMS, 0.4)),
        lambda p: squared(p, 0.4),
    ),
    "SPPO": (
        game.sppo(inner_steps=3),
        OTHER,
        lambda: (law(OTHER), law(OTHER)),
        regression,
    ),
    "INPO": (
        game.inpo(eta=2.0, inner_steps=3),
        OTHER,
        lambda: (law(OTHER), law(OTHER)),
        iterated,
    ),
    "XPO": (
        game.xpo(alpha=0.3),
        None,
        lambda: (law(PARAMS), law(REF)),
        explored,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "Nash-MP" else pytest.mark.slow)
        for name in CASES
    ],
)
def test_expected_step_is_the_gradient_of_the_game(name):
    method, held, laws, gain = CASES[name]
    actual = expected_change(method, state_of(method, held), *laws())
    expected = flat(jax.grad(gain)(PARAMS))
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Nash-MD", "Nash-EMA", "IPO-MD", "INPO", "XPO"])
def test_each_side_is_sampled_from_its_law(name):
    """4000 completions of each side: shares within five standard errors."""
    method, held, laws, _ = CASES[name]
    sample = game.make_sampler(
        method, APPLY, completions=4000, max_tokens=T, eos_id=EOS, pad_id=EOS
    )
    contest = sample(state_of(method, held), PROMPTS)
    known = {text: i for i, text in enumerate(texts(TOKENS, MASK))}
    seen = []
    for rollout, wanted in zip(
        (contest.rollout, contest.opponents), laws(), strict=True
    ):
        rows = texts(rollout.tokens, rollout.trained)
        seen.append([known[text] for text in rows])
        shares = np.bincount(seen[-1], minlength=N) / 4000
        wanted = np.exp(np.float64(wanted))
        error = np.sqrt(wanted * (1 - wanted) / 4000)
        assert (np.abs(shares - wanted) < 5 * error).all()
    assert seen[0] != seen[1]


@pytest.mark.slow
def test_opponents_follow_and_the_split_does_not_matter():
    """Two prompts, three rows against two: the average moves; parts change nothing."""
    method = game.nash_ema(decay=0.5)
    prompts = jax.tree.map(lambda x: jnp.concatenate([x, x]), PROMPTS)
    sample = game.make_sampler(
        method, APPLY, completions=3, opponents=2, max_tokens=T, eos_id=EOS
    )
    ends = []
    for microbatches in (1, 2):
        step = game.make_step(method, SCORE, TX, microbatches=microbatches)
        state = state_of(method)
        for _ in range(2):
            contest = sample(state, prompts)
            wins = jax.random.uniform(jax.random.key(1), (2, 3, 2))
            before = state_of(method, jax.tree.map(jnp.copy, state.memory["opponent"]))
            state, metrics = step(state, contest.judged(wins))
            expected = jax.tree.map(
                lambda x, y: 0.5 * (x + y), before.memory["opponent"], state.params
            )
            np.testing.assert_allclose(
                flat(state.memory["opponent"]), flat(expected), rtol=1e-6
            )
        assert step._cache_size() <= 1
        assert abs(float(metrics["preference"]) - float(wins.mean())) < 1e-6
        assert int(state.step) == 2
        ends.append(flat(state.params))
    assert np.linalg.norm(ends[0] - flat(PARAMS)) > 0.01
    np.testing.assert_allclose(*ends, atol=1e-6)
    with pytest.raises(InputError, match=r"contest\.preferences is missing"):
        step(state, contest)
