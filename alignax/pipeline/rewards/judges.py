"""Judges: callables that score texts under a rubric, which may change during a run.

A judge is a model behind some interface, or a function; it never sees parameters. The
rubric is an argument, so that a policy's rewards can be refined while it trains (meta
policy optimisation), or be another for each policy, where the rubric stands before the
prompt as well (preamble policies).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from alignax.types import InputError


@runtime_checkable
class Judge(Protocol):
    """``(prompts, completions, *, rubric) -> [N]`` scores, finite, higher is better."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, rubric: str
    ) -> Float[np.ndarray, " N"]: ...


Refine = Callable[[str, Sequence[str], Sequence[str], Float[np.ndarray, " N"]], str]
"""``(rubric, prompts, completions, scores) -> rubric``: a meta reward model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a judge goes by, and how often it has been rewritten: rewards of different
    versions do not compare (``selection.newest_version``)."""

    text: str
    version: int = 0


def judged(
    judge: Judge,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    rubric: Rubric,
) -> Float[np.ndarray, " N"]:
    """A judge's scores, checked: as many as completions, and finite.

    Args:
      judge: the callable.
      prompts: N texts.
      completions: N texts.
      rubric: what it goes by.

    Returns:
      ``[N]`` float32.

    Raises:
      InputError: the numbers of texts differ, or the judge answers otherwise.

    Example:
      >>> def longest(prompts, completions, *, rubric):
      ...     return np.array([len(text) for text in completions])
      >>> judged(longest, ["?"], ["yes"], rubric=Rubric(text="be long"))
      array([3.], dtype=float32)
    """
    if len(prompts) != len(completions):
        raise InputError(
            f"completions: {len(completions)} were given for {len(prompts)} prompts; "
            "one prompt for each completion would do."
        )
    scores = np.asarray(judge(prompts, completions, rubric=rubric.text), np.float32)
    if scores.shape != (len(completions),) or not np.isfinite(scores).all():
        raise InputError(
            f"judge: it returned scores of shape {scores.shape} (finite: "
            f"{bool(np.isfinite(scores).all())}) for {len(completions)} completions; "
            "one finite number for each would do."
        )
    return scores


def judge_preferences(
    judge: Judge,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    rubric: Rubric,
) -> Float[np.ndarray, " N"]:
    """The probability that the first completion is better: ``σ`` of the scores' gap.

    Args:
      judge: the callable.
      prompts: N texts.
      first: N completions.
      second: N completions.
      rubric: what it goes by.

    Returns:
      ``[N]`` float32.

    Raises:
      InputError: as ``judged``.

    Example:
      >>> judge = lambda prompts, completions, *, rubric: np.zeros(len(completions))
      >>> judge_preferences(judge, ["?"], ["a"], ["b"], rubric=Rubric(text=""))
      array([0.5], dtype=float32)
    """
    gap = judged(judge, prompts, first, rubric=rubric) - judged(
        judge, prompts, second, rubric=rubric
    )
    # In two halves, so that no exponential overflows.
    small = np.exp(-np.abs(gap))
    return np.where(gap < 0, small / (1 + small), 1 / (1 + small)).astype(np.float32)


def refine_rubric(
    refine: Refine,
    rubric: Rubric,
    prompts: Sequence[str],
    completions: Sequence[str],
    scores: Float[np.ndarray, " N"],
) -> Rubric:
    """A rewritten rubric, after what it led to: meta policy optimisation's outer loop.

    Args:
      refine: the meta reward model.
      rubric: the one in force.
      prompts: N texts.
      completions: N texts of the policy.
      scores: ``[N]``, what the judge gave them.

    Returns:
      the next version; the same object where ``refine`` returns the same text.

    Raises:
      InputError: ``refine`` returns no text.

    Reference:
      Kim et al., "Toward evaluative thinking: meta policy optimization with evolving
      reward models", arXiv 2504.20157.

    Example:
      >>> stricter = lambda rubric, prompts, completions, scores: rubric + " Be brief."
      >>> refine_rubric(stricter, Rubric(text="Be right."), [], [], np.zeros(0)).version
      1
    """
    text = refine(rubric.text, prompts, completions, scores)
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"refine: it returned {text!r}; the text of a rubric would do."
        )
    if text == rubric.text:
        return rubric
    return Rubric(text=text, version=rubric.version + 1)


def with_preamble(prompts: Sequence[str], rubric: Rubric) -> list[str]:
    """The rubric before each prompt: one policy for many rubrics, told which.

    Args:
      prompts: N texts.
      rubric: what the completions will be judged by.

    Returns:
      N texts.

    Example:
      >>> with_preamble(["1+1?"], Rubric(text="Be brief."))
      ['Be brief.\\n\\n1+1?']
    """
    return [f"{rubric.text}\n\n{prompt}" for prompt in prompts]
