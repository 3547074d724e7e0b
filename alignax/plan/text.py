"""A plan as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignax.plan.hardware import GIB

MEMORY = ("arguments", "temporaries", "outputs", "code", "total")
# Collectives and arrays that are listed of each program.
MOST = 6


def gib(size: float) -> str:
    """Bytes in GiB, in MiB where they are fewer, or as they are."""
    if abs(size) >= GIB / 10:
        return f"{size / GIB:.2f} GiB"
    if abs(size) >= 2**20 / 10:
        return f"{size / 2**20:.2f} MiB"
    return f"{size:.0f} bytes"


def seconds(time: float) -> str:
    """A time, in ms where it is short."""
    return f"{time:.2f} s" if time >= 1 else f"{1000 * time:.3g} ms"


def shape(mesh: Mapping[str, int]) -> str:
    """A mesh in a line."""
    return " × ".join(f"{name} {size}" for name, size in mesh.items())


def written(found: Mapping[str, Any]) -> str:
    """A plan in lines.

    Args:
      found: of ``report.plan``.

    Returns:
      the text.
    """
    room = found["hbm"]
    lines = [
        f"{found['devices']} devices of {found['topology']}, {gib(room)} each; mesh "
        f"{shape(found['mesh'])}",
        "state on each device: "
        + ", ".join(f"{k} {gib(v)}" for k, v in found["state"].items() if v),
        "",
    ]
    for name, row in found["programs"].items():
        lines += [*_program(name, row, room), ""]
    if "iteration" in found:
        lines += [_times("an iteration (sample, step; no host)", found["iteration"])]
    lines += [f"note: {note}" for note in found["notes"]]
    verdict = "it fits" if found["fits"] else "it does not fit"
    lines += [f"{verdict} in {gib(room)} a device"]
    lines += [f"would help: {line}" for line in found.get("advice", ())]
    return "\n".join(lines)


def _program(name: str, row: Mapping[str, Any], room: float) -> list[str]:
    titles = {
        "sample": "sample: completions of all prompts, scored by policy and reference",
        "decode": "  of which one token of all rows",
        "step": "step: the update",
    }
    lines = [titles[name]]
    if "memory" in row:
        memory = row["memory"]
        each = ", ".join(f"{k} {gib(memory[k])}" for k in MEMORY if k in memory)
        over = "" if row["fits"] else f"; {gib(memory['total'] - room)} too much"
        lines.append(f"  memory: {each}{over}")
    if "refused" in row:
        said = row["refused"].partition(" See ")[0]
        return [*lines, f"  the compiler: {said}", *_large(row, "expected")]
    lines.append(
        f"  work: {row['flops'] / 1e12:.4g} TFLOP in products, {gib(row['traffic'])} "
        "of memory traffic"
    )
    for x in row["collectives"][:MOST]:
        lines.append(
            f"  {x['op']} over {x['axes']}: {gib(x['payload'])} in {x['calls']:.0f} "
            f"calls, {gib(x['received'])} received"
        )
    lines.append(_times("  time", row["times"]))
    if not row.get("fits", True):
        lines += _large(row, "large")
    return lines


def _large(row: Mapping[str, Any], word: str) -> list[str]:
    return [
        f"  {word}: {gib(x['bytes'])} {x['type']} of {x['from']}"
        for x in row["largest"]
    ]


def _times(name: str, row: Mapping[str, Any]) -> str:
    return (
        f"{name}: {seconds(row['least'])} to {seconds(row['most'])}, bound by "
        f"{row['bound']} (compute {seconds(row['compute'])}, memory "
        f"{seconds(row['memory'])}, network {seconds(row['network'])})"
    )


def ranking(plans: Sequence[Mapping[str, Any]]) -> str:
    """Plans of several meshes in a table, in the order given.

    Args:
      plans: of ``report.plan``.

    Returns:
      the text.
    """
    lines = [f"{'mesh':32} {'fits':5} {'sample':>10} {'step':>10} {'iteration':>20}"]
    for found in plans:
        totals = [
            gib(found["programs"][name]["memory"]["total"])
            for name in ("sample", "step")
        ]
        fits, time = "yes" if found["fits"] else "no", ""
        if "iteration" in found:
            row = found["iteration"]
            time = f"{seconds(row['least'])} to {seconds(row['most'])}"
        lines.append(
            f"{shape(found['mesh']):32} {fits:5} {totals[0]:>10} {totals[1]:>10} "
            f"{time:>20}"
        )
    return "\n".join(lines)
