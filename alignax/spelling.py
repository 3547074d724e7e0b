"""How a command line spells what has options: ``NAME,option=value,option=value``.

Data sets and rewards are named by it. Nothing in it means something to a shell but the
weight's star before a reward (``2*exact``), which a shell leaves alone unless a file
has such a name.
"""

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from alignax.types import InputError

__all__ = ["bound", "spelled", "value_of"]

# A comma that no option's name follows belongs to the value before it.
_OPTION = re.compile(r",(?=[A-Za-z_]\w*=)")


def spelled(text: str) -> tuple[str, dict[str, str]]:
    """A name and its options.

    Args:
      text: such as ``reasoning_gym:chain_sum,max_terms=2``.

    Returns:
      the name, and a text for each option.

    Raises:
      InputError: no name, or an option twice.

    Example:
      >>> spelled("format,pattern=[0-9]{1,3},first=80")
      ('format', {'pattern': '[0-9]{1,3}', 'first': '80'})
    """
    name, *options = _OPTION.split(text.strip())
    given = {}
    for option in options:
        key, _, value = option.partition("=")
        given[key] = value
    if not name or "=" in name or len(given) < len(options):
        raise InputError(
            f"{text!r} was given; a name, and behind commas each option once, would "
            "do: NAME,option=value."
        )
    return name, given


def value_of(text: str) -> Any:
    """A number, true, false, null or list as JSON writes it; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def bound(function: Callable[..., Any], options: Mapping[str, str], name: str) -> Any:
    """Call ``function`` with options that came as texts.

    Args:
      function: its keyword-only parameters are the options; those annotated ``str``
        stay texts.
      options: of ``spelled``.
      name: what errors call it.

    Returns:
      what the function returns.

    Raises:
      InputError: an option that it does not take, lacks or cannot read.

    Example:
      >>> def repeated(*, text: str, times: int = 1):
      ...     return text * times
      >>> bound(repeated, {"text": "7", "times": "3"}, "repeated")
      '777'
    """
    takes = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    listed = ", ".join(takes) or "none"
    unknown = [key for key in options if key not in takes]
    if unknown:
        raise InputError(f"{name} has no option {unknown[0]!r}; it has {listed}.")
    missing = [
        key
        for key, parameter in takes.items()
        if parameter.default is parameter.empty and key not in options
    ]
    if missing:
        raise InputError(
            f"{name} needs the option {missing[0]!r}: {name},{missing[0]}=…"
        )
    given = {}
    for key, text in options.items():
        kind = takes[key].annotation
        kinds = set(typing.get_args(kind)) or {kind}
        value = text if str in kinds else value_of(text)
        number = isinstance(value, int) and not isinstance(value, bool)
        if not kinds & {str, bool} and not (
            number or (float in kinds and isinstance(value, float))
        ):
            what = "a number" if float in kinds else "an integer"
            raise InputError(f"{name}: {key}={text} was given; {what} would do.")
        if number and float in kinds and int not in kinds:
            value = float(value)
        if kinds == {bool} and not isinstance(value, bool):
            raise InputError(f"{name}: {key}={text}; true or false would do.")
        given[key] = value
    return function(**given)
