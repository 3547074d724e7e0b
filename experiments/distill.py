"""A real model teaches a student of a quarter of its layers to add, by seven ways.

    alignax pretrained
    python -m experiments.distill --report docs/distill.md

The student has some of the model's own layers. It begins at what the forward KL on the
teacher's answers makes of it, the same for all; then each way goes on with it: that KL,
GKD's Jensen-Shannon on a half of each's answers, the reverse KL on its own, OPD and
ExOPD, whose advantage is the log-ratio to the teacher, and SDPO, whose teacher is the
student itself told the answer. On held-out sums: the share solved, both KLs to the
teacher, exact over the vocabulary, and by how many tokens it came there.
``results.json`` in ``--out`` keeps each way as it ends, and the same command goes on
with what is missing.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli, divergences
from alignax.models import functional, students
from alignax.pipeline import data, plots
from alignax.pipeline import rollout as rollouts
from alignax.train import assembly, distillation, supervised, tasks
from alignax.train import policy as policies
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import real_model as real

OBJECTIVES = {
    "forward KL, the teacher's answers": (divergences.forward_kl(), 0.0),
    "GKD: Jensen-Shannon, half and half": (divergences.jensen_shannon(), 0.5),
    "reverse KL, own answers": (divergences.reverse_kl(), 1.0),
}
METHODS = {
    "OPD": "opd",
    "ExOPD, scale 1.25": "g_opd (exopd)",
    "SDPO, told the answer": "sdpo",
}
BEFORE = "the student before"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Teacher, student, ways, report."""

    model: Path = real.FOLDER
    """The teacher: the folder of a Hugging Face model, as ``alignax pretrained`` makes
    one."""
    out: Path = Path("runs/distill")
    """The folder of the results."""
    report: Path | None = None
    """Write the page here, from all results that there are."""
    layers: int = 8
    """Layers of the student, evenly spread over the teacher's."""
    warm: int = 100
    """Steps of the forward KL that all ways begin from."""
    steps: int = 60
    """Steps of each way."""
    prompts: int = 32
    """Sums of a step; an own answer of each, or several of fewer sums."""
    learning_rate: float = 2e-4
    """At the peak of each schedule, of the objectives over the vocabulary."""
    sampled_learning_rate: float = 5e-5
    """The same of OPD, ExOPD and SDPO, which learn from the sampled token's ratio."""
    every: int = 15
    """Steps between measurements."""
    held_out: int = 40
    """Sums to measure on."""
    completions: int = 8
    """Answers to each of them."""
    max_tokens: int = 4
    """Tokens of the longest answer."""
    seed: int = 0
    """Of the samples and the order of the sums."""

    def __post_init__(self):
        for name in ("layers", "warm", "steps", "every", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.prompts % 4:
            raise InputError(f"prompts must be a multiple of 4, got {self.prompts}")


class Bench(NamedTuple):
    """What all ways share, made once."""

    config: Config
    teacher: Policy
    student: Policy
    ends: tuple[int, ...]
    train: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    width: int
    """Tokens of the longest prompt."""
    measure: Any = None
    """Of ``make_measure``."""


def prepare(config: Config) -> Bench:
    """The two models and the sums."""
    teacher = real.load(config.model, rank=0)
    kept = students.spread_layers(teacher.config.num_layers, config.layers)
    small, params = students.from_layers(teacher.config, teacher.params, kept)
    train, asked = real.sums(1000, held_out=config.held_out, seed=0)
    texts = [record["prompt"] for record in train + asked]
    bench = Bench(
        config,
        teacher,
        policies.make(small, params, teacher.tokenizer),
        real.line_ends(teacher.tokenizer),
        train,
        asked,
        data.lengths(texts, teacher.tokenizer).prompt,
    )
    return bench._replace(measure=make_measure(bench))


def batches_of(bench: Bench, size: int):
    """Sums to train on, so many at a time."""
    return data.prompt_batches(
        bench.train,
        bench.teacher.tokenizer,
        prompt=lambda record: record["prompt"],
        batch_size=size,
        length=bench.width,
        seed=bench.config.seed,
    )


def told(bench: Bench, prompts):
    """Prompts whose teacher is shown the sum with its answer before."""
    texts = [
        f"{record['prompt']} {record['answer']}\n"
        + record["prompt"].removeprefix(real.SHOWN)
        for record in (bench.train[int(i)] for i in np.asarray(prompts.index))
    ]
    shown = data.encode_prompts(texts, bench.teacher.tokenizer, length=2 * bench.width)
    return dataclasses.replace(prompts, guide=shown.tokens, guide_mask=shown.mask)


def make_measure(bench: Bench) -> Callable[[Any], dict[str, Any]]:
    """``params -> numbers of each held-out sum``, the teacher's answers the same each
    time."""
    config, tokenizer = bench.config, bench.teacher.tokenizer
    prompts = data.encode_prompts(
        [record["prompt"] for record in bench.asked], tokenizer, length=bench.width
    )
    hidden = functional.make_hidden(bench.student.config)

    def write(apply_fn, params, key):
        return rollouts.generate(
            apply_fn,
            params,
            key,
            prompts,
            completions=config.completions,
            max_tokens=config.max_tokens,
            eos_id=bench.ends,
            pad_id=tokenizer.pad_id,
        )

    @jax.jit
    def theirs(teacher):
        return write(bench.teacher.apply_fn, teacher, jax.random.key(98))

    @jax.jit
    def found(params, teacher, shown):
        own = write(bench.student.apply_fn, params, jax.random.key(99))

        def total(div, rollout):
            of = distillation.by_divergence(hidden, bench.teacher.hidden_fn, div)
            value = of(params, teacher, rollout)
            return jnp.sum(jnp.where(rollout.trained, value, 0), axis=-1)

        return own, {
            "reverse": total(divergences.reverse_kl(), own),
            "forward": total(divergences.forward_kl(), shown),
        }

    answers = theirs(bench.teacher.params)

    def measure(params):
        own, numbers = found(params, bench.teacher.params, answers)
        texts = data.decode_rows(own.tokens, own.trained, tokenizer)
        solved = real.solved(texts, bench.asked, config.completions)
        shape = solved.shape
        kls = {k: np.asarray(v).reshape(shape).mean(1) for k, v in numbers.items()}
        return kls | {"solved": solved.mean(1), "pass@K": real.tries(solved)}

    return measure


def curve(bench: Bench, state, steps: int, move: Callable) -> tuple[Any, list[dict]]:
    """The state at the end, and what was measured on the way."""
    every, tokens, seen = bench.config.every, 0, []
    for done in range(1, steps + 1):
        state, count = move(state)
        tokens += count
        if done % every == 0 or done == steps:
            seen.append({"step": done, "tokens": tokens} | bench.measure(state.params))
    return state, seen


def by_objective(bench: Bench, params, name: str, steps: int):
    """A divergence over the vocabulary, on whosever answers."""
    div, own = OBJECTIVES[name]
    config = bench.config
    tx = supervised.optimiser(
        SFT(steps=steps, learning_rate=config.learning_rate, warmup=2)
    )
    sample = distillation.make_sampler(
        bench.student.apply_fn,
        bench.teacher.apply_fn,
        own_share=own,
        max_tokens=config.max_tokens,
        eos_id=bench.ends,
        pad_id=bench.teacher.tokenizer.pad_id,
    )
    loss = distillation.by_divergence(
        functional.make_hidden(bench.student.config), bench.teacher.hidden_fn, div
    )
    learn, batches = distillation.make_step(loss, tx), batches_of(bench, config.prompts)
    state = supervised.init_state(params, tx, jax.random.key(config.seed))

    def move(state):
        rollout = sample(state, bench.teacher.params, next(batches))
        count = int(rollout.trained.sum())
        return learn(state, bench.teacher.params, rollout)[0], count

    return curve(bench, state, steps, move)


def by_method(bench: Bench, params, name: str, steps: int):
    """A policy gradient whose reward is what a teacher says."""
    config, itself = bench.config, METHODS[name] == "sdpo"
    rl = RL(
        method=METHODS[name],
        steps=steps,
        prompts=config.prompts // 4,
        completions=4,
        learning_rate=config.sampled_learning_rate,
        warmup=2,
    )
    parts = assembly.of_policy(
        rl,
        bench.student._replace(params=params),
        teacher=() if itself else (bench.teacher,),
        max_tokens=config.max_tokens,
        eos_id=bench.ends,
    )
    judge = tasks.judge_texts(
        bench.train, real.right, bench.teacher.tokenizer, right=real.right
    )
    step = tasks.host_step(parts, judge, guide=partial(told, bench) if itself else None)
    batches, first = (batches_of(bench, rl.prompts) for _ in range(2))
    first = next(first)
    state = parts.init(
        params,
        jax.random.key(config.seed),
        records=len(bench.train),
        prompts=told(bench, first) if itself else first,
    )

    def move(state):
        state, metrics = step(state, next(batches))
        return state, round(float(metrics["length"]) * rl.prompts * rl.completions)

    return curve(bench, state, steps, move)


def main(config: Config) -> None:
    """Teach by each way that the folder has not, and write the report."""
    path, but = config.out / "results.json", ("out", "report", "model")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in but}
    results = real.open_results(path, settings)
    ways: dict[str, Callable] = dict.fromkeys(OBJECTIVES, by_objective)
    ways |= dict.fromkeys(METHODS, by_method)
    wanted = [name for name in (BEFORE, *ways) if name not in results["runs"]]
    if wanted:
        bench, since = prepare(config), real.clock()
        warm, seen = by_objective(
            bench, bench.student.params, next(iter(OBJECTIVES)), config.warm
        )
        if BEFORE in wanted:
            untaught = bench.measure(bench.student.params)
            real.keep(
                path, results, BEFORE, {"curve": seen, "untaught": untaught} | since()
            )
        for name in [name for name in wanted if name != BEFORE]:
            since = real.clock()
            params = jax.tree.map(jnp.copy, warm.params)
            _, seen = ways[name](bench, params, name, config.steps)
            real.keep(path, results, name, {"curve": seen} | since())
            print(f"{name}: {np.mean(seen[-1]['reverse']):.3f} nats", flush=True)
    print(table(results["runs"]))
    if config.report is not None:
        write_report(config, results)


def told_of(values: Any) -> str:
    """A mean over the held-out sums, with its 95 % interval."""
    return real.told(*real.estimate(np.asarray(values, np.float64)[None]))


def table(runs: dict[str, Any]) -> str:
    """The ways' ends."""
    lines = [
        "| way | solved | pass@K | reverse KL | forward KL |",
        "|---|---|---|---|---|",
    ]
    before = runs[BEFORE]
    rows = {"its layers, untaught": before["untaught"], BEFORE: before["curve"][-1]}
    rows |= {name: run["curve"][-1] for name, run in runs.items() if name != BEFORE}
    for name, last in rows.items():
        cells = [told_of(last[x]) for x in ("solved", "pass@K", "reverse", "forward")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def path_of(runs: dict[str, Any]) -> str:
    """By how many tokens the student before came how near, and where it stood still."""
    seen = runs[BEFORE]["curve"]
    steps = [f"{x['tokens']:,.0f}: {np.mean(x['reverse']):.2f}" for x in seen]
    return "; ".join(steps)


def gains(runs: dict[str, Any]) -> str:
    """What each way changed, of the same sums."""
    start, lines = runs[BEFORE]["curve"][-1], []
    for name, run in runs.items():
        if name == BEFORE:
            continue
        told, end = [], run["curve"][-1]
        for column, words in (("reverse", "reverse KL"), ("solved", "solved")):
            gap = np.asarray(end[column]) - np.asarray(start[column])
            mean, half = real.estimate(gap[None])
            apart = "" if abs(mean) > half else ", not told apart"
            told.append(f"{words} {mean:+.2f} ± {half:.2f}{apart}")
        lines.append(f"- {name}: {'; '.join(told)}")
    return "\n".join(lines) + "\n"


def write_report(config: Config, results: dict[str, Any]) -> None:
    """The page and its picture, of as many ways as there are."""
    assert config.report is not None
    runs, picture = results["runs"], config.report.with_suffix(".png")
    series = {}
    for name, run in runs.items():
        if name != BEFORE:
            x = [0.0] + [point["step"] for point in run["curve"]]
            y = [np.mean(runs[BEFORE]["curve"][-1]["reverse"])]
            y += [np.mean(point["reverse"]) for point in run["curve"]]
            series[name] = (x, y, None, None)
    plots.curves(
        picture, series, ylabel="reverse KL to the teacher (nats a completion)"
    )
    missing = [name for name in (*OBJECTIVES, *METHODS) if name not in runs]
    left = f"Not run yet: {', '.join(missing)}.\n" if missing else ""
    config.report.write_text(
        "# A teacher and a student of its own layers\n\n"
        f"SmolLM2-135M-Instruct teaches {config.layers} of its 30 layers to add and "
        "subtract two one-digit numbers, after one solved example. All ways begin "
        f"from {config.warm} steps of the forward KL on the teacher's answers and "
        f"take {config.steps} more, of {config.prompts} answers of at most "
        f"{config.max_tokens} tokens; learning rates "
        f"{config.learning_rate:g} of the objectives over the vocabulary and "
        f"{config.sampled_learning_rate:g} of OPD, ExOPD and SDPO; one seed. Made "
        "by\n\n"
        "    alignax pretrained\n"
        "    python -m experiments.distill --report docs/distill.md"
        f"{real.options(results['settings'], Config())}\n\n"
        f"in {real.provenance(runs)}\n\n"
        f"```{{image}} {picture.name}\n:alt: Reverse KL to the teacher by step\n"
        "```\n\n"
        f"Of {config.held_out} held-out sums, {config.completions} answers each "
        "(K): KLs in nats a completion, exact over the vocabulary at each prefix of "
        "the student's answers (reverse) or the teacher's (forward); 95 % intervals "
        "over sums.\n\n"
        f"{table(runs)}\n"
        "The student's way to where all begin, reverse KL by tokens trained on: "
        f"{path_of(runs)}.\n\n"
        "SDPO's teacher is the student itself, told the answer: nothing holds it to "
        "the model. Against the student before, of the same sums:\n\n"
        f"{gains(runs)}{left}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__, resumes=False)
