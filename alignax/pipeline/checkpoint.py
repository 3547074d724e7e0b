"""Checkpoints of a run, and the model it ends with; orbax stays in here.

A checkpoint is a folder ``<run>/<step>``: the arrays of the train state, and the
model's config and the data iterator's state as JSON in ``_CHECKPOINT_METADATA``.
It counts only once it is complete, so a run killed while saving goes on from the
one before. Folders are on a disk that every process of the run sees.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from alignax.types import InputError, Params, TrainState

Checkpoints = ocp.training.Checkpointer
"""An open run; a context manager that waits for the last save as it closes."""

Json = dict[str, Any]
"""What ``json`` can write: strings, numbers, booleans, None, lists, dicts."""


def open_run(folder: str | Path, *, keep: int = 2) -> Checkpoints:
    """The checkpoints of a run, to save to and to restore from.

    What a killed run left half written is removed.

    Args:
      folder: made where there is none; may be relative.
      keep: how many of the latest checkpoints stay on disk.

    Returns:
      a context manager for ``save``, ``restore`` and ``latest_step``.

    Raises:
      InputError: ``keep`` is not positive.
    """
    if keep < 1:
        raise InputError(f"keep must be at least 1 checkpoint, got {keep}")
    # Orbax' annotation of its own policy does not fit its parameter's.
    latest: Any = ocp.training.preservation_policies.LatestN(keep)
    return ocp.training.Checkpointer(
        _absolute(folder),
        preservation_policy=latest,
        cleanup_tmp_directories=True,
    )


def latest_step(checkpoints: Checkpoints) -> int | None:
    """The step of the newest complete checkpoint, or None without one."""
    latest = checkpoints.latest
    return None if latest is None else latest.step


def save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    *,
    data_state: Json,
    config: Json,
) -> None:
    """Save all that a run needs to go on.

    Returns once the arrays are copied to the host, so that the next step may
    donate them; a thread writes them while it computes. The step that is the
    latest already is left as it is.

    Args:
      checkpoints: from ``open_run``.
      step: steps done so far.
      state: parameters, optimiser, controller, key.
      data_state: the data iterator's position.
      config: the model's; ``restore`` compares it.

    Raises:
      InputError: there are checkpoints of later steps, or JSON cannot hold
        ``config`` or ``data_state``.
    """
    latest = latest_step(checkpoints)
    if latest is not None and step < latest:
        raise InputError(
            f"step must be later than the last checkpoint of {checkpoints.directory}, "
            f"which is of step {latest}, got {step}; use another folder for another "
            "run, or delete the later checkpoints to go on from an earlier one"
        )
    if step == latest:
        return
    checkpoints.save_checkpointables_async(
        step,
        {"state": state},
        force=True,
        custom_metadata={
            "config": _json("config", config),
            "data_state": _json("data_state", data_state),
        },
    )


def restore(
    checkpoints: Checkpoints, like: TrainState, *, config: Json, step: int | None = None
) -> tuple[TrainState, Json]:
    """Restore a train state bit for bit, onto whatever devices ``like`` names.

    Args:
      checkpoints: from ``open_run``.
      like: arrays, or ``jax.ShapeDtypeStruct`` with shardings; where a leaf has
        none it goes to the first device.
      config: the model's, to be that of the checkpoint.
      step: which checkpoint; default the latest.

    Returns:
      ``(state, data_state)``.

    Raises:
      InputError: there is no such checkpoint, or it is of another architecture.
    """
    steps = [checkpoint.step for checkpoint in checkpoints.checkpoints]
    if not steps:
        raise InputError(
            f"folder must hold a checkpoint, {checkpoints.directory} has none; give "
            "the folder of a run that has saved one, or start a new run"
        )
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise InputError(
            f"step must be one of the checkpoints {steps} of {checkpoints.directory}, "
            f"got {step}"
        )
    found = checkpoints.checkpointables_metadata(step)
    saved: Any = found.custom_metadata
    where = f"the checkpoint of step {step} in {checkpoints.directory}"
    _check_config(saved["config"], _json("config", config), where)
    like = jax.tree.map(_abstract, like)
    _check_leaves(found.metadata["state"], like, where)
    restored = checkpoints.load_checkpointables(step, {"state": like})
    return restored["state"], saved["data_state"]


def save_model(folder: str | Path, config: Json, params: Params) -> None:
    """Save a finished model: its config and its parameters, nothing else.

    A model that is there already is replaced.

    Args:
      folder: made where there is none; may be relative.
      config: all that rebuilds the architecture.
      params: nested dicts, with strings as keys, of arrays.

    Raises:
      InputError: JSON cannot hold ``config``.
    """
    ocp.save(
        _absolute(folder),
        params,
        overwrite=True,
        custom_metadata={"config": _json("config", config)},
    )


def load_model(folder: str | Path) -> tuple[Json, Params]:
    """Load a model that ``save_model`` saved.

    Args:
      folder: may be relative.

    Returns:
      ``(config, params)``; the parameters are numpy arrays, for the caller to
      place, in nested dicts.

    Raises:
      InputError: there is no complete model in the folder.
    """
    path = _absolute(folder)
    try:
        found = ocp.metadata(path)
    except (FileNotFoundError, ocp.errors.InvalidLayoutError):
        raise InputError(
            f"folder must hold a model, {path} has none; give a folder that "
            "save_model wrote, such as the `model` folder of a finished run"
        ) from None
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found.metadata)
    saved: Any = found.custom_metadata
    return saved["config"], ocp.load(path, like)


def _absolute(folder: str | Path) -> str:
    return str(Path(folder).resolve())


def _json(name: str, value: Json) -> Json:
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise InputError(
            f"{name} must hold strings, numbers, booleans, None, lists and dicts "
            f"only: {error}"
        ) from None


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _check_config(saved: Json, given: Json, where: str) -> None:
    # As a leaf, an empty list or dict and None take part in the comparison.
    def flat(config: Json) -> dict[str, Any]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            config, is_leaf=lambda x: x is None or x == [] or x == {}
        )
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf
            for path, leaf in leaves
        }

    before, now = flat(saved), flat(given)
    for name in sorted(before.keys() | now.keys()):
        old, new = (repr(x[name]) if name in x else "nothing" for x in (before, now))
        if old != new and before.get(name, before) != now.get(name, now):
            raise InputError(
                f"config.{name} must be that of {where}: saved with {old}, got {new}; "
                f"give {old} to go on from it, or another folder to start a new run"
            )


def _check_leaves(saved: Any, like: TrainState, where: str) -> None:
    def data(leaf: Any) -> Any:
        # A typed key is stored as the integers that it wraps.
        typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf) if typed else leaf

    def describe(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    before = {name: describe(leaf) for name, leaf in _flat(saved).items()}
    now = {name: describe(data(leaf)) for name, leaf in _flat(like).items()}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            raise InputError(
                f"state.{name} must be as in {where}: saved as {old}, got {new}; use "
                "the optimiser, controller and data types of the run that saved it, "
                "or another folder to start a new run"
            )
