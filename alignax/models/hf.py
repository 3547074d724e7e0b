"""Local Hugging Face folders in and out: Llama, Qwen2, Qwen3, Gemma 2 and 3, GPT-2.

Only ``config.json`` and safetensors are read; neither pickle nor a folder's own code
ever runs. What a family has that the decoder lacks is refused by its key.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from alignax.models import functional, shards
from alignax.models import hf_families as families
from alignax.models.config import DecoderConfig
from alignax.models.hf_families import FAMILIES, Tensor
from alignax.types import InputError, Params

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
    model_type = FAMILIES[architecture].model_type
    if raw.get("model_type") != model_type:
        raise InputError(
            f"model_type in {file} must be {model_type!r} for {architecture}, got "
            f"{raw.get('model_type')!r}"
        )
    # It takes a second to import; who reads no folder does without.
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # its checks raise all kinds
        raise InputError(
            f"transformers must be able to read {file}, got: {_line(error)}"
        ) from error


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
    family = FAMILIES[hf.architectures[0]]

    def refuse(key: str, needed: Any, got: Any) -> None:
        if got != needed:
            raise InputError(
                f"{key} in {file} must be {needed!r}, the only kind that the decoder "
                f"computes, got {got!r}"
            )

    for key, needed in family.required.items():
        got = getattr(hf, key, needed)
        refuse(key, needed, False if needed is False and got is None else got)
    fields: dict[str, Any] = {
        field: getattr(hf, key, None) for field, key in family.keys.items()
    }
    fields["head_dim"] = fields.get("head_dim") or (
        fields["hidden_size"] // fields["num_heads"]
    )
    if family.rotary:
        fields |= families.rope_fields(hf, family, refuse)
    else:
        fields["num_kv_heads"] = fields["num_heads"]
        fields["mlp_size"] = getattr(hf, "n_inner", None) or 4 * fields["hidden_size"]
    if not fields.get("local_layers"):
        fields["window"] = None
    if fields.get("query_size") is not None:
        fields["query_size"] = int(fields["query_size"])
    return DecoderConfig(
        **fields, **family.structure, param_dtype=param_dtype, dtype=dtype
    )


def by_path(tree: Params) -> dict[str, Any]:
    """Leaves by their dotted paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def tensors(config: DecoderConfig) -> dict[str, Tensor]:
    """The tensors that a folder of this configuration has, by name.

    Args:
      config: the architecture.

    Returns:
      for each name our dotted paths, several where theirs is fused along its last
      axis, and whether one is the other's transpose.

    Raises:
      InputError: no family has this architecture.
    """
    return families.tensors_of(config, set(by_path(functional.shapes(config))))


def check_shape(file: Path, tensor: Tensor, shape: Sequence[int], like: Any) -> None:
    """Refuse a tensor's shape in a file that is not that of our parts together."""
    count = len(tensor.paths)
    if shape[-1] % count:
        raise InputError(
            f"{tensor.name} in {file} must hold {count} equal parts along its last "
            f"axis, got shape {tuple(shape)}"
        )
    ours = (*shape[:-1], shape[-1] // count)
    ours = ours[::-1] if tensor.transposed else ours
    if ours != like.shape:
        raise InputError(
            f"{tensor.name} in {file} must have the shape that config.json asks for, "
            f"{like.shape} as we hold it, got {ours}"
        )


def _read(held: Any, tensor: Tensor, part: int, like: Any, place: Any) -> jax.Array:
    """One of a tensor's parts; of each, a device's own piece alone is read."""
    whole = held.get_slice(tensor.name)
    dtype = like.dtype

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(like.shape)
        spans = [s.indices(n)[:2] for s, n in zip(index, like.shape, strict=True)]
        if tensor.transposed:
            spans = spans[::-1]
        if len(tensor.paths) > 1:
            shift = part * like.shape[-1]
            spans[-1] = (spans[-1][0] + shift, spans[-1][1] + shift)
        value = whole[tuple(slice(*span) for span in spans)]
        return (value.T if tensor.transposed else value).astype(dtype)

    if place is None:
        return jax.device_put(piece(None))
    return jax.make_array_from_callback(like.shape, place, piece)


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
        ``read_config(folder)``, each device's piece read for itself; None for the
        default device.

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
    known, shapes = tensors(config), by_path(functional.shapes(config))
    places = {} if shardings is None else by_path(shardings)
    prefix = families.family_of(config).prefix
    flat, unknown = {}, []
    for file in shards.files(folder):
        try:
            with safe_open(file, framework="numpy") as held:
                for name in held.keys():  # noqa: SIM118 (no mapping)
                    tensor = known.get(name) or known.get(f"{prefix}.{name}")
                    if tensor is None:
                        unknown.append(name)
                        continue
                    tensor = tensor._replace(name=name)
                    shape = held.get_slice(name).get_shape()
                    for i, path in enumerate(tensor.paths):
                        check_shape(file, tensor, shape, shapes[path])
                        flat[path] = _read(
                            held, tensor, i, shapes[path], places.get(path)
                        )
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} must be a whole safetensors file, got: {error}"
            ) from error
    missing = sorted(n for n, tensor in known.items() if tensor.paths[0] not in flat)
    # A tied head may be written twice; rotary frequencies follow from config.json, and
    # old GPT-2 folders hold the causal mask.
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    constant = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
    unknown = [n for n in unknown if n not in tied and not n.endswith(constant)]
    if missing or unknown:
        raise InputError(
            f"the tensors in {folder} must be those of its config.json; missing: "
            f"{missing[:4]}, unknown: {sorted(unknown)[:4]}"
        )
    leaves = [flat[path] for path in shapes]
    treedef = jax.tree.structure(functional.shapes(config))
    return config, jax.tree.unflatten(treedef, leaves)


def named(config: DecoderConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a folder, one by one.

    Args:
      config: the architecture of one of the families.
      params: of it.

    Yields:
      each name of ``tensors(config)`` with its value, in a folder's layout.
    """
    flat = by_path(params)
    for name, tensor in tensors(config).items():
        parts = [np.asarray(jax.device_get(flat[path])) for path in tensor.paths]
        value = np.concatenate(parts, axis=-1)
        yield name, value.T if tensor.transposed else value


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
      config: the architecture of one of the families.
      params: written in their own dtypes.
      source: the folder that the model was loaded from, to copy the tokenizer's
        files and the special tokens' numbers from; None writes neither.

    Raises:
      InputError: no family has this architecture, or the parameters are another's.
    """
    functional.check_params(config, params)
    ids = dict.fromkeys(TOKEN_IDS)
    if source is not None:
        ids = {name: getattr(_hf_config(Path(source)), name) for name in TOKEN_IDS}
    write(folder, config, named(config, params), token_ids=ids)
    if source is not None and Path(source).resolve() != Path(folder).resolve():
        for name in COMPANIONS:
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, Path(folder) / name)


def write(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    named: Iterable[tuple[str, np.ndarray]],
    *,
    token_ids: Mapping[str, int | None],
) -> None:
    """``config.json`` and the weights of a folder, from its tensors one by one.

    Args:
      folder: made if need be; ``config.json`` and the safetensors are replaced.
      config: the architecture of one of the families.
      named: the names of ``tensors(config)`` and their values, in a folder's layout,
        of which no more than a file's worth is held at a time.
      token_ids: the special tokens' numbers, by the names of ``TOKEN_IDS``.

    Raises:
      InputError: no family has this architecture.
    """
    folder = Path(folder)
    family = families.family_of(config)
    fields = {key: getattr(config, field) for field, key in family.keys.items()}
    if family.rotary:
        fields |= families.rope_keys(config, family)
    else:
        fields["n_inner"] = config.mlp_size
    if "query_size" in family.keys and config.query_size is None:
        fields["query_pre_attn_scalar"] = config.head_dim
    from transformers import AutoConfig

    try:
        hf = AutoConfig.for_model(
            family.model_type,
            **fields,
            **token_ids,
            architectures=[family.architecture],
            dtype=config.param_dtype,
        )
    except Exception as error:  # its checks raise all kinds
        raise InputError(
            f"config must be one that {family.architecture} can have, got: "
            f"{_line(error)}"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    shards.write(folder, named, done=lambda: hf.save_pretrained(folder))
