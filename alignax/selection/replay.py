"""Samples that are used again: a buffer of rows, recovery, ages, objectives.

A buffer is a small pytree of static shape and belongs in the checkpoint. Rows keep
the log-probabilities of the policy that sampled them: the denominator of their
ratios, or one part of a mixture's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax.numerics import as_float
from alignax.types import InputError, Stateful


class Buffer(NamedTuple):
    """``rows``: a pytree ``[C, ...]``; ``age``: steps since each was added, −1 for an
    empty place. Full places come first, the youngest first."""

    rows: Any
    age: Int[Array, " C"]


def replay_buffer(row: Any, *, capacity: int) -> Stateful:
    """Rows of the last steps, static in shape.

    Args:
      row: a pytree of arrays as one row has them.
      capacity: C, positive.

    Returns:
      ``init() -> Buffer``, empty, and ``update(buffer, rows, keep) -> Buffer``, once a
      step: of the rows ``[B, ...]`` those with ``keep [B]`` True come in front, all
      others are a step older, and where it is full the oldest go.

    Raises:
      InputError: ``capacity`` is not positive.

    Example:
      >>> replay = replay_buffer(jnp.zeros(()), capacity=2)
      >>> keep = jnp.array([False, True])
      >>> buffer = replay.update(replay.init(), jnp.array([5.0, 6.0]), keep)
      >>> print(buffer.rows, buffer.age)
      [6. 0.] [0 -1]
    """
    if capacity < 1:
        raise InputError(f"capacity must be positive, got {capacity}")

    def init():
        rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row)
        return Buffer(rows, jnp.full((capacity,), -1, jnp.int32))

    def update(buffer, rows, keep):
        both, age = _joined(jnp.where(keep, 0, -1), rows, _older(buffer), buffer.rows)
        return Buffer(*_packed(both, age, age >= 0, capacity))

    return Stateful(init, update)


def _packed(rows: Any, age: Array, first: Array, size: int) -> tuple[Any, Array]:
    """The first ``size`` rows in the order of ``first``, its False ones emptied."""
    order = jnp.argsort(~first, stable=True)[:size]
    kept = jnp.where(first[order], age[order], -1)
    full = kept >= 0

    def take(x):
        return jnp.where(
            jnp.expand_dims(full, range(1, x.ndim)), x[order], jnp.zeros((), x.dtype)
        )

    return jax.tree.map(take, rows), kept


def _older(buffer: Buffer) -> Array:
    return jnp.where(buffer.age >= 0, buffer.age + 1, -1)


def _joined(first_age: Array, first: Any, age: Array, rows: Any) -> tuple[Any, Array]:
    both = jax.tree.map(lambda *xs: jnp.concatenate(xs), first, rows)
    return both, jnp.concatenate([first_age, age])


def replay_sample(
    buffer: Buffer,
    key: Key[Array, ""],
    *,
    count: int,
    most_age: int,
    decay: float = 0.0,
) -> tuple[Any, Bool[Array, " N"]]:
    """Rows at random, without replacement, of at most some age (ReMix).

    Args:
      buffer: so far.
      key: of the draws.
      count: N rows, at most the capacity. ReMix fills 40 % of a batch from the last
        two policies.
      most_age: steps; older rows are left out.
      decay: α in [0, 1): a row of age a is ``(1 − α)^a`` times as likely.

    Returns:
      rows ``[N, ...]`` and ``[N]``, False for places that could not be filled.

    Raises:
      InputError: an argument is out of range.

    Reference:
      Liang et al., "Squeeze the soaked sponge: Efficient off-policy reinforcement
      finetuning for large language model" (ReMix), arXiv 2507.06892, §4.1.

    Example:
      >>> buffer = Buffer(jnp.array([5.0, 0.0, 0.0]), jnp.array([0, -1, -1]))
      >>> rows, valid = replay_sample(buffer, jax.random.key(0), count=2, most_age=2)
      >>> print(rows, valid)
      [5. 0.] [ True False]
    """
    if not 1 <= count <= len(buffer.age) or most_age < 0 or not 0 <= decay < 1:
        raise InputError(
            f"need 1 <= count <= {len(buffer.age)}, most_age >= 0 and 0 <= decay < 1, "
            f"got {count}, {most_age}, {decay}"
        )
    usable = (buffer.age >= 0) & (buffer.age <= most_age)
    weights = buffer.age * jnp.log1p(-decay)
    scores = weights + jax.random.gumbel(key, buffer.age.shape)
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf))[:count]
    return jax.tree.map(lambda x: x[order], buffer.rows), usable[order]


def recent_sample_recovery(
    buffer: Buffer,
    rows: Any,
    keep: Bool[Array, " B"],
    *,
    size: int,
    most_age: int = 1,
) -> tuple[Any, Bool[Array, " N"], Buffer]:
    """A full batch from what was left over and what is new (Confucius3-Math's RSR).

    Left-over rows come first, then the new ones that are kept; what does not fit
    goes to the buffer. No row is used twice.

    Args:
      buffer: of left-over rows.
      rows: a pytree ``[B, ...]``, new. For groups let a row be a whole group.
      keep: ``[B]``, such as ``mixed_groups``.
      size: N rows of the batch.
      most_age: steps that a row may wait.

    Returns:
      the batch ``[N, ...]``, ``[N]`` False for places that could not be filled, and
      the buffer.

    Raises:
      InputError: ``size`` is larger than the rows that there can be.

    Reference:
      Wu et al., "Confucius3-Math", arXiv 2506.18330, recent sample recovery.

    Example:
      >>> buffer = replay_buffer(jnp.zeros(()), capacity=2).init()
      >>> new, keep = jnp.array([1.0, 2.0, 3.0]), jnp.array([True, True, True])
      >>> batch, valid, buffer = recent_sample_recovery(buffer, new, keep, size=2)
      >>> print(batch, buffer.rows)
      [1. 2.] [3. 0.]
    """
    most = len(buffer.age) + len(keep)
    if not 1 <= size <= most:
        raise InputError(f"size must be from 1 to {most} rows, got {size}")
    older = _older(buffer)
    older = jnp.where(older <= most_age, older, -1)
    both, age = _joined(older, buffer.rows, jnp.where(keep, 0, -1), rows)
    present = age >= 0
    batch, kept = _packed(both, age, present, size)
    used = present & (jnp.cumsum(present) <= size)
    rest = Buffer(*_packed(both, age, present & ~used, len(buffer.age)))
    return batch, kept >= 0, rest


def objective_weights(
    recent: Float[Array, "N W"],
    earlier: Float[Array, "N W"],
    *,
    temperature: float = 5.0,
    alpha: float | None = None,
) -> Float[Array, " N"]:
    """More weight for objectives that get worse or waver (RECAP).

    ``c = mean(recent)/mean(earlier)`` of each loss, ``i = std(recent)/(mean(recent) +
    mean(earlier))``, ``λ = N · softmax((c + i)/T)``. The weights add up to N.

    Args:
      recent: ``[N, W]``, the last W losses of N objectives, positive. For rewards
        exchange the two windows.
      earlier: ``[N, W]``, the W losses before.
      temperature: T, positive.
      alpha: None for the paper's sum; a number for the official code's two
        softmaxes, ``N (α softmax(c/T) + (1−α) softmax(i/T))``.

    Returns:
      ``[N]`` float32, without gradient.

    Raises:
      InputError: ``temperature`` is not positive or ``alpha`` is outside [0, 1].

    Reference:
      Phan et al., "Beyond reasoning gains: Mitigating general capabilities
      forgetting in large reasoning models" (RECAP), arXiv 2510.21978, eqs. 4-7.

    Example:
      >>> recent, earlier = jnp.ones((2, 3)), jnp.array([[1.0] * 3, [2.0] * 3])
      >>> print(objective_weights(recent, earlier))
      [1.05 0.95]
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise InputError(f"alpha must be None or in [0, 1], got {alpha}")
    recent, earlier = (jax.lax.stop_gradient(as_float(x)) for x in (recent, earlier))
    now, before = jnp.mean(recent, axis=-1), jnp.mean(earlier, axis=-1)
    change = now / jnp.maximum(before, 1e-8)
    unrest = jnp.std(recent, axis=-1) / jnp.maximum(now + before, 1e-8)
    if alpha is None:
        return len(recent) * jax.nn.softmax((change + unrest) / temperature)
    apart = [jax.nn.softmax(x / temperature) for x in (change, unrest)]
    return len(recent) * (alpha * apart[0] + (1 - alpha) * apart[1])
