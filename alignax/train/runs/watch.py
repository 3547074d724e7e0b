"""Beside each step: its time, its memory, what its numbers warn of, and a check that
what is trained is what was sampled."""

import collections
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from alignax.pipeline import hosts
from alignax.train.assembly import Parts
from alignax.train.runs.signs import signs
from alignax.types import Prompts, Rollout, RunError

Step = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
OF_THE_MACHINE = ("seconds", "tokens_per_second", "memory")
"""The metrics in which a resumed run differs from an unbroken one."""


class Watched(NamedTuple):
    """A step that is watched, and what says the last step's warnings."""

    step: Step
    finish: Callable[[], None]


def watched(
    step: Step,
    counted: Callable[[Any], int],
    *,
    every: int = 20,
) -> Watched:
    """A step whose metrics say what it costs, and that warns in words.

    Numbers are looked at a step late, so that the host does not wait for the device.

    Args:
      step: ``(state, batch) -> (state, metrics)``.
      counted: ``batch -> tokens``, asked behind the step.
      every: steps between two warnings of one kind.

    Returns:
      the step, with the metrics ``seconds``, ``tokens_per_second`` and ``memory``
      (GiB, the most so far) beside its own; and a function for the end.
    """
    rows: collections.deque[dict[str, float]] = collections.deque(maxlen=20)
    said: dict[str, int] = {}
    pending: list[dict[str, Any]] = []
    count, ended = 0, None

    def look() -> None:
        if not pending:
            return
        rows.append({k: float(v) for k, v in jax.device_get(pending.pop()).items()})
        for name, text in signs(list(rows)).items():
            if name not in said or count - said[name] >= every:
                said[name] = count
                if jax.process_index() == 0:
                    print(f"warning: {text}", file=sys.stderr, flush=True)

    def watching(state, batch):
        nonlocal count, ended
        began = time.monotonic() if ended is None else ended
        state, metrics = step(state, batch)
        tokens = counted(batch)
        ended = time.monotonic()
        look()
        count += 1
        seconds = ended - began
        costs = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        metrics = metrics | costs | {"memory": memory()}
        pending.append(metrics)
        return state, metrics

    return Watched(watching, look)


def memory() -> float:
    """GiB that the run has held at the most: on the first device, on a CPU in all."""
    stats = jax.local_devices()[0].memory_stats() or {}
    held = stats.get("peak_bytes_in_use")
    if held is None:
        # Kilobytes, but on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held / 2**30


def same_tokens(parts: Parts) -> Parts:
    """See at the first step that the tokens that are trained are those sampled.

    The sampler's record goes to the step as it is: texts are made of it for rewards,
    and nothing is made of texts again. This compares the two ends, and the prompts
    with those that were asked.

    Args:
      parts: of a run.

    Returns:
      the same parts; the first step raises ``RunError`` where they differ.
    """
    sampled: list[Rollout] = []
    done = False

    def sample(state, prompts):
        samples = parts.sample(state, prompts)
        if not done:
            sampled.append(jax.device_get(hosts.fetch(samples.rollout)))
            if samples.memory is None:
                # Open groups of a resumed run keep their own prompts.
                _check_prompts(prompts, sampled[-1])
        return samples

    def step(state, scored):
        nonlocal done
        if not done:
            _check_tokens(sampled, jax.device_get(hosts.fetch(scored.rollout)))
            done = True
            sampled.clear()
        return parts.step(state, scored)

    return parts._replace(sample=sample, step=step)


def _check_prompts(prompts: Prompts, rollout: Rollout) -> None:
    def rows(tokens, mask):
        pairs = zip(np.asarray(tokens), np.asarray(mask), strict=True)
        return [row[keep].tolist() for row, keep in pairs]

    asked = rows(prompts.tokens, prompts.mask)
    held = rows(rollout.prompt_tokens, rollout.prompt_mask)
    each = len(held) // len(asked)
    wrong = [i for i, row in enumerate(held) if row != asked[i // each]]
    if wrong:
        raise RunError(
            f"the prompt of completion {wrong[0]} is not the one that was asked, of "
            f"record {int(np.asarray(prompts.index)[wrong[0] // each])}"
        )


_TOKENS = ("prompt_tokens", "prompt_mask", "tokens", "attended", "trained")


def _check_tokens(sampled: Sequence[Rollout], trained: Rollout) -> None:
    """Every row of what is trained is one of those sampled, as it was."""

    def rows(rollout):
        columns = [np.asarray(getattr(rollout, name)) for name in _TOKENS]
        return [
            b"".join(x.tobytes() for x in row) for row in zip(*columns, strict=True)
        ]

    known = {row for rollout in sampled for row in rows(rollout)}
    wrong = [i for i, row in enumerate(rows(trained)) if row not in known]
    if wrong:
        raise RunError(
            f"what is trained is not what was sampled: completion {wrong[0]} and "
            f"{len(wrong) - 1} more have other tokens or masks"
        )
