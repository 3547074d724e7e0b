from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from alignax import logprobs, sampling
from alignax.pipeline import rollout as rollouts
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close
from tests.pipeline import toy

EOS, PAD = 1, 0


@pytest.fixture(scope="module")
def params():
    table, tilt = jax.random.split(jax.random.key(3))
    return {
        "table": jax.random.normal(table, (toy.V, toy.V)),
        "tilt": 0.2 * jax.random.normal(tilt, (toy.V,)),
    }


def prompts_of(*rows, left=True, start=0):
    length = max(map(len, rows))
    tokens, mask = (np.zeros((len(rows), length), t) for t in (np.int32, bool))
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if left else slice(len(row))
        tokens[i, where], mask[i, where] = row, True
    index = jnp.arange(start, start + len(rows))
    return Prompts(tokens=jnp.array(tokens), mask=jnp.array(mask), index=index)


PROMPTS = prompts_of([2, 3, 4], [5], [3, 2])


def generate(params, key, prompts, **options):
    options = {"completions": 4, "max_tokens": 7, "eos_id": EOS, **options}
    return jax.jit(partial(rollouts.generate, toy.apply_fn, **options))(
        params, key, prompts
    )


def test_padding_side_does_not_matter(params):
    right = prompts_of([2, 3, 4], [5], [3, 2], left=False)
    chex.assert_trees_all_equal(
        generate(params, jax.random.key(0), PROMPTS),
        generate(params, jax.random.key(0), right),
    )


def test_log_probabilities_are_those_of_a_full_forward(params):
    for options in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}):
        out = generate(params, jax.random.key(1), PROMPTS, **options)
        logits = rollouts.completion_logits(toy.apply_fn, params, out)
        law = logits
        if "temperature" in options:
            law = sampling.tempered(law, temperature=options["temperature"])
        if "top_k" in options:
            law = sampling.top_k(law, k=options["top_k"])
        if "top_p" in options:
            law = sampling.top_p(law, p=options["top_p"])
        expected = jnp.where(out.trained, logprobs.token_logp(law, out.tokens), 0)
        np.testing.assert_allclose(out.logp_behaviour, expected, atol=1e-5)


def test_end_of_sequence_ends_a_completion(params):
    out = generate(params, jax.random.key(2), PROMPTS, completions=32)
    tokens, mask = np.asarray(out.tokens), np.asarray(out.trained)
    for row, counted, finished in zip(tokens, mask, out.finished, strict=True):
        length = counted.sum()
        assert counted[:length].all()
        assert not counted[length:].any()
        assert finished == (EOS in row)
        assert EOS not in row[: length - 1]
        assert length == len(row) or row[length - 1] == EOS
        assert (row[length:] == PAD).all()
    assert out.finished.any()
    assert not out.finished.all()
    assert (np.asarray(out.logp_behaviour)[~mask] == 0).all()


@pytest.mark.parametrize("slots", [None, 16])
def test_any_of_several_tokens_ends_a_completion(params, slots):
    """As a chat model's end of turn and its end of text; the one last drawn is in."""
    ends = (EOS, EOS + 1)
    out = generate(
        params, jax.random.key(2), PROMPTS, completions=32, eos_id=ends, slots=slots
    )
    last = set()
    for row, counted in zip(np.asarray(out.tokens), out.trained, strict=True):
        length = int(counted.sum())
        assert not set(ends) & set(row[: length - 1].tolist())
        if length < len(row):
            last.add(int(row[length - 1]))
    assert last == set(ends)


def test_without_eos_every_completion_is_full(params):
    out = generate(params, jax.random.key(2), PROMPTS, eos_id=None)
    assert out.trained.all()
    assert not out.finished.any()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_k": 4}])
def test_tokens_follow_the_law(params, options):
    """χ² of the first two tokens against the exact joint law, at a fixed seed."""
    out = generate(
        params,
        jax.random.key(5),
        PROMPTS,
        completions=4000,
        max_tokens=2,
        eos_id=None,
        **options,
    )

    def law(token, count):
        logits = np.float64(params["table"][token] + count * params["tilt"])
        logits = logits / options.get("temperature", 1.0)
        if "top_k" in options:
            smallest = np.sort(logits)[-options["top_k"]]
            logits = np.where(logits < smallest, -np.inf, logits)
        weights = np.exp(logits - np.max(logits))
        return weights / weights.sum()

    pairs = np.asarray(out.tokens).reshape(3, 4000, 2)
    for row, (last, count) in enumerate([(4, 3), (5, 1), (2, 2)]):
        first = law(last, count)
        joint = np.stack([first[v] * law(v, count + 1) for v in range(toy.V)])
        counts = np.zeros((toy.V, toy.V))
        np.add.at(counts, tuple(pairs[row].T), 1)
        possible = joint > 0
        assert counts[~possible].sum() == 0
        expected = 4000 * joint[possible] / joint.sum()
        p = stats.chisquare(counts[possible], expected).pvalue
        assert p > 1e-3


def test_greedy_is_the_argmax(params):
    out = generate(params, jax.random.key(0), PROMPTS, temperature=0.0)
    logits = rollouts.completion_logits(toy.apply_fn, params, out)
    best = jnp.where(out.trained, jnp.argmax(logits, -1), PAD)
    np.testing.assert_array_equal(out.tokens, best)
    np.testing.assert_array_equal(out.logp_behaviour, 0)


def test_a_row_does_not_depend_on_its_neighbours(params):
    whole = generate(params, jax.random.key(7), PROMPTS)
    alone = generate(params, jax.random.key(7), prompts_of([5], start=1))
    np.testing.assert_array_equal(whole.tokens[4:8], alone.tokens)


def test_a_record_that_stands_twice_is_sampled_anew(params):
    twice = Prompts(
        tokens=PROMPTS.tokens[:2].at[1].set(PROMPTS.tokens[0]),
        mask=PROMPTS.mask[:2].at[1].set(PROMPTS.mask[0]),
        index=jnp.zeros(2, jnp.int32),
    )
    out = generate(params, jax.random.key(7), twice, completions=8)
    assert (out.tokens[:8] != out.tokens[8:]).any()


def test_completions_and_keys_differ(params):
    out = generate(params, jax.random.key(0), PROMPTS, completions=8)
    other = generate(params, jax.random.key(1), PROMPTS, completions=8)
    assert len({tuple(row) for row in np.asarray(out.tokens).tolist()}) > 8
    assert (out.tokens != other.tokens).any()


def test_loop_stops_when_all_have_ended(params):
    """With EOS certain, one token is drawn and the model is never called again."""
    sure = {"table": params["table"] * 0, "tilt": jnp.zeros(toy.V).at[EOS].set(1e4)}
    calls = []

    def counting(*args, **kwargs):
        if args[1].size:
            jax.debug.callback(lambda: calls.append(1))
        return toy.apply_fn(*args, **kwargs)

    out = rollouts.generate(
        counting,
        sure,
        jax.random.key(0),
        PROMPTS,
        completions=2,
        max_tokens=50,
        eos_id=EOS,
    )
    jax.effects_barrier()
    assert out.trained.sum() == 6
    assert len(calls) == 1


def test_sharded_prompts_give_the_same_samples(params):
    from alignax.pipeline import sharding

    mesh = sharding.make_mesh(fsdp=4)
    prompts = prompts_of(*[[2, 3, 4], [5], [3, 2], [4]] * 2)
    expected = generate(params, jax.random.key(0), prompts)
    sharded = sharding.shard_rows(prompts, mesh)
    for options in ({}, {"slots": 8}):
        actual = generate(params, jax.random.key(0), sharded, **options)
        np.testing.assert_array_equal(actual.tokens, expected.tokens)
        assert_close(actual.logp_behaviour, expected.logp_behaviour, rel=16 * EPS)


@pytest.mark.parametrize(
    ("slots", "options"),
    [(1, {}), (5, {}), (11, {"temperature": 1.5, "top_k": 5}), (12, {})],
)
def test_slots_do_not_change_the_samples(params, slots, options):
    expected = generate(params, jax.random.key(3), PROMPTS, **options)
    actual = generate(params, jax.random.key(3), PROMPTS, slots=slots, **options)
    assert len(set(np.asarray(expected.trained).sum(axis=1).tolist())) > 3
    assert_close(actual, expected, rel=16 * EPS)


def test_slots_take_no_more_steps_than_they_must(params):
    """Every slot is busy until no completion waits."""
    steps = []

    def counting(*args, **kwargs):
        if args[1].size:
            jax.debug.callback(lambda: steps.append(1))
        return toy.apply_fn(*args, **kwargs)

    out = rollouts.generate(
        counting,
        params,
        jax.random.key(3),
        PROMPTS,
        completions=8,
        max_tokens=7,
        eos_id=EOS,
        slots=3,
    )
    jax.effects_barrier()
    lengths = np.asarray(out.trained).sum(axis=1)
    until = np.zeros(3, int)
    for length in lengths:
        until[until.argmin()] += length
    # One call is the prefill.
    assert len(steps) == until.max() + 1 < 7 * 8


@pytest.mark.parametrize(
    "options",
    [{"completions": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"slots": 0}],
)
def test_out_of_range_is_named(params, options):
    with pytest.raises(InputError, match=next(iter(options))):
        generate(params, jax.random.key(0), PROMPTS, **options)
