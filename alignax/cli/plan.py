"""Plan a policy-gradient run for devices that are not there: memory, work and time.

  alignax plan --model Qwen3-8B --topology v5e:16x16 --mesh.tensor 4 --prompts 256
  alignax plan --model FOLDER --topology h100:8 --search

Compiles what `alignax train rl` would run with the same options, from shapes alone; no
weights are needed. TPUs need `pip install 'alignax[plan]'`. The exit code is 1 where
the run does not fit. docs/scaling.md has plans, and what they do not know.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from alignax.pipeline import sharding
from alignax.plan import hardware, models, report, text
from alignax.plan.hardware import GIB
from alignax.train.options import RL
from alignax.train.runs.options import Adapters, Dtype, Flat
from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The mesh that the devices are laid out in."""

    replica: int = 1
    """Copies of the model, which batches are split over."""
    fsdp: int = -1
    """Devices that batches and parameters are split over; -1 takes all that are
    left."""
    tensor: int = 1
    """Devices that each matrix is split over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run and the devices that it is planned for."""

    model: str
    """A local folder with a config.json, or a public model's shape: SmolLM2-135M,
    Qwen2.5-0.5B, Qwen3-8B, Llama-3.1-70B."""
    topology: str
    """v5e:16x16, v5p:4x4x4 or v6e:8x8 by the TPU compiler; h100:8, h100:2x8 (hosts and
    their GPUs) or cpu:8 on the processor's virtual devices."""
    mesh: Shape = Shape()
    lora: Adapters = Adapters()
    dtype: Dtype = "bfloat16"
    """Of the computation."""
    param_dtype: Dtype = "float32"
    """Of the parameters."""
    remat: Literal["none", "products", "block"] = "block"
    """What the reverse pass computes again; the layers are a loop always."""
    prompt_length: int = 512
    """Tokens of the longest prompt."""
    max_tokens: int = 1024
    """Tokens of the longest completion; all are counted as that long."""
    hbm: float | None = None
    """GiB of a device that the run may fill; by default all that it has."""
    search: bool = False
    """Try the meshes that split the prompts and the heads, and rank them."""
    json: Path | None = None
    """A file for the plan, or the list of plans of a search, as JSON."""
    rl: Annotated[RL, Flat] = RL(
        method="grpo",
        prompts=64,
        completions=8,
        microbatches=4,
        learning_rate=2e-6,
        warmup=None,
    )

    def __post_init__(self):
        hardware.parsed(self.topology)
        for name in ("prompt_length", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.hbm is not None and not self.hbm > 0:
            raise InputError(f"hbm must be positive, got {self.hbm}")


def main(config: Config) -> None:
    """Print the plan, and exit with 1 where the run does not fit.

    Args:
      config: the options.

    Raises:
      InputError: the model or the topology is unknown, or the mesh does not fit it.
      SystemExit: the run does not fit.
    """
    run = report.Run(
        config=models.shape_of(
            config.model, param_dtype=config.param_dtype, dtype=config.dtype
        ),
        rl=config.rl,
        prompt_length=config.prompt_length,
        max_tokens=config.max_tokens,
        adapters=config.lora.lora(),
        remat=config.remat,
    )
    # Of the machine's own accelerator nothing is asked.
    jax.config.update("jax_platforms", "cpu")
    topology = hardware.topology(config.topology)
    if config.hbm is not None:
        chip = topology.chip._replace(hbm=config.hbm * GIB)
        topology = topology._replace(chip=chip)
    plans = searched(run, topology) if config.search else [one(config, run, topology)]
    if config.search:
        print(text.ranking(plans), end="\n\n")
    print(text.written(plans[0]))
    if config.json is not None:
        kept = plans if config.search else plans[0]
        config.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if not plans[0]["fits"]:
        sys.exit(1)


def one(config: Config, run: report.Run, topology: hardware.Topology) -> dict[str, Any]:
    """The plan of the mesh that is asked for.

    Args:
      config: the options.
      run: of them.
      topology: likewise.

    Returns:
      as ``report.plan``.
    """
    mesh = config.mesh
    sizes = {"replica": mesh.replica, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    made = sharding.make_mesh(**sizes, devices=topology.devices)
    return report.plan(run, topology, made, tell=_tell)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def searched(run: report.Run, topology: hardware.Topology) -> list[dict[str, Any]]:
    """Plans of all meshes that are worth a try.

    Args:
      run: the run.
      topology: the devices.

    Returns:
      those that fit first, the shortest iteration before the others.
    """
    plans = []
    for sizes in report.meshes(run, topology):
        _tell(f"trying {text.shape(sizes)}")
        made = sharding.make_mesh(**sizes, devices=topology.devices)
        plans.append(report.plan(run, topology, made, tell=_tell))

    def order(found):
        worst = max(x["memory"]["total"] for x in _each(found))
        time = found["iteration"]["least"] if "iteration" in found else float("inf")
        return not found["fits"], time, worst

    return sorted(plans, key=order)


def _each(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [found["programs"][name] for name in report.PARTS]
