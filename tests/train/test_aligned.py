"""A teacher with another tokenizer: by hand on one batch, and by the command."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from alignax.algorithms import METHODS
from alignax.models import functional, hf
from alignax.models.config import DecoderConfig
from alignax.pipeline import data, metrics
from alignax.train import aligned
from alignax.train import policy as policies
from alignax.train.runs import signs
from alignax.types import Counters, InputError, Rollout, Scored, TrainState
from tests.close import assert_close, decoder_rel
from tests.train.test_runs import arguments, home, main, refused, rows_of

__all__ = ["home"]
NONE = Counters(skipped=0, skipped_in_row=0, no_signal=0)
STATE = TrainState(step=0, params=0, opt_state=0, controller=0, counters=NONE, key=0)
LETTERS = "abc="
MERGES = [("a", "b"), ("c", "="), ("ab", "c="), ("b", "b")]
SMALL = {
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_size": 8,
    "max_length": 96,
    "initializer_range": 0.5,
}


def merging(merges):
    """Letters and what is merged of them, with the end as the one special token."""
    vocabulary = ["<eos>", *LETTERS, *("".join(pair) for pair in merges)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def folder_of(folder, merges, seed, **changes):
    """A random model of such tokens."""
    folder.mkdir(parents=True)
    tokenizer = merging(merges)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    size = tokenizer.get_vocab_size()
    config = DecoderConfig(vocab_size=size, qk_norm=True, **(SMALL | changes))
    hf.save(folder, config, functional.init(config, jax.random.key(seed)))
    return folder


def in_memory(tokenizer, seed):
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, **SMALL)
    params = functional.init(config, jax.random.key(seed))
    return policies.make(config, params, tokenizer)


def scored_of(texts, policy, *, width, finished):
    """Rows of tokens as a sampler gives them, with log-probabilities of any kind."""
    mask = np.array([[i < len(ids) for i in range(width)] for ids in texts])
    tokens = np.array([[*ids, *[0] * (width - len(ids))] for ids in texts])
    logp = -jax.random.exponential(jax.random.key(9), mask.shape)
    rollout = Rollout(
        tokens=jnp.asarray(tokens, jnp.int32),
        attended=jnp.asarray(mask),
        trained=jnp.asarray(mask),
        finished=jnp.asarray(finished),
    )
    return Scored(
        rollout=rollout,
        rewards=jnp.zeros((len(texts) // 2, 2)),
        logp_old=jnp.where(mask, logp, 0),
        logp_ref=jnp.full(mask.shape, jnp.nan),
        index=jnp.arange(len(texts) // 2),
    )


def test_what_a_teacher_says_of_other_tokens():
    """By its logits of the whole text, one row at a time, added up by hand."""
    raw = merging(MERGES)
    other = data.Tokenizer(
        encode=lambda text: raw.encode(text).ids,
        decode=lambda ids: raw.decode(list(ids)),
        vocab_size=raw.get_vocab_size(),
        eos_id=0,
        pad_id=0,
    )
    policy, teacher = in_memory(data.byte_tokenizer(), 0), in_memory(other, 1)
    end = policy.tokenizer.eos_id
    texts = [[*b"bbabc=", end], [*b"aab", 255, *b"b"], [*b"c=a"], [*b"ab"]]
    batch = scored_of(texts, policy, width=8, finished=[True, False, False, False])
    # One token of the last row is no sample of the policy's: nor is its chunk.
    forced = jnp.zeros((4, 8), bool).at[2, 0].set(True)
    rollout = dataclasses.replace(
        batch.rollout, trained=batch.rollout.trained & ~forced
    )
    batch = dataclasses.replace(batch, rollout=rollout)
    records = [{"prompt": "bba="}, {"prompt": "a="}]
    length = aligned.longest_prompt(records, other)
    tell = aligned.make_tell(
        policy, teacher, records, completions=2, prompt_length=length
    )
    found, said = tell(STATE, batch)

    law = jax.jit(
        lambda ids: jax.nn.log_softmax(teacher.apply_fn(teacher.params, ids).logits[0])
    )

    def reads(prompt, pieces):
        """The teacher's log-probability of each piece behind a prompt."""
        before = raw.encode(prompt).ids
        ids = [*before, *(raw.token_to_id(piece) for piece in pieces)]
        laws = law(jnp.array([ids + [0] * (12 - len(ids))]))
        return [float(laws[i - 1, ids[i]]) for i in range(len(before), len(ids))]

    apart = []
    expected, told = np.array(batch.logp_old), np.zeros((4, 8), bool)
    # Row, the pieces, and the spans of the policy's tokens that each is.
    for row, pieces, spans in (
        (0, ["bb", "abc=", "<eos>"], [(0, 2), (2, 6), (6, 7)]),
        (1, ["a", "ab"], [(0, 1), (1, 3)]),
        # c= is one with what was forced; the a is cut, and one token for both.
        (2, ["c=", "a"], [None, (2, 3)]),
        # ab is cut, and two for one.
        (3, ["ab"], [None]),
    ):
        logp = reads(records[row // 2]["prompt"], pieces)
        for span, theirs in zip(spans, logp, strict=True):
            if span is not None:
                own = np.asarray(batch.logp_old)[row, slice(*span)]
                expected[row, slice(*span)] = own + theirs - own.sum()
                told[row, slice(*span)] = True
                apart.append(theirs - own.sum())
    np.testing.assert_array_equal(found.rollout.told, told)
    assert_close(found.logp_ref, jnp.asarray(expected), rel=decoder_rel(1))
    np.testing.assert_array_equal(METHODS["opd"].algorithm.keep(found), told)
    np.testing.assert_allclose(said["aligned"], 11 / 16)
    k3 = np.sum(np.expm1(apart) - np.array(apart)) / 4
    np.testing.assert_allclose(said["kl"], k3, rtol=1e-4)
    np.testing.assert_allclose(said["chunk"], 11 / 6)
    with pytest.raises(InputError, match=r"align_text: the longest prompt has 96"):
        aligned.make_tell(policy, teacher, records, completions=2, prompt_length=96)
    messages = [{"prompt": [{"role": "user", "content": "a"}]}]
    with pytest.raises(
        InputError, match=r"record 0 for the teacher.* no chat template"
    ):
        aligned.longest_prompt(messages, other)


@pytest.fixture(scope="module")
def three(home):
    """A student of letters, a teacher of letters and one that merges them."""
    texts = itertools.product("abc", repeat=2)
    rows = [{"prompt": "".join(pair) + "=", "answer": "a"} for pair in texts]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (home / "letters.jsonl").write_text(text)
    return (
        folder_of(home / "letters", (), 0),
        folder_of(home / "alike", (), 1, hidden_size=16),
        folder_of(home / "merging", MERGES, 2, num_layers=2),
    )


def distilled(home, out, student, teacher, *more):
    args = arguments(home, "rl", "letters", out, "--method", "opd", *more)
    args[args.index("--model") + 1] = str(student)
    at = args.index("--reward")
    main([*args[:at], *args[at + 2 :], "--teacher", str(teacher)])
    return out


@pytest.mark.slow
def test_one_vocabulary_is_plain_distillation(home, three, tmp_path):
    student, alike, _ = three
    plain = distilled(home, tmp_path / "plain", student, alike)
    chunks = distilled(home, tmp_path / "chunks", student, alike, "--align-text")
    before, after = rows_of(plain), rows_of(chunks)
    assert len(before) == len(after)
    for row, other in zip(before, after, strict=True):
        for name in row:
            np.testing.assert_allclose(other[name], row[name], rtol=2e-5, atol=1e-6)
    assert set(metrics.column(after, "rl/aligned")[1]) == {1.0}
    assert set(metrics.column(after, "rl/chunk")[1]) == {1.0}


@pytest.mark.slow
def test_another_vocabulary_by_the_command(home, three, tmp_path, capsys):
    """The KL of chunks falls; without the option it is refused."""
    student, _, other = three
    more = ("--steps", "40", "--prompts", "8", "--completions", "8", "--lora.rank", "0")
    out = distilled(
        home, tmp_path / "out", student, other, *more, "--learning-rate", "0.02",
        "--align-text", "--save-every", "40", "--evaluate-every", "0",
    )  # fmt: skip
    rows = metrics.read(out)
    kl, aligned_share = (metrics.column(rows, f"rl/{x}")[1] for x in ("kl", "aligned"))
    assert np.mean(kl[-5:]) < 0.6 * np.mean(kl[:5])
    # What is left out are cut ends.
    assert 0.8 < aligned_share.min() < 1
    assert metrics.column(rows, "rl/chunk")[1].mean() > 1.05
    assert metrics.column(rows, "rl/skipped")[1].max() == 0
    assert not any("rl/signal" in row for row in rows)
    args = arguments(home, "rl", "letters", tmp_path / "no", "--method", "opd")
    args[args.index("--model") + 1] = str(student)
    message = refused(capsys, [*args, "--teacher", str(other)])
    assert "vocab_size is 9, the student's 5" in message
    assert "--align-text" in message


def test_what_is_left_out_is_said():
    assert not signs.signs([{"aligned": 0.95}])
    said = signs.signs([{"aligned": 0.6}])["apart"]
    assert said.startswith("40% of the policy's tokens are in no text that the teacher")


def test_what_has_no_chunks_is_refused(home, tmp_path, capsys):
    teacher = ("--teacher", str(home / "bare"), "--align-text")
    for more, said in (
        (
            ("--method", "opd", "--align-text"),
            ["align_text is of one teacher", "got 0"],
        ),
        (("--method", "g_opd", *teacher), ["align_text is of the method opd", "g_opd"]),
        (("--method", "opd (to go)", *teacher), ["got opd (to go)"]),
        (
            ("--method", "opd", *teacher, "--form", "exact", "--place", "loss"),
            ["align_text is of the method opd as it is"],
        ),
        (("--method", "opd", *teacher, "--target-kl", "1"), ["target_kl must be left"]),
        (("--method", "opd", *teacher, "--tool", "calculator"), ["tool must be left"]),
    ):
        message = refused(
            capsys, arguments(home, "rl", "prompts", tmp_path / "x", *more)
        )
        assert all(words in message for words in said), message
