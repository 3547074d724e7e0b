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
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignax import cli
from alignax import divergences as dv
from alignax import preference as pf
from alignax.models import decoder, functional, heads
from alignax.pipeline import data
from alignax.train import evaluation, loop, preference, reward_model, supervised
from alignax.train import pairs as pair_rows
from alignax.train import policy as policies
from alignax.train.runs.preference import BETAS
from alignax.train.supervised import SFT
from alignax.types import InputError
from experiments.preference_report import Bench, write_report

DIVERGENCES = {
    "forward_kl": dv.forward_kl(),
    "jensen_shannon": dv.jensen_shannon(),
    "jeffreys": dv.jeffreys(),
    "chi2_kl": dv.chi2_kl(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """SFT, reward models, preference losses, report."""

    data: Path
    """JSON-lines of problems, each with marked model solutions."""
    out: Path = Path("runs/preference")
    """The folder of all that is written."""
    resume: bool = False
    """Go on with the run in ``out``, as if it had never been stopped."""
    seed: int = 0
    """The seed of the parameters, the data's order and the samples."""
    losses: tuple[str, ...] = (
        "dpo",
        "f_dpo",
        "tdpo2",
        "ipo",
        "ln_dpo",
        "kto",
        "apo_zero",
        "copg",
    )
    """The losses to train with, of ``preference.LOSSES``; copg takes the reward
    model's scores."""
    divergence: str = "jensen_shannon"
    """The divergence of f_dpo: forward_kl, jensen_shannon, jeffreys or chi2_kl."""
    beta: float = 0.1
    """Strength of the regularisation; a few losses scale it, see ``BETAS``."""
    question_bytes: int = 96
    """Bytes of a problem that are shown, from its end: the question itself."""
    answer_bytes: int = 255
    """Bytes of the longest solution; problems with longer ones are left out."""
    tests: int = 48
    """How many held-out problems to sample for."""
    hidden_size: int = 64
    """Width of the decoders."""
    num_layers: int = 2
    """Layers of the decoders."""
    sft: SFT = SFT(steps=120, batch_size=16, learning_rate=3e-3)
    reward: SFT = SFT(steps=60, batch_size=16, learning_rate=1e-3)
    policy: SFT = SFT(steps=40, batch_size=16, learning_rate=3e-4, warmup=5)

    def __post_init__(self):
        for field, known in (("losses", pf.LOSSES), ("divergence", DIVERGENCES)):
            given = getattr(self, field)
            for name in [given] if isinstance(given, str) else given:
                if name not in known:
                    raise InputError(
                        f"{field}: {name!r} was given; {', '.join(known)}."
                    )
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
    policy, most = policies.make(model, None, tokenizer), config.answer_bytes + 1
    write = evaluation.make_writer(policy, max_tokens=most, completions=2)
    return Bench(
        config,
        apply_fn,
        supervised.score_by_logits(apply_fn),
        functional.make_hidden(model),
        jax.jit(reward_fn),
        tokenizer,
        data.encode_pairs(texts, tokenizer, length=model.max_length),
        np.array([pair["problem"] for pair in test]),
        data.encode_prompts(asked[: config.tests], tokenizer, length=width),
        evaluation.make_evaluator(policy, write, completions=2),
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

        def start(params, settings: SFT, key):
            return supervised.init_state(params, supervised.optimiser(settings), key)

        teach = supervised.make_step(bench.score, supervised.optimiser(config.sft))
        reference = run(
            "sft",
            start(functional.init(model, keys[0]), config.sft, keys[0]),
            train,
            lambda state, pairs: teach(state, pairs.chosen),
            config.sft,
        )
        rank = reward_model.make_step(
            partial(pf.bradley_terry_loss, centring=0.01),
            bench.reward_fn,
            supervised.optimiser(config.reward),
        )
        reward, judge = (
            run(
                name,
                start(
                    heads.reward_from_policy(model, reference, key), config.reward, key
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
                preference.init_state(
                    reference,
                    supervised.optimiser(config.policy),
                    keys[3],
                    beta=config.beta * BETAS.get(name, 0.1) / 0.1,
                    reference=reference,
                ),
                train,
                make_step(config, bench, name, reference, reward),
                config.policy,
            )
            for name in config.losses
        }
    write_report(config, bench, reference, reward, judge, policies, train, judged, test)


def make_step(config: Config, bench: Bench, name: str, reference, reward):
    """A training step of one loss, after what it needs beside log-probabilities."""
    loss = pf.LOSSES[name]
    if name == "f_dpo":
        loss = pf.PairLoss(partial(pf.f_dpo, DIVERGENCES[config.divergence]))
    step = preference.make_step(
        loss,
        bench.score,
        supervised.optimiser(config.policy),
        laws=pair_rows.laws_by_logits(bench.apply_fn),
    )

    def weights(rows):
        """SparsePO's, of the reference's last layer; none for the first token."""
        hidden = bench.hidden_fn(reference, rows.tokens[:, 1:], mask=rows.mask[:, 1:])
        return pf.activation_weights(hidden.hidden[:, None], rows.loss_mask[:, 1:])

    @jax.jit
    def gathered(pairs):
        if "rewards" in loss.needs:
            rewards = reward_model.pair_rewards(bench.reward_fn, reward, pairs)
            return pairs._replace(rewards=rewards)
        if "weights" in loss.needs:
            return pairs._replace(weights=tuple(map(weights, pairs[:2])))
        return pairs

    return lambda state, pairs: step(state, gathered(pairs))


if __name__ == "__main__":
    cli.run(main, Config, description=__doc__)
