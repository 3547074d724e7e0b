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
    for prompt in range(3):
        logp = exact.completion_logp(
            apply_fn, params, jnp.array([prompt]), tokens, mask
        )
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


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
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


def test_gradient_of_the_exact_kl_is_each_of_its_exact_forms():
    """Reference 1.6 (CHECK 1.h's claim, on a random world): k1 to go in the reward,
    the square after summing, and Rao-Blackwell are the gradient; token-level is not."""
    with jax.enable_x64(True):
        tokens, mask = exact.enumerate_completions(V, 3, eos_id=EOS)
        apply_fn = exact.make_tabular_apply(vocab_size=V, horizon=3)
        params, reference = (
            {"logits": jax.random.normal(jax.random.key(i), (1, 13, V))} for i in (1, 2)
        )
        whole = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens], axis=1)

        def laws(params):
            logits = apply_fn(params, whole[:, :-1]).logits
            return jax.nn.log_softmax(logits)

        def taken(laws):
            logp = jnp.take_along_axis(laws, tokens[..., None], axis=-1)[..., 0]
            return jnp.where(mask, logp, 0)

        ref = laws(reference)
        logp_ref = taken(ref).sum(1)

        def true(params):
            return exact.kl(taken(laws(params)).sum(1), logp_ref)

        pi = jnp.exp(taken(laws(params)).sum(1))
        k1 = taken(laws(params)) - taken(ref)
        togo = jnp.cumsum(k1[:, ::-1], axis=1)[:, ::-1]

        def kl_tokens(params):
            law = laws(params)
            return jnp.where(mask, jnp.sum(jnp.exp(law) * (law - ref), -1), 0)

        future = kl_tokens(params)
        future = jnp.cumsum(future[:, ::-1], axis=1)[:, ::-1] - future
        forms = {
            "reward to go": lambda p: pi @ jnp.sum(taken(laws(p)) * togo, 1),
            "square": lambda p: (
                pi @ jnp.square(jnp.sum(taken(laws(p)) - taken(ref), 1)) / 2
            ),
            "Rao-Blackwell": lambda p: (
                pi @ jnp.sum(kl_tokens(p) + taken(laws(p)) * future, 1)
            ),
        }
        exact_gradient = jax.jit(jax.grad(true))(params)["logits"]
        np.testing.assert_allclose(true(params), pi @ kl_tokens(params).sum(1))
        for name, form in forms.items():
            np.testing.assert_allclose(
                jax.jit(jax.grad(form))(params)["logits"],
                exact_gradient,
                atol=1e-12,
                err_msg=name,
            )
        myopic = jax.jit(jax.grad(lambda p: pi @ kl_tokens(p).sum(1)))
        partial = myopic(params)["logits"]
        error = jnp.linalg.norm(partial - exact_gradient) / jnp.linalg.norm(
            exact_gradient
        )
        assert error > 0.05


def test_only_kl_adds_over_tokens():
    """Reference CHECK 1.i: with the policy's prefixes the token sum of reverse KL is
    the sequence's and that of forward KL is not; with the reference's it is."""
    with jax.enable_x64(True):
        tokens, mask = exact.enumerate_completions(3, 2)
        apply_fn = exact.make_tabular_apply(vocab_size=3, horizon=2)
        params, reference = (
            {"logits": jax.random.normal(jax.random.key(i), (1, 4, 3))} for i in (5, 6)
        )
        prompt = jnp.array([0])
        logp, logp_ref = (
            exact.completion_logp(apply_fn, p, prompt, tokens, mask)
            for p in (params, reference)
        )
        whole = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens], axis=1)
        law, ref = (
            jax.nn.log_softmax(apply_fn(p, whole[:, :-1]).logits)
            for p in (params, reference)
        )
        reverse, forward = exact.kl(law, ref).sum(1), exact.kl(ref, law).sum(1)
        np.testing.assert_allclose(
            exact.expectation(logp, reverse), exact.kl(logp, logp_ref)
        )
        np.testing.assert_allclose(
            exact.expectation(logp_ref, forward), exact.kl(logp_ref, logp)
        )
        gap = exact.expectation(logp, forward) - exact.kl(logp_ref, logp)
        assert abs(gap) > 1e-2


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

    @jax.jit
    def ascend(_, params):
        return jax.tree.map(lambda x, g: x + 2 * g, params, jax.grad(value)(params))

    trained = jax.lax.fori_loop(0, 2000, ascend, reference)
    _, best = exact.optimum(logp_ref, rewards, beta=0.5)
    assert value(reference) < best - 0.03
    np.testing.assert_allclose(value(trained), best, atol=1e-5)


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
