"""Preference learning on real pairs: right against wrong solutions of GSM8K problems.

    python -m experiments.preference --data model_solutions.jsonl --out runs/preference
    python -m experiments.preference --data … --losses rdpo copg --beta 0.3

A small decoder over bytes is taught right solutions, a reward model and a held-out
judge learn to tell right from wrong ones, and each loss trains a policy from there.
``report.md`` has reward accuracy, margins, the KL to the reference, lengths and win
rates under the judge. The problems are split in three: the policy and the reward model
see the first part, the judge the second, and all is measured on the third.

At this size nobody learns arithmetic, so the report shows what the shorter solution
would win beside what the models do. Pairs of one problem share their solutions: its
intervals are clustered by problem.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import cli
from alignax import preference as pf
from alignax.models import decoder, functional, heads
from alignax.pipeline import data, update
from alignax.train import evaluation, loop
from alignax.types import InputError
from experiments import sft
from experiments.preference_report import (
    Bench,
    pair_logp,
    score_pairs,
    to_pair,
    write_report,
)
from experiments.sft import SFT

# β has another scale where margins are means over tokens, or targets of sums.
BETAS = {"ipo": 0.05, "ipo_averaged": 0.5, "ln_dpo": 5.0, "simpo": 5.0, "alpha_po": 5.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """SFT, reward models, preference losses, report."""

    data: Path
    """JSON-lines of problems, each with marked model solutions."""
    out: Path = Path("runs/preference")
    """Folder of all that is written."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """Of the parameters, the data's order and the samples."""
    losses: tuple[str, ...] = ("dpo", "ipo", "ln_dpo", "apo_zero", "copg")
    """Of ``preference.LOSSES``; copg takes the reward model's scores."""
    beta: float = 0.1
    """Strength of the regularisation; a few losses scale it, see ``BETAS``."""
    question_bytes: int = 96
    """Only the end of a problem is shown, the question itself."""
    answer_bytes: int = 255
    """Longer solutions are left out."""
    tests: int = 48
    """Held-out problems to sample for."""
    hidden_size: int = 64
    """Width of the decoders."""
    num_layers: int = 2
    """Layers of the decoders."""
    sft: SFT = SFT(steps=120, batch_size=16, learning_rate=3e-3)
    reward: SFT = SFT(steps=60, batch_size=16, learning_rate=1e-3)
    policy: SFT = SFT(steps=40, batch_size=16, learning_rate=3e-4, warmup=5)

    def __post_init__(self):
        known = [
            name
            for name, loss in pf.LOSSES.items()
            if not loss.tokens and loss.needs in ((), ("rewards",))
        ]
        for loss in self.losses:
            if loss not in known:
                raise InputError(f"losses: {loss!r} was given; {', '.join(known)}.")
        if not self.losses or len(set(self.losses)) < len(self.losses):
            raise InputError(f"losses must be one or more names, got {self.losses}")
        if not self.beta > 0:
            raise InputError(f"beta must be positive, got {self.beta}")
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise InputError(
                f"hidden_size must be a positive multiple of 8, got {self.hidden_size}"
            )
        for name in ("question_bytes", "answer_bytes", "tests"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )


def read_pairs(config: Config) -> list[dict[str, Any]]:
    """Records of ``prompt``, ``chosen``, ``rejected``, and the ``problem``'s number."""
    rows = data.read_jsonl(
        config.data,
        fields=(
            "question",
            "6b_finetuning",
            "6b_verification",
            "175b_finetuning",
            "175b_verification",
        ),
    )
    pairs = []
    for number, row in enumerate(rows):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        texts: dict[bool, list[str]] = {True: [], False: []}
        for solution in solutions:
            text = str(solution["solution"])
            if len(text.encode()) <= config.answer_bytes:
                texts[bool(solution["is_correct"])].append(text)
        tail = str(row["question"]).encode()[-config.question_bytes :]
        prompt = f"…{tail.decode(errors='ignore')}\n"
        pairs += [
            {"prompt": prompt, "chosen": right, "rejected": wrong, "problem": number}
            for right in texts[True]
            for wrong in texts[False]
            if right != wrong
        ]
    return pairs


def split_pairs(pairs: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """By problem: three of six for training, two for the judge, one to measure on."""
    parts: tuple[list[dict], list[dict], list[dict]] = ([], [], [])
    for pair in pairs:
        part = parts[(0, 0, 0, 1, 1, 2)[pair["problem"] % 6]]
        part.append(pair)
    if not all(parts):
        raise InputError(
            f"data: {len(pairs)} pairs of short enough solutions are too few to split; "
            "more problems, or a larger answer_bytes, would do."
        )
    return parts


def reward_loss(reward_fn: heads.RewardFn, params, batch: data.PairRows):
    """Bradley-Terry of the last token's reward; both sides in one pass."""
    w, l = score_pairs(reward_fn, params, batch)
    losses = pf.bradley_terry_loss(w, l, centring=0.01)
    count = jnp.float32(losses.shape[0])
    right = jnp.sum(w > l, dtype=jnp.float32)
    return jnp.sum(losses), count, {"accuracy": (right, count)}


def policy_loss(loss: Callable[..., jax.Array], apply_fn, beta: float, params, batch):
    """Any loss of a ``Pair``; ``batch`` has the reference's side and the rewards."""
    rows, logp_ref, rewards = batch
    pair = to_pair(pair_logp(apply_fn, params, rows), logp_ref, rows)
    losses = loss(pair, *rewards, beta=beta)
    count = jnp.float32(losses.shape[0])
    margin = pf.log_ratio_margin(pair)
    reports = {
        "margin": (jnp.sum(margin), count),
        "accuracy": (jnp.sum(margin > 0, dtype=jnp.float32), count),
    }
    return jnp.sum(losses), count, reports


def row_length(config: Config) -> int:
    return config.question_bytes + config.answer_bytes + 8


def make_model(config: Config) -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
        vocab_size=data.byte_tokenizer().vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=config.hidden_size // 4,
        mlp_size=3 * config.hidden_size,
        max_length=row_length(config) + 8,
    )


def make_bench(config: Config, model, test: list[dict]) -> Bench:
    tokenizer = data.byte_tokenizer()
    apply_fn, reward_fn = functional.make_apply(model), heads.make_reward(model)
    texts = [tuple(pair[field] for field in data.PAIRS) for pair in test]
    asked = list(dict.fromkeys(pair["prompt"] for pair in test))
    width = config.question_bytes + 8
    return Bench(
        config,
        apply_fn,
        jax.jit(reward_fn),
        tokenizer,
        data.encode_pairs(texts, tokenizer, length=model.max_length),
        np.array([pair["problem"] for pair in test]),
        data.encode_prompts(asked[: config.tests], tokenizer, length=width),
        evaluation.make_evaluator(
            apply_fn,
            max_tokens=config.answer_bytes + 1,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            completions=2,
        ),
    )


def main(config: Config) -> None:
    loop.check_folder(config.out, resume=config.resume)
    train, judged, test = split_pairs(read_pairs(config))
    length = row_length(config)
    tokenizer = data.byte_tokenizer()
    model = make_model(config)
    bench = make_bench(config, model, test)
    keys = jax.random.split(jax.random.key(config.seed), 4)
    phases = [
        loop.Phase(name="sft", steps=config.sft.steps, shown=("loss",)),
        *(
            loop.Phase(name=name, steps=config.reward.steps, shown=("loss", "accuracy"))
            for name in ("reward", "judge")
        ),
        *(
            loop.Phase(
                name=name, steps=config.policy.steps, shown=("margin", "accuracy")
            )
            for name in config.losses
        ),
    ]
    starts = dict(zip((p.name for p in phases), loop.starts(phases), strict=True))
    by_name = {phase.name: phase for phase in phases}

    def batches(records, size):
        return data.pair_batches(
            [{field: record[field] for field in data.PAIRS} for record in records],
            tokenizer,
            lengths=(length,),
            tokens_per_batch=size * length,
            seed=config.seed,
        )

    with loop.open_log(config.out, phases, resume=config.resume) as writer:

        def run(name, state, records, step, settings: SFT):
            return loop.train(
                state,
                batches(records, settings.batch_size),
                step,
                phase=by_name[name],
                number=starts[name],
                config=loop.saved_config(config, but=("data",)),
                writer=writer,
                out=config.out,
            ).params

        teach = sft.make_train_step(config.sft, bench.apply_fn)
        reference = run(
            "sft",
            sft.init_state(config.sft, functional.init(model, keys[0]), keys[0]),
            train,
            lambda state, rows: teach(state, rows.chosen),
            config.sft,
        )
        rank = jax.jit(
            update.make_update(
                partial(reward_loss, heads.make_reward(model)),
                sft.optimiser(config.reward),
            )
        )
        reward, judge = (
            run(
                name,
                sft.init_state(
                    config.reward, heads.reward_from_policy(model, reference, key), key
                ),
                records,
                rank,
                config.reward,
            )
            for name, records, key in (
                ("reward", train, keys[1]),
                ("judge", judged, keys[2]),
            )
        )
        policies = {
            name: run(
                name,
                sft.init_state(config.policy, reference, keys[3]),
                train,
                make_step(config, bench, name, reference, reward),
                config.policy,
            )
            for name in config.losses
        }
    write_report(config, bench, reference, reward, judge, policies, train, judged, test)


def make_step(config: Config, bench: Bench, name: str, reference, reward):
    """A training step of one loss: reference and rewards first, then the update."""
    loss = pf.LOSSES[name].function
    beta = config.beta * BETAS.get(name, 0.1) / 0.1
    step = jax.jit(
        update.make_update(
            partial(policy_loss, loss, bench.apply_fn, beta),
            sft.optimiser(config.policy),
        )
    )

    @jax.jit
    def constants(rows):
        logp_ref = pair_logp(bench.apply_fn, reference, rows)
        rewards = score_pairs(bench.reward_fn, reward, rows) if name == "copg" else []
        return logp_ref, rewards

    return lambda state, rows: step(state, (rows, *constants(rows)))


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
