"""What a method keeps from step to step: earlier groups, shortest lengths, moments.

All of it lies in ``TrainState.memory``, a dictionary by these names, and so in the
checkpoint.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignax import advantages, algorithms, reduce, references, selection, targets
from alignax.algorithms import Algorithm, Replay, Target
from alignax.algorithms import target as towards
from alignax.types import InputError, Params, Scored, Stateful, TrainState


def init(
    algorithm: Algorithm,
    *,
    records: int | None,
    example: Scored | None,
    params: Params = None,
    preferred: Params = None,
) -> dict[str, Any] | None:
    """A fresh memory, or None for methods without one.

    Args:
      algorithm: the method.
      records: how many there are, for methods that keep a number of each.
      example: a scored rollout, or its shapes, for methods that replay.
      params: the policy's, for methods that sample among a slower copy's tokens.
      preferred: of a policy trained on preferences, for methods that take their tokens'
        rewards from one; None where the task gives its log-probabilities.

    Returns:
      the memory.

    Raises:
      InputError: what the method needs is not given.
    """
    memory, asked = {}, algorithms.needs(algorithm)
    if "moments" in asked:
        memory["moments"] = advantages.running_moments().init()
    if "initial_entropy" in asked:
        memory["initial_entropy"] = jnp.float32(0)
    if "history" in asked:
        if records is None:
            raise InputError(
                "records must be given: the method keeps the shortest right length of "
                "each record"
            )
        memory["history"] = jnp.full(records, jnp.inf, jnp.float32)
    if algorithm.target is not None:
        if records is None:
            raise InputError(
                "records must be given: the method keeps the normaliser of each "
                "record's target"
            )
        memory["normaliser"] = _normaliser(algorithm.target, (records,)).init()
        if algorithm.target.window is not None:
            memory["baseline"] = targets.windowed_mean(algorithm.target.window).init()
    if algorithm.replay is not None:
        if example is None:
            raise InputError(
                "example must be given: the method replays earlier groups, and the "
                "buffer has the shapes of a scored rollout"
            )
        memory["replay"] = _replay(algorithm.replay, example)[0].init()
    if algorithm.sampling.copy_top_p < 1:
        memory["copy"] = _copies(algorithm).init(params)
    if preferred is not None and "logp_teacher" in asked:
        memory["preferred"] = jax.tree.map(jnp.copy, preferred)
    return memory or None


def measured_from(algorithm: Algorithm, state: TrainState) -> Params:
    """Whose distributions a divergence is measured from: the reference's parameters, or
    the policy's as they are where it is its own teacher.

    Args:
      algorithm: the method.
      state: of the run.

    Returns:
      the parameters.
    """
    if algorithm.sampling.taught == "own":
        return state.params
    return algorithm.reference.params(state.reference)


def _copies(algorithm: Algorithm) -> references.Reference:
    return references.periodic_reset(every=algorithm.sampling.copy_every)


def followed(
    algorithm: Algorithm, memory: dict[str, Any], params: Params, step: Array
) -> dict[str, Any]:
    """The memory after a step's updates: the slower copy is renewed where it is due.

    Args:
      algorithm: the method.
      memory: of ``update``.
      params: the policy's after the step.
      step: how many steps there were, this one included.

    Returns:
      the memory.
    """
    if "copy" not in memory:
        return memory
    return memory | {"copy": _copies(algorithm).update(memory["copy"], params, step)}


def update(
    algorithm: Algorithm, state: TrainState, scored: Scored
) -> tuple[Scored, dict[str, Any]]:
    """The record with what the method remembers, and the memory after this step.

    Args:
      algorithm: the method.
      state: whose memory is read.
      scored: the rollout.

    Returns:
      the record that is trained on, with replayed groups behind its own, and the new
      memory, empty for methods without one.
    """
    own, memory = scored, dict(state.memory or {})
    if algorithm.replay is not None:
        scored, memory["replay"] = _with_replay(algorithm.replay, state, scored)
    if "moments" in memory:
        rule = advantages.running_moments()
        memory["moments"] = rule.update(memory["moments"], scored.rewards)
        scored = dataclasses.replace(scored, moments=memory["moments"])
    if "initial_entropy" in memory:
        now = reduce.divide(*reduce.token_mean(scored.entropy, scored.mask))
        first = jnp.where(state.step == 0, now, memory["initial_entropy"])
        memory["initial_entropy"] = first
        scored = dataclasses.replace(scored, initial_entropy=first)
    if "history" in memory:
        memory["history"] = _history(memory["history"], own)
    if algorithm.target is not None:
        scored = _with_normaliser(algorithm.target, memory, scored)
    return scored, memory


def _stored(scored: Scored) -> Scored:
    """What of a record is replayed: a task's own fields are of their step."""
    kept = ("rollout", "rewards", "logp_old", "logp_ref", "entropy", "values")
    return Scored(**{name: getattr(scored, name) for name in kept})


def _grouped(scored: Scored) -> Scored:
    """Every leaf ``[G, ...]``."""
    groups = scored.rewards.shape[0]
    rows = dataclasses.replace(scored, rewards=None)
    rows = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), rows)
    return dataclasses.replace(rows, rewards=scored.rewards)


def _ungrouped(scored: Scored) -> Scored:
    rows = dataclasses.replace(scored, rewards=None)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return dataclasses.replace(rows, rewards=scored.rewards)


def _replay(replay: Replay, scored: Scored) -> tuple[Stateful, int]:
    """The buffer for a method's groups, and how many of them a batch takes."""
    row = jax.eval_shape(lambda scored: _grouped(_stored(scored)), scored)
    row = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), row)
    groups = scored.rewards.shape[0]
    count = max(1, round(groups * replay.share / (1 - replay.share)))
    capacity = max(groups * replay.most_age, count)
    return selection.replay_buffer(row, capacity=capacity), count


def _with_replay(replay: Replay, state: TrainState, scored: Scored):
    """Fresh and earlier groups as one batch, and the buffer with the fresh ones."""
    buffer, count = _replay(replay, scored)
    fresh = _grouped(_stored(scored))
    old, valid = selection.replay_sample(
        state.memory["replay"],
        jax.random.fold_in(jax.random.fold_in(state.key, state.step), 2),
        count=count,
        most_age=replay.most_age,
    )
    # An empty place has no token that is trained.
    trained = old.rollout.trained & valid[:, None, None]
    old = dataclasses.replace(
        old, rollout=dataclasses.replace(old.rollout, trained=trained)
    )
    both = _ungrouped(jax.tree.map(lambda x, y: jnp.concatenate([x, y]), fresh, old))
    keep = jnp.ones(scored.rewards.shape[0], bool)
    kept = buffer.update(state.memory["replay"], fresh, keep)
    return dataclasses.replace(both, beta=scored.beta, key=scored.key), kept


def _normaliser(target: Target, shape: tuple[int, ...]) -> Stateful:
    return targets.running_log_normaliser(shape, decay=target.decay)


def normaliser_of(memory: dict[str, Any], scored: Scored) -> targets.LogNormaliser:
    """What is known of the normalisers of a batch's prompts, each leaf ``[G]``."""
    return jax.tree.map(lambda x: x[scored.index], memory["normaliser"])


def _with_normaliser(target: Target, memory: dict[str, Any], scored: Scored) -> Scored:
    """The record with its targets' normalisers and the baseline; the memory learns."""
    before = normaliser_of(memory, scored)
    weights = towards.log_weights(target, scored, scored.beta)
    after = _normaliser(target, weights.shape[:1]).update(before, weights)
    kept = before._replace(count=target.decay * before.count)
    memory["normaliser"] = jax.tree.map(
        lambda every, new: every.at[scored.index].set(new), memory["normaliser"], after
    )
    scored = dataclasses.replace(
        scored, log_z=targets.others_log_normaliser(kept, weights)
    )
    if target.window is None:
        return scored
    mean, rule = memory["baseline"], targets.windowed_mean(target.window)
    baseline = jnp.sum(mean.values) / jnp.maximum(mean.count, 1)
    rewards = towards.pseudo_rewards(target, scored, scored.beta)
    memory["baseline"] = rule.update(mean, rewards)
    return dataclasses.replace(scored, baseline=baseline)


def _history(shortest: Array, scored: Scored) -> Array:
    """The shortest right length of each record so far."""
    shape = scored.rewards.shape
    rows = jnp.broadcast_to(scored.index[:, None], shape).reshape(-1)
    right = algorithms.needed(scored, "right").reshape(-1)
    lengths = jnp.sum(scored.mask, axis=-1)
    return advantages.history_update(shortest, rows, lengths, right)
