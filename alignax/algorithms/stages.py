"""Stages that several methods share: reductions, rules, credit, what is kept.

A stage is a function of this module, or one with settings (``partial``): equal
methods are then equal values, and each can be printed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from alignax import advantages, controllers, reduce, selection, surrogates
from alignax.algorithms.compose import Rows
from alignax.algorithms.fields import (
    correct,
    group_relative,
    lengths,
    needed,
    spread,
)
from alignax.algorithms.values import partial
from alignax.types import Scored, Stateful


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


def of_rewards(scored, rewards, *, function):
    """An advantage of the rewards alone."""
    return function(rewards)


# Rules.
def rule(ratios, rows, *, function, level=None, **bound):
    """A rule of the surrogates' room, on token ratios or a level's."""
    reached = ratios if level is None else level(ratios, rows.mask)
    return function(reached, rows.advantages, rows.mask, **bound)


def score_rule(ratios, rows, *, function, level, **bound):
    """A level's weight on each token's own score."""
    value = surrogates.token_gradient(level(ratios, rows.mask), ratios)
    return function(value, rows.advantages, rows.mask, **bound)


def by(function: Callable[..., Array], **bound) -> Callable[[Array, Rows], Array]:
    return partial(rule, function=function, **bound)


def at(level, function, **bound) -> Callable[[Array, Rows], Array]:
    """Reduce by the mean over completions."""
    return partial(rule, level=level, function=function, **bound)


REINFORCE = by(surrogates.policy_gradient_surrogate)
RATIO = by(surrogates.ratio_surrogate)
CLIP_HIGHER = by(surrogates.ppo_surrogate, clip_high=0.28)
DUAL = by(surrogates.dual_clip_surrogate, clip_high=0.28, cap=10.0)
SEQUENCE, GEOMETRIC = surrogates.sequence_log_ratio, surrogates.geometric_log_ratio


# Credit: what each token gets of the outcome and of the penalty in the reward.
def less_group(scored, values, penalty, *, credit):
    """A method's own credit of the outcome, less the group-relative penalty."""
    return group_relative(scored, credit(scored, values), penalty)


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


def whitened_to_go(scored, values, penalty):
    """REINFORCE++: reward-to-go with the penalty inside, whitened over the batch."""
    rewards = _token_rewards(scored, values, penalty)
    to_go = advantages.reward_to_go(rewards, scored.mask)
    return advantages.whitened(to_go, scored.mask)


def _gained(scored, values, penalty, truncated, dense, bound):
    critic = needed(scored, "values")
    after = None
    if truncated:
        last = scored.last_value
        if last is None:
            last = advantages.last_value(critic, scored.mask)
        after = jnp.where(scored.rollout.finished, 0, last)
    rewards = _token_rewards(scored, values, penalty)
    if dense is not None:
        rewards = rewards + dense(scored)
    return advantages.gae(rewards, critic, scored.mask, after, **bound)


def gae(scored, values, penalty, *, truncated=False, dense=None, **bound):
    """PPO: generalised advantages with the penalty inside, whitened over the batch.

    ``truncated``: completions that were cut go on, worth their last value; otherwise
    they end, worth what the reward says of them. ``dense``: ``scored -> [B, T]``,
    rewards of tokens beside the outcome's. The others are those of ``advantages.gae``.
    """
    gained = _gained(scored, values, penalty, truncated, dense, bound)
    return advantages.whitened(gained, scored.mask)


def gae_returns(scored, penalty, *, truncated=False, dense=None, **bound):
    """The critic's targets: advantages before whitening, and the values themselves."""
    gained = _gained(scored, scored.rewards, penalty, truncated, dense, bound)
    return gained + reduce.masked(scored.values, scored.mask)


def among(scored, values, penalty, *, kept, credit):
    """Credit as if the tokens that are not kept had not been sampled."""
    rollout = dataclasses.replace(scored.rollout, trained=kept(scored))
    return credit(dataclasses.replace(scored, rollout=rollout), values, penalty)


# What is kept, and shapes of the reward.
def completions(scored: Scored, kept: Array) -> Array:
    """``[G]`` or ``[G, K]`` on the tokens of the completions: ``[B, T]``."""
    kept = kept[:, None] if kept.ndim == 1 else kept
    return scored.mask & spread(
        jnp.broadcast_to(kept, scored.rewards.shape), scored.mask
    )


def mixed(scored: Scored) -> Array:
    """Tokens of prompts with right and wrong answers (dynamic sampling)."""
    return completions(scored, selection.mixed_groups(correct(scored)))


def mixed_or_stored(scored: Scored) -> Array:
    """Stored rows count whatever their rewards."""
    return mixed(scored) | (scored.mask & needed(scored, "demonstrated")[:, None])


def whole(scored: Scored, *, keep) -> Array:
    """Overlong filtering: what ``keep`` keeps of completions that have ended."""
    return keep(scored) & scored.rollout.finished[:, None]


def told(scored: Scored) -> Array:
    """Tokens of which the teacher says something, all of a row or some."""
    known = scored.rollout.told
    if known is None:
        return scored.mask
    return scored.mask & (known if known.ndim == 2 else known[:, None])


def no_rewards(scored: Scored) -> Array:
    """A teacher alone says what is good."""
    return jnp.zeros_like(scored.rewards)


def towards_teacher(scored, values, penalty, *, scale):
    """G-OPD: ``λ log π_T/ρ − log π_old/ρ`` of each token beside the outcome's."""
    ref = needed(scored, "logp_ref")
    gained = scale * (needed(scored, "logp_teacher") - ref)
    own = gained - (scored.logp_old - ref)
    return group_relative(scored, spread(values, scored.mask), penalty) + own


def overlong(scored: Scored) -> Array:
    """DAPO's penalty over the last fifth of the tokens that there may be."""
    longest = scored.mask.shape[-1]
    return scored.rewards + advantages.overlong_penalty(
        lengths(scored), max_length=longest, buffer=max(1, longest // 5)
    )


# Controllers.
class Annealed(NamedTuple):
    """``beta`` in force, where it started, and the number of updates so far."""

    beta: Array
    start: Array
    count: Array


def annealed(*, beta: float, end: float, steps: int) -> Stateful:
    """From ``beta`` to ``end`` over ``steps``, in a line; the start is of the state."""

    def init():
        # Two buffers: the state is donated.
        return Annealed(jnp.float32(beta), jnp.float32(beta), jnp.int32(0))

    def update(state, kl, completions, **measured):
        del kl, completions, measured
        count = state.count + 1
        left = 1 - jnp.minimum(jnp.asarray(count, jnp.float32) / steps, 1)
        return Annealed(end + left * (state.start - end), state.start, count)

    return Stateful(init, update)


def safe(*, beta: float) -> Stateful:
    """SAFE's, from the step's KL (nats a completion), tokens in all, entropy (nats a
    token) and reward."""
    rule = controllers.safe()

    def init():
        return rule.init()._replace(beta=jnp.float32(beta))

    def update(state, kl, completions, *, entropy, reward, tokens):
        each = reduce.divide(kl * completions, jnp.asarray(tokens))
        return rule.update(state, each, entropy, reward)

    return Stateful(init, update)
