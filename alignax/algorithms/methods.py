"""Each method's own stages. Read one beside its paper; ``table`` puts them together."""

import dataclasses
import math

import jax.numpy as jnp

from alignax import (
    advantages,
    controllers,
    estimators,
    reduce,
    regularisers,
    selection,
    surrogates,
)
from alignax.algorithms.compose import Algorithm, correct, lengths, needed, spread
from alignax.algorithms.stages import (
    CLIP_HIGHER,
    GEOMETRIC,
    REINFORCE,
    mixed,
    overlong,
    sequence_mean,
    sequence_sum,
    standardised,
    token_mean,
    whole_penalty,
)

grpo = Algorithm(
    advantage=standardised,
    reduction=sequence_mean,
    regulariser=regularisers.k3_in_loss(),
    beta=0.04,
)
no_kl = dataclasses.replace(grpo, regulariser=None, beta=0.0)
dapo = Algorithm(
    shape=overlong,
    advantage=standardised,
    keep=mixed,
    rule=CLIP_HIGHER,
    reduction=token_mean,
)
rloo = Algorithm(
    advantage=lambda scored, rewards: advantages.leave_one_out(rewards),
    credit=whole_penalty,
    regulariser=regularisers.k1_in_reward(),
    beta=0.05,
    on_policy=True,
    rule=REINFORCE,
    reduction=sequence_sum,
)


def gmpo(ratios, rows):
    clipped = surrogates.clipped_log_ratio(ratios, rows.advantages, rows.mask)
    level = GEOMETRIC(clipped, rows.mask)
    return surrogates.ratio_surrogate(level, rows.advantages, rows.mask)


def truncated(scored, values):
    weights = estimators.token_weights(
        scored.logp_old, scored.rollout.logp_behaviour, scored.mask
    )
    return estimators.truncated_weights(weights, cap=2.0)


def icepop(scored, values):
    weights = estimators.token_weights(
        scored.logp_old, scored.rollout.logp_behaviour, scored.mask
    )
    return estimators.masked_weights(weights, low=0.5, high=5.0)


def not_drifted(scored):
    """Advantages of the outcome decide which completions the policy has left."""
    relative = spread(advantages.group_standardised(scored.rewards), scored.mask)
    gone = surrogates.drifted(
        scored.logp_old,
        scored.rollout.logp_behaviour,
        relative,
        scored.mask,
        threshold=2.0,
    )
    return scored.mask & ~gone[:, None]


def rl_plus_denominator(scored):
    blind = surrogates.blind_mixture_logp(scored.logp_old, scored.mask)
    return jnp.where(needed(scored, "demonstrated")[:, None], blind, scored.logp_old)


def rl_plus_credit(scored, values):
    token = spread(values, scored.mask)
    explored = advantages.exploration_advantages(token, scored.logp_old, scored.mask)
    return jnp.where(needed(scored, "demonstrated")[:, None], explored, token)


def own_rows(scored):
    return ~needed(scored, "demonstrated").reshape(scored.rewards.shape)


def apo_advantage(scored, rewards):
    relative = advantages.group_standardised(rewards)
    factor = advantages.long_failure_multiplier(lengths(scored), correct(scored))
    return relative * factor


def dads(scored):
    right = correct(scored)
    weight = controllers.difficulty_weights(jnp.mean(right, axis=-1))
    return jnp.where(right, weight[:, None], 1).reshape(-1)


def seed(scored, rewards):
    entropy = advantages.semantic_entropy(
        needed(scored, "clusters"), jnp.zeros(rewards.shape, jnp.float32)
    )
    most = math.log(rewards.shape[-1])
    return advantages.semantic_entropy_scaled(rewards, entropy, most=most)


def shorter_than_before(scored):
    history = jnp.broadcast_to(needed(scored, "history")[:, None], scored.rewards.shape)
    return scored.rewards + advantages.history_length_reward(
        lengths(scored), correct(scored), history
    )


def entropy_level(scored):
    return advantages.relative_entropy_level(
        needed(scored, "entropy"), scored.mask, pivot=0.8
    )


def hapo(ratios, rows):
    values = advantages.redistributed_advantages(
        rows.advantages, rows.level, ratios, rows.mask
    )
    low, high = surrogates.adaptive_clip(rows.level)
    return surrogates.dual_clip_surrogate(
        ratios, values, rows.mask, clip_low=low, clip_high=high, cap=10.0
    )


def signs(scored):
    return jnp.where(correct(scored), 1.0, -1.0)


def targeted_entropy(scored):
    """The mean entropy, on each row so that rows may be split."""
    mean = reduce.divide(*reduce.token_mean(needed(scored, "entropy"), scored.mask))
    return jnp.broadcast_to(mean, scored.mask.shape[:1])


def ter(logp, entropy, rows):
    return 0.001 * surrogates.entropy_target_surrogate(
        entropy, rows.share[0], rows.mask, target=0.55
    )


def covariance(scored):
    values = spread(advantages.group_standardised(scored.rewards), scored.mask)
    return surrogates.covariances(scored.logp_old, values, scored.mask)


def top_covariance(scored):
    chosen = selection.top_tokens(covariance(scored), scored.mask, fraction=2e-3)
    return chosen.astype(jnp.float32)


def kl_cov(ratios, rows):
    chosen = rows.mask & (rows.level > 0)
    plain = surrogates.ratio_surrogate(ratios, rows.advantages, rows.mask)
    return plain + estimators.absolute(ratios, jnp.zeros_like(ratios), chosen)


def clip_cov_level(scored):
    dropped = surrogates.clip_cov_dropped(
        needed(scored, "key"), covariance(scored), scored.mask
    )
    return dropped.astype(jnp.float32)


def clip_cov(ratios, rows):
    plain = surrogates.ppo_surrogate(ratios, rows.advantages, rows.mask)
    return jnp.where(rows.level > 0, 0, plain)


def informative(scored, values):
    scores = jnp.abs(values) * needed(scored, "entropy")
    return selection.top_tokens(scores, scored.mask, fraction=0.5).astype(jnp.float32)


def best_and_worst(scored, values):
    weights = selection.best_worst_weights(scored.rewards)
    return spread(weights * scored.rewards.shape[-1], scored.mask)


def in_band(scored):
    kept = selection.difficulty_band(jnp.mean(correct(scored), axis=-1))
    return scored.mask & spread(
        jnp.broadcast_to(kept[:, None], scored.rewards.shape), scored.mask
    )


def gtpo_credit(scored, values):
    token = spread(values, scored.mask)
    total = jnp.sum(
        reduce.masked(needed(scored, "entropy"), scored.mask), -1, keepdims=True
    )
    count = jnp.sum(scored.mask, -1, keepdims=True, dtype=jnp.float32)
    return token - 0.1 * reduce.divide(total, count)


def gtpo_keep(scored):
    calm = selection.calm_completions(needed(scored, "entropy"), scored.mask, 0.0)
    return scored.mask & calm[:, None]


def conflicts(scored, values):
    shape = (*scored.rewards.shape, scored.mask.shape[-1])
    weights, _ = advantages.conflict_weights(
        scored.rollout.tokens.reshape(shape),
        advantages.group_standardised(scored.rewards),
        scored.mask.reshape(shape),
    )
    return weights.reshape(scored.mask.shape)


def rapo_share(scored):
    """φ rises with the reward."""
    return jnp.clip(scored.rewards, 0, 1).reshape(-1)


def rapo(logp, entropy, rows):
    term = surrogates.forward_exploration_surrogate(
        logp, rows.logp_ref, rows.share, rows.mask
    )
    penalty = rows.beta[:, None] * term
    return penalty - 0.001 * reduce.masked(entropy, rows.mask)


def stored(scored):
    """Rows that the reference wrote are regularised only."""
    return needed(scored, "demonstrated")


def not_stored(scored, values):
    return jnp.broadcast_to(
        ~needed(scored, "demonstrated")[:, None], scored.mask.shape
    ).astype(jnp.float32)


def kdrl_share(scored):
    return selection.unsolved(correct(scored)).astype(jnp.float32).reshape(-1)


def behaviour(scored):
    """ReMix: half of the rows are older; ratios are to what sampled each row."""
    return scored.rollout.logp_behaviour


def care(scored):
    return scored.rewards + advantages.consistency_bonus(
        scored.rewards, needed(scored, "confidence")
    )


def opo(scored, rewards):
    return advantages.length_weighted_centred(rewards, lengths(scored))


def gpg(scored, rewards):
    """Rescaled as if prompts without an advantage had not been drawn."""
    useful = jnp.mean(selection.mixed_groups(correct(scored)), dtype=jnp.float32)
    return advantages.group_centred(rewards) / jnp.maximum(useful, 1e-6)


def luspo(scored, values):
    return jnp.broadcast_to(
        jnp.sum(scored.mask, -1, keepdims=True, dtype=jnp.float32), scored.mask.shape
    )


def pass_at_k(scored, rewards):
    """k is half of the group."""
    k = max(1, rewards.shape[-1] // 2)
    return advantages.pass_at_k_standardised(correct(scored), k=k)


def pkpo(scored, rewards):
    """k is half of the group."""
    k = max(1, rewards.shape[-1] // 2)
    return advantages.pass_at_k_weights(correct(scored), k=k)


def entropic(scored, values):
    level = selection.top_tokens(needed(scored, "entropy"), scored.mask, fraction=0.2)
    return level.astype(jnp.float32)


def shaped_by_entropy(scored, values):
    token = spread(values, scored.mask)
    return advantages.entropy_shaped(token, needed(scored, "entropy"), scored.mask)
