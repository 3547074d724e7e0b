"""What stages read of a scored rollout, and refuse by name where it is missing."""

import jax.numpy as jnp
from jaxtyping import Array

from alignax import advantages
from alignax.types import InputError, Leaf, Scored

_WHERE = {
    "logp_behaviour": "the sampler must give the log-probabilities that it drew by",
    "right": "which answers are right is the task's to say, not a reward's sign",
    "logp_ref": "score the rollout by the reference",
    "entropy": "the scorer gives it",
    "values": "the method needs a critic",
    "greedy": "sample a greedy completion of each prompt and score it",
    "reference_rewards": "sample the reference beforehand and score its completions",
    "demonstrated": "give groups whose last rows are demonstrations or stored rows",
    "moments": "give the state of advantages.running_moments over all rewards so far",
    "initial_entropy": "it is the policy's mean entropy when training began",
    "objectives": "give each objective's reward, or each factor, beside the total",
    "objective_weights": "selection.objective_weights makes them",
    "reward_version": "give the number of the rubric that made each reward",
    "token_rewards": "the task must give each token's reward",
    "log_z": "the step keeps the normalisers of the records' targets",
    "baseline": "the step keeps a mean of earlier pseudo-rewards",
    "logp_teacher": "score the rollout by a teacher, as assembly.make(teacher=) does",
}


def needed(scored: Scored, name: str) -> Leaf:
    """A field of ``scored``, or of its rollout, that the method cannot do without.

    Raises:
      InputError: it is missing; the message names it.
    """
    value = getattr(scored.rollout if name == "logp_behaviour" else scored, name)
    if value is None:
        hint = f": {_WHERE[name]}" if name in _WHERE else ""
        raise InputError(f"scored.{name} is missing and this method needs it{hint}")
    return value


def spread(values: Array, mask: Array) -> Array:
    """``[G, K]`` on every token of its completion: ``[B, T]``."""
    return jnp.broadcast_to(values.reshape(-1, 1), mask.shape)


def lengths(scored: Scored) -> Array:
    """``[G, K]`` tokens."""
    return jnp.sum(scored.mask, axis=-1).reshape(scored.rewards.shape)


def correct(scored: Scored) -> Array:
    """``[G, K]``: right answers, by the task's word."""
    return needed(scored, "right")


def group_relative(scored: Scored, token: Array, penalty: Array) -> Array:
    """Token advantages less the penalty to come, itself less what the group's other
    completions pay from the same position on: with a sum over tokens the expected
    gradient is that of the whole divergence."""
    to_go = advantages.reward_to_go(penalty, scored.mask)
    groups, completions = scored.rewards.shape
    if completions > 1:
        by_position = jnp.moveaxis(to_go.reshape(groups, completions, -1), 1, 2)
        excess = jnp.moveaxis(advantages.leave_one_out(by_position), 2, 1)
        to_go = excess.reshape(to_go.shape)
    return token - to_go
