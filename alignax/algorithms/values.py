"""Functions with their settings, as values: equal and printed by what they do."""

import dataclasses
import re
import types
from collections.abc import Callable
from typing import Any

from alignax.divergences import Divergence
from alignax.references import Reference


@dataclasses.dataclass(frozen=True, repr=False)
class Partial:
    """A function with some keywords given, as ``functools.partial``, which two equal
    ones are not."""

    function: Callable[..., Any]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, /, *args, **more):
        return self.function(*args, **dict(self.settings), **more)

    def __repr__(self):
        return printed(self)


def partial(function: Callable[..., Any], /, **settings: Any) -> Callable[..., Any]:
    """``function`` with ``settings``.

    Args:
      function: of a module, not a lambda, so that it can be printed.
      settings: hashable.

    Returns:
      a ``Partial``.

    Example:
      >>> from alignax import surrogates
      >>> partial(surrogates.dual_clip_surrogate, cap=4.0)
      partial(surrogates.dual_clip_surrogate, cap=4.0)
    """
    return Partial(function, tuple(settings.items()))


def printed(value: Any) -> str:
    """A value as the call that makes it, with names as their rooms export them.

    Args:
      value: a number, a string, a tuple, a function of a module, a ``Partial``, a
        divergence, a reference rule, or a dataclass of such values, of which only what
        differs from the default is printed.

    Returns:
      one line.
    """
    if isinstance(value, Divergence):
        return _divergence(value.name)
    if isinstance(value, Reference):
        given = [f"{name}={printed(x)}" for name, x in value.settings]
        return f"references.{value.name}({', '.join(given)})"
    if isinstance(value, Partial):
        given = [f"{name}={printed(x)}" for name, x in value.settings]
        return f"partial({', '.join([printed(value.function), *given])})"
    if isinstance(value, types.FunctionType):
        room, *inner = value.__module__.removeprefix("alignax.").split(".")
        room = inner[-1] if room == "algorithms" else room
        return f"{room}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        given = [
            f"{field.name}={printed(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        ]
        return f"{type(value).__name__}({', '.join(given)})"
    return repr(value)


def _divergence(name: str) -> str:
    """The calls that a divergence's name stands for: ``2*pearson`` is a ``scale``."""
    terms = re.split(r"\+(?![^(]*\))", name)
    found = [re.findall(r"^(?:([\d.e-]+)\*)?(.+)$", term)[0] for term in terms]
    pairs = [(weight or "1", inner) for weight, inner in found]

    def call(inner):
        if inner[0] == "(":
            return _divergence(inner[1:-1])
        if "*" in inner:
            return _divergence(inner)
        inner = re.sub(r"(?<=[(, ])(-?\d+)(?=[,)])", r"\1.0", inner)
        return f"divergences.{inner}" + "()" * (not inner.endswith(")"))

    made = [call(inner) for _, inner in pairs]
    if len(pairs) > 1:
        weights = ", ".join(str(float(weight)) for weight, _ in pairs)
        return f"divergences.mix([{', '.join(made)}], [{weights}])"
    weight = float(pairs[0][0])
    return made[0] if weight == 1 else f"divergences.scale({made[0]}, {weight})"
