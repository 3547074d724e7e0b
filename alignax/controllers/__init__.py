"""What sets strengths from step to step: ``init``/``update`` pairs, as in optax.

The state is a small pytree, for ``beta`` with a field of that name; it lives in the
train state and so in the checkpoint.

- ``beta``: from a measured KL.
- ``safe``: SAFE's KL budget with an entropy gate.
- ``costs``: Lagrange multipliers of several constraints.
- ``prompts``: strengths for each prompt, the entropy's coefficient.
"""

from alignax.controllers.beta import (
    ControllerState,
    PIDState,
    adaptive_kl,
    dual_ascent_kl,
    fixed,
    pid_kl,
)
from alignax.controllers.costs import (
    lagrange_multipliers,
    lagrangian_rewards,
)
from alignax.controllers.prompts import (
    difficulty_weights,
)
from alignax.controllers.safe import (
    SAFEState,
    entropy_gate,
    safe,
)

__all__ = [
    "ControllerState",
    "PIDState",
    "SAFEState",
    "adaptive_kl",
    "difficulty_weights",
    "dual_ascent_kl",
    "entropy_gate",
    "fixed",
    "lagrange_multipliers",
    "lagrangian_rewards",
    "pid_kl",
    "safe",
]
