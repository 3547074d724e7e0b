"""Dynamic sampling: groups that teach nothing make room for others within the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from alignax.types import InputError, Prompts, Scored

# Fields that are neither a group's nor a row's.
_WHOLE = ("beta", "key", "moments", "initial_entropy", "objective_weights")


def _spread(scored: Scored) -> Bool[Array, " G"]:
    rewards = scored.rewards
    return jnp.max(rewards, axis=-1) > jnp.min(rewards, axis=-1)


@jax.jit
def _missing(scored: Scored) -> Array:
    return jnp.sum(~_spread(scored))


def without_spread(scored: Scored) -> int:
    """How many groups have rewards that are all equal.

    Args:
      scored: a rollout with its rewards.

    Returns:
      a number of the host.
    """
    return int(_missing(scored))


@jax.jit
def _refilled(held: Scored, more: Scored) -> Scored:
    groups = len(held.rewards)
    # Those held first; then fresh ones; what is left is filled up as it was.
    order = [jnp.where(_spread(held), 0, 2), jnp.where(_spread(more), 1, 3)]
    chosen = jnp.argsort(jnp.concatenate(order), stable=True)[:groups]

    def take(x, y):
        both = [z.reshape(groups, -1, *z.shape[1:]) for z in (x, y)]
        return jnp.concatenate(both)[chosen].reshape(x.shape)

    bare: dict[str, Any] = dict.fromkeys(_WHOLE)
    taken = jax.tree.map(
        take, dataclasses.replace(held, **bare), dataclasses.replace(more, **bare)
    )
    return dataclasses.replace(taken, **{name: getattr(held, name) for name in _WHOLE})


def refilled(held: Scored, more: Scored) -> Scored:
    """A batch whose groups without a spread are replaced, as far as others have one.

    Args:
      held: a rollout of G groups with its rewards.
      more: of G further prompts.

    Returns:
      G groups: those of ``held`` with a spread, then those of ``more`` with one, then
      others of ``held``.

    Raises:
      InputError: the two differ in shape.

    Reference:
      Yu et al., "DAPO", arXiv 2503.14476, §3.2.
    """
    shapes = [jax.tree.map(jnp.shape, x) for x in (held, more)]
    if shapes[0] != shapes[1]:
        raise InputError(
            "further must give prompts of the batch's shape, got "
            f"{list(more.rollout.prompt_tokens.shape)} for "
            f"{list(held.rollout.prompt_tokens.shape)}"
        )
    return _refilled(held, more)


def from_all(
    prompts: Prompts, *, size: int, seed: int = 0
) -> Callable[[int, int], Prompts]:
    """Further prompts at random, the same for the same step and round.

    Args:
      prompts: all that there are.
      size: of a batch.
      seed: of the draws.

    Returns:
      ``(step, round) -> prompts`` for ``tasks.host_step``: a resumed run draws what an
      unbroken one would have.
    """
    every = jax.tree.map(np.asarray, prompts)

    def further(step, number):
        rng = np.random.default_rng((seed, step, number))
        count = len(every.index)
        rows = rng.choice(count, size, replace=count < size)
        return jax.tree.map(lambda x: x[rows], every)

    return further
