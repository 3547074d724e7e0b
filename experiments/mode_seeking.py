"""Which divergence covers modes and which seeks one, of a policy that has only one.

    python -m experiments.mode_seeking --out runs/mode_seeking

The target has two modes on a line of categories; the policy is a discretised normal
law, whose mean and width are searched over a grid, so that each divergence's best
policy is exact. Methods that descend ``D(π‖target)`` from samples inherit what is
seen here.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from alignax import cli
from alignax import divergences as dv
from alignax.types import InputError

DIVERGENCES = {
    "forward KL": dv.forward_kl(),
    "Jensen-Shannon": dv.jensen_shannon(),
    "squared Hellinger": dv.squared_hellinger(),
    "total variation": dv.total_variation(),
    "reverse KL": dv.reverse_kl(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The target and the grid."""

    out: Path = Path("runs/mode_seeking")
    """Folder of the table and the picture."""
    categories: int = 41
    """How many points the line from −10 to 10 has."""
    weight: float = 0.65
    """The weight of the left mode; the right one has the rest."""
    distance: float = 4.0
    """The distance of either mode from 0."""
    grid: int = 121
    """How many means, and how many widths, are tried."""

    def __post_init__(self):
        if not 0 < self.weight < 1:
            raise InputError(f"weight must be within (0, 1), got {self.weight}")
        for name in ("categories", "grid"):
            if getattr(self, name) < 2:
                raise InputError(
                    f"{name} must be at least 2, got {getattr(self, name)}"
                )


def line(config: Config) -> jax.Array:
    return jnp.linspace(-10.0, 10.0, config.categories)


def target(config: Config) -> jax.Array:
    """Log-probabilities: two normal bumps of width 1."""
    x = line(config)
    left = jnp.log(config.weight) - (x + config.distance) ** 2 / 2
    right = jnp.log1p(-config.weight) - (x - config.distance) ** 2 / 2
    return jax.nn.log_softmax(jnp.logaddexp(left, right))


def best_policy(config: Config, div: dv.Divergence) -> tuple[float, float, jax.Array]:
    """Mean, width and log-probabilities of the policy of the least divergence."""
    x, logp = line(config), target(config)
    means = jnp.linspace(-8.0, 8.0, config.grid)
    widths = jnp.geomspace(0.4, 8.0, config.grid)

    def policy(mean, width):
        return jax.nn.log_softmax(-((x - mean) ** 2) / (2 * width**2))

    def row(mean):
        return jax.vmap(lambda width: dv.exact(div, policy(mean, width), logp))(widths)

    values = jax.lax.map(row, means)
    i, j = jnp.unravel_index(jnp.argmin(values), values.shape)
    return float(means[i]), float(widths[j]), policy(means[i], widths[j])


def table(config: Config, policies) -> str:
    """Where each divergence's best policy is, and what it has of either mode."""
    lines = ["| divergence | mean | width | mass left of 0 | between the modes |"]
    lines.append("| --- | --- | --- | --- | --- |")
    x = np.asarray(line(config))
    for name, (mean, width, logp) in policies.items():
        p = np.exp(np.asarray(logp, np.float64))
        between = p[np.abs(x) < config.distance / 2].sum()
        cells = (mean, width, p[x < 0].sum(), between)
        lines.append(f"| {name} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines)


def draw(path: Path, config: Config, policies) -> None:
    x = np.asarray(line(config))
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    p = np.exp(target(config))
    axis.fill_between(x, p, color="0.85", step="mid", label="target")
    for name, (_, _, logp) in policies.items():
        axis.plot(x, np.exp(logp), label=name)
    axis.set(xlabel="category", ylabel="probability")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    policies = {name: best_policy(config, div) for name, div in DIVERGENCES.items()}
    text = table(config, policies)
    (config.out / "report.md").write_text(text + "\n", encoding="utf-8")
    draw(config.out / "mode_seeking.png", config, policies)
    print(text)


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
