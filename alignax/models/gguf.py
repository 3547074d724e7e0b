"""GGUF files, llama.cpp's, into Hugging Face folders of the same families.

What is quantised there is a number of the chosen dtype here: the same rounding, no
longer packed. Tensors are read, unpacked and written one by one.
"""

import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignax.models import functional, gguf_tokenizer, hf, layers
from alignax.models.config import DTYPES, DecoderConfig
from alignax.models.hf_families import FAMILIES, Tensor
from alignax.types import InputError

# general.architecture, and the family that it is.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Keys of an architecture that the conversion reads, or that say nothing to it.
READ = {
    "context_length": "max_length",
    "embedding_length": "hidden_size",
    "block_count": "num_layers",
    "feed_forward_length": "mlp_size",
    "attention.head_count": "num_heads",
}
DIVISORS = "rope_freqs.weight"
MORE = {
    *("attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.layer_norm_epsilon", "attention.key_length"),
    *("attention.value_length", "rope.freq_base", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "vocab_size"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
}


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise InputError(
            "GGUF files are read by the package gguf, which is not installed: "
            "pip install alignax[gguf]"
        ) from error


def _open(source: Path) -> tuple[Any, dict[str, Any]]:
    """The package's reader, and the keys and values."""
    gguf = _package()
    if not source.is_file():
        raise InputError(f"source must be a GGUF file, got {source}, which is no file")
    try:
        reader = gguf.GGUFReader(source)
        return reader, {k: field.contents() for k, field in reader.fields.items()}
    # What is damaged surfaces as any of a dozen exceptions.
    except Exception as error:
        raise InputError(
            f"source must be a whole GGUF file, got {source}, of "
            f"{source.stat().st_size} bytes: {type(error).__name__}: "
            f"{' '.join(str(error).split())}; fetch it again"
        ) from error


def read_config(
    fields: Mapping[str, Any], tensors: Mapping[str, Any], *, dtype: str = "float32"
) -> DecoderConfig:
    """The architecture of a GGUF file.

    Args:
      fields: its keys and values.
      tensors: by their names, each with a ``shape``, the fastest axis first.
      dtype: of the parameters.

    Returns:
      the decoder's configuration.

    Raises:
      InputError: another architecture, or a key that is missing, unknown or that the
        decoder cannot honour.
    """
    name = fields.get("general.architecture")
    if name not in ARCHITECTURES:
        raise InputError(
            f"general.architecture must be one of {list(ARCHITECTURES)}, got {name!r}"
        )
    family = FAMILIES[ARCHITECTURES[name]]
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in fields.items()
        if key.startswith(f"{name}.")
    }
    unknown = sorted(set(own) - set(READ) - MORE)
    if unknown:
        raise InputError(
            f"the keys of {name} must be those that the decoder computes, got "
            f"{name}.{unknown[0]} = {own[unknown[0]]!r}"
        )
    epsilon = "attention.layer_norm_rms_epsilon"
    epsilon = epsilon if family.rotary else epsilon.replace("_rms", "")
    missing = [key for key in (*READ, epsilon) if key not in own]
    if missing or "token_embd.weight" not in tensors:
        lacking = f"{name}.{missing[0]}" if missing else "token_embd.weight"
        raise InputError(f"the file must have {lacking}, got none")
    values: dict[str, Any] = {field: own[key] for key, field in READ.items()}
    heads = values["num_heads"]
    values["num_kv_heads"] = own.get("attention.head_count_kv", heads)
    per_layer = [key for key, value in values.items() if isinstance(value, list)]
    if per_layer:
        raise InputError(
            f"{per_layer[0]} must be the same in all layers of {name}, got a list"
        )
    head_dim = own.get("attention.key_length") or values["hidden_size"] // heads

    def refuse(key: str, needed: Any, got: Any) -> None:
        if got != needed:
            raise InputError(f"{name}.{key} must be {needed!r}, got {got!r}")

    refuse(
        "attention.value_length", head_dim, own.get("attention.value_length", head_dim)
    )
    if family.rotary:
        values["rope_theta"] = float(own.get("rope.freq_base", 10_000.0))
        refuse(
            "rope.dimension_count", head_dim, own.get("rope.dimension_count", head_dim)
        )
        scaling = own.get("rope.scaling.type", "none")
        if scaling != "none":
            refuse("rope.scaling.type", "linear", scaling)
            values["rope_factor"] = float(own.get("rope.scaling.factor", 1.0))
    # It was a decimal fraction before it was a float32.
    values["norm_eps"] = float(np.format_float_scientific(np.float32(own[epsilon])))
    return DecoderConfig(
        **values,
        head_dim=head_dim,
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        tie_embeddings="output.weight" not in tensors,
        param_dtype=dtype,
        **family.structure,
    )


def _names(gguf: Any, architecture: str, config: DecoderConfig) -> dict[str, Tensor]:
    """The file's names of a folder's tensors."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[architecture], config.num_layers)
    return {
        table.get_name(tensor.name, try_suffixes=(".weight", ".bias")): tensor
        for tensor in hf.tensors(config).values()
    }


def _unpacked(gguf: Any, tensor: Any) -> np.ndarray:
    """A tensor as float32, the slowest axis first, as numpy has it."""
    value = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
    return value.astype(np.float32).reshape(tuple(tensor.shape[::-1].tolist()))


def _unpermuted(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys with the halves of a head apart, as ``layers.rotate`` has
    them; llama.cpp interleaves them for the Llama family."""
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(value.shape)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
) -> DecoderConfig:
    """Write a GGUF file's model as a Hugging Face folder, with its tokenizer.

    Everything that can be refused by the file's table of contents is, before anything
    is written.

    Args:
      source: the file.
      folder: to write; made if need be.
      dtype: of the weights: float32 holds every packed format's numbers exactly.

    Returns:
      the decoder's configuration.

    Raises:
      InputError: no whole GGUF file; an architecture, key, tensor, packing or
        tokenizer that is not known; weights that are not finite.
    """
    source, folder = Path(source), Path(folder)
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {list(DTYPES)}, got {dtype!r}")
    reader, fields = _open(source)
    gguf = _package()
    held = {tensor.name: tensor for tensor in reader.tensors}
    if _tied_twice(held):
        del held["output.weight"]
    divisors = held.pop(DIVISORS, None)
    config = read_config(fields, held, dtype=dtype)
    if divisors is not None:
        config = _divided(config, np.asarray(divisors.data, np.float32))
    architecture = fields["general.architecture"]
    gguf_tokenizer.check(fields)
    names = _names(gguf, architecture, config)
    _check_tensors(source, config, held, names)
    for kind, tensor in {x.tensor_type: x for x in held.values()}.items():
        try:
            gguf.quants.dequantize(np.asarray(tensor.data)[:1], kind)
        except NotImplementedError as error:
            raise InputError(
                f"tensors must be packed in a way that the package gguf unpacks, got "
                f"{kind.name} ({tensor.name}); Q8_0, Q4_1, Q4_K, F16 and more will do"
            ) from error

    def named() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in names.items():
            value = _unpacked(gguf, held[name])
            if not np.isfinite(value).all():
                raise InputError(
                    f"weights must be finite, got others in {name} of {source}"
                )
            if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
                query = ".attn_q." in name
                heads = config.num_heads if query else config.num_kv_heads
                value = _unpermuted(value, heads)
            if tensor.paths[0].endswith(".kernel") and not tensor.transposed:
                value = value.T
            yield tensor.name, value.astype(DTYPES[dtype])

    hf.write(folder, config, named(), token_ids=gguf_tokenizer.token_ids(fields))
    gguf_tokenizer.write(folder, fields, length=config.max_length)
    return config


def _divided(config: DecoderConfig, divisors: np.ndarray) -> DecoderConfig:
    """With the numbers that the divisors of the frequencies follow from."""
    published = {"rope_low": 1.0, "rope_high": 4.0, "rope_original_length": 8192}
    factor = float(divisors.max(initial=1.0))
    found = dataclasses.replace(config, rope_factor=factor, **published)
    plain, slowed = (layers.frequencies(x, local=False) for x in (config, found))
    if divisors.shape != plain.shape or not np.allclose(
        divisors, plain / slowed, rtol=1e-4
    ):
        raise InputError(
            f"{DIVISORS} must hold Llama 3's divisors of the rotary frequencies (from "
            f"1 to a factor, between 1 and 4 turns over 8192 tokens), got "
            f"{divisors[:3]} …; take the model's Hugging Face folder"
        )
    return found


def _tied_twice(held: Mapping[str, Any]) -> bool:
    """The head is the embedding, written again."""
    head, embedding = held.get("output.weight"), held.get("token_embd.weight")
    return (
        head is not None
        and embedding is not None
        and head.tensor_type == embedding.tensor_type
        and np.array_equal(head.data, embedding.data)
    )


def _check_tensors(
    source: Path,
    config: DecoderConfig,
    held: Mapping[str, Any],
    names: Mapping[str, Tensor],
) -> None:
    """The tensors are those of the configuration."""
    missing, unknown = sorted(set(names) - set(held)), sorted(set(held) - set(names))
    if missing or unknown:
        raise InputError(
            f"the tensors in {source} must be those of its keys; missing: "
            f"{missing[:4]}, unknown: {unknown[:4]}"
        )
    shapes = hf.by_path(functional.shapes(config))
    for name, tensor in names.items():
        shape = held[name].shape[::-1].tolist()
        if tensor.paths[0].endswith(".kernel") and not tensor.transposed:
            shape = shape[::-1]
        for path in tensor.paths:
            hf.check_shape(source, tensor._replace(name=name), shape, shapes[path])
