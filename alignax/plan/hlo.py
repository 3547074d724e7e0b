"""What a compiled program does, read from its text: work, traffic and collectives.

XLA's own ``cost_analysis`` counts the body of a loop once; here each instruction counts
as often as it runs. The text is the optimised module's, of one device.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignax.plan.groups import axes_of

BYTES: Mapping[str, float] = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("c128",), 16),
}
"""Of one number; eight-bit floats have one, what is not listed (tokens) none."""
COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
# Nothing is read or written by these.
SILENT = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id", "iota"),
    *("opt-barrier", "optimization-barrier", "custom-call", "add-dependency"),
}
READERS = {"dynamic-slice", "slice", "gather"}


class Array(NamedTuple):
    """One array's type."""

    dtype: str
    shape: tuple[int, ...]
    place: str
    """Its layout, which says the memory space: S(1) is on the chip, not in HBM."""

    @property
    def bytes(self) -> float:
        size = BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)
        return math.prod(self.shape) * size

    @property
    def hbm(self) -> float:
        """Bytes, if they lie in the device's main memory."""
        return 0 if re.search(r"S\([1-9]", self.place) else self.bytes


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    op: str
    out: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    """Behind the operands: the attributes."""
    root: bool


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A program: its computations, and how often each runs."""

    computations: Mapping[str, Computation]
    runs: Mapping[str, float]
    fused: frozenset[str]
    """Computations whose instructions are parts of one kernel."""
    open_loops: int
    """Loops whose number of rounds the program does not say."""


class Collective(NamedTuple):
    """One kind of communication over some axes of the mesh, on each device."""

    op: str
    axes: tuple[str, ...]
    size: int
    """Devices that take part together."""
    payload: float
    """Bytes of the whole array: what a gather ends with, a scatter begins with."""
    runs: float

    @property
    def received(self) -> float:
        """Bytes that each device receives, by a ring."""
        if self.op == "collective-permute":
            return self.payload * self.runs
        passes = 2 if self.op == "all-reduce" else 1
        return passes * self.payload * (self.size - 1) / self.size * self.runs


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, those of a tuple one after another."""
    return tuple(
        Array(dtype, tuple(int(x) for x in shape.split(",") if x), place or "")
        for dtype, shape, place in SHAPE.findall(text)
    )


def _instruction(line: str) -> Instruction | None:
    found = LINE.match(line)
    if found is None:
        return None
    root, name, rest = found.groups()
    # The type ends where its brackets do, and the operation's name follows.
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            break
    kind, rest = rest[:i], rest[i + 1 :]
    op, _, rest = rest.partition("(")
    depth = 1
    for end, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            break
    inside = re.sub(r"\{[^}]*\}", "", rest[:end])
    inside = re.sub(r"/\*.*?\*/", "", inside)
    operands = re.findall(r"%([\w.\-]+)", inside)
    if op in ("parameter", "constant"):
        operands = [inside]
    kept = tuple(operands)
    return Instruction(name, op, arrays(kind), kept, rest[end + 1 :], bool(root))


def parse(text: str, *, loops: float = 1) -> Module:
    """A module from its text.

    Args:
      text: of ``compiled.as_text()``.
      loops: rounds of a loop that the program leaves open, such as decoding, which
        ends when every row has ended.

    Returns:
      the module.
    """
    computations: dict[str, Computation] = {}
    entry, own = "", None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            own = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif own is not None and (instruction := _instruction(line)):
            own[instruction.name] = instruction
    runs = dict.fromkeys(computations, 0.0)
    fused: set[str] = set()
    found = {"open": 0}

    def walk(name: str, times: float, inside: bool) -> None:
        runs[name] += times
        if inside:
            fused.add(name)
        for x in computations[name].values():
            if x.op in ("parameter", "constant"):
                continue
            branches = re.search(r"branch_computations=\{([^}]*)\}", x.text)
            called = CALLED.findall(x.text)
            called += re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
            called += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", x.text)
            rounds = 1.0
            if x.op == "while":
                known = trips(x, computations)
                found["open"] += known is None
                rounds = loops if known is None else known
            own = x.op not in ("while", "call", "conditional", "async-start")
            for other in called:
                if other in computations:
                    walk(other, times * rounds, inside or own)

    walk(entry, 1.0, False)
    return Module(computations, runs, frozenset(fused), found["open"])


def trips(loop: Instruction, computations: Mapping[str, Computation]) -> float | None:
    """How often a loop's body runs: as the compiler noted it, or from a condition that
    compares a count from zero with a constant; None where neither says it."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    if noted:
        return float(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    body = computations.get(condition[1], {}) if condition else {}
    root = next((x for x in body.values() if x.root), None)
    if root is None or root.op != "compare" or "direction=LT" not in root.text:
        return None
    for name in root.operands:
        x = body.get(name)
        # A constant's value stands where operands do; see ``_constant``.
        if x is not None and x.op == "constant" and (value := _constant(x)) is not None:
            return value
    return None


def _constant(x: Instruction) -> float | None:
    return float(x.operands[0]) if x.operands and x.operands[0].isdigit() else None


def _each(module: Module) -> Iterator[tuple[Computation, Instruction, float, bool]]:
    for name, own in module.computations.items():
        if module.runs[name]:
            for x in own.values():
                yield own, x, module.runs[name], name in module.fused


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """All communication, of each device.

    Args:
      module: the program.
      mesh: sizes of the mesh's axes, in the order of its devices.

    Returns:
      one entry an instruction.
    """
    found: list[Collective] = []
    chains: set[str] = set()
    for name, own in module.computations.items():
        for x in own.values():
            op = x.op.removesuffix("-start")
            if op not in COLLECTIVES or not module.runs[name]:
                continue
            # A TPU's gather that runs beside other work is written in each of its
            # parts, under one number.
            chain = re.search(r'chain_id="(\d+)"', x.text)
            if chain and chain[1] in chains:
                continue
            if chain:
                chains.add(chain[1])
            if name.startswith("all-reduce-scatter"):
                op = "reduce-scatter"
            axes, size = axes_of(x.text, mesh)
            if size == 1:
                continue
            payload = sum(a.bytes for a in _moved(x, own, op))
            found.append(Collective(op, axes, size, payload, module.runs[name]))
    return found


def _moved(x: Instruction, own: Computation, op: str) -> Sequence[Array]:
    given = [a for name in x.operands if name in own for a in own[name].out]
    if x.op.startswith("all-reduce") or op == "reduce-scatter":
        return given
    if x.op.endswith("-start"):
        # The operands stand first in the result.
        return x.out[len(given) : 2 * len(given)]
    return x.out


def flops(module: Module) -> float:
    """Operations of all matrix products, two for a multiplication and addition.

    Args:
      module: the program.

    Returns:
      of one device.
    """
    total = 0.0
    for own, x, runs, _ in _each(module):
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
    total = 0.0
    for own, x, runs, fused in _each(module):
        if fused or x.op in SILENT or x.op.endswith("-done"):
            continue
        total += runs * _touched(module, own, x)
    return total


def _touched(module: Module, own: Computation, x: Instruction) -> float:
    if x.op == "copy-start":
        return sum(a.hbm for a in x.out[:2])
    if x.op in READERS:
        return 2 * sum(a.hbm for a in x.out)
    if x.op == "dynamic-update-slice":
        return 2 * sum(a.hbm for a in own[x.operands[1]].out)
    called = CALLED.search(x.text)
    inside = module.computations.get(called[1]) if called else None
    if x.op != "fusion" or inside is None:
        given = sum(a.hbm for n in x.operands if n in own for a in own[n].out)
        return given + sum(a.hbm for a in x.out)
    return _read(own, x, inside) + _wrote(x, inside)


def _read(own: Computation, x: Instruction, inside: Computation) -> float:
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
        parts, whole = 0.0, sum(a.hbm for a in given.out)
        for user in users.get(y.name, []):
            first = user.operands[0] == y.name
            if first and user.op in READERS:
                parts += sum(a.bytes for a in user.out)
            elif not (first and user.op == "dynamic-update-slice"):
                parts = whole
        total += min(parts, whole)
    return total


def _wrote(x: Instruction, inside: Computation) -> float:
    root = next(y for y in inside.values() if y.root)
    parts = [root]
    if root.op == "tuple":
        parts = [inside[name] for name in root.operands]
    if len(parts) != len(x.out):
        return sum(a.hbm for a in x.out)
    total = 0.0
    for part, out in zip(parts, x.out, strict=True):
        while part.op == "bitcast" and part.operands[0] in inside:
            part = inside[part.operands[0]]
        if part.op == "dynamic-update-slice" and out.hbm:
            total += sum(a.bytes for a in inside[part.operands[1]].out)
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
    for _, x, _, fused in _each(module):
        if fused or x.op in SILENT or x.op.endswith("-done"):
            continue
        origin = re.search(r'op_name="([^"]*)"', x.text)
        for a in x.out:
            kind = f"{a.dtype}{list(a.shape)}".replace(" ", "")
            found[kind, origin[1] if origin else x.op] = a.hbm
    rows = sorted(((size, *name) for name, size in found.items()), reverse=True)
    return rows[:count]
