"""What devices can do, by their makers' numbers, and the topologies they stand in."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from alignax.types import InputError

GIB = 2**30


class Chip(NamedTuple):
    """One device. Bytes, and per second."""

    kind: str
    hbm: float
    """Memory that a program may fill."""
    bandwidth: float
    """Of that memory."""
    flops: float
    """Of bfloat16 products, dense."""
    link: float
    """Received by a device in a ring along one axis of the mesh, inside of a slice or
    a host."""
    network: float
    """Received by a device from other hosts, where those links end."""
    host: int
    """Devices that those links reach; 0 for all of a slice."""


# TPUs: docs.cloud.google.com/tpu/docs (v5e, v5p, v6e): peak compute, HBM bandwidth, and
# the bidirectional interconnect of a chip over its ports (400 GB/s over 4, 1,200 over
# 6, 800 over 4), which a ring uses both ways. The memory is what their compiler calls
# available. H100 SXM: NVIDIA's data sheet (dense bfloat16 without sparsity, 80 GB,
# 3.35 TB/s, NVLink of 900 GB/s both ways) and one 400 Gbit/s adapter a GPU, as in a
# DGX H100. The processor's numbers are none of any machine: they make a plan run.
CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("tpu", 15.75 * GIB, 819e9, 197e12, 100e9, 100e9, 0),
    "v5p": Chip("tpu", 95.73 * GIB, 2765e9, 459e12, 200e9, 200e9, 0),
    "v6e": Chip("tpu", 31.24 * GIB, 1638e9, 918e12, 200e9, 200e9, 0),
    "h100": Chip("gpu", 80e9, 3350e9, 989e12, 450e9, 50e9, 8),
    "cpu": Chip("cpu", 4 * GIB, 50e9, 1e12, 10e9, 10e9, 0),
}


class Topology(NamedTuple):
    """Devices that need not be there."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    virtual: bool
    """The processor's, which stand for others'."""


def parsed(name: str) -> tuple[str, tuple[int, ...]]:
    """The chip and the sizes that a topology's name says.

    Args:
      name: such as ``v5e:16x16``, ``h100:2x8`` (hosts and their devices), ``cpu:8``.

    Returns:
      both.

    Raises:
      InputError: it is none.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None or found[1] not in CHIPS:
        raise InputError(
            f"topology must be one of {', '.join(CHIPS)} with its sizes behind a "
            f"colon, such as v5e:16x16, h100:2x8 or cpu:8, got {name!r}"
        )
    sizes = tuple(int(x) for x in found[2].split("x"))
    if math.prod(sizes) < 1:
        raise InputError(f"topology must have a device, got {name!r}")
    return found[1], sizes


def topology(name: str) -> Topology:
    """The devices of a topology: a TPU's from its compiler, any other's from as many
    virtual devices of the processor.

    Args:
      name: see ``parsed``.

    Returns:
      the topology; no device of it is touched.

    Raises:
      InputError: the name is none, the TPU compiler is not installed or does not know
        it, or the processor has fewer virtual devices than asked for.
    """
    word, sizes = parsed(name)
    chip, count = CHIPS[word], math.prod(sizes)
    if chip.kind == "tpu":
        return Topology(name, chip, _tpu(name), False)
    # Only before the first use of the processor does it matter.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"topology {name} needs {count} virtual devices, and JAX has begun with "
            f"{len(devices)}: ask in a process of its own, as `alignax plan` does"
        )
    return Topology(name, chip, devices[:count], True)


def _tpu(name: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology {name} needs the TPU compiler: pip install 'alignax[plan]'; "
            "h100:8 or cpu:8 would do without"
        )
    from jax.experimental import topologies

    # No machine of Google's is asked, and the compiler does not say that there is none.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(name, "tpu").devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "lockfile" in text:
            raise InputError(
                "the TPU compiler is held by another process of this machine: wait "
                "for it, or, where no TPU is attached, set ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            ) from error
        raise InputError(
            f"topology {name} must be one that the TPU compiler knows, got: {text}"
        ) from error


def bandwidth(chip: Chip, axes: Sequence[str], mesh: Mapping[str, int]) -> float:
    """Bytes a second that a device receives in a ring over some axes of a mesh.

    Args:
      chip: the device.
      axes: that the ring runs over.
      mesh: sizes of the mesh's axes, the last one's devices side by side.

    Returns:
      that of the slowest link on the way.
    """
    if not chip.host:
        return chip.link
    names = list(mesh)
    first = min(names.index(axis) for axis in axes)
    reach = math.prod(mesh[name] for name in names[first:])
    return chip.link if reach <= chip.host else chip.network
