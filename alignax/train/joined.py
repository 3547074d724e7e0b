"""Texts behind one another: longer prompts, and records of several parts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from alignax.types import InputError, Params, Prompts, Rollout


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


def begun(
    generate: Callable[..., Rollout],
    prefix: Sequence[int],
    params: Params,
    key: Key[Array, ""],
    prompts: Prompts,
    *,
    max_tokens: int | None = None,
    **options: Any,
) -> Rollout:
    """Completions that begin with the same tokens, attended and not trained.

    Args:
      generate: ``rollout.generate`` with its options.
      prefix: the tokens; they count among those of a completion.
      params: the policy's.
      key: consumed.
      prompts: N.
      max_tokens: of a completion with its prefix; by default ``generate``'s own.
      options: of ``generate``.

    Returns:
      the rollout, as wide as one without a prefix.

    Raises:
      InputError: the prefix leaves no token to write.
    """
    count = len(prefix)
    most = max_tokens or getattr(generate, "keywords", {})["max_tokens"]
    if count >= most:
        raise InputError(
            f"prefix must leave something to write: it has {count} tokens, and a "
            f"completion at most {most}"
        )
    shape = (len(prompts.tokens), count)
    given = jnp.broadcast_to(jnp.asarray(prefix, prompts.tokens.dtype), shape)
    longer = behind(prompts, given, jnp.ones(shape, bool))
    more = generate(params, key, longer, max_tokens=most - count, **options)

    def ahead(x, fill):
        wide = ((0, 0), (count, 0), *[(0, 0)] * (x.ndim - 2))
        return jnp.pad(x, wide, constant_values=fill)

    length = more.prompt_tokens.shape[1] - count
    prefixes = more.prompt_tokens[:, length:]
    return dataclasses.replace(
        more,
        prompt_tokens=more.prompt_tokens[:, :length],
        prompt_mask=more.prompt_mask[:, :length],
        tokens=jnp.concatenate([prefixes, more.tokens], axis=1),
        attended=ahead(more.attended, True),
        trained=ahead(more.trained, False),
        logp_behaviour=ahead(more.logp_behaviour, 0),
        version=jnp.broadcast_to(more.version[:, :1], (len(more.tokens), most)),
        support=None if more.support is None else ahead(more.support, 255),
    )


def given(prompts: Prompts, *, length: int) -> Rollout:
    """The prompts' guides as completions that somebody else wrote, to be trained on.

    Args:
      prompts: N, with their guides, each with its end.
      length: of the rollout; longer guides are cut.

    Returns:
      N rows, drawn by nobody's law.

    Raises:
      InputError: the prompts have no guide.
    """
    if prompts.guide is None:
        raise InputError("prompts.guide is missing: a completion for each prompt")

    def fit(x):
        return jnp.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))[:, :length]

    tokens, mask = fit(prompts.guide), fit(prompts.guide_mask)
    whole = jnp.sum(prompts.guide_mask, axis=-1) <= length
    return Rollout(
        tokens=tokens,
        attended=mask,
        trained=mask,
        finished=whole,
        logp_behaviour=jnp.zeros(tokens.shape, jnp.float32),
        version=jnp.zeros(tokens.shape, jnp.int32),
        prompt_tokens=prompts.tokens,
        prompt_mask=prompts.mask,
    )


def widened(rollout: Rollout, length: int) -> Rollout:
    """A rollout with room for ``length`` tokens, or cut to as many."""
    wide = max(0, length - rollout.tokens.shape[1])

    def fit(name, fill=0):
        x = getattr(rollout, name)
        if x is None:
            return None
        pad = ((0, 0), (0, wide), *[(0, 0)] * (x.ndim - 2))
        return jnp.pad(x, pad, constant_values=fill)[:, :length]

    names = ("tokens", "attended", "trained", "logp_behaviour", "version")
    whole = jnp.sum(rollout.attended, axis=-1) <= length
    return dataclasses.replace(
        rollout,
        **{name: fit(name) for name in names},
        support=fit("support", 255),
        finished=rollout.finished & whole,
    )


def foreign(like: Rollout, tokens: Array, mask: Array) -> Rollout:
    """A text of somebody else's as a part of a rollout: attended and not trained."""
    shape, support = tokens.shape, like.support
    version = jnp.max(like.version, axis=-1, keepdims=True)
    return dataclasses.replace(
        like,
        tokens=tokens,
        attended=mask,
        trained=jnp.zeros(shape, bool),
        logp_behaviour=jnp.zeros(shape, jnp.float32),
        version=jnp.broadcast_to(version, shape),
        support=None
        if support is None
        else jnp.full((*shape, support.shape[-1]), 255, support.dtype),
    )


def appended(given: Rollout, more: Rollout) -> Rollout:
    """``more`` behind ``given``, as far as there is room.

    Args:
      given: B rows, what is attended at the front.
      more: the same rows, of any length.

    Returns:
      the rollout of ``given``'s width; finished where ``more`` is and all of it fits.
    """
    length, width = given.tokens.shape[1], more.tokens.shape[1]
    cut = jnp.sum(given.attended, axis=-1)
    place = jnp.arange(length)[None] - cut[:, None]

    def moved(x):
        index = jnp.clip(place, 0, width - 1)
        return jnp.take_along_axis(
            x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1
        )

    fresh = (place >= 0) & (place < width) & moved(more.attended)

    def put(name):
        old, new = getattr(given, name), getattr(more, name)
        if old is None:
            return None
        return jnp.where(jnp.expand_dims(fresh, range(2, old.ndim)), moved(new), old)

    names = ("tokens", "attended", "trained", "logp_behaviour", "version", "support")
    written = jnp.sum(more.attended, axis=-1)
    return dataclasses.replace(
        given,
        finished=more.finished & (cut + written <= length),
        **{name: put(name) for name in names},
    )


def shifted(given: Rollout, cut: Array, more: Rollout, like: Rollout) -> Rollout:
    """``given`` up to ``cut``, attended and not trained, then ``more``."""
    length = like.tokens.shape[1]
    before = jnp.arange(length)[None] < cut[:, None]

    def fit(x):
        return jnp.pad(x, ((0, 0), (0, max(0, length - x.shape[1]))))[:, :length]

    front = foreign(like, fit(given.tokens), before & fit(given.attended))
    return appended(front, more)


def picked(where: Array, new: Rollout, old: Rollout) -> Rollout:
    """Rows of ``new`` where True; both were sampled for the same prompts."""

    def pick(x, y):
        return jnp.where(jnp.expand_dims(where, range(1, x.ndim)), x, y)

    return jax.tree.map(pick, new, old)
