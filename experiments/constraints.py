"""Constraints on a pretrained model, by divergence: what they cost in diversity.

    alignax pretrained && python -m experiments.constraints --report docs/constraints.md

SmolLM2-135M-Instruct writes one sentence about a thing. Either every sentence is to
mention its thing (pointwise), or a fifth of them are to exclaim (distributional, the
multiplier fitted on the model's own sentences). LoRA adapters are trained by f-DPG
towards that law under each divergence. Beside them stands an exact toy: every
divergence's best normal law for a two-humped target.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, exact, targets
from alignax import divergences as dv
from alignax.pipeline import data, metrics, plots
from alignax.train import assembly
from alignax.train.options import RL, divergence_of
from alignax.types import InputError
from experiments import frontier
from experiments import real_model as real

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
CONSTRAINTS = ("exclaims", "mentions")
COLUMNS = (
    *("kl_to_target", "kl_from_target", "log_z", "log_z_error", "target_samples"),
    *("excluded", "massless", "skipped"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Constraints on sentences, by divergence."""

    model: Path = real.FOLDER
    """The model's Hugging Face folder."""
    out: Path = Path("runs/constraints")
    """The folder of ``results.json``; runs that it has are not run again."""
    report: Path | None = None
    """Markdown file for the report; its pictures lie beside it."""
    divergences: tuple[str, ...] = DIVERGENCES
    """The divergences from the target."""
    constraints: tuple[str, ...] = CONSTRAINTS
    """mentions: every sentence has its thing; exclaims: a share of them has a !."""
    moment: float = 0.2
    """The share of sentences that are to exclaim."""
    seeds: int = 1
    """Runs of each."""
    lora_rank: int = 16
    """The rank of the adapters; 0 trains all parameters."""
    steps: int = 12
    """Rollouts of a run."""
    requests: int = 12
    """Requests to train on; each is asked several times, for its normaliser."""
    prompts: int = 4
    """Requests a rollout."""
    completions: int = 8
    """Sentences a request."""
    fit_completions: int = 16
    """The model's sentences of each request, for the multiplier."""
    learning_rate: float = 1e-3
    """The learning rate at its peak."""
    max_tokens: int = 24
    """Tokens of the longest sentence; longer ones are cut."""
    prompt_length: int = 48
    """Tokens of the longest request; longer ones are left out."""
    held_out: int = 8
    """Requests to measure on, with ``completions`` sentences each."""

    def __post_init__(self):
        least = {"seeds": 1, "steps": 1, "prompts": 1, "completions": 2}
        least |= {"max_tokens": 1, "held_out": 2, "fit_completions": 2}
        least |= {"requests": self.prompts}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name} must be at least {bound}, got {getattr(self, name)}"
                )
        for name in self.divergences:
            divergence_of(name)
        if not set(self.constraints) <= set(CONSTRAINTS):
            raise InputError(
                f"constraints must be among {', '.join(CONSTRAINTS)}, got "
                f"{', '.join(self.constraints)}"
            )


def features(texts: Sequence[str], things: Sequence[str]) -> dict[str, np.ndarray]:
    """``exclaims`` and ``mentions``, 0 or 1 of each sentence."""
    pairs = list(zip(texts, things, strict=True))
    return {
        "exclaims": np.array(["!" in text for text in texts], np.float32),
        "mentions": np.array(
            [thing.split()[-1].lower() in text.lower() for text, thing in pairs],
            np.float32,
        ),
    }


def bigrams(texts: Sequence[str]) -> float:
    """The share of distinct pairs of words among all sentences: diversity."""
    words = [text.lower().split() for text in texts]
    pairs = [pair for row in words for pair in itertools.pairwise(row)]
    return len(set(pairs)) / max(len(pairs), 1)


def things_of(records: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    return [record["thing"] for record in records for _ in range(count)]


def main(config: Config) -> None:
    policy = real.load(config.model, rank=config.lora_rank)
    tokenizer, ends = policy.tokenizer, real.line_ends(policy.tokenizer)
    train, held_out = frontier.split(config.held_out)
    train = train[: config.requests]

    def encoded(records):
        return data.encode_prompts(
            [frontier.ask(tokenizer, record) for record in records],
            tokenizer,
            length=config.prompt_length,
        )

    path = config.out / "results.json"
    but = ("out", "report", "divergences", "constraints", "seeds", "model")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in but}
    results = real.open_results(path, settings)
    laws = {"completions": config.completions, "max_tokens": config.max_tokens}
    measure = real.make_measure(policy, **laws, ends=ends)

    def look(params, seed):
        start = real.fresh(policy, seed)
        found = measure(params, start, jax.random.key(99), encoded(held_out))
        seen = features(found["text"], things_of(held_out, config.completions))
        columns = seen | {name: found[name] for name in ("kl", "entropy", "length")}
        return {
            "texts": found["text"],
            "bigrams": bigrams(found["text"]),
            "end": {
                name: np.asarray(x).reshape(len(held_out), -1).mean(1)
                for name, x in columns.items()
            },
        }

    parts = {
        name: make_parts(config, policy, name, ends) for name in config.divergences
    }
    if "start" not in results["runs"]:
        since = real.clock()
        fitted = fit(config, next(iter(parts.values())), policy, train, encoded(train))
        run = look(real.fresh(policy, 0), 0) | {"fit": fitted}
        real.keep(path, results, "start", run | since())
    for seed, constraint, name in itertools.product(
        range(config.seeds), config.constraints, config.divergences
    ):
        key = f"{constraint}/{name}/{seed}"
        if key in results["runs"]:
            continue
        since = real.clock()
        fitted = results["runs"]["start"]["fit"]
        run = one_run(config, parts[name], policy, train, constraint, fitted, seed)
        run |= look(run.pop("params"), seed)
        real.keep(path, results, key, run | since())
        print(f"{key}: {np.mean(run['end'][constraint]):.3f}", flush=True)
        if config.report is not None:
            write_report(config.report, results, held_out)
    if config.report is not None:
        write_report(config.report, results, held_out)


def make_parts(config: Config, policy, name: str, ends) -> assembly.Parts:
    rl = RL(
        method="f_dpg (constraints)",
        divergence=name,
        steps=config.steps,
        prompts=config.prompts,
        completions=config.completions,
        learning_rate=config.learning_rate,
        warmup=2,
    )
    return assembly.of_policy(rl, policy, max_tokens=config.max_tokens, eos_id=ends)


def fit(config: Config, parts, policy, train, prompts) -> dict[str, Any]:
    """The multiplier of exclaiming, on the model's own sentences of each request."""
    texts = []
    for start in range(0, len(train), config.prompts):
        some = jax.tree.map(
            lambda x, at=start: jnp.asarray(x[at : at + config.prompts]), prompts
        )
        rollout = parts.generate(
            real.fresh(policy, 0),
            jax.random.key(7),
            some,
            completions=config.fit_completions,
        )
        texts += data.decode_rows(rollout.tokens, rollout.trained, policy.tokenizer)
    seen = features(texts, things_of(train, config.fit_completions))
    values = jnp.asarray(seen["exclaims"]).reshape(len(train), -1, 1)
    found = targets.fit_multipliers(values, jnp.array([config.moment]))
    targets.refuse_unmet(found, [config.moment], ["exclaims"])
    return {
        "multiplier": float(found.values[0]),
        "error": float(found.errors[0]),
        "effective": float(jnp.mean(found.effective)),
        "base": {name: float(np.mean(x)) for name, x in seen.items()},
    }


def one_run(config, parts, policy, train, constraint, fitted, seed) -> dict[str, Any]:
    """One divergence to one target: what each rollout's sentences were."""
    prompts = data.prompt_batches(
        train,
        policy.tokenizer,
        prompt=lambda record: frontier.ask(policy.tokenizer, record),
        batch_size=config.prompts,
        length=config.prompt_length,
        seed=seed,
        on_long="drop",
    )
    state = parts.init(
        real.fresh(policy, seed), jax.random.key(seed), records=len(train)
    )
    curves: dict[str, list] = {name: [] for name in (*COLUMNS, *CONSTRAINTS, "entropy")}
    for _ in range(config.steps):
        batch = next(prompts)
        samples = parts.sample(state, batch)
        rollout = samples.rollout
        texts = data.decode_rows(rollout.tokens, rollout.trained, policy.tokenizer)
        asked = [train[number] for number in np.asarray(batch.index)]
        seen = features(texts, things_of(asked, config.completions))
        if constraint == "exclaims":
            rewards = fitted["multiplier"] * seen["exclaims"]
            right = np.ones(len(texts), bool)
        else:
            rewards, right = np.zeros(len(texts)), seen["mentions"] == 1
        scored = samples.rewarded(rewards.astype(np.float32), right=right)
        state, found = parts.step(state, scored)
        for name in (*COLUMNS, "entropy"):
            curves[name].append(float(found[name]))
        for name in CONSTRAINTS:
            curves[name].append(seen[name].tolist())
    return {"curves": curves, "params": state.params}


# The exact toy.
POINTS = np.linspace(-10, 10, 81)
TOY = {
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(),
    "squared_hellinger": dv.squared_hellinger(),
    "total_variation": dv.total_variation(),
    "reverse_kl": dv.reverse_kl(),
}


def toy() -> dict[str, dict[str, float]]:
    """Each divergence's best normal law for a two-humped law of which 90 % is to be
    outside of [−2, 2]: a constraint that one hump meets and a broad law does not."""
    x = jnp.asarray(POINTS)
    humps = jnp.logaddexp(0.3 - 2 * (x + 4) ** 2, -2 * (x - 4) ** 2)
    base = jax.nn.log_softmax(jnp.logaddexp(humps, -2 * x**2))
    outside = (jnp.abs(x) > 2).astype(x.dtype)
    fit = targets.fit_multipliers(outside[None, :, None], jnp.array([0.9]), base[None])
    goal = jax.nn.log_softmax(targets.tilted(base, fit.values[0] * outside, beta=1.0))
    means, widths = np.linspace(-8, 8, 97), np.geomspace(0.4, 8, 49)
    gaps = np.square(POINTS - means[:, None, None]) / 2
    grid = jnp.asarray((-gaps / np.square(widths)[:, None]).reshape(-1, len(x)))
    grid = jax.nn.log_softmax(grid)
    found = {"target": goal, "reference": base}
    for name, div in TOY.items():
        values = jax.lax.map(lambda logp, d=div: dv.exact(d, logp, goal), grid)
        found[name] = grid[jnp.argmin(values)]
    return {
        name: {
            "satisfied": float(exact.expectation(logp, outside)),
            "entropy": float(-exact.expectation(logp, logp)),
            "to": float(exact.kl(logp, goal)),
            "from": float(exact.kl(goal, logp)),
        }
        for name, logp in found.items()
    }


def toy_table() -> str:
    lines = [
        "| law | outside of [−2, 2] | entropy | KL(π‖p) | KL(p‖π) |\n"
        "|---|---|---|---|---|\n"
    ]
    for name, row in toy().items():
        cells = " | ".join(
            f"{row[c]:.2f}" for c in ("satisfied", "entropy", "to", "from")
        )
        lines.append(f"| {name} | {cells} |\n")
    return "".join(lines)


def trained(runs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run for name, run in runs.items() if name != "start"}


def label(name: str) -> str:
    constraint, divergence, seed = name.split("/")
    return f"{constraint}, {divergence}" + ("" if seed == "0" else f", seed {seed}")


def table(runs: Mapping[str, Any]) -> str:
    columns = ("exclaims", "mentions", "kl", "entropy", "length")
    lines = [
        "| policy | exclaims | mentions | KL to the model | entropy | length | "
        "distinct bigrams |\n|---|---|---|---|---|---|---|\n"
    ]
    for name, run in runs.items():
        cells = [
            real.told(*metrics.mean_and_interval(np.array(run["end"][c])))
            for c in columns
        ]
        word = "the model" if name == "start" else label(name)
        cells.append(f"{run['bigrams']:.2f}")
        lines.append(f"| {word} | {' | '.join(cells)} |\n")
    return "".join(lines)


def along(runs: Mapping[str, Any]) -> str:
    """First and last third of each run, as it saw itself."""
    columns = ("kl_to_target", "kl_from_target", "log_z_error", "target_samples")
    lines = [
        "| run | its feature | log π/p | KL(p‖π) | log Z ± | effective sentences | "
        "excluded |\n|---|---|---|---|---|---|---|\n"
    ]

    def change(values):
        thirds = np.array_split(np.asarray(values, np.float64), 3)
        return f"{np.mean(thirds[0]):.2f} → {np.mean(thirds[-1]):.2f}"

    for name, run in trained(runs).items():
        curves = run["curves"]
        feature = [np.mean(x) for x in curves[name.split("/")[0]]]
        cells = [change(x) for x in (feature, *(curves[c] for c in columns))]
        cells.append(change(curves["excluded"]))
        lines.append(f"| {label(name)} | {' | '.join(cells)} |\n")
    return "".join(lines)


def draw(path: Path, runs: Mapping[str, Any]) -> None:
    """The share that has the feature against the entropy, along each run."""
    lines = []
    for name, run in trained(runs).items():
        pieces = np.array_split(np.asarray(run["curves"][name.split("/")[0]]), 3)
        pairs = np.array([metrics.mean_and_interval(x) for x in pieces if x.size])
        thirds = np.array_split(np.asarray(run["curves"]["entropy"]), 3)
        diversity = np.array([np.mean(x) for x in thirds if x.size])
        lines.append(plots.Trajectory(label(name), diversity, 0 * diversity, *pairs.T))
    plots.frontier(
        path,
        lines,
        title="Alignment against diversity, along the runs",
        xlabel="entropy (nats per token)",
        ylabel="share of sentences with the feature",
    )


def samples(runs: Mapping[str, Any], held_out, *, most: int = 2) -> str:
    lines = ["\nThe first sentence of each policy:\n\n"]
    for i, record in enumerate(held_out[:most]):
        lines.append(f"- {record['prompt']}\n")
        for name, run in runs.items():
            count = len(run["texts"]) // len(held_out)
            text = " ".join(run["texts"][i * count].split()).replace("`", "'")
            word = "the model" if name == "start" else label(name)
            lines.append(f"  - {word}: `{text or ' '}`\n")
    return "".join(lines)


def write_report(path: Path, results: dict[str, Any], held_out) -> None:
    """The page, of as many runs as there are."""
    runs, set_ = results["runs"], results["settings"]
    if not trained(runs):
        return
    picture = path.with_name(f"{path.stem}.png")
    draw(picture, runs)
    fitted = runs["start"]["fit"]
    seeds = len({name.rsplit("/", 1)[1] for name in trained(runs)})
    path.write_text(
        "# Constraints on a real model\n\n"
        "SmolLM2-135M-Instruct writes one sentence about a thing. Two targets: of "
        f"*exclaims* {set_['moment']:g} of the sentences have an exclamation mark "
        "(distributional), of *mentions* every one names its thing (pointwise). The "
        "law is the nearest one to the model, `ρ e^{λφ}` or `ρ b` for each request; "
        "`f_dpg (constraints)` descends a divergence to it ([targets](targets.md)). "
        f"λ = {fitted['multiplier']:.2f} ± {fitted['error']:.2f}, fitted on "
        f"{set_['fit_completions']} of the model's own sentences of each of "
        f"{set_['requests']} requests, of which {fitted['base']['exclaims']:.2f} "
        f"exclaim and {fitted['base']['mentions']:.2f} mention; "
        f"{fitted['effective']:.1f} of {set_['fit_completions']} count for the "
        f"target. LoRA of rank {set_['lora_rank']}, learning rate "
        f"{set_['learning_rate']:g}, {set_['steps']} rollouts of {set_['prompts']} "
        f"requests × {set_['completions']} sentences of at most {set_['max_tokens']} "
        f"tokens: a small run. Seeds of each: {seeds}. Made by\n\n"
        "    alignax pretrained\n"
        "    python -m experiments.constraints --report docs/constraints.md\n\n"
        f"in {real.provenance(runs)}\n\n"
        f"```{{image}} {picture.name}\n:alt: share with the feature against entropy\n"
        f"```\n\nOn {set_['held_out']} requests that were not trained on, intervals of "
        "95 % over them:\n\n"
        f"{table(runs)}\nThe runs' first and last third, by their own samples (the "
        "mean log π/p is of the sentences that the target allows, no divergence while "
        "others are excluded; the normaliser is of each request's sentences "
        f"so far):\n\n{along(runs)}{samples(runs, held_out)}\n"
        "## The exact toy\n\n"
        "A law of two humps and something between, of which 90 % are to be outside of "
        "[−2, 2]; the policy is a normal law, the best one by each divergence. What "
        "f-DPG's paper finds of language models is exact here: towards the reverse KL "
        "the constraint is met and a hump, with its diversity, is lost; towards the "
        f"forward KL both are covered and the constraint is missed.\n\n{toy_table()}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
