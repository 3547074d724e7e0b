"""Reward against KL with a pretrained language model, and where a proxy stops paying.

    alignax pretrained && python -m experiments.frontier --report docs/frontier.md

SmolLM2-135M-Instruct writes one sentence about a thing; the reward is a lexicon's
sentiment. LoRA adapters are trained under each divergence from the model at several
strengths. Beside them stand best-of-n and each divergence's exact optimum on samples of
the model itself. Held back from all of them is a gold reward: a positive sentence about
its thing, of words that exist and are not repeated.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, exact
from alignax import divergences as dv
from alignax.pipeline import data, metrics, plots, rewards
from alignax.train import assembly
from alignax.train.options import RL, divergence_of
from alignax.types import InputError
from experiments import real_model as real

# With the curvature that makes an equal strength equally strong near the reference.
DIVERGENCES = {
    "reverse_kl": 1.0,
    "forward_kl": 1.0,
    "jensen_shannon": 4.0,
    "alpha:0.5": 1.0,
    "chi2_kl": 0.5,
}
EXACT_BETAS = (0.3, 0.1)
SYSTEM = "Answer in one short sentence."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The frontier of a real model, by divergence and strength."""

    model: Path = real.FOLDER
    """The model's Hugging Face folder."""
    out: Path = Path("runs/frontier")
    """The folder of ``results.json``; runs that it has are not run again."""
    report: Path | None = None
    """Markdown file for the report; its pictures lie beside it."""
    divergences: tuple[str, ...] = tuple(DIVERGENCES)
    """The divergences from the model."""
    betas: tuple[float, ...] = (0.01, 0.1)
    """Strengths for the reverse KL; those of the others are as strong near the
    model."""
    seeds: int = 1
    """Runs of each divergence and strength."""
    lora_rank: int = 16
    """The rank of the adapters; 0 trains all parameters."""
    steps: int = 10
    """Rollouts of a run."""
    prompts: int = 4
    """Requests a rollout."""
    completions: int = 8
    """Sentences a request."""
    learning_rate: float = 1e-3
    """The learning rate at its peak."""
    max_tokens: int = 24
    """Tokens of the longest sentence; longer ones are cut."""
    prompt_length: int = 48
    """Tokens of the longest request; longer ones are left out."""
    held_out: int = 12
    """Requests to measure on, with ``completions`` sentences each."""
    best_of: int = 16
    """Sentences of the model itself for each of them, to take the best of."""

    def __post_init__(self):
        least = {"seeds": 1, "steps": 1, "prompts": 1, "completions": 2}
        least |= {"max_tokens": 1, "held_out": 2, "best_of": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(
                    f"{name} must be at least {bound}, got {getattr(self, name)}"
                )
        if not self.betas or not all(0 < beta < np.inf for beta in self.betas):
            raise InputError(f"betas must be positive and finite, got {self.betas}")
        if self.best_of % self.completions:
            raise InputError(
                f"best_of must be a multiple of the {self.completions} completions, "
                f"got {self.best_of}"
            )
        for name in self.divergences:
            divergence_of(name)


def split(held_out: int) -> tuple[list[dict], list[dict]]:
    """Requests to train on and to measure on."""
    records = data.review_prompts()
    order = np.random.default_rng(0).permutation(len(records))
    records = [records[number] for number in order]
    return records[held_out:], records[:held_out]


def ask(tokenizer: data.Tokenizer, record: Mapping[str, Any]) -> str:
    if tokenizer.chat is None:
        return f"{record['prompt']}\n"
    system = {"role": "system", "content": SYSTEM}
    return tokenizer.chat([system, {"role": "user", "content": record["prompt"]}])


def judged(texts, records, judges) -> dict[str, np.ndarray]:
    """Proxy and gold of sentences, ``[requests, completions]``."""
    count = len(texts) // len(records)
    asked = [record for record in records for _ in range(count)]
    return {
        name: np.asarray(judge(texts, asked)).reshape(len(records), count)
        for name, judge in judges.items()
    }


def best_of(scores: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Best-of-n by the proxy, for each request: the law over its samples."""
    proxy = jnp.asarray(scores["proxy"])
    logp_ref = jnp.full(proxy.shape, -np.log(proxy.shape[-1]))
    return under(exact.best_of_n(proxy, logp_ref, n=n), scores)


def optimum(scores: dict[str, np.ndarray], name: str, beta: float):
    """A divergence's exact optimum over the samples of each request."""
    proxy = jnp.asarray(scores["proxy"])
    logp_ref = jnp.full(proxy.shape, -np.log(proxy.shape[-1]))
    strength = beta * DIVERGENCES.get(name, 1.0)
    logp, _, _ = dv.regularised_optimum(
        divergence_of(name), proxy, logp_ref, beta=strength
    )
    return under(logp, scores)


def under(logp: jax.Array, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Proxy, gold and KL of a law over samples, ``[requests]``."""
    law = np.exp(np.asarray(logp, np.float64))
    kl = exact.kl(logp, jnp.full(logp.shape, -np.log(logp.shape[-1])))
    means = {name: (law * x).sum(-1) for name, x in scores.items()}
    return means | {"kl": np.asarray(kl)}


def main(config: Config) -> None:
    policy = real.load(config.model, rank=config.lora_rank)
    tokenizer = policy.tokenizer
    ends = real.line_ends(tokenizer)
    train, held_out = split(config.held_out)
    judges = {"proxy": rewards.sentiment(), "gold": rewards.review()}
    measured = data.encode_prompts(
        [ask(tokenizer, record) for record in held_out],
        tokenizer,
        length=config.prompt_length,
    )
    path = config.out / "results.json"
    but = ("out", "report", "divergences", "betas", "seeds", "model")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in but}
    results = real.open_results(path, settings)
    laws = {"completions": config.completions, "max_tokens": config.max_tokens}
    measure = real.make_measure(policy, **laws, ends=ends)

    def look(params, seed, key=0):
        start = real.fresh(policy, seed)
        found = measure(params, start, jax.random.key(99 + key), measured)
        return judged(found["text"], held_out, judges) | found

    if "start" not in results["runs"]:
        since = real.clock()
        start = real.fresh(policy, 0)
        parts = [look(start, 0, i) for i in range(config.best_of // config.completions)]
        several = {
            name: np.concatenate([part[name] for part in parts], axis=1)
            for name in judges
        }
        texts = parts[0]["text"]
        real.keep(path, results, "start", {"end": several, "texts": texts} | since())
    parts = {}  # compiled once for all strengths and seeds
    for beta, seed, name in itertools.product(
        config.betas, range(config.seeds), config.divergences
    ):
        key = f"{name}/{beta:g}/{seed}"
        if key in results["runs"]:
            continue
        if name not in parts:
            parts[name] = make_parts(config, policy, name, ends)
        since = real.clock()
        run = one_run(config, parts[name], policy, train, judges, name, beta, seed)
        found = look(run.pop("params"), seed)
        columns = ("proxy", "gold", "kl", "entropy", "length")
        run["end"] = {
            column: np.asarray(found[column]).reshape(len(held_out), -1).mean(1)
            for column in columns
        }
        real.keep(path, results, key, run | {"texts": found["text"]} | since())
        print(f"{key}: {np.mean(run['end']['proxy']):.3f}", flush=True)
        if config.report is not None:
            write_report(config.report, results, held_out)
    if config.report is not None:
        write_report(config.report, results, held_out)


def make_parts(config: Config, policy, name: str, ends):
    rl = RL(
        divergence=name,
        level="sequence",
        form="sampled",
        place="reward",
        steps=config.steps,
        prompts=config.prompts,
        completions=config.completions,
        learning_rate=config.learning_rate,
        warmup=2,
    )
    return assembly.of_policy(rl, policy, max_tokens=config.max_tokens, eos_id=ends)


def one_run(config, parts, policy, train, judges, name, beta, seed) -> dict[str, Any]:
    """One divergence at one strength: what each rollout's samples were worth."""
    tokenizer = policy.tokenizer
    prompts = data.prompt_batches(
        train,
        tokenizer,
        prompt=lambda record: ask(tokenizer, record),
        batch_size=config.prompts,
        length=config.prompt_length,
        seed=seed,
        on_long="drop",
    )
    strength = beta * DIVERGENCES.get(name, 1.0)
    state = parts.init(real.fresh(policy, seed), jax.random.key(seed), beta=strength)
    curves: dict[str, list] = {n: [] for n in ("proxy", "gold", "kl", "skipped")}
    for _ in range(config.steps):
        batch = next(prompts)
        samples = parts.sample(state, batch)
        rollout = samples.rollout
        texts = data.decode_rows(rollout.tokens, rollout.trained, tokenizer)
        asked = [train[number] for number in np.asarray(batch.index)]
        values = judged(texts, asked, judges)
        ratio = np.asarray(samples.scored.logp_old - samples.scored.logp_ref)
        ratio = np.where(np.asarray(rollout.trained), ratio, 0).sum(-1)
        state, found = parts.step(state, samples.rewarded(values["proxy"].ravel()))
        for column, value in values.items():
            curves[column].append(value.ravel().tolist())
        curves["kl"].append(ratio.tolist())
        curves["skipped"].append(float(found["skipped"]))
    return {"curves": curves, "params": state.params}


def stretches(run: dict[str, Any], parts: int = 4) -> dict[str, np.ndarray]:
    """A run in stretches of steps: mean and 95 % half-width of each, by column."""
    found = {}
    for name in ("proxy", "gold", "kl"):
        pieces = np.array_split(np.asarray(run["curves"][name]), parts)
        pairs = [metrics.mean_and_interval(piece) for piece in pieces if piece.size]
        found[name], found[f"{name}_half"] = np.array(pairs).T
    return found


def turning(curve: dict[str, np.ndarray]) -> tuple[float, float, float, float] | None:
    """Where gold has fallen from its best: the KL of the best stretch, that of the
    last one, and the fall with its half-width; None where the fall is noise."""
    best = int(np.argmax(curve["gold"]))
    fall = curve["gold"][best] - curve["gold"][-1]
    half = float(np.hypot(curve["gold_half"][best], curve["gold_half"][-1]))
    if best == len(curve["gold"]) - 1 or fall <= half:
        return None
    return float(curve["kl"][best]), float(curve["kl"][-1]), float(fall), half


def trained(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: run for name, run in runs.items() if name != "start"}


def label(name: str) -> str:
    word, beta, seed = name.rsplit("/", 2)
    return f"{word}, β {beta}" + ("" if seed == "0" else f", seed {seed}")


def table(runs: dict[str, Any]) -> str:
    """Trained policies, best-of-n and optima, on the held-out requests."""
    scores = {name: np.array(x) for name, x in runs["start"]["end"].items()}
    columns = ("proxy", "gold", "kl")
    lines = ["| policy | proxy | gold | KL |\n|---|---|---|---|\n"]

    def add(name, values, bound=None):
        cells = [real.told(*metrics.mean_and_interval(values[c])) for c in columns]
        if bound is not None:
            cells[-1] += f" (≤ {bound:.2f})"
        lines.append(f"| {name} | {' | '.join(cells)} |\n")

    start = {name: x.mean(1) for name, x in scores.items()}
    add("the model", start | {"kl": np.zeros(len(scores["proxy"]))})
    for name, run in trained(runs).items():
        add(label(name), {c: np.array(run["end"][c]) for c in columns})
    samples = scores["proxy"].shape[1]
    for n in (2, 4, 8):
        if n <= samples:
            add(f"best of {n}", best_of(scores, n), np.log(n) - (n - 1) / n)
    for name, beta in itertools.product(DIVERGENCES, EXACT_BETAS):
        found = optimum(scores, name, beta)
        add(f"exact {name}, β {beta:g}, of samples", found)
    return "".join(lines)


def findings(runs: dict[str, Any]) -> str:
    """Where gold begins to fall, and what is noise."""
    lines = [
        "\nOver-optimisation, along the runs' own samples (a quarter of a run a "
        "point; 95 % intervals over sentences, not over seeds):\n\n"
    ]
    for name, run in trained(runs).items():
        curve = stretches(run)
        rise = curve["proxy"][-1] - curve["proxy"][0]
        half = float(np.hypot(curve["proxy_half"][0], curve["proxy_half"][-1]))
        text = f"proxy {rise:+.2f} ± {half:.2f} at {curve['kl'][-1]:.1f} nats"
        found = turning(curve)
        if found is None:
            best = int(np.argmax(curve["gold"]))
            text += f"; gold {curve['gold'][0]:.2f} → {curve['gold'][-1]:.2f}"
            if best < len(curve["gold"]) - 1:
                text += ", no fall beyond its noise"
            else:
                text += ", at its best at the end"
        else:
            at, last, fall, wide = found
            text += (
                f"; gold is at its best at {at:.1f} nats and has lost "
                f"{fall:.2f} ± {wide:.2f} at {last:.1f}"
            )
        lines.append(f"- {label(name)}: {text}.\n")
    return "".join(lines)


def draw(path: Path, runs: dict[str, Any], column: str) -> None:
    """Proxy or gold against KL, along each run and over best-of-n."""
    scores = {name: np.array(x) for name, x in runs["start"]["end"].items()}
    lines = []
    for name, run in trained(runs).items():
        curve = stretches(run)
        lines.append(
            plots.Trajectory(
                label(name),
                np.maximum(curve["kl"], 0),
                curve["kl_half"],
                curve[column],
                curve[f"{column}_half"],
            )
        )
    ns = [n for n in (1, 2, 4, 8) if n <= scores["proxy"].shape[1]]
    points = [(n, best_of(scores, n)) for n in ns]
    plots.frontier(
        path,
        lines,
        best_of_n=[
            (n, float(np.mean(x["kl"])), float(np.mean(x[column]))) for n, x in points
        ],
        title=f"{column.capitalize()} against KL",
        ylabel={"proxy": "sentiment (proxy)", "gold": "gold reward, held back"}[column],
        xlabel="KL to the model (nats per completion)",
    )


def samples(runs: dict[str, Any], held_out, *, most: int = 3) -> str:
    """Sentences of the model, and of the run whose proxy is highest."""
    ended = trained(runs)
    name = max(ended, key=lambda n: np.mean(ended[n]["end"]["proxy"]))
    lines = [f"\nThe first sentence before, and after {label(name)}:\n\n"]
    for i, record in enumerate(held_out[:most]):
        lines.append(f"- {record['prompt']}\n")
        for word, run in (("before", runs["start"]), ("after", runs[name])):
            count = len(run["texts"]) // len(held_out)
            text = " ".join(run["texts"][i * count].split()).replace("`", "'")
            lines.append(f"  - {word}: `{text or ' '}`\n")
    return "".join(lines)


def command(path: Path, results: dict[str, Any]) -> str:
    """What makes these runs: all that is not a default."""
    usual, found = (
        dataclasses.asdict(Config()),
        [name.split("/") for name in trained(results["runs"])],
    )
    chosen = {k: [v] for k, v in results["settings"].items() if v != usual[k]}
    for name, place in (("divergences", 0), ("betas", 1)):
        values = list(dict.fromkeys(parts[place] for parts in found))
        if values != [str(x) for x in usual[name]]:
            chosen[name] = values
    words = [
        f"--{k.replace('_', '-')} {' '.join(map(str, v))}" for k, v in chosen.items()
    ]
    return " ".join(
        ["python -m experiments.frontier", *words, f"--report docs/{path.name}"]
    )


def write_report(path: Path, results: dict[str, Any], held_out) -> None:
    """The page, of as many runs as there are."""
    runs, set_ = results["runs"], results["settings"]
    if not trained(runs):
        return
    pictures = {}
    for column in ("proxy", "gold"):
        pictures[column] = path.with_name(f"{path.stem}_real_{column}.png")
        draw(pictures[column], runs, column)
    images = "".join(
        f"```{{image}} {file.name}\n:alt: {column} against KL\n```\n\n"
        for column, file in pictures.items()
    )
    seeds = len({name.rsplit("/", 1)[1] for name in trained(runs)})
    path.write_text(
        f"# The frontier of a real model, {set_['steps']} rollouts\n\n"
        "SmolLM2-135M-Instruct writes one sentence about a thing ("
        f"{len(data.review_prompts()) - set_['held_out']} requests to train on, "
        f"{set_['held_out']} to measure on). The proxy that is trained for is a "
        "lexicon's sentiment (vaderSentiment, −1 to 1). The gold reward, which nothing "
        "is trained on, is `rewards.review`: positive, of words that exist and are not "
        "repeated, in a sentence, about its thing (0 to 1); a checker of our own, no "
        f"judgement of people. LoRA of rank {set_['lora_rank']}, learning rate "
        f"{set_['learning_rate']:g}, {set_['steps']} rollouts of {set_['prompts']} "
        f"requests × {set_['completions']} sentences of at most {set_['max_tokens']} "
        "tokens, the method `unbiased`: the divergence of whole completions, sampled, "
        "in the reward. β of a divergence is the one shown times 1 / f''(1), so that "
        f"equal numbers are equally strong near the model. Seeds of each run: {seeds}. "
        "Made by\n\n"
        "    alignax pretrained\n"
        f"    {command(path, results)}\n\n"
        f"in {real.provenance(runs)}\n\n{images}"
        "On the held-out requests, intervals of 95 % over them; KL in nats a "
        "completion, of trained policies exact over the vocabulary at each sampled "
        f"prefix. Best-of-n and the exact optima are laws over the {set_['best_of']} "
        "samples of each request, with their KL on these samples, beside it the bound "
        "log n − (n − 1)/n.\n\n"
        f"{table(runs)}{findings(runs)}{samples(runs, held_out)}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__, resumes=False)
