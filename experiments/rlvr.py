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
import functools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alignax import advantages, algorithms, cli, controllers, logprobs, reduce
from alignax.models import decoder, functional
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.types import InputError, Scored
from experiments import rlvr_report, sft, sums
from experiments.sft import SFT

# What a method needs that this task has not.
ABSENT = {
    "a critic": tuple(
        key
        for key, method in algorithms.METHODS.items()
        if method.algorithm is not None and method.algorithm.critic is not None
    ),
    "given prefixes": ("cure",),
    "earlier rollouts": ("remix",),
    "a text in context": ("trimpi",),
    "tokens of several draws": ("cot2",),
    "several objectives": ("gdpo", "recap"),
    "rewards of tokens": ("pcpg",),
    "samples of the reference beforehand": ("a_star_po",),
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
    seeds: int = 3
    """Runs of each method, in one batch."""
    seed: int = 0
    """Of the split, the reference and the runs."""
    steps: int = 80
    """Rollouts."""
    prompts: int = 16
    """Sums a rollout."""
    completions: int = 8
    """Completions a sum: the group."""
    updates: int = 2
    """Optimiser steps a rollout; from the second on ratios differ from 1."""
    learning_rate: float = 2e-3
    """At the peak."""
    held_out: int = 100
    """Sums to measure on."""
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
                result[f"{key} ({name})"] = variant
    return result


def make_sampler(config: Config, apply_fn, *, greedy: bool, last_row: str):
    """``(params, reference, key, history, problems, answers) -> (rollout, scored,
    history)``, of one seed. ``last_row``: whose the last completion of a group is."""
    generate = partial(
        rollouts.generate, apply_fn, max_tokens=sums.TOKENS, eos_id=sums.EOS, pad_id=0
    )
    group = config.completions

    def sample(params, reference, key, history, problems, answers):
        draw, own, other, inner = jax.random.split(key, 4)
        index = jax.random.choice(draw, len(problems), (config.prompts,), replace=False)
        prompts = sums.prompts_of(problems[index], index)
        rollout = generate(params, own, prompts, completions=group)
        last = jnp.arange(config.prompts * group) % group == group - 1
        demonstrated = last & (last_row != "own")
        if last_row == "reference":
            rollout = _replaced(
                rollout, last, generate(reference, other, prompts, completions=group)
            )
        if last_row == "demonstration":
            tokens, mask = (jnp.repeat(x[index], group, axis=0) for x in answers)
            given = dataclasses.replace(
                rollout,
                tokens=tokens,
                attended=mask,
                trained=mask,
                finished=jnp.ones_like(last),
            )
            rollout = _replaced(rollout, last, given)
        logits, logits_ref = (
            rollouts.completion_logits(apply_fn, p, rollout)
            for p in (params, reference)
        )
        logp, logp_ref = (
            reduce.masked(logprobs.token_logp(x, rollout.tokens), rollout.trained)
            for x in (logits, logits_ref)
        )
        value = sums.value_of(rollout.tokens, rollout.trained)
        target = jnp.sum(problems[index], axis=-1)
        shape = (config.prompts, group)
        rewards = (value.reshape(shape) == target[:, None]).astype(jnp.float32)
        baseline = jnp.zeros(config.prompts)
        if greedy:
            best = generate(params, own, prompts, completions=1, temperature=0.0)
            baseline = (sums.value_of(best.tokens, best.trained) == target).astype(
                jnp.float32
            )
        lengths = jnp.sum(rollout.trained, axis=-1)
        mean_ref = reduce.divide(jnp.sum(logp_ref, -1), lengths.astype(jnp.float32))
        scored = Scored(
            rollout=rollout,
            rewards=rewards,
            right=rewards > 0,
            logp_old=logp,
            logp_ref=logp_ref,
            entropy=reduce.masked(logprobs.entropy(logits), rollout.trained),
            greedy=baseline,
            history=history[index],
            confidence=jnp.exp(mean_ref).reshape(shape),
            clusters=value.reshape(shape),
            demonstrated=demonstrated,
            key=inner,
        )
        history = advantages.history_update(
            history, jnp.repeat(index, group), lengths, rewards.reshape(-1) > 0
        )
        return rollout, scored, history

    return sample


def _replaced(rollout, where, other):
    def pick(x, y):
        return jnp.where(jnp.expand_dims(where, range(1, x.ndim)), y, x)

    return jax.tree.map(pick, rollout, other)


def make_step(config: Config, apply_fn, tx, algorithm: algorithms.Algorithm):
    """``(state, rollout, scored) -> (state, metrics)``, of one seed."""

    def loss_fn(params, batch):
        rollout, rows = batch["rollout"], batch["rows"]
        logits = rollouts.completion_logits(apply_fn, params, rollout)
        logp = logprobs.token_logp(logits, rollout.tokens)
        entropy = logprobs.entropy(logits)
        values = algorithms.losses(algorithm, logp, entropy, rows)
        return *algorithms.reduced(algorithm, values, rows), {}

    one_update = update.make_update(loss_fn, tx)

    def step(state, rollout, scored):
        rows = algorithms.prepare(algorithm, scored)

        def again(state, _):
            now = rows
            if algorithm.follow is not None:
                logits = rollouts.completion_logits(apply_fn, state.params, rollout)
                logp = logprobs.token_logp(logits, rollout.tokens)
                now = algorithms.followed(algorithm, logp, rows)
            return one_update(state, {"rollout": rollout, "rows": now})[0], None

        state, _ = jax.lax.scan(again, state, length=config.updates)
        return state, {
            "reward": jnp.mean(scored.rewards),
            "entropy": _mean_entropy(scored),
            "length": jnp.mean(jnp.sum(scored.mask, -1, dtype=jnp.float32)),
        }

    return step


def _mean_entropy(scored):
    return reduce.divide(*reduce.token_mean(scored.entropy, scored.mask))


def teach(config: Config, apply_fn, params, problems):
    """Phase one: the reference."""
    step = sft.make_train_step(config.sft, apply_fn)
    state = sft.init_state(config.sft, params, jax.random.key(config.seed))
    batches = sums.demonstrations(
        problems,
        batch_size=config.sft.batch_size,
        mistakes=config.mistakes,
        seed=config.seed + 1,
    )
    for _ in range(config.sft.steps):
        state, _ = step(state, next(batches))
    return state.params


def train(config: Config, apply_fn, sampler, reference, problems, algorithm):
    """One method, all seeds: the trained parameters and the curves."""
    tx = update.optimiser(
        learning_rate=config.learning_rate,
        steps=config.steps * config.updates,
        warmup=5,
        final_fraction=0.1,
    )
    # The key of a step depends on the seed alone: methods see the same sums.
    keys = jax.random.split(jax.random.key(config.seed + 2), config.seeds)
    state = jax.vmap(
        lambda key: update.init_state(reference, tx, controllers.fixed(beta=0.0), key)
    )(keys)
    history = jnp.full((config.seeds, problems), jnp.inf)
    step = jax.jit(jax.vmap(make_step(config, apply_fn, tx, algorithm)))
    curves, initial = [], None
    for number in range(config.steps):
        now = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
        rollout, scored, history = sampler(state.params, reference, now, history)
        if initial is None:
            initial = jax.vmap(_mean_entropy)(scored)
        scored = dataclasses.replace(scored, initial_entropy=initial)
        state, values = step(state, rollout, scored)
        curves.append(values)
    curves = jax.tree.map(lambda *xs: np.stack(xs, axis=1), *curves)
    return state.params, curves


def main(config: Config) -> None:
    everything = runnable()
    chosen = config.methods or tuple(everything)
    train_set, held_out = sums.split(config.held_out, config.seed)
    model = decoder.DecoderConfig(
        vocab_size=sums.DIGITS + 1,
        hidden_size=config.hidden_size,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=config.hidden_size // 2,
        mlp_size=3 * config.hidden_size,
        max_length=3 + sums.TOKENS,
        initializer_range=0.1,
    )
    apply_fn = functional.make_apply(model)
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

    @functools.cache
    def sampler(greedy, last_row):
        """Compiled once for all methods that want the same."""
        sample = make_sampler(config, apply_fn, greedy=greedy, last_row=last_row)

        def seeds(params, reference, key, history):
            problems = jnp.array(train_set)
            return sample(params, reference, key, history, problems, answers)

        return jax.jit(jax.vmap(seeds, in_axes=(0, None, 0, 0)))

    report = jax.jit(jax.vmap(sums.make_report(apply_fn), in_axes=(0, None, None)))
    measured = jnp.array(held_out)

    def keep(name, params, curves=None):
        result = rlvr_report.summary(report(params, reference, measured))
        if curves is not None:
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
            algorithm = everything[name]
            drawn = sampler(algorithm.sampling.greedy, algorithm.sampling.last)
            params, curves = train(
                config, apply_fn, drawn, reference, len(train_set), algorithm
            )
            keep(name, params, curves)
    if config.report is not None:
        task = (__doc__ or "").split("\n\n")[2].strip()
        config.report.write_text(rlvr_report.markdown(task, results, ABSENT))


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
