"""Gold against proxy reward: do ensembles and χ² delay over-optimisation?

    python -m experiments.overoptimization --out runs/overoptimization

Each seed draws candidates with features, a concave gold reward and a uniform reference.
A proxy, a small network, learns the gold reward from noisy comparisons of samples of
the reference, and so do the members of an ensemble, each with its own start and
bootstrap. Policies are then the exact optima under KL and χ², for a sweep of ``beta``,
and the exact laws of best-of-n: no sampling, no training error of the policy. What is
lost is due to the reward and to the divergence alone.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from alignax import cli, exact
from alignax import divergences as dv
from alignax import preference as pf
from alignax.pipeline import metrics
from alignax.types import InputError

DIVERGENCES = {"KL": dv.reverse_kl(), "χ²": dv.pearson()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Worlds, reward models and sweeps."""

    out: Path = Path("runs/overoptimization")
    """Folder of the report and its picture."""
    seed: int = 0
    """The seed of the worlds."""
    seeds: int = 64
    """Worlds, each with its own comparisons and reward models."""
    candidates: int = 1024
    """Completions of the one prompt; the reference is uniform."""
    features: int = 4
    """The number of a candidate's features, which are standard normal."""
    curvature: float = 0.3
    """How fast the gold reward ``w·x − curvature · |x|²``, |w| = 1, falls far out."""
    pairs: int = 64
    """Comparisons that a reward model learns from."""
    members: int = 8
    """How many reward models the ensemble has."""
    hidden: int = 32
    """Hidden units of a reward model."""
    steps: int = 300
    """Steps of Adam, each on all comparisons at once."""
    weight: float = 1.0
    """The weight of the members' variance, which the uncertainty-weighted reward
    subtracts."""

    def __post_init__(self):
        for name in ("seeds", "candidates", "pairs", "members", "features", "steps"):
            least = 2 if name in ("seeds", "candidates", "members") else 1
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )


def gold_reward(config: Config, x: jax.Array, key: jax.Array) -> jax.Array:
    """``[K]``: concave in the features."""
    w = jax.random.normal(key, (x.shape[-1],))
    return x @ (w / jnp.linalg.norm(w)) - config.curvature * jnp.sum(x**2, axis=-1)


def network(params, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def learn(config: Config, x, pairs, wins, key) -> jax.Array:
    """Rewards ``[K]`` of a network fitted to a bootstrap of the comparisons."""
    start, resample = jax.random.split(key)
    keys = jax.random.split(start)
    params = {
        "in": jax.random.normal(keys[0], (config.features, config.hidden))
        / config.features**0.5,
        "bias": jnp.zeros(config.hidden),
        "out": jax.random.normal(keys[1], (config.hidden,)) / config.hidden**0.5,
    }
    rows = jax.random.randint(resample, (config.pairs,), 0, config.pairs)
    first, second = x[pairs[rows, 0]], x[pairs[rows, 1]]
    chosen = jnp.where(wins[rows, None], first, second)
    rejected = jnp.where(wins[rows, None], second, first)
    adam = optax.adamw(1e-2, weight_decay=1e-2)

    def loss(params):
        margins = network(params, chosen), network(params, rejected)
        return jnp.mean(pf.bradley_terry_loss(*margins, centring=0.01))

    def step(carry, _):
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
        step, (params, adam.init(params)), length=config.steps
    )
    return network(params, x)


def make_world(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Gold reward and proxies ``[K]`` of one seed, each with deviation 1."""
    keys = jax.random.split(key, 5)
    x = jax.random.normal(keys[0], (config.candidates, config.features))
    gold = gold_reward(config, x, keys[1])
    pairs = jax.random.randint(keys[2], (config.pairs, 2), 0, config.candidates)
    gaps = gold[pairs[:, 0]] - gold[pairs[:, 1]]
    wins = jax.random.bernoulli(keys[3], jax.nn.sigmoid(gaps))
    members = jax.vmap(partial(learn, config, x, pairs, wins))(
        jax.random.split(keys[4], config.members)
    ).T
    members = pf.standardise(members, members)
    rewards = {
        "one model": members[:, 0],
        "mean": pf.ensemble_mean(members),
        "worst case": pf.ensemble_worst(members),
        "uncertainty": pf.ensemble_uncertain(members, weight=config.weight),
        "gold itself": gold,
    }
    scaled = {
        name: (reward - jnp.mean(reward)) / jnp.std(reward)
        for name, reward in rewards.items()
    }
    return scaled | {"gold": gold - jnp.mean(gold)}


def measured(gold: jax.Array, logp: jax.Array, logp_ref: jax.Array):
    return jnp.sum(jnp.exp(logp) * gold), exact.kl(logp, logp_ref)


def sweep(div: dv.Divergence, proxy: jax.Array, gold: jax.Array, betas: jax.Array):
    """Gold reward and KL ``[beta]`` of the exact optima of a proxy."""
    logp_ref = jnp.full(proxy.shape, -jnp.log(proxy.size))

    def one(beta):
        logp, _, _ = dv.regularised_optimum(div, proxy, logp_ref, beta=beta)
        return measured(gold, logp, logp_ref)

    return jax.lax.map(one, betas)


def best_of_n(proxy: jax.Array, gold: jax.Array, ns: tuple[int, ...]):
    logp_ref = jnp.full(proxy.shape, -jnp.log(proxy.size))
    laws = [exact.best_of_n(proxy, logp_ref, n=n) for n in ns]
    values = [measured(gold, logp, logp_ref) for logp in laws]
    return tuple(jnp.stack(x) for x in zip(*values, strict=True))


def at_kl(grid: np.ndarray, kl: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Each seed's gold reward ``[seeds, grid]`` at the same divergences; NaN beyond."""
    rows = []
    for x, y in zip(kl, gold, strict=True):
        order = np.argsort(x)
        rows.append(np.interp(grid, x[order], y[order], right=np.nan))
    return np.stack(rows)


def curves(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """``{method: {"gold", "kl": [seeds, points]}}``."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    worlds = jax.jit(jax.vmap(partial(make_world, config)))(keys)
    gold = worlds.pop("gold")
    betas = jnp.geomspace(30.0, 1e-4, 60)
    ns = tuple(2**i for i in range(int(np.log2(config.candidates)) + 1))
    result = {}
    for name in ("one model", "mean", "uncertainty", "worst case", "gold itself"):
        proxy = worlds[name]
        ways = {
            f"{name}, {word}": partial(sweep, div, betas=betas)
            for word, div in DIVERGENCES.items()
        }
        ways[f"{name}, best-of-n"] = partial(best_of_n, ns=ns)
        for way, function in ways.items():
            values = jax.jit(jax.vmap(function))(proxy, gold)
            result[way] = dict(
                zip(("gold", "kl"), map(np.asarray, values), strict=True)
            )
    return result


def table(results: dict[str, dict[str, np.ndarray]]) -> str:
    """Per method: the best gold reward of its sweep, the KL there, and what is left."""
    grid = np.array([1.0, 3.0, 5.0])
    columns = ["best gold", "at KL", *(f"gold at {x:g} nats" for x in grid)]
    lines = [f"| reward, divergence | {' | '.join(columns)} |", "| --- " * 6 + "|"]
    for name, curve in results.items():
        best = curve["gold"].argmax(axis=1)[:, None]
        peak = (np.take_along_axis(curve[x], best, axis=1)[:, 0] for x in curve)
        later = at_kl(grid, curve["kl"], curve["gold"]).T
        cells = []
        for values in (*peak, *later):
            seen = values[np.isfinite(values)]
            mean, half = metrics.mean_and_interval(seen) if len(seen) else (np.nan, 0)
            cells.append(f"{mean:.2f} ± {half:.2f}" if len(seen) else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, results: dict[str, dict[str, np.ndarray]]) -> None:
    """Mean gold reward against KL: one panel a way to optimise, one line a reward."""
    ways = [*DIVERGENCES, "best-of-n"]
    grid = np.linspace(0, 6, 61)
    figure, axes = plt.subplots(
        1, len(ways), figsize=(10, 3.2), sharey=True, layout="constrained"
    )
    for axis, way in zip(axes, ways, strict=True):
        for name, curve in results.items():
            reward, word = name.rsplit(", ", 1)
            if word == way:
                rows = at_kl(grid, curve["kl"], curve["gold"])
                whole = np.isfinite(rows).all(axis=0)
                style = {"color": "black", "ls": "--"} if "gold" in reward else {}
                axis.plot(grid[whole], rows[:, whole].mean(0), label=reward, **style)
        axis.set(title=way, xlabel="KL to the reference (nats)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gold reward")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    results = curves(config)
    text = table(results)
    (config.out / "report.md").write_text(text + "\n", encoding="utf-8")
    plain = {
        name: {key: x.round(5).tolist() for key, x in curve.items()}
        for name, curve in results.items()
    }
    (config.out / "curves.json").write_text(json.dumps(plain), encoding="utf-8")
    draw(config.out / "overoptimization.png", results)
    print(text)


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
