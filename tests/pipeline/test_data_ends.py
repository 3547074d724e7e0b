"""Ends of tokens by decoding, and two tokenisations of one text."""

import dataclasses

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alignax.pipeline import data
from alignax.pipeline.data import byte_tokenizer

BYTES = byte_tokenizer()


def wrapped(tokenizer):
    """A tokenizer of the ``tokenizers`` package as a record, 0 to 2 its specials."""
    return data.Tokenizer(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: tokenizer.decode(list(ids)),
        vocab_size=tokenizer.get_vocab_size(),
        eos_id=2,
        pad_id=0,
    )


def trained(model, trainer, before, after):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, after
    special = ["<pad>", "<bos>", "<eos>"]
    text = ["to be, or not to be: that is the question — “là” 東京 🙂"] * 3
    tokenizer.train_from_iterator(text, trainer(special_tokens=special, vocab_size=300))
    return wrapped(tokenizer)


def byte_level():
    return trained(
        tokenizers.models.BPE(),
        lambda **how: tokenizers.trainers.BpeTrainer(
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), **how
        ),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        tokenizers.decoders.ByteLevel(),
    )


def sentence():
    """As SentencePiece writes: a mark before each word, the first one dropped."""
    return trained(
        tokenizers.models.BPE(unk_token="<pad>"),
        tokenizers.trainers.BpeTrainer,
        tokenizers.pre_tokenizers.Metaspace(),
        tokenizers.decoders.Metaspace(),
    )


KINDS = {"bytes": BYTES, "byte-level": byte_level(), "sentence": sentence()}


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_the_lengths_of_what_is_decoded(kind):
    """Of every beginning whose text is one of the whole's."""
    tokenizer = KINDS[kind]
    ids = tokenizer.encode("to be, that là 🙂 東京 not")
    text = tokenizer.decode(ids)
    found = data.make_ends(tokenizer)(ids)
    assert found.text == text
    assert found.ends[-1] == len(text)
    assert len(found.ends) == len(ids)
    for place, end in enumerate(found.ends):
        begun = tokenizer.decode(ids[: place + 1])
        whole = text.startswith(begun)
        assert end == (len(begun) if whole else len(begun.rstrip("\ufffd")) + 1)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="tobe, à🙂東\n", max_size=12))
def test_the_same_chunks_by_decoded_beginnings(text):
    """The common ends of bytes and merges are the beginnings that both decode."""
    other = KINDS["byte-level"]
    ids = BYTES.encode(text)
    found = data.make_align(BYTES, other)([*ids, BYTES.eos_id], True, 99)
    assert found.other_ids == [*other.encode(text), other.eos_id]
    assert len(found.ends) == len(ids) + 1

    def beginnings(tokenizer, ids):
        every = (tokenizer.decode(ids[: i + 1]) for i in range(len(ids)))
        return {len(x) for x in every if text.startswith(x)}

    both = beginnings(BYTES, ids) & beginnings(other, other.encode(text))
    assert set(found.ends) & set(found.other) == both | {len(text) + 1}


def aligned(ids, *, other=None, finished=True, room=99):
    found = data.make_align(BYTES, other or KINDS["byte-level"])(ids, finished, room)
    assert len(found.other) == len(found.other_ids)
    return found


def common(found):
    return sorted(set(found.ends) & set(found.other))


def test_what_is_no_text_is_left_out_with_all_that_follows():
    end = BYTES.eos_id
    assert common(aligned([*b"not", 255, *b"to", end]))[-1] == 3
    dropped = [*b"to be", BYTES.pad_id, *b"to", end]
    assert common(aligned(dropped)) == [2]
    assert common(aligned(dropped, other=BYTES)) == [1, 2, 3, 4, 5]
    half = "🙂".encode()[:2]
    assert max(common(aligned([*b"not ", *half], finished=False))) == 4
    assert aligned([end]).ends == aligned([end]).other == [1]
    assert aligned([]) == ([], [], [])


def test_what_the_other_writes_in_another_way_is_left_out():
    lower = dataclasses.replace(BYTES, encode=lambda text: list(text.lower().encode()))
    assert common(aligned([*b"not TO", BYTES.eos_id], other=lower)) == [1, 2, 3, 4]
    # Its own specials in the text are one token of no text.
    bracket = dataclasses.replace(
        BYTES, encode=lambda text: [*text.partition("<")[0].encode(), BYTES.bos_id]
    )
    found = aligned([*b"to<bos>", BYTES.eos_id], other=bracket)
    assert (found.other, common(found)) == ([1, 2], [1, 2])


def test_the_last_tokens_of_a_cut_text():
    """Kept where they are one for both: what follows may be read in one with them."""
    ids = [*b"to be"]
    pieces = KINDS["byte-level"].encode("to be")
    assert KINDS["byte-level"].decode(pieces[-1:]) == " be"
    assert common(aligned(ids, finished=False)) == [2]
    # By a text to stop at it has come to its end, and without an end's token.
    assert common(aligned(ids, finished=True)) == [2, 5]
    assert common(aligned(ids, other=BYTES, finished=False)) == [1, 2, 3, 4, 5]


def test_the_room_of_the_other():
    found = aligned([*b"be be be", BYTES.eos_id], other=BYTES, room=4)
    assert found.other_ids == [*b"be "]
    assert common(found) == [1, 2, 3]
