"""Texts behind one another: longer prompts, and records of several parts."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignax import reduce
from alignax.types import Prompts, Rollout


def behind(prompts: Prompts, tokens: Array, mask: Array, rows: int = 1) -> Prompts:
    """Prompts with a text after each: ``rows`` texts for every prompt.

    Args:
      prompts: ``[N, P]``.
      tokens: int32 ``[N * rows, L]``.
      mask: bool ``[N * rows, L]``.
      rows: adjacent texts of one prompt.

    Returns:
      ``[N * rows, P + L]``, for ``rollout.generate``, which moves the padding.
    """

    def joined(x, y):
        return jnp.concatenate([jnp.repeat(x, rows, axis=0), y], axis=1)

    return Prompts(
        tokens=joined(prompts.tokens, tokens),
        mask=joined(prompts.mask, mask),
        index=jnp.repeat(prompts.index, rows),
    )


def shifted(given: Rollout, cut: Array, more: Rollout, like: Rollout) -> Rollout:
    """``given`` up to ``cut``, attended and not trained, then ``more``."""
    length = like.tokens.shape[1]
    place = jnp.arange(length)[None] - cut[:, None]
    before = place < 0

    def moved(x):
        index = jnp.clip(place, 0, x.shape[1] - 1)
        return jnp.take_along_axis(
            x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1
        )

    def fit(x):
        return jnp.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))[:, :length]

    trained = ~before & moved(more.trained)
    written = jnp.sum(more.trained, axis=-1)
    support = like.support
    if support is not None:
        support = moved(more.support)
    return dataclasses.replace(
        like,
        tokens=jnp.where(before, fit(given.tokens), moved(more.tokens)),
        attended=jnp.where(before, fit(given.attended), trained),
        trained=trained,
        logp_behaviour=reduce.masked(moved(more.logp_behaviour), trained),
        finished=more.finished & (written + cut <= length),
        support=support,
    )


def picked(where: Array, new: Rollout, old: Rollout) -> Rollout:
    """Rows of ``new`` where True; both were sampled for the same prompts."""

    def pick(x, y):
        return jnp.where(jnp.expand_dims(where, range(1, x.ndim)), x, y)

    return jax.tree.map(pick, new, old)
