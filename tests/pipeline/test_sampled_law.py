"""What is scored is what was sampled, whatever the temperature and the truncation."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators, reduce, sampling, surrogates
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.types import Prompts, Rollout
from tests.models.cases import CONFIGS, random_params, random_tokens
from tests.pipeline import toy

LAWS = {
    "whole": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.5},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "hot, top_k": {"temperature": 1.5, "top_k": 4},
    "cold, top_p": {"temperature": 0.6, "top_p": 0.9},
    "all": {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
}
CONFIG = dataclasses.replace(CONFIGS["qwen3"], max_length=32, num_layers=1)
PROMPTS = Prompts(
    tokens=jnp.asarray(random_tokens(CONFIG, (4, 5))),
    mask=jnp.asarray(np.arange(5)[None] >= np.array([[0], [2], [4], [1]])),
    index=jnp.arange(4),
)
K = 16


def ratios(dtype, law, **options):
    """Of each sampled token by the two scorers, ``[2, n]``."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    apply_fn = functional.make_apply(config)
    hidden_fn = functional.make_hidden(config)
    scorers = (
        rollouts.score_by_logits(apply_fn),
        rollouts.score_by_hidden(hidden_fn, completions=K),
    )

    @jax.jit
    def run(params, key):
        fixed = {"completions": K, "max_tokens": 12, "eos_id": 2}
        fixed |= LAWS[law] | options
        out = rollouts.generate(apply_fn, params, key, PROMPTS, **fixed)
        logps = jnp.stack([score(params, out).logp for score in scorers])
        return out, jnp.exp(logps - out.logp_behaviour[None])

    out, found = run(random_params(config), jax.random.key(0))
    return out, np.asarray(found)[:, np.asarray(out.trained)]


@pytest.mark.parametrize(
    ("law", "options"),
    [
        pytest.param(law, {}, id=law, marks=[pytest.mark.slow] * (law in SLOW))
        for SLOW in [{"cold", "hot", "top_k", "top_p", "hot, top_k"}]
        for law in LAWS
    ]
    + [("cold, top_p", {"slots": 7})],
)
def test_on_policy_every_ratio_is_one(law, options):
    out, found = ratios("float32", law, **options)
    np.testing.assert_allclose(found, 1, atol=2e-4)
    assert (out.support is None) == ("top" not in law and law != "all")
    assert (out.temperature is None) == (law in ("whole", "top_k", "top_p"))
    if law not in ("whole", "top_k", "top_p"):
        np.testing.assert_array_equal(
            out.temperature, np.float32(LAWS[law]["temperature"])
        )


@pytest.mark.parametrize("law", ["whole", "all"])
def test_on_policy_the_mean_ratio_is_one_in_bfloat16(law):
    """Rounding moves them, their mean stays as near as it is known: both distributions
    sum to one over the same tokens."""
    _, found = ratios("bfloat16", law)
    error = found.std(axis=1) / found.shape[1] ** 0.5
    assert found.std(axis=1)[0] > 1e-4
    assert (error < 1e-3).all()
    np.testing.assert_array_less(np.abs(found.mean(axis=1) - 1), 4 * error + 1e-6)


V, T = toy.V, 3


def distribution(logits, *, temperature=1.0, top_k=None, top_p=None):
    """In float64, by sorting."""
    weights = np.exp(logits / temperature - np.max(logits / temperature))
    kept = np.ones(V, bool)
    if top_k is not None:
        kept &= weights >= np.sort(weights)[-top_k]
    weights = np.where(kept, weights, 0) / weights[kept].sum()
    if top_p is not None:
        order = np.argsort(-weights)
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p]] = 0
    return weights / weights.sum()


def tables():
    keys = jax.random.split(jax.random.key(3), 4)
    return [
        {
            "table": 1.5 * jax.random.normal(k, (V, V)),
            "tilt": 0.2 * jax.random.normal(tilt, (V,)),
        }
        for k, tilt in (keys[:2], keys[2:])
    ]


@pytest.mark.parametrize("law", ["cold", "top_k", "cold, top_p"])
def test_the_kl_is_that_of_what_is_sampled_to_the_whole_reference(law):
    """All 216 completions, against the mean over 20,000 samples."""
    options = LAWS[law]
    policy, reference = tables()
    whole = {k: x for k, x in options.items() if k == "temperature"}
    prompt = Prompts(
        tokens=jnp.array([[3, 2]]), mask=jnp.ones((1, 2), bool), index=jnp.zeros(1, int)
    )
    exact = 0.0
    for tokens in itertools.product(range(V), repeat=T):
        p, kl = 1.0, 0.0
        for t, (last, token) in enumerate(itertools.pairwise((2, *tokens))):
            ours, theirs = (
                np.asarray(x["table"][last] + (t + 2) * x["tilt"], np.float64)
                for x in (policy, reference)
            )
            drawn = distribution(ours, **options)[token]
            p *= drawn
            if p == 0:
                break
            kl += np.log(drawn / distribution(theirs, **whole)[token])
        exact += p * kl

    @jax.jit
    def sampled(policy, reference, key):
        fixed = {"completions": 20_000, "max_tokens": T, "eos_id": None}
        rollout = rollouts.generate(
            toy.apply_fn, policy, key, prompt, **fixed, **options
        )
        score = rollouts.score_by_logits(toy.apply_fn)
        ours, theirs = score(policy, rollout), score(reference, rollout)
        logp_ref = theirs.logp + theirs.log_mass
        k1 = estimators.k1(ours.logp, logp_ref, rollout.trained)
        k3 = estimators.k3(ours.logp, logp_ref, rollout.trained)
        lost = reduce.masked(-jnp.expm1(theirs.log_mass), rollout.trained)
        return k1.sum(-1), (k3 + lost).sum(-1), k3.sum(-1)

    found = np.asarray(sampled(policy, reference, jax.random.key(1)), np.float64)
    mean, error = found.mean(axis=1), found.std(axis=1) / found.shape[1] ** 0.5
    assert exact > 0.1
    assert (np.abs(mean - exact)[:2] < 4 * error[:2]).all()
    # Without what the reference loses, k3 is of another quantity.
    assert (abs(mean[2] - exact) > 10 * error[2]) == ("top" in law)


@pytest.mark.parametrize("law", ["cold", "all"])
def test_the_policy_gradient_is_that_of_what_is_sampled(law):
    """Of E r − β KL over all completions; scored as if nothing had been done to the
    logits, it is another direction."""
    options = LAWS[law]
    policy, reference = tables()
    beta, scale = 0.1, options["temperature"]
    tokens = np.array(list(itertools.product(range(V), repeat=T)))
    shape = (len(tokens), 1)
    rollout = Rollout(
        prompt_tokens=jnp.full(shape, 2),
        prompt_mask=jnp.ones(shape, bool),
        tokens=jnp.asarray(tokens),
        attended=jnp.ones(tokens.shape, bool),
        trained=jnp.ones(tokens.shape, bool),
    )
    rewards = np.random.default_rng(0).random(len(tokens))

    def logits_of(params):
        return rollouts.completion_logits(toy.apply_fn, params, rollout)

    kept = np.apply_along_axis(
        lambda z: distribution(np.float64(z), **options) > 0, -1, logits_of(policy)
    )
    drawn = np.take_along_axis(kept, tokens[..., None], axis=-1).all((1, 2))

    def logps(params, kept):
        law = jax.nn.log_softmax(jnp.where(kept, logits_of(params) / scale, -jnp.inf))
        taken = jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]
        return jnp.sum(taken, axis=1)[drawn]

    logp_ref = logps(reference, True)

    def returns(logp):
        return rewards[drawn] - beta * (logp - logp_ref)

    def objective(params):
        logp = logps(params, kept)
        return jnp.exp(logp) @ returns(logp)

    rows = jax.tree.map(lambda x: x[drawn], rollout)
    support = sampling.support_bits(jnp.where(kept[drawn], 0.0, -jnp.inf))
    same = dataclasses.replace(
        rows, temperature=jnp.full(drawn.sum(), scale), support=support
    )
    logp = logps(policy, kept)
    weighted = (jnp.exp(logp) * returns(logp))[:, None] * jnp.ones((1, T))

    @jax.jit
    @partial(jax.grad, argnums=0)
    def surrogate(params, rollout):
        logp = rollouts.score_by_logits(toy.apply_fn)(params, rollout).logp
        return -jnp.sum(
            surrogates.ppo_surrogate(
                logp - jax.lax.stop_gradient(logp), weighted, rollout.trained
            )
        )

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

    truth = flat(jax.jit(jax.grad(objective))(policy))
    size = np.linalg.norm(truth)
    assert np.linalg.norm(flat(surrogate(policy, same)) - truth) < 1e-4 * size
    assert np.linalg.norm(flat(surrogate(policy, rows)) - truth) > 0.1 * size
