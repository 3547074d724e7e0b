"""One of two models at a time, by how uncertain the writing has been."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import logprobs
from alignax.decoding.models import each_model
from alignax.numerics import as_float, varying_as
from alignax.types import ApplyFn, InputError, ModelOutput


class SwitchState(NamedTuple):
    """Of each row: the last entropies, how many there were, how many positions since
    the last switch, and whether the large model is in charge."""

    recent: Float[Array, "B W"]
    seen: Int[Array, " B"]
    since: Int[Array, " B"]
    large: Bool[Array, " B"]


def _begun(rows: int, window: int, dtype: Any) -> SwitchState:
    nothing = jnp.zeros((rows,), jnp.int32)
    recent = jnp.zeros((rows, window), dtype)
    return SwitchState(recent, nothing, nothing, jnp.ones((rows,), bool))


def switch(
    entropy_large: Float[Array, "B S"],
    entropy_small: Float[Array, "B S"],
    mask: Bool[Array, "B S"],
    state: SwitchState | None = None,
    *,
    threshold: float,
    window: int,
    least: int,
) -> tuple[Bool[Array, "B S"], SwitchState]:
    """Which of two models is in charge at each position.

    The mean of the last ``window`` entropies, each of the model in charge, decides: the
    large model above ``threshold``, the small one at or below it, and neither changes
    before ``least`` positions. A decision holds from the next position on, so that the
    model that is not in charge need not be asked.

    Args:
      entropy_large: ``[B, S]`` **bits**, of the large model's law.
      entropy_small: ``[B, S]`` bits.
      mask: True at real tokens; others change nothing.
      state: from the positions before; None at the beginning, the large one in charge.
      threshold: bits.
      window: entropies that are averaged, at least 1; fewer at the beginning.
      least: positions from one switch to the next, at least 1.

    Returns:
      ``[B, S]``, True where the large model writes, and the state.

    Raises:
      InputError: ``window`` or ``least`` is less than 1.

    Reference:
      Simonds, "Entropy adaptive decoding: dynamic model switching for efficient
      inference", arXiv 2502.06833. That the large model begins is ours.

    Example:
      >>> h = jnp.array([[3.0, 0.5, 0.5, 3.0]])
      >>> options = dict(threshold=1.0, window=1, least=1)
      >>> print(switch(h, h, h > 0, **options)[0])
      [[ True  True False False]]
    """
    for name, value in {"window": window, "least": least}.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    given = [as_float(x) for x in (entropy_large, entropy_small)]
    if state is None:
        state = _begun(len(mask), window, given[0].dtype)
    # Positions first: a scan goes over them.
    steps = tuple(jnp.moveaxis(x, 1, 0) for x in (*given, mask))

    def step(state, now):
        large, small, real = now
        entropy = jnp.where(state.large, large, small)
        place = jnp.arange(window)[None] == (state.seen % window)[:, None]
        recent = jnp.where(place & real[:, None], entropy[:, None], state.recent)
        seen = state.seen + real
        count = jnp.clip(seen, 1, window)
        wanted = jnp.sum(recent, axis=-1) / count > threshold
        since = state.since + real
        changes = real & (since >= least) & (wanted != state.large)
        new = SwitchState(
            recent, seen, jnp.where(changes, 0, since), state.large ^ changes
        )
        return new, state.large

    state = varying_as(state, steps)
    state, large = jax.lax.scan(step, state, steps)
    return jnp.moveaxis(large, 0, 1), state


def switching(
    large: ApplyFn, small: ApplyFn, *, threshold: float, window: int, least: int
) -> ApplyFn:
    """Two models that write in turns: the large one where the writing is uncertain.

    The rule reads the prompt too, so that a full forward, a cache and slots agree. Here
    both models read each token, in one program: this is the law of entropy-adaptive
    decoding, to sample and to score under, without its saving.

    Args:
      large: the model for uncertain passages.
      small: the model for the others.
      threshold: bits.
      window: entropies that are averaged, at least 1.
      least: positions from one switch to the next, at least 1.

    Returns:
      an ``ApplyFn`` whose params are the pair ``(large, small)``.

    Raises:
      InputError: ``window`` or ``least`` is less than 1.

    Reference:
      Simonds, "Entropy adaptive decoding", arXiv 2502.06833.

    Example:
      >>> def apply_fn(params, tokens, **options):
      ...     return ModelOutput(jnp.broadcast_to(params, (*tokens.shape, 2)), None)
      >>> both = switching(apply_fn, apply_fn, threshold=2.0, window=1, least=1)
      >>> params = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(both(params, jnp.zeros((1, 2), int)).logits)
      [[[1. 0.]
        [0. 1.]]]
    """
    options = {"threshold": threshold, "window": window, "least": least}
    # Refused here, not where it is first called.
    switch(jnp.zeros((1, 0)), jnp.zeros((1, 0)), jnp.zeros((1, 0), bool), **options)

    def apply_fn(
        params,
        tokens,
        *,
        mask=None,
        prefix=None,
        cache=None,
        cache_length=None,
        logits_from=0,
        **more,
    ):
        outs = each_model(
            (large, small),
            params,
            tokens,
            mask=mask,
            prefix=None if prefix is None else prefix[0],
            cache=None if cache is None else cache[0],
            cache_length=cache_length,
            **more,
        )
        rows = len(tokens)
        state = None if cache is None else cache[1]
        if prefix is not None:
            copies = rows // len(prefix[1].seen)
            state = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), prefix[1])
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        first, second = (as_float(out.logits) for out in outs)
        bits, bits_small = (logprobs.entropy(x) / math.log(2) for x in (first, second))
        which, state = switch(bits, bits_small, jnp.asarray(mask), state, **options)
        kept = cache is not None or cache_length is not None
        written = jnp.where(which[..., None], first, second)[:, logits_from:]
        caches = tuple(out.cache for out in outs)
        return ModelOutput(written, (caches, state) if kept else None)

    return apply_fn
