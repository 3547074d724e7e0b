"""The policy-gradient family on one task, the method a configuration value.

    python -m experiments.rlvr --out runs/rlvr --report docs/rlvr.md

A small decoder adds three digits; ``7``, ``07`` and ``007`` are all right, so that
answers have lengths to learn. Phase one imitates a teacher who is often off by one
or two: the reference, the same for all. Phase two trains a copy by each method of
``alignax.algorithms.METHODS``, all seeds at once under ``vmap``. There are 1110
completions, so accuracy, pass@k, KL to the reference, entropy and length on held-out
sums are exact, without sampling.
"""

import dataclasses
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import alignax
from alignax import algorithms, cli
from alignax.models import decoder, functional
from alignax.train import assembly, options, supervised
from alignax.train.options import RL
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments import rlvr_report, sums

# What a method needs that this task has not.
ABSENT = {
    "log-probabilities under a policy trained on preferences": (
        "rto",
        "f_dpg (product)",
    ),
    "a sampler of several tokens at a position": ("cot2",),
    "two policies, where one is measured": ("cory",),
    "another model for the soup": ("salsa",),
    "rewards of the reference's completions from before the run": ("a_star_po",),
    "a teacher": (
        "opd",
        "g_opd",
        "opsd",
        "sdft",
        "sdpo",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every method on sums of three digits."""

    out: Path = Path("runs/rlvr")
    """Folder of ``results.json``; methods that it has are not run again."""
    report: Path | None = None
    """Markdown file for the table."""
    methods: tuple[str, ...] = ()
    """Keys of the table, with a variant in brackets; none for all."""
    seeds: int = 10
    """Runs of each method, which train in one batch."""
    seed: int = 0
    """The seed of the split, the reference and the runs."""
    steps: int = 80
    """How many rollouts each run trains on."""
    prompts: int = 16
    """Sums in each rollout."""
    completions: int = 8
    """Completions of each sum, which make a group."""
    updates: int = 2
    """Optimiser steps on each rollout; from the second on ratios differ from 1."""
    learning_rate: float = 2e-3
    """The learning rate at the peak of its schedule."""
    held_out: int = 100
    """How many sums are kept from training, to measure on."""
    mistakes: float = 0.5
    """Share of the teacher's answers that are off by one or two."""
    hidden_size: int = 32
    """Width of the decoder."""
    sft: SFT = SFT(steps=1500, learning_rate=5e-3)

    def __post_init__(self):
        for name, least in (("seeds", 1), ("steps", 1), ("prompts", 1), ("updates", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise InputError(
                f"hidden_size must be a positive multiple of 8, got {self.hidden_size}"
            )
        if self.completions < 2 or self.completions % 2:
            raise InputError(
                f"completions must be even and positive, got {self.completions}"
            )
        if not 1 <= self.held_out <= 500:
            raise InputError(f"held_out must be from 1 to 500, got {self.held_out}")
        unknown = set(self.methods) - set(runnable())
        if unknown:
            raise InputError(
                f"methods: no composition that runs here is called {sorted(unknown)}; "
                f"there are {', '.join(runnable())}"
            )


def runnable() -> dict[str, algorithms.Algorithm]:
    """Every composition of the table that this task can feed."""
    absent = {key for keys in ABSENT.values() for key in keys}
    result = {}
    for key, method in algorithms.METHODS.items():
        if method.algorithm is not None and key not in absent:
            result[key] = method.algorithm
            for name, variant in method.variants.items():
                if f"{key} ({name})" not in absent:
                    result[f"{key} ({name})"] = variant
    return result


def code_version() -> str:
    """The commit that made a result, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    where = Path(__file__).parent
    try:
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return alignax.__version__
    return done.stdout.strip()


def judged(asked: frozenset[str], rollout, target: jax.Array) -> dict[str, jax.Array]:
    """What the task knows of each completion, of what a method asks for."""
    value = sums.value_of(rollout.tokens, rollout.attended)
    right = value == target
    number = value >= 0
    known = {
        "right": right,
        "clusters": value,
        "reward_version": jnp.zeros_like(value),
        # A right answer, and a number that ends, which both can be had at once.
        "objectives": jnp.stack([right, number], axis=-1).astype(jnp.float32),
        # Digit by digit: the outcome on the last token, nothing on the others.
        "token_rewards": jnp.where(
            rollout.trained & (rollout.tokens == sums.EOS), right[:, None], 0
        ).astype(jnp.float32),
    }
    given = {name: x for name, x in known.items() if name in asked}
    if "objective_weights" in asked:
        given["objective_weights"] = jnp.array([1.0, 0.1])
    return {"rewards": right.astype(jnp.float32)} | given


def make_run(config: Config, name: str, apply_fn, hidden_fn, problems, answers):
    """``(key, reference) -> (params, curves)``: a method on one seed, in one scan."""
    algorithm = options.method_of(name)
    rl = RL(
        method=name,
        steps=config.steps,
        prompts=config.prompts,
        completions=config.completions,
        # A ratio that is held at 1 serves one update.
        updates=1 if algorithm.on_policy else config.updates,
        learning_rate=config.learning_rate,
        warmup=5,
    )
    parts = assembly.make(
        rl,
        apply_fn,
        hidden_fn=hidden_fn,
        max_tokens=sums.TOKENS,
        eos_id=sums.EOS,
        jit=False,
    )
    asked, guided = algorithms.needs(algorithm), algorithm.sampling.guided

    def prompts_of(index):
        prompts = sums.prompts_of(problems[index], index)
        if not guided:
            return prompts
        tokens, mask = (x[index] for x in answers)
        return dataclasses.replace(prompts, guide=tokens, guide_mask=mask)

    def iteration(key, state, _):
        # The key of a step depends on the seed alone: methods see the same sums.
        draw = jax.random.fold_in(key, state.step)
        index = jax.random.choice(draw, len(problems), (config.prompts,), replace=False)
        prompts = prompts_of(index)
        target = jnp.sum(problems[index], axis=-1)
        samples = parts.sample(state, prompts)
        fields = judged(asked, samples.rollout, jnp.repeat(target, config.completions))
        if samples.greedy is not None:
            best = judged(frozenset(), samples.greedy, target)
            fields["greedy"] = best["rewards"]
        state, metrics = parts.step(state, samples.rewarded(**fields))
        shown = ("reward", "entropy", "length", "skipped")
        return state, {name: metrics[name] for name in shown}

    def run(key, reference):
        state = parts.init(
            reference,
            key,
            records=len(problems),
            prompts=prompts_of(jnp.arange(config.prompts)),
        )
        state, curves = jax.lax.scan(
            lambda state, x: iteration(key, state, x), state, length=config.steps
        )
        return state.params, curves

    return run


def teach(config: Config, apply_fn, params, problems):
    """Phase one: the reference."""
    tx = supervised.optimiser(config.sft)
    step = supervised.make_step(supervised.score_by_logits(apply_fn), tx)
    state = supervised.init_state(params, tx, jax.random.key(config.seed))
    batches = sums.demonstrations(
        problems,
        batch_size=config.sft.batch_size,
        mistakes=config.mistakes,
        seed=config.seed + 1,
    )
    for _ in range(config.sft.steps):
        state, _ = step(state, next(batches))
    return state.params


def main(config: Config) -> None:
    chosen = config.methods or tuple(runnable())
    train_set, held_out = sums.split(config.held_out, config.seed)
    model = decoder.DecoderConfig(
        vocab_size=sums.DIGITS + 1,
        hidden_size=config.hidden_size,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=config.hidden_size // 2,
        mlp_size=3 * config.hidden_size,
        max_length=3 + 2 * sums.TOKENS,
        initializer_range=0.1,
    )
    apply_fn = functional.make_apply(model)
    hidden_fn = functional.make_hidden(model)
    start = functional.init(model, jax.random.key(config.seed))
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / "results.json"
    settings = {
        name: value if isinstance(value, int | float) else str(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in ("out", "report", "methods")
    }
    results = json.loads(path.read_text()) if path.exists() else {"config": settings}
    if results["config"] != settings:
        raise InputError(f"out: {path} holds results of another configuration")
    reference = teach(config, apply_fn, start, train_set)
    numbers = train_set.sum(1)
    answers = sums.written(numbers, np.ones(len(numbers), int))
    answers = tuple(jnp.array(x) for x in answers)
    problems, measured = jnp.array(train_set), jnp.array(held_out)
    keys = jax.random.split(jax.random.key(config.seed + 2), config.seeds)
    report = jax.jit(jax.vmap(sums.make_report(apply_fn), in_axes=(0, None, None)))

    def keep(name, params, curves=None):
        result = rlvr_report.summary(report(params, reference, measured))
        result["code"] = code_version()
        if curves is not None:
            curves = {key: np.asarray(curve) for key, curve in curves.items()}
            result["fit"] = rlvr_report.entropy_fit(curves)
            result["curves"] = {
                key: np.mean(curve, 0).round(4).tolist()
                for key, curve in curves.items()
            }
        results[name] = result
        path.write_text(json.dumps(results, default=float))
        print(f"{name:<40} {np.mean(result['pass@1']):.3f}", flush=True)

    keep("reference", jax.tree.map(lambda x: x[None], reference))
    for name in chosen:
        if name not in results:
            run = make_run(config, name, apply_fn, hidden_fn, problems, answers)
            params, curves = jax.jit(jax.vmap(run, in_axes=(0, None)))(keys, reference)
            keep(name, params, curves)
    if config.report is not None:
        task = (__doc__ or "").split("\n\n")[2].strip()
        left_out = [name for name in runnable() if name not in results]
        config.report.write_text(
            rlvr_report.markdown(task, results, ABSENT, left_out), encoding="utf-8"
        )


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
