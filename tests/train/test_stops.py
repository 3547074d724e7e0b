"""Texts that end a completion: a completion is the same up to there, and nothing is
attended, trained or scored behind it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.data import Tokenizer
from alignax.train import stops
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close
from tests.train.test_every_method import MODEL, PARAMS

# Tokens of one letter, of several, of none, and one that has more than a stop's end.
PIECES = ("", "", "a", "b", "ab", "ba", "bab", "x")
TOKENIZER = Tokenizer(
    encode=lambda text: [PIECES.index(letter) for letter in text],
    decode=lambda ids: "".join(PIECES[i] for i in ids),
    vocab_size=len(PIECES),
    eos_id=1,
    pad_id=0,
)
TEXTS = ("abba", "bx", "aaa")
PROMPTS = Prompts(
    tokens=jnp.array([[2, 3, 4], [7, 7, 2]]),
    mask=jnp.ones((2, 3), bool),
    index=jnp.arange(2),
)
MODEL = dataclasses.replace(MODEL, max_length=64)


@pytest.fixture(scope="module")
def sampled():
    fixed = {"completions": 24, "max_tokens": 12, "eos_id": 1}
    apply_fn = functional.make_apply(MODEL)
    table = stops.table(TEXTS, TOKENIZER)

    def run(**more):
        generate = partial(rollouts.generate, apply_fn, **fixed, **more)
        return jax.jit(generate)(PARAMS, jax.random.key(4), PROMPTS)

    return run(), run(stops=table), run(stops=table, slots=7)


def by_hand(tokens):
    """The number of tokens of a completion, by the text of each of its beginnings."""
    for n in range(1, len(tokens) + 1):
        text = TOKENIZER.decode(tokens[:n])
        if any(stop in text for stop in TEXTS):
            return n, True
    return len(tokens), False


def test_completions_end_with_the_text_and_are_the_same_before(sampled):
    free, stopped, slotted = jax.device_get(sampled)
    found = set()
    for row in range(len(free.tokens)):
        own = free.tokens[row][free.trained[row]].tolist()
        length, stop = by_hand(own)
        found.add((stop, stop and TOKENIZER.decode(own[:length]).endswith(TEXTS)))
        assert stopped.tokens[row][stopped.trained[row]].tolist() == own[:length]
        assert stopped.finished[row] == (stop or free.finished[row])
    # None, one at a token's end, and one inside of a token.
    assert found == {(False, False), (True, True), (True, False)}
    assert (stopped.attended == stopped.trained).all()
    for name in ("tokens", "trained", "finished"):
        np.testing.assert_array_equal(getattr(slotted, name), getattr(stopped, name))


def test_what_others_sampled_is_cut_alike(sampled):
    free, stopped, _ = jax.device_get(sampled)
    cut = stops.cut(free, TEXTS, TOKENIZER)
    for name in ("attended", "trained", "finished"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(stopped, name))
    assert (cut.logp_behaviour[~cut.trained] == 0).all()
    score = rollouts.score_by_hidden(functional.make_hidden(MODEL), completions=24)
    logp = jax.jit(score)(PARAMS, jax.tree.map(jnp.asarray, cut)).logp
    expected = jnp.where(cut.trained, logp, 0)
    assert_close(stopped.logp_behaviour, expected, rel=64 * EPS)


def test_any_cutting_of_a_text_leads_to_the_same_state():
    table, letters = stops.table(TEXTS, TOKENIZER), {"a": 2, "b": 3, "x": 7}
    for token, piece in enumerate(PIECES):
        for state in range(len(table)):
            now = state
            for letter in piece:
                now = table[now, letters[letter]]
            assert table[state, token] == now


@pytest.mark.parametrize("texts", ["abc", ["a", ""], ["ü"]])
def test_texts_that_cannot_be_found_in_tokens_are_refused(texts):
    with pytest.raises(InputError, match="stops must be"):
        stops.table(texts, TOKENIZER)
