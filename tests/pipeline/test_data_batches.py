"""Rows and batches: padding by hand, order, resumption and shards."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from alignax.pipeline.data import (
    Tokenizer,
    byte_tokenizer,
    encode_prompts,
    encode_supervised,
    prompt_batches,
    supervised_batches,
)
from alignax.types import InputError, Prompts, Supervised

TOKENIZER = byte_tokenizer()
PAD, BOS, EOS = 256, 257, 258
RECORDS = [{"q": f"{i}+{i}=", "a": str(2 * i)} for i in range(14)]
TEXTS = {"prompt": lambda r: r["q"], "answer": lambda r: r["a"]}
SIZES = {"batch_size": 4, "length": 10, "seed": 3}


def prompts_of(records=RECORDS, **changes):
    given = {**SIZES, "prompt": TEXTS["prompt"], **changes}
    return prompt_batches(records, TOKENIZER, **given)


def supervised_of(records=RECORDS, **changes):
    return supervised_batches(records, TOKENIZER, **{**SIZES, **TEXTS, **changes})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_prompts_are_padded_on_the_left():
    rows = encode_prompts(["1+2=", "", "é"], TOKENIZER, length=5, indices=[7, 8, 2])
    assert rows.tokens.tolist() == [
        [BOS, 49, 43, 50, 61],
        [PAD, PAD, PAD, PAD, BOS],
        [PAD, PAD, BOS, 0xC3, 0xA9],
    ]
    assert rows.mask.tolist() == [
        [True] * 5,
        [False] * 4 + [True],
        [False] * 2 + [True] * 3,
    ]
    assert rows.index.tolist() == [7, 8, 2]
    assert (rows.tokens.dtype, rows.mask.dtype, rows.index.dtype) == (
        np.int32,
        np.bool_,
        np.int32,
    )


def test_supervised_rows_are_padded_on_the_right():
    rows = encode_supervised(["1+2=", "5"], ["3", ""], TOKENIZER, length=8)
    assert rows.tokens.tolist() == [
        [BOS, 49, 43, 50, 61, 51, EOS, PAD],
        [BOS, 53, EOS, PAD, PAD, PAD, PAD, PAD],
    ]
    assert rows.mask.tolist() == [[True] * 7 + [False], [True] * 3 + [False] * 5]
    assert rows.loss_mask.tolist() == [
        [False] * 5 + [True] * 2 + [False],
        [False] * 2 + [True] + [False] * 5,
    ]
    assert rows.index.tolist() == [0, 1]


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), min_size=1))
@settings(deadline=None, max_examples=40)
def test_texts_come_back(pairs):
    prompts, answers = map(list, zip(*pairs, strict=True))
    rows = encode_prompts(prompts, TOKENIZER, length=30)
    tokens, mask = np.asarray(rows.tokens), np.asarray(rows.mask)
    assert [TOKENIZER.decode(t[m]) for t, m in zip(tokens, mask, strict=True)] == (
        prompts
    )
    assert (np.diff(mask.astype(int)) >= 0).all()
    both = encode_supervised(prompts, answers, TOKENIZER, length=60)
    tokens, mask = np.asarray(both.tokens), np.asarray(both.mask)
    loss = np.asarray(both.loss_mask)
    for row, (prompt, answer) in enumerate(pairs):
        assert TOKENIZER.decode(tokens[row, loss[row]]) == answer
        assert TOKENIZER.decode(tokens[row, mask[row] & ~loss[row]]) == prompt
        assert tokens[row, loss[row]][-1] == EOS
    assert (np.diff(mask.astype(int)) <= 0).all()
    assert not (loss & ~mask).any()


def test_bos_that_the_template_wrote_is_not_doubled():
    tokenizer = Tokenizer(
        encode=lambda text: [9, 5],
        decode=lambda ids: "",
        vocab_size=10,
        eos_id=1,
        pad_id=0,
        bos_id=9,
    )
    assert encode_prompts(["x"], tokenizer, length=3).tokens.tolist() == [[0, 9, 5]]


def test_too_long_names_record_length_and_limit():
    texts = ["12", "12345678", "1", "123456789012"]
    message = (
        r"record 11 has 9 tokens, more than the limit of 8 \(2 of 4 records do; the "
        r"longest has 13\); raise the limit, or leave such records out with on_long="
    )
    with pytest.raises(InputError, match=message):
        encode_prompts(texts, TOKENIZER, length=8, indices=[10, 11, 12, 13])
    with pytest.raises(InputError, match=r"record 1 has 10 tokens"):
        encode_supervised(texts, [""] * 4, TOKENIZER, length=8)
    with pytest.raises(InputError, match=r"record 10 has 7 tokens.*4 of 14 records"):
        prompts_of(length=5)
    with pytest.raises(InputError, match=r"record 5 has 8 tokens"):
        supervised_of(length=7)


def test_long_ones_can_be_dropped():
    rows = encode_prompts(["12", "1" * 9, "3"], TOKENIZER, length=4, on_long="drop")
    assert rows.index.tolist() == [0, 2]
    batches = prompts_of(length=5, batch_size=10, num_epochs=1, on_long="drop")
    assert sorted(next(batches).index.tolist()) == list(range(10))
    with pytest.raises(StopIteration):
        next(batches)
    rows = supervised_of(length=7, batch_size=5, num_epochs=1, on_long="drop")
    assert sorted(next(rows).index.tolist()) == list(range(5))


def test_dropping_keeps_the_numbers_of_the_others():
    records = [{"q": "1" * (9 if i % 3 == 1 else 2), "a": str(i)} for i in range(9)]
    kept = [0, 2, 3, 5, 6, 8]
    changes = {"batch_size": 6, "length": 6, "num_epochs": 1, "on_long": "drop"}
    assert sorted(next(prompts_of(records, **changes)).index.tolist()) == kept
    batch = next(supervised_of(records, **changes))
    assert sorted(batch.index.tolist()) == kept
    for tokens, loss, number in zip(
        batch.tokens, batch.loss_mask, batch.index, strict=True
    ):
        assert TOKENIZER.decode(tokens[loss].tolist()) == str(number)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (prompts_of, {"batch_size": 0}, "batch_size: 0 was given for 1 processes"),
        (prompts_of, {"batch_size": 3, "process_count": 2}, "multiple of their number"),
        (prompts_of, {"process_index": 2, "process_count": 2}, "0 to 1 would do"),
        (prompts_of, {"seed": -1}, "seed: -1 was given"),
        (prompts_of, {"batch_size": 15, "num_epochs": 1}, "1 epochs of 14 records do"),
        (prompts_of, {"num_epochs": 0}, "0 epochs of 14 records"),
        (prompts_of, {"length": 0}, "length: 0 was given"),
        (prompts_of, {"on_long": "keep"}, "on_long: 'keep' was given"),
        (prompts_of, {"length": 2, "on_long": "drop"}, "all have more than 2"),
        (prompts_of, {"records": []}, "no record was given"),
        (supervised_of, {"batch_size": 0}, "batch_size: 0 was given"),
        (supervised_of, {"records": []}, "no record was given"),
    ],
)
def test_bad_arguments(make, changes, message):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert message in str(caught.value)


def test_unequal_lengths_and_empty_prompts():
    with pytest.raises(InputError, match="indices: 1 were given for 2 texts"):
        encode_prompts(["1", "2"], TOKENIZER, length=4, indices=[0])
    with pytest.raises(InputError, match="answers: 1 were given for 2 prompts"):
        encode_supervised(["1", "2"], ["3"], TOKENIZER, length=4)
    bare = Tokenizer(
        encode=TOKENIZER.encode,
        decode=TOKENIZER.decode,
        vocab_size=259,
        eos_id=EOS,
        pad_id=PAD,
    )
    with pytest.raises(InputError, match="the prompt of record 5 has no token"):
        encode_prompts(["1", ""], bare, length=4, indices=[4, 5])
    with pytest.raises(InputError, match="the prompt of record 1 has no token"):
        encode_supervised(["1", ""], ["3", "4"], bare, length=4)


def test_rows_are_those_of_their_records():
    for batch in take(prompts_of(), 5):
        assert isinstance(batch, Prompts)
        numbers = batch.index.tolist()
        texts = [RECORDS[i]["q"] for i in numbers]
        assert_same(batch, encode_prompts(texts, TOKENIZER, length=10, indices=numbers))
    for batch in take(supervised_of(), 5):
        assert isinstance(batch, Supervised)
        numbers = batch.index.tolist()
        rows = [RECORDS[i] for i in numbers]
        want = encode_supervised(
            [r["q"] for r in rows],
            [r["a"] for r in rows],
            TOKENIZER,
            length=10,
            indices=numbers,
        )
        assert_same(batch, want)


def test_each_epoch_is_a_new_permutation():
    numbers = [i for b in take(prompts_of(batch_size=7), 6) for i in b.index.tolist()]
    epochs = [numbers[i : i + 14] for i in (0, 14, 28)]
    assert all(sorted(epoch) == list(range(14)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert list(range(14)) not in epochs


def test_batches_are_full_across_epochs_and_end_after_the_last():
    batches = list(prompts_of(batch_size=4, num_epochs=2))
    assert len(batches) == 7
    numbers = [i for b in batches for i in b.index.tolist()]
    assert sorted(numbers) == sorted([*range(14), *range(14)])
    assert len(list(prompts_of(batch_size=4, num_epochs=1))) == 3


def test_the_order_depends_on_the_seed_alone():
    first, again, other = prompts_of(), prompts_of(), prompts_of(seed=4)
    first, again, other = take(first, 8), take(again, 8), take(other, 8)
    assert_same(first, again)
    assert [b.index.tolist() for b in first] != [b.index.tolist() for b in other]
    # The same records come in the same order whichever way they are encoded.
    pairs = take(supervised_of(), 8)
    assert [b.index.tolist() for b in first] == [b.index.tolist() for b in pairs]


@pytest.mark.parametrize("make", [prompts_of, supervised_of])
def test_resume_after_seven(make):
    batches = make()
    take(batches, 7)
    state = json.loads(json.dumps(batches.get_state()))
    want = take(batches, 5)
    fresh = make()
    fresh.set_state(state)
    assert_same(take(fresh, 5), want)


def test_resume_inside_a_last_epoch():
    batches = prompts_of(num_epochs=2)
    take(batches, 5)
    state = batches.get_state()
    fresh = prompts_of(num_epochs=2)
    fresh.set_state(state)
    assert_same(list(fresh), list(batches))


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    batches = prompts_of()
    take(batches, 7)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(7, {"data": batches})
    want = take(batches, 3)
    fresh = prompts_of()
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.load_checkpointables(7, {"data": fresh})
    assert_same(take(fresh, 3), want)


@pytest.mark.parametrize("make", [prompts_of, supervised_of])
@pytest.mark.parametrize("count", [2, 4])
def test_shards_are_the_blocks_of_the_whole(make, count):
    shards = [take(make(process_index=p, process_count=count), 5) for p in range(count)]
    whole = take(make(), 5)
    for step, batch in enumerate(whole):
        parts = [shard[step] for shard in shards]
        assert all(len(part.index) == 4 // count for part in parts)
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        assert_same(joined, batch)


def test_a_process_encodes_only_its_rows():
    seen = []

    def prompt(record):
        seen.append(record["q"])
        return record["q"]

    batches = prompts_of(prompt=prompt, process_index=0, process_count=4)
    seen.clear()
    assert [RECORDS[i]["q"] for i in next(batches).index.tolist()] == seen
    assert len(seen) == 1


@pytest.mark.parametrize("batches_of", [prompts_of, supervised_of])
def test_several_widths(batches_of):
    """A batch's width is that of its longest row on any process; its rows are those
    of one width."""
    short = [{"q": "1+1=", "a": "2"}] * 6
    changes = {"records": [*short, *RECORDS], "batch_size": 2, "num_epochs": 2}
    wide = list(batches_of(length=12, **changes))
    parts = [
        list(batches_of(length=(12, 5, 7), process_index=i, process_count=2, **changes))
        for i in (0, 1)
    ]
    widths = set()
    for whole, *pieces in zip(wide, *parts, strict=True):
        needed = int(whole.mask.sum(axis=1).max())
        width = next(w for w in (5, 7, 12) if w >= needed)
        widths.add(width)
        assert [piece.tokens.shape for piece in pieces] == [(1, width)] * 2
        rows = np.concatenate([piece.mask for piece in pieces])
        np.testing.assert_array_equal(rows.sum(axis=1), whole.mask.sum(axis=1))
        index = np.concatenate([piece.index for piece in pieces])
        np.testing.assert_array_equal(index, whole.index)
    assert len(widths) > 1
    with pytest.raises(InputError, match=r"length: \(\) was given"):
        batches_of(length=())
