"""The numbers that texts state, read exactly and without evaluating anything."""

import re
from fractions import Fraction

from alignax.types import InputError

_MAX_NUMBER = 400  # characters of a number with its unit

# A number without a sign: "1,234.5", "3." or ".5".
UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_SYMBOL = "$€£¥₹"
_NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)\s*[{_SYMBOL}]?\s*(?P<sign2>[-+−]?)(?P<value>{UNSIGNED})"
    rf"(?:\s*/\s*(?P<over>{UNSIGNED}))?(?P<rest>.*)",
    re.DOTALL,
)
# What may follow: symbols, then words without a digit or an operator, then a stop.
_UNIT = re.compile(
    rf"[\s%°{_SYMBOL}]*(?:[-/(]?\s?(?P<word>[^\W\d_]+)[^\d=+*<>^\\]*)?[\s.,;:!?)]*"
)
# Words that would change the value, so that it is not the number read so far.
_NOT_UNITS = re.compile(
    "(hundred|thousand|million|billion|trillion|dozen)s?|score|k|bn|mn|and|or|to|by|x"
    "|plus|minus|times|over|point|half|pi|squared|cubed",
    re.IGNORECASE,
)


def extract_answer(text: str, *, marker: str = "####") -> str | None:
    """What stands after the last ``marker``, to the end of its line.

    Args:
      text: a solution.
      marker: ``"####"`` as in GSM8K.

    Returns:
      The answer without surrounding blanks; None without a marker, or where nothing
      follows it.

    Raises:
      InputError: ``marker`` is empty.

    Example:
      >>> extract_answer("6 * 7 = 42\\n#### 42")
      '42'
    """
    if not marker:
        raise InputError('marker: "" was given; a text such as "####" would do.')
    if marker not in text:
        return None
    return text.rpartition(marker)[2].split("\n", 1)[0].strip() or None


def parse_number(text: str) -> Fraction | None:
    """The number that a short answer states, exactly.

    Read are signs, currency symbols, thousands separators, decimals, a quotient of
    two numbers and a trailing unit or stop: ``-7``, ``$1,234.50``, ``.5``, ``1/2``,
    ``42 apples.``. A percent sign is a unit (``50%`` is 50), since that is how keys
    state percentages. None is returned rather than a wrong number: for words that
    change the value (``2 million``, ``3 and a half``), exponents (``1e5``), more
    than one number (``3:30``, ``5 1/2``), separators out of place (``1,23``), a
    quotient by zero, and texts of over 400 characters.

    Args:
      text: the answer; anything at all.

    Returns:
      The number, or None.

    Example:
      >>> parse_number("$1,234.50 a year"), parse_number("about 5")
      (Fraction(2469, 2), None)
    """
    text = text.strip()
    if len(text) > _MAX_NUMBER:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or (match["sign"] and match["sign2"]):
        return None
    if not _is_unit(match["rest"]):
        return None
    value, over = unsigned(match["value"]), unsigned(match["over"] or "1")
    if over == 0:
        return None
    negative = (match["sign"] or match["sign2"]) in ("-", "−")
    return -value / over if negative else value / over


def _is_unit(rest: str) -> bool:
    """Whether what follows a number leaves its value as it is."""
    unit = _UNIT.fullmatch(rest)
    if unit is None or any(c.isnumeric() and not c.isdigit() for c in rest):
        return False
    word = unit["word"] or "none"
    # A capital alone is a million or a billion; a small m is a metre.
    return (
        word[0].isalpha() and word not in ("M", "B") and not _NOT_UNITS.fullmatch(word)
    )


# The last number in running text. A sign is one where no word or number ends before
# it, and digits within a word ("h2o") or an exponent's are no number.
_LAST = re.compile(
    rf"(?:(?<![\w.)\]])(?P<sign>[-+−]))?[{_SYMBOL}]?(?<![\w.])(?P<value>{UNSIGNED})"
    rf"(?:/(?P<over>{UNSIGNED}))?(?![^\W_]*\d)"
)
_LAST_READ = 4_000  # characters of a text's end


def last_number(text: str) -> Fraction | None:
    """The last number that a text states, exactly.

    Args:
      text: a completion; its last 4,000 characters are read.

    Returns:
      The number, or None without one, or for a quotient by zero.

    Example:
      >>> last_number("3 + 4 = 7, so 7 apples."), last_number("x2 is unknown")
      (Fraction(7, 1), None)
    """
    last = None
    for match in _LAST.finditer(text[-_LAST_READ:]):
        last = match
    if last is None or len(last[0]) > _MAX_NUMBER:
        return None
    value, over = unsigned(last["value"]), unsigned(last["over"] or "1")
    if over == 0:
        return None
    return -value / over if last["sign"] in ("-", "−") else value / over


def unsigned(digits: str) -> Fraction:
    """The value of a text that ``UNSIGNED`` matches."""
    # "3." and ".5" are numbers in answers; Fraction wants a digit before the point.
    return Fraction("0" + digits.replace(",", "").removesuffix("."))
