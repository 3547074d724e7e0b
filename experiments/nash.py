"""Cyclic preferences, where no reward is right: equilibria exactly, then by sampling.

    python -m experiments.nash --out runs/nash

The first part plays random games of known equilibrium with every solver, and draws
their distance to it against the number of win rates asked for, beside the bounds of
Nash-MD and Nash-MP.

In the second a small decoder writes up to four letters of r, p and s. A judge looks
at the letter that leads: s beats p, p beats r, r beats s, with unequal margins, so
that the equilibrium mixes the three. The best reward model there is (Bradley-Terry,
fitted to all pairs of the reference) ranks them all the same, and the policy that
maximises it collapses onto one. The Nash methods play the judge itself. All 121 texts
can be enumerated: what is reported is exact, only the training samples.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, exact, games
from alignax.pipeline import metrics, plots
from alignax.types import InputError
from experiments.nash_texts import EQUILIBRIUM, LETTERS, Texts, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Solvers of preference games, then language models that play one."""

    out: Path = Path("runs/nash")
    """Folder of the pictures and the report."""
    seed: int = 0
    """The seed of the games, the references and the samples."""
    games: int = 32
    """How many random games the first part plays."""
    outcomes: int = 10
    """Outcomes of each game."""
    beta: float = 0.1
    """Strength of the regularisation in the first part."""
    queries: int = 400
    """How many win rates each solver may ask for, an even number."""
    texts: Texts = dataclasses.field(default_factory=Texts)
    """The options of the second part."""

    def __post_init__(self):
        for name in ("games", "outcomes"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.queries < 2 or self.queries % 2:
            raise InputError(f"queries must be even and positive, got {self.queries}")
        if not self.beta > 0:
            raise InputError(f"beta must be positive, got {self.beta}")


# Part one: solvers -----------------------------------------------------------------


def solvers(beta: float) -> dict[str, games.Solver]:
    return {
        "Nash-MP": games.nash_mp(),
        "Nash-MD": games.nash_md(),
        "Nash-MD, η = 2": games.nash_md(eta=2.0),
        "Nash-EMA": games.nash_ema(eta=2.0, decay=0.5),
        "mirror descent, INPO": games.mirror_descent(eta=2.0),
        "magnetic descent": games.magnetic_mirror_descent(eta=2.0),
        "online IPO": games.online_ipo(learning_rate=beta / 2),
        "IPO-MD, m = 1/8": games.ipo_md(learning_rate=beta / 2, mixture=0.125),
        "SPPO": games.sppo(eta=2.0),
        "XPO": games.xpo(learning_rate=2.0, alpha=1e-3),
    }


def play_random_games(config: Config) -> dict[str, dict[str, Any]]:
    """``{solver: {queries, kl, gap}}``: medians over the games, and the bounds."""
    keys = jax.random.split(jax.random.key(config.seed), (2, config.games))
    draw = partial(games.random_preference, count=config.outcomes, scale=2.0)
    many = games.Game(
        jax.vmap(draw)(keys[0]),
        jax.nn.log_softmax(
            jax.vmap(lambda k: jax.random.normal(k, (config.outcomes,)))(keys[1])
        ),
        jnp.full(config.games, config.beta),
    )
    many = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), many)
    star = jax.jit(games.regularised_equilibrium)(many)

    def measure(logp):
        return {
            "kl": jnp.median(exact.kl(star, logp)),
            "gap": jnp.median(games.regularised_exploitability(many, logp)),
        }

    start = measure(many.logp_ref)
    curves = {}
    for name, solver in solvers(config.beta).items():

        @jax.jit
        def run(many, solver=solver):
            steps = config.queries // solver.queries
            _, path = games.run_solver(solver, many, many.logp_ref, steps=steps)
            return jax.lax.map(measure, path)

        values = run(many)
        curves[name] = {
            key: np.concatenate([[start[key]], values[key]]) for key in start
        }
        asked = solver.queries * np.arange(len(values["kl"]) + 1)
        curves[name]["queries"] = asked
    beta, queries = config.beta, np.arange(2, config.queries + 1, 2)
    first = float(start["kl"])
    curves["bound of Nash-MP"] = {
        "queries": queries,
        "kl": first * (1 + 2 * beta) ** (-queries / 2),
    }
    curves["bound of Nash-MD"] = {
        "queries": queries,
        "kl": 8 / (beta**2 * (queries + 1)),
    }
    return curves


# The report ------------------------------------------------------------------------


def draw(config: Config, curves, results) -> None:
    floor = 1e-16

    def logarithm(values):
        return np.log10(np.maximum(values, floor))

    for key, label in (("kl", "KL(π*‖π)"), ("gap", "regularised exploitability")):
        plots.curves(
            config.out / f"nash_{key}.png",
            {
                name: (curve["queries"], logarithm(curve[key]), None, None)
                for name, curve in curves.items()
                if key in curve
            },
            title=f"{config.games} random games: median distance to equilibrium",
            xlabel="win rates asked for",
            ylabel=f"log₁₀ {label}",
        )
    steps = np.linspace(0, config.texts.steps, config.texts.evaluations + 1)
    series = {}
    for name, values in results.items():
        series[name] = (steps, values["kl"].mean(0), None, None)
    plots.curves(
        config.out / "nash_lm.png",
        series,
        title=f"A cyclic judge of texts: mean of {config.texts.seeds} seeds",
        xlabel="optimiser step",
        ylabel="KL(π*‖π), exact (nats)",
    )


def report(config: Config, curves, results) -> str:
    """Tables of both parts, in Markdown."""
    lines = [
        f"Random games ({config.games} of {config.outcomes} outcomes, β = "
        f"{config.beta:g}), medians after {config.queries} win rates:",
        "",
        "| solver | KL(π*‖π) | regularised exploitability |",
        "|---|---|---|",
    ]
    for name, curve in curves.items():
        gap = f"{abs(curve['gap'][-1]):.1e}" if "gap" in curve else "–"
        lines.append(f"| {name} | {max(curve['kl'][-1], 0):.1e} | {gap} |")
    tail = max(1, config.texts.evaluations // 5)
    lines += [
        "",
        f"Language models (β = {config.texts.beta:g}, {config.texts.steps} steps, "
        f"{config.texts.seeds} seeds), means over the last fifth of training with 95 % "
        "intervals over seeds:",
        "",
        "| method | leads with r | p | s | largest share | exploitability | KL(π*‖π) |",
        "|---|---|---|---|---|---|---|",
    ]

    def interval(values):
        mean, half = metrics.mean_and_interval(values)
        # One seed has no interval.
        return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"

    for name, values in results.items():
        masses = values["masses"][:, -tail:].mean(1)
        cells = [f"{masses[:, i].mean():.2f}" for i in range(3)]
        cells.append(interval(values["masses"][:, -tail:, :3].max(-1).mean(1)))
        cells.append(interval(values["exploitability"][:, -tail:].mean(1)))
        cells.append(interval(values["kl"][:, -tail:].mean(1)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    first = next(iter(results.values()))
    lines += [
        "",
        f"Exploitability is {first['exploitability'][:, 0].mean():.3f} for the "
        f"references and {first['target'][:, 0].mean():.3f} for the regularised "
        f"equilibria; the unregularised one mixes {LETTERS} as {EQUILIBRIUM}.",
    ]
    return "\n".join(lines)


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    # Distances below 1e-7 are not to be seen in float32.
    with jax.enable_x64(True):
        curves = play_random_games(config)
    results = train(config.texts, seed=config.seed)
    draw(config, curves, results)
    text = report(config, curves, results)
    (config.out / "nash.md").write_text(f"{text}\n")
    print(text)
    print(f"written to {config.out}")


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
