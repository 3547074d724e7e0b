"""Alarms on a run's divergence and entropy, and what they set off."""

import dataclasses
import math
import sys
from typing import Any, Literal

import jax

from alignax.train.loop import Step
from alignax.types import InputError, RunError, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alarms:
    """How far a policy may go, and what happens beyond."""

    kl: float | None = None
    """Sound above so many nats a completion from the reference."""
    entropy: float | None = None
    """Sound below so many nats a token of the policy's entropy."""
    action: Literal["warn", "raise_beta", "stop"] = "warn"
    """What an alarm does: say so; say so and double beta, at each step that it sounds;
    or end the run, whose last checkpoint is from before."""

    def __post_init__(self):
        for name in ("kl", "entropy"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"alarm.{name} must be positive and finite, got {value}"
                )
        if self.action != "warn" and not self.set:
            raise InputError(
                f"alarm.action {self.action} has nothing to act on; give alarm.kl or "
                "alarm.entropy"
            )

    @property
    def set(self) -> bool:
        """Whether anything can sound."""
        return self.kl is not None or self.entropy is not None

    def heard(self, row: dict[str, float]) -> str:
        """What sounds at a row of metrics, in words; nothing of most."""
        said = []
        if self.kl is not None and not row.get("kl", 0.0) <= self.kl:
            said.append(f"kl {row['kl']:.3g} is above {self.kl:g} nats a completion")
        if self.entropy is not None and not row.get("entropy", math.inf) >= (
            self.entropy
        ):
            said.append(
                f"entropy {row['entropy']:.3g} is below {self.entropy:g} nats a token"
            )
        return " and ".join(said)


def _doubled(state: TrainState) -> TrainState:
    beta = state.controller.beta
    # Zero is no strength that could be raised.
    return dataclasses.replace(
        state, controller=state.controller._replace(beta=2 * beta)
    )


def alarmed(step: Step, alarms: Alarms, *, reads_beta: bool) -> Step:
    """A step that looks at the metrics of the one before, for which nothing waits.

    Args:
      step: ``(state, batch) -> (state, metrics)``.
      alarms: the options.
      reads_beta: whether the method has a strength to raise.

    Returns:
      the step. It raises ``RunError`` where an alarm is to stop the run.

    Raises:
      InputError: beta is to be raised, and the method has none.
    """
    if not alarms.set:
        return step
    if alarms.action == "raise_beta" and not reads_beta:
        raise InputError(
            "alarm.action raise_beta has nothing to act on: the method has no "
            "divergence from a reference; give it one by divergence, or take stop"
        )
    before: list[dict[str, Any]] = []

    def watching(state: TrainState, batch: Any):
        if before:
            row = {k: float(v) for k, v in jax.device_get(before.pop()).items()}
            said = alarms.heard(row)
            if said and alarms.action == "stop":
                raise RunError(f"the run was stopped by its alarm: {said}")
            if said:
                more = ""
                if alarms.action == "raise_beta":
                    state = _doubled(state)
                    more = f"; beta is doubled from {row['beta']:.3g}"
                if jax.process_index() == 0:
                    print(f"warning: {said}{more}", file=sys.stderr, flush=True)
        state, metrics = step(state, batch)
        before.append({n: metrics[n] for n in _READ if n in metrics})
        return state, metrics

    return watching


_READ = ("kl", "entropy", "beta")
