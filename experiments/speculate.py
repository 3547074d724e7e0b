"""Speculative sampling of a real model by a draft of its own layers, aligned or not.

    alignax pretrained
    python -m experiments.speculate --report docs/speculate.md

The draft is the model with a quarter of its layers. It is aligned on text that the
model wrote itself: by the KL from the model's law to the draft's, exact over the
vocabulary, and, from halfway on, by TVD++ (arXiv 2403.00858): tokens drawn by the
draft, rewarded where the model gives them more than the draft does, standardised over
the batch. Before and after: how much of a draft is accepted, tokens for each pass of
the model, and the time of a token against plain sampling, one completion at a time,
on requests that no training has seen. ``results.json`` in ``--out`` keeps each draft
as it ends, and the same command goes on with what is missing.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, distillation, divergences, logprobs, reduce
from alignax.models import functional, students
from alignax.pipeline import data, speculative, update
from alignax.pipeline import rollout as rollouts
from alignax.train import supervised
from alignax.train.policy import Policy
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import real_model as real
from experiments.frontier import ask, split

DRAFTS = {"none": (), "kl": ("kl", "kl"), "tvd++": ("kl", "tvd++")}
"""How each draft is aligned, in two halves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Text, alignment, measure, report."""

    model: Path = real.FOLDER
    """The folder of a Hugging Face model, as ``alignax pretrained`` makes one."""
    out: Path = Path("runs/speculate")
    """The folder of the results."""
    report: Path | None = None
    """Write the page here, from all results that there are."""
    layers: int = 8
    """Layers of the draft, evenly spread over the model's."""
    requests: int = 32
    """Requests whose answers the draft learns from."""
    answers: int = 2
    """The model's answers to each."""
    max_tokens: int = 32
    """Tokens of the longest answer."""
    steps: int = 32
    """Optimiser steps of a draft, both halves together."""
    batch: int = 8
    """Answers that a step learns from."""
    learning_rate: float = 3e-4
    """At the peak of each half's schedule."""
    held_out: int = 8
    """Requests that are measured on."""
    gammas: tuple[int, ...] = (2, 3, 4, 5)
    """How many tokens are drafted at a time."""

    def __post_init__(self):
        if self.requests * self.answers < self.batch:
            raise InputError(
                f"batch must be at most the {self.requests * self.answers} answers, "
                f"got {self.batch}"
            )


class Bench(NamedTuple):
    """What all drafts share: the model, its draft before alignment, the texts."""

    policy: Policy
    draft: Any
    params: Any
    rows: Any
    states: jax.Array
    tests: list[Any]
    held_out: Any
    held_out_states: jax.Array


def prompts_of(policy: Policy, records, width: int):
    texts = [ask(policy.tokenizer, record) for record in records]
    numbers = list(range(len(texts)))
    return data.encode_prompts(texts, policy.tokenizer, length=width, indices=numbers)


def prepare(config: Config) -> Bench:
    """The model's answers, with its hidden states before each of their tokens."""
    policy = real.load(config.model, rank=0)
    train, held_out = split(config.held_out)
    records = [*train[: config.requests], *held_out]
    texts = [ask(policy.tokenizer, record) for record in records]
    width = data.lengths(texts, policy.tokenizer).prompt

    @jax.jit
    def write(params, key, prompts):
        rollout = rollouts.generate(
            policy.apply_fn,
            params,
            key,
            prompts,
            completions=config.answers,
            max_tokens=config.max_tokens,
            eos_id=policy.tokenizer.end_ids,
            pad_id=policy.tokenizer.pad_id,
        )
        states, _ = rollouts.completion_hidden(
            policy.hidden_fn, params, rollout, completions=config.answers
        )
        return rollout, states

    rollout, states = write(
        policy.params, jax.random.key(0), prompts_of(policy, records, width)
    )
    known = config.requests * config.answers
    small, params = students.from_layers(
        policy.config,
        policy.params,
        students.spread_layers(policy.config.num_layers, config.layers),
    )
    return Bench(
        policy,
        small,
        params,
        jax.tree.map(lambda x: x[:known], rollout),
        states[:known],
        [prompts_of(policy, [record], width) for record in held_out],
        jax.tree.map(lambda x: x[known:], rollout),
        states[known:],
    )


def make_loss(bench: Bench, name: str):
    """``(params, (rows, teacher's states, key)) -> sums`` of an objective."""
    hidden_fn = functional.make_hidden(bench.draft, scan=True)

    def loss_fn(teacher, params, batch):
        rows, states, keys = batch
        hidden, out = rollouts.completion_hidden(hidden_fn, params, rows)
        flat, aim = (x.reshape(-1, x.shape[-1]) for x in (hidden, states))
        mask = rows.trained
        if name == "kl":
            value = logprobs.divergence_from_hidden(
                divergences.forward_kl(), flat, out.head, aim, teacher
            )
            return *reduce.token_mean(value.reshape(mask.shape), mask), {}
        logits, goal = flat @ out.head.T, aim @ teacher.T
        tokens = jax.random.categorical(keys[0], jax.lax.stop_gradient(logits))
        logp, logq = (logprobs.token_logp(x, tokens) for x in (logits, goal))
        logp, logq = (x.reshape(mask.shape) for x in (logp, logq))
        value = distillation.tvd_surrogate(logp, logq, mask)
        return *reduce.token_mean(value, mask), {}

    return loss_fn


def align(config: Config, bench: Bench, halves: tuple[str, ...]) -> tuple[Any, list]:
    """The draft's parameters after its halves, and each step's loss."""
    params, curve = bench.params, []
    head = functional.make_hidden(bench.policy.config)
    teacher = head(bench.policy.params, jnp.zeros((1, 1), jnp.int32)).head
    for half, name in enumerate(halves):
        tx = supervised.optimiser(
            SFT(
                steps=max(config.steps // 2, 2),
                learning_rate=config.learning_rate,
                warmup=2,
            )
        )
        loss_fn = make_loss(bench, name)

        @partial(jax.jit, donate_argnums=1)
        def step(teacher, state, batch, loss_fn=loss_fn, tx=tx):
            return update.make_update(partial(loss_fn, teacher), tx)(state, batch)

        state = supervised.init_state(params, tx, jax.random.key(half))
        rng = np.random.default_rng(half)
        for number in range(max(config.steps // 2, 2)):
            chosen = rng.choice(len(bench.states), config.batch, replace=False)
            rows = jax.tree.map(lambda x, c=chosen: x[c], bench.rows)
            key = jax.random.fold_in(jax.random.key(17 + half), number)
            keys = jax.random.split(key, config.batch)
            state, metrics = step(teacher, state, (rows, bench.states[chosen], keys))
            curve.append(float(metrics["loss"]))
        params = state.params
    return params, curve


def overlap(bench: Bench, params: Any) -> dict[str, float]:
    """On the model's held-out answers, exact at each prefix: ``Σ min(p, q)``, which a
    draft's token is accepted with, and the KL in nats a token."""

    @jax.jit
    def look(both, rows, states):
        hidden, out = rollouts.completion_hidden(
            functional.make_hidden(bench.draft, scan=True), both[1], rows
        )
        teacher = functional.make_hidden(bench.policy.config)
        head = teacher(both[0], jnp.zeros((1, 1), jnp.int32)).head
        flat, aim = (x.reshape(-1, x.shape[-1]) for x in (hidden, states))
        mask = rows.trained

        def mean(div):
            value = logprobs.divergence_from_hidden(div, flat, out.head, aim, head)
            return reduce.divide(*reduce.token_mean(value.reshape(mask.shape), mask))

        return 1 - mean(divergences.total_variation()), mean(divergences.forward_kl())

    both = bench.policy.params, params
    acceptance, kl = look(both, bench.held_out, bench.held_out_states)
    return {"acceptance": float(acceptance), "kl": float(kl)}


def make_samplers(config: Config, bench: Bench) -> dict[int, Any]:
    """Of a completion at a time; 0 is plain sampling. Compiled once for all drafts."""
    tokenizer = bench.policy.tokenizer
    fixed = {
        "completions": 1,
        "max_tokens": config.max_tokens,
        "eos_id": tokenizer.end_ids,
        "pad_id": tokenizer.pad_id,
    }
    plain = partial(rollouts.generate, bench.policy.apply_fn, **fixed)
    samplers = {0: jax.jit(lambda both, *rest: (plain(both[0], *rest), None))}
    for gamma in config.gammas:
        samplers[gamma] = jax.jit(
            partial(
                speculative.generate,
                bench.policy.apply_fn,
                draft=functional.make_apply(bench.draft),
                rewind=functional.rewind,
                draft_tokens=gamma,
                **fixed,
            )
        )
    return samplers


def measure(samplers, bench: Bench, params: Any) -> dict[str, Any]:
    """Of each γ: seconds a token and, of each request, tokens and passes; the ways take
    turns on each request, so that what else runs beside touches all alike."""
    both, key = (bench.policy.params, params), jax.random.key(5)
    seconds = {gamma: [] for gamma in samplers}
    written, calls = ({gamma: [] for gamma in samplers} for _ in "ab")
    for sampler in samplers.values():
        jax.block_until_ready(sampler(both, key, bench.tests[0]))
    for prompts in bench.tests:
        for gamma, sampler in samplers.items():
            began = time.perf_counter()
            rollout, spent = jax.block_until_ready(sampler(both, key, prompts))
            passed = time.perf_counter() - began
            tokens = int(rollout.trained.sum())
            seconds[gamma].append(passed / tokens)
            written[gamma].append(tokens - 1)
            calls[gamma].append(tokens - 1 if spent is None else int(spent.calls[0]))
    return {
        str(gamma): {
            "seconds": seconds[gamma],
            "written": written[gamma],
            "calls": calls[gamma],
        }
        for gamma in samplers
    }


def main(config: Config) -> None:
    """Align each draft, measure it, and write the report."""
    file = config.out / "results.json"
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("model", "out", "report")
    }
    results = real.open_results(file, settings)
    wanted = [name for name in DRAFTS if name not in results["runs"]]
    if wanted:
        clock = real.clock()
        bench = prepare(config)
        samplers = make_samplers(config, bench)
        for name in wanted:
            params, curve = align(config, bench, DRAFTS[name])
            found = overlap(bench, params) | {
                "curve": curve,
                "by_gamma": measure(samplers, bench, params),
            }
            real.keep(file, results, name, found | clock())
            print(f"{name}: {found['acceptance']:.3f} accepted, KL {found['kl']:.3f}")
            clock = real.clock()
    if config.report is not None:
        write_report(config.report, results)


def table(runs: dict[str, Any]) -> str:
    """Drafts by γ, with 95 % intervals over requests."""
    gammas = [g for g in next(iter(runs.values()))["by_gamma"] if g != "0"]
    lines = [
        "| draft | accepted | KL | "
        + " | ".join(f"γ = {g}: tokens a pass, speed" for g in gammas)
        + " |",
        "|---" * (3 + len(gammas)) + "|",
    ]
    for name, run in runs.items():
        cells = [name, f"{run['acceptance']:.3f}", f"{run['kl']:.2f}"]
        plain = np.array(run["by_gamma"]["0"]["seconds"])
        for gamma in gammas:
            found = run["by_gamma"][gamma]
            calls, written = (np.array(found[x], float) for x in ("calls", "written"))
            some = calls > 0
            mean, half = real.estimate((written[some] / calls[some])[None])
            speed = np.median(plain / np.array(found["seconds"]))
            cells.append(f"{real.told(mean, half)}, {speed:.2f} ×")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def verdict(runs: dict[str, Any]) -> str:
    """What the times say, as they are."""
    speeds = [
        np.median(
            np.array(run["by_gamma"]["0"]["seconds"])
            / np.array(run["by_gamma"][gamma]["seconds"])
        )
        for run in runs.values()
        for gamma in run["by_gamma"]
        if gamma != "0"
    ]
    if max(speeds) < 1:
        return (
            "On this processor it is a loss everywhere: reading several tokens costs "
            "more than reading one, and so much is not accepted.\n"
        )
    return (
        f"On this processor the speeds go from {min(speeds):.2f} to {max(speeds):.2f} "
        "times plain sampling's: below 1 the draft costs more than it saves.\n"
    )


def write_report(path: Path, results: dict[str, Any]) -> None:
    """The page, of as many drafts as there are."""
    runs, set_ = results["runs"], results["settings"]
    missing = [f"`{name}`" for name in DRAFTS if name not in runs]
    best = max(runs, key=lambda name: runs[name]["acceptance"])
    first = (
        "A row's draws belong to its positions, so that another γ changes a completion "
        "only where a whole block is accepted. "
        f"Most is accepted of `{best}`. One seed and so few steps do not rank the "
        "objectives: TVD++ learns from the draft's own tokens that the model finds "
        "likelier, which are few while the two are far apart.\n\n"
    )
    left = f"Not measured yet: {', '.join(missing)}.\n" if missing else ""
    path.write_text(
        "# Speculative sampling by a draft of the model's own layers\n\n"
        f"SmolLM2-135M-Instruct answers in at most {set_['max_tokens']} tokens; the "
        f"draft is {set_['layers']} of its 30 layers. It is aligned on "
        f"{set_['requests'] * set_['answers']} of the model's answers, {set_['steps']} "
        f"steps of {set_['batch']}, learning rate {set_['learning_rate']:g}: `kl` by "
        "the KL from the model's law to the draft's, `tvd++` by that for half of the "
        "steps and TVD++ ([2403.00858](https://arxiv.org/abs/2403.00858)) for the "
        "other. Made by\n\n"
        "    alignax pretrained\n"
        "    python -m experiments.speculate --report docs/speculate.md"
        f"{real.options(set_, Config())}\n\n"
        f"in {real.provenance(runs)}\n\n"
        f"On {set_['held_out']} requests that were not trained on, a completion at a "
        "time, one seed. Accepted: `Σ min(p, q) = 1 − TV`, exact at each prefix of "
        "the model's answers; KL in nats a token. Tokens a pass (block efficiency, "
        "at most γ + 1) with 95 % intervals over requests; speed is the "
        "median over requests of plain sampling's time of a token over this one's, "
        "both timed in turns.\n\n"
        f"{table(runs)}{first}{verdict(runs)}{left}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__, resumes=False)
