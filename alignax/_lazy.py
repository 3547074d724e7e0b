"""What a package imports when it is first read: ``ax.models`` costs nothing before."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(
    package: str, modules: Sequence[str], members: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``.

    Args:
      package: its name.
      modules: its modules, found as attributes.
      members: classes and functions, each with the module that has it.

    Returns:
      the two functions.
    """
    homes = dict(members or {})

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted([*modules, *homes])
