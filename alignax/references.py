"""The policy that the penalty measures from: fixed, averaged, reset, or one of many.

A reference is a rule over parameters. Its state lives in the train state, hence in
the checkpoint, and is a copy: parameters may be donated to the next step.

>>> from alignax import references
>>> rule = references.moving_average(decay=0.75)
>>> state = rule.init({"w": jnp.zeros(2)})
>>> state = rule.update(state, {"w": jnp.ones(2)}, 1)
>>> print(rule.params(state)["w"])
[0.25 0.25]
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax.numerics import as_float
from alignax.types import InputError, Params

__all__ = [
    "Convex",
    "Reference",
    "Snapshots",
    "convex",
    "fixed",
    "moving_average",
    "periodic_reset",
    "snapshots",
    "soup",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """``init(params) -> state``; ``update(state, params, step) -> state`` after the
    optimiser's ``step``-th step, counted from 1; ``params(state)``, the reference's
    parameters, which keep the structure and shapes of the policy's.

    Equal where ``name`` and ``settings`` are: give a rule of your own its own name.
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    init: Callable[..., Any] = dataclasses.field(compare=False)
    update: Callable[[Any, Params, int | Int[Array, ""]], Any] = dataclasses.field(
        compare=False
    )
    params: Callable[[Any], Params] = dataclasses.field(compare=False)


def fixed() -> Reference:
    """The policy that training starts from.

    Args: none.

    Returns:
      the rule. With adapters alone as parameters it holds no copy of the base: the
      first adapter is the identity.

    Example:
      >>> rule = fixed()
      >>> print(rule.update(rule.init(jnp.zeros(2)), jnp.ones(2), 1))
      [0. 0.]
    """
    return Reference(
        name="fixed",
        init=_copy,
        update=lambda state, params, step: state,
        params=lambda state: state,
    )


def moving_average(*, decay: float | Float[Array, ""], every: int = 1) -> Reference:
    """``θ̄ ← d θ̄ + (1 − d) θ``: a slow copy, Nash-EMA's opponent.

    For a softmax of free logits it is the *geometric* mean of past policies. Kept in
    float32: in bfloat16 a small step would be lost.

    Args:
      decay: d in [0, 1); Nash-EMA's are 0.999 and 0.9995.
      every: steps between two updates, positive.

    Returns:
      the rule; its state is the average.

    Raises:
      InputError: ``decay`` is a number outside [0, 1) or ``every`` not positive.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §7.

    Example:
      >>> rule = moving_average(decay=0.75)
      >>> print(rule.update(rule.init(jnp.zeros(2)), jnp.ones(2), 1))
      [0.25 0.25]
    """
    if isinstance(decay, (int, float)) and not 0 <= decay < 1:
        raise InputError(f"decay must be in [0, 1), got {decay}")
    _check_every(every)

    def init(params):
        return jax.tree.map(lambda x: jnp.array(as_float(x)), params)

    def update(average, params, step):
        return _when_due(
            step, every, lambda: _weighted(decay, average, params), average
        )

    return Reference(
        name="moving_average",
        settings=(("decay", decay), ("every", every)),
        init=init,
        update=update,
        params=lambda average: average,
    )


def soup(*, weight: float = 0.5) -> Reference:
    """``w θ₀ + (1 − w) mean(θ')``: fine-tuned models averaged, then held (SALSA).

    Where logits are linear in the parameters the penalties to each add up to one:
    ``w KL(π‖π₁) + (1−w) KL(π‖π₂) = KL(π‖π_soup) − log Z``.

    Args:
      weight: w in [0, 1], of the parameters that training starts from.

    Returns:
      the rule, ``init(params, *others)`` with at least one other pytree of the
      policy's structure and shapes; its state is the soup, in the dtypes of the
      policy's parameters.

    Raises:
      InputError: ``weight`` is outside [0, 1]; at ``init``, there are no others.

    Reference:
      Chegini et al., "SALSA: Soup-based alignment learning for stronger adaptation
      in RLHF", arXiv 2411.01798, eq. 4.

    Example:
      >>> print(soup(weight=0.75).init({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})["w"])
      [0.25 0.25]
    """
    if not 0 <= weight <= 1:
        raise InputError(f"weight must be in [0, 1], got {weight}")

    def init(params, *others):
        if not others:
            raise InputError(
                "a soup needs the parameters of at least one other fine-tuned model "
                "beside those that training starts from, got none"
            )

        def mean(first, *rest):
            return sum(map(as_float, rest), start=as_float(first)) / len(others)

        average = _weighted(weight, params, jax.tree.map(mean, *others))
        return jax.tree.map(lambda x, like: x.astype(like.dtype), average, params)

    return dataclasses.replace(
        fixed(), name="soup", settings=(("weight", weight),), init=init
    )


class Convex(NamedTuple):
    """``base`` and ``last`` parameters of a ``convex`` reference."""

    base: Params
    last: Params


def convex(*, weight: float, reset: int) -> Reference:
    """``w θ_base + (1 − w) θ_last``: near the base and the step before (ReMix).

    For logits linear in the parameters the penalty is
    ``w KL(π‖π_base) + (1 − w) KL(π‖π_last)`` up to a constant. After ``reset`` steps
    the policy takes the base's place, once: ReMix's reincarnation.

    Args:
      weight: w in [0, 1], of the base.
      reset: steps of the first stage, positive.

    Returns:
      the rule; its state is ``Convex``.

    Raises:
      InputError: ``weight`` is outside [0, 1] or ``reset`` not positive.

    Reference:
      Liang et al., "Squeeze the soaked sponge: Efficient off-policy reinforcement
      finetuning for large language model" (ReMix), arXiv 2507.06892, §4.

    Example:
      >>> rule = convex(weight=0.25, reset=2)
      >>> state = rule.update(rule.init(jnp.zeros(1)), jnp.ones(1), 1)
      >>> print(rule.params(state), rule.params(rule.update(state, jnp.ones(1), 2)))
      [0.75] [1.]
    """
    if not 0 <= weight <= 1:
        raise InputError(f"weight must be in [0, 1], got {weight}")
    if reset < 1:
        raise InputError(f"reset must be a positive number of steps, got {reset}")

    def update(state, params, step):
        turned = jnp.asarray(step) == reset
        base = jax.tree.map(lambda x, y: jnp.where(turned, y, x), state.base, params)
        return Convex(base, _copy(params))

    def params(state):
        average = _weighted(weight, state.base, state.last)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), average, state.base)

    return Reference(
        name="convex",
        settings=(("weight", weight), ("reset", reset)),
        init=lambda params: Convex(_copy(params), _copy(params)),
        update=update,
        params=params,
    )


def periodic_reset(*, every: int) -> Reference:
    """The policy itself, as it was at the last multiple of ``every`` steps.

    Proximal steps of mirror descent are one each ``every``.

    Args:
      every: steps between two resets, positive.

    Returns:
      the rule; its state is the reference.

    Raises:
      InputError: ``every`` is not positive.

    Reference:
      Gorbatovski et al., "Learn your reference model for real good alignment",
      arXiv 2404.09656 (hard updates).

    Example:
      >>> rule, w = periodic_reset(every=2), jnp.arange(3.0)
      >>> print(rule.update(w, w + 1, 1), rule.update(w, w + 1, 2))
      [0. 1. 2.] [1. 2. 3.]
    """
    _check_every(every)

    def update(state, params, step):
        return _when_due(step, every, lambda: params, state)

    return dataclasses.replace(
        fixed(), name="periodic_reset", settings=(("every", every),), update=update
    )


class Snapshots(NamedTuple):
    """``pool``: parameters ``[N, ...]``, in a ring; ``count``: snapshots taken so far;
    ``drawn``: the place of the one in use."""

    pool: Params
    count: Int[Array, ""]
    drawn: Int[Array, ""]


def snapshots(*, size: int, every: int, seed: int = 0) -> Reference:
    """One of the last policies, drawn anew after each step: fictitious self-play.

    The first is the one that training starts from; a full pool drops its oldest.

    Args:
      size: N snapshots kept, positive.
      every: steps between two snapshots, positive.
      seed: of the draws; each is a function of it and the step.

    Returns:
      the rule; its state is ``Snapshots``.

    Raises:
      InputError: ``size`` or ``every`` is not positive.

    Reference:
      Bansal et al., "Emergent complexity via multi-agent competition",
      arXiv 1710.03748, opponent sampling.

    Example:
      >>> rule = snapshots(size=2, every=1)
      >>> print(rule.update(rule.init(jnp.float32(0)), jnp.float32(1), 1).pool)
      [0. 1.]
    """
    if size < 1:
        raise InputError(f"size must be positive, got {size}")
    _check_every(every)

    def init(params):
        pool = jax.tree.map(lambda x: jnp.stack([x] * size), params)
        return Snapshots(pool, jnp.int32(1), jnp.int32(0))

    def update(state, params, step):
        def added():
            pool = jax.tree.map(
                lambda xs, x: xs.at[state.count % size].set(x), state.pool, params
            )
            return pool, state.count + 1

        pool, count = _when_due(step, every, added, (state.pool, state.count))
        key = jax.random.fold_in(jax.random.key(seed), step)
        return Snapshots(
            pool, count, jax.random.randint(key, (), 0, jnp.minimum(count, size))
        )

    def params(state):
        return jax.tree.map(lambda x: x[state.drawn], state.pool)

    return Reference(
        name="snapshots",
        settings=(("size", size), ("every", every), ("seed", seed)),
        init=init,
        update=update,
        params=params,
    )


def _check_every(every: int) -> None:
    if every < 1:
        raise InputError(f"every must be a positive number of steps, got {every}")


def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.array, params)


def _weighted(weight: float | Array, params: Params, others: Params) -> Params:
    """``w x + (1 − w) y``, exact where the two are equal."""
    return jax.tree.map(
        lambda x, y: as_float(x) + (1 - weight) * (as_float(y) - as_float(x)),
        params,
        others,
    )


def _when_due(
    step: int | Int[Array, ""], every: int, new: Callable[[], Any], old: Any
) -> Any:
    """``new()`` at each multiple of ``every``: between them nothing is computed."""
    if every == 1:
        return new()
    return jax.lax.cond(step % every == 0, new, lambda: old)
