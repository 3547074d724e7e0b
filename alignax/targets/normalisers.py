"""A target's normaliser from samples: estimates of ``log Z``, errors and bounds.

Weights are logs, ``log P(y) − log q(y)`` for y sampled from the proposal q; a weight
of ``-inf`` is a sample that the target excludes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.numerics import as_float
from alignax.types import InputError, Stateful


def log_normaliser(log_weights: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """``log (1/N) Σ P(y_n)/q(y_n)``, an estimate of ``log Z``.

    ``running_log_normaliser`` keeps one over a long run of samples.

    Value: its exponential is unbiased for Z; itself it is below log Z in expectation,
    by about Var(P/q) / (2 N Z²).
    Gradient: of weights ``log P_θ − log q`` with q fixed, the self-normalised
    estimate of ``∇ log Z``; consistent.

    Args:
      log_weights: ``[..., N]``.

    Returns:
      ``[...]``, ``-inf`` where all weights are.

    Example:
      >>> print(f"{log_normaliser(jnp.log(jnp.array([1.0, 3.0]))):.4f}")
      0.6931
    """
    log_weights = as_float(log_weights)
    possible = log_weights > -jnp.inf
    total = jax.nn.logsumexp(log_weights, axis=-1, where=possible)
    return total - jnp.log(jnp.asarray(log_weights.shape[-1], total.dtype))


class LogNormaliser(NamedTuple):
    """A running estimate of a normaliser, each ``[...]``."""

    log_z: Float[Array, "*batch"]
    """Of the mean weight."""
    log_square: Float[Array, "*batch"]
    """Of the mean squared weight."""
    count: Float[Array, "*batch"]
    """Samples behind both; of a moving average, what they count for."""


class NormaliserError(NamedTuple):
    """How good an estimate of a normaliser is, each ``[...]``."""

    error: Float[Array, "*batch"]
    """Standard error of ``log Z`` in nats, that of Z relative to Z; ``inf`` where
    nothing is known."""
    effective: Float[Array, "*batch"]
    """Effective sample size: as many samples of the target itself are worth as much."""


def running_log_normaliser(
    shape: tuple[int, ...] = (), *, decay: float = 1.0
) -> Stateful:
    """``Z ← (n Z + Σ P_k/q_k) / (n + N)``, in logs, over the batches of a run.

    The proposal may move from batch to batch. Where the target does (multipliers or a
    reward that are still changing), ``decay`` lets old batches count less: n is
    multiplied by it at each update.

    Value: ``exp(log_z)`` is unbiased for Z under the distributions that sampled; of the
    log see ``log_normaliser``, of its error ``normaliser_error``.
    Gradient: none; the state is stopped.

    Args:
      shape: ``()`` for one normaliser, or one entry a prompt.
      decay: in (0, 1]; 1 is the cumulative mean.

    Returns:
      ``init() -> LogNormaliser``, of count 0, and ``update(state, log_weights,
      where=None) -> LogNormaliser``: ``log P − log q`` of N new samples ``[..., N]``,
      ``-inf`` where the target excludes one; True in ``where`` at those that count.
      ``log_z`` is ``-inf`` while every weight seen was zero.

    Raises:
      InputError: ``decay`` is not in (0, 1].

    Reference:
      Go et al., "Aligning language models with preferences through f-divergence
      minimization", arXiv 2302.08215, Algorithm 1.

    Example:
      >>> normaliser = running_log_normaliser()
      >>> state = normaliser.update(normaliser.init(), jnp.log(jnp.array([1.0, 3.0])))
      >>> print(f"{state.log_z:.4f}")
      0.6931
    """
    if not 0 < decay <= 1:
        raise InputError(f"decay must be in (0, 1], got {decay}")

    def init():
        return LogNormaliser(*(jnp.zeros(shape) for _ in LogNormaliser._fields))

    def update(state, log_weights, where=None):
        log_weights = as_float(log_weights)
        where = jnp.ones(log_weights.shape, bool) if where is None else where
        log_weights = jnp.where(where, log_weights, -jnp.inf)
        kept = decay * state.count
        count = kept + jnp.sum(where, axis=-1)

        def mean(before, logs):
            seen = jnp.where(kept > 0, jnp.log(kept) + before, -jnp.inf)
            both = jnp.append(logs, seen[..., None], axis=-1)
            total = jax.nn.logsumexp(both, axis=-1) - jnp.log(jnp.maximum(count, 1e-30))
            return jnp.where(count > 0, total, before)

        new = LogNormaliser(
            mean(state.log_z, log_weights),
            mean(state.log_square, 2 * log_weights),
            count,
        )
        return jax.lax.stop_gradient(new)

    return Stateful(init, update)


def normaliser_error(state: LogNormaliser) -> NormaliserError:
    """The standard error of a running ``log Z`` and its effective sample size.

    ``Var(P/q) / (n Z²)`` by the samples' own moments: its root is the error of log Z to
    first order. Few samples miss the rare large weights, so that an error near 1 is a
    lower bound and no estimate.

    Value: consistent for independent samples of one proposal.
    Gradient: none to use.

    Args:
      state: of ``running_log_normaliser``.

    Returns:
      ``NormaliserError``, each ``[...]``; ``inf`` and 0 where no sample had mass.

    Reference:
      Kong, "A note on importance sampling using standardized weights", 1992.

    Example:
      >>> normaliser = running_log_normaliser()
      >>> state = normaliser.update(normaliser.init(), jnp.log(jnp.array([1.0, 3.0])))
      >>> print(*(f"{x:.4f}" for x in normaliser_error(state)))
      0.3536 1.6000
    """
    known = (state.log_z > -jnp.inf) & (state.count > 0)
    spread = jnp.where(known, state.log_square - 2 * state.log_z, 0)
    count = jnp.where(known, state.count, 1)
    # Rounding may take a spread of zero below it.
    variance = jnp.maximum(jnp.expm1(spread), 0) / count
    return NormaliserError(
        jnp.where(known, jnp.sqrt(variance), jnp.inf),
        jnp.where(known, count * jnp.exp(-spread), 0),
    )


def others_log_normaliser(
    state: LogNormaliser, log_weights: Float[Array, "*batch N"]
) -> Float[Array, "*batch N"]:
    """``log Z`` for each of N samples by all the others, and by what was seen before.

    ``Ẑ_k = (n Z + Σ_{j≠k} w_j) / (n + N − 1)`` does not depend on sample k, so that
    what is estimated with it of k has no bias by using k twice: f-DPG's gradient of the
    forward KL, which divides by it, keeps its direction exactly. Where no other sample
    has mass, the sample itself counts, too.

    Value: ``exp`` of it is unbiased for Z where some other sample has mass.
    Gradient: none; the result is stopped.

    Args:
      state: before these samples; of count 0 there is nothing before.
      log_weights: ``[..., N]``.

    Returns:
      ``[..., N]``; ``-inf`` only where no sample ever had mass.

    Raises:
      InputError: N is 1 and there are no others.

    Example:
      >>> state = running_log_normaliser().init()
      >>> print(jnp.exp(others_log_normaliser(state, jnp.log(jnp.array([1.0, 3.0])))))
      [3. 1.]
    """
    log_weights = as_float(log_weights)
    size = log_weights.shape[-1]
    if size < 2:
        raise InputError(
            "log_weights must hold at least two samples of a prompt, so that each has "
            f"others, got shape {log_weights.shape}"
        )
    count = state.count[..., None]
    seen = jnp.log(jnp.maximum(count, 1e-30)) + state.log_z[..., None]
    seen = jnp.where(count > 0, seen, -jnp.inf)
    among = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, log_weights[..., None, :])
    seen = jnp.broadcast_to(seen[..., None], (*among.shape[:-1], 1))
    others = _logsumexp(jnp.concatenate([among, seen], axis=-1))
    alone = jnp.log(count + size - 1)
    every = _logsumexp(jnp.append(log_weights, seen[..., 0, :], axis=-1))
    fallback = every[..., None] - jnp.log(count + size)
    return jax.lax.stop_gradient(jnp.where(others > -jnp.inf, others - alone, fallback))


def _logsumexp(x: Array) -> Array:
    return jax.nn.logsumexp(x, axis=-1, where=x > -jnp.inf)


class NormaliserBounds(NamedTuple):
    """Two numbers that ``log Z`` lies between, each ``[...]``."""

    lower: Float[Array, "*batch"]
    """``E_q log(P/q) = log Z − KL(q‖p)``."""
    upper: Float[Array, "*batch"]
    """``E_p log(P/q) = log Z + KL(p‖q)``."""


def normaliser_bounds(log_weights: Float[Array, "*batch N"]) -> NormaliserBounds:
    """The evidence's lower and upper bound, from samples of the proposal.

    Their distance is ``KL(q‖p) + KL(p‖q)``.

    Value: the lower one is unbiased; the upper one self-normalised, hence consistent,
    and too low while the samples miss what the target is made of.
    Gradient: of the lower one, that of ``−KL(q‖p)`` where the weights carry it and the
    samples are reparametrised; none to use otherwise.

    Args:
      log_weights: ``[..., N]``, not all ``-inf``.

    Returns:
      ``NormaliserBounds``; the lower one is ``-inf`` where a sample is excluded.

    Example:
      >>> bounds = normaliser_bounds(jnp.log(jnp.array([1.0, 3.0])))
      >>> print(f"{bounds.lower:.4f} {bounds.upper:.4f}")
      0.5493 0.8240
    """
    log_weights = as_float(log_weights)
    possible = log_weights > -jnp.inf
    some = jnp.any(possible, axis=-1, keepdims=True)
    shares = jax.nn.softmax(jnp.where(some, log_weights, 0), where=possible)
    upper = jnp.sum(jnp.where(possible, shares * log_weights, 0), axis=-1)
    return NormaliserBounds(jnp.mean(log_weights, axis=-1), upper)


class WindowedMean(NamedTuple):
    """The last values ``[W]``, the place of the next one, and how many there are."""

    values: Float[Array, " W"]
    place: Array
    count: Array


def windowed_mean(window: int = 1024) -> Stateful:
    """The mean of the last values: f-DPG's baseline.

    A baseline of earlier batches does not depend on the samples that it is taken from,
    so that the gradient stays unbiased.

    Args:
      window: how many values count.

    Returns:
      ``init() -> WindowedMean`` and ``update(state, values, where=None) ->
      WindowedMean`` with values ``[...]``; ``where`` says which count. The mean itself
      is ``sum(values) / max(count, 1)``, 0 of none.

    Raises:
      InputError: ``window`` is less than 1.

    Reference:
      Go et al., arXiv 2302.08215, whose code takes 1024.

    Example:
      >>> mean = windowed_mean(2)
      >>> state = mean.update(mean.init(), jnp.array([1.0, 2.0, 4.0]))
      >>> print(jnp.sum(state.values) / state.count)
      3.0
    """
    if window < 1:
        raise InputError(f"window must be at least 1, got {window}")

    def init():
        return WindowedMean(jnp.zeros(window), jnp.int32(0), jnp.int32(0))

    def update(state, values, where: Bool[Array, "..."] | None = None):
        values = jnp.ravel(values).astype(state.values.dtype)
        where = jnp.ones(values.shape, bool) if where is None else jnp.ravel(where)
        order = jnp.cumsum(where) - 1
        total = jnp.sum(where)
        # Of more values than the window holds the last ones stay.
        kept = where & (order >= total - window)
        places = jnp.where(kept, (state.place + order) % window, window)
        new = state.values.at[places].set(values, mode="drop")
        count = jnp.minimum(state.count + total, window)
        place = (state.place + total) % window
        return jax.lax.stop_gradient(WindowedMean(new, place, count))

    return Stateful(init, update)
