"""Meshes and shardings, in one place.

Parameters carry the names of their logical axes; ``RULES`` maps those to mesh
axes. Batches are split over ``replica`` and ``fsdp``. Axes are ``AxisType.Auto``:
under JAX's explicit axes, ordinary operations of a language model (a gather from a
sharded embedding, a group reshape, a sort) are type errors.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from alignax.types import InputError

# Megatron's layout on `tensor`; the other side of each matrix is split over `fsdp`,
# as in fully sharded data parallelism.
RULES: Mapping[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
ROWS = ("replica", "fsdp")
"""The axes that batches are split over."""


def make_mesh(
    *,
    replica: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of ``replica × fsdp × tensor`` devices.

    Args:
      replica: copies of the parameters; batches are split over them.
      fsdp: devices that batches and parameters are split over; -1 takes all that are
        left.
      tensor: devices that each matrix is split over.
      devices: to take them from, such as a topology's that is not there; None for
        those of all processes.

    Returns:
      a mesh with these axes.

    Raises:
      InputError: the product does not fit the devices there are, or leaves out some of
        another process.
    """
    every = jax.devices() if devices is None else devices
    there = len(every)
    for name, size in (("replica", replica), ("tensor", tensor)):
        if size < 1:
            raise InputError(f"mesh.{name} must be at least 1, got {size}")
    if fsdp == -1:
        fsdp = max(there // (replica * tensor), 1)
    count = replica * fsdp * tensor
    asked = f"{replica} × {fsdp} × {tensor}"
    if fsdp < 1 or count > there:
        raise InputError(
            "mesh.replica × mesh.fsdp × mesh.tensor must be at most the "
            f"{there} devices, got {asked}"
        )
    if jax.process_count() > 1 and count != there:
        raise InputError(
            f"mesh.replica × mesh.fsdp × mesh.tensor must be all {there} devices of "
            f"the {jax.process_count()} processes, got {asked}"
        )
    return jax.make_mesh(
        (replica, fsdp, tensor),
        (*ROWS, "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=list(every)[:count],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Leading axis split over ``ROWS``: for every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def in_sight(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """What is traced inside knows the mesh, for ``rows_apart``.

    Args:
      mesh: from ``make_mesh``; None for one device.

    Returns:
      a context.
    """
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def rows_apart(x: Array) -> Array:
    """An array whose rows stay where those of its batch are.

    What is looked up in a matrix that is split over ``fsdp`` may be split by its rows
    or by the matrix' columns, and XLA takes the columns: every device would then hold
    all rows of all that follows, and add up each product over all devices.

    Args:
      x: rows first.

    Returns:
      the same values, rows split over ``ROWS`` and the rest whole, where a mesh is in
      sight and has as many devices as divide the rows; else ``x``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(kinds.get(name) != AxisType.Auto for name in ROWS):
        return x
    if x.shape[0] == 0 or x.shape[0] % math.prod(mesh.shape[name] for name in ROWS):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


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
    the result is the global batch. ``spread`` takes the whole batch of each.

    Args:
      batch: pytree of arrays with the rows first.
      mesh: from ``make_mesh``.

    Returns:
      the same pytree as global arrays, rows split over ``ROWS``.
    """
    split = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, np.asarray(x)), batch
    )


def put(tree: Any, shardings: Any) -> Any:
    """Arrays, the same whole ones on every process, laid out; those that are laid out
    so already stay.

    Args:
      tree: of arrays; of shapes (``jax.ShapeDtypeStruct``) it says how they would lie.
      shardings: of its structure, or one for all leaves.

    Returns:
      the same pytree of global arrays.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def leaf(x, sharding):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        if jax.process_count() == 1 or (
            isinstance(x, jax.Array) and not x.is_fully_addressable
        ):
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
            x.dtype, jax.dtypes.prng_key
        ):
            data = leaf(jax.random.key_data(x), replicated(sharding.mesh))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        whole = np.asarray(x)
        return jax.make_array_from_callback(
            whole.shape, sharding, lambda index: whole[index]
        )

    return jax.tree.map(leaf, tree, shardings)


def spread(tree: Any, mesh: Mesh, *, split: bool = True) -> Any:
    """Arrays that are not on the mesh put there, the same whole ones on every process.

    Args:
      tree: of arrays, or of shapes; those on the mesh stay as they are.
      mesh: from ``make_mesh``.
      split: the leading axis over ``ROWS`` where it is a multiple of their devices;
        False leaves arrays whole.

    Returns:
      the same pytree of global arrays.
    """
    devices, count = set(mesh.devices.flat), math.prod(mesh.shape[x] for x in ROWS)

    def leaf(x):
        placed = getattr(x, "sharding", None)
        if placed is not None and placed.device_set == devices:
            return x
        shape = np.shape(x)
        divides = split and len(shape) > 0 and shape[0] > 0 and shape[0] % count == 0
        return put(x, rows(mesh) if divides else replicated(mesh))

    return jax.tree.map(leaf, tree)
