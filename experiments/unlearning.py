"""Unlearning by data models, measured by KLoM, where retraining is exact.

    python -m experiments.unlearning --out runs/unlearning

Ridge regression on the labels ±1 of a linear world, many models of it, each on its own
random part of the data. Some of the data is to be forgotten: its labels are wrong. The
ways to forget are compared with models that were trained without, by the KL divergence
of margins on what is forgotten, on what is kept, and on what is new.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, diagnostics
from alignax.types import InputError

WAYS = (
    "nothing done",
    "gradient ascent",
    "matched, effects added",
    "matched, exact outputs",
    "retrained again",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The world, and how many models there are."""

    out: Path = Path("runs/unlearning")
    """Folder of the table."""
    examples: int = 200
    """How many there are to train on."""
    forget: int = 20
    """How many of them are to be forgotten."""
    features: int = 20
    """Features of an example."""
    models: int = 100
    """Models on either side of the comparison."""
    penalty: float = 1.0
    """The ridge's strength."""
    share: float = 0.8
    """The share of the kept data that a model is trained on, drawn for each."""
    steps: int = 10
    """Steps of gradient ascent on what is forgotten."""
    learning_rate: float = 0.002
    """Of gradient ascent."""
    seed: int = 0
    """Of the world and of the models."""

    def __post_init__(self):
        if not 0 < self.forget < self.examples:
            raise InputError(
                f"forget must be from 1 to below examples, {self.examples}, got "
                f"{self.forget}"
            )
        if self.models < 2:
            raise InputError(f"models must be at least 2, got {self.models}")
        if not 0 < self.share < 1:
            raise InputError(f"share must be within (0, 1), got {self.share}")


def world(config: Config) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Features and labels of the data, then of as many new examples; the first
    ``forget`` labels of the data are turned round."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    true = jax.random.normal(keys[0], (config.features,))
    shape = config.examples, config.features
    x, new = (jax.random.normal(key, shape) for key in keys[1:])
    y, new_y = jnp.sign(x @ true), jnp.sign(new @ true)
    wrong = jnp.arange(config.examples) < config.forget
    return x, jnp.where(wrong, -y, y), new, new_y


def ascended(config: Config, params, x, y, forget):
    """Gradient ascent on the squared error of what is forgotten."""

    def step(_, theta):
        error = jnp.where(forget, x @ theta - y, 0)
        return theta + config.learning_rate * x.T @ error

    return jax.lax.fori_loop(0, config.steps, step, params)


def models(config: Config) -> dict[str, jax.Array]:
    """``[models, features]`` of every way to forget; those of ``retrained`` are trained
    without what is forgotten, on draws of their own, and ``retrained again``, too."""
    x, y, _, _ = world(config)
    forget = jnp.arange(config.examples) < config.forget
    keys = jax.random.split(jax.random.key(config.seed + 1), 2)
    shape = config.models, config.examples
    # Everybody sees what is to be forgotten; the rest is drawn.
    seen, others = (
        (jax.random.uniform(key, shape) < config.share) | forget[None] for key in keys
    )
    fit = partial(diagnostics.ridge, x, y, penalty=config.penalty)

    def ways(mask):
        theta = fit(mask)
        exact = diagnostics.left_out_outputs(
            x, y, mask, forget, x, penalty=config.penalty
        )
        effects = diagnostics.datamodel(x, y, mask, x, penalty=config.penalty)
        added = x @ theta - effects @ forget.astype(x.dtype)
        return {
            "nothing done": theta,
            "gradient ascent": ascended(config, theta, x, y, forget),
            "matched, effects added": diagnostics.matched(theta, x, added),
            "matched, exact outputs": diagnostics.matched(theta, x, exact),
            "retrained again": fit(mask & ~forget),
        }

    found = jax.jit(jax.vmap(ways))(seen)
    return found | {"retrained": jax.jit(jax.vmap(fit))(others & ~forget[None])}


def measured(config: Config, found: dict[str, jax.Array]) -> dict[str, list[float]]:
    """By way: the mean KLoM of what is forgotten, kept and new, and what 95 % of the
    forgotten are below."""
    x, y, new, new_y = world(config)
    rows = jnp.concatenate([x, new])
    targets = (jnp.concatenate([y, new_y]) > 0).astype(int)

    def margins(params):
        score = rows @ params.T
        logits = jnp.stack([-score / 2, score / 2], axis=-1)
        labels = jnp.broadcast_to(targets[:, None], score.shape)
        return diagnostics.margin(logits, labels)

    truth, table = margins(found["retrained"]), {}
    for name in WAYS:
        value = np.asarray(diagnostics.klom(margins(found[name]), truth))
        first, last = config.forget, config.examples
        parts = value[:first], value[first:last], value[last:]
        means = [float(part.mean()) for part in parts]
        table[name] = [*means, float(np.percentile(parts[0], 95))]
    return table


def shown(table: dict[str, list[float]]) -> str:
    lines = ["| models | forgotten | 95 % of them below | kept | new |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, (forgotten, kept, new, most) in table.items():
        cells = (forgotten, most, kept, new)
        lines.append(f"| {name} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines)


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    text = shown(measured(config, models(config)))
    (config.out / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
