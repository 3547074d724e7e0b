"""Options that runs share, in groups; the defaults suit pretrained weights."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import jax
from tyro.conf import arg

from alignax.models.lora import TARGETS, LoRA
from alignax.pipeline import hosts, sharding
from alignax.types import InputError

Dtype = Literal["float32", "bfloat16"]
Flat = arg(name="")
"""Marks a group whose options stand among those of the run, without its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Low-rank adapters, trained in place of the model's parameters."""

    rank: int = 0
    """Rank of the adapters; 0 trains all parameters. 8 to 64 are usual."""
    alpha: float | None = None
    """The adapters' product counts alpha / rank times; by default twice the rank."""
    targets: tuple[str, ...] = TARGETS
    """The linear maps that are adapted."""
    stabilised: bool = False
    """Divide alpha by the root of the rank instead (rsLoRA)."""

    def __post_init__(self):
        if self.rank < 0:
            raise InputError(f"lora.rank must not be negative, got {self.rank}")
        if self.rank:
            self.lora()

    def lora(self) -> LoRA | None:
        """What the model adapts; None for all parameters."""
        if not self.rank:
            return None
        return LoRA(
            rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            targets=self.targets,
            stabilised=self.stabilised,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The devices and processes that a run is spread over; the numbers do not depend
    on them."""

    replica: int = 1
    """Copies of the model, which batches are split over."""
    fsdp: int = 1
    """Devices that batches are split over, and the parameters with them (fully sharded
    data parallelism); -1 takes all that are left."""
    tensor: int = 1
    """Devices that each matrix is split over: heads, hidden units, vocabulary."""
    coordinator: str | None = None
    """Of several processes, HOST:PORT of the first; or auto, where Slurm, a TPU pod,
    GKE or Open MPI says it. Every process runs the same command."""
    processes: int | None = None
    """How many processes there are; auto knows it."""
    process: int | None = None
    """The number of this process, from 0; auto knows it."""

    timeout: float = 1800.0
    """Seconds that processes wait for one another, beyond which each says for whom and
    ends; 0 for no end. A compilation counts, and so does a reward."""

    def __post_init__(self):
        if not 0 <= self.timeout < math.inf:
            raise InputError(
                f"mesh.timeout must be finite and not negative, got {self.timeout}"
            )
        for name in ("replica", "fsdp", "tensor"):
            size = getattr(self, name)
            if size < 1 and not (name == "fsdp" and size == -1):
                raise InputError(f"mesh.{name} must be at least 1, got {size}")

    def join(self) -> None:
        """Join the run's other processes, where there are some."""
        if self.coordinator is not None:
            hosts.initialize(
                self.coordinator, processes=self.processes, process=self.process
            )

    def make(self) -> jax.sharding.Mesh | None:
        """The mesh; None for the first device alone."""
        if self.replica == self.fsdp == self.tensor == 1 == jax.process_count():
            return None
        return sharding.make_mesh(
            replica=self.replica, fsdp=self.fsdp, tensor=self.tensor
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The model that a run begins from."""

    folder: Annotated[Path, arg(name="model")]
    """The local folder of a model: Hugging Face's, a PEFT adapter's, or of a run."""
    lora: Adapters = Adapters()
    mesh: Mesh = Mesh()
    dtype: Dtype = "float32"
    """Of the computation. bfloat16 halves the memory of activations, and rounds: the
    sampler's probabilities are then not quite the trainer's."""
    param_dtype: Dtype = "float32"
    """Of the parameters. Small learning rates are lost in bfloat16; with adapters it
    is the frozen base alone that has it."""
    attention: Literal["xla", "cudnn"] = "xla"
    """What computes attention. cudnn needs an NVIDIA GPU and --dtype bfloat16; its
    memory does not grow with the square of the length, but every row encodes its own
    prompt."""
    remat: Literal["auto", "none", "products", "block"] = "auto"
    """What the reverse pass computes again to save memory: nothing, all but matrix
    products, or all but each block's input (gradient checkpointing); auto takes the
    last where the activations of a microbatch would fill a third of the memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run learns from, and what it is measured on."""

    source: Annotated[str, arg(name="data")]
    """FILE.jsonl, FILE.parquet or a pattern, tfds:NAME,split=train,data_dir=FOLDER,
    reasoning_gym:NAME,size=500, or reviews."""
    fields: tuple[str, ...] = ()
    """The set's own names of fields, such as prompt=question completion=answer."""
    held_out: float = 0.1
    """Share of the prompts that is kept from training to measure on; from 1 on their
    number; 0 measures nothing."""
    held_out_data: str | None = None
    """Another set to measure on; its prompts are left out of the training."""
    chat: bool | None = None
    """Put texts through the model's chat template, a prompt as the user's turn; by
    default where the model has one. Messages always go through it."""
    system: str | None = None
    """A system message before each prompt; needs a chat template."""
    drop_bad: bool = False
    """Leave bad records out, and say how many, where the first would end the run."""
    percentile: float = 99.0
    """Lengths that are not given hold this share of the data, in percent; the rest is
    left out."""

    def __post_init__(self):
        self.renamed()
        if not self.held_out >= 0 or (self.held_out > 1 and self.held_out % 1):
            raise InputError(
                "held_out must be a share below 1 or a whole number, got "
                f"{self.held_out}"
            )
        if not 0 < self.percentile <= 100:
            raise InputError(
                f"percentile must be above 0 and up to 100, got {self.percentile}"
            )

    def renamed(self) -> dict[str, str]:
        """The set's own name of each field that has another one here."""
        pairs = [text.partition("=") for text in self.fields]
        bad = [text for text in self.fields if not all(text.partition("="))]
        if bad:
            raise InputError(
                f"fields must be pairs such as prompt=question, got {bad[0]!r}"
            )
        return {field: own for field, _, own in pairs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where a run writes, and how often."""

    out: Path = Path("runs/train")
    """The folder of all that is written."""
    resume: bool = False
    """Go on with the run in the folder, as if it had never been stopped."""
    evaluate_every: int = 20
    """Steps between measurements on what is held out; the start and the end are
    measured always. 0 for these alone."""
    evaluate_prompts: int = 64
    """Held-out records that are measured on, at the most."""
    save_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Of the order of the data, the samples, and fresh parameters."""

    def __post_init__(self):
        least = {"evaluate_every": 0, "evaluate_prompts": 1, "save_every": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name} must be at least {bound}, got {getattr(self, name)}"
                )
