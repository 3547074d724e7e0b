"""A calculator for GSM8K's marks ``<<48/2=24>>``: a parser, never ``eval``."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from alignax.pipeline.rewards.answers import UNSIGNED, unsigned
from alignax.types import InputError

_MAX_EXPRESSION = 1000  # characters of a sum
_MAX_DEPTH = 50  # parentheses and signs within one another


class Mark(NamedTuple):
    """A calculator mark ``<<expression=claimed>>``; ``correct`` is None where one of
    the two is not a sum or a number."""

    expression: str
    claimed: str
    correct: bool | None


_TOKEN = re.compile(rf"\s*({UNSIGNED}|[-+*/()%])")
_MARK = re.compile(r"<<([^<>]*)>>")
_CLAIMED = re.compile(rf"[-+]?(?:{UNSIGNED})")


def calculate(expression: str) -> Fraction | None:
    """The exact value of a sum of numbers with ``+ - * / ( ) %`` and signs.

    ``a%`` is ``a / 100``. Division by zero, anything else than a sum (names,
    exponents, two numbers side by side), over 1,000 characters, and over 50
    parentheses and signs within one another give None.

    Args:
      expression: the sum; anything at all.

    Returns:
      The value, or None.

    Example:
      >>> calculate("3*(1/2 - .25)"), calculate("1/0"), calculate("2**9")
      (Fraction(3, 4), None, None)
    """
    expression = expression.strip()
    if len(expression) > _MAX_EXPRESSION:
        return None
    tokens, end = [], 0
    while end < len(expression):
        match = _TOKEN.match(expression, end)
        if match is None:
            return None
        tokens.append(match[1])
        end = match.end()
    tokens.append("")
    try:
        value, last = _sum(tokens, 0, _MAX_DEPTH)
    except (_Nonsense, ZeroDivisionError):
        return None
    return value if tokens[last] == "" else None


class _Nonsense(Exception):
    """The tokens are not a sum."""


# Each reads one part from token i on and returns its value and where it ends; the
# last token is "".


def _sum(tokens: list[str], i: int, depth: int) -> tuple[Fraction, int]:
    value, i = _product(tokens, i, depth)
    while (sign := tokens[i]) in ("+", "-"):
        term, i = _product(tokens, i + 1, depth)
        value = value + term if sign == "+" else value - term
    return value, i


def _product(tokens: list[str], i: int, depth: int) -> tuple[Fraction, int]:
    value, i = _factor(tokens, i, depth)
    while (sign := tokens[i]) in ("*", "/"):
        factor, i = _factor(tokens, i + 1, depth)
        value = value * factor if sign == "*" else value / factor
    return value, i


def _factor(tokens: list[str], i: int, depth: int) -> tuple[Fraction, int]:
    token = tokens[i]
    if depth == 0 or token in ("", "*", "/", "%", ")"):
        raise _Nonsense
    if token in ("+", "-"):
        value, i = _factor(tokens, i + 1, depth - 1)
        return (value if token == "+" else -value), i
    if token == "(":
        value, i = _sum(tokens, i + 1, depth - 1)
        if tokens[i] != ")":
            raise _Nonsense
    else:
        value = unsigned(token)
    i += 1
    while tokens[i] == "%":
        value, i = value / 100, i + 1
    return value, i


def _is_right(value: Fraction, claimed: str) -> bool:
    """Equal, or as near as a double or the decimals shown can state the value."""
    stated = unsigned(claimed.lstrip("+-"))
    error = abs(value - (-stated if claimed.startswith("-") else stated))
    decimals = len(claimed.partition(".")[2])
    return error <= abs(value) / 10**9 or (
        decimals >= 2 and error < Fraction(1, 10**decimals)
    )


def _read_mark(inside: str) -> Mark:
    expression, _, claimed = (part.strip() for part in inside.rpartition("="))
    value = calculate(expression)
    readable = len(claimed) <= _MAX_EXPRESSION and _CLAIMED.fullmatch(claimed)
    correct = _is_right(value, claimed) if value is not None and readable else None
    return Mark(expression, claimed, correct)


def check_marks(text: str) -> list[Mark]:
    """The calculator marks of a text, each checked.

    A claim is right where it equals the value exactly; where it is off by at most
    1e-9 of the value, as a double's ``0.30000000000000004`` is; or where it shows
    two decimals or more and is off by less than one unit of the last, as ``0.33``
    for a third. ``<<10/3=3>>`` is wrong.

    Args:
      text: a solution.

    Returns:
      ``Mark(expression, claimed, correct)`` for each ``<<expression=claimed>>``, in
      order; ``correct`` is None where the expression is no sum (``2*x``, ``1/0``) or
      the claim no number.

    Example:
      >>> [mark.correct for mark in check_marks("<<48/2=24>> <<2+2=5>> <<x+1=2>>")]
      [True, False, None]
    """
    return [_read_mark(match[1]) for match in _MARK.finditer(text)]


def marks_reward(texts: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The share of a text's calculator marks that are right.

    A mark that cannot be checked counts as wrong, and a text without a mark scores
    0, so that neither nonsense nor silence earns anything. ``<<1=1>>`` is right, and
    empty: add this reward to one of the answer, with a smaller weight.

    Args:
      texts: N solutions.

    Returns:
      N numbers from 0 to 1.

    Example:
      >>> marks_reward(["<<48/2=24>> then <<24+1=26>>", "24"]).tolist()
      [0.5, 0.0]
    """
    checked = [[mark.correct is True for mark in check_marks(text)] for text in texts]
    return np.array([np.mean(marks) if marks else 0.0 for marks in checked], np.float32)


def execute_marks(text: str, *, places: int = 6) -> str:
    """Write the value of each mark's expression into the mark.

    A claim that ``check_marks`` finds right stays as it is, and so does a mark whose
    expression is no sum; the text around the marks is not touched.

    Args:
      text: a solution; ``<<48/2=>>`` and ``<<48/2=25>>`` become ``<<48/2=24>>``.
      places: decimals to which a value is rounded, half to even.

    Returns:
      The text.

    Raises:
      InputError: ``places`` is not between 0 and 100.

    Example:
      >>> execute_marks("<<48/2=>>24 and <<1/3=>>")
      '<<48/2=24>>24 and <<1/3=0.3333>>'
    """
    if not 0 <= places <= 100:
        raise InputError(f"places: {places} was given; 0 to 100 would do.")

    def fill(match: re.Match[str]) -> str:
        mark = _read_mark(match[1])
        value = calculate(mark.expression)
        if mark.correct or value is None:
            return match[0]
        return f"<<{mark.expression}={_decimal(value, places)}>>"

    return _MARK.sub(fill, text)


def _decimal(value: Fraction, places: int) -> str:
    scaled = round(value * 10**places)
    whole, part = divmod(abs(scaled), 10**places)
    digits = f"{part:0{places}d}".rstrip("0") if places else ""
    return f"{'-' if scaled < 0 else ''}{whole}{'.' if digits else ''}{digits}"
