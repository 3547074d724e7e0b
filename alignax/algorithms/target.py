"""f-DPG's stages: a target law, and the pseudo-rewards that descend to it.

A target is ``log P`` of whole completions, up to a normaliser for each prompt that is
estimated as the run goes on (``Scored.log_z``). Its reference is the method's.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import reduce, targets
from alignax._checks import Strength
from alignax.algorithms.fields import correct, needed, spread
from alignax.algorithms.values import printed
from alignax.divergences import Divergence, forward_kl, pseudo_reward
from alignax.numerics import exp
from alignax.types import Scored

Density = Callable[..., Array]
"""``(scored, logp_ref [G, K], beta) -> log P [G, K]``."""


def posterior(scored: Scored, logp_ref: Array, beta: Strength) -> Array:
    """``ρ e^{r/β}``, KL-RL's optimum; with r = λ·φ and β = 1, constrained moments."""
    return targets.tilted(logp_ref, scored.rewards, beta=beta)


def filter(scored: Scored, logp_ref: Array, beta: Strength) -> Array:
    """``ρ b``: the reference's right completions."""
    del beta
    return targets.filtered(logp_ref, correct(scored))


def filtered_posterior(scored: Scored, logp_ref: Array, beta: Strength) -> Array:
    """``ρ b e^{r/β}``: constraints on each completion and on means together."""
    tilted = targets.tilted(logp_ref, scored.rewards, beta=beta)
    return targets.filtered(tilted, correct(scored))


def base(scored: Scored, logp_ref: Array, beta: Strength) -> Array:
    """``ρ``, where experts stand for it: their product or mixture."""
    del scored, beta
    return logp_ref


def product(scored: Scored, logp_ref: Array, beta: Strength, *, weight: float) -> Array:
    """``ρ^{1−w} q^w`` with another policy q, whose log-probabilities the task gives."""
    del beta
    other = whole(needed(scored, "logp_teacher"), scored)
    return targets.product_of_experts(
        jnp.stack([logp_ref, other], axis=-1), jnp.array([1 - weight, weight])
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Target:
    """A law that the policy is trained towards, and the divergence from it."""

    density: Density = posterior
    """Unnormalised; ``(scored, logp_ref [G, K], beta) -> log P [G, K]``."""
    divergence: Divergence = dataclasses.field(default_factory=forward_kl)
    """Of the policy from the target."""
    decay: float = 1.0
    """What the estimate of a normaliser keeps of its samples at each visit."""
    window: int | None = None
    """How many pseudo-rewards of earlier batches have their mean for a baseline; None
    takes that of the group's other completions."""

    __repr__ = printed


def whole(logp: Array, scored: Scored) -> Float[Array, "G K"]:
    """Token log-probabilities summed over each completion."""
    total = jnp.sum(reduce.masked(logp, scored.mask), axis=-1)
    return total.reshape(scored.rewards.shape)


def log_target(target: Target, scored: Scored, beta: Strength) -> Float[Array, "G K"]:
    """``log P`` of each completion."""
    ref = whole(needed(scored, "logp_ref"), scored)
    return target.density(scored, ref, jnp.asarray(beta, jnp.float32))


def log_weights(target: Target, scored: Scored, beta: Strength) -> Float[Array, "G K"]:
    """``log P − log b`` with the policy b that sampled."""
    behaviour = whole(needed(scored, "logp_behaviour"), scored)
    return log_target(target, scored, beta) - behaviour


def _pseudo_rewards(target, scored, beta, log_z):
    """``−f'(π/p)`` of a group's completions, ``[G, M, K]`` by several normalisers."""
    shape = jnp.broadcast_shapes(log_z.shape, (1, 1, scored.rewards.shape[1]))
    own = whole(scored.logp_old, scored), log_target(target, scored, beta)
    logp, goal = (jnp.broadcast_to(x[:, None], shape) for x in own)
    log_z = jnp.where(log_z > -jnp.inf, log_z, 0)
    return pseudo_reward(target.divergence, logp, goal, jnp.broadcast_to(log_z, shape))


def pseudo_rewards(
    target: Target, scored: Scored, beta: Strength
) -> Float[Array, "G K"]:
    """``−f'(π/p)``; 0 for prompts whose target has no known mass."""
    log_z = needed(scored, "log_z")
    known = log_z > -jnp.inf
    rewards = _pseudo_rewards(target, scored, beta, log_z[:, None])[:, 0]
    return jnp.where(known, rewards, 0)


def pseudo_advantages(
    target: Target, scored: Scored, beta: Strength
) -> Float[Array, "G K"]:
    """Pseudo-rewards less a baseline that does not depend on the completion.

    Without a window it is the mean of the group's other ones, all by the normaliser of
    that completion's row: by their own, of which it is a part, they would depend on it.
    """
    log_z = needed(scored, "log_z")
    if target.window is not None:
        found = pseudo_rewards(target, scored, beta) - needed(scored, "baseline")
    else:
        every = _pseudo_rewards(target, scored, beta, log_z[:, :, None])
        size = every.shape[-1]
        own = jnp.diagonal(every, axis1=1, axis2=2)
        found = (own - jnp.mean(every, axis=-1)) * (size / max(size - 1, 1))
    return jnp.where(log_z > -jnp.inf, found, 0)


def importance(scored: Scored, advantages: Array) -> Array:
    """``π/b`` of whole completions, on each of their tokens."""
    del advantages
    behaviour = whole(needed(scored, "logp_behaviour"), scored)
    return spread(exp(whole(scored.logp_old, scored) - behaviour), scored.mask)


def described(
    target: Target, scored: Scored, beta: Strength, normaliser: targets.LogNormaliser
) -> dict[str, Array]:
    """What a rollout says of its target, as float32 scalars.

    ``kl_to_target`` is ``KL(π‖p)``, the mean ``log π/p``; while there are ``excluded``
    completions, whose share that is, it is infinite, and this the mean of the others;
    ``kl_from_target`` ``KL(p‖π)``, self-normalised: both by the samples of a group and
    the normaliser of all samples so far, in nats. ``log_z`` and ``log_z_error`` are
    means over the prompts whose target has known mass, ``massless`` the share of those
    without, ``target_samples`` the effective sample size of a group for its target.
    """
    weights = log_weights(target, scored, beta)
    policy = whole(scored.logp_old, scored)
    possible, known = weights > -jnp.inf, normaliser.log_z > -jnp.inf
    log_z = jnp.where(known, normaliser.log_z, 0)
    ratio = policy - jnp.where(possible, log_target(target, scored, beta), 0)
    ratio = ratio + log_z[:, None]
    inside = possible & known[:, None]

    def mean(values, where):
        total = jnp.sum(jnp.where(where, values, 0))
        return reduce.divide(total, jnp.sum(where, dtype=jnp.float32))

    from_target = -targets.importance_expectation(weights, ratio)
    error = targets.normaliser_error(normaliser).error
    own = targets.running_log_normaliser(known.shape)
    here = targets.normaliser_error(own.update(own.init(), weights)).effective
    return {
        "kl_to_target": mean(ratio, inside),
        "kl_from_target": mean(from_target, known & jnp.any(possible, axis=-1)),
        "log_z": mean(log_z, known),
        "log_z_error": mean(error, known),
        "target_samples": jnp.mean(here),
        "excluded": jnp.mean(~possible, dtype=jnp.float32),
        "massless": jnp.mean(~known, dtype=jnp.float32),
    }
