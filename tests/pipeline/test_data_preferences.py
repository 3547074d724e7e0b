"""Preference records: formats, bad lines, few shapes, resuming, sharding."""

import dataclasses
import json

import numpy as np
import pytest

from alignax.pipeline import data
from alignax.types import InputError

PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
TOKENIZER = data.byte_tokenizer()
PAIRS = ["pairs"]


def conversation(messages):
    return "".join(f"<{m['role']}>{m['content']}<end>\n" for m in messages)


CHATTY = dataclasses.replace(
    TOKENIZER,
    chat=lambda messages: conversation(messages) + "<assistant>",
    conversation=conversation,
)
ASK = {"role": "user", "content": "1+1?"}


def says(content, role="assistant"):
    return {"role": role, "content": content}


def write(path, lines):
    path.write_text(
        "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    )
    return path


def test_jsonl_pairs(tmp_path):
    """Texts as they are, other fields kept, blank lines skipped."""
    path = write(tmp_path / "x.jsonl", [PAIR | {"source": "me"}, "", PAIR])
    records, _, complaints = data.read_records(path, formats=PAIRS)
    assert list(records) == [PAIR | {"source": "me"}, PAIR]
    assert complaints == []
    assert data.pair_texts(records[0], TOKENIZER) == ("1+1=", "2", "3")


BAD = [
    ("not json", "line 2: not valid JSON"),
    ({"prompt": "a", "chosen": "b"}, "line 2: the record has no field 'rejected'"),
    (PAIR | {"chosen": 3}, "line 2, field 'chosen': a int"),
    (PAIR | {"chosen": [{"role": "user"}]}, "line 2, field 'chosen': a list"),
    (PAIR | {"rejected": "2"}, "line 2, field 'rejected': the same as 'chosen'"),
    (PAIR | {"prompt": ""}, "line 2, field 'prompt': an empty text"),
    (PAIR | {"chosen": ""}, "line 2, field 'chosen': an empty text"),
    (
        {"prompt": "a", "chosen": [says("")], "rejected": [says("b")]},
        "line 2, field 'chosen': its last message is empty",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_lines_are_named_and_dropped_only_when_asked(tmp_path, line, message):
    """File, line and field; with ``on_bad="drop"`` the same sentence comes back."""
    path = write(tmp_path / "x.jsonl", [PAIR, line, PAIR])
    with pytest.raises(InputError, match=message):
        data.read_records(path, formats=PAIRS)
    records, _, complaints = data.read_records(path, formats=PAIRS, on_bad="drop")
    assert len(records) == 2
    assert len(complaints) == 1
    assert message in complaints[0]
    assert str(path) in complaints[0]


def test_nothing_usable(tmp_path):
    """A file of bad lines only, a missing one, an option that is none."""
    path = write(tmp_path / "x.jsonl", ["{", "["])
    with pytest.raises(InputError, match="no usable record \\(2 bad ones\\)"):
        data.read_records(path, formats=PAIRS, on_bad="drop")
    with pytest.raises(InputError, match="cannot be read"):
        data.read_records(tmp_path / "no.jsonl", formats=PAIRS)
    with pytest.raises(InputError, match="on_bad: 'skip' was given"):
        data.read_records(path, formats=PAIRS, on_bad="skip")


def test_conversations_go_through_the_chat_template(tmp_path):
    """With a prompt of messages, or without: what both sides share is the prompt."""
    explicit = {
        "prompt": [ASK],
        "chosen": [says("2")],
        "rejected": [says("3")],
    }
    implicit = {"chosen": [ASK, says("2")], "rejected": [ASK, says("3")]}
    answers = data.Turn("2<end>\n"), data.Turn("3<end>\n")
    expected = ("<user>1+1?<end>\n<assistant>", *answers)
    assert data.pair_texts(explicit, CHATTY) == expected
    assert data.pair_texts(implicit, CHATTY) == expected
    path = write(tmp_path / "x.jsonl", [implicit])
    records = data.read_records(path, formats=PAIRS).records
    assert data.pair_texts(records[0], CHATTY) == expected


def test_turns_end_as_the_template_ends_them():
    """No ``eos_id`` after a turn; a template that writes what is past otherwise; an
    answer that it rewrites; a text after messages."""
    record = {"chosen": [ASK, says("2")], "rejected": [ASK, says("3")]}
    rows = data.encode_pairs([data.pair_texts(record, CHATTY)], TOKENIZER, length=40)
    row = rows.chosen
    trained = row.tokens[row.loss_mask].tolist()
    assert trained == TOKENIZER.encode("2<end>\n")
    thinks = dataclasses.replace(CHATTY, chat=lambda m: CHATTY.chat(m) + "<think>")
    prompt, chosen, _ = data.pair_texts(record, thinks)
    assert prompt.endswith("<assistant><think>")
    assert chosen == data.Turn("2<end>\n")
    loud = dataclasses.replace(thinks, conversation=lambda m: "two")
    with pytest.raises(InputError, match="field 'chosen': the chat template does not"):
        data.pair_texts(record, loud)
    mixed = {"prompt": "1+1=", "chosen": [says("2")], "rejected": [says("3")]}
    with pytest.raises(InputError, match="the prompt is a text"):
        data.pair_texts(mixed, CHATTY)


def test_earlier_turns_of_an_answer_are_kept():
    """A prompt of messages, and sides of several messages: all that follows it."""
    several = [says("2"), says("?", "user"), says("4")]
    record = {"prompt": [ASK], "chosen": several, "rejected": [says("3")]}
    _, chosen, _ = data.pair_texts(record, CHATTY)
    assert chosen == data.Turn("2<end>\n<user>?<end>\n<assistant>4<end>\n")


def test_long_answers_are_cut():
    """``"truncate"``: the ends of answers go, prompts stay; a side that fits is whole;
    a prompt that leaves no room is named."""
    long = [PAIR | {"chosen": "x" * 99}] * 2
    sizes = {"lengths": (12,), "tokens_per_batch": 24, "seed": 0}
    batch = next(data.pair_batches(long, TOKENIZER, on_long="truncate", **sizes))
    row = batch.chosen
    assert TOKENIZER.decode(row.tokens[0][row.loss_mask[0]].tolist()) == "x" * 7
    assert TOKENIZER.eos_id not in row.tokens[0].tolist()
    row = batch.rejected
    assert row.tokens[0][row.loss_mask[0]].tolist() == [51, TOKENIZER.eos_id]
    with pytest.raises(InputError, match="the prompt of record 0 alone has 13 tokens"):
        data.pair_batches(
            [PAIR | {"prompt": "1" * 12}] * 2, TOKENIZER, on_long="truncate", **sizes
        )
    with pytest.raises(InputError, match='on_long: "drop" was given'):
        data.encode_pairs([("1", "2", "3")], TOKENIZER, length=4, on_long="drop")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": [ASK, says("2")], "rejected": [says("?"), says("3")]}, "those of"),
        ({"chosen": "2", "rejected": "3"}, "without a 'prompt', messages"),
        ({"chosen": [says("2")], "rejected": [says("3")]}, "without a 'prompt'"),
        ({"chosen": [ASK, says("2", "user")], "rejected": [ASK, says("3")]}, "role"),
    ],
)
def test_bad_conversations(record, message):
    """Sides that do not share a prompt, or do not end with the assistant."""
    with pytest.raises(InputError, match=message):
        data.pair_texts(record, CHATTY)


def test_messages_need_a_template():
    """The byte tokenizer has none."""
    record = {"chosen": [ASK, says("2")], "rejected": [ASK, says("3")]}
    with pytest.raises(InputError, match="no chat template"):
        data.pair_texts(record, TOKENIZER)


def test_encoded_pairs_share_prompt_width_and_index():
    """The loss is on the answers and their ends alone."""
    rows = data.encode_pairs(
        [("1+1=", "2", "33"), ("2+2=", "4", "5")], TOKENIZER, length=10, indices=[7, 3]
    )
    assert rows.chosen.tokens.shape == rows.rejected.tokens.shape == (2, 10)
    np.testing.assert_array_equal(rows.chosen.index, [7, 3])
    np.testing.assert_array_equal(rows.rejected.index, [7, 3])
    row = rows.rejected
    assert TOKENIZER.decode(row.tokens[0][row.loss_mask[0]].tolist()) == "33"
    assert row.tokens[0][row.loss_mask[0]][-1] == TOKENIZER.eos_id


RECORDS = [
    {
        "prompt": "q" * (i % 7 + 1),
        "chosen": "a" * (i % 5 + 1),
        "rejected": "b" * (i + 1),
    }
    for i in range(20)
]
SIZES = {"lengths": (12, 20, 32), "tokens_per_batch": 64, "seed": 3}


def test_batches_have_few_shapes_and_lose_little():
    """Widths of the list, as many rows as tokens allow, nobody twice in an epoch."""
    batches = list(data.pair_batches(RECORDS, TOKENIZER, num_epochs=1, **SIZES))
    shapes = {batch.chosen.tokens.shape for batch in batches}
    assert shapes <= {(5, 12), (3, 20), (2, 32)}
    assert len(shapes) > 1
    seen = np.concatenate([batch.chosen.index for batch in batches]).tolist()
    assert len(seen) == len(set(seen))
    assert len(seen) >= len(RECORDS) - 1
    for batch in batches:
        for n, index in enumerate(batch.rejected.index.tolist()):
            row = batch.rejected
            text = TOKENIZER.decode(row.tokens[n][row.loss_mask[n]].tolist())
            assert text == RECORDS[index]["rejected"]


def test_batches_resume_and_depend_on_the_seed():
    """A restored iterator goes on with what the interrupted one would have seen."""
    whole = data.pair_batches(RECORDS, TOKENIZER, **SIZES)
    first = [next(whole).chosen.index.tolist() for _ in range(9)]
    half = data.pair_batches(RECORDS, TOKENIZER, **SIZES)
    for _ in range(4):
        next(half)
    again = data.pair_batches(RECORDS, TOKENIZER, **SIZES)
    again.set_state(half.get_state())
    assert [next(again).chosen.index.tolist() for _ in range(5)] == first[4:]
    other = data.pair_batches(RECORDS, TOKENIZER, **(SIZES | {"seed": 4}))
    assert [next(other).chosen.index.tolist() for _ in range(9)] != first


def test_processes_share_the_same_batch():
    """Two processes' blocks are one batch of the one-process run of their shape."""
    sizes = SIZES | {"lengths": (32,), "tokens_per_batch": 128}
    whole = next(data.pair_batches(RECORDS, TOKENIZER, **sizes)).chosen.index
    parts = [
        next(
            data.pair_batches(
                RECORDS, TOKENIZER, process_index=p, process_count=2, **sizes
            )
        ).chosen.index
        for p in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_batches_refuse():
    """Long or bad records unless dropped, budgets of no row, widths of none."""
    long = [*RECORDS, PAIR | {"chosen": "x" * 99}]
    with pytest.raises(InputError, match="lengths: record 20 has"):
        data.pair_batches(long, TOKENIZER, **SIZES)
    kept = data.pair_batches(long, TOKENIZER, on_long="drop", num_epochs=1, **SIZES)
    assert all(20 not in batch.chosen.index.tolist() for batch in kept)
    bad = [*RECORDS, PAIR | {"rejected": "2"}]
    with pytest.raises(InputError, match="record 20, field 'rejected'"):
        data.pair_batches(bad, TOKENIZER, **SIZES)
    next(data.pair_batches(bad, TOKENIZER, on_bad="drop", **SIZES))
    with pytest.raises(InputError, match="tokens_per_batch: 8 was given; 12 or more"):
        data.pair_batches(RECORDS, TOKENIZER, **(SIZES | {"tokens_per_batch": 8}))
    with pytest.raises(InputError, match="do not fill one batch"):
        data.pair_batches(
            RECORDS, TOKENIZER, lengths=(32,), tokens_per_batch=3200, seed=0
        )
    with pytest.raises(InputError, match="lengths"):
        data.pair_batches(RECORDS, TOKENIZER, **(SIZES | {"lengths": ()}))


def test_unpaired_labels(tmp_path):
    """Labels travel with their rows; what is no label is named."""
    lines = [
        {"prompt": "q", "completion": "a" * (i + 1), "label": i % 3 == 0}
        for i in range(6)
    ]
    path = write(tmp_path / "x.jsonl", lines)
    records = data.read_records(path, formats=["labelled"]).records
    batches = data.unpaired_batches(
        records, TOKENIZER, lengths=(10,), tokens_per_batch=30, seed=0, num_epochs=1
    )
    labels = {}
    for batch in batches:
        labels |= dict(
            zip(batch.rows.index.tolist(), batch.desirable.tolist(), strict=True)
        )
    assert labels == {i: i % 3 == 0 for i in range(6)}
    write(path, [lines[0] | {"label": "good"}])
    with pytest.raises(InputError, match="line 1, field 'label': 'good'"):
        data.read_records(path, formats=["labelled"])


def test_tfds_pairs(tmp_path):
    """A set prepared by TFDS gives the same batches as its file."""
    path = write(tmp_path / "x.jsonl", RECORDS)
    data.tfds_from_jsonl(
        {"train": path}, name="pairs_of_a", fields=data.PAIRS, data_dir=tmp_path
    )
    stored = data.read_tfds(
        "pairs_of_a", split="train", data_dir=tmp_path, fields=data.PAIRS
    )
    ours = data.pair_batches(stored, TOKENIZER, num_epochs=1, **SIZES)
    theirs = data.pair_batches(RECORDS, TOKENIZER, num_epochs=1, **SIZES)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.chosen.tokens, b.chosen.tokens)
