"""Stages that several methods share: reductions, rules, credit, what is kept."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from alignax import advantages, reduce, selection, surrogates
from alignax.algorithms.compose import (
    Rows,
    correct,
    group_relative,
    lengths,
    needed,
    spread,
)
from alignax.types import Scored


# Reductions that do not look at the rows.
def token_mean(values, mask, rows):
    del rows
    return reduce.token_mean(values, mask)


def sequence_mean(values, mask, rows):
    del rows
    return reduce.sequence_mean_token_mean(values, mask)


def sequence_sum(values, mask, rows):
    del rows
    return reduce.sequence_mean_token_sum(values, mask)


def constant_length(values, mask, rows):
    del rows
    return reduce.constant_length_mean(values, mask, length=mask.shape[-1])


def prompt_mean(values, mask, rows):
    return reduce.group_token_mean(values, mask, rows.group_tokens)


# Baselines and scales.
def standardised(scored, rewards):
    return advantages.group_standardised(rewards)


def centred(scored, rewards):
    return advantages.group_centred(rewards)


def raw(scored, rewards):
    return rewards


def by(function: Callable[..., Array], **bound) -> Callable[[Array, Rows], Array]:
    """A rule of the surrogates' room on token ratios."""
    return lambda ratios, rows: function(ratios, rows.advantages, rows.mask, **bound)


def at(level, function, **bound):
    """A rule on a level's ratios; reduce by the mean over completions."""

    def rule(ratios, rows):
        reached = level(ratios, rows.mask)
        return function(reached, rows.advantages, rows.mask, **bound)

    return rule


def own_score(level, function, **bound):
    """A level's weight on each token's own score."""

    def rule(ratios, rows):
        value = surrogates.token_gradient(level(ratios, rows.mask), ratios)
        return function(value, rows.advantages, rows.mask, **bound)

    return rule


REINFORCE = by(surrogates.policy_gradient_surrogate)
RATIO = by(surrogates.ratio_surrogate)
CLIP_HIGHER = by(surrogates.ppo_surrogate, clip_high=0.28)
DUAL = by(surrogates.dual_clip_surrogate, clip_high=0.28, cap=10.0)
SEQUENCE, GEOMETRIC = surrogates.sequence_log_ratio, surrogates.geometric_log_ratio


# Credit: what each token gets of the outcome and of the penalty in the reward.
def on_group(credit):
    """A method's own credit of the outcome, less the group-relative penalty."""
    return lambda scored, values, penalty: group_relative(
        scored, credit(scored, values), penalty
    )


def whole_penalty(scored, values, penalty):
    """RLOO: each completion's whole penalty, less its group's."""
    total = jnp.sum(penalty, axis=-1).reshape(values.shape)
    return spread(values - advantages.leave_one_out(total), scored.mask)


def own_penalty(scored, values, penalty):
    """The outcome's advantage less the token's penalty to come, without baseline."""
    to_go = advantages.reward_to_go(penalty, scored.mask)
    return spread(values, scored.mask) - to_go


def _token_rewards(scored, values, penalty):
    return advantages.at_last_token(values.reshape(-1), scored.mask) - penalty


def whitened_to_go(centre=True):
    """REINFORCE++: reward-to-go with the penalty inside, whitened over the batch."""

    def credit(scored, values, penalty):
        rewards = _token_rewards(scored, values, penalty)
        to_go = advantages.reward_to_go(rewards, scored.mask)
        return advantages.whitened(to_go, scored.mask, centre=centre)

    return credit


def _gained(scored, values, penalty, bound, truncated):
    critic = needed(scored, "values")
    after = None
    if truncated:
        last = scored.last_value
        if last is None:
            last = advantages.last_value(critic, scored.mask)
        after = jnp.where(scored.rollout.finished, 0, last)
    rewards = _token_rewards(scored, values, penalty)
    return advantages.gae(rewards, critic, scored.mask, after, **bound)


def gae(*, truncated=True, **bound):
    """PPO: generalised advantages with the penalty inside, whitened over the batch.

    ``truncated``: completions that were cut go on, worth their last value.
    """

    def credit(scored, values, penalty):
        gained = _gained(scored, values, penalty, bound, truncated)
        return advantages.whitened(gained, scored.mask)

    return credit


def gae_returns(*, truncated=True, **bound):
    """The critic's targets: advantages before whitening, and the values themselves."""

    def returns(scored, penalty):
        gained = _gained(scored, scored.rewards, penalty, bound, truncated)
        return gained + reduce.masked(scored.values, scored.mask)

    return returns


def mixed(scored: Scored) -> Array:
    """Tokens of prompts with right and wrong answers (dynamic sampling)."""
    kept = selection.mixed_groups(correct(scored))
    return scored.mask & spread(
        jnp.broadcast_to(kept[:, None], scored.rewards.shape), scored.mask
    )


def mixed_or_stored(scored: Scored) -> Array:
    """Stored rows count whatever their rewards."""
    return mixed(scored) | (scored.mask & needed(scored, "demonstrated")[:, None])


def overlong(scored: Scored) -> Array:
    """DAPO's penalty over the last fifth of the tokens that there may be."""
    longest = scored.mask.shape[-1]
    return scored.rewards + advantages.overlong_penalty(
        lengths(scored), max_length=longest, buffer=max(1, longest // 5)
    )
