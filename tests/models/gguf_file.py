"""A GGUF file of a tiny model, as llama.cpp's converter would write it from a folder.

Names, permutation and transposes are written out here from that converter's words, not
taken from ``alignax.models.gguf``.
"""

import re

import gguf
import jax
import numpy as np
import tokenizers

from alignax.models.decoder import DecoderConfig

MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "Ġ 1", "l l", "e ll", "Ġ Ġ", "a b"]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIALS, *LETTERS, *("".join(m.split()) for m in MERGES)]
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{'<|im_start|>assistant\n'}}{% endif %}"
)
TINY = DecoderConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=64,
    max_length=64,
    rope_theta=500.0,
    norm_eps=1e-5,
)
# Ours, and llama.cpp's.
NAMES = {
    "embedding": "token_embd.weight",
    "positions": "position_embd.weight",
    "head": "output.weight",
    r"norm\.scale": "output_norm.weight",
    r"norm\.bias": "output_norm.bias",
}
LAYER = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def permuted(weight, heads):
    """``LlamaModel.permute`` of llama.cpp's convert_hf_to_gguf.py."""
    size = weight.shape[0] // heads // 2
    halves = weight.reshape(heads, 2, size, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors(architecture, config, params):
    """``name -> array`` of llama.cpp, rows of a matrix its outputs."""
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    written = {}
    for path, value in flat.items():
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", path):
            number, what, leaf = found.groups()
            name = f"blk.{number}.{LAYER[what]}.{LEAVES[leaf]}"
            value = value.T if leaf == "kernel" else value
            heads = {"query": config.num_heads, "key": config.num_kv_heads}
            part = what.removeprefix("attention.")
            if architecture == "llama" and part in heads:
                value = permuted(value, heads[part])
        else:
            [name] = [to for of, to in NAMES.items() if re.fullmatch(of, path)]
        written[name] = np.ascontiguousarray(value)
    if architecture == "gpt2":
        for i in range(config.num_layers):
            for leaf in ("weight", "bias"):
                parts = [written.pop(f"blk.{i}.attn_{x}.{leaf}") for x in "qkv"]
                written[f"blk.{i}.attn_qkv.{leaf}"] = np.concatenate(parts)
    return written


def divisors(config):
    """Of the frequencies, one by one, as llama.cpp's converter writes them."""
    values = []
    for i in range(0, config.head_dim, 2):
        length = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
        if length < config.rope_original_length / config.rope_high:
            values.append(1.0)
        elif length > config.rope_original_length / config.rope_low:
            values.append(config.rope_factor)
        else:
            smooth = config.rope_original_length / length - config.rope_low
            smooth /= config.rope_high - config.rope_low
            values.append(1 / ((1 - smooth) / config.rope_factor + smooth))
    return np.array(values, np.float32)


def write(
    path, params, *, config=TINY, architecture="llama", quantised=None, **changes
):
    """Write the file.

    Args:
      path: of it.
      params: random ones.
      config: their architecture.
      architecture: llama.cpp's name for it.
      quantised: the packing of matrices; None for float32.
      changes: fields with other values, with dots as double underscores; None leaves
        one out.
    """
    kind = gguf.GGUFValueType
    a, rms = architecture, "" if architecture == "gpt2" else "_rms"
    fields = {
        f"{a}.context_length": (config.max_length, kind.UINT32),
        f"{a}.embedding_length": (config.hidden_size, kind.UINT32),
        f"{a}.block_count": (config.num_layers, kind.UINT32),
        f"{a}.feed_forward_length": (config.mlp_size, kind.UINT32),
        f"{a}.attention.head_count": (config.num_heads, kind.UINT32),
        f"{a}.attention.layer_norm{rms}_epsilon": (config.norm_eps, kind.FLOAT32),
        "tokenizer.ggml.model": ("gpt2", kind.STRING),
        "tokenizer.ggml.pre": ("smollm", kind.STRING),
        "tokenizer.ggml.tokens": (TOKENS, kind.ARRAY),
        "tokenizer.ggml.token_type": (
            [3 if token in SPECIALS else 1 for token in TOKENS],
            kind.ARRAY,
        ),
        "tokenizer.ggml.merges": (MERGES, kind.ARRAY),
        "tokenizer.ggml.bos_token_id": (1, kind.UINT32),
        "tokenizer.ggml.eos_token_id": (2, kind.UINT32),
        "tokenizer.ggml.add_bos_token": (False, kind.BOOL),
        "tokenizer.chat_template": (TEMPLATE, kind.STRING),
    }
    if architecture != "gpt2":
        fields |= {
            f"{a}.attention.head_count_kv": (config.num_kv_heads, kind.UINT32),
            f"{a}.attention.key_length": (config.head_dim, kind.UINT32),
            f"{a}.rope.freq_base": (config.rope_theta, kind.FLOAT32),
        }
    writer = gguf.GGUFWriter(path, changes.pop("general__architecture", architecture))
    for name, value in changes.items():
        key = name.replace("__", ".")
        known = fields.pop(key, (None, None))[1]
        if value is not None:
            default = kind.STRING if isinstance(value, str) else kind.UINT32
            fields[key] = (value, known or default)
    for key, (value, type_) in fields.items():
        add = writer.add_array if type_ == kind.ARRAY else None
        if add:
            add(key, value)
        else:
            writer.add_key_value(key, value, type_)
    for name, value in tensors(architecture, config, params).items():
        if quantised is not None and value.ndim == 2:
            packed = gguf.quants.quantize(value, quantised)
            writer.add_tensor(name, packed, raw_dtype=quantised)
        else:
            writer.add_tensor(name, value)
    if config.rope_low is not None:
        writer.add_tensor("rope_freqs.weight", divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
