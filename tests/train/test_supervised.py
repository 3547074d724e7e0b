"""Maximum likelihood: the loss by hand, both ways to score, microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from alignax import divergences, references
from alignax.models import decoder, functional
from alignax.pipeline import data
from alignax.train import answers, supervised
from alignax.types import HiddenOutput, InputError, Supervised
from tests.close import assert_close

MODEL = decoder.DecoderConfig(
    vocab_size=259,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=16,
    max_length=12,
    initializer_range=0.3,
)
APPLY = functional.make_apply(MODEL)
PARAMS = functional.init(MODEL, jax.random.key(0))
TEXTS = ["1+1=", "7=", "10-2=", "3="], ["2", "seven", "8", ""]
ROWS = data.encode_supervised(*TEXTS, data.byte_tokenizer(), length=12)
SCORE = supervised.score_by_logits(APPLY)


def descend(score=SCORE, **more):
    tx = optax.sgd(1.0)
    state = supervised.init_state(PARAMS, tx, jax.random.key(0))
    state, metrics = supervised.make_step(score, tx, **more)(state, ROWS)
    gradient = jax.tree.map(lambda x, y: np.asarray(x - y), PARAMS, state.params)
    return np.concatenate([x.ravel() for x in jax.tree.leaves(gradient)]), metrics


@pytest.mark.slow
def test_the_loss_is_the_mean_over_answer_tokens():
    """Against each row alone, without padding; what is reported beside it."""
    total, tokens, probabilities = 0.0, 0, []
    for row in range(4):
        length = int(ROWS.mask[row].sum())
        ids = ROWS.tokens[row, :length]
        logits = np.float64(APPLY(PARAMS, ids[None, :-1]).logits[0])
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        taken = logp[np.arange(length - 1), np.asarray(ids[1:])]
        taken = taken[np.asarray(ROWS.loss_mask[row, 1:length])]
        total, tokens = total - taken.sum(), tokens + len(taken)
        probabilities.append(np.exp(taken.sum()))
    _, metrics = descend()
    np.testing.assert_allclose(metrics["loss"], total / tokens, rtol=1e-5)
    np.testing.assert_allclose(metrics["tokens"], tokens / 4)
    expected = np.mean(probabilities)
    np.testing.assert_allclose(metrics["answer_probability"], expected, rtol=1e-4)


def test_neither_hidden_states_nor_microbatches_change_the_gradient():
    """Rows of unlike lengths: a mean of microbatches' means would be another one."""
    expected, _ = descend()
    norm = np.linalg.norm(expected)
    score = supervised.score_by_hidden(functional.make_hidden(MODEL))
    for found, _ in (descend(score), descend(microbatches=4)):
        assert np.linalg.norm(found - expected) < 1e-5 * norm


def test_settings():
    with pytest.raises(InputError, match="learning_rate must be positive"):
        supervised.SFT(learning_rate=0.0)
    with pytest.raises(InputError, match="steps must be at least 1"):
        supervised.SFT(steps=0)
    state = supervised.init_state(jnp.zeros(2), optax.sgd(1.0), jax.random.key(0))
    assert state.controller.beta == 0


@pytest.mark.slow
def test_f_sft_of_the_total_variation_is_likelihood_of_whole_answers():
    """And of others that, too, at the reference, where no answer was taken up."""
    state = supervised.init_state(
        PARAMS, optax.sgd(1.0), jax.random.key(0), reference=PARAMS
    )

    @jax.jit
    @jax.grad
    def whole(params):
        return -jnp.mean(jnp.sum(SCORE(params, ROWS), axis=-1))

    for div in (divergences.total_variation(), divergences.pearson()):
        loss = answers.implicit_reward(SCORE, div, beta=0.3)
        step = supervised.make_loss_step(loss, optax.sgd(1.0), microbatches=2)
        new, _ = step(jax.tree.map(jnp.copy, state), ROWS)
        moved = jax.tree.map(lambda a, b: a - b, PARAMS, new.params)
        assert_close(moved, whole(PARAMS), rel=1e-5)
        # Further on they part.
        again, _ = step(new, ROWS)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(again.params))


@pytest.mark.slow
def test_one_token_rollouts_descend_the_expected_reward():
    """Many draws against the mean over the vocabulary, at temperature 1."""
    loss = answers.one_token_rollouts(APPLY, samples=200_000, temperature=1.0)
    step = supervised.make_loss_step(loss, optax.sgd(1.0))
    state = supervised.init_state(PARAMS, optax.sgd(1.0), jax.random.key(0))
    new, _ = step(jax.tree.map(jnp.copy, state), ROWS)
    moved = jax.tree.map(lambda a, b: a - b, PARAMS, new.params)

    @jax.jit
    @jax.grad
    def expected(params):
        logp = jax.nn.log_softmax(supervised.answer_logits(APPLY, params, ROWS))
        labels, mask = ROWS.tokens[:, 1:], ROWS.loss_mask[:, 1:]
        right = jax.nn.one_hot(labels, logp.shape[-1])
        rewards = right - 0.1 * (1 - right)
        p = jax.lax.stop_gradient(jnp.exp(logp))
        return -jnp.sum(jnp.sum(p * rewards * logp, -1) * mask) / jnp.sum(mask)

    exact = expected(PARAMS)
    norm = optax.tree.norm(jax.tree.map(lambda a, b: a - b, moved, exact))
    assert norm < 0.15 * optax.tree.norm(exact)


def hidden_fn(params, tokens, *, mask=None, **more):
    """Free logits of three tokens, the same at all places."""
    hidden = jnp.broadcast_to(params, (*tokens.shape, 3))
    return HiddenOutput(hidden, jnp.eye(3), None, None)


def one_token():
    row = jnp.array([[0, 1]])
    index = jnp.zeros(1, jnp.int32)
    return Supervised(tokens=row, mask=row >= 0, loss_mask=row > 0, index=index)


def test_likelihood_under_a_kl_and_an_entropy_by_hand():
    p, rho = np.array([[0.3, 0.4, 0.3], [0.2, 0.5, 0.3]])
    loss = answers.regularised(hidden_fn, beta=0.5, entropy_bonus=0.2)
    rows = one_token()

    def mean(params):
        return loss(params, jnp.log(jnp.array(rho)), rows, None, None)[0]

    found, pull = jax.jit(jax.value_and_grad(mean))(jnp.log(jnp.array(p)))
    kl, entropy = np.sum(p * np.log(p / rho)), -np.sum(p * np.log(p))
    np.testing.assert_allclose(found, -np.log(0.4) + 0.5 * kl - 0.2 * entropy, 1e-5)
    expected = p - np.eye(3)[1] + 0.5 * p * (np.log(p / rho) - kl)
    expected = expected + 0.2 * p * (np.log(p) + entropy)
    np.testing.assert_allclose(pull, expected, rtol=1e-5)


def test_progressive_targets_by_hand():
    """One token of three: CHECK of the paper's ratio, 2/3 of likelihood's pull; then
    whole steps, of which the first pass has no past and the second the first's end."""

    now, past = jnp.log(jnp.array([[0.3, 0.4, 0.3], [0.2, 0.5, 0.3]]))
    rows = one_token()
    loss = answers.progressive(hidden_fn, most=0.4, every=2, steps=4)

    def mean(params, step):
        return loss(params, past, rows, None, step)[0]

    value = jax.jit(jax.value_and_grad(mean))
    found, pull = value(now, 2)
    np.testing.assert_allclose(pull, [0.22, -0.4, 0.18], rtol=1e-5)
    target = np.array([0.08, 0.8, 0.12])
    np.testing.assert_allclose(found, -target @ np.asarray(now), rtol=1e-5)
    np.testing.assert_allclose(value(now, 1)[1], [0.3, -0.6, 0.3], rtol=1e-5)

    tx = optax.sgd(0.5)
    step = supervised.make_loss_step(
        loss, tx, reference=references.periodic_reset(every=2)
    )
    state = supervised.init_state(now, tx, jax.random.key(0), reference=now)
    params, past, one = np.float64(now), None, np.eye(3)[1]
    for number in range(4):
        if number == 2:
            past = softmax(params)
        goal = one if past is None else 0.6 * one + 0.4 * past
        params = params - 0.5 * (softmax(params) - goal)
        state, _ = step(state, rows)
        np.testing.assert_allclose(state.params, params, rtol=1e-5)
    np.testing.assert_allclose(state.reference, state.params)
