"""Chunks of two tokenisations: by hand, and their gradient by enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms, exact
from alignax import distillation as ds
from alignax.algorithms import METHODS
from alignax.types import Rollout, Scored
from tests.close import assert_close

OPD = METHODS["opd"].algorithm
STUDENT, EOS, HORIZON = ("a", "b", "ab", ""), 3, 3
POLICY = exact.make_tabular_apply(vocab_size=len(STUDENT), horizon=HORIZON)
TOKENS, MASK = exact.enumerate_completions(len(STUDENT), HORIZON, eos_id=EOS)
LENGTHS = np.asarray(MASK).sum(axis=1)
ROWS = [tuple(x[:n]) for x, n in zip(TOKENS.tolist(), LENGTHS, strict=True)]


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def padded(rows, fill, dtype):
    width = max(len(row) for row in rows)
    found = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return jnp.asarray(found)


def test_ids_are_those_of_sets():
    """Random ends, some of them twice, some masked; by sets of common ends."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        ours, theirs = (np.cumsum(rng.integers(0, 3, n)) for n in (7, 5))
        mask, other = (
            np.arange(len(x)) < rng.integers(1, len(x) + 1) for x in (ours, theirs)
        )
        common = sorted(set(ours[mask]) & set(theirs[other]))
        expected = [
            sum(c < end for c in common)
            if known and common and end <= common[-1]
            else -1
            for end, known in zip(ours, mask, strict=True)
        ]
        found = ds.chunk_ids(*map(jnp.asarray, (ours, mask, theirs, other)))
        np.testing.assert_array_equal(found, expected)


def test_one_tokenisation_is_the_teacher_as_it_is():
    """Bit for bit what plain distillation reads, padding whatever it is."""
    rng = np.random.default_rng(1)
    logp, teacher = jnp.asarray(-rng.exponential(size=(2, 4, 6)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.array([6, 4, 1, 0])[:, None]
    ends = jnp.cumsum(jnp.ones((4, 6), jnp.int32), axis=1)
    ids = ds.chunk_ids(ends, mask, ends, mask)
    broken = jnp.where(mask, teacher, jnp.nan)
    found = ds.chunk_logp(logp, ids, broken, ids)
    np.testing.assert_array_equal(found, jnp.where(mask, teacher, 0))


# The teacher's side, by strings.


def fine(text):
    return list(text)


def crossing(text):
    """Tokens a, b and ba: where b is followed by a, the two are one."""
    pieces = []
    for letter in text:
        if pieces and pieces[-1] == "b" and letter == "a":
            pieces[-1] = "ba"
        else:
            pieces.append(letter)
    return pieces


LETTERS = ("a", "b", "ba", "")
LAW = jax.nn.log_softmax(
    jnp.asarray(np.random.default_rng(5).normal(size=(5, 4)), jnp.float32)
)
"""The teacher: its next token by its last, the fifth row at the start."""


def law_of(vocabulary):
    """The teacher that has these tokens, and no probability of others."""
    known = np.array([x in vocabulary for x in LETTERS])
    return np.asarray(jax.nn.log_softmax(jnp.where(known, LAW, -jnp.inf)), np.float64)


def said(law, pieces):
    """Its log-probability of each of some tokens."""
    ids = [4, *(LETTERS.index(x) for x in pieces)]
    return [law[i, j] for i, j in itertools.pairwise(ids)]


def side(pieces):
    """Ends of tokens; the end of the sequence is a letter of its own."""
    return np.cumsum([len(x) or 1 for x in pieces]).tolist()


def written(row):
    return [STUDENT[i] for i in row]


def read(row, cut, law):
    """What the teacher's tokens of a student's text are, and what it says of them."""
    pieces = cut("".join(written(row))) + [""] * (row[-1] == EOS)
    return pieces, said(law, pieces)


@jax.jit
def own_logp(params):
    whole = jnp.concatenate([jnp.zeros_like(TOKENS[:, :1]), TOKENS], axis=1)
    laws = jax.nn.log_softmax(POLICY(params, whole[:, :-1]).logits)
    return jnp.take_along_axis(laws, TOKENS[..., None], axis=-1)[..., 0]


def found_gradient(params, cut, law, *, shared=False):
    """Of the method's loss in expectation over all completions."""
    pieces, says = zip(*(read(row, cut, law) for row in ROWS), strict=True)
    ends = padded([side(written(row)) for row in ROWS], 0, np.int32)
    other = padded([side(x) for x in pieces], 0, np.int32)
    teacher, known = padded(says, 0.0, np.float64), other > 0
    ids = ds.chunk_ids(ends, MASK, other, known)
    other_ids = ds.chunk_ids(other, known, ends, MASK)
    assert ((ids >= 0) == MASK).all()
    old = own_logp(params)
    reference = ds.chunk_logp(old, ids, teacher, other_ids)
    if shared:
        count = ds.chunk_sums(jnp.ones(ids.shape), ids, chunks=HORIZON)
        count = jnp.take_along_axis(count, jnp.maximum(ids, 0), axis=-1)
        reference = old + (reference - old) / jnp.maximum(count, 1)
    rollout = Rollout(tokens=TOKENS, attended=MASK, trained=MASK, told=MASK)
    batch = Scored(
        rollout=rollout,
        rewards=jnp.zeros((1, len(ROWS))),
        logp_old=old,
        logp_ref=reference,
    )
    rows = algorithms.prepare(OPD, batch)
    chance = jnp.exp(jnp.sum(jnp.where(MASK, old, 0), axis=-1))

    @jax.jit
    @jax.grad
    def gradient(params):
        logp = own_logp(params)
        parts = algorithms.losses(OPD, logp, jnp.zeros(logp.shape), rows)
        return jnp.sum(chance[:, None] * sum(parts.values()))

    return gradient(params)["logits"]


def policy(seed=2):
    params = exact.tabular_init(
        jax.random.key(seed), prompts=1, vocab_size=4, horizon=HORIZON
    )
    return jax.tree.map(lambda x: x.astype(jnp.float64), params)


# The table's prefixes: by length, then in lexicographic order.
PREFIXES = [x for t in range(HORIZON) for x in itertools.product(range(4), repeat=t)]


def each_prefix(law):
    """``[prefixes, 4]``: what a teacher of letters says of each token, and end."""
    before = [fine("".join(written(prefix))) for prefix in PREFIXES]
    return np.array(
        [
            [sum(said(law, x + (fine(token) or [""]))[len(x) :]) for token in STUDENT]
            for x in before
        ]
    )


def test_the_gradient_is_of_each_prefixs_kl_where_chunks_are_tokens():
    """A teacher of letters: each of the student's tokens is a chunk of its own, and
    the reverse KL at a prefix a sum over them, whatever comes after."""
    law, params = law_of(("a", "b", "")), policy()
    chance, theirs = chances(params), each_prefix(law)
    reached = np.array(
        [
            sum(c for c, row in zip(chance, ROWS, strict=True) if begins(row, prefix))
            for prefix in PREFIXES
        ]
    )

    @jax.jit
    @jax.grad
    def by_hand(params):
        mine = jax.nn.log_softmax(params["logits"][0])
        return jnp.sum(reached[:, None] * jnp.exp(mine) * (mine - theirs))

    expected = by_hand(params)["logits"]
    assert_close(found_gradient(params, fine, law), expected, rel=1e-10)
    # At its optimum every token has as much as the teacher gives its text, and a text
    # that two tokens or one may be written with has that twice.
    best = {"logits": jnp.asarray(theirs)[None]}
    assert jnp.abs(found_gradient(best, fine, law)).max() < 1e-12
    laws = np.exp(np.asarray(jax.nn.log_softmax(theirs[0])))
    np.testing.assert_allclose(laws[2] / laws[0], np.exp(law[0, 1]))


def begins(row, prefix):
    return len(row) > len(prefix) and row[: len(prefix)] == prefix


def chances(params):
    return np.exp(np.where(MASK, own_logp(params), 0).sum(axis=1))


@functools.cache
def chunks_of(row):
    """``(tokens before, tokens, the teacher's before and in it)``, by strings."""
    ours, theirs = written(row), crossing("".join(written(row)))
    theirs += [""] * (row[-1] == EOS)
    pairs, (i, j) = [], (0, 0)
    for m, n in itertools.product(range(len(ours) + 1), range(len(theirs) + 1)):
        same = "".join(ours[:m]) == "".join(theirs[:n])
        ended = (m and ours[m - 1] == "") == (n and theirs[n - 1] == "")
        if same and ended and m > i and n > j:
            pairs.append((row[:i], row[i:m], tuple(theirs[:j]), tuple(theirs[j:n])))
            i, j = m, n
    return pairs


def crossing_gradient(params, law):
    """Of ``Σ w π(c|h) log π(c|h)/π_T(c|h)`` over the chunks that there may be: w is how
    often h is reached and c found a chunk, in proportion to π(c|h), both of the old
    policy."""
    found = [(i, chunk) for i, row in enumerate(ROWS) for chunk in chunks_of(row)]
    rows = np.array([i for i, _ in found])
    places = np.arange(HORIZON)
    spans = np.array(
        [(len(h) <= places) & (places < len(h) + len(c)) for _, (h, c, *_) in found]
    )
    theirs = np.array(
        [
            sum(said(law, [*before, *now])[len(before) :])
            for _, (*_, before, now) in found
        ]
    )
    chance, old = chances(params), own_logp(params)

    @jax.jit
    @jax.grad
    def gradient(params):
        mine, held = (
            jnp.sum(jnp.where(spans, x[rows], 0), axis=-1)
            for x in (own_logp(params), old)
        )
        return jnp.sum(chance[rows] * jnp.exp(mine - held) * (mine - theirs))

    return gradient(params)["logits"]


def test_the_gradient_where_both_cut_across_each_other():
    """Student a, b, ab and teacher a, b, ba: chunks of several tokens of either."""
    law, params = law_of(LETTERS), policy()
    sizes = {(len(x), len(y)) for row in ROWS for _, x, _, y in chunks_of(row)}
    assert {(1, 1), (1, 2), (2, 1), (2, 2)} <= sizes
    expected = crossing_gradient(params, law)
    assert_close(found_gradient(params, crossing, law), expected, rel=1e-10)
    # A part of the difference for each token is the gradient of something else.
    parts = found_gradient(params, crossing, law, shared=True)
    assert float(jnp.linalg.norm(parts - expected)) > 0.05 * jnp.linalg.norm(expected)


EVEN = {"logits": jnp.zeros((1, 21, 4))}


def text_gap(law):
    """By how many nats a completion the teacher gives a text more than its tokenizer's
    tokens of it, over the completions of a student that writes all tokens alike."""

    def all_ways(text, last, end):
        if not text:
            return np.exp(law[last, 3]) if end else 1.0
        return sum(
            np.exp(law[last, i]) * all_ways(text[len(x) :], i, end)
            for i, x in enumerate(LETTERS)
            if x and text.startswith(x)
        )

    gaps = [
        np.log(all_ways("".join(written(row)), 4, row[-1] == EOS))
        - sum(read(row, crossing, law)[1])
        for row in ROWS
    ]
    assert min(gaps) > -1e-12
    return float(np.sum(chances(EVEN) * gaps))


@pytest.mark.parametrize(("apart", "nats"), [(0.25, 0.098), (0.01, 0.004)])
def test_what_other_tokens_of_the_text_are_worth(apart, nats):
    """The bias that ``docs/teachers.md`` states: of a teacher that writes all tokens
    alike, and of one that seldom writes a after b, where its tokenizer has ba."""
    law = np.log(np.full((5, 4), 0.25))
    law[1] = np.log([apart, *[(1 - apart) / 3] * 3])
    # A completion has an a behind a b 7/16 times.
    np.testing.assert_allclose(text_gap(law), 7 / 16 * np.log1p(apart), rtol=1e-12)
    assert round(text_gap(law), 3) == nats
