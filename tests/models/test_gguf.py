"""GGUF files, written here by their own package, into folders."""

import dataclasses
import json
import sys

import gguf as package
import jax
import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.integrations.gguf import gguf_tokenizer_mapping

from alignax.models import functional, gguf, gguf_tokenizer, hf
from alignax.pipeline import data
from alignax.types import InputError
from tests.models import gguf_file
from tests.models.cases import random_params
from tests.models.gguf_file import TINY

MORE = dataclasses.replace
GPT2 = MORE(
    TINY,
    num_kv_heads=4,
    mlp_size=128,
    learned_positions=True,
    norm="layer",
    attention_bias=True,
    linear_bias=True,
    activation="gelu_tanh",
    gated_mlp=False,
    rope_theta=10_000.0,
)
LLAMA3 = MORE(
    TINY,
    rope_theta=500_000.0,
    rope_factor=32.0,
    rope_low=1.0,
    rope_high=4.0,
    rope_original_length=8192,
)
MODELS = {
    "llama 3": ("llama", LLAMA3),
    "llama": ("llama", TINY),
    "llama, own head": ("llama", MORE(TINY, tie_embeddings=False)),
    "qwen2": ("qwen2", MORE(TINY, attention_bias=True)),
    "qwen3": ("qwen3", MORE(TINY, qk_norm=True, head_dim=12)),
    "gpt2": ("gpt2", GPT2),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """``(file, folder, params)`` of the tiny model."""
    root = tmp_path_factory.mktemp("gguf")
    params = random_params(TINY)
    gguf_file.write(root / "tiny.gguf", params)
    gguf.convert(root / "tiny.gguf", root / "tiny")
    return root / "tiny.gguf", root / "tiny", params


@pytest.mark.parametrize("name", MODELS)
def test_a_family_comes_back_bit_for_bit(name, tmp_path):
    architecture, config = MODELS[name]
    params = random_params(config)
    gguf_file.write(
        tmp_path / "x.gguf", params, config=config, architecture=architecture
    )
    assert gguf.convert(tmp_path / "x.gguf", tmp_path / "x") == config
    again, loaded = hf.load(tmp_path / "x")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path):
    params = random_params(GPT2)
    twice = params | {"head": params["embedding"]}
    gguf_file.write(tmp_path / "x.gguf", twice, config=GPT2, architecture="gpt2")
    assert gguf.convert(tmp_path / "x.gguf", tmp_path / "x").tie_embeddings


def test_packed_weights_give_the_logits_of_their_rounding(llama, tmp_path):
    _, _, params = llama
    kind = package.GGMLQuantizationType.Q8_0
    gguf_file.write(tmp_path / "q.gguf", params, quantised=kind)
    gguf.convert(tmp_path / "q.gguf", tmp_path / "q")
    _, loaded = hf.load(tmp_path / "q")

    def rounded(path, leaf):
        """To 8 bits in blocks of 32 along the inputs, by the format's words."""
        if leaf.ndim < 2:
            return leaf
        kernel = "kernel" in jax.tree_util.keystr(path)
        x = np.asarray(leaf.T if kernel else leaf, np.float32)
        blocks = x.reshape(len(x), -1, 32)
        step = np.abs(blocks).max(-1, keepdims=True) / 127
        x = np.round(blocks / step) * step.astype(np.float16).astype(np.float32)
        x = x.reshape(len(x), -1)
        return x.T if kernel else x

    expected = jax.tree.map_with_path(rounded, params)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(loaded), jax.tree.leaves(expected), strict=True
    ):
        off = np.linalg.norm(x - y) / np.linalg.norm(y)
        assert off < 1e-3, (path, off)
    apply_fn = jax.jit(functional.make_apply(TINY))
    tokens = np.arange(24).reshape(2, 12)
    logits, original = (apply_fn(p, tokens).logits for p in (loaded, params))
    off = np.linalg.norm(logits - original) / np.linalg.norm(original)
    # Weights move by 0.3 %; a small random model makes ten times that of it.
    assert 1e-4 < off < 0.1, off


def test_divisors_that_are_not_llama_3s_are_refused(llama, tmp_path):
    other = MORE(LLAMA3, rope_high=5.0)
    assert (gguf_file.divisors(LLAMA3) != gguf_file.divisors(other)).any()
    gguf_file.write(tmp_path / "x.gguf", llama[2], config=other)
    with pytest.raises(InputError, match=r"rope_freqs\.weight must hold Llama 3's"):
        gguf.convert(tmp_path / "x.gguf", tmp_path / "x")


def test_weights_in_half_precision(llama, tmp_path):
    file, _, params = llama
    gguf.convert(file, tmp_path / "x", dtype="bfloat16")
    _, loaded = hf.load(tmp_path / "x", param_dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert json.loads((tmp_path / "x/config.json").read_text())["dtype"] == "bfloat16"


TEXTS = [
    "the hell 1212 ab  the",
    " the\n\n été 12+1=13, it's",
    "<|im_start|>user\nab<|im_end|>",
    "",
]


def test_the_tokenizer_cuts_by_the_files_words(llama):
    tokenizer = data.load_tokenizer(llama[1])
    assert tokenizer.vocab_size == TINY.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (None, 2, (2,))
    for text in TEXTS[:2]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    words = [gguf_file.TOKENS[i] for i in tokenizer.encode("the hell 12")]
    # "12" and "Ġ1" are merges that digits by themselves never reach.
    assert words == ["t", "he", "Ġ", "he", "ll", "Ġ", "1", "2"]
    # What transformers' models take by name.
    theirs = AutoTokenizer.from_pretrained(llama[1])("ab")
    assert set(theirs) == {"input_ids", "attention_mask"}
    turn = [{"role": "user", "content": "ab"}]
    assert tokenizer.chat(turn) == (
        "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(tokenizer.chat(turn))
    assert ids.count(1) == 2
    assert ids.count(2) == 1


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_tokens_are_those_of_transformers_own_conversion(pre, tmp_path):
    kinds = [3 if token in gguf_file.SPECIALS else 1 for token in gguf_file.TOKENS]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": gguf_file.TOKENS,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": gguf_file.MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    gguf_tokenizer.check(fields)
    gguf_tokenizer.write(tmp_path, fields, length=64)
    ours = data.load_tokenizer(tmp_path)
    theirs, _ = gguf_tokenizer_mapping.convert_gguf_tokenizer(
        "llama",
        {
            "tokenizer_type": "gpt2",
            "pre_tokenizer_type": pre,
            "tokens": gguf_file.TOKENS,
            "token_type": kinds,
            "merges": gguf_file.MERGES,
        },
    )
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected, text
    # llama.cpp begins a text of Llama 3 with its first token.
    assert ours.bos_id == (1 if pre == "llama-bpe" else None)


REFUSED = [
    ({"general__architecture": "mamba"}, "general.architecture must be one of"),
    ({"llama__block_count": None}, "must have llama.block_count"),
    ({"llama__expert_count": 8}, "got llama.expert_count = 8"),
    ({"llama__rope__dimension_count": 4}, "llama.rope.dimension_count must be 8"),
    ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type must be 'linear'"),
    ({"llama__block_count": 3}, "missing: ['blk.2.attn_k.weight'"),
    ({"llama__block_count": 1}, "unknown: ['blk.1.attn_k.weight'"),
    ({"llama__feed_forward_length": 32}, "must have the shape"),
    ({"tokenizer__ggml__model": "llama"}, "tokenizer.ggml.model must be 'gpt2'"),
    ({"tokenizer__ggml__pre": "tekken"}, "tokenizer.ggml.pre must be one of"),
    ({"tokenizer__ggml__merges": None}, "tokenizer.ggml.merges must be a list"),
    ({"tokenizer__ggml__merges": ["a zz"]}, "must be pairs of tokens"),
    ({"tokenizer__ggml__eos_token_id": 999}, "must be one of the"),
    ({"tokenizer__ggml__eos_token_id": None}, "eos_token_id must be given"),
    ({"tokenizer__ggml__tokens": ["a"] * len(gguf_file.TOKENS)}, "twice"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_read_is_named(changes, said, llama, tmp_path):
    gguf_file.write(tmp_path / "x.gguf", llama[2], **changes)
    with pytest.raises(InputError) as error:
        gguf.convert(tmp_path / "x.gguf", tmp_path / "x")
    assert said in str(error.value)


def test_a_packing_that_the_package_cannot_unpack_is_named(
    llama, tmp_path, monkeypatch
):
    def none(*_):
        raise NotImplementedError

    monkeypatch.setattr(package.quants, "dequantize", none)
    with pytest.raises(InputError, match="package gguf unpacks, got F32"):
        gguf.convert(llama[0], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_damaged_files_are_refused_in_words(llama, tmp_path):
    whole = llama[0].read_bytes()
    cuts = [whole[:size] for size in (0, 3, 20, 100, 2000, len(whole) // 2, -4)]
    for i, damaged in enumerate([*cuts, b"GGML" + whole[4:], b"PK" * 999]):
        file = tmp_path / f"{i}.gguf"
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="must be a whole GGUF file"):
            gguf.convert(file, tmp_path / "x")
    with pytest.raises(InputError, match="which is no file"):
        gguf.convert(tmp_path / "none.gguf", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    params = random_params(TINY)
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(np.nan)
    gguf_file.write(tmp_path / "x.gguf", params)
    with pytest.raises(InputError, match=r"finite, got others in output_norm\.weight"):
        gguf.convert(tmp_path / "x.gguf", tmp_path / "x")


def test_without_the_package_the_extra_is_named(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install alignax\[gguf\]"):
        gguf.convert(llama[0], tmp_path / "x")
