"""Rewards that compare a completion with its answer, and their weighted sum."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float32

from alignax.pipeline.rewards.answers import extract_answer, parse_number
from alignax.types import InputError

Reward = Callable[
    [Sequence[str], Sequence[Mapping[str, Any]]], Float32[np.ndarray, " N"]
]
"""N completions and their N records to N rewards."""


def _check_count(name: str, given: int, completions: Sequence[str]) -> None:
    if given != len(completions):
        raise InputError(
            f"{name}: {given} were given for {len(completions)} completions; one for "
            "each would do."
        )


def _float32(values: Iterable[bool]) -> Float32[np.ndarray, " N"]:
    return np.array(list(values), np.float32)


def real_numbers(values: Any, count: int, name: str) -> Float32[np.ndarray, " N"]:
    """``values`` as ``[count]`` float32, or an error that calls them ``name``."""
    try:
        given = np.asarray(values)
    except ValueError:
        # Rows of several lengths.
        given = np.empty(0, object)
    real = given.dtype == bool or any(
        jax.dtypes.issubdtype(given.dtype, kind) for kind in (np.integer, np.floating)
    )
    if not real or given.shape != (count,):
        raise InputError(
            f"{name}: an array of shape {given.shape} and type {given.dtype} was "
            f"given for {count} completions; one real number for each, of shape "
            f"({count},), would do."
        )
    with np.errstate(over="ignore"):
        return given.astype(np.float32)


def checked(values: Any, index: ArrayLike | Sequence[int]) -> np.ndarray:
    """What a reward function returned, seen to be a number for each completion.

    A number that is not finite is said on standard error, with its record's; the
    update of its batch is skipped (``pipeline.update``).

    Args:
      values: from any reward function.
      index: N integers, the number of each completion's record in its source.

    Returns:
      ``values`` as ``[N]`` float32.

    Raises:
      InputError: another shape, or what is not real numbers.

    Example:
      >>> checked([1, 0.5], [7, 7])
      array([1. , 0.5], dtype=float32)
    """
    index = np.asarray(index, np.int64)
    numbers = real_numbers(values, len(index), "rewards")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        given = np.asarray(values)
        named = [f"{given[i]} for record {index[i]} (completion {i})" for i in bad[:4]]
        more = f", and {bad.size - 4} more" if bad.size > 4 else ""
        print(
            f"warning: rewards are not finite: {', '.join(named)}{more}",
            file=sys.stderr,
            flush=True,
        )
    return numbers


def exact_match(
    completions: Sequence[str], answers: Sequence[str]
) -> Float32[np.ndarray, " N"]:
    """1 where a completion is its answer, surrounding blanks aside, else 0.

    Args:
      completions: N texts.
      answers: their N answers.

    Returns:
      N zeros and ones.

    Raises:
      InputError: the lengths differ.

    Example:
      >>> exact_match(["7\\n", "8"], ["7", "7"]).tolist()
      [1.0, 0.0]
    """
    _check_count("answers", len(answers), completions)
    return _float32(
        text.strip() == answer.strip()
        for text, answer in zip(completions, answers, strict=True)
    )


def numeric_match(
    completions: Sequence[str],
    answers: Sequence[str],
    *,
    marker: str | None = "####",
) -> Float32[np.ndarray, " N"]:
    """1 where a completion states its answer's number, else 0.

    Compared are exact fractions, so ``0.5``, ``.50`` and ``1/2`` agree and
    ``0.3333`` and ``1/3`` do not.

    Args:
      completions: N texts; one without a number after ``marker`` scores 0.
      answers: N numbers, or solutions that end in ``marker`` and the number.
      marker: stands before the number; None reads the whole text as the number.

    Returns:
      N zeros and ones.

    Raises:
      InputError: an answer is not a number, or the lengths differ.

    Example:
      >>> numeric_match(["so #### 1,000 km", "1000"], ["1000", "1000"]).tolist()
      [1.0, 0.0]
    """
    _check_count("answers", len(answers), completions)

    def stated(text: str) -> Fraction | None:
        return parse_number(text if marker is None else _after(text, marker))

    rewards = []
    for i, (text, answer) in enumerate(zip(completions, answers, strict=True)):
        short = marker is None or marker not in answer
        key = parse_number(answer) if short else stated(answer)
        if key is None:
            raise InputError(
                f"answers: that of record {i} is not a number: {answer[-80:]!r}; "
                "a number would do"
                + ("." if marker is None else f", or a text ending in {marker!r} N.")
            )
        rewards.append(stated(text) == key)
    return _float32(rewards)


def _after(text: str, marker: str) -> str:
    return extract_answer(text, marker=marker) or ""


def format_match(
    completions: Sequence[str], *, marker: str = "####"
) -> Float32[np.ndarray, " N"]:
    """1 where the last line, and no other, is ``marker`` and a number, else 0.

    Args:
      completions: N texts.
      marker: ``"####"`` as in GSM8K.

    Returns:
      N zeros and ones.

    Raises:
      InputError: ``marker`` is empty.

    Example:
      >>> format_match(["42\\n#### 42", "42", "#### 42\\nIndeed."]).tolist()
      [1.0, 0.0, 0.0]
    """

    def follows(text: str) -> bool:
        line = text.rstrip().rpartition("\n")[2]
        number = parse_number(_after(text, marker))
        return (
            text.count(marker) == 1 and line.startswith(marker) and number is not None
        )

    return _float32(map(follows, completions))


def weighted_sum(terms: Sequence[tuple[float, Reward]]) -> Reward:
    """The reward ``sum_i w_i r_i``.

    Args:
      terms: pairs of a finite weight and a reward.

    Returns:
      The reward; it raises ``InputError`` where a term does not return one number for
      each completion. One that is not finite goes through, for ``checked`` to name.

    Raises:
      InputError: no term, or a weight that is not finite.

    Example:
      >>> right = lambda texts, records: exact_match(texts, [r["a"] for r in records])
      >>> short = lambda texts, records: np.array([-len(t) for t in texts], np.float32)
      >>> weighted_sum([(1.0, right), (0.25, short)])(["7"], [{"a": "7"}]).tolist()
      [0.75]
    """
    terms = tuple(terms)
    if not terms or not np.isfinite([weight for weight, _ in terms]).all():
        raise InputError(
            f"terms: the weights {[weight for weight, _ in terms]} were given; one "
            "finite weight or more would do."
        )

    def reward(
        completions: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> Float32[np.ndarray, " N"]:
        _check_count("records", len(records), completions)
        total = np.zeros(len(completions), np.float64)
        for i, (weight, term) in enumerate(terms):
            values = np.asarray(term(completions, records))
            if values.shape != total.shape:
                raise InputError(
                    f"terms: reward {i} gave an array of shape {values.shape} for "
                    f"{len(completions)} completions; one number for each would do."
                )
            total += weight * values
        return total.astype(np.float32)

    return reward
