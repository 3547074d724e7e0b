"""One row of the table of public maths functions; see ``tests/test_table.py``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """A public function with sample arguments.

    Args:
      name: ``"module.function"`` below ``alignax``.
      fn: takes only arrays (bind hyper-parameters with ``functools.partial``).
      args: arrays, each with a leading axis of 8.
      rowwise: rows of the leading axis do not meet: the function may be vmapped,
        pmapped and sharded over it.
      grad: argument numbers to differentiate; empty for what has no gradient.
      mask: argument number of the boolean mask, if there is one.
      masked: argument numbers of the floats that the mask covers.
      estimator: the docstring must have ``Value:`` and ``Gradient:`` lines.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    rowwise: bool = True
    grad: tuple[int, ...] = (0,)
    mask: int | None = None
    masked: tuple[int, ...] = ()
    estimator: bool = False
