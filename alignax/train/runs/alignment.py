"""Runs whose teacher has another tokenizer: what they may be, and what it says."""

from collections.abc import Sequence
from typing import Any

import jax

from alignax.algorithms import METHODS
from alignax.pipeline import data
from alignax.train import aligned
from alignax.train.options import RL, algorithm_of
from alignax.train.policy import Policy
from alignax.train.runs.teaching import Teaching
from alignax.train.runs.writing import Writing
from alignax.types import InputError


def check(teaching: Teaching, rl: RL, writing: Writing) -> None:
    """Refuse what chunks of text have no meaning for.

    Args:
      teaching: the options.
      rl: of the method.
      writing: how completions are written.

    Raises:
      InputError: ``align_text`` with another method than opd, a KL to hold, a tool or
        completions in parts.
    """
    if not teaching.align_text:
        return
    plain, algorithm = METHODS["opd"].algorithm, algorithm_of(rl)
    same = ("regulariser", "keep", "shape", "advantage", "credit", "sampling")
    if any(getattr(algorithm, name) != getattr(plain, name) for name in same):
        raise InputError(
            "align_text is of the method opd as it is, whose advantage is of each "
            f"token alone, got {rl.method}; leave other forms, levels and places out"
        )
    if rl.target_kl is not None:
        raise InputError(
            f"target_kl must be left out with align_text, got {rl.target_kl}: beta is "
            "held by the KL of tokens, and this one is of chunks"
        )
    for name in ("tool", "part_tokens"):
        if getattr(writing, name) is not None:
            raise InputError(
                f"{name} must be left out with align_text: the teacher reads "
                "completions of one turn and one step"
            )


def teller(
    config: Any, teacher: Sequence[Policy], records: data.Records, policy: Policy
) -> aligned.Tell | None:
    """What fills in the teacher's log-probabilities of a run.

    Args:
      config: of the run, settled: with ``teaching`` and ``rl``.
      teacher: of ``teaching.open_teachers``.
      records: all that prompts are made of.
      policy: the student.

    Returns:
      of ``aligned.make_tell``; None where tokens are the same.

    Raises:
      InputError: there are several processes, or the teacher has no room.
    """
    if not config.teaching.align_text:
        return None
    if jax.process_count() > 1:
        raise InputError(
            "align_text is not there on several processes; leave it out, or run on one"
        )
    return aligned.make_tell(
        policy,
        teacher[0],
        records,
        completions=config.rl.completions,
        prompt_length=aligned.longest_prompt(records, teacher[0].tokenizer),
    )
