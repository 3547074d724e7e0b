"""Rewards by name: each a function of options to a reward of texts.

What needs a field of the record reads it by the option ``field`` and refuses records
without it, with the fields that they have.
"""

import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignax.pipeline.rewards.answers import extract_answer, last_number, parse_number
from alignax.pipeline.rewards.matches import Reward, exact_match
from alignax.types import InputError

_MOST = 20_000  # characters of a completion that are read, its end where it is longer


def fields_of(records: Sequence[Mapping[str, Any]], field: str, name: str) -> list[Any]:
    """A field of every record, or an error with the fields that there are."""
    for i, record in enumerate(records):
        if record.get(field) is None:
            raise InputError(
                f"{name}: record {record.get('index', i)} has no field {field!r}; it "
                f"has {', '.join(map(repr, record)) or 'none'}; name one of them by "
                f"{name},field=…"
            )
    return [record[field] for record in records]


def needed(package: str, name: str) -> InputError:
    return InputError(
        f'{name} needs the package {package}; pip install "alignax[tasks]" would do.'
    )


def _each(score: Callable[[str], float], completions: Sequence[str]) -> np.ndarray:
    return np.array([score(text[-_MOST:]) for text in completions], np.float32)


def exact_answer(*, field: str = "answer") -> Reward:
    """1 where a completion is the record's answer, surrounding blanks aside.

    Args:
      field: of the answer.

    Returns:
      the reward.
    """

    def reward(completions, records):
        answers = [str(value) for value in fields_of(records, field, "exact")]
        return exact_match(completions, answers)

    return reward


def numeric_answer(*, field: str = "answer", marker: str = "####") -> Reward:
    """1 where a completion ends with the answer's number, compared as fractions.

    Read is what follows the last ``marker``, or the last number of a completion without
    one. This is the lenient scorer of problems whose answers are numbers.

    Args:
      field: of the answer: a number, or a solution that ends in ``marker`` and one.
      marker: stands before the number.

    Returns:
      the reward.

    Example:
      >>> reward = numeric_answer()
      >>> texts = ["That makes 12 apples.", "#### 12 but 13 is odd", "1, 2, 12"]
      >>> reward(texts, [{"answer": 12}] * 3).tolist()
      [1.0, 0.0, 1.0]
    """

    def stated(text: str):
        after = extract_answer(text, marker=marker)
        return last_number(text) if after is None else parse_number(after)

    def reward(completions, records):
        keys = []
        for i, value in enumerate(fields_of(records, field, "numeric")):
            text = str(value)
            key = parse_number(extract_answer(text, marker=marker) or text)
            if key is None:
                raise InputError(
                    f"numeric: the {field} of record {records[i].get('index', i)} is "
                    f"not a number: {text[-80:]!r}; a number would do, or a text that "
                    f"ends in {marker!r} and one."
                )
            keys.append(key)
        said = [stated(text[-_MOST:]) for text in completions]
        return np.array([a == b for a, b in zip(said, keys, strict=True)], np.float32)

    return reward


def math_answer(*, field: str = "answer", seconds: int = 5) -> Reward:
    """1 where ``math-verify`` finds a completion's LaTeX equal to the answer.

    Its parser of plain expressions evaluates Python and is not used: beside LaTeX
    (between dollars, in ``\\boxed``) a number is read as ``numeric`` reads it.

    Args:
      field: of the answer: LaTeX or a number.
      seconds: for reading and for comparing. They are kept by a signal, so that the
        reward works in a process's main thread alone, as ``in_workers`` has it.

    Returns:
      the reward.

    Raises:
      InputError: the package is missing.
    """
    try:
        import math_verify
    except ImportError as error:
        raise needed("math-verify", "math_verify") from error
    latex = [math_verify.LatexExtractionConfig()]

    def parsed(text: str) -> list[Any]:
        return math_verify.parse(
            text,
            extraction_config=latex,
            fallback_mode="no_fallback",
            parsing_timeout=seconds,
        )

    def reward(completions, records):
        if threading.current_thread() is not threading.main_thread():
            raise InputError(
                "math_verify: its time limit needs the main thread of a process; "
                "worker processes (in_workers) have one each."
            )
        values = []
        for i, (text, answer) in enumerate(
            zip(completions, fields_of(records, field, "math_verify"), strict=True)
        ):
            short = str(answer).strip()
            number = parse_number(short)
            gold = parsed(short if "$" in short or "boxed" in short else f"${short}$")
            if not gold and number is None:
                raise InputError(
                    f"math_verify: the {field} of record "
                    f"{records[i].get('index', i)} is no LaTeX and no number: "
                    f"{short[-80:]!r}."
                )
            said = parsed(text[-_MOST:])
            if said:
                right = math_verify.verify(gold, said, timeout_seconds=seconds)
            else:
                right = number is not None and last_number(text[-_MOST:]) == number
            values.append(right)
        return np.array(values, np.float32)

    return reward


def sentiment() -> Reward:
    """VADER's compound score of a completion, from −1 to 1.

    A lexicon: it adds up words, whatever they say together, and can be had by lists of
    praise; ``fluency`` tells those.

    Returns:
      the reward.

    Raises:
      InputError: the package is missing.

    Reference:
      Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis
      of social media text", ICWSM 2014.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise needed("vaderSentiment", "sentiment") from error
    analyser = SentimentIntensityAnalyzer()

    def reward(completions, records):
        return _each(lambda t: analyser.polarity_scores(t)["compound"], completions)

    return reward


def target_length(*, target: int) -> Reward:
    """``−|n − target| / target`` of a completion's n words, at least −1.

    Args:
      target: words.

    Returns:
      the reward.

    Raises:
      InputError: the target is below 1.

    Example:
      >>> target_length(target=4)(["one two", "one two three four"], [{}, {}]).tolist()
      [-0.5, 0.0]
    """
    if target < 1:
        raise InputError(f"length: target={target} was given; 1 or more would do.")

    def reward(completions, records):
        counts = np.array([len(text.split()) for text in completions], float)
        return np.clip(-np.abs(counts - target) / target, -1, 0).astype(np.float32)

    return reward


def overlong(*, most: int, buffer: int) -> Reward:
    """DAPO's soft penalty on words: 0 to ``most − buffer``, −1 from ``most`` on.

    ``advantages.overlong_penalty`` is the same of tokens.

    Args:
      most: words, where the penalty is complete.
      buffer: words over which it grows.

    Returns:
      the reward.

    Raises:
      InputError: the buffer is not from 1 to ``most``.
    """
    if not 1 <= buffer <= most:
        raise InputError(
            f"overlong: buffer={buffer} was given; from 1 to most={most} would do."
        )

    def reward(completions, records):
        counts = np.array([len(text.split()) for text in completions], float)
        return np.clip((most - buffer - counts) / buffer, -1, 0).astype(np.float32)

    return reward


def matching(*, pattern: str, first: int = 2000) -> Reward:
    """1 where a regular expression matches a completion from its beginning to its end.

    Args:
      pattern: as Python's ``re`` has it, a dot matching newlines too. Nested
        repetitions (``(a+)+``) take time that grows with a power of the text's length
        or worse: ``in_workers`` has a time limit.
      first: characters; a longer completion scores 0 unread.

    Returns:
      the reward.

    Raises:
      InputError: it is no regular expression.

    Example:
      >>> reward = matching(pattern="<think>.*</think>.+")
      >>> reward(["<think>2</think> 2", "2"], [{}, {}]).tolist()
      [1.0, 0.0]
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InputError(
            f"format: pattern={pattern} is no regular expression ({error})."
        ) from error

    def reward(completions, records):
        return np.array(
            [
                len(text) <= first and compiled.fullmatch(text) is not None
                for text in completions
            ],
            np.float32,
        )

    return reward


# Scorers that evaluate as Python what a completion or a file says.
_EVALUATE = """binary_matrix bitwise_arithmetic intermediate_integration n_queens
    number_sorting polynomial_multiplication simple_integration spiral_matrix
    string_insertion"""
EVALUATE = frozenset(_EVALUATE.split())
# Those that do so for sums; nothing else gets to them.
SUMS = frozenset(("countdown", "puzzle24"))
_SUM = re.compile(r"(?!.*\*\s*\*)[-0-9+*/()\s.]{1,200}")


def reasoning_gym_answer(*, field: str = "entry") -> Reward:
    """The score of ``reasoning-gym``'s own verifier, from 0 to 1.

    What stands in the last ``<answer>`` of a completion is scored, or all of it.
    A verifier that fails on an answer gives it 0. Data sets whose verifiers evaluate
    Python code are refused; sums of ``countdown`` and ``puzzle24`` reach theirs as
    digits and operators only.

    Args:
      field: the entry, as ``data.reasoning_gym_records`` keeps it.

    Returns:
      the reward.

    Raises:
      InputError: the package is missing; and the reward, for an entry that is none.
    """
    try:
        from reasoning_gym.factory import DATASETS, get_score_answer_fn
    except ImportError as error:
        raise needed("reasoning-gym", "reasoning_gym") from error
    scorer: Any = functools.lru_cache(maxsize=None)(get_score_answer_fn)

    def score(text: str, entry: Any, number: int) -> float:
        try:
            name = entry["metadata"]["source_dataset"]
        except (KeyError, TypeError):
            name = None
        if name not in DATASETS or name in EVALUATE:
            raise InputError(
                f"reasoning_gym: record {number} is of the data set {name!r}; "
                + (
                    "its verifier evaluates answers as Python code: another data set, "
                    "or exact or numeric, would do."
                    if name in EVALUATE
                    else "entries of reasoning_gym:NAME would do."
                )
            )
        answer = _tagged(text[-_MOST:]).strip()
        if name in SUMS and not _SUM.fullmatch(answer):
            return 0.0
        try:
            return float(scorer(name)(answer, entry))
        except Exception:  # of a verifier that took the answer for well-formed
            return 0.0

    def reward(completions, records):
        entries = fields_of(records, field, "reasoning_gym")
        return np.array(
            [
                score(text, entry, records[i].get("index", i))
                for i, (text, entry) in enumerate(
                    zip(completions, entries, strict=True)
                )
            ],
            np.float32,
        )

    return reward


def _tagged(text: str) -> str:
    before, opened, after = text.rpartition("<answer>")
    return after.partition("</answer>")[0] if opened else before or after
