"""What a method asks of the sampler, the scorer and the task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alignax.advantages import running_moments
from alignax.algorithms.compose import Algorithm, prepare
from alignax.types import InputError, Rollout, Scored


def needs(algorithm: Algorithm, *, completions: int = 4) -> frozenset[str]:
    """The optional fields of ``Scored`` that a method cannot do without.

    Args:
      algorithm: the composition.
      completions: K of each prompt.

    Returns:
      their names: what the sampler, the scorer and the task must give.

    Raises:
      InputError: the method does not suit groups of that size.

    Example:
      >>> from alignax.algorithms import METHODS
      >>> print(*needs(METHODS["grpo"].algorithm))
      logp_ref
    """
    full, optional = _full(algorithm, completions)
    # With everything given what is refused is K itself.
    jax.eval_shape(lambda scored: prepare(algorithm, scored), full)

    def without(name):
        absent: dict[str, Any] = {name: None}
        return dataclasses.replace(full, **absent)

    return frozenset(name for name in optional if _refuses(algorithm, without(name)))


def reads_behaviour(algorithm: Algorithm) -> bool:
    """Whether a method's weights or ratios are to the sampler's own log-probabilities.

    Args:
      algorithm: the composition.

    Returns:
      the truth of TIS and its kin, and of methods whose denominator is the sampler's.

    Example:
      >>> from alignax.algorithms import METHODS
      >>> print(*(reads_behaviour(METHODS[x].algorithm) for x in ("grpo", "tis")))
      False True
    """
    full, _ = _full(algorithm, 4)
    rollout = dataclasses.replace(full.rollout, logp_behaviour=None)
    return _refuses(algorithm, dataclasses.replace(full, rollout=rollout))


def _refuses(algorithm: Algorithm, scored: Scored) -> bool:
    try:
        jax.eval_shape(lambda scored: prepare(algorithm, scored), scored)
    except InputError:
        return True
    return False


def _full(algorithm: Algorithm, completions: int) -> tuple[Scored, dict[str, Any]]:
    """The shapes of a record with all that a method may need, and of its optional
    fields. Nothing is computed: options are read before a run's processes have met."""
    return jax.eval_shape(lambda: _made(algorithm, completions))


def _made(algorithm: Algorithm, completions: int) -> tuple[Scored, dict[str, Any]]:
    groups, length = 2, 3
    pairs = jnp.zeros((groups, completions))
    tokens = jnp.zeros((groups * completions, length))
    mask, numbers = tokens == 0, tokens.astype(jnp.int32)
    heads = 1 if algorithm.critic is None else algorithm.critic.heads
    rollout = Rollout(
        tokens=numbers,
        attended=mask,
        trained=mask,
        finished=mask[:, 0],
        logp_behaviour=tokens,
        version=numbers,
    )
    several = jnp.zeros((groups, completions, 2))
    optional = {
        "logp_ref": tokens,
        "right": pairs > 0,
        "reward_version": pairs.astype(jnp.int32),
        "entropy": tokens,
        "values": tokens if heads == 1 else jnp.zeros((*tokens.shape, heads)),
        "greedy": pairs[:, 0],
        "history": pairs[:, 0],
        "confidence": pairs,
        "clusters": pairs.astype(jnp.int32),
        "demonstrated": mask[:, 0],
        "moments": running_moments().init(),
        "initial_entropy": jnp.float32(1),
        "objectives": several,
        "objective_weights": jnp.ones(2),
        "token_rewards": tokens,
        "logp_teacher": tokens,
        "log_z": pairs,
        "baseline": jnp.float32(0),
        "reference_rewards": pairs,
        "index": jnp.arange(groups),
        "key": jax.random.key(0),
    }
    return Scored(rollout=rollout, rewards=pairs, logp_old=tokens, **optional), optional
