"""Meshes and shardings, in one place.

Parameters carry the names of their logical axes; ``RULES`` maps those to mesh
axes. Batches are split over ``data``. Axes are ``AxisType.Auto``: under JAX's
explicit axes, ordinary operations of a language model (a gather from a sharded
embedding, a group reshape, a sort) are type errors.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from alignax.types import InputError

# Megatron's layout on `model`; the other side of each matrix is split over
# `data`, as in fully sharded data parallelism.
RULES: Mapping[str, str | None] = {
    "vocab": "model",
    "embed": "data",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
}


def make_mesh(*, data: int = -1, model: int = 1) -> Mesh:
    """A mesh of ``data × model`` devices.

    Args:
      data: devices that batches are split over; -1 takes all that are left.
      model: devices that each matrix is split over.

    Returns:
      a mesh with axes ``data`` and ``model``.

    Raises:
      InputError: the product does not fit the devices there are.
    """
    devices = jax.device_count()
    if model < 1 or devices % model:
        raise InputError(
            f"model must be a positive divisor of the {devices} devices, got {model}"
        )
    if data == -1:
        data = devices // model
    if data < 1 or data * model > devices:
        raise InputError(
            f"data × model must be at most the {devices} devices, got {data} × {model}"
        )
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[: data * model],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over ``data``: for every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def param_shardings(
    params: Any,
    axes: Any,
    mesh: Mesh,
    *,
    rules: Mapping[str, str | None] = RULES,
) -> Any:
    """A sharding for each parameter from the names of its logical axes.

    An axis whose size its mesh axis does not divide stays whole, and so does the
    second of two axes that ask for one mesh axis.

    Args:
      params: pytree of arrays or their shapes.
      axes: the same pytree with a tuple of names (or None) for each leaf.
      mesh: from ``make_mesh``.
      rules: logical name to mesh axis; a name without a rule stays whole.

    Returns:
      the same pytree of ``NamedSharding``.
    """

    def sharding(param, names):
        used: list[str | None] = []
        for size, name in zip(param.shape, names, strict=True):
            axis = rules.get(name) if name is not None else None
            fits = axis is not None and size % mesh.shape[axis] == 0
            used.append(axis if fits and axis not in used else None)
        return NamedSharding(mesh, PartitionSpec(*used))

    return jax.tree.map(sharding, params, axes)


def shard_rows(batch: Any, mesh: Mesh) -> Any:
    """Put this process' rows of a batch onto the mesh.

    On one process this is ``device_put``; on several each gives its own rows and
    the result is the global batch.

    Args:
      batch: pytree of arrays with the rows first.
      mesh: from ``make_mesh``.

    Returns:
      the same pytree as global arrays, rows split over ``data``.
    """
    split = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch
    )
