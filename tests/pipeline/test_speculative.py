"""Speculative sampling: its law is the policy's, exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from alignax import exact, logprobs
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import speculative
from alignax.types import InputError, Prompts
from tests.close import assert_close, decoder_rel

V, T, EOS = 4, 4, 2
SIZES = {"vocab_size": V, "num_heads": 2, "num_kv_heads": 1, "max_length": 16}
LARGE = DecoderConfig(hidden_size=8, num_layers=2, head_dim=4, mlp_size=8, **SIZES)
SMALL = DecoderConfig(hidden_size=4, num_layers=1, head_dim=2, mlp_size=8, **SIZES)
APPLY, DRAFT = map(functional.make_apply, (LARGE, SMALL))
PARAMS = tuple(
    jax.tree.map(lambda x: 4 * x, functional.init(c, jax.random.key(i)))
    for i, c in enumerate((LARGE, SMALL))
)
PROMPTS = Prompts(
    tokens=jnp.array([[1, 3, 0], [0, 0, 3]]),
    mask=jnp.array([[True] * 3, [False, False, True]]),
    index=jnp.arange(2),
)
LAWS = {
    "whole": {},
    "tempered": {"temperature": 1.7},
    "top_k": {"temperature": 0.8, "top_k": 3},
    "top_p": {"top_p": 0.8},
}


def build(**options):
    options = {"completions": 3000, "max_tokens": T, "eos_id": EOS} | options
    options = {"draft": DRAFT, "rewind": functional.rewind} | options
    return jax.jit(partial(speculative.generate, APPLY, **options))


def enumerated(prompt, **law):
    """Each completion's probability under the policy, by forward passes alone."""
    tokens, mask = exact.enumerate_completions(V, T, eos_id=EOS)
    behind = jnp.broadcast_to(prompt, (len(tokens), len(prompt)))
    rows = jnp.concatenate([behind, tokens], axis=1)
    logits = APPLY(PARAMS[0], rows, logits_from=len(prompt) - 1).logits[:, :-1]
    z = np.asarray(logits, np.float64) / law.get("temperature", 1.0)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    ordered = np.take_along_axis(p, order, -1)
    kept = np.arange(V) < law.get("top_k", V)
    kept = kept & (np.cumsum(ordered, -1) - ordered < law.get("top_p", 1.1))
    q = np.where(kept, ordered, 0)
    law_ = np.zeros_like(p)
    np.put_along_axis(law_, order, q / q.sum(-1, keepdims=True), -1)
    picked = np.take_along_axis(law_, np.asarray(tokens)[..., None], -1)[..., 0]
    whole = np.where(mask, picked, 1).prod(-1)
    return {
        tuple(np.asarray(t)[np.asarray(m)].tolist()): w
        for t, m, w in zip(tokens, mask, whole, strict=True)
        if w > 0
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_the_policys(name):
    """χ² of 3000 completions of two prompts of different lengths, γ = 2; what is
    reported is the enumerated law's, and the draft's own law would be seen."""
    rollout, spent = build(draft_tokens=2, **LAWS[name])(
        PARAMS, jax.random.key(7), PROMPTS
    )
    tokens, mask, logp = (
        np.asarray(x) for x in (rollout.tokens, rollout.trained, rollout.logp_behaviour)
    )
    for i, prompt in enumerate(([1, 3, 0], [3])):
        law = enumerated(jnp.array(prompt), **LAWS[name])
        assert abs(sum(law.values()) - 1) < 1e-5
        counts = dict.fromkeys(law, 0)
        for row in range(3000 * i, 3000 * (i + 1)):
            completion = tuple(tokens[row][mask[row]].tolist())
            counts[completion] += 1
            if row % 60 == 0:
                exactly = np.log(law[completion])
                np.testing.assert_allclose(logp[row].sum(), exactly, atol=2e-5)
        expected = 3000 * np.array(list(law.values()))
        observed = np.array(list(counts.values()))
        rare = expected < 5
        bins = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
        degrees = len(bins[0]) - 1
        statistic = np.sum((bins[0] - bins[1]) ** 2 / np.maximum(bins[1], 1))
        assert degrees > 5
        assert statistic < chi2.ppf(0.999, degrees), (statistic, degrees)
    assert 0.2 < float(speculative.acceptance(spent)) < 0.98
    assert 1 < float(speculative.block_efficiency(spent)) < 3


@pytest.mark.slow
def test_scores_are_the_policys_and_rows_their_own():
    """Scored again the ratio is 1; a row is the same in another batch; the support is
    what was kept; ends and padding are ``rollout.generate``'s."""
    options = {"draft_tokens": 3, "completions": 5, "temperature": 1.3, "top_k": 3}
    stops = np.zeros((3, V), np.int32)
    stops[:, 1], stops[1, 1] = 1, 2
    run = build(stops=stops, pad_id=3, **options)
    rollout, spent = run(PARAMS, jax.random.key(1), PROMPTS)
    logits = rollouts.completion_logits(APPLY, PARAMS[0], rollout)
    law = rollouts.sampled_logits(logits, rollout)
    logp = jnp.where(rollout.trained, logprobs.token_logp(law, rollout.tokens), 0.0)
    assert_close(rollout.logp_behaviour, logp, rel=decoder_rel(2))
    other = Prompts(
        tokens=PROMPTS.tokens[::-1], mask=PROMPTS.mask[::-1], index=PROMPTS.index[::-1]
    )
    moved, _ = run(PARAMS, jax.random.key(1), other)
    np.testing.assert_array_equal(moved.tokens[5:], rollout.tokens[:5])
    np.testing.assert_array_equal(moved.tokens[:5], rollout.tokens[5:])
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.trained)
    for row, kept, finished in zip(tokens, mask, rollout.finished, strict=True):
        text = row[kept].tolist()
        ends = [
            i
            for i, t in enumerate(text)
            if t == EOS or (i > 0 and text[i - 1] == t == 1)
        ]
        assert (ends == [len(text) - 1]) == bool(finished)
        assert finished or len(text) == T
        assert (row[~kept] == 3).all()
        assert kept[: len(text)].all()
    sizes = mask.sum(1)
    assert len(set(sizes.tolist())) > 1
    np.testing.assert_array_equal(spent.written, sizes - 1)


@pytest.mark.slow
def test_slots_do_not_change_the_samples():
    """Ends, texts to stop at and rows that are over with their first token; nor what
    each row took. With fewer slots than rows some begin behind another prompt."""
    stops = np.zeros((3, V), np.int32)
    stops[:, 1], stops[1, 1] = 1, 2
    options = {"draft_tokens": 2, "completions": 5, "max_tokens": 7, "stops": stops}
    (expected, took), (found, spent) = (
        build(**options, temperature=1.3, top_k=3, slots=n)(
            PARAMS, jax.random.key(2), PROMPTS
        )
        for n in (None, 4)
    )
    sizes = np.asarray(expected.trained).sum(axis=1)
    assert sizes.min() == 1 < 4 < sizes.max()
    assert len(set(sizes.tolist())) > 3
    assert_close(found, expected, rel=decoder_rel(2))
    jax.tree.map(np.testing.assert_array_equal, spent, took)


@pytest.mark.slow
def test_greedy_and_a_draft_that_is_the_policy():
    """Greedy tokens are ``rollout.generate``'s; of its own drafts the policy accepts
    all, γ + 1 a call."""
    fixed = {"completions": 1, "max_tokens": 7, "eos_id": None}
    greedy = {"temperature": 0.0, **fixed}
    found, _ = build(draft_tokens=2, **greedy)(PARAMS, jax.random.key(1), PROMPTS)
    plain = jax.jit(partial(rollouts.generate, APPLY, **greedy))(
        PARAMS[0], jax.random.key(1), PROMPTS
    )
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.logp_behaviour, 0)
    run = build(draft=APPLY, draft_tokens=2, **fixed)
    _, spent = run((PARAMS[0], PARAMS[0]), jax.random.key(1), PROMPTS)
    assert speculative.block_efficiency(spent) == 3
    assert speculative.acceptance(spent) == 1


def test_a_rejected_token_is_drawn_from_what_the_draft_lacks():
    """min(p, q) + (1 − Σ min) · (p − q)_+ / Σ (p − q)_+ = p, and the acceptance is one
    minus the total variation (0.55 of the reference's 6.d): one step, enumerated."""
    p, q = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    with jax.enable_x64(True):
        left = np.asarray(jax.nn.softmax(speculative.residual(jnp.log(p), jnp.log(q))))
        both = np.minimum(p, q)
        np.testing.assert_allclose(both + (1 - both.sum()) * left, p, atol=1e-12)
        np.testing.assert_allclose(both.sum(), 1 - np.abs(p - q).sum() / 2)
        same = speculative.residual(jnp.log(p), jnp.log(p))
        np.testing.assert_allclose(same, np.log(p))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"draft_tokens": 0}, "draft_tokens must be from 1"),
        ({"draft_tokens": 5}, "no more is drafted than can be written"),
        ({"max_tokens": 13, "draft_tokens": 4}, "max_length of 16"),
        ({"temperature": -1.0}, "temperature"),
        ({"completions": 0}, "completions"),
        ({"slots": 0}, "slots must be at least 1"),
    ],
)
def test_what_cannot_be_drafted_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        jax.eval_shape(
            build(**{"draft_tokens": 1} | options), PARAMS, jax.random.key(0), PROMPTS
        )


def test_a_draft_of_another_vocabulary_is_refused():
    config = DecoderConfig(**SMALL.to_dict() | {"vocab_size": 5})
    run = build(draft=functional.make_apply(config), draft_tokens=1)
    params = PARAMS[0], functional.init(config, jax.random.key(0))
    with pytest.raises(InputError, match="vocabulary of 4 tokens, got 5"):
        jax.eval_shape(run, params, jax.random.key(0), PROMPTS)
