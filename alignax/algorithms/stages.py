"""Stages that several methods share: reductions, rules, credit, what is kept."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from alignax import advantages, estimators, reduce, selection, surrogates
from alignax.algorithms.compose import Rows, correct, lengths, spread
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


# Divergence and entropy terms.
def k3(beta):
    return lambda logp, entropy, rows: (
        beta * estimators.myopic_forward_k3_surrogate(logp, rows.logp_ref, rows.mask)
    )


def weighted(term):
    """Each row's term by its share."""
    return lambda logp, entropy, rows: rows.share[:, None] * term(logp, entropy, rows)


def k2(beta):
    return lambda logp, entropy, rows: (
        beta * estimators.k2(logp, rows.logp_ref, rows.mask)
    )


# Credit.
def reinforce_plus_plus_credit(beta, centre=True):
    def credit(scored, values):
        outcome = advantages.at_last_token(values.reshape(-1), scored.mask)
        penalised = advantages.kl_penalised(
            outcome, scored.logp_old, scored.logp_ref, scored.mask, beta=beta
        )
        to_go = advantages.reward_to_go(penalised, scored.mask)
        return advantages.whitened(to_go, scored.mask, centre=centre)

    return credit


def gae_credit(beta, **bound):
    def credit(scored, values):
        outcome = advantages.at_last_token(values.reshape(-1), scored.mask)
        penalised = advantages.kl_penalised(
            outcome, scored.logp_old, scored.logp_ref, scored.mask, beta=beta
        )
        last = advantages.last_value(scored.values, scored.mask)
        after = jnp.where(scored.rollout.finished, 0, last)
        gained = advantages.gae(penalised, scored.values, scored.mask, after, **bound)
        return advantages.whitened(gained, scored.mask)

    return credit


def instant_kl_credit(beta):
    """ReMax: the outcome's advantage and each token's own penalty only."""

    def credit(scored, values):
        return advantages.kl_penalised(
            spread(values, scored.mask),
            scored.logp_old,
            scored.logp_ref,
            scored.mask,
            beta=beta,
        )

    return credit


def process_credit(beta):
    def credit(scored, values):
        token = spread(values, scored.mask)
        return advantages.process_rewards(
            token, scored.logp_old, scored.logp_ref, scored.mask, beta=beta
        )

    return credit


def mixed(scored: Scored) -> Array:
    """Tokens of prompts with right and wrong answers (dynamic sampling)."""
    kept = selection.mixed_groups(correct(scored))
    return scored.mask & spread(
        jnp.broadcast_to(kept[:, None], scored.rewards.shape), scored.mask
    )


def mixed_or_stored(scored: Scored) -> Array:
    """Stored rows count whatever their rewards."""
    return mixed(scored) | (scored.mask & scored.demonstrated[:, None])


def overlong(scored: Scored) -> Array:
    """DAPO's penalty over the last fifth of the tokens that there may be."""
    longest = scored.mask.shape[-1]
    return scored.rewards + advantages.overlong_penalty(
        lengths(scored), max_length=longest, buffer=max(1, longest // 5)
    )


def rloo_shape(beta):
    def shape(scored):
        gap = reduce.masked(scored.logp_old, scored.mask) - reduce.masked(
            scored.logp_ref, scored.mask
        )
        return scored.rewards - beta * jnp.sum(gap, -1).reshape(scored.rewards.shape)

    return shape
