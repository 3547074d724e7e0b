"""Enumerated completions, tabular policies as models, any model's exact law."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import exact
from alignax.models import decoder, functional
from alignax.types import ApplyFn, InputError
from tests.exact.optimum import optimum

V, T, EOS = 3, 4, 1


@pytest.fixture(scope="module")
def world():
    tokens, mask = exact.enumerate_completions(V, T, eos_id=EOS)
    params = exact.tabular_init(
        jax.random.key(0), prompts=3, vocab_size=V, horizon=T, scale=1.5
    )
    return tokens, mask, params, exact.make_tabular_apply(vocab_size=V, horizon=T)


def row_of(prefix):
    """The table's row of a prefix, found by listing all prefixes."""
    listed = itertools.chain.from_iterable(
        itertools.product(range(V), repeat=length) for length in range(T)
    )
    return list(listed).index(tuple(prefix))


@pytest.mark.parametrize(("vocab_size", "horizon"), [(2, 1), (2, 5), (3, 3), (5, 3)])
def test_enumeration_with_an_end_is_complete_and_without_duplicates(
    vocab_size, horizon
):
    tokens, mask = exact.enumerate_completions(vocab_size, horizon, eos_id=0)
    others = vocab_size - 1
    count = sum(others**t for t in range(horizon)) + others**horizon
    listed = {
        tuple(row[keep].tolist())
        for row, keep in zip(np.array(tokens), np.array(mask), strict=True)
    }
    assert len(tokens) == len(listed) == count
    # Every completion that a sampler could return, by walking all strings of length T.
    walked = set()
    for string in itertools.product(range(vocab_size), repeat=horizon):
        end = string.index(0) + 1 if 0 in string else horizon
        walked.add(string[:end])
    assert listed == walked


def test_enumeration_without_an_end_is_all_strings():
    tokens, mask = exact.enumerate_completions(3, 2)
    assert tokens.dtype == jnp.int32
    assert mask.all()
    assert list(map(tuple, tokens.tolist())) == list(
        itertools.product(range(3), repeat=2)
    )


def test_padding_follows_the_end():
    tokens, mask = exact.enumerate_completions(3, 3, eos_id=1, pad_id=7)
    np.testing.assert_array_equal(np.array(tokens)[~np.array(mask)], 7)
    assert 7 not in np.array(tokens)[np.array(mask)]


@pytest.mark.parametrize(
    ("arguments", "eos_id", "named"),
    [((0, 3), None, "vocab_size"), ((10, 9), None, "horizon"), ((3, 2), 3, "eos_id")],
)
def test_enumeration_refuses(arguments, eos_id, named):
    with pytest.raises(InputError, match=named):
        exact.enumerate_completions(*arguments, eos_id=eos_id)


def test_tabular_policy_is_an_apply_fn_and_probabilities_sum_to_one(world):
    tokens, mask, params, apply_fn = world
    assert isinstance(apply_fn, ApplyFn)
    run = jax.jit(
        lambda prompt: exact.completion_logp(apply_fn, params, prompt, tokens, mask)
    )
    for prompt in range(3):
        logp = run(jnp.array([prompt]))
        np.testing.assert_allclose(jnp.exp(logp).sum(), 1, rtol=1e-5)


def test_completion_logp_is_the_sum_over_the_table(world):
    tokens, mask, params, apply_fn = world
    prompt = 2
    table = np.array(jax.nn.log_softmax(params["logits"]))[prompt]
    expected = [
        sum(table[row_of(row[:t]), row[t]] for t in range(T) if keep[t])
        for row, keep in zip(tokens.tolist(), mask.tolist(), strict=True)
    ]
    run = jax.jit(
        lambda params, prompt: exact.completion_logp(
            apply_fn, params, prompt, tokens, mask
        )
    )
    np.testing.assert_allclose(run(params, jnp.array([prompt])), expected, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [7, 100])
def test_chunks_change_nothing(world, chunk_size):
    tokens, mask, params, apply_fn = world
    arguments = (apply_fn, params, jnp.array([1]), tokens, mask)
    np.testing.assert_allclose(
        exact.completion_logp(*arguments, chunk_size=chunk_size),
        exact.completion_logp(*arguments),
        rtol=1e-6,
    )
    with pytest.raises(InputError, match="chunk_size"):
        exact.completion_logp(*arguments, chunk_size=0)


def test_tabular_cache_continues_like_the_whole(world):
    tokens, _, params, apply_fn = world
    prompt = jnp.arange(len(tokens)) % 3
    whole = jnp.concatenate([prompt[:, None], tokens], axis=1)
    expected = apply_fn(params, whole[:, :T]).logits
    logits, cache = apply_fn(params, whole[:, :1], cache_length=T + 1)
    np.testing.assert_array_equal(logits, expected[:, :1])
    # Two at once, then one by one.
    logits, cache = apply_fn(params, whole[:, 1:3], cache=cache)
    np.testing.assert_array_equal(logits, expected[:, 1:3])
    logits, _ = apply_fn(params, whole[:, 3:4], cache=cache)
    np.testing.assert_array_equal(logits, expected[:, 3:4])


def laws_of(apply_fn, params, tokens):
    """The law of the next token at every position, ``[N, T, V]``."""
    whole = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens], axis=1)
    return jax.nn.log_softmax(apply_fn(params, whole[:, :-1]).logits)


def test_gradient_of_the_exact_kl_is_each_of_its_exact_forms():
    """Reference 1.6 (CHECK 1.h's claim, on a random world): k1 to go in the reward,
    the square after summing, and Rao-Blackwell are the gradient; token-level is not."""
    with jax.enable_x64(True):
        tokens, mask = exact.enumerate_completions(V, 3, eos_id=EOS)
        apply_fn = exact.make_tabular_apply(vocab_size=V, horizon=3)
        keys = jax.random.split(jax.random.key(1))
        params, reference = (
            {"logits": jax.random.normal(key, (1, 13, V))} for key in keys
        )

        @jax.jit
        def gradients(params):
            ref = laws_of(apply_fn, reference, tokens)
            fixed = laws_of(apply_fn, params, tokens)

            def taken(law):
                logp = jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]
                return jnp.where(mask, logp, 0)

            def kl_tokens(law):
                return jnp.where(mask, exact.kl(law, ref), 0)

            def to_go(x):
                return jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]

            pi = jnp.exp(taken(fixed).sum(1))
            k1 = taken(fixed) - taken(ref)
            future = to_go(kl_tokens(fixed)) - kl_tokens(fixed)

            def losses(params):
                law = laws_of(apply_fn, params, tokens)
                logp = taken(law)
                return {
                    "exact": exact.kl(logp.sum(1), taken(ref).sum(1)),
                    "reward to go": pi @ jnp.sum(logp * to_go(k1), 1),
                    "square": pi @ jnp.square(jnp.sum(logp - taken(ref), 1)) / 2,
                    "Rao-Blackwell": pi @ jnp.sum(kl_tokens(law) + logp * future, 1),
                    "token level": pi @ kl_tokens(law).sum(1),
                }

            return losses(params), jax.jacrev(losses)(params)

        values, slopes = gradients(params)
        np.testing.assert_allclose(values["exact"], values["token level"])
        truth = slopes.pop("exact")["logits"]
        partial = slopes.pop("token level")["logits"]
        for name, slope in slopes.items():
            np.testing.assert_allclose(slope["logits"], truth, atol=1e-12, err_msg=name)
        assert np.linalg.norm(partial - truth) > 0.05 * np.linalg.norm(truth)


def test_only_kl_adds_over_tokens():
    """Reference CHECK 1.i: with the policy's prefixes the token sum of reverse KL is
    the sequence's and that of forward KL is not; with the reference's it is."""
    with jax.enable_x64(True):
        tokens, mask = exact.enumerate_completions(3, 2)
        apply_fn = exact.make_tabular_apply(vocab_size=3, horizon=2)
        logits = jax.random.normal(jax.random.key(5), (2, 1, 4, 3))

        @jax.jit
        def sums(logits):
            params, reference = ({"logits": x} for x in logits)
            prompt = jnp.array([0])
            logp, logp_ref = (
                exact.completion_logp(apply_fn, p, prompt, tokens, mask)
                for p in (params, reference)
            )
            law, ref = (laws_of(apply_fn, p, tokens) for p in (params, reference))
            reverse, forward = exact.kl(law, ref).sum(1), exact.kl(ref, law).sum(1)
            return (
                exact.kl(logp, logp_ref),
                exact.kl(logp_ref, logp),
                exact.expectation(logp, reverse),
                exact.expectation(logp, forward),
                exact.expectation(logp_ref, forward),
            )

        reverse, forward, ours, wrong, theirs = sums(logits)
        np.testing.assert_allclose(ours, reverse)
        np.testing.assert_allclose(theirs, forward)
        assert abs(wrong - forward) > 1e-2


def test_training_on_the_exact_objective_reaches_the_optimum():
    """Descent through completion_logp ends at ``β log Z``."""
    tokens, mask = exact.enumerate_completions(2, 2, eos_id=1)
    apply_fn = exact.make_tabular_apply(vocab_size=2, horizon=2)
    prompt, rewards = jnp.array([0]), jnp.array([0.2, 1.0, -0.5])
    reference = exact.tabular_init(
        jax.random.key(3), prompts=1, vocab_size=2, horizon=2
    )
    logp_ref = exact.completion_logp(apply_fn, reference, prompt, tokens, mask)

    def value(params):
        logp = exact.completion_logp(apply_fn, params, prompt, tokens, mask)
        return exact.objective(logp, logp_ref, rewards, beta=0.5)

    def ascend(_, params):
        return jax.tree.map(lambda x, g: x + 2 * g, params, jax.grad(value)(params))

    @jax.jit
    def run(params):
        trained = jax.lax.fori_loop(0, 2000, ascend, params)
        return value(params), value(trained)

    start, reached = run(reference)
    _, best = optimum(rewards, logp_ref, beta=0.5)
    assert start < best - 0.03
    np.testing.assert_allclose(reached, best, atol=1e-5)


@pytest.fixture(scope="module")
def decoder_world():
    config = decoder.DecoderConfig(
        vocab_size=4,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        mlp_size=16,
        max_length=8,
    )
    params = functional.init(config, jax.random.key(0))
    params = jax.tree.map(lambda x: 3 * x, params)
    return params, jax.jit(functional.make_apply(config), static_argnames="logits_from")


def test_completion_logp_of_the_decoder(decoder_world):
    """Sums to one, and equals running each prefix alone, without padding."""
    params, apply_fn = decoder_world
    tokens, mask = exact.enumerate_completions(4, 2, eos_id=0)
    prompt = jnp.array([2, 1, 3])
    logp = exact.completion_logp(apply_fn, params, prompt, tokens, mask, chunk_size=5)
    np.testing.assert_allclose(jnp.exp(logp).sum(), 1, rtol=1e-5)

    def last(prefix):
        row = jnp.array([[*prompt.tolist(), *prefix]])
        return np.array(jax.nn.log_softmax(apply_fn(params, row).logits[0, -1]))

    after = {(): last(())} | {(v,): last((v,)) for v in range(4)}
    expected = [
        sum(after[tuple(row[:t])][row[t]] for t in range(sum(keep)))
        for row, keep in zip(tokens.tolist(), mask.tolist(), strict=True)
    ]
    np.testing.assert_allclose(logp, expected, rtol=1e-4)
    assert math.exp(max(expected)) < 0.9, "a law with no doubt would test little"
