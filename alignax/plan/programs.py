"""The programs of a run, compiled for devices that need not be there."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignax import algorithms
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.models.lora import LoRA
from alignax.pipeline import data
from alignax.plan import hlo, work
from alignax.plan.hardware import GIB
from alignax.train import assembly
from alignax.train import policy as policies
from alignax.train.options import RL
from alignax.types import Prompts


class Lowered(NamedTuple):
    """A run's two programs before their compilation, and what they are given."""

    sample: Any
    """Prompts to completions, with the scores of the policy and of the reference."""
    step: Any
    """Those, rewarded, to the next state."""
    state: Mapping[str, float]
    """Bytes of the state's parts on a device, and of the frozen base."""


class Compiled(NamedTuple):
    """One program on one device, in bytes and operations."""

    memory: Mapping[str, float]
    """``arguments``, ``temporaries``, ``outputs`` that take no argument's place,
    ``code`` and their ``total``; of a program that its compiler refused the total
    alone."""
    refused: str | None
    """What the compiler said, where the program does not fit."""
    module: str
    """Text of the optimised program; empty of one that was refused."""
    xla_flops: float
    """XLA's own count, in which the body of a loop counts once."""


def lowered(
    config: DecoderConfig,
    rl: RL,
    mesh: Mesh,
    *,
    prompt_length: int,
    max_tokens: int,
    adapters: LoRA | None = None,
    remat: str = "block",
) -> Lowered:
    """The sampler and the step of a policy-gradient run, as ``alignax train rl``
    compiles them, from shapes alone.

    Args:
      config: the architecture.
      rl: the options.
      mesh: of ``sharding.make_mesh``, of any devices.
      prompt_length: tokens of a prompt.
      max_tokens: of a completion.
      adapters: train these in place of the parameters.
      remat: what the reverse pass computes again, as in ``functional.make_hidden``;
        the layers are a loop.

    Returns:
      the programs.

    Raises:
      InputError: the method needs what only a task can give, or lengths do not fit.
    """
    shapes = functional.shapes(config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    key = jax.eval_shape(lambda: jax.random.key(0))

    # A program asks nothing of it but which tokens end and fill a row.
    tokenizer = data.Tokenizer(
        encode=lambda text: [],
        decode=lambda tokens: "",
        vocab_size=config.vocab_size,
        eos_id=1,
        pad_id=0,
    )

    def made(params: Any, key: Any) -> Any:
        policy = policies.make(config, params, tokenizer, adapters=adapters, key=key)
        return policy.params, policy.base

    params, base = jax.eval_shape(made, shapes, key)
    fns = functional.make_apply(config), functional.make_hidden(config)
    policy = policies.Policy(
        config, params, *fns, tokenizer, base=base, lora=adapters, whole_fns=fns
    )
    policy = policies.on_mesh(policy, mesh)
    hidden_fn = functional.make_hidden(config, remat=remat, scan=True)
    policy = policies.with_functions(policy, fns[0], hidden_fn)
    parts: Any = assembly.of_policy(rl, policy, max_tokens=max_tokens)

    count = (rl.prompts, prompt_length)
    prompts = Prompts(
        tokens=jax.ShapeDtypeStruct(count, jnp.int32),
        mask=jax.ShapeDtypeStruct(count, jnp.bool_),
        index=jax.ShapeDtypeStruct(count[:1], jnp.int32),
    )

    def init(params: Any, key: Any, prompts: Any) -> Any:
        return parts.init(params, key, records=rl.prompts, prompts=prompts)

    state = jax.eval_shape(init, policy.params, key, prompts)
    state = policies.placed(policy, state)
    sample = parts.sample.lower(state, prompts)
    shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    samples = jax.tree.map(shaped, sample.out_info)
    fields = {}
    groups = (rl.prompts, rl.completions)
    if "right" in algorithms.needs(parts.algorithm):
        fields["right"] = jax.ShapeDtypeStruct(groups, jnp.bool_)
    scored = jax.eval_shape(
        lambda samples, fields: samples.rewarded(
            jnp.zeros(rl.prompts * rl.completions), **fields
        ),
        samples,
        fields,
    )
    held = {
        "parameters": state.params,
        "optimiser": state.opt_state,
        "reference": state.reference,
        "critic": state.critic,
        "memory": state.memory,
        "frozen base": policy.base,
    }
    sizes = {name: device_bytes(tree) for name, tree in held.items()}
    return Lowered(sample, parts.step.lower(state, scored), sizes)


def device_bytes(tree: Any) -> float:
    """Bytes of arrays on each device, by the shards of their shardings.

    Args:
      tree: of ``jax.ShapeDtypeStruct`` with shardings.

    Returns:
      their sum, rounding to the device's tiles left out.
    """
    total = 0.0
    for x in jax.tree.leaves(tree):
        shape, size = x.sharding.shard_shape(x.shape), x.dtype.itemsize
        total += size * math.prod(shape)
    return total


def compiled(program: Any) -> Compiled:
    """Compile a program and ask what it takes.

    Args:
      program: of ``lowered``.

    Returns:
      its memory and its text; where the compiler says that it does not fit, what it
      said.
    """
    try:
        done = program.compile()
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        return Compiled({"total": refused_bytes(text)}, text, "", 0.0)
    found = done.memory_analysis()
    memory = {
        "arguments": float(found.argument_size_in_bytes),
        "temporaries": float(found.temp_size_in_bytes),
        "outputs": float(found.output_size_in_bytes - found.alias_size_in_bytes),
        "code": float(found.generated_code_size_in_bytes),
    }
    memory["total"] = sum(memory.values())
    cost = done.cost_analysis() or {}
    return Compiled(memory, None, done.as_text(), float(cost.get("flops", 0.0)))


def refused_bytes(text: str) -> float:
    """What a program would have taken, from the compiler's refusal.

    Args:
      text: its message.

    Returns:
      bytes; 0 where it names none.
    """
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", text)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", text)
    if found is None:
        return 0.0
    return float(found[1]) * {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]]


class Cost(NamedTuple):
    """What a device does in one run of a program."""

    flops: float
    traffic: float
    """Bytes from and to its memory."""
    collectives: tuple[hlo.Collective, ...]

    def less(self, other: "Cost") -> "Cost":
        """What this does more than another reading of the same program."""
        pairs = zip(self.collectives, other.collectives, strict=True)
        moved = tuple(a._replace(runs=a.runs - b.runs) for a, b in pairs)
        return Cost(
            self.flops - other.flops,
            self.traffic - other.traffic,
            tuple(x for x in moved if x.runs),
        )


def cost_of(text: str, mesh: Mapping[str, int], *, loops: int = 1) -> Cost:
    """A program's work on each device.

    Args:
      text: of the optimised program.
      mesh: sizes of the mesh's axes.
      loops: rounds of the loops that the program leaves open: the tokens decoded.

    Returns:
      the work.
    """
    module = hlo.parse(text, loops=loops)
    moved = tuple(hlo.collectives(module, mesh))
    return Cost(work.flops(module), work.traffic(module), moved)
