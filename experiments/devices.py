"""One GRPO update on many devices, spelled three ways, against one device.

    python -m experiments.devices

A group's completions lie on one device. ``jax.jit`` is told where the rows lie and
splits the program itself; ``jax.shard_map`` and ``jax.pmap`` run the function of a
device's own rows, which adds up numerators and denominators over them (``psum``) before
it divides: a mean of the devices' means would be wrong where their tokens are not
equally many.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alignax import advantages, cli, estimators, logprobs, reduce, surrogates
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.types import InputError

MODEL = DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=32,
    max_length=16,
)
CLIP, BETA = 0.2, 0.05
Batch = Mapping[str, jax.Array]
Fractions = tuple[reduce.Fraction, reduce.Fraction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How many devices, and rows."""

    devices: int = 8
    """Devices of the host; of a CPU as many are made as are asked for."""
    groups: int = 16
    """Prompts, a multiple of the devices."""
    completions: int = 4
    """Completions of each."""
    tokens: int = 12
    """Tokens of the longest completion."""

    def __post_init__(self):
        if self.devices < 1 or self.groups % self.devices:
            raise InputError(
                f"groups must be a multiple of the {self.devices} devices, got "
                f"{self.groups}"
            )


def batch_of(config: Config) -> dict[str, jax.Array]:
    """Completions of all lengths, their rewards, and who drew them."""
    rng = np.random.default_rng(0)
    rows = config.groups * config.completions
    tokens = rng.integers(0, MODEL.vocab_size, (rows, config.tokens))
    lengths = rng.integers(1, config.tokens + 1, rows)
    logps = rng.normal(-3.4, 0.3, (2, rows, config.tokens))
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "mask": jnp.arange(config.tokens)[None] < jnp.asarray(lengths)[:, None],
        "logp_old": jnp.asarray(logps[0], jnp.float32),
        "logp_ref": jnp.asarray(logps[1], jnp.float32),
        "rewards": jnp.asarray(rng.random(rows), jnp.float32),
    }


def fractions(params: Any, batch: Batch, *, completions: int) -> Fractions:
    """GRPO's policy term and its k3, of these rows: numerators and denominators."""
    mask = batch["mask"]
    inputs = jnp.pad(batch["tokens"], ((0, 0), (1, 0)))[:, :-1]
    logits = functional.make_apply(MODEL)(params, inputs).logits
    logp = logprobs.token_logp(logits, batch["tokens"])
    groups = batch["rewards"].reshape(-1, completions)
    own = advantages.group_standardised(groups).reshape(-1, 1)
    ratios = reduce.log_ratio(logp, batch["logp_old"], mask)
    policy = surrogates.ppo_surrogate(
        ratios, jnp.broadcast_to(own, mask.shape), mask, clip_low=CLIP, clip_high=CLIP
    )
    kl = estimators.k3(logp, batch["logp_ref"], mask)
    return reduce.token_mean(policy, mask), reduce.token_mean(kl, mask)


def loss_of(found: Fractions) -> jax.Array:
    policy, kl = (reduce.divide(*fraction) for fraction in found)
    return policy + BETA * kl


def spellings(config: Config) -> dict[str, Callable[[Any, Batch], Any]]:
    """``(params, batch) -> (loss, gradient)``, by name."""

    def whole(params, batch):
        return loss_of(fractions(params, batch, completions=config.completions))

    def own_rows(params, batch):
        """Of one device's rows, inside of a mapped axis named ``data``."""

        def loss(params):
            found = fractions(params, batch, completions=config.completions)
            return loss_of(jax.lax.psum(found, "data"))

        return jax.value_and_grad(loss)(params)

    mesh = jax.make_mesh(
        (config.devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    over = jax.sharding.NamedSharding(mesh, P("data"))
    everywhere = jax.sharding.NamedSharding(mesh, P())

    def mapped(params, batch):
        cut = {
            name: x.reshape(config.devices, -1, *x.shape[1:])
            for name, x in batch.items()
        }

        def own(params, batch):
            loss, gradient = own_rows(params, batch)
            # Here the transpose of psum is psum: each device has its rows' part.
            return loss, jax.lax.pmean(gradient, "data")

        found = jax.pmap(own, axis_name="data", in_axes=(None, 0))(params, cut)
        return jax.tree.map(lambda x: x[0], found)

    return {
        "one device": jax.jit(jax.value_and_grad(whole)),
        "jit": jax.jit(jax.value_and_grad(whole), in_shardings=(everywhere, over)),
        "shard_map": jax.jit(
            jax.shard_map(
                own_rows, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P())
            )
        ),
        "pmap": mapped,
    }


def run(config: Config) -> list[tuple[str, float, float, float]]:
    """Each spelling's loss, norm of the gradient, and distance of it from the first's,
    relative to the norm."""
    if jax.local_device_count() < config.devices:
        raise InputError(
            f"devices must be at most the {jax.local_device_count()} that there are, "
            f"got {config.devices}"
        )
    params, batch = functional.init(MODEL, jax.random.key(0)), batch_of(config)
    rows, first = [], None
    for name, spelling in spellings(config).items():
        loss, gradient = spelling(params, batch)
        flat = np.concatenate(
            [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)]
        )
        first = flat if first is None else first
        apart = np.linalg.norm(flat - first) / np.linalg.norm(first)
        rows.append((name, float(loss), float(np.linalg.norm(flat)), float(apart)))
    return rows


def main(config: Config) -> None:
    print("spelling     loss        |gradient|  apart from one device")
    for name, loss, norm, apart in run(config):
        print(f"{name:12} {loss:.6f}  {norm:.6f}    {apart:.1e}")


def with_devices(config: Config) -> None:
    """As many devices of the CPU as are asked for, before there are any."""
    jax.config.update("jax_num_cpu_devices", config.devices)
    main(config)


if __name__ == "__main__":
    cli.run(with_devices, Config)
