"""Which axes of a mesh a collective runs over, from its replica groups."""

import re
from collections.abc import Mapping

import numpy as np

IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x.strip()]


def groups_of(text: str) -> list[list[int]]:
    """The groups of devices of a collective, by their numbers in the mesh.

    Args:
      text: its attributes, with ``replica_groups`` in any of XLA's three forms, or
        ``source_target_pairs``.

    Returns:
      the groups; of pairs each pair. Empty where all devices are one group.
    """
    iota = IOTA.search(text)
    if iota:
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        order = _numbers(iota[3]) if iota[3] else range(len(dims))
        ids = np.arange(np.prod(dims)).reshape(dims).transpose(list(order))
        return ids.reshape(shape).reshape(shape[0], -1).tolist()
    named = NAMED.search(text)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        over = re.findall(r"'([^']+)'", named[2])
        names = list(sizes)
        ids = np.arange(np.prod([int(x) for x in sizes.values()]))
        ids = ids.reshape([int(x) for x in sizes.values()])
        kept = [i for i, name in enumerate(names) if name not in over]
        moved = [names.index(name) for name in over]
        size = int(np.prod([ids.shape[i] for i in moved]))
        return ids.transpose(kept + moved).reshape(-1, size).tolist()
    listed = PAIRS.search(text) or LISTED.search(text)
    if listed:
        return [_numbers(x) for x in re.findall(r"\{([\d,]*)\}", listed[1])]
    return []


def axes_of(text: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes along which the members of a collective differ.

    Args:
      text: its attributes.
      mesh: sizes of the mesh's axes, in the order of its devices.

    Returns:
      the axes' names, and how many devices take part together. A permutation's are
      those along which its pairs differ, with all devices along them.
    """
    sizes = list(mesh.values())
    groups = groups_of(text) or [list(range(int(np.prod(sizes))))]
    if "source_target_pairs" not in text and len(groups[0]) == 1:
        return (), 1
    differs = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.array(group), sizes))
        differs |= np.any(places != places[:, :1], axis=1)
    axes = tuple(name for name, x in zip(mesh, differs, strict=True) if x)
    if "source_target_pairs" in text:
        return axes, int(np.prod([mesh[name] for name in axes], initial=1))
    return axes, len(groups[0])
