"""What is trained on: prompts, completions and tokens, replay, and who generated them.

Between rollout and advantages (whole groups) or advantages and loss (tokens). Shapes
are static: decisions come as booleans for masks and weights for losses.

- ``groups``: dynamic sampling, difficulty bands, filtration by reward rank, D3S.
- ``tokens``: top shares by score, entropy filters, critical tokens, resets.
- ``replay``: buffers, recovery of left-over samples, ages, objectives' weights.
- ``roles``: role exchange, texts in context, judges' versions, teachers' prompts.
"""

from alignax.selection.groups import (
    best_random_weights,
    best_weights,
    best_worst_weights,
    difficulty_band,
    mixed_groups,
    power_weights,
    r_squared,
    widest_subset,
)
from alignax.selection.replay import (
    Buffer,
    age_weights,
    objective_weights,
    recovered,
    replay_buffer,
    replay_sample,
)
from alignax.selection.roles import (
    context_rows,
    exchanged,
    mastered,
    newest_version,
    unsolved,
)
from alignax.selection.tokens import (
    calm_completions,
    critical_tokens,
    prefix_cuts,
    roll_in_masks,
    top_tokens,
)

__all__ = [
    "Buffer",
    "age_weights",
    "best_random_weights",
    "best_weights",
    "best_worst_weights",
    "calm_completions",
    "context_rows",
    "critical_tokens",
    "difficulty_band",
    "exchanged",
    "mastered",
    "mixed_groups",
    "newest_version",
    "objective_weights",
    "power_weights",
    "prefix_cuts",
    "r_squared",
    "recovered",
    "replay_buffer",
    "replay_sample",
    "roll_in_masks",
    "top_tokens",
    "unsolved",
    "widest_subset",
]
