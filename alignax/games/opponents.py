"""Opponents of a language model: mixtures inside the sampler, the proximal loop."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax._checks import share
from alignax.decoding import combine
from alignax.games.mirror import geometric_mixture
from alignax.types import ApplyFn, InputError, Params, Stateful


def mixture_policy(
    apply_fn: ApplyFn,
    apply_fn_ref: ApplyFn,
    *,
    mixture: float | Float[Array, ""],
) -> ApplyFn:
    """The geometric mixture of two language models as a third, token by token.

    ``π_m(v | prefix) ∝ π(v | prefix)^{1−m} ρ(v | prefix)^m``, each model with its own
    cache: what Munos et al. call the one-step-at-a-time mixture. Its product over
    tokens is not ``geometric_mixture`` of whole completions, whose normaliser looks
    ahead.

    Args:
      apply_fn: the policy π.
      apply_fn_ref: the reference ρ; the same function where only parameters differ.
      mixture: m in [0, 1]; 0 is the policy, 1 the reference.

    Returns:
      an ``ApplyFn`` whose params are the pair ``(params, params_ref)``; its logits
      are normalised log-probabilities.

    Raises:
      InputError: ``mixture`` is a number outside [0, 1].

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §7.

    Example:
      >>> from alignax.types import ModelOutput
      >>> def apply_fn(params, tokens, **options):
      ...     return ModelOutput(jnp.broadcast_to(params, (*tokens.shape, 2)), None)
      >>> mixed = mixture_policy(apply_fn, apply_fn, mixture=0.5)
      >>> params = jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])
      >>> print(mixed(params, jnp.zeros((1, 1), int)).logits)
      [[[-0.6931 -0.6931]]]
    """
    share(mixture=mixture)
    return combine(partial(geometric_mixture, mixture=mixture), apply_fn, apply_fn_ref)


class MirrorProxState(NamedTuple):
    """``anchor`` is π_k, ``opponent`` π_k or π_{k+1/2}, ``count`` the updates since
    the anchor was set."""

    anchor: Params
    opponent: Params
    count: Int[Array, ""]


def mirror_prox_loop(*, inner_steps: int) -> Stateful:
    """Nash mirror prox with an inner loop for each of its two proximal steps.

    For ``inner_steps`` updates the policy answers ``opponent = π_k``, which takes it
    to π_{k+1/2}; for as many more it answers π_{k+1/2}, while the anchor stays at
    π_k; the result π_{k+1} is the next anchor. Each update is one of
    ``nash_mp_surrogate``'s gradient.

    Args:
      inner_steps: optimiser steps for each half, at least 1.

    Returns:
      ``init(params) -> state`` and ``update(state, params) -> state``, called after
      each step of the policy's optimiser.

    Raises:
      InputError: ``inner_steps`` is less than 1.

    Reference:
      Tiapkin et al., "Accelerating Nash learning from human feedback via mirror
      prox", arXiv 2505.19731, the practical variant.

    Example:
      >>> loop = mirror_prox_loop(inner_steps=1)
      >>> state = loop.update(loop.init(jnp.float32(0)), jnp.float32(1))
      >>> print(state.anchor, state.opponent)
      0.0 1.0
    """
    if inner_steps < 1:
        raise InputError(f"inner_steps must be at least 1, got {inner_steps}")

    def init(params):
        anchor, opponent = (jax.tree.map(jnp.array, params) for _ in range(2))
        return MirrorProxState(anchor, opponent, jnp.int32(0))

    def update(state, params):
        count = state.count + 1
        whole = count == 2 * inner_steps
        half = whole | (count == inner_steps)

        def refreshed(when, old):
            return jax.tree.map(lambda x, y: jnp.where(when, x, y), params, old)

        return MirrorProxState(
            refreshed(whole, state.anchor),
            refreshed(half, state.opponent),
            jnp.where(whole, 0, count),
        )

    return Stateful(init, update)
