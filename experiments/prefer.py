"""Preference losses on a real model: pairs that it wrote itself and a verifier judged.

    alignax pretrained models/smollm2
    python -m experiments.prefer --model models/smollm2 --out runs/prefer

The model completes sums; a completion is right where its last number is the answer.
Right and wrong completions of one sum make the pairs, as the tokens that were sampled.
Each loss trains fresh adapters on them, ``online_dpo`` on pairs of what the policy
writes now. ``reward_model`` is DPO on the best and the worst of each sum's completions
by a reward model that was trained on the same pairs.

Measured on sums that no training has seen: accuracy, the win rate against the model
before, the reverse KL to it, and how often the right side of a held-out pair gained on
the wrong one. ``results.json`` keeps each run as it ends, and the same command goes on
with what is missing; ``--report FILE`` writes the page.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli
from alignax import divergences as dv
from alignax import preference as pf
from alignax.models import heads
from alignax.pipeline import data
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.data import PairRows, UnpairedRows
from alignax.train import pairs as pair_rows
from alignax.train import policy as policies
from alignax.train import preference, reward_model, supervised
from alignax.train.policy import Policy
from alignax.train.supervised import SFT
from alignax.types import InputError, Prompts, Supervised
from experiments import prefer_report, real_model

LOSSES: dict[str, pf.PairLoss] = {
    "dpo": pf.LOSSES["dpo"],
    "f_dpo forward_kl": pf.PairLoss(partial(pf.f_dpo, dv.forward_kl())),
    "f_dpo jensen_shannon": pf.PairLoss(partial(pf.f_dpo, dv.jensen_shannon())),
    "f_dpo alpha(0.5)": pf.PairLoss(partial(pf.f_dpo, dv.alpha(0.5))),
    "ipo": pf.LOSSES["ipo"],
    "simpo": pf.LOSSES["simpo"],
    "kto": pf.LABEL_LOSSES["kto"],
    "online_dpo": pf.LOSSES["dpo"],
    "reward_model": pf.LOSSES["dpo"],
}
BETAS = {"ipo": 0.5, "simpo": 20.0}
"""Times beta, where margins are targets of sums, or means over tokens."""
CHUNK = 16
"""Sums that are sampled, and pairs that are measured, at once."""

Tokens = list[int]
Pair = tuple[Tokens, Tokens, Tokens]
"""Prompt, right and wrong completion."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Pairs, reward model, losses, report."""

    model: Path = real_model.FOLDER
    """The folder of a Hugging Face model, as ``alignax pretrained`` makes one."""
    out: Path = Path("runs/prefer")
    """The folder of the results."""
    report: Path | None = None
    """Write the page and its picture here, from all results that there are."""
    seeds: int = 2
    """Runs of each loss, with adapters, samples and pairs of their own."""
    losses: tuple[str, ...] = tuple(LOSSES)
    """What to train."""
    problems: int = 120
    """The number of sums to train on."""
    held_out: int = 40
    """How many sums to measure on."""
    samples: int = 16
    """Completions of each sum that pairs are made of."""
    pairs_per_problem: int = 4
    """The most pairs that one sum gives."""
    max_tokens: int = 6
    """Tokens of the longest completion."""
    rank: int = 16
    """The rank of the adapters."""
    beta: float = 0.1
    """DPO's strength; IPO's is half of it, SimPO's twenty times as much."""
    online: int = 8
    """Completions of each sum that online_dpo draws in a step."""
    measured: int = 8
    """Completions of each held-out sum."""
    reward: SFT = SFT(steps=24, batch_size=16, learning_rate=1e-5, warmup=3)
    policy: SFT = SFT(steps=24, batch_size=16, learning_rate=2e-4, warmup=4)

    def __post_init__(self):
        for name in self.losses:
            if name not in LOSSES:
                raise InputError(
                    f"losses must be some of {', '.join(LOSSES)}, got {name!r}"
                )
        least = ("problems", "held_out", "samples", "max_tokens", "rank", "online")
        for name in ("seeds", "measured", "pairs_per_problem", *least):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.beta > 0:
            raise InputError(f"beta must be positive, got {self.beta}")


class Sum(NamedTuple):
    """A prompt's tokens and its completions', with the verifier's verdicts."""

    prompt: Tokens
    completions: list[Tokens]
    right: list[bool]


class Bench(NamedTuple):
    """What all runs share: the policy, compiled functions, the sums."""

    config: Config
    policy: Policy
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    width: int
    draw: Callable[[Any, jax.Array, Prompts], Any]
    measure: Callable[..., dict[str, Any]]
    logp: Callable[[Any, PairRows], Any]
    steps: dict[str, Callable[..., Any]]


def make_bench(config: Config) -> Bench:
    policy = real_model.load(config.model, rank=config.rank)
    tokenizer = policy.tokenizer
    train, held_out = real_model.sums(config.problems, held_out=config.held_out, seed=0)
    prompts = [record["prompt"] for record in [*train, *held_out]]
    tokens: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "ends": real_model.line_ends(tokenizer),
    }

    def draw(apply_fn, hidden_fn):
        # As many for the pairs as online: one compilation.
        return partial(
            rollouts.generate,
            apply_fn,
            completions=config.online,
            max_tokens=config.max_tokens,
            eos_id=tokens["ends"],
            pad_id=tokenizer.pad_id,
        )

    def logp(apply_fn, hidden_fn):
        return partial(pair_rows.pair_logp, supervised.score_by_hidden(hidden_fn))

    return Bench(
        config,
        policy,
        train,
        held_out,
        data.lengths(prompts, tokenizer).prompt,
        policies.jitted(policy, draw),
        real_model.make_measure(policy, completions=config.measured, **tokens),
        policies.jitted(policy, logp),
        {},
    )


def step_of(bench: Bench, name: str) -> Callable[..., Any]:
    """A loss' step, compiled once for all seeds and for all that share it."""
    loss = LOSSES[name]
    known = next((n for n in bench.steps if LOSSES[n] is loss), name)
    if known not in bench.steps:
        make = preference.make_step
        if name in pf.LABEL_LOSSES:
            make = preference.make_label_step

        def build(apply_fn, hidden_fn):
            score = supervised.score_by_hidden(hidden_fn)
            return make(loss, score, supervised.optimiser(bench.config.policy))

        bench.steps[known] = policies.jitted(bench.policy, build, donate=True)
    return bench.steps[known]


def written(bench: Bench, rollout: Any, records: Sequence[dict]) -> list[Sum]:
    """A rollout's prompts and completions as tokens, judged."""
    kept, ids = np.asarray(rollout.trained), np.asarray(rollout.tokens)
    asked = np.asarray(rollout.prompt_tokens), np.asarray(rollout.prompt_mask)
    group = len(ids) // len(records)
    texts = data.decode_rows(ids, kept, bench.policy.tokenizer)
    right = real_model.solved(texts, records, group)
    rows = [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]
    return [
        Sum(
            asked[0][i][asked[1][i]].tolist(),
            rows[i * group : (i + 1) * group],
            right[i].tolist(),
        )
        for i in range(len(records))
    ]


def encode(bench: Bench, records: Sequence[dict]) -> Prompts:
    texts = [record["prompt"] for record in records]
    return data.encode_prompts(texts, bench.policy.tokenizer, length=bench.width)


def chunks(records: Sequence[Any]) -> Iterator[list[Any]]:
    """Parts of one size, the last filled up with records that are not to be kept."""
    for start in range(0, len(records), CHUNK):
        yield [records[i % len(records)] for i in range(start, start + CHUNK)]


def collect(bench: Bench, records: Sequence[dict], key: jax.Array) -> list[Sum]:
    """Completions of all records by the model before any training."""
    found: list[Sum] = []
    for number, part in enumerate(chunks(records)):
        prompts, more = encode(bench, part), []
        for again in range(-(-bench.config.samples // bench.config.online)):
            draw_key = jax.random.fold_in(jax.random.fold_in(key, number), again)
            rollout = bench.draw(bench.policy.params, draw_key, prompts)
            more.append(written(bench, rollout, part))
        found += [
            Sum(
                same[0].prompt,
                [c for one in same for c in one.completions],
                [r for one in same for r in one.right],
            )
            for same in zip(*more, strict=True)
        ]
    return found[: len(records)]


def pairs_of(sums: Sequence[Sum], rng: np.random.Generator, most: int) -> list[Pair]:
    """Right and wrong completions of one sum, at most so many pairs of each."""
    pairs = []
    for one in sums:
        judged = list(zip(one.completions, one.right, strict=True))
        sides = [[c for c, right in judged if right is side] for side in (True, False)]
        count = min(most, *map(len, sides))
        picked = [rng.permutation(len(side))[:count] for side in sides]
        pairs += [
            (one.prompt, sides[0][i], sides[1][j]) for i, j in zip(*picked, strict=True)
        ]
    return pairs


def rows_of(
    bench: Bench, prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> Supervised:
    """The sampled tokens themselves as rows: nothing is encoded twice."""
    shape = len(prompts), bench.width + bench.config.max_tokens
    tokens = np.full(shape, bench.policy.tokenizer.pad_id, np.int32)
    mask, loss_mask = np.zeros((2, *shape), bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[i, :end] = prompt + answer
        mask[i, :end] = True
        loss_mask[i, len(prompt) : end] = True
    return Supervised(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        loss_mask=jnp.asarray(loss_mask),
        index=jnp.arange(len(prompts), dtype=jnp.int32),
    )


def pair_batch(bench: Bench, pairs: Sequence[Pair]) -> PairRows:
    prompts, right, wrong = zip(*pairs, strict=True)
    return PairRows(rows_of(bench, prompts, right), rows_of(bench, prompts, wrong))


def batches(items: Sequence[Any], size: int, rng: np.random.Generator):
    """Items without end, in a new order each time they are through."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.permutation(len(items)).tolist()
        picked, order = order[:size], order[size:]
        yield [items[i] for i in picked]


def learn_reward(bench: Bench, pairs: Sequence[Pair], seed: int):
    """``rows -> rewards`` of a model that begins from the policy's base."""
    config, model = bench.config.reward, bench.policy.config
    reward_fn, key = heads.make_reward(model), jax.random.key(seed)
    tx = supervised.optimiser(config)
    loss = partial(pf.bradley_terry_loss, centring=0.01)
    step = reward_model.make_step(loss, reward_fn, tx)
    base = bench.policy.base
    if base is None:
        base = bench.policy.params
    start = heads.reward_from_policy(model, base, key)
    state = supervised.init_state(start, tx, key)
    source = batches(pairs, config.batch_size, np.random.default_rng(seed))
    for _ in range(config.steps):
        state, _ = step(state, pair_batch(bench, next(source)))
    rewarded = jax.jit(partial(reward_model.rewards_of, reward_fn))
    return partial(rewarded, state.params)


def best_and_worst(bench: Bench, sums: Sequence[Sum], rewarded) -> list[Pair]:
    """The best and the worst completion of each sum by a reward model."""
    chosen = []
    for one in sums:
        rows = rows_of(bench, [one.prompt] * len(one.completions), one.completions)
        scores = np.asarray(rewarded(rows))
        best, worst = int(scores.argmax()), int(scores.argmin())
        chosen.append((one.prompt, one.completions[best], one.completions[worst]))
    return chosen


def train(
    bench: Bench, name: str, seed: int, sums: Sequence[Sum], held: Sequence[Pair]
) -> dict[str, Any]:
    """One run: adapters trained by one loss, and what they reach."""
    config, policy, clock = bench.config, bench.policy, real_model.clock()
    loss, size = LOSSES[name], bench.config.policy.batch_size
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    state = preference.init_state(
        real_model.fresh(policy, seed),
        supervised.optimiser(config.policy),
        key,
        beta=BETAS.get(name, 1.0) * config.beta,
        reference=policy.params if "anchor" in loss.needs else None,
    )
    pairs = pairs_of(sums, rng, config.pairs_per_problem)
    found: dict[str, Any] = {"pairs": len(pairs), "steps_without_pairs": 0}
    if name == "reward_model":
        rewarded = learn_reward(bench, pairs, seed)
        told = [
            np.asarray(rewarded(rows.chosen) > rewarded(rows.rejected))
            for rows in (pair_batch(bench, part) for part in chunks(held))
        ]
        found["reward_accuracy"] = np.concatenate(told)[: len(held)]
        pairs = best_and_worst(bench, sums, rewarded)
    step, source = step_of(bench, name), batches(pairs, size, rng)
    asked = batches(bench.train, CHUNK, rng)
    for number in range(config.policy.steps):
        if name == "online_dpo":
            part, draw_key = next(asked), jax.random.fold_in(key, number)
            rollout = bench.draw(state.params, draw_key, encode(bench, part))
            now = pairs_of(written(bench, rollout, part), rng, 1)
            if not now:
                # Without a signal the parameters stay where they are.
                found["steps_without_pairs"] += 1
                continue
            batch = [now[i % len(now)] for i in range(size)]
        else:
            batch = next(source)
        rows = pair_batch(bench, batch)
        if name in pf.LABEL_LOSSES:
            both = pair_rows.both_sides(rows)
            state, _ = step(state, UnpairedRows(both, jnp.arange(2 * size) < size))
        else:
            stored = bench.logp(policy.params, rows)
            state, _ = step(state, rows._replace(logp_ref=stored))
    return found | measured(bench, state.params, seed, held) | clock()


def measured(
    bench: Bench, params: Any, seed: int, held: Sequence[Pair]
) -> dict[str, Any]:
    """By held-out sum: verdicts and KL; and the pairs whose right side gained."""
    first, prompts = bench.policy.params, encode(bench, bench.held_out)
    found = bench.measure(params, first, jax.random.key(100 + seed), prompts)
    count, gained = bench.config.measured, []
    for part in chunks(held):
        rows = pair_batch(bench, part)
        now, before = bench.logp(params, rows), bench.logp(first, rows)
        u, v = (jnp.sum(a - b, axis=-1) for a, b in zip(now, before, strict=True))
        gained.append(np.asarray(u > v))
    return {
        "right": real_model.solved(found["text"], bench.held_out, count),
        "kl": found["kl"].reshape(-1, count).mean(axis=1),
        "pair_accuracy": np.concatenate(gained)[: len(held)],
    }


def main(config: Config) -> None:
    file = config.out / "results.json"
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("model", "out", "report", "seeds", "losses")
    }
    results = real_model.open_results(file, settings)
    names = ("before", *config.losses)
    bench = None
    for seed in range(config.seeds):
        wanted = [n for n in names if f"{n}/{seed}" not in results["runs"]]
        if not wanted:
            continue
        bench = bench or make_bench(config)
        key = jax.random.key(1000 + seed)
        sums = collect(bench, bench.train, key)
        tests = collect(bench, bench.held_out, jax.random.fold_in(key, 1))
        rng = np.random.default_rng(seed)
        held = pairs_of(tests, rng, config.pairs_per_problem)
        if not held or not pairs_of(sums, rng, 1):
            raise InputError(
                f"samples must be more than {config.samples}: no sum has both a right "
                "and a wrong completion"
            )
        for name in wanted:
            clock = real_model.clock()
            if name == "before":
                params = bench.policy.params
                found = measured(bench, params, seed, held) | clock()
            else:
                found = train(bench, name, seed, sums, held)
            real_model.keep(file, results, f"{name}/{seed}", found)
            print(
                f"{name}, seed {seed}: accuracy {np.mean(found['right']):.3f}, KL "
                f"{np.mean(found['kl']):.2f} nats, {found['seconds']:.0f} s",
                flush=True,
            )
    if config.report is not None:
        prefer_report.write(config.report, real_model.open_results(file, settings))


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
