"""Several turns against a teacher-forced score of the whole, and a tool by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.data import Tokenizer
from alignax.train import assembly, stops, tasks, turns
from alignax.train.options import RL
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close
from tests.train.test_every_method import MODEL, PARAMS

LETTERS = "_$abcd=>"
TOKENIZER = Tokenizer(
    encode=lambda text: [LETTERS.index(x) for x in text],
    decode=lambda ids: "".join(LETTERS[i] for i in ids if i > 1),
    vocab_size=8,
    eos_id=1,
    pad_id=0,
)
MODEL = dataclasses.replace(MODEL, max_length=64)
N, K, W, A, TURN = 3, 20, 14, 3, 5
PROMPTS = Prompts(
    tokens=jnp.array([[2, 3, 4], [0, 5, 2], [3, 3, 3]]),
    mask=jnp.array([[True] * 3, [False, True, True], [True] * 3]),
    index=jnp.array([2, 0, 1]),
)
RECORDS = ["zero", "one", "two"]


def parts_of(**more):
    config = RL(
        method="unbiased", prompts=N, completions=K, learning_rate=1e-2, steps=4
    )
    return assembly.make(
        config,
        functional.make_apply(MODEL),
        hidden_fn=functional.make_hidden(MODEL),
        max_tokens=TURN,
        eos_id=1,
        stops=stops.table(["=", "b", "a"], TOKENIZER),
        **more,
    )


@pytest.fixture(scope="module")
def played():
    asked = []

    def environment(texts, records, turn):
        asked.append((turn, list(texts), list(records)))
        # An answer, none, and one that is too long.
        answers = {"=": "c>", "b": "", "a": "abcd"}
        return [answers.get(text[-1:]) for text in texts]

    parts = parts_of()
    write = turns.make_writer(
        parts,
        environment,
        RECORDS,
        TOKENIZER,
        turns=4,
        max_tokens=W,
        answer_tokens=A,
    )
    sample = turns.make_sampler(parts, write)
    state = parts.init(PARAMS, jax.random.key(2))
    samples = sample(state, PROMPTS)
    return parts._replace(sample=sample), state, jax.device_get(samples), asked


def test_later_turns_are_drawn_and_scored_behind_the_answers(played):
    _, _, samples, _ = played
    rollout = jax.tree.map(jnp.asarray, samples.rollout)
    given = rollout.attended & ~rollout.trained
    assert int(jnp.sum(jnp.any(given, axis=1))) > 2
    # Each row's text without the padding before and within, by one full forward.
    shown = jnp.concatenate([rollout.prompt_mask, rollout.attended], axis=1)
    both = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    order = jnp.argsort(~shown, axis=1, stable=True)
    tokens = jnp.take_along_axis(both, order, axis=1)
    law = jax.nn.log_softmax(
        jax.jit(functional.make_apply(MODEL))(PARAMS, tokens[:, :-1]).logits
    )
    logp = jnp.take_along_axis(law, tokens[:, 1:, None], axis=-1)[..., 0]
    for row in range(N * K):
        start = rollout.prompt_mask[row].sum() - 1
        own = rollout.trained[row][: rollout.attended[row].sum()]
        found = rollout.logp_behaviour[row][rollout.trained[row]]
        assert_close(found, logp[row][start : start + len(own)][own], rel=128 * EPS)


def test_every_row_is_turns_and_answers(played):
    """Read as a text: a turn ends at a stop, and the tool's answer follows it."""
    *_, samples, asked = played
    rollout, seen = samples.rollout, set()
    for row in range(N * K):
        attended, length = rollout.attended[row], rollout.attended[row].sum()
        assert attended[:length].all()
        text = "".join(LETTERS[i] for i in rollout.tokens[row][:length])
        kind = "".join("wt"[not x] for x in rollout.trained[row][:length])
        turn, last = 0, length - 1
        for place in range(length - 1):
            assert text[place] not in "$a"
            if kind[place] == "w" and text[place] == "=":
                assert (text + ".")[place + 1 : place + 3] == "c>"
                assert (kind + ".")[place + 1 : place + 3] == "tt"
            elif kind[place] == "w":
                assert kind[place + 1] == "w"
            turn += kind[place] == "w" and text[place] in "=b"
        over = turn == 3 or text[last] == "$"
        assert rollout.finished[row] == (text[last] in "$=ba" and over)
        seen |= {text[last], turn}
    assert {"$", "a", 0, 1, 2} <= seen
    # The tool is asked of those that stopped, with their records.
    assert [turn for turn, *_ in asked] == [0, 1, 2]
    texts, records = asked[0][1:]
    assert len(texts) == len(records) < N * K
    assert set(records) <= set(RECORDS)
    assert all(text[-1:] in ("", *"=abcd>") for text in texts)


def test_on_policy_the_ratio_is_one_and_the_step_moves(played):
    parts, state, *_ = played

    def judge(rollout, numbers):
        return {"rewards": np.asarray(rollout.tokens == 2).sum(1).astype(np.float32)}

    step = tasks.host_step(parts, judge)
    _, metrics = step(jax.tree.map(jnp.copy, state), PROMPTS)
    assert abs(float(metrics["ratio"]) - 1) < 1e-4
    assert float(metrics["sampler_largest"]) < 1e-3
    assert float(metrics["grad_norm"]) > 0


def test_a_calculator_and_hints():
    marks = ["<<48/2=", "<<1/3=", "a=", "<<x=", "done"]
    assert turns.calculator(marks, [None] * 5, 0) == [
        "24>>",
        "0.333333>>",
        "",
        ">>",
        None,
    ]
    tell = turns.hints(
        lambda texts, records: [
            float(t == r) for t, r in zip(texts, records, strict=True)
        ],
        lambda text, record: f"not {text}",
    )
    assert tell(["7", "8"], ["7", "7"], 0) == [None, "not 8"]


def test_methods_with_a_rule_of_their_own_are_refused():
    config = RL(method="rl_plus", prompts=N, completions=K)
    parts = assembly.make(
        config,
        functional.make_apply(MODEL),
        max_tokens=4,
        eos_id=1,
        values=lambda params, critic, rollout: rollout.logp_behaviour,
    )
    with pytest.raises(InputError, match="by a rule of its own"):
        turns.make_sampler(parts, write=parts.generate)


@pytest.mark.slow
def test_completions_begin_with_a_forced_prefix():
    parts = parts_of(prefix=[6, 5])
    state = parts.init(PARAMS, jax.random.key(2))
    scored = parts.sample(state, PROMPTS).scored
    rollout = scored.rollout
    assert rollout.tokens.shape == (N * K, TURN)
    np.testing.assert_array_equal(rollout.tokens[:, :2], [[6, 5]] * N * K)
    assert rollout.attended[:, :2].all()
    assert not rollout.trained[:, :2].any()
    np.testing.assert_array_equal(rollout.prompt_tokens[:K], [[2, 3, 4]] * K)
    np.testing.assert_array_equal(rollout.prompt_mask[K], [False, True, True])
    score = rollouts.score_by_logits(functional.make_apply(MODEL))
    expected = jnp.where(rollout.trained, score(PARAMS, rollout).logp, 0)
    assert_close(scored.logp_old, expected, rel=64 * EPS)
    with pytest.raises(InputError, match="prefix must leave something to write"):
        parts_of(prefix=[6] * TURN).sample(state, PROMPTS)
