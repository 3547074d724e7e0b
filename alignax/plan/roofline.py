"""How long work takes at the least, and what it is bound by."""

from collections.abc import Mapping
from typing import NamedTuple

from alignax.plan.hardware import Chip, bandwidth
from alignax.plan.programs import Cost


class Times(NamedTuple):
    """Seconds of each kind of work alone, at the maker's rates."""

    compute: float
    memory: float
    network: float

    @property
    def least(self) -> float:
        """With all three at the same time."""
        return max(self)

    @property
    def most(self) -> float:
        """One after another."""
        return sum(self)

    @property
    def bound(self) -> str:
        """The kind that takes longest."""
        return self._fields[self.index(self.least)]

    def plus(self, other: "Times") -> "Times":
        """This, and then the other."""
        return Times(*(a + b for a, b in zip(self, other, strict=True)))


def times(cost: Cost, chip: Chip, mesh: Mapping[str, int]) -> Times:
    """Lower bounds of a program's parts.

    Args:
      cost: of one device.
      chip: the device.
      mesh: sizes of the mesh's axes.

    Returns:
      the seconds that its products take at the peak of bfloat16, its traffic at the
      memory's bandwidth, and its collectives by rings.
    """
    return Times(
        cost.flops / chip.flops,
        cost.traffic / chip.bandwidth,
        sum(x.received / bandwidth(chip, x.axes, mesh) for x in cost.collectives),
    )


def by_axis(cost: Cost) -> dict[tuple[str, str], dict[str, float]]:
    """Collectives added up by their kind and axes.

    Args:
      cost: of one device.

    Returns:
      for each kind and axes ``payload``, bytes of the arrays, ``received``, bytes that
      reach a device, and ``calls``; the largest first.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for x in cost.collectives:
        row = found.setdefault(
            (x.op, "×".join(x.axes)), {"payload": 0.0, "received": 0.0, "calls": 0.0}
        )
        row["payload"] += x.payload * x.runs
        row["received"] += x.received
        row["calls"] += x.runs
    return dict(sorted(found.items(), key=lambda x: -x[1]["received"]))


def log_prob_bytes(
    *, rows: int, width: int, devices: int, tokens: int = 1, gradient: bool = False
) -> dict[str, int]:
    """All-reduced bytes of ``logprobs.from_hidden`` whose head's rows are split.

    The running maximum, mass and weighted logit of each row, and the logit of each
    token, are reduced over the devices; in the reverse pass each row's gradient of the
    hidden state. The head's gradient stays where its rows are. All in float32.

    Args:
      rows: hidden states, N.
      width: of one, D.
      devices: that the head's rows are split over.
      tokens: of each row, K.
      gradient: whether the reverse pass is counted as well.

    Returns:
      ``payload``, bytes of the arrays, and ``received``, what reaches each device by a
      ring.
    """
    payload = 4 * rows * (3 + tokens) + (4 * rows * width if gradient else 0)
    return {
        "payload": payload,
        "received": 2 * payload * (devices - 1) // devices,
    }
