"""Measure a model on data.

Rewards, accuracy and pass@k; the win rate against another model or run; the KL to a
reference, sampled and over the vocabulary; entropy, length, and diversity. Every mean
has the half-width of its 95 % interval, over prompts.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alignax import divergences, evaluation
from alignax.models import functional
from alignax.pipeline import data, metrics, rewards
from alignax.pipeline import rollout as rollouts
from alignax.train import evaluation as measures
from alignax.train import folders, generation, reward_folders
from alignax.train import policy as policies
from alignax.train.generation import Law
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


class Measured(NamedTuple):
    """Of K completions for each of G prompts."""

    tokens: np.ndarray
    """``[G, K, T]``."""
    mask: np.ndarray
    """``[G, K, T]``."""
    finished: np.ndarray
    """``[G, K]``."""
    entropy: np.ndarray
    """``[G, K]``, nats a token."""
    rewards: np.ndarray | None = None
    """``[G, K]``, NaN where a reward failed."""
    kl_sampled: np.ndarray | None = None
    """``[G, K]``, the log-ratio of each completion, nats."""
    kl_vocabulary: np.ndarray | None = None
    """``[G, K]``, the tokens' KL at its prefixes, summed, nats."""


def main(config: Config) -> None:
    """Sample, measure, print a table, and write the numbers.

    Args:
      config: the options.

    Raises:
      InputError: data, rewards or a model cannot be read, or do not fit.
    """
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
    table = summary(measured, others, right=config.right)
    if measured.rewards is not None:
        failed = int(np.isnan(measured.rewards).sum())
        table |= {"rewards_failed": (failed, None)} if failed else {}
    print(f"{config.model}: {count} prompts, {config.law.n} completions each\n")
    print(shown(table))
    finished = table["finished"][0]
    if finished is not None and finished < 0.9:
        print(
            f"\n{1 - finished:.0%} of the completions were cut at "
            f"{config.law.max_tokens} tokens (--max-tokens)"
        )
    if config.out is not None:
        write(config, table, count)


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
        found = {"entropy": scores.entropy}
        if reference is not None:
            below = score(reference, rollout)
            found["kl_sampled"] = scores.logp - below.logp - below.log_mass
            found["kl_vocabulary"] = token_kl(params, reference, rollout)
        mask = rollout.trained
        return {name: jnp.where(mask, x, 0).sum(-1) for name, x in found.items()}

    params = policies.whole(policy, policy.params)
    parts: dict[str, list[np.ndarray]] = {}
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
            if reward is not None:
                asked = [records[i] for i in batch.numbers for _ in range(n)]
                written = generation.texts_of(batch, policy.tokenizer)
                values["rewards"] = np.asarray(reward(written, asked))
            for name, x in values.items():
                parts.setdefault(name, []).append(x)
            show(batch.numbers[-1] + 1, {})
    whole = {name: np.concatenate(x) for name, x in parts.items()}
    grouped = {k: x.reshape(len(texts), n, *x.shape[1:]) for k, x in whole.items()}
    if law.greedy:
        # The log-ratio of the likeliest tokens is no sample of anything.
        grouped.pop("kl_sampled", None)
    return Measured(**grouped)


Table = dict[str, tuple[float | None, float | None]]
"""Means and half-widths by name; None where there is none."""


def summary(measured: Measured, others: Measured | None, *, right: float) -> Table:
    """Means with the half-widths of their intervals over prompts.

    Args:
      measured: of the model.
      others: of the one that it is compared with.
      right: the reward from which on a completion counts as right; one whose reward
        failed does not.

    Returns:
      by name.
    """
    lengths = measured.mask.sum(-1)
    values: dict[str, np.ndarray] = {}
    if measured.rewards is not None:
        hits = np.nan_to_num(measured.rewards, nan=-np.inf) >= right - 1e-6
        values |= {"reward": measured.rewards, "accuracy": hits}
        count, n = jnp.asarray(hits.sum(-1)), hits.shape[-1]
        for k in sorted({2**i for i in range(1, n.bit_length())} | {n}):
            if 1 < k <= n:
                values[f"pass@{k}"] = np.asarray(evaluation.pass_at_k(count, n, k=k))
    if others is not None and others.rewards is not None:
        ours = values.get("reward", np.full_like(others.rewards, np.nan))
        values["reward_against"] = others.rewards
        values["win_rate"] = measures.win_rate(ours, others.rewards)
    for name in ("kl_sampled", "kl_vocabulary", "entropy", "finished"):
        found = getattr(measured, name)
        values |= {} if found is None else {name: found}
    values["length"] = lengths
    for n in (1, 2, 3):
        values[f"distinct_{n}"] = measures.distinct(measured.tokens, measured.mask, n=n)
    return {name: _mean(np.asarray(x, np.float64)) for name, x in values.items()}


def _mean(values: np.ndarray) -> tuple[float | None, float | None]:
    """Over what is a number; completions of one prompt are dependent."""
    prompts = np.broadcast_to(
        np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), values.shape
    )
    known = np.isfinite(values)
    if not known.any():
        return None, None
    mean, half = metrics.mean_and_interval(values[known], clusters=prompts[known])
    return mean, half if np.isfinite(half) else None


UNITS = {
    "kl_sampled": "nats a completion, sampled (k1)",
    "kl_vocabulary": "nats a completion, exact over the next token",
    "entropy": "nats a token",
    "length": "tokens",
    "reward_against": "of the other",
    "win_rate": "against the other, a tie counts half",
    "finished": "share that was not cut",
    "distinct_1": "different tokens over all, within a prompt",
    "distinct_2": "different pairs",
    "distinct_3": "different triples",
    "rewards_failed": "completions",
}


def shown(table: Table) -> str:
    """The table as it is printed.

    Args:
      table: of ``summary``.

    Returns:
      a line for each row.
    """
    lines = []
    for name, (mean, half) in table.items():
        number = "-" if mean is None else f"{mean:.4g}"
        about = "" if half is None else f"± {half:.2g}"
        lines.append(f"{name:15} {number:>9} {about:10} {UNITS.get(name, '')}".rstrip())
    return "\n".join(lines)


def write(config: Config, table: Table, prompts: int) -> None:
    """The numbers and what they are of, as JSON.

    Args:
      config: the options; ``out`` is written.
      table: of ``summary``.
      prompts: how many.
    """
    asked = dataclasses.asdict(config)
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}
    numbers = {
        name: {"mean": mean, "half_width": half} for name, (mean, half) in table.items()
    }
    content = {"options": options, "prompts": prompts, "measured": numbers}
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
