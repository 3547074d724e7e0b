"""A policy that is its own teacher, shown an own answer that was right."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from alignax.pipeline import data
from alignax.pipeline.data.rows import prompt_ids
from alignax.train.assembly import Parts
from alignax.train.policy import Policy
from alignax.train.runs import setting
from alignax.train.runs.teaching import with_text
from alignax.types import InputError, Scored, TrainState

Tell = Callable[[TrainState, Scored], tuple[Scored, dict[str, Any]]]
HEAD = "Correct solution:\n\n"
"""What stands before the answer, as in SDPO's code."""


def teller(
    config: Any, parts: Parts, records: data.Records, policy: Policy
) -> Tell | None:
    """What shows each prompt's teacher the first completion of it that was right.

    The completions of a prompt with none, and the shown one itself, are not trained;
    nor are those whose teacher's prompt is longer than its width.

    Args:
      config: of the run, settled: with ``teaching``, ``right_at``, the reward from
        which on a completion is right, and ``max_tokens``.
      parts: of the run, whose ``score`` reads what the teacher says.
      records: all that prompts are made of.
      policy: its own teacher.

    Returns:
      ``(state, scored) -> (scored, metrics)``, to follow the judging; None where a
      field of the records is shown. Its metrics are ``told``, the share of completions
      that are trained, and ``told_long``, of prompts whose answer did not fit.

    Raises:
      InputError: a prompt behind an answer does not fit the model.
    """
    if not config.teaching.teacher_sibling:
        return None
    tokenizer, max_tokens = policy.tokenizer, config.max_tokens

    def asked(number: int, answer: str) -> str:
        record = with_text(records[number], HEAD + answer)
        return data.prompt_text(record, tokenizer)

    longest = data.lengths(
        [asked(i, "") for i in range(len(records))],
        tokenizer,
        percentile=100.0,
        multiple=setting.MULTIPLE,
    ).prompt
    width = longest + max_tokens
    if width + max_tokens > policy.config.max_length:
        raise InputError(
            f"teacher_sibling: a prompt of {longest} tokens, a completion of "
            f"{max_tokens} that was right and the one that is learned from do not fit "
            f"the {policy.config.max_length} of the model; fewer max_tokens would do"
        )

    def tell(state: TrainState, scored: Scored) -> tuple[Scored, dict[str, Any]]:
        right = np.asarray(scored.rewards) >= config.right_at
        groups, count = right.shape
        first, rows = right.argmax(axis=1), np.arange(groups)
        chosen = rows * count + first
        rollout = scored.rollout
        written = data.decode_rows(
            np.asarray(rollout.tokens)[chosen],
            np.asarray(rollout.attended)[chosen],
            tokenizer,
        )
        texts = [
            asked(int(number), answer)
            for number, answer in zip(np.asarray(scored.index), written, strict=True)
        ]
        fits = np.array([len(prompt_ids(x, tokenizer)) <= width for x in texts])
        # What is too long is not trained; its teacher reads some prompt all the same.
        texts = [x if ok else asked(0, "") for x, ok in zip(texts, fits, strict=True)]
        prompts = data.encode_prompts(texts, tokenizer, length=width)
        others = np.arange(count) != first[:, None]
        told = ((right.any(axis=1) & fits)[:, None] & others).reshape(-1)
        rollout = dataclasses.replace(rollout, told=told)
        shown = dataclasses.replace(
            rollout,
            prompt_tokens=np.repeat(prompts.tokens, count, axis=0),
            prompt_mask=np.repeat(prompts.mask, count, axis=0),
        )
        fresh = parts.score(
            state,
            scored.index,
            rollout,
            scored.demonstrated,
            rescore=False,
            shown=shown,
        )
        found = {
            name: getattr(fresh, name)
            for name in ("rollout", "logp_ref", "log_mass_ref")
        }
        long = right.any(axis=1) & ~fits
        known = {"told": np.float32(told.mean()), "told_long": np.float32(long.mean())}
        return dataclasses.replace(scored, **found), known

    return tell
