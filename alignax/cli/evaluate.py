"""Measure a model on data.

Rewards, accuracy and pass@k; the win rate against another model or run; the KL to a
reference, sampled and over the vocabulary; entropy, length, diversity, and whether
confidence is deserved. Every mean has the half-width of its 95 % interval, over
prompts.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alignax import diagnostics, divergences
from alignax.models import functional
from alignax.pipeline import data, metrics, rewards
from alignax.pipeline import rollout as rollouts
from alignax.train import critique, folders, generation, reward_folders
from alignax.train import measured as measures
from alignax.train import policy as policies
from alignax.train.generation import Law
from alignax.train.measured import Measured
from alignax.train.policy import Policy
from alignax.types import InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a model on data."""

    model: tyro.conf.Positional[Path]
    """The folder of a Hugging Face model, of adapters or of a run."""
    data: str
    """Records with the field prompt, and those that the rewards read: a JSON-lines or
    Parquet file, or another source that training takes."""
    reward: tuple[str, ...] = ()
    """What is measured of a completion, one or several that are added: exact, numeric,
    sentiment, FILE.py:function, model:FOLDER, 2*numeric and more, as in training."""
    right: float = 1.0
    """The reward from which on a completion counts as right."""
    against: Path | None = None
    """Another model, adapters or run, to win against by reward."""
    reference: Path | None = None
    """The model, adapters or run from which the KL is measured."""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    """The data's own names of fields: prompt question answer solution."""
    limit: int | None = None
    """Measure on the first so many records; None for all."""
    plain: bool = False
    """Go on with the text itself, without the chat template."""
    system: str | None = None
    """A system message for the chat template."""
    workers: int = 0
    """Processes for the rewards, each completion with a time limit; 0 computes them
    in this one."""
    timeout: float = 10.0
    """Seconds for one completion's reward, with workers."""
    out: Path | None = None
    """A JSON file of all numbers."""
    self_bleu: bool = False
    """Measure self-BLEU too, which needs the extra text (sacrebleu)."""
    self_critique: bool = False
    """Measure Self-Critique's score too, from two more answers to each prompt, both
    greedy: high where reinforcement learning has seen the question."""
    law: Annotated[Law, tyro.conf.arg(name="")] = Law(n=4)
    base: Path | None = None
    """The base of adapters or of a run, where it is not in the place that they name."""
    step: int | None = None
    """The run's checkpoint; None for the newest whole one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the parameters and of the computation."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1, got {self.limit}")
        if self.against is not None and not self.reward:
            raise InputError("against must come with a reward, which says who wins")
        if self.self_bleu and self.law.n < 2:
            raise InputError(
                f"n must be at least 2 with self-bleu, which compares the completions "
                f"of one prompt, got {self.law.n}"
            )


def main(config: Config) -> None:
    """Sample, measure, print a table, and write the numbers.

    Args:
      config: the options.

    Raises:
      InputError: data, rewards or a model cannot be read, or do not fit.
    """
    if config.self_bleu:
        # What is missing is said before anything is sampled.
        diagnostics.self_bleu([])
    found = data.read_records(config.data, fields=config.fields, formats=("prompts",))
    count = len(found.records)
    count = count if config.limit is None else min(config.limit, count)
    records = [dict(found.records[i]) | {"index": i} for i in range(count)]

    def opened(path: Path, **more: Any) -> Policy:
        kinds = {"param_dtype": config.dtype, "dtype": config.dtype}
        return folders.open_policy(path, **kinds, **more)

    policy = opened(config.model, base=config.base, step=config.step)
    reference = None
    if config.reference is not None:
        other = opened(config.reference)
        check_same(policy, other, config.reference)
        reference = policies.whole(other, other.params)
    with contextlib.ExitStack() as stack:
        reward = None
        if config.reward:
            reward = stack.enter_context(
                reward_folders.open_rewards(
                    config.reward, processes=config.workers, timeout=config.timeout
                )
            )
        measured = measure(config, policy, records, reward, reference)
        others = None
        if config.against is not None:
            others = measure(config, opened(config.against), records, reward, None)
    values = measures.values_of(measured, others, right=config.right)
    if config.self_critique:
        values["self_critique"] = critique.scores(
            policy, records, law=config.law, plain=config.plain, system=config.system
        )
    table = measures.summary(values) | measures.calibration(
        measured, right=config.right
    )
    if measured.rewards is not None:
        failed = int(np.isnan(measured.rewards).sum())
        table |= {"rewards_failed": (failed, None)} if failed else {}
    print(f"{config.model}: {count} prompts, {config.law.n} completions each\n")
    print(measures.shown(table))
    finished = table["finished"][0]
    if finished is not None and finished < 0.9:
        print(
            f"\n{1 - finished:.0%} of the completions were cut at "
            f"{config.law.max_tokens} tokens (--max-tokens)"
        )
    if config.out is not None:
        write(config, table, values, count)


def check_same(policy: Policy, other: Policy, path: Path) -> None:
    """Refuse a reference of another architecture or vocabulary.

    Args:
      policy: that is measured.
      other: the reference.
      path: its folder.

    Raises:
      InputError: it differs.
    """
    ours, theirs = policy.config.to_dict(), other.config.to_dict()
    differ = [name for name in ours if ours[name] != theirs[name]]
    if differ:
        name = differ[0]
        raise InputError(
            f"reference must have the model's architecture, {path} has {name} = "
            f"{theirs[name]}, the model {ours[name]}; give the model that it came from"
        )


def measure(
    config: Config,
    policy: Policy,
    records: list[dict[str, Any]],
    reward: rewards.Reward | None,
    reference: Params | None,
) -> Measured:
    """Sample a policy's completions and look at them.

    Args:
      config: the options.
      policy: whose.
      records: of G prompts.
      reward: of texts; None for none.
      reference: a decoder's parameters of the same configuration; None for no KL.

    Returns:
      arrays on the host.
    """
    law, n = config.law, config.law.n
    texts = generation.prompts_of(
        records, policy.tokenizer, plain=config.plain, system=config.system
    )
    hidden_fn = functional.make_hidden(policy.config)
    score = rollouts.score_by_hidden(hidden_fn, completions=n)
    token_kl = rollouts.divergence_by_hidden(
        hidden_fn, divergences.reverse_kl(), completions=n
    )

    @jax.jit
    def look(params, reference, rollout):
        scores = score(params, rollout)
        found = {"entropy": scores.entropy, "confidence": jnp.exp(scores.logp)}
        if reference is not None:
            below = score(reference, rollout)
            found["kl_sampled"] = scores.logp - below.logp - below.log_mass
            found["kl_vocabulary"] = token_kl(params, reference, rollout)
        # The same pass as the scores', which XLA does once.
        hidden, _ = rollouts.completion_hidden(
            hidden_fn, params, rollout, completions=n
        )
        mask = rollout.trained
        sums = {name: jnp.where(mask, x, 0).sum(-1) for name, x in found.items()}
        states = jnp.where(mask[..., None], hidden, 0)
        return sums | {"embeddings": states.sum(1, dtype=jnp.float32)}

    params = policies.whole(policy, policy.params)
    parts: dict[str, list[np.ndarray]] = {}
    said: list[list[str]] = []
    with metrics.progress(len(texts), description="prompts") as show:
        for batch in generation.batches(policy, texts, law=law):
            rollout = batch.rollout
            values = {
                "tokens": rollout.tokens,
                "mask": rollout.trained,
                "finished": rollout.finished,
                **look(params, reference, rollout),
            }
            values = {k: np.asarray(x)[: batch.rows] for k, x in values.items()}
            length = np.maximum(values["mask"].sum(-1), 1)
            values["entropy"] = values["entropy"] / length
            values["confidence"] = values["confidence"] / length
            values["embeddings"] = values["embeddings"] / length[:, None]
            written = []
            if reward is not None or config.self_bleu:
                written = generation.texts_of(batch, policy.tokenizer)
                said += [written[i : i + n] for i in range(0, len(written), n)]
            if reward is not None:
                asked = [records[i] for i in batch.numbers for _ in range(n)]
                values["rewards"] = np.asarray(reward(written, asked))
            for name, x in values.items():
                parts.setdefault(name, []).append(x)
            show(batch.numbers[-1] + 1, {})
    whole = {name: np.concatenate(x) for name, x in parts.items()}
    grouped = {k: x.reshape(len(texts), n, *x.shape[1:]) for k, x in whole.items()}
    if law.greedy:
        # The log-ratio of the likeliest tokens is no sample of anything.
        grouped.pop("kl_sampled", None)
    return Measured(**grouped, texts=said if config.self_bleu else None)


def write(
    config: Config, table: measures.Table, values: dict[str, np.ndarray], prompts: int
) -> None:
    """The numbers and what they are of, as JSON.

    Args:
      config: the options; ``out`` is written.
      table: of ``summary``.
      values: of ``values_of``; ``alignax forgetting`` pairs them prompt by prompt.
      prompts: how many.
    """
    asked = dataclasses.asdict(config)
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}
    numbers = {
        name: {"mean": mean, "half_width": half} for name, (mean, half) in table.items()
    }
    # Without rewards that failed, hence null where all of a prompt's did.
    each = {
        name: [
            float(known.mean()) if (known := row[np.isfinite(row)]).size else None
            for row in np.asarray(values[name], np.float64)
        ]
        for name in ("reward", "accuracy")
        if name in values
    }
    content = {
        "options": options,
        "prompts": prompts,
        "measured": numbers,
        "per_prompt": each,
    }
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
