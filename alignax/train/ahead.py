"""Data by windows: a step sees the next batches, so that they are sampled in time."""

import copy
import dataclasses
from collections import deque
from typing import Any

from alignax.train.loop import Batches
from alignax.types import InputError


@dataclasses.dataclass
class Windows:
    """``data`` as tuples of a batch and the ``ahead`` next ones; each batch comes first
    once. Its position is that of the first batch that has not been first."""

    data: Batches
    ahead: int
    held: deque = dataclasses.field(default_factory=deque)

    def __iter__(self) -> "Windows":
        return self

    def __next__(self) -> tuple[Any, ...]:
        while len(self.held) <= self.ahead:
            position = copy.deepcopy(self.data.get_state())
            try:
                self.held.append((position, next(self.data)))
            except StopIteration:
                break
        if not self.held:
            raise StopIteration
        window = tuple(batch for _, batch in self.held)
        self.held.popleft()
        return window

    def get_state(self) -> Any:
        return self.held[0][0] if self.held else self.data.get_state()

    def set_state(self, state: Any) -> None:
        self.held.clear()
        self.data.set_state(state)


def windows(data: Batches, *, ahead: int) -> Windows:
    """Batches with those that follow, for ``tasks.host_step(ahead=)``.

    Args:
      data: an iterator whose position can be saved.
      ahead: how many follow, at least 1.

    Returns:
      an iterator of tuples, shorter where the data ends; its position can be saved.

    Raises:
      InputError: ``ahead`` is less than 1.
    """
    if ahead < 1:
        raise InputError(f"ahead must be at least 1, got {ahead}")
    return Windows(data, ahead)
