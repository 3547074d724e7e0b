"""How rewards become advantages: baselines, scales, credit and shaping.

Advantages multiply a differentiated log-probability and carry no gradient of
their own: every function here returns a stopped gradient.

- ``shaping``, ``lengths``: rewards from rewards (several objectives, running scales,
  overlong and history-aware lengths).
- ``groups``, ``scales``: ``[..., K]`` rewards of a prompt's completions to
  advantages; ``optimal``, over the value of the regularised optimum.
- ``credit``: from outcomes and values to tokens ``[..., T]``.
- ``tokens``: token advantages that know the policy's entropy or the other rows.
"""

from alignax.advantages.credit import (
    at_last_token,
    gae,
    last_value,
    preference_token_rewards,
    reward_to_go,
    smoothed_rewards,
    whitened,
)
from alignax.advantages.groups import (
    batch_standardised,
    best_less_second,
    decoupled_standardised,
    greedy_centred,
    group_centred,
    group_standardised,
    hardness_scaled,
    leave_one_out,
    mean_normalised,
)
from alignax.advantages.lengths import (
    history_length_reward,
    history_update,
    long_failure_multiplier,
    overlong_penalty,
)
from alignax.advantages.optimal import optimal_centred, optimal_value
from alignax.advantages.scales import (
    beta_normalised,
    length_weighted_centred,
    linear_decay,
    pass_at_k_standardised,
    pass_at_k_weights,
    semantic_entropy,
    semantic_entropy_scaled,
    token_group_standardised,
)
from alignax.advantages.shaping import (
    Moments,
    consistency_bonus,
    contrastive_rewards,
    multiplied_rewards,
    running_moments,
    running_standardised,
    weighted_sum,
)
from alignax.advantages.tokens import (
    conflict_weights,
    entropy_shaped,
    exploration_advantages,
    redistributed_advantages,
    relative_entropy_level,
)

__all__ = [
    "Moments",
    "at_last_token",
    "batch_standardised",
    "best_less_second",
    "beta_normalised",
    "conflict_weights",
    "consistency_bonus",
    "contrastive_rewards",
    "decoupled_standardised",
    "entropy_shaped",
    "exploration_advantages",
    "gae",
    "greedy_centred",
    "group_centred",
    "group_standardised",
    "hardness_scaled",
    "history_length_reward",
    "history_update",
    "last_value",
    "leave_one_out",
    "length_weighted_centred",
    "linear_decay",
    "long_failure_multiplier",
    "mean_normalised",
    "multiplied_rewards",
    "optimal_centred",
    "optimal_value",
    "overlong_penalty",
    "pass_at_k_standardised",
    "pass_at_k_weights",
    "preference_token_rewards",
    "redistributed_advantages",
    "relative_entropy_level",
    "reward_to_go",
    "running_moments",
    "running_standardised",
    "semantic_entropy",
    "semantic_entropy_scaled",
    "smoothed_rewards",
    "token_group_standardised",
    "weighted_sum",
    "whitened",
]
