"""Completions of what is held out: their rewards, divergence and texts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alignax.pipeline import data, hosts, metrics, plots, rewards
from alignax.train import evaluation, stops
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.runs import writing
from alignax.train.runs.options import Output
from alignax.train.turns import Environment
from alignax.types import Params, Prompts, Rollout


class Measured(NamedTuple):
    """One completion of each of N records, arrays ``[N]``."""

    texts: list[str]
    rewards: np.ndarray
    right: np.ndarray
    kl: np.ndarray
    length: np.ndarray
    finished: np.ndarray

    def summary(self) -> dict[str, float]:
        """Means, and the half-widths of their 95 % intervals as ``NAME_half``."""
        names = ("right", "kl", "length", "finished")
        return means(
            {"reward": self.rewards} | {name: getattr(self, name) for name in names}
        )


def means(columns: Mapping[str, Any]) -> dict[str, float]:
    """Means of what is finite, and the half-widths of their 95 % intervals.

    Args:
      columns: numbers ``[N]`` by name.

    Returns:
      ``NAME`` and ``NAME_half`` of each that has one.
    """
    values = {}
    for name, column in columns.items():
        x = np.asarray(column, np.float64)
        x = x[np.isfinite(x)]
        if x.size:
            values[name], half = metrics.mean_and_interval(x)
            values[f"{name}_half"] = half if np.isfinite(half) else 0.0
    return values


def make_measure(
    policy: Policy,
    records: data.Records,
    prompts: Prompts,
    reward: rewards.Reward,
    *,
    right_at: float,
    max_tokens: int,
    rows: int,
    seed: int,
    stops: Any = None,
    write: Callable[..., Rollout] | None = None,
) -> Callable[[Params], Measured]:
    """``params -> Measured``: one sample of each prompt, of the same noise each time.

    Args:
      policy: the model; its first parameters are what the divergence is measured from.
      records: that ``prompts.index`` counts in.
      prompts: N of them.
      reward: of their completions.
      right_at: from which reward on a completion counts as right.
      max_tokens: of a completion.
      rows: sampled at a time.
      seed: of the samples.
      stops: of ``stops.table``: texts that end a completion.
      write: ``(params, key, prompts) -> rollout`` in place of plain completions, which
        then says how they are drawn and end.

    Returns:
      the function.
    """
    tokenizer, key = policy.tokenizer, jax.random.key(seed)
    write = write or evaluation.make_writer(
        policy, max_tokens=max_tokens, completions=1, stops=stops
    )
    evaluator = evaluation.make_evaluator(policy, write, completions=1)
    count = len(prompts.index)
    # One shape: the last part is filled up with rows that are not read.
    starts = range(0, count, rows)
    places = [np.arange(i, i + rows) % count for i in starts]
    parts = [jax.tree.map(lambda x, at=at: x[at], prompts) for at in places]
    asked = [records[int(i)] for i in np.asarray(prompts.index)]

    def measure(params):
        texts, columns = [], []
        for part in parts:
            rollout, kl = evaluator(params, policy.params, key, part)
            rollout, kl = jax.device_get(hosts.fetch((rollout, kl)))
            texts += data.decode_rows(rollout.tokens, rollout.attended, tokenizer)
            columns.append((kl, rollout.trained.sum(axis=-1), rollout.finished))
        kl, length, finished = (
            np.concatenate(x)[:count] for x in zip(*columns, strict=True)
        )
        found = reward(texts[:count], asked)
        values = rewards.checked(found, np.asarray(prompts.index))
        return Measured(
            texts[:count],
            values,
            (values >= right_at).astype(np.float64),
            kl,
            length.astype(np.float64),
            finished.astype(np.float64),
        )

    return measure


def write_samples(
    path: Path,
    prompts: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Measured],
    *,
    most: int = 10,
) -> None:
    """``samples.md``: prompts with their completions, marked right or wrong.

    Args:
      path: of the file.
      prompts: N texts, as the model sees them.
      records: theirs.
      columns: what was measured, by a heading such as ``before``.
      most: prompts that are shown; the totals are of all.
    """
    lines = ["# Held-out prompts", ""]
    for name, found in columns.items():
        lines.append(
            f"- {name}: {int(found.right.sum())} of {len(found.texts)} right, mean "
            f"reward {np.nanmean(found.rewards):.3f}"
        )
    for i, text in enumerate(prompts[:most]):
        lines += ["", f"## {i + 1}", "", *_quoted(text)]
        answer = records[i].get("answer")
        if answer is not None:
            lines += ["", f"Answer: {answer}"]
        for name, found in columns.items():
            mark = "right" if found.right[i] else "wrong"
            lines += ["", f"**{name}** ({mark}, reward {found.rewards[i]:.3g}):", ""]
            lines += _quoted(found.texts[i])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in (text or "(nothing)").splitlines()]


def draw(
    path: Path, rows: Sequence[metrics.Row], phase: str, names: Sequence[str]
) -> None:
    """``curves.png``: what was measured over the steps, with its intervals.

    Args:
      path: of the picture.
      rows: of the log.
      phase: whose evaluations these are.
      names: of the metrics; those that were not measured are left out.
    """
    drawn = {}
    for name in names:
        key = f"{phase}/eval/{name}"
        if any(key in row for row in rows):
            steps, mean = metrics.column(rows, key)
            low = high = None
            if any(f"{key}_half" in row for row in rows):
                half = metrics.column(rows, f"{key}_half")[1]
                low, high = mean - half, mean + half
            drawn[name] = (steps - steps[0], mean, low, high)
    if drawn:
        plots.curves(path, drawn, title=f"{phase}: held out")


class HeldOut(NamedTuple):
    """Prompts to measure on, N of them, as texts, and what measures."""

    texts: list[str]
    records: list[Any]
    measure: Callable[[Params], Measured]


def held_out(
    records: data.Records,
    policy: Policy,
    reward: rewards.Reward,
    rl: RL,
    written: writing.Writing,
    output: Output,
    *,
    right_at: float,
    prompt_length: int,
    max_tokens: int,
    tool: Environment | None = None,
) -> HeldOut:
    """What measures a policy on held-out records.

    Args:
      records: that are held out; the first ``output.evaluate_prompts`` of them are
        asked.
      policy: to measure.
      reward: of completions.
      rl: the options of the method.
      written: how completions are written.
      output: of the run.
      right_at: the reward from which on a completion counts as right.
      prompt_length: tokens of the longest prompt; longer ones are left out.
      max_tokens: of a completion.
      tool: of ``writing.tool_of``, where there is one.

    Returns:
      the prompts that fit, and what measures.
    """
    tokenizer, most = policy.tokenizer, output.evaluate_prompts
    some = [records[i] for i in range(min(len(records), most))]
    texts = [data.prompt_text(record, tokenizer) for record in some]
    prompts = data.encode_prompts(
        texts, tokenizer, length=prompt_length, on_long="drop"
    )
    measure = make_measure(
        policy,
        some,
        prompts,
        reward,
        right_at=right_at,
        max_tokens=max_tokens,
        rows=min(len(prompts.index), rl.prompts * rl.completions),
        seed=output.seed + 1,
        stops=stops.table(written.stop, tokenizer) if written.stop else None,
        write=writing.to_measure(
            rl, policy, written, tool, some, max_tokens=max_tokens
        ),
    )
    kept = np.asarray(prompts.index).tolist()
    return HeldOut([texts[i] for i in kept], [some[i] for i in kept], measure)
