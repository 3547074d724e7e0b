"""What a method asks of a rollout: scores of the policy, the reference, teachers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import algorithms, reduce
from alignax.algorithms import Algorithm
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.rollout import ScoreFn
from alignax.train import memory as memories
from alignax.train import teachers
from alignax.types import InputError, Params, Rollout, Scored, TrainState

TokenFn = Callable[[Params, Any, Rollout], Float[Array, "B T"]]


def step_keys(state: TrainState) -> Array:
    """Of a step's other draws than its own completions.

    Args:
      state: of the run.

    Returns:
      four keys.
    """
    key = jax.random.fold_in(state.key, state.step)
    return jax.random.split(jax.random.fold_in(key, 1), 4)


def make_scorer(
    algorithm: Algorithm,
    score: ScoreFn,
    *,
    completions: int,
    rescore: bool | None = None,
    values: TokenFn | None = None,
    teacher: Callable[[Rollout], rollouts.Scores] | None = None,
    teacher_weights: Float[Array, "*R N"] | None = None,
) -> Callable[..., Scored]:
    """``(state, index, rollout, demonstrated=None, rescore=…, shown=None) -> Scored``,
    unrewarded. ``shown`` is the rollout behind the prompts that a policy sees that is
    its own teacher.

    Args:
      algorithm: the method.
      score: ``(params, rollout) -> Scores``.
      completions: K of each prompt.
      rescore: as in ``make_sampler``.
      values: likewise.
      teacher: ``rollout -> Scores`` of another model: what the method asks of a
        teacher, and the reference where it asks for none.
      teacher_weights: where several teach, as in ``teachers.with_weights``.

    Returns:
      the function, for a rollout of any sampler: ``index [G]`` are its records.
    """
    plan, asked = algorithm.sampling, algorithms.needs(algorithm)
    foreign = plan.last != "own" or plan.roll_in is not None or plan.context > 0

    def scored_by(
        state, index, rollout, demonstrated=None, rescore=rescore, shown=None
    ):
        reference = algorithm.reference.params(state.reference)
        half = any(x.dtype.itemsize == 2 for x in jax.tree.leaves(state.params))
        again = foreign or half or "entropy" in asked if rescore is None else rescore
        mask, fields = rollout.trained, {}
        logp_old = rollout.logp_behaviour
        if again:
            scores = score(state.params, rollout)
            logp_old = reduce.masked(scores.logp, mask)
            fields["entropy"] = reduce.masked(scores.entropy, mask)
        taught = None
        if teacher is not None:
            rollout = teachers.with_weights(rollout, teacher_weights, index)
            taught = teacher(rollout)
        elif plan.taught is not None:
            if shown is None:
                raise InputError(
                    "prompts.guide is missing: the method's teacher is the policy "
                    "itself with a prompt of its own"
                )
            taught = score(memories.measured_from(algorithm, state), shown)
            if algorithm.regulariser and algorithm.regulariser.over_vocabulary:
                rollout = dataclasses.replace(
                    rollout,
                    shown_tokens=shown.prompt_tokens,
                    shown_mask=shown.prompt_mask,
                )
        apart = "logp_teacher" in asked
        by_reference = taught
        if by_reference is None or apart:
            by_reference = score(reference, rollout)
        if taught is not None and apart:
            fields["logp_teacher"] = reduce.masked(taught.logp + taught.log_mass, mask)
        if demonstrated is not None and plan.last == "demonstration":
            # Nobody of ours drew them: the denominator is the method's to choose.
            rollout = dataclasses.replace(
                rollout,
                logp_behaviour=jnp.where(
                    demonstrated[:, None], logp_old, rollout.logp_behaviour
                ),
            )
        logp_ref = reduce.masked(by_reference.logp + by_reference.log_mass, mask)
        if "confidence" in asked:
            # Of the reference in each answer: its mean token's probability.
            count = jnp.sum(mask, axis=-1, dtype=jnp.float32)
            mean = reduce.divide(jnp.sum(logp_ref, axis=-1), count)
            fields["confidence"] = jnp.exp(mean).reshape(-1, completions)
        if apart and taught is None and "preferred" in (state.memory or {}):
            preferred = score(state.memory["preferred"], rollout)
            preferred = reduce.masked(preferred.logp + preferred.log_mass, mask)
            fields["logp_teacher"] = preferred
        if "history" in asked:
            fields["history"] = state.memory["history"][index]
        if values is not None:
            fields["values"] = values(state.params, state.critic, rollout)
        if rollout.support is not None:
            fields["log_mass_ref"] = by_reference.log_mass
        if "key" in asked:
            fields["key"] = step_keys(state)[3]
        return Scored(
            rollout=rollout,
            rewards=jnp.full(
                (len(rollout.tokens) // completions, completions), jnp.nan
            ),
            logp_old=logp_old,
            logp_ref=logp_ref,
            demonstrated=demonstrated,
            index=index,
            **fields,
        )

    return scored_by
