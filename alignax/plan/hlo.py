"""A compiled program, read from its text: how often each part runs, what it sends.

XLA's own ``cost_analysis`` counts the body of a loop once; here each instruction counts
as often as it runs. The text is the optimised module's, of one device.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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
CHAIN = re.compile(r'chain_id="(\d+)"')
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


class Array(NamedTuple):
    """One array's type."""

    dtype: str
    shape: tuple[int, ...]
    place: str
    """Its layout, which says the memory space: S(1) is on the chip, not in HBM."""

    @property
    def bytes(self) -> float:
        size = BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)
        return float(math.prod(self.shape) * size)

    @property
    def hbm(self) -> float:
        """Bytes, if they lie in the device's main memory."""
        return 0.0 if re.search(r"S\([1-9]", self.place) else self.bytes


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


def _end(text: str, letter: str, depth: int) -> int:
    """Where a letter stands first outside of all brackets; ``depth`` are open before
    the text, and the last one's end counts as outside."""
    for i, found in enumerate(text):
        depth += (found in "([{") - (found in ")]}")
        if found == letter and depth == 0:
            return i
    return len(text)


def _instruction(line: str) -> Instruction | None:
    found = LINE.match(line)
    if found is None:
        return None
    root, name, rest = found.groups()
    end = _end(rest, " ", 0)
    kind, rest = rest[:end], rest[end + 1 :]
    op, _, rest = rest.partition("(")
    end = _end(rest, ")", 1)
    inside = re.sub(r"\{[^}]*\}", "", rest[:end])
    inside = re.sub(r"/\*.*?\*/", "", inside)
    operands = re.findall(r"%([\w.\-]+)", inside)
    if op in ("parameter", "constant"):
        operands = [inside]
    kept = tuple(operands)
    return Instruction(name, op, arrays(kind), kept, rest[end + 1 :], bool(root))


def parse(text: str, *, loops: int = 1) -> Module:
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
                known = trips(x, computations[name], computations)
                found["open"] += known is None
                rounds = float(loops) if known is None else known
            own = x.op not in ("while", "call", "conditional", "async-start")
            for other in called:
                if other in computations:
                    walk(other, times * rounds, inside or own)

    walk(entry, 1.0, False)
    return Module(computations, runs, frozenset(fused), found["open"])


def trips(
    loop: Instruction, own: Computation, computations: Mapping[str, Computation]
) -> float | None:
    """How often a loop's body runs: as the compiler noted it, or from a condition that
    compares a count with a constant, and the count's own start and step; None where
    neither says it.

    Args:
      loop: the instruction.
      own: the computation that it is in.
      computations: all, for its condition and its body.

    Returns:
      the rounds.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    if noted:
        return float(noted[1])
    condition, body = (
        computations.get(found[1], {})
        for found in (
            re.search(rf"{word}=%?([\w.\-]+)", loop.text) or ("", "")
            for word in ("condition", "body")
        )
    )
    root = next((x for x in condition.values() if x.root), None)
    if root is None or root.op != "compare" or "direction=LT" not in root.text:
        return None
    count, limit = (_source(condition, name) for name in root.operands)
    end = _constant(limit)
    place = re.search(r"index=(\d+)", count.text) if count else None
    last = next((x for x in body.values() if x.root), None)
    if end is None or place is None or last is None or last.op != "tuple":
        return None
    place = int(place[1])
    more = _source(body, last.operands[place])
    if more is None or more.op != "add":
        return None
    steps = [_constant(_source(body, name)) for name in more.operands]
    step = next((x for x in steps if x), None)
    if step is None:
        return None
    # A start that another computation hands down is a scan's zero.
    given = _source(own, loop.operands[0])
    start = None
    if given is not None and given.op == "tuple":
        start = _constant(_source(own, given.operands[place]))
    return float(math.ceil((end - (start or 0)) / step))


def _source(own: Computation, name: str) -> Instruction | None:
    """What a value is a copy of."""
    x = own.get(name)
    while x is not None and x.op in ("copy", "bitcast") and x.operands[0] in own:
        x = own[x.operands[0]]
    return x


def _constant(x: Instruction | None) -> int | None:
    if x is None or x.op != "constant" or not x.operands:
        return None
    return int(x.operands[0]) if x.operands[0].lstrip("-").isdigit() else None


def each(module: Module) -> Iterator[tuple[Computation, Instruction, float, bool]]:
    """The instructions that run: with their computation, how often, and whether they
    are part of a kernel."""
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
            chain = CHAIN.search(x.text)
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
