"""What a folder holds: a model, adapters with the name of their base, or a run."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from alignax.models import functional, lora
from alignax.models.lora import LoRA
from alignax.pipeline import checkpoint
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.types import InputError

RUN = "run.json"


class Found(NamedTuple):
    """Where a policy's parts are."""

    base: Path
    """The Hugging Face folder, with the architecture and the tokenizer."""
    adapter: Path | None = None
    """In PEFT's format."""
    under: Path | None = None
    """The folder, of any kind, upon which a run began."""
    checkpoints: Path | None = None
    """The run's."""
    lora: LoRA | None = None
    """What the run's checkpoints adapt; None where they hold all parameters."""


def find(
    path: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
) -> Found:
    """What kind of folder this is, and where the model's parts are.

    A run's ``run.json`` names in ``model`` the folder upon which it began; with
    ``lora`` the run's adapters stand upon all that this folder holds, merged.

    Args:
      path: of a Hugging Face folder, an adapter's in PEFT's format, or a run's.
      base: in place of the base that an adapter or a run names, such as one that has
        been moved.

    Returns:
      the parts' places.

    Raises:
      InputError: it is none of the three, or its base is not where it says.
    """
    path = Path(path)
    adapter, run = path / lora.CONFIG, path / RUN
    if run.is_file():
        settings = _json(run)
        if settings.get("kind") == "reward":
            raise InputError(
                f"the model must be a policy, {path} is the run of a reward model; "
                "give it as a reward"
            )
        under = _base(settings.get("model"), base, run, "model")
        adapted = settings.get("lora")
        return Found(
            find(under).base,
            under=under,
            checkpoints=path / str(settings.get("phase")),
            lora=None if adapted is None else _lora(adapted, run),
        )
    if adapter.is_file():
        name = "base_model_name_or_path"
        return Found(_base(_json(adapter).get(name), base, adapter, name), path)
    if (path / "config.json").is_file():
        return Found(path)
    what = "is no folder"
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        what = f"holds {', '.join(names[:6]) or 'nothing'}"
    raise InputError(
        f"the model must be a Hugging Face folder (with config.json), an adapter's "
        f"(with {lora.CONFIG}) or a run's (with {RUN}), got {path}, which {what}; "
        "`alignax pretrained` makes one to begin with"
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
    except ValueError:
        pass
    raise InputError(f"{file} must be a JSON object, got something else")


def _base(named: Any, given: Any, file: Path, key: str) -> Path:
    """The folder of the base: as given, as named, or as named from the file's own."""
    if given is None and not isinstance(named, str):
        raise InputError(
            f"{key} in {file} must name the folder of the base, got {named!r}; give "
            "it with --base"
        )
    ways = [Path(given)] if given is not None else [Path(named), file.parent / named]
    for way in ways:
        if way.is_dir():
            return way
    raise InputError(
        f"the base of {file.parent} must be a folder, got {ways[0]}, which is none; "
        "give the place where it is now with --base"
    )


def _lora(settings: dict[str, Any], file: Path) -> LoRA:
    try:
        targets = tuple(settings.get("targets", lora.TARGETS))
        return LoRA(**(settings | {"targets": targets}))
    except TypeError as error:
        raise InputError(f"lora in {file} must be LoRA's fields: {error}") from error


def open_policy(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    adapters: LoRA | None = None,
    key: Key[Array, ""] | None = None,
    step: int | None = None,
    param_dtype: str = "float32",
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Policy:
    """The policy in a folder of any kind.

    Adapters stay adapters, beside their frozen base; with ``adapters`` fresh ones are
    put upon all that the folder holds, merged.

    Args:
      path: of a Hugging Face folder, an adapter's in PEFT's format, or a run's.
      base: in place of the base that an adapter or a run names.
      adapters: train these, fresh; None takes what the folder has.
      key: of the fresh adapters' first values; needed by ``adapters``.
      step: of a run's checkpoint; None for its newest whole one.
      param_dtype: what the parameters are converted to.
      dtype: of the computation.
      mesh: what the parameters lie on; None for the first device.

    Returns:
      the policy.

    Raises:
      InputError: ``path`` is no such folder, its base is missing, a run has no whole
        checkpoint or not of this step, or parameters do not fit.
    """
    found = find(path, base=base)
    if step is not None and found.checkpoints is None:
        raise InputError(f"step must be of a run's folder, got {step} for {path}")
    dtypes = {"param_dtype": param_dtype, "dtype": dtype, "mesh": mesh}
    if found.checkpoints is not None:
        began = open_policy(found.under or found.base, **dtypes)
        policy = _trained(began, found, step)
    else:
        policy = policies.load(found.base, **dtypes)
        if found.adapter is not None:
            policy = _adapted(policy, *lora.load(found.adapter, policy.config))
    if adapters is not None:
        params = policies.whole(policy, policy.params)
        policy = policies.make(
            policy.config, params, policy.tokenizer, adapters=adapters, key=key
        )
    return policies.on_mesh(policy, mesh)


def _trained(began: Policy, found: Found, step: int | None) -> Policy:
    """The policy of a run's checkpoint."""
    params = policies.whole(began, began.params)
    policy = policies.make(began.config, params, began.tokenizer)
    _, saved, _ = checkpoint.restore_params(found.checkpoints or found.base, step=step)
    if found.lora is not None:
        return _adapted(policy, found.lora, jax.tree.map(jnp.asarray, saved))
    functional.check_params(policy.config, saved)
    saved = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), saved, params)
    return policy._replace(params=saved)


def _adapted(policy: Policy, settings: LoRA, adapters: Any) -> Policy:
    """A policy of these adapters on the parameters of another."""
    # Their shapes are the base's, or this raises.
    jax.eval_shape(lambda: lora.merge(policy.params, adapters, lora=settings))
    return policy._replace(
        params=adapters,
        apply_fn=lora.adapt(policy.apply_fn, policy.params, lora=settings),
        hidden_fn=lora.adapt(policy.hidden_fn, policy.params, lora=settings),
        base=policy.params,
        lora=settings,
    )
