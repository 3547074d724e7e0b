"""What is trained on: prompts, completions and tokens, replay, and who generated them.

Between rollout and advantages (whole groups) or advantages and loss (tokens). Shapes
are static: decisions come as booleans for masks and weights for losses.

- ``groups``: dynamic sampling, difficulty bands, filtration by reward rank, D3S.
- ``tokens``: top shares by score, entropy filters, critical tokens, resets.
- ``replay``: buffers, recovery of left-over samples, ages, objectives' weights.
- ``roles``: role exchange, texts in context, judges' versions, teachers' prompts.
"""

from alignax.selection.groups import (
    best_weights,
    best_worst_weights,
    difficulty_band,
    mixed_groups,
    widest_subset,
)
from alignax.selection.replay import (
    Buffer,
    objective_weights,
    recent_sample_recovery,
    replay_buffer,
    replay_sample,
)
from alignax.selection.roles import (
    exchanged_roles,
    newest_version,
    unsolved_completions,
)
from alignax.selection.tokens import (
    calm_completions,
    critical_tokens,
    prefix_cuts,
    top_tokens,
)

__all__ = [
    "Buffer",
    "best_weights",
    "best_worst_weights",
    "calm_completions",
    "critical_tokens",
    "difficulty_band",
    "exchanged_roles",
    "mixed_groups",
    "newest_version",
    "objective_weights",
    "prefix_cuts",
    "recent_sample_recovery",
    "replay_buffer",
    "replay_sample",
    "top_tokens",
    "unsolved_completions",
    "widest_subset",
]
