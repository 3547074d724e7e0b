"""Each method's own stages before the loss: rewards, advantages, credit, what is kept.

Read one beside its paper; ``table`` puts them together. ``rules`` has those of the
loss.
"""

import math
from dataclasses import replace

import jax.numpy as jnp

from alignax import advantages, estimators, reduce, regularisers, selection, surrogates
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Critic
from alignax.algorithms.fields import correct, lengths, needed, spread
from alignax.algorithms.rules import demonstrated
from alignax.types import InputError

grpo = Algorithm(
    advantage=s.standardised,
    reduction=s.sequence_mean,
    regulariser=regularisers.k3_in_loss(),
    beta=0.04,
)
no_kl = replace(grpo, regulariser=None, beta=0.0)
token_mean = replace(no_kl, reduction=s.token_mean)
dapo = Algorithm(
    shape=s.overlong,
    advantage=s.standardised,
    keep=s.mixed,
    rule=s.CLIP_HIGHER,
    reduction=s.token_mean,
)
gae_ppo = Algorithm(
    advantage=s.raw,
    credit=s.gae,
    reduction=s.token_mean,
    regulariser=regularisers.k1_in_reward(),
    beta=0.05,
    critic=Critic(returns=s.gae_returns),
)


def leave_one_out(scored, rewards):
    return advantages.leave_one_out(rewards)


rloo = Algorithm(
    advantage=leave_one_out,
    credit=s.whole_penalty,
    regulariser=regularisers.k1_in_reward(),
    beta=0.05,
    on_policy=True,
    rule=s.REINFORCE,
    reduction=s.sequence_sum,
)


def truncated(scored, values):
    weights = estimators.token_weights(
        scored.logp_old, needed(scored, "logp_behaviour"), scored.mask
    )
    return estimators.truncated_weights(weights, cap=2.0)


def icepop(scored, values):
    weights = estimators.token_weights(
        scored.logp_old, needed(scored, "logp_behaviour"), scored.mask
    )
    return estimators.masked_weights(weights, low=0.5, high=5.0)


def explored_when_sampled(scored, values):
    """The same by the policy that sampled."""
    token = spread(values, scored.mask)
    explored = advantages.exploration_advantages(token, scored.logp_old, scored.mask)
    return jnp.where(needed(scored, "demonstrated")[:, None], explored, token)


def own_centred(scored, rewards):
    """RL-PLUS: the mean is of the policy's own completions."""
    own = ~needed(scored, "demonstrated").reshape(scored.rewards.shape)
    return advantages.group_centred(rewards, own)


def apo_advantage(scored, rewards):
    relative = advantages.group_standardised(rewards)
    factor = advantages.long_failure_multiplier(lengths(scored), correct(scored))
    return relative * factor


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


def signs(scored):
    return jnp.where(correct(scored), 1.0, -1.0)


def widest(scored):
    """D3S: the half of the batch's completions whose advantages vary most."""
    values = advantages.group_standardised(scored.rewards)
    size = max(1, values.size // 2)
    kept = selection.widest_subset(values.reshape(-1), size=size)
    return s.completions(scored, kept.reshape(values.shape))


def informative(scored, values):
    """D3S: 1 on the half of their tokens of highest ``|A| H``."""
    scores = jnp.abs(values) * needed(scored, "entropy")
    chosen = selection.top_tokens(scores, widest(scored), fraction=0.5)
    return chosen.astype(jnp.float32)


def best_and_worst(scored):
    """PF-PPO: each prompt's best and its worst completion."""
    return s.completions(scored, selection.best_worst_weights(scored.rewards) > 0)


def newest_judged(scored):
    """MPO: what the newest rubric has judged; others do not compare with it."""
    version = needed(scored, "reward_version")
    newest = selection.newest_version(version.reshape(-1)).reshape(version.shape)
    return s.completions(scored, newest)


def in_band(scored):
    kept = selection.difficulty_band(jnp.mean(correct(scored), axis=-1))
    return s.completions(scored, kept)


def gtpo_credit(scored, values):
    token = spread(values, scored.mask)
    total = jnp.sum(
        reduce.masked(needed(scored, "entropy"), scored.mask), -1, keepdims=True
    )
    count = jnp.sum(scored.mask, -1, keepdims=True, dtype=jnp.float32)
    return token - 0.1 * reduce.divide(total, count)


def gtpo_weight(scored, values, *, official=False):
    """Conflicts' weights, and 0 where a completion's entropy has risen, unless it was
    high when training began; such completions stay in the denominator.

    ``official``: the released code's: 0.7 nats whatever the entropy at the start,
    weights multiplied where the two runs overlap, over the number of conflicts.
    """
    shape = (*scored.rewards.shape, scored.mask.shape[-1])
    weights, number = advantages.conflict_weights(
        scored.rollout.tokens.reshape(shape),
        advantages.group_standardised(scored.rewards),
        scored.mask.reshape(shape),
        product=official,
    )
    weights, entropy = weights.reshape(scored.mask.shape), needed(scored, "entropy")
    if official:
        weights = weights / jnp.maximum(number.reshape(-1, 1), 1)
        calm = selection.calm_completions(entropy, scored.mask, 0.0, threshold=0.7)
    else:
        start = needed(scored, "initial_entropy")
        calm = selection.calm_completions(entropy, scored.mask, start)
    return weights * calm[:, None]


def not_stored(scored, values):
    return 1 - demonstrated(scored)


def care(scored):
    return scored.rewards + advantages.consistency_bonus(
        scored.rewards, needed(scored, "confidence")
    )


def opo(scored, rewards):
    return advantages.length_weighted_centred(rewards, lengths(scored))


def gpg(scored, rewards):
    """Rescaled as if prompts without an advantage had not been drawn."""
    useful = jnp.mean(jnp.ptp(rewards, axis=-1) > 0, dtype=jnp.float32)
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
    """80/20: 1 on the fifth of the trained tokens of highest entropy."""
    level = selection.top_tokens(
        needed(scored, "entropy"), s.mixed(scored), fraction=0.2
    )
    return level.astype(jnp.float32)


def shaped_by_entropy(scored, values):
    token = spread(values, scored.mask)
    return advantages.entropy_shaped(token, needed(scored, "entropy"), scored.mask)


def remax(scored, rewards):
    return advantages.greedy_centred(rewards, needed(scored, "greedy"))


def token_group(scored, rewards):
    return advantages.token_group_standardised(rewards, lengths(scored))


def scale_rl(scored, rewards):
    """ScaleRL: the deviation is of the batch that is left without prompts of one
    outcome."""
    useful = jnp.ptp(rewards, axis=-1, keepdims=True) > 0
    centred = jnp.where(useful, advantages.group_centred(rewards), 0)
    count = jnp.sum(useful, dtype=jnp.float32) * rewards.shape[-1]
    variance = reduce.divide(jnp.sum(centred**2), count)
    return centred / (jnp.sqrt(variance) + 1e-6)


def uneven(scored):
    """Tokens of prompts whose rewards differ."""
    return s.completions(scored, jnp.ptp(scored.rewards, axis=-1) > 0)


def running(scored):
    """PPO-max: rewards by the moments of all so far, and clipped."""
    return advantages.running_standardised(scored.rewards, needed(scored, "moments"))


def this_window(scored):
    """T-PPO: tokens that the policy of this step wrote; a completion that goes on from
    an earlier step has others."""
    version = scored.rollout.version
    if version is None:
        return scored.mask
    return scored.mask & (version == jnp.max(jnp.where(scored.mask, version, -1)))


def finished(scored):
    """T-PPO: the critic learns from whole completions alone."""
    return scored.mask & scored.rollout.finished[:, None]


def soft_minimum(values):
    """SAFE: of two heads."""
    return surrogates.soft_minimum(values[..., 0], values[..., 1])


def decoupled(scored, rewards):
    """GDPO: each objective by its own deviation, then one sum over the batch's."""
    objectives = needed(scored, "objectives")
    weights = scored.objective_weights
    if weights is None:
        weights = jnp.ones(objectives.shape[-1:])
    return advantages.decoupled_standardised(objectives, weights)


def summed(scored):
    """RLUF: the objectives' sum, weighted by the task."""
    objectives = needed(scored, "objectives")
    return advantages.weighted_sum(objectives, jnp.ones(objectives.shape[-1:]))


def weighted(scored):
    """RECAP: the objectives by their weights of this step."""
    return advantages.weighted_sum(
        needed(scored, "objectives"), needed(scored, "objective_weights")
    )


def team(scored):
    """CORY: the pioneer's reward and the observer's who saw it, for both."""
    half = scored.rewards.shape[1] // 2
    if scored.rewards.shape[1] % 2:
        raise InputError(
            f"completions must be even, got {scored.rewards.shape[1]}: each pioneer's "
            "has an observer's"
        )
    both = scored.rewards[:, :half] + scored.rewards[:, half:]
    return jnp.concatenate([both, both], axis=1)


def multiplied(scored):
    """CaRL: the reward times its factors."""
    return advantages.multiplied_rewards(scored.rewards, needed(scored, "objectives"))


def implied(scored, *, clip=None):
    """RTO: what a policy trained on preferences says of each token."""
    return advantages.preference_token_rewards(
        needed(scored, "logp_teacher"),
        needed(scored, "logp_ref"),
        scored.logp_old,
        scored.mask,
        beta=0.0,
        clip=clip,
    )


def smoothed(scored, values, penalty, *, width=3):
    """PCPG: token rewards to come, over neighbours."""
    rewards = advantages.smoothed_rewards(
        needed(scored, "token_rewards"), scored.mask, width=width
    )
    to_go = advantages.reward_to_go(rewards - penalty, scored.mask)
    return spread(values, scored.mask) + to_go
