"""What sets strengths from step to step: ``init``/``update`` pairs, as in optax.

The state is a small pytree, for ``beta`` with a field of that name; it lives in the
train state and so in the checkpoint.

- ``beta``: from a measured KL.
- ``safe``: SAFE's KL budget with an entropy gate.
- ``costs``: Lagrange multipliers of several constraints.
- ``prompts``: strengths for each prompt, the entropy's coefficient.
"""

from alignax.controllers.beta import (
    Controller,
    ControllerState,
    PIDState,
    ScheduleState,
    adaptive_kl,
    dual_ascent_kl,
    fixed,
    linear,
    pid_kl,
    scheduled,
)
from alignax.controllers.costs import (
    lagrangian_rewards,
    multipliers_init,
    multipliers_update,
)
from alignax.controllers.prompts import (
    EntropyState,
    difficulty_strength,
    difficulty_weights,
    entropy_init,
    entropy_update,
)
from alignax.controllers.safe import (
    SAFE,
    SAFEState,
    entropy_gate,
    safe,
)

__all__ = [
    "SAFE",
    "Controller",
    "ControllerState",
    "EntropyState",
    "PIDState",
    "SAFEState",
    "ScheduleState",
    "adaptive_kl",
    "difficulty_strength",
    "difficulty_weights",
    "dual_ascent_kl",
    "entropy_gate",
    "entropy_init",
    "entropy_update",
    "fixed",
    "lagrangian_rewards",
    "linear",
    "multipliers_init",
    "multipliers_update",
    "pid_kl",
    "safe",
    "scheduled",
]
