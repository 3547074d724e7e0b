"""Low-rank adapters: train a policy beside its frozen base, which is the reference.

An adapter is a pytree ``{"a": [in, rank], "b": [rank, out]}`` at the place of each
kernel it adapts. ``adapt`` makes a model whose parameters are the adapters alone, so
that gradients and optimiser states have their size, and fresh adapters are the
reference policy in the base's own memory.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from alignax.models import hf
from alignax.models.config import DecoderConfig
from alignax.types import InputError, Params

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Keys of adapter_config.json with the values that mean "not used".
UNUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "fan_in_fan_out": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """What is adapted, and how strongly.

    Raises:
      InputError: a field is out of range.
    """

    rank: int = 16
    """Columns of ``a``."""
    alpha: float = 32.0
    """The product of both matrices counts ``alpha / rank`` times."""
    targets: tuple[str, ...] = TARGETS
    """Names of the adapted linear maps."""
    stabilised: bool = False
    """Divide alpha by the root of the rank instead (rsLoRA)."""

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise InputError(f"alpha must be positive, got {self.alpha}")
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise InputError(
                f"targets must be some of {list(TARGETS)}, got {list(self.targets)}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.stabilised else self.rank)


def init(params: Params, key: Key[Array, ""], *, lora: LoRA) -> Params:
    """Fresh adapters, whose product is zero.

    Args:
      params: the base's parameters, or their shapes.
      key: of the values of ``a``, uniform within ±1/√in; ``b`` is zero.
      lora: what to adapt.

    Returns:
      adapters, float32.

    Raises:
      InputError: the base has none of the targets.

    Reference:
      Hu et al., "LoRA", arXiv 2106.09685, eq. 3; Kalajdzievski, "rsLoRA",
      arXiv 2312.03732, for ``stabilised``.
    """

    def fresh(path: str, kernel) -> Params:
        # By the path: an adapter does not depend on which others there are.
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        size, out = kernel.shape
        limit = size**-0.5
        return {
            "a": jax.random.uniform(
                own, (size, lora.rank), minval=-limit, maxval=limit
            ),
            "b": jnp.zeros((lora.rank, out)),
        }

    adapters: Params = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [entry.key for entry in path]
        if len(names) > 1 and names[-2] in lora.targets and names[-1] == "kernel":
            node = adapters
            for name in names[:-1]:
                node = node.setdefault(name, {})
            node["kernel"] = fresh(".".join(names), leaf)
    if not adapters:
        raise InputError(f"targets must be maps of the base, got {list(lora.targets)}")
    return adapters


def logical_axes(axes: Params, adapters: Params) -> Params:
    """The names of each adapter's axes: a matrix' own, and None for the rank.

    Args:
      axes: of the base, from ``functional.logical_axes``.
      adapters: of ``init``.

    Returns:
      the structure of ``adapters`` with a tuple of names at each leaf.
    """
    if not isinstance(adapters, dict):
        return axes
    if set(adapters) == {"a", "b"}:
        rows, columns = axes
        return {"a": (rows, None), "b": (None, columns)}
    return {name: logical_axes(axes[name], x) for name, x in adapters.items()}


def merge(base: Params, adapters: Params, *, lora: LoRA) -> Params:
    """The base's parameters with the adapters added: ``W + scale · a b``.

    Args:
      base: parameters.
      adapters: of ``init``, or trained; an array takes the place of the base's own.
      lora: the same as theirs.

    Returns:
      parameters in the base's dtypes; what is not adapted is the base's own.

    Raises:
      InputError: an adapter stands where the base has no matrix of its size.
    """

    def visit(base, adapters, path):
        if isinstance(adapters, dict) and set(adapters) == {"a", "b"}:
            a, b = adapters["a"], adapters["b"]
            shape = (*a.shape[:1], *b.shape[1:])
            if getattr(base, "shape", None) != shape:
                raise InputError(
                    f"adapters must fit the base: {path} is for a matrix {shape}, the "
                    f"base has {getattr(base, 'shape', 'none')}"
                )
            return (base + lora.scale * (a @ b)).astype(base.dtype)
        if not isinstance(adapters, dict):
            if getattr(base, "shape", None) != adapters.shape:
                raise InputError(
                    f"adapters must fit the base: {path} is {adapters.shape}, the base "
                    f"has {getattr(base, 'shape', 'none')}"
                )
            return adapters.astype(base.dtype)
        if not isinstance(base, dict) or set(adapters) - set(base):
            raise InputError(
                f"adapters must fit the base, which has no {path or 'such structure'}"
            )
        return {
            name: visit(value, adapters[name], f"{path}.{name}".lstrip("."))
            if name in adapters
            else value
            for name, value in base.items()
        }

    return visit(base, adapters, "")


def adapt(
    model_fn: Callable[..., Any], base: Params, *, lora: LoRA
) -> Callable[..., Any]:
    """A model whose parameters are adapters of a frozen base.

    The adapted kernels are merged where they are used: a pass holds them once more,
    but no gradient, optimiser state or copy of the base. In a sampling loop they are
    merged once.

    Args:
      model_fn: an ``ApplyFn`` or ``HiddenFn``.
      base: its parameters, not differentiated.
      lora: the same as the adapters'.

    Returns:
      the same kind of function, of adapters; it raises what ``merge`` does.

    Example:
      >>> from alignax.models import functional
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> base = functional.init(config, jax.random.key(0))
      >>> lora = LoRA(rank=2, targets=("query", "value"))
      >>> adapters = init(base, jax.random.key(1), lora=lora)
      >>> apply_fn = adapt(functional.make_apply(config), base, lora=lora)
      >>> apply_fn(adapters, jnp.ones((3, 5), int)).logits.shape
      (3, 5, 11)
    """

    def adapted(adapters, tokens, **options):
        frozen = jax.lax.stop_gradient(base)
        return model_fn(merge(frozen, adapters, lora=lora), tokens, **options)

    return adapted


def _modules(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """Hugging Face's names of the linear maps: our paths, several where fused."""
    return {
        name.removesuffix(".weight"): tensor.paths
        for name, tensor in hf.tensors(config).items()
        if tensor.paths[0].endswith(".kernel")
    }


def save(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    adapters: Params,
    lora: LoRA,
    *,
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Write a folder in PEFT's format, for any base of this configuration.

    Args:
      folder: made if need be; its adapter files are replaced.
      config: the base's architecture.
      adapters: trained.
      lora: the same as theirs.
      base: the folder of the model that they adapt, which the new one then names.

    Raises:
      InputError: an adapter is of a part of a matrix that the folder's format fuses.
    """
    flat, written, names = hf.by_path(adapters), {}, set()
    for module, paths in _modules(config).items():
        held = [path for path in paths if f"{path}.a" in flat]
        if held and len(paths) > 1:
            raise InputError(
                f"adapters of {held} cannot be written: {module} is one matrix for "
                f"{list(paths)} in this architecture's folders; adapt other maps, or "
                "merge and save the whole model"
            )
        for path in held:
            # [in, r] and [r, out] here, [r, in] and [out, r] there.
            for part, name in (("a", "lora_A"), ("b", "lora_B")):
                value = np.asarray(jax.device_get(flat[f"{path}.{part}"]))
                key = f"base_model.model.{module}.{name}.weight"
                written[key] = np.ascontiguousarray(value.T)
            names.add(module.rsplit(".", 1)[1])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(written, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": lora.stabilised,
        "inference_mode": True,
        "base_model_name_or_path": None if base is None else str(Path(base).resolve()),
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def load(folder: str | os.PathLike[str], config: DecoderConfig) -> tuple[LoRA, Params]:
    """Adapters from a local folder in PEFT's format.

    Args:
      folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
      config: the base's architecture.

    Returns:
      what is adapted, and the adapters in float32.

    Raises:
      InputError: no such folder, a key that cannot be honoured, or tensors that are
        not those of the base's linear maps.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        held = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} must hold {CONFIG} and {WEIGHTS}, got: {error}"
        ) from error
    if settings.get("peft_type") != "LORA":
        raise InputError(
            f"peft_type in {folder / CONFIG} must be 'LORA', got "
            f"{settings.get('peft_type')!r}"
        )
    for key, unused in UNUSED.items():
        if settings.get(key) not in unused and settings.get(key, None) is not None:
            raise InputError(
                f"{key} in {folder / CONFIG} must be {unused[0]!r}, all that is "
                f"supported, got {settings[key]!r}"
            )
    places = {}
    for module, paths in _modules(config).items():
        if len(paths) == 1:
            for part, name in (("a", "lora_A"), ("b", "lora_B")):
                key = f"base_model.model.{module}.{name}.weight"
                places[key] = (*paths[0].split("."), part)
    unknown = sorted(set(held) - set(places))
    if unknown:
        raise InputError(
            f"the tensors in {folder / WEIGHTS} must be lora_A and lora_B of the "
            f"base's linear maps, unknown: {unknown[:4]}"
        )
    adapters: Params = {}
    targets = set()
    for name, value in held.items():
        *above, kernel, part = places[name]
        node = adapters
        for part_of_path in above:
            node = node.setdefault(part_of_path, {})
        pair = node.setdefault(kernel, {})
        pair[part] = jnp.asarray(value.T.astype(np.float32))
        targets.add(above[-1])
    halves = sorted(path for path in hf.by_path(adapters) if path.endswith(".a"))
    if 2 * len(halves) != len(held):
        raise InputError(
            f"each of the tensors in {folder / WEIGHTS} must have its pair"
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    for name, value in held.items():
        # lora_A is [r, in], lora_B [out, r].
        own = value.shape[0 if places[name][-1] == "a" else -1] if value.ndim else 0
        if value.ndim != 2 or type(rank) is not int or own != rank:
            raise InputError(
                f"r in {folder / CONFIG} must be the rank of the tensors in "
                f"{folder / WEIGHTS}, got {rank!r} and {name} of shape {value.shape}"
            )
    if type(alpha) not in (int, float):
        raise InputError(
            f"lora_alpha in {folder / CONFIG} must be a positive number, got {alpha!r}"
        )
    lora = LoRA(
        rank=rank,
        alpha=float(alpha),
        targets=tuple(name for name in TARGETS if name in targets),
        stabilised=bool(settings.get("use_rslora")),
    )
    return lora, adapters
