"""Local Hugging Face folders: Llama, Qwen2 and Qwen3 weights in and out.

Only ``config.json`` and safetensors are read; neither pickle nor a folder's own code
ever runs. What a family has that the decoder lacks is refused by its key.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig

from alignax.models import functional
from alignax.models.config import DTYPES, DecoderConfig
from alignax.types import InputError, Params

# Architecture: transformers' model type, and what the decoder adds for it.
FAMILIES: Mapping[str, tuple[str, dict[str, bool]]] = {
    "LlamaForCausalLM": ("llama", {"attention_bias": False, "qk_norm": False}),
    "Qwen2ForCausalLM": ("qwen2", {"attention_bias": True, "qk_norm": False}),
    "Qwen3ForCausalLM": ("qwen3", {"attention_bias": False, "qk_norm": True}),
}

# Field of DecoderConfig: key of config.json.
KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}

# Keys of config.json with the one value that the decoder computes.
REQUIRED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}

# Hugging Face's name, our path, whether one is the other's transpose; {} is a layer.
TENSORS: tuple[tuple[str, str, bool], ...] = (
    ("model.embed_tokens.weight", "embedding", False),
    ("model.norm.weight", "norm.scale", False),
    ("lm_head.weight", "head", False),
    *(
        (f"model.layers.{{}}.{name}", f"blocks.{{}}.{path}", transposed)
        for name, path, transposed in (
            ("input_layernorm.weight", "attention_norm.scale", False),
            ("self_attn.q_proj.weight", "attention.query.kernel", True),
            ("self_attn.k_proj.weight", "attention.key.kernel", True),
            ("self_attn.v_proj.weight", "attention.value.kernel", True),
            ("self_attn.q_proj.bias", "attention.query.bias", False),
            ("self_attn.k_proj.bias", "attention.key.bias", False),
            ("self_attn.v_proj.bias", "attention.value.bias", False),
            ("self_attn.o_proj.weight", "attention.out.kernel", True),
            ("self_attn.q_norm.weight", "attention.query_norm.scale", False),
            ("self_attn.k_norm.weight", "attention.key_norm.scale", False),
            ("post_attention_layernorm.weight", "mlp_norm.scale", False),
            ("mlp.gate_proj.weight", "mlp.gate.kernel", True),
            ("mlp.up_proj.weight", "mlp.up.kernel", True),
            ("mlp.down_proj.weight", "mlp.down.kernel", True),
        )
    ),
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What a saved model needs beside its weights to be talked to.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _line(error: Exception) -> str:
    """Its message as one paragraph."""
    return " ".join(str(error).split())


def _hf_config(folder: Path) -> Any:
    """transformers' configuration of a folder of one of the ``FAMILIES``."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(
            f"the model must be a local Hugging Face folder with a config.json, got "
            f"{folder}, which {'has none' if folder.is_dir() else 'is no folder'}; "
            "download a model first and give its folder"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        architectures = raw.get("architectures") or [None]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} must be a JSON object, got: {error}") from error
    architecture = architectures[0]
    if architecture not in FAMILIES:
        raise InputError(
            f"architectures in {file} must be one of {list(FAMILIES)}, got "
            f"{architecture}"
        )
    model_type, _ = FAMILIES[architecture]
    if raw.get("model_type") != model_type:
        raise InputError(
            f"model_type in {file} must be {model_type!r} for {architecture}, got "
            f"{raw.get('model_type')!r}"
        )
    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # its checks raise all kinds
        raise InputError(
            f"transformers must be able to read {file}, got: {_line(error)}"
        ) from error


def _refuse(file: Path, key: str, needed: Any, got: Any) -> None:
    if got != needed:
        raise InputError(
            f"{key} in {file} must be {needed!r}, the only kind that the decoder "
            f"computes, got {got!r}"
        )


def read_config(
    folder: str | os.PathLike[str],
    *,
    param_dtype: str = "float32",
    dtype: str = "float32",
) -> DecoderConfig:
    """The architecture of a local Hugging Face folder.

    Args:
      folder: with a ``config.json``.
      param_dtype: of the parameters.
      dtype: of the computation.

    Returns:
      the decoder's configuration.

    Raises:
      InputError: no model folder, another family, or a key that the decoder cannot
        honour.
    """
    folder = Path(folder)
    hf, file = _hf_config(folder), folder / "config.json"
    for key, needed in REQUIRED.items():
        _refuse(file, key, needed, getattr(hf, key, needed))
    full = ["full_attention"] * hf.num_hidden_layers
    _refuse(file, "layer_types", full, getattr(hf, "layer_types", full))
    rope = hf.rope_parameters
    kind = rope.get("rope_type", "default")
    _refuse(file, "rope_type (of rope_parameters or rope_scaling)", "default", kind)
    part = rope.get("partial_rotary_factor", 1.0)
    _refuse(file, "partial_rotary_factor", 1.0, part)
    fields = {field: getattr(hf, key) for field, key in KEYS.items()}
    heads = hf.hidden_size // hf.num_attention_heads
    return DecoderConfig(
        **fields,
        **FAMILIES[hf.architectures[0]][1],
        head_dim=getattr(hf, "head_dim", None) or heads,
        rope_theta=float(rope["rope_theta"]),
        param_dtype=param_dtype,
        dtype=dtype,
    )


def _flat(tree: Params) -> dict[str, Any]:
    """Leaves by their dotted paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _names(config: DecoderConfig) -> dict[str, tuple[str, bool]]:
    """Hugging Face's names of this configuration's tensors: our path, transposed."""
    ours = _flat(functional.shapes(config))
    names = {}
    for name, path, transposed in TENSORS:
        for i in range(config.num_layers if "{}" in name else 1):
            if path.format(i) in ours:
                names[name.format(i)] = (path.format(i), transposed)
    return names


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files: one, or those that an index lists."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} must have a weight_map, got {error}") from error
        bad = [f for f in files if Path(f).name != f or not (folder / f).is_file()]
        if bad:
            raise InputError(f"{index} must list files beside it, got {bad}")
        return [folder / f for f in files]
    pickles = sorted(
        file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}")
    )
    if pickles:
        raise InputError(
            f"the weights in {folder} must be safetensors, got only {pickles}, pickles "
            "that could run code when read; convert them, for instance with "
            "transformers' save_pretrained"
        )
    raise InputError(f"{folder} must hold {WEIGHTS} or {INDEX}, got neither")


def _check_shape(file: Path, name: str, value: np.ndarray, like: Any) -> None:
    if value.shape != like.shape:
        raise InputError(
            f"{name} in {file} must have the shape that config.json asks for, "
            f"{like.shape} as we hold it, got {value.shape}"
        )


def load(
    folder: str | os.PathLike[str],
    *,
    param_dtype: str = "float32",
    dtype: str = "float32",
    shardings: Params | None = None,
) -> tuple[DecoderConfig, Params]:
    """A model from a local Hugging Face folder.

    Args:
      folder: ``config.json`` and safetensors, one file or several with their index.
      param_dtype: what the parameters are converted to.
      dtype: of the computation.
      shardings: where each parameter goes, structured as ``functional.shapes`` of
        ``read_config(folder)``; None for the default device.

    Returns:
      the configuration and the parameters.

    Raises:
      InputError: no model folder, an unsupported architecture or key, pickled
        weights, tensors missing, unknown or of the wrong shape.

    Example:
      >>> def policy(folder):
      ...     config, params = load(folder, dtype="bfloat16")
      ...     return functional.make_apply(config), params
    """
    folder = Path(folder)
    config = read_config(folder, param_dtype=param_dtype, dtype=dtype)
    names, shapes = _names(config), _flat(functional.shapes(config))
    places = {} if shardings is None else _flat(shardings)
    flat, unknown = {}, []
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no mapping)
                    if name not in names:
                        unknown.append(name)
                        continue
                    path, transposed = names[name]
                    value = tensors.get_tensor(name)
                    value = value.T if transposed else value
                    _check_shape(file, name, value, shapes[path])
                    value = value.astype(DTYPES[param_dtype])
                    flat[path] = jax.device_put(value, places.get(path))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} must be a whole safetensors file, got: {error}"
            ) from error
    missing = sorted(name for name, (path, _) in names.items() if path not in flat)
    # A tied head may be written twice; rotary frequencies follow from config.json.
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    unknown = [n for n in unknown if n not in tied and "rotary_emb" not in n]
    if missing or unknown:
        raise InputError(
            f"the tensors in {folder} must be those of its config.json; missing: "
            f"{missing[:4]}, unknown: {sorted(unknown)[:4]}"
        )
    leaves = [flat[path] for path in shapes]
    treedef = jax.tree.structure(functional.shapes(config))
    return config, jax.tree.unflatten(treedef, leaves)


def save(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Write a folder that transformers, and ``load``, read.

    Args:
      folder: made if need be; ``config.json`` and ``model.safetensors`` are replaced.
      config: the architecture, one of Llama's, Qwen2's or Qwen3's.
      params: written in their own dtypes.
      source: the folder that the model was loaded from, to copy the tokenizer's
        files and the special tokens' numbers from; None writes neither.

    Raises:
      InputError: no family has this architecture, or the parameters are another's.
    """
    folder = Path(folder)
    extras = {"attention_bias": config.attention_bias, "qk_norm": config.qk_norm}
    families = {name: kind for name, (kind, has) in FAMILIES.items() if has == extras}
    if not families:
        raise InputError(
            f"attention_bias and qk_norm must not both be True in a folder for "
            f"{list(FAMILIES)}, got {extras}"
        )
    functional.check_params(config, params)
    [(architecture, model_type)] = families.items()
    fields = {key: getattr(config, field) for field, key in KEYS.items()}
    ids = dict.fromkeys(TOKEN_IDS)
    if source is not None:
        ids = {name: getattr(_hf_config(Path(source)), name) for name in TOKEN_IDS}
    try:
        hf = AutoConfig.for_model(
            model_type,
            **fields,
            **ids,
            head_dim=config.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            architectures=[architecture],
            dtype=config.param_dtype,
        )
    except Exception as error:  # its checks raise all kinds
        raise InputError(
            f"config must be one that {architecture} can have, got: {_line(error)}"
        ) from error
    flat = _flat(params)
    tensors = {}
    for name, (path, transposed) in _names(config).items():
        value = np.asarray(jax.device_get(flat[path]))
        tensors[name] = np.ascontiguousarray(value.T if transposed else value)
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed into place: a half-written file never stands for the model.
    half = folder / f"{WEIGHTS}.half"
    save_file(tensors, half, metadata={"format": "pt"})
    hf.save_pretrained(folder)
    half.replace(folder / WEIGHTS)
    if source is not None and Path(source).resolve() != folder.resolve():
        for name in COMPANIONS:
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, folder / name)
