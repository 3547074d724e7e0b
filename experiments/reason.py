"""GRPO, DAPO, DPH-RL and PPO on sums, with a pretrained language model.

    alignax pretrained && python -m experiments.reason --report docs/reason.md

SmolLM2-135M-Instruct adds and subtracts one-digit numbers, problems of
reasoning-gym's chain_sum; the reward is 1 where the last number of the line is right.
Each method of ``alignax.algorithms.METHODS`` trains LoRA adapters on several seeds, and
all are measured on the same held-out sums.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignax import cli
from alignax.pipeline import data, plots
from alignax.train import assembly, tasks
from alignax.train.options import RL, method_of
from alignax.types import InputError
from experiments import real_model as real

METHODS = ("grpo", "dapo", "dph_rl", "ppo")
SHOWN = ("reward", "kl", "entropy", "length", "signal", "skipped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reinforcement learning with verifiable rewards, on a real model."""

    model: Path = real.FOLDER
    """The model's Hugging Face folder."""
    out: Path = Path("runs/reason")
    """The folder of ``results.json``; runs that it has are not run again."""
    report: Path | None = None
    """Markdown file for the report; its picture lies beside it."""
    methods: tuple[str, ...] = METHODS
    """Keys of the table of algorithms, a variant in brackets."""
    seeds: int = 3
    """Runs of each method."""
    lora_rank: int = 16
    """The rank of the adapters; 0 trains all parameters."""
    steps: int = 10
    """Rollouts of a run."""
    prompts: int = 8
    """Sums a rollout."""
    completions: int = 8
    """Completions a sum: the group."""
    learning_rate: float = 5e-4
    """The learning rate at its peak; of all parameters some 1e-5 would do."""
    max_tokens: int = 4
    """Tokens of the longest answer."""
    prompt_length: int = 16
    """Tokens of the longest prompt."""
    terms: int = 2
    """Numbers in the longest sum."""
    records: int = 1000
    """Sums to train on, at the most: there are 200 of two terms."""
    held_out: int = 40
    """Sums to measure on, with ``completions`` answers each."""
    halves: int = 1
    """How often a run is measured, at equal distances; the last time at its end."""

    def __post_init__(self):
        least = {"seeds": 1, "steps": 1, "prompts": 1, "completions": 2}
        least |= {"max_tokens": 1, "records": 1, "held_out": 2, "halves": 1}
        least |= {"terms": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name} must be at least {bound}, got {getattr(self, name)}"
                )
        if self.lora_rank < 0:
            raise InputError(f"lora_rank must not be negative, got {self.lora_rank}")
        if not self.methods:
            raise InputError("methods must be one or more keys, got none")
        for method in self.methods:
            self.rl(method)

    def rl(self, method: str) -> RL:
        return RL(
            method=method,
            steps=self.steps,
            prompts=self.prompts,
            completions=self.completions,
            learning_rate=self.learning_rate,
            warmup=2,
        )


def encode(records, tokenizer, config: Config):
    texts = [record["prompt"] for record in records]
    return data.encode_prompts(texts, tokenizer, length=config.prompt_length)


def summary(found: dict[str, Any], records, completions: int) -> dict[str, Any]:
    """A measurement, one number for each held-out sum."""
    right = real.solved(found["text"], records, completions)
    means = {
        name: np.asarray(found[name]).reshape(len(records), completions).mean(1)
        for name in ("kl", "entropy", "length")
    }
    return {"accuracy": right.mean(1), "pass@K": real.tries(right)} | means


def main(config: Config) -> None:
    policy = real.load(config.model, rank=config.lora_rank)
    tokenizer, ends = policy.tokenizer, real.line_ends(policy.tokenizer)
    train, held_out = real.sums(
        config.records, held_out=config.held_out, seed=0, terms=config.terms
    )
    measured = encode(held_out, tokenizer, config)
    path = config.out / "results.json"
    but = ("out", "report", "methods", "seeds", "model")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in but}
    results = real.open_results(path, settings)
    laws = {"completions": config.completions, "max_tokens": config.max_tokens}
    measure = real.make_measure(policy, **laws, ends=ends)

    def look(params, seed):
        start = real.fresh(policy, seed)
        found = measure(params, start, jax.random.key(99), measured)
        return summary(found, held_out, config.completions), found["text"]

    if "start" not in results["runs"]:
        since = real.clock()
        values, texts = look(real.fresh(policy, 0), 0)
        real.keep(path, results, "start", {"end": values, "texts": texts} | since())
    for method in config.methods:
        parts = None
        for seed in range(config.seeds):
            name = f"{method}/{seed}"
            if name in results["runs"]:
                continue
            if parts is None:
                parts = assembly.of_policy(
                    config.rl(method),
                    policy,
                    max_tokens=config.max_tokens,
                    eos_id=ends,
                )
            since = real.clock()
            run = one_run(config, parts, policy, train, look, seed)
            real.keep(path, results, name, run | since())
            print(f"{name}: {np.mean(run['end']['accuracy']):.3f}", flush=True)
            if config.report is not None:
                write_report(config.report, results, held_out)
    runs = results["runs"]
    print(f"\n{table(runs)}{samples(runs, held_out)}")
    if config.report is not None:
        write_report(config.report, results, held_out)
        print(f"written: {config.report}, {config.report.with_suffix('.png')}")


def one_run(config: Config, parts, policy, train, look, seed: int) -> dict[str, Any]:
    """A method's run on one seed: its curves and what it came to."""
    prompts = data.prompt_batches(
        train,
        policy.tokenizer,
        prompt=lambda record: record["prompt"],
        batch_size=config.prompts,
        length=config.prompt_length,
        seed=seed,
    )
    judge = tasks.judge_texts(train, real.right, policy.tokenizer, right=real.right)
    step = tasks.host_step(parts, judge)
    key = jax.random.key(seed)
    state = parts.init(real.fresh(policy, seed), key, records=len(train))
    curves: dict[str, list[float]] = {name: [] for name in SHOWN}
    between, texts = [], []
    for done in range(1, config.steps + 1):
        state, values = step(state, next(prompts))
        for name in SHOWN:
            curves[name].append(float(values[name]))
        if done * config.halves % config.steps < config.halves:
            found, texts = look(state.params, seed)
            between.append({"step": done} | found)
    return {
        "curves": curves,
        "between": between,
        "end": between[-1],
        "texts": texts,
    }


def by_method(runs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The seeds' runs of each method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        if name != "start":
            found.setdefault(name.rsplit("/", 1)[0], []).append(run)
    return found


def stacked(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """``[seeds, sums]`` at the end."""
    return np.array([run["end"][name] for run in runs], np.float64)


def table(runs: dict[str, Any]) -> str:
    """A row a method: means over seeds and held-out sums."""
    columns = ("accuracy", "pass@K", "kl", "entropy", "length")
    start = {name: np.array([runs["start"]["end"][name]]) for name in columns}
    completions = round(len(runs["start"]["texts"]) / start["kl"].size)
    heads = ("method", "seeds", "accuracy", "each seed", f"pass@{completions}")
    heads = (*heads, "KL", "entropy", "length")
    lines = [f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"]
    rows = {"start": start} | {
        method: {name: stacked(of, name) for name in columns}
        for method, of in by_method(runs).items()
    }
    for method, row in rows.items():
        cells = [real.told(*real.estimate(row[name])) for name in columns]
        seeds = ", ".join(f"{x:.2f}" for x in row["accuracy"].mean(1))
        count = "–" if method == "start" else str(len(row["kl"]))
        cells[1:1] = [seeds if method != "start" else "–"]
        lines.append(f"| {method} | {count} | {' | '.join(cells)} |\n")
    return "".join(lines)


def progress(runs: dict[str, Any]) -> str:
    """Of each method's rollouts, in thirds: what was solved, KL and entropy."""
    names = {"reward": "solved", "kl": "KL", "entropy": "entropy"}
    lines = [
        "\nWhile training, each third of the rollouts, means over seeds (KL by k3, not "
        "where the reference writes some rows):\n\n"
        f"| method | {' | '.join(names.values())} |\n|---|---|---|---|\n"
    ]
    for method, of in by_method(runs).items():
        cells = []
        for name in names:
            steps = np.array([run["curves"][name] for run in of]).mean(0)
            thirds = [part.mean() for part in np.array_split(steps, 3) if part.size]
            foreign = name == "kl" and method_of(method).sampling.last != "own"
            cells.append("–" if foreign else " → ".join(f"{x:.2f}" for x in thirds))
        lines.append(f"| {method} | {' | '.join(cells)} |\n")
    return "".join(lines)


def findings(runs: dict[str, Any]) -> str:
    """What the noise allows to say: differences of the same sums, by sum."""
    start, found = runs["start"]["end"], by_method(runs)
    lines = ["\nGains over the start, of the same sums (95 % intervals over sums):\n\n"]
    known = []
    for method, of in found.items():
        parts = []
        for name, word in (("accuracy", "accuracy"), ("pass@K", "pass@K")):
            mean, half = real.estimate(stacked(of, name) - np.array([start[name]]))
            verdict = "" if abs(mean) > half else ", within its noise"
            known.append(mean > half if name == "accuracy" else abs(mean) <= half)
            parts.append(f"{word} {mean:+.2f} ± {half:.2f}{verdict}")
        spread = stacked(of, "accuracy").mean(1)
        least = spread.min() - np.mean(start["accuracy"])
        parts.append(f"the worst of {len(of)} seeds {least:+.2f}")
        lines.append(f"- **{method}**: {'; '.join(parts)}.\n")
    if "ppo" in found:
        lines.append(
            "\nPPO's critic begins fresh, and so few rollouts with one update each are "
            "little for it: its place is of this length.\n"
        )
    if all(known):
        lines.append(
            "\nWhat rose is how often a right answer is given: the share of sums that "
            "some of the tries solve did not move beyond its noise.\n"
        )
    lines.append(
        "\nBetween methods, over both their seeds and the sums (95 %, each comparison "
        "by itself: one in twenty is told apart by chance):\n\n"
    )
    names = list(found)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    apart = []
    for one, other in pairs:
        for name in ("accuracy", "pass@K", "kl", "entropy"):
            mean, half = difference(
                stacked(found[one], name), stacked(found[other], name)
            )
            if abs(mean) > half:
                apart.append(
                    f"- {one} less {other}, {name}: {mean:+.2f} ± {half:.2f}.\n"
                )
    if apart:
        lines += apart
        lines.append("\nOther pairs and columns are not told apart by these seeds.\n")
    else:
        lines.append("- nothing is told apart by these seeds.\n")
    return "".join(lines)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Of two methods' ``[seeds, sums]``: the mean and a half-width of 95 % that has
    the spread over seeds (Student's t) as well as over sums."""
    count = min(len(one), len(other))
    by_sum = one[:count].mean(0) - other[:count].mean(0)
    mean, half = real.estimate(by_sum[None])
    if count < 2:
        return mean, np.inf
    by_seed = (one[:count] - other[:count]).mean(1)
    student = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}.get(count, 2.45)
    own = student * by_seed.std(ddof=1) / count**0.5
    return mean, float(np.hypot(half, own))


PICTURES = {
    "reward": ("", "Share of sums solved while training", "solved"),
    "entropy": ("_entropy", "Entropy while training", "entropy (nats a token)"),
}


def draw(path: Path, runs: dict[str, Any]) -> list[Path]:
    """What the training's own samples say over steps, one picture a column."""
    files = []
    for column, (name, title, words) in PICTURES.items():
        series = {}
        for method, of in by_method(runs).items():
            rows = np.array([run["curves"][column] for run in of])
            window = min(3, rows.shape[1])
            rows = np.apply_along_axis(
                np.convolve, 1, rows, np.ones(window) / window, "valid"
            )
            steps = np.arange(rows.shape[1]) + (window + 1) / 2
            series[method] = (steps, rows.mean(0), rows.min(0), rows.max(0))
        files.append(path.with_name(f"{path.stem}{name}.png"))
        plots.curves(
            files[-1],
            series,
            title=title,
            legend_title="mean of three steps;\nband: the seeds' range",
            ylabel=words,
        )
    return files


def samples(runs: dict[str, Any], held_out, *, most: int = 8) -> str:
    """The first held-out sums with an answer before and after, marked."""
    name = next(n for n in runs if n != "start")
    count = len(runs["start"]["texts"]) // len(held_out)
    lines = [f"\n| sum | right | before | after ({name}) |\n|---|---|---|---|\n"]
    for i, record in enumerate(held_out[:most]):
        cells = []
        for run in (runs["start"], runs[name]):
            text = run["texts"][i * count]
            mark = "✓" if real.right([text], [record])[0] > 0 else "✗"
            cells.append(f"{mark} `{' '.join(text.split()) or ' '}`")
        asked = record["prompt"].removeprefix(real.SHOWN)
        lines.append(f"| {asked} | {record['answer']} | {' | '.join(cells)} |\n")
    totals = [
        round(sum(runs[key]["end"]["accuracy"]) * count) for key in ("start", name)
    ]
    lines.append(
        f"\nRight of all {len(runs[name]['texts'])} answers to the {len(held_out)} "
        f"sums: {totals[0]} before, {totals[1]} after.\n"
    )
    return "".join(lines)


def write_report(path: Path, results: dict[str, Any], held_out) -> None:
    """The page, of as many runs as there are."""
    runs, set_ = results["runs"], results["settings"]
    if not by_method(runs):
        return
    pictures = "".join(
        f"```{{image}} {file.name}\n:alt: {title}\n```\n\n"
        for file, (_, title, _) in zip(
            draw(path.with_suffix(".png"), runs), PICTURES.values(), strict=True
        )
    )
    rank, found = set_["lora_rank"], by_method(runs)
    trained = f"LoRA of rank {rank}" if rank else "All weights"
    whole = "" if rank else ", all its weights"
    seeds = max(map(len, found.values()))
    chosen = set_ | {"methods": list(found), "seeds": seeds}
    path.write_text(
        f"# Reasoning on a real model{whole}\n\n"
        "SmolLM2-135M-Instruct adds and subtracts up to "
        f"{set_['terms']} one-digit numbers (reasoning-gym's `chain_sum`), after one "
        "solved example; the reward is 1 where the last number of the line is right. "
        f"{trained}, learning rate "
        f"{set_['learning_rate']:g}, {set_['steps']} rollouts of {set_['prompts']} "
        f"sums × {set_['completions']} completions of at most {set_['max_tokens']} "
        "tokens, one update each; each method with its paper's settings from the table "
        f"of algorithms. Measured on {set_['held_out']} sums that no run saw, "
        f"{set_['completions']} answers each at temperature 1; KL to the start in nats "
        "a completion (exact over the vocabulary at each sampled prefix), entropy in "
        "nats a token. Made by\n\n"
        "    alignax pretrained\n"
        f"    python -m experiments.reason --report docs/{path.name}"
        f"{real.options(chosen, Config())}\n\n"
        f"in {real.provenance(runs)}\n\n"
        f"{pictures}"
        f"Each step asks {set_['prompts']} other sums, some harder than others: what "
        "was learnt is measured on the held-out ones.\n\n"
        f"{table(runs)}"
        "\nIntervals are of 95 %, over the held-out sums, which the seeds share.\n"
        f"{progress(runs)}{findings(runs)}{samples(runs, held_out)}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__, resumes=False)
