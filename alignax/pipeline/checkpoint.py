"""Checkpoints of a run, and the model it ends with; orbax stays in here.

A checkpoint is a folder ``<run>/<step>``: the arrays of the train state, the model's
config and the data iterator's state as JSON in ``_CHECKPOINT_METADATA``, and a seal,
``seal.json``, with the size and the CRC-32 of each file. It counts only once it is
complete, so a run killed while saving goes on from the one before; one whose files
are not as they were saved is set aside as it is found, with a warning. Folders are on
a disk that every process of the run sees.
"""

import contextlib
import json
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from alignax.pipeline import seals
from alignax.types import InputError, Params, RunError, TrainState

Json = dict[str, Any]
"""What ``json`` can write: strings, numbers, booleans, None, lists, dicts."""


class Checkpoints:
    """An open run; a context manager that waits for the last save as it closes."""

    def __init__(self, manager: ocp.training.Checkpointer):
        self._manager = manager
        # One thread for all saves: orbax starts one for each, and frees it and its
        # descriptors only where its result is asked for.
        self._thread = futures.ThreadPoolExecutor(max_workers=1)
        self._pending: futures.Future[None] | None = None
        self._failed = False

    @property
    def folder(self) -> Path:
        return Path(self._manager.directory)

    @property
    def steps(self) -> list[int]:
        """Those of the complete checkpoints, ascending."""
        return [found.step for found in self._manager.checkpoints]

    def wait(self) -> None:
        """Return once the last save is on the disk.

        Raises:
          RunError: it could not be written, as on a full disk.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, ValueError) as error:
            self._failed = True
            raise RunError(
                f"a checkpoint could not be written to {self.folder}: {error}; mend "
                "that, then go on with --resume from the one before, of step "
                f"{self.steps[-1] if self.steps else 'none'}"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            # Once more raises what kept a save from the disk.
            known = (OSError, ValueError) if self._failed else ()
            with contextlib.suppress(*known):
                self._manager.close()


def open_run(folder: str | Path, *, keep: int = 2) -> Checkpoints:
    """The checkpoints of a run, to save to and to restore from.

    What a killed run left half written is removed. Damaged checkpoints that are newer
    than the newest whole one are set aside as ``<step>.damaged``, and a warning on
    standard error says what is wrong with them.

    Args:
      folder: made where there is none; may be relative.
      keep: how many of the latest checkpoints stay on disk.

    Returns:
      a context manager for ``save``, ``restore`` and ``latest_step``.

    Raises:
      InputError: ``keep`` is not positive, or there are checkpoints and none is
        whole.
    """
    if keep < 1:
        raise InputError(f"keep must be at least 1 checkpoint, got {keep}")
    seals.set_damaged_aside(Path(folder).resolve())
    # Orbax' annotation of its own policy does not fit its parameter's.
    latest: Any = ocp.training.preservation_policies.LatestN(keep)
    return Checkpoints(
        ocp.training.Checkpointer(
            _absolute(folder),
            preservation_policy=latest,
            cleanup_tmp_directories=True,
        )
    )


def latest_step(checkpoints: Checkpoints) -> int | None:
    """The step of the newest whole checkpoint, or None without one."""
    return checkpoints.steps[-1] if checkpoints.steps else None


def save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    *,
    data_state: Json,
    config: Json,
) -> None:
    """Save all that a run needs to go on.

    Returns once the save before is on the disk and the arrays are copied to the host,
    so that the next step may donate them; a thread writes and seals them while it
    computes. The step that is the latest already is left as it is.

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
    checkpoints.wait()
    latest = latest_step(checkpoints)
    if latest is not None and step < latest:
        raise InputError(
            f"step must be later than the last checkpoint of {checkpoints.folder}, "
            f"which is of step {latest}, got {step}; use another folder for another "
            "run, or delete the later checkpoints to go on from an earlier one"
        )
    if step == latest:
        return
    response = checkpoints._manager.save_checkpointables_async(
        step,
        {"state": state},
        force=True,
        custom_metadata={
            "config": _json("config", config),
            "data_state": _json("data_state", data_state),
        },
    )

    def finish() -> None:
        if response is not None:
            response.result()
        if jax.process_index() == 0:
            seals.seal(checkpoints.folder / str(step))

    checkpoints._pending = checkpoints._thread.submit(finish)


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
      InputError: there is no such checkpoint, it is of another architecture, or it
        is damaged.
    """
    checkpoints.wait()
    steps, folder = checkpoints.steps, checkpoints.folder
    if not steps:
        raise InputError(
            f"folder must hold a checkpoint, {folder} has none; give the folder of a "
            "run that has saved one, or start a new run"
        )
    where = f"the checkpoint of step {steps[-1] if step is None else step} in {folder}"
    if step is None:
        # Whole, or open_run had set it aside.
        step = steps[-1]
    elif step not in steps:
        raise InputError(
            f"step must be one of the checkpoints {steps} of {folder}, got {step}"
        )
    elif damage := seals.damage(folder / str(step)):
        raise InputError(f"{where} is damaged: {damage}; give another of {steps}")
    found = checkpoints._manager.checkpointables_metadata(step)
    saved: Any = found.custom_metadata
    _check_config(saved["config"], _json("config", config), where)
    like = jax.tree.map(_abstract, like)
    advice = f"move it away to go on from the one before, of {steps}"
    arrays = found.metadata.get("state")
    if arrays is None:
        raise InputError(f"{where} is damaged: its arrays cannot be listed; {advice}")
    _check_leaves(arrays, like, where)
    try:
        restored = checkpoints._manager.load_checkpointables(step, {"state": like})
    except ValueError as error:
        raise InputError(f"{where} cannot be read: {error}; {advice}") from error
    return restored["state"], saved["data_state"]


def restore_params(
    folder: str | Path, *, step: int | None = None
) -> tuple[int, Params, Json]:
    """The parameters alone of a checkpoint; nothing in the folder is touched, so that
    its run may go on meanwhile.

    Args:
      folder: that ``open_run`` made.
      step: which checkpoint; default the newest whole one.

    Returns:
      ``(step, params, config)``: nested dicts of numpy arrays, as they were saved, and
      the config that was saved with them.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    folder = Path(folder).resolve()
    steps = seals.steps(folder)
    if step is not None and step not in steps:
        raise InputError(
            f"step must be one of the checkpoints {steps} of {folder}, got {step}"
        )
    wanted = steps[::-1] if step is None else [step]
    damages: dict[int, str | None] = {}
    for n in wanted:
        path = folder / str(n)
        damages[n] = seals.metadata_damage(path) or seals.damage(path)
        if damages[n] is None:
            break
    else:
        found = "; ".join(f"step {n}: {damage}" for n, damage in damages.items())
        raise InputError(
            f"folder must hold a whole checkpoint, got {folder} with "
            f"{f'damaged ones ({found})' if found else 'none'}; a run saves its first "
            "one as it begins"
        )
    metadata = ocp.checkpointables_metadata(str(folder / str(n)))
    arrays: Any = metadata.metadata.get("state")
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), arrays["params"])
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        wanted_arrays = {"state": {"params": like}}
        loaded: Any = ocp.load_checkpointables(str(folder / str(n)), wanted_arrays)
    saved: Any = metadata.custom_metadata
    return n, loaded["state"]["params"], saved["config"]


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


def _flat(tree: Any, is_leaf: Any = None) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _check_config(saved: Json, given: Json, where: str) -> None:
    # As a leaf, an empty list or dict and None take part in the comparison.
    before, now = (
        _flat(x, lambda x: x is None or x in ([], {})) for x in (saved, given)
    )
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
