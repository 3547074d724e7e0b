"""A plan: what a run needs of each device, how long a step takes, what would help."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from alignax.models.config import DTYPES, DecoderConfig
from alignax.models.lora import LoRA
from alignax.pipeline import sharding
from alignax.plan import hlo, programs, roofline, work
from alignax.plan.hardware import GIB, Topology
from alignax.plan.programs import Compiled, Lowered
from alignax.plan.roofline import Times
from alignax.train.options import RL
from alignax.types import InputError

PARTS = ("sample", "step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is planned."""

    config: DecoderConfig
    rl: RL
    prompt_length: int
    max_tokens: int
    adapters: LoRA | None = None
    remat: str = "block"


def plan(
    run: Run,
    topology: Topology,
    mesh: Mesh,
    *,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Compile a run for a topology and add up what it takes.

    Args:
      run: the run.
      topology: the devices.
      mesh: of them.
      tell: is told what is being compiled, which may take minutes.

    Returns:
      plain data: ``fits``, ``mesh``, ``state`` (bytes a device), and of ``sample``,
      ``decode`` (one token of all rows) and ``step`` their memory, work and times; the
      times of an iteration where both programs compile; ``notes`` and ``advice``.

    Raises:
      InputError: as ``programs.lowered``.
    """
    lowered = programs.lowered(
        run.config,
        run.rl,
        mesh,
        prompt_length=run.prompt_length,
        max_tokens=run.max_tokens,
        adapters=run.adapters,
        remat=run.remat,
    )
    sizes, chip = dict(mesh.shape), topology.chip
    found: dict[str, Any] = {
        "topology": topology.name,
        "devices": math.prod(sizes.values()),
        "mesh": sizes,
        "hbm": float(chip.hbm),
        "state": dict(lowered.state),
        "programs": {},
        "notes": notes(run, topology, sizes),
    }
    spent: dict[str, Times] = {}
    for name in PARTS:
        tell(f"compiling {name} for {topology.name}")
        made = programs.compiled(getattr(lowered, name))
        row, more = _measured(made, run, topology, sizes, open_=name == "sample")
        if made.refused is not None:
            row["largest"] = expected(run, lowered, sizes, name)
        found["programs"] |= {name: row, **({"decode": more} if more else {})}
        if "times" in row:
            spent[name] = Times(*(row["times"][x] for x in Times._fields))
    found["fits"] = all(found["programs"][name]["fits"] for name in PARTS)
    if len(spent) == len(PARTS):
        found["iteration"] = _said(spent["sample"].plus(spent["step"]))
    if not found["fits"]:
        found["advice"] = advice(run, lowered, found)
    return found


def _measured(
    made: Compiled,
    run: Run,
    topology: Topology,
    mesh: Mapping[str, int],
    *,
    open_: bool,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A program's row, and that of one round of the loop that it leaves open."""
    room = topology.chip.hbm
    row: dict[str, Any] = {
        "memory": dict(made.memory),
        "fits": made.refused is None and made.memory["total"] <= room,
    }
    if made.refused is not None:
        row["refused"] = made.refused
        return row, None
    rounds = max(run.max_tokens - 1, 1) if open_ else 1
    cost = programs.cost_of(made.module, mesh, loops=rounds)
    row |= _work(cost, topology, mesh)
    row["xla_flops"] = made.xla_flops
    large = work.largest(hlo.parse(made.module))
    row["largest"] = [{"bytes": a, "type": b, "from": c} for a, b, c in large]
    if not open_ or not hlo.parse(made.module).open_loops:
        return row, None
    one = programs.cost_of(made.module, mesh, loops=1)
    decode = programs.cost_of(made.module, mesh, loops=2).less(one)
    return row, _work(decode, topology, mesh)


def _work(cost, topology: Topology, mesh: Mapping[str, int]) -> dict[str, Any]:
    moved = roofline.by_axis(cost)
    return {
        "flops": cost.flops,
        "traffic": cost.traffic,
        "collectives": [
            {"op": op, "axes": axes, **row} for (op, axes), row in moved.items()
        ],
        "times": _said(roofline.times(cost, topology.chip, mesh)),
    }


def _said(times: Times) -> dict[str, Any]:
    more = {"least": times.least, "most": times.most, "bound": times.bound}
    return times._asdict() | more


def expected(
    run: Run, lowered: Lowered, mesh: Mapping[str, int], name: str
) -> list[dict[str, Any]]:
    """The largest arrays on a device of a program that the compiler refused, by the
    formulas of the layers.

    Args:
      run: the run.
      lowered: its programs, for the sizes of its state.
      mesh: sizes of the mesh's axes.
      name: of the program, sample or step.

    Returns:
      bytes, type and what it is, the largest first.
    """
    config, size = run.config, DTYPES[run.config.dtype].dtype.itemsize
    ways = math.prod(mesh[axis] for axis in sharding.ROWS)
    parts = run.rl.microbatches if name == "step" else 1
    groups = run.rl.prompts // parts
    rows = groups // ways if groups % ways == 0 else groups
    rows, length = rows * run.rl.completions, max(run.max_tokens - 1, 1)
    heads, keys = config.num_heads, config.num_kv_heads
    if keys % mesh["tensor"] == 0:
        heads, keys = heads // mesh["tensor"], keys // mesh["tensor"]
    word = {2: "bf16", 4: "f32"}[size]
    every: list[tuple[str, tuple[int, ...], int, str]] = [
        ("f32", (rows, heads, length, length), 4, "attention's scores of one layer"),
    ]
    if name == "sample":
        cache = (2 * config.num_layers, rows, keys, length, config.head_dim)
        every.append((word, cache, size, "the completions' cache"))
    elif run.remat == "block":
        inputs = (config.num_layers, rows, length, config.hidden_size)
        every.append((word, inputs, size, "each block's input, for the reverse pass"))
    found = [
        {"bytes": float(math.prod(s) * n), "type": f"{w}{list(s)}", "from": what}
        for w, s, n, what in every
    ]
    if name == "step":
        wide = 4 / DTYPES[config.param_dtype].dtype.itemsize
        held = lowered.state["parameters"] * wide
        found.append({"bytes": held, "type": "f32", "from": "the gradient"})
    return sorted(found, key=lambda x: -x["bytes"])


def notes(run: Run, topology: Topology, mesh: Mapping[str, int]) -> list[str]:
    """What is to be known of a plan before it is believed.

    Args:
      run: the run.
      topology: the devices.
      mesh: sizes of the mesh's axes.

    Returns:
      sentences.
    """
    said = []
    ways = math.prod(mesh[axis] for axis in sharding.ROWS)
    groups = run.rl.prompts // run.rl.microbatches
    if groups % ways:
        said.append(
            f"the {groups} prompts of a microbatch do not split over {ways} devices "
            "(replica × fsdp): rows are held and computed more than once; more prompts "
            "or fewer microbatches would mend that"
        )
    for name in ("num_heads", "num_kv_heads", "mlp_size", "vocab_size"):
        size = getattr(run.config, name)
        if size % mesh["tensor"]:
            said.append(
                f"tensor = {mesh['tensor']} does not divide {name} = {size}: heads are "
                "cut, or those matrices stay whole"
            )
    if topology.virtual:
        said.append(
            "compiled for the processor's virtual devices: the sharding is the same, "
            "memory and fusions are the processor's (it widens bfloat16 products to "
            "float32 and makes no reduce-scatter), so temporaries and traffic are too "
            "large"
        )
    return said


def advice(run: Run, lowered: Lowered, found: Mapping[str, Any]) -> list[str]:
    """Changes that would help a run that does not fit.

    Args:
      run: the run.
      lowered: its programs, for the sizes of its state.
      found: the plan so far.

    Returns:
      sentences, the most likely first.
    """
    mesh, room = found["mesh"], found["hbm"]
    state, said = sum(lowered.state.values()), []
    bad = [name for name in PARTS if not found["programs"][name]["fits"]]
    if state > 0.8 * room:
        said.append(
            f"the state alone takes {state / GIB:.1f} of {room / GIB:.1f} GiB a device"
        )
        if mesh["replica"] > 1:
            said.append(
                f"--mesh.fsdp {mesh['fsdp'] * mesh['replica']} --mesh.replica 1: "
                "replicas hold the whole state each"
            )
        if run.adapters is None:
            held = lowered.state["parameters"] + lowered.state["optimiser"]
            said.append(
                "--lora.rank 32 leaves one copy of the parameters of the state: "
                f"{held / GIB:.1f} GiB a device less, or more"
            )
        if run.config.param_dtype == "float32":
            said.append("--param-dtype bfloat16 halves it, and rounds small updates")
        need = math.ceil(state / (0.6 * room)) * found["devices"]
        said.append(f"or about {need} such devices, split by fsdp")
        return said
    ways = math.prod(mesh[axis] for axis in sharding.ROWS)
    if "step" in bad:
        more = 2 * run.rl.microbatches
        if run.rl.prompts % (more * ways) == 0:
            said.append(f"step: --microbatches {more} halves its activations")
        if run.remat != "block":
            said.append("step: --remat block keeps only each block's input")
        if run.rl.prompts % (more * ways) and mesh["fsdp"] > 1:
            said.append(
                f"step: a larger --mesh.tensor, such as {2 * mesh['tensor']} with fsdp "
                f"{mesh['fsdp'] // 2}: microbatches are one prompt a device already"
            )
    if "sample" in bad:
        rows = run.rl.prompts * run.rl.completions
        slots = run.rl.slots or rows
        said.append(
            f"sample: --slots {slots // 2} decodes half as many rows at a time, and "
            "halves their caches"
        )
        said.append("sample: fewer prompts, or a shorter --max-tokens")
    return said


def meshes(run: Run, topology: Topology) -> list[dict[str, int]]:
    """The shapes of a mesh that are worth a try on all devices of a topology.

    Args:
      run: the run.
      topology: the devices.

    Returns:
      sizes of ``replica``, ``fsdp`` and ``tensor``: tensor divides the heads of keys,
      and the rows' devices divide the prompts of a microbatch.

    Raises:
      InputError: there are none.
    """
    count, groups = len(topology.devices), run.rl.prompts // run.rl.microbatches
    found = []
    for tensor in range(1, count + 1):
        if count % tensor or run.config.num_kv_heads % tensor:
            continue
        ways = count // tensor
        if groups % ways:
            continue
        for replica in (1, 2, 4):
            if ways % replica == 0 and replica < ways:
                found.append(
                    {"replica": replica, "fsdp": ways // replica, "tensor": tensor}
                )
    if not found:
        raise InputError(
            f"search: no mesh of {count} devices splits the {groups} prompts of a "
            f"microbatch and the {run.config.num_kv_heads} heads of keys; more prompts "
            "would do"
        )
    return found
