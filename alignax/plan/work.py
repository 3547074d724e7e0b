"""How much a compiled program computes and moves, by its instructions."""

import math
import re

import numpy as np

from alignax.plan.hlo import CALLED, CHAIN, Computation, Instruction, Module, each

# Nothing is read or written by these.
SILENT = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id", "iota"),
    *("opt-barrier", "optimization-barrier", "custom-call", "add-dependency"),
}
READERS = {"dynamic-slice", "slice", "gather"}


def flops(module: Module) -> float:
    """Operations of all matrix products, two for a multiplication and addition.

    Args:
      module: the program.

    Returns:
      of one device.
    """
    total = 0.0
    for own, x, runs, _ in each(module):
        if x.op == "dot":
            total += runs * _dot(own, x)
        elif x.op == "convolution":
            total += runs * _convolution(own, x)
    return total


def _dot(own: Computation, x: Instruction) -> float:
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.text)
    left = own[x.operands[0]].out[0].shape
    over = [left[int(i)] for i in dims[1].split(",") if i] if dims else []
    return 2.0 * math.prod(x.out[0].shape) * math.prod(over)


def _convolution(own: Computation, x: Instruction) -> float:
    """TPUs write products as convolutions; only places inside of the input count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.text)
    if labels is None:
        return 0.0
    ins, kernel, outs = labels.groups()
    left, right = (own[name].out[0].shape for name in x.operands[:2])
    out = x.out[0].shape
    total = 2.0 * out[outs.index("b")] * out[outs.index("f")]
    total *= right[kernel.index("i")]
    window = re.search(r"window=\{([^}]*)\}", x.text)
    given = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    for i in range(sum(letter.isdigit() for letter in ins)):

        def part(name, default, i=i):
            return given[name].split("x")[i] if name in given else default

        low = int(part("pad", "0_0").split("_")[0])
        stride, spread = int(part("stride", "1")), int(part("lhs_dilate", "1"))
        step, size = int(part("rhs_dilate", "1")), int(part("size", "1"))
        places = np.arange(out[outs.index(str(i))])[:, None] * stride
        places = places + np.arange(size)[None] * step - low
        there = (places >= 0) & (places % spread == 0)
        there &= places // spread < left[ins.index(str(i))]
        total *= int(there.sum())
    return total


def traffic(module: Module) -> float:
    """Bytes that kernels read from a device's memory and write to it.

    Args:
      module: the program.

    Returns:
      of one device: operands and results of each kernel; of a slice, or an update in
      place, what is touched.
    """
    total, chains = 0.0, set()
    for own, x, runs, fused in each(module):
        chain = CHAIN.search(x.text)
        if chain and chain[1] not in chains:
            chains.add(chain[1])
            total += runs * _whole(own, x)
        if fused or x.op in SILENT or x.op.endswith("-done"):
            continue
        total += runs * _touched(module, own, x)
    return total


def _touched(module: Module, own: Computation, x: Instruction) -> float:
    if x.op == "copy-start":
        return sum((a.hbm for a in x.out[:2]), 0.0)
    if x.op in ("slice-start", "dynamic-slice-start"):
        # The result begins with the operand, of which a slice is read.
        source, slice_ = x.out[:2]
        return slice_.hbm + (slice_.bytes if source.hbm else 0.0)
    if x.op in READERS:
        return 2 * sum((a.hbm for a in x.out), 0.0)
    if x.op == "dynamic-update-slice":
        return 2 * sum((a.hbm for a in own[x.operands[1]].out), 0.0)
    called = CALLED.search(x.text)
    inside = module.computations.get(called[1]) if called else None
    if x.op != "fusion" or inside is None:
        return _whole(own, x)
    # A gather that runs beside other work passes through each of its kernels.
    passed = {
        (a.dtype, a.bytes)
        for y in inside.values()
        if CHAIN.search(y.text)
        for a in (*y.out, *inside[y.operands[0]].out)
    }
    return _read(own, x, inside, passed) + _wrote(x, inside, passed)


def _whole(own: Computation, x: Instruction) -> float:
    """All operands and results."""
    held = (a for n in x.operands if n in own for a in own[n].out)
    return sum((a.hbm for a in (*held, *x.out)), 0.0)


Passed = set[tuple[str, float]]


def _read(
    own: Computation, x: Instruction, inside: Computation, passed: Passed
) -> float:
    users: dict[str, list[Instruction]] = {}
    for y in inside.values():
        for name in y.operands:
            users.setdefault(name, []).append(y)
    total = 0.0
    for y in inside.values():
        if y.op != "parameter":
            continue
        given = own.get(x.operands[int(y.operands[0])])
        if given is None or not any(a.hbm for a in given.out):
            continue
        if any((a.dtype, a.bytes) in passed for a in given.out):
            continue
        parts, whole = 0.0, sum((a.hbm for a in given.out), 0.0)
        for user in users.get(y.name, []):
            first = user.operands[0] == y.name
            if first and user.op in READERS:
                parts += sum((a.bytes for a in user.out), 0.0)
            elif not (first and user.op == "dynamic-update-slice"):
                parts = whole
        total += min(parts, whole)
    return total


def _wrote(x: Instruction, inside: Computation, passed: Passed) -> float:
    root = next(y for y in inside.values() if y.root)
    parts = [root]
    if root.op == "tuple":
        parts = [inside[name] for name in root.operands]
    if len(parts) != len(x.out):
        kept = (a for a in x.out if (a.dtype, a.bytes) not in passed)
        return sum((a.hbm for a in kept), 0.0)
    total = 0.0
    for part, out in zip(parts, x.out, strict=True):
        if (out.dtype, out.bytes) in passed:
            continue
        while part.op == "bitcast" and part.operands[0] in inside:
            part = inside[part.operands[0]]
        if part.op == "dynamic-update-slice" and out.hbm:
            total += sum((a.bytes for a in inside[part.operands[1]].out), 0.0)
        else:
            total += out.hbm
    return total


def largest(module: Module, *, count: int = 5) -> list[tuple[float, str, str]]:
    """The largest arrays that the program makes.

    Args:
      module: the program.
      count: how many, each shape and origin once.

    Returns:
      bytes, the type, and where in the traced function it comes from.
    """
    found: dict[tuple[str, str], float] = {}
    for _, x, _, fused in each(module):
        if fused or x.op in SILENT or x.op.endswith("-done"):
            continue
        origin = re.search(r'op_name="([^"]*)"', x.text)
        for a in x.out:
            kind = f"{a.dtype}{list(a.shape)}".replace(" ", "")
            found[kind, origin[1] if origin else x.op] = a.hbm
    rows = sorted(((size, *name) for name, size in found.items()), reverse=True)
    return rows[:count]
