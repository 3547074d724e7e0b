"""Tokenizers: round trips, specials, and a folder built here with ``tokenizers``."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alignax.pipeline.data import (
    byte_tokenizer,
    decode_rows,
    encode_pairs,
    load_tokenizer,
    pair_texts,
)
from alignax.types import InputError

SPECIALS = ["<pad>", "<bos>", "<eos>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def build_folder(folder, *, begins_with_bos=True, **config):
    """A byte-level BPE without merges: every id is known by hand."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIALS + alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    if begins_with_bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "chat": build_folder(
            root / "chat",
            bos_token="<bos>",
            eos_token="<eos>",
            pad_token="<pad>",
            chat_template=TEMPLATE,
        ),
        "bare": build_folder(
            root / "bare", begins_with_bos=False, bos_token="<bos>", eos_token="<eos>"
        ),
        "no-eos": build_folder(root / "no-eos", bos_token="<bos>"),
    }


@pytest.fixture(scope="module")
def loaded(folders):
    return load_tokenizer(folders["chat"])


def test_bytes_are_utf8():
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    specials = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert specials == {256, 257, 258}
    assert tokenizer.vocab_size == 259
    assert tokenizer.chat is None


@given(st.text())
@settings(deadline=None)
def test_byte_round_trip(text):
    # Hypothesis draws no lone surrogates in st.text() unless asked.
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < 256 for i in ids)
    assert tokenizer.decode([257, *ids, 258, 256]) == text


@given(st.lists(st.integers(-5, 400)))
@settings(deadline=None)
def test_byte_decode_takes_anything_a_model_samples(ids):
    byte_tokenizer().decode(ids)


def test_bytes_that_are_no_text():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([97, 0xC3, 98]) == "a�b"
    assert tokenizer.decode(tokenizer.encode("a\ud800")) == "a?"


@given(text=st.text().filter(lambda t: not any(s in t for s in SPECIALS)))
@settings(deadline=None)
def test_loaded_round_trip(loaded, text):
    ids = loaded.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert loaded.decode([1, *ids, 2, 0, 0]) == text


def test_loaded_ids_and_specials(loaded):
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
    assert loaded.vocab_size == 259
    assert loaded.encode("<eos>") == [2]
    # An embedding padded beyond the vocabulary can sample ids that nobody named.
    assert loaded.decode([*loaded.encode("7 , 8"), 5000]) == "7 , 8"
    assert loaded.decode(loaded.encode("a\ud800")) == "a?"


def test_a_conversation_is_the_templates_own_tokens(folders, loaded):
    """What is trained of a pair is what transformers makes of the whole, less the
    prompt: TRL's rule, here by token ids."""
    import transformers

    hf = transformers.AutoTokenizer.from_pretrained(str(folders["chat"]))
    ask = {"role": "user", "content": "1+1?"}
    sides = [[ask, {"role": "assistant", "content": text}] for text in ("2", "30")]
    record = dict(zip(("chosen", "rejected"), sides, strict=True))
    rows = encode_pairs([pair_texts(record, loaded)], loaded, length=40)
    for row, side in zip(rows[:2], sides, strict=True):
        whole = hf.apply_chat_template(side, tokenize=True, return_dict=True)
        prompt = hf.apply_chat_template(
            [ask], tokenize=True, add_generation_prompt=True, return_dict=True
        )
        expected = whole["input_ids"][len(prompt["input_ids"]) :]
        assert row.tokens[row.loss_mask].tolist() == expected
        assert loaded.eos_id not in expected


def test_every_token_that_ends_a_completion(tmp_path, loaded):
    """``generation_config.json`` has a number, a list, or nothing that is one."""
    assert loaded.end_ids == (2,)
    assert byte_tokenizer().end_ids == (258,)
    for name, ids, expected in (("one", 0, (2, 0)), ("list", [3, 2], (2, 3))):
        folder = build_folder(tmp_path / name, eos_token="<eos>")
        text = json.dumps({"eos_token_id": ids})
        (folder / "generation_config.json").write_text(text)
        assert load_tokenizer(folder).end_ids == expected
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(InputError, match="no generation configuration"):
        load_tokenizer(folder)


def test_chat_template_ends_where_the_assistant_begins(loaded):
    text = loaded.chat([{"role": "user", "content": "1+1?"}])
    assert text == "<bos>user: 1+1?\nassistant: "


def test_folder_without_template_pad_or_leading_bos(folders):
    tokenizer = load_tokenizer(folders["bare"])
    assert tokenizer.chat is None
    assert tokenizer.bos_id is None
    assert tokenizer.pad_id == tokenizer.eos_id == 2


def test_decoding_leaves_spaces_alone_whatever_the_folder_asks(tmp_path):
    corrupt = "clean_up_tokenization_spaces"
    config = {
        corrupt: True,
        f"{corrupt}_for_bpe_even_though_it_will_corrupt_output": True,
    }
    tokenizer = load_tokenizer(
        build_folder(tmp_path / "x", eos_token="<eos>", **config)
    )
    assert tokenizer.decode(tokenizer.encode("7 , 8 .")) == "7 , 8 ."


def test_not_a_tokenizer(folders, tmp_path):
    with pytest.raises(InputError, match=r"nowhere' is not a folder.*nothing is fetch"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"folder: .*it needs a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":')
    with pytest.raises(InputError, match=r"folder: .*JSONDecodeError"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="names no end-of-sequence token"):
        load_tokenizer(folders["no-eos"])


def test_a_name_is_never_looked_up():
    with pytest.raises(InputError, match="'gpt2' is not a folder"):
        load_tokenizer("gpt2")


def test_code_in_the_folder_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with pytest.raises(InputError, match="does not hold a tokenizer"):
        load_tokenizer(tmp_path)


def test_decode_rows_follows_the_mask():
    tokenizer = byte_tokenizer()
    tokens = np.array([[55, 56, 258, 57], [49, 50, 51, 52]])
    mask = np.array([[True, True, True, False], [False, True, False, True]])
    assert decode_rows(tokens, mask, tokenizer) == ["78", "24"]


def test_the_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        byte_tokenizer().eos_id = 0
