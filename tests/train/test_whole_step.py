"""The expected change of one whole step against the gradient of the stated objective.

A tabular policy over three tokens and two positions has seven completions; every
group of two is listed with its probability. For each, the public step runs as it is,
from the record to the optimiser (plain gradient descent); the expectation of what it
does to the parameters is compared with ``∇(E r − β D)``, D by enumeration.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import divergences as dv
from alignax import exact, logprobs, regularisers
from alignax.algorithms import METHODS
from alignax.pipeline import rollout as rollouts
from alignax.regularisers import Regulariser
from alignax.train import policy_gradient as pg
from alignax.types import InputError, Rollout, Scored

V, T, BETA = 3, 2, 0.3
APPLY = exact.make_tabular_apply(vocab_size=V, horizon=T)
PARAMS, REF = (
    exact.tabular_init(
        jax.random.key(seed), prompts=1, vocab_size=V, horizon=T, scale=0.7
    )
    for seed in (1, 2)
)
TOKENS, MASK = exact.enumerate_completions(V, T, eos_id=2)
N = len(TOKENS)
REWARDS = jax.random.uniform(jax.random.key(3), (N,))
PROMPT = jnp.array([0])

DIVERGENCES = {
    "reverse_kl": dv.reverse_kl(),
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(),
    "alpha": dv.alpha(0.3),
    "squared_hellinger": dv.squared_hellinger(),
    "pearson": dv.pearson(),
    "neyman": dv.neyman(),
    "jeffreys": dv.jeffreys(),
    "chi2_kl": dv.chi2_kl(),
    "mix": dv.mix([dv.reverse_kl(), dv.forward_kl()], [0.4, 0.6]),
}
SAMPLED = [("sequence", "sampled"), ("myopic", "sampled")]
FORMS = [
    (level, form, place)
    for (level, form), place in itertools.product(SAMPLED, ("reward", "loss"))
] + [("myopic", "exact", "loss"), ("myopic", "top_k", "loss")]
CHAINED = [("sequence", "exact", "loss"), ("sequence", "top_k", "loss")]
CASES = [(name, *rest) for name in DIVERGENCES for rest in FORMS] + [
    ("reverse_kl", *rest) for rest in CHAINED
]


def logp_of(params):
    return exact.completion_logp(APPLY, params, PROMPT, TOKENS, MASK)


def token_logits(params):
    """``[N, T, V]`` at each position of each completion."""
    whole = jnp.concatenate([jnp.zeros((N, 1), jnp.int32), TOKENS], axis=1)
    return APPLY(params, whole[:, :-1]).logits


def objective(params, regulariser):
    logp, logp_ref = logp_of(params), logp_of(REF)
    div = regulariser.divergence
    if regulariser.level == "sequence":
        gap = dv.exact(div, logp, logp_ref)
    else:
        token = dv.exact(div, token_logits(params), token_logits(REF))
        # Each token's own divergence; the distribution of the prefixes is held.
        held = jax.lax.stop_gradient(jnp.exp(logp))
        gap = jnp.sum(held[:, None] * jnp.where(MASK, token, 0))
    return exact.expectation(logp, REWARDS) - BETA * gap


def pairs_of(params):
    """A record for each ordered pair of completions, one group each."""
    logits = token_logits(params)
    logp, ref = (
        jnp.where(MASK, logprobs.token_logp(x, TOKENS), 0)
        for x in (logits, token_logits(REF))
    )
    pairs = jnp.array(list(itertools.product(range(N), repeat=2)))

    def record(pair):
        rollout = Rollout(
            tokens=TOKENS[pair],
            attended=MASK[pair],
            trained=MASK[pair],
            logp_behaviour=logp[pair],
            finished=jnp.ones(2, bool),
            prompt_tokens=jnp.zeros((2, 1), jnp.int32),
            prompt_mask=jnp.ones((2, 1), bool),
        )
        return Scored(
            rollout=rollout,
            rewards=REWARDS[pair][None],
            right=REWARDS[pair][None] > 0.5,
            logp_old=logp[pair],
            logp_ref=ref[pair],
        )

    return jax.vmap(record)(pairs), weights_under(params)


def weights_under(params):
    """The probability of each pair."""
    pairs = jnp.array(list(itertools.product(range(N), repeat=2)))
    return jnp.exp(jnp.sum(logp_of(params)[pairs], axis=-1))


def expected_change(regulariser, records, weights):
    """What the step does to the parameters, over all groups of two."""
    algorithm = dataclasses.replace(
        METHODS["unbiased"].algorithm, regulariser=regulariser, beta=BETA
    )
    tx = optax.sgd(1.0)
    state = pg.init_state(algorithm, PARAMS, tx, jax.random.key(0), reference=REF)
    divergence = None
    if regulariser.over_vocabulary:
        divergence = rollouts.divergence_by_logits(
            APPLY, regulariser.divergence, k=regulariser.top
        )
    step = pg.make_step(
        algorithm,
        rollouts.score_by_logits(APPLY),
        tx,
        divergence=divergence,
        jit=False,
    )

    @jax.jit
    def run(records, weights):
        new = jax.vmap(lambda scored: step(state, scored)[0].params)(records)
        return jax.tree.map(
            lambda x, old: jnp.tensordot(weights, x - old[None], 1), new, PARAMS
        )

    return run(records, weights)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        pytest.param(name, level, marks=pytest.mark.slow)
        for name in ("forward_kl", "reverse_kl", "jensen_shannon", "pearson")
        for level in ("sequence", "myopic")
        if (name, level) != ("forward_kl", "myopic")
    ],
)
def test_expected_step_on_samples_of_the_reference(name, level):
    """Stored completions of the reference: −β ∇D, at the reference's prefixes."""
    div = DIVERGENCES[name]
    regulariser = Regulariser(
        divergence=div, level=level, place="loss", samples="reference"
    )

    def objective(params):
        logp_ref = jax.lax.stop_gradient(logp_of(REF))
        if level == "sequence":
            return -BETA * dv.exact(div, logp_of(params), logp_ref)
        token = dv.exact(div, token_logits(params), token_logits(REF))
        return -BETA * jnp.sum(jnp.exp(logp_ref)[:, None] * jnp.where(MASK, token, 0))

    records, _ = pairs_of(PARAMS)
    weights = weights_under(REF)
    records = dataclasses.replace(records, rewards=jnp.zeros_like(records.rewards))
    actual = flat(expected_change(regulariser, records, weights))
    expected = flat(jax.grad(objective)(PARAMS))
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


MOVED = [
    (name, level, form)
    for name in ("reverse_kl", "forward_kl", "jensen_shannon", "chi2_kl")
    for level, form in [*SAMPLED, ("myopic", "exact"), ("myopic", "top_k")]
] + [("reverse_kl", "sequence", "exact"), ("reverse_kl", "sequence", "top_k")]
ALWAYS_MOVED = [("reverse_kl", "sequence", "top_k")]
OLD = exact.tabular_init(
    jax.random.key(5), prompts=1, vocab_size=V, horizon=T, scale=0.7
)


def penalty_gradient(regulariser):
    """−β ∇D at the parameters, without the reward."""
    whole = jax.grad(objective)(PARAMS, regulariser)
    reward = jax.grad(lambda p: exact.expectation(logp_of(p), REWARDS))(PARAMS)
    return flat(whole) - flat(reward)


@pytest.mark.parametrize(
    ("name", "level", "form"),
    [
        pytest.param(
            *case,
            marks=[]
            if case == ("reverse_kl", "sequence", "top_k")
            else pytest.mark.slow,
        )
        for case in MOVED
    ],
)
def test_expected_second_step(name, level, form):
    """From records of a policy that has moved since: D at the new parameters."""
    regulariser = Regulariser(
        divergence=DIVERGENCES[name],
        level=level,
        form=form,
        place="loss",
        k=1,
        weight_cap=float("inf"),
    )
    records, weights = pairs_of(OLD)
    records = dataclasses.replace(records, rewards=jnp.zeros_like(records.rewards))
    actual = flat(expected_change(regulariser, records, weights))
    expected = penalty_gradient(regulariser)
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("level", "form"), [case[1:] for case in MOVED[:4]])
def test_weights_are_bounded_and_may_be_left_out(level, form):
    """A cap of ε is ε times no weights; None is what the policy itself would have."""
    logp, old, ref, token = jax.random.normal(jax.random.key(6), (4, 3, 4))
    mask = jnp.ones((3, 4), bool)

    def gradient(cap, old):
        regulariser = Regulariser(
            divergence=DIVERGENCES["jensen_shannon"],
            level=level,
            form=form,
            place="loss",
            weight_cap=cap,
        )

        def loss(logp):
            over = token * logp if form != "sampled" else None
            return jnp.sum(
                regularisers.losses(
                    regulariser,
                    logp,
                    ref,
                    mask,
                    over_vocabulary=over,
                    logp_behaviour=old,
                )
            )

        return np.asarray(jax.grad(loss)(logp))

    plain = gradient(None, old)
    np.testing.assert_array_equal(plain, gradient(1.0, None))
    np.testing.assert_allclose(gradient(1.0, logp), plain, rtol=1e-6)
    np.testing.assert_allclose(gradient(1e-9, old), 1e-9 * plain, rtol=1e-5)
    assert np.abs(gradient(float("inf"), old) - plain).max() > 0.01


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


ALWAYS = {
    ("reverse_kl", "sequence", "sampled", "reward"),
    ("jensen_shannon", "sequence", "sampled", "reward"),
    ("forward_kl", "myopic", "top_k", "loss"),
}


@pytest.mark.parametrize(
    ("name", "level", "form", "place"),
    [
        pytest.param(*case, marks=[] if case in ALWAYS else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_expected_step_is_the_gradient_of_the_objective(name, level, form, place):
    regulariser = Regulariser(
        divergence=DIVERGENCES[name], level=level, form=form, place=place, k=1
    )
    actual = flat(expected_change(regulariser, *pairs_of(PARAMS)))
    expected = flat(jax.grad(objective)(PARAMS, regulariser))
    # Sums of a few hundred float32 terms, relative to the whole gradient.
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-4


def test_levels_differ():
    """The two levels are two objectives: the test above can tell them apart."""
    gradients = [
        flat(jax.grad(objective)(PARAMS, Regulariser(level=level)))
        for level in ("sequence", "myopic")
    ]
    gap = np.linalg.norm(gradients[0] - gradients[1]) / np.linalg.norm(gradients[0])
    assert gap > 0.01


REFUSED = {
    "form exact": {"form": "exact"},
    "the chain rule": {
        "form": "exact",
        "place": "loss",
        "divergence": dv.jensen_shannon(),
    },
    "no reward to place": {"samples": "reference"},
    "k must be at least 1": {"k": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_combinations_say_why(message):
    with pytest.raises(InputError, match=message):
        Regulariser(**REFUSED[message])


def test_named_penalties():
    """k3 in the loss is the myopic forward KL, k2 in the loss the myopic reverse KL."""
    logp, ref = jax.random.normal(jax.random.key(4), (2, 3, 4))
    mask = jnp.ones((3, 4), bool)

    def gradient(loss):
        return np.asarray(jax.grad(lambda x: jnp.sum(loss(x)))(logp))

    l = np.float64(logp) - np.float64(ref)
    for regulariser, expected in (
        (regularisers.k3_in_loss(), 1 - np.exp(-l)),
        (regularisers.k2_in_loss(), l),
    ):
        got = gradient(lambda x, r=regulariser: regularisers.losses(r, x, ref, mask))
        assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)
