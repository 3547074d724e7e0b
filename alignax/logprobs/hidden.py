"""Log-probabilities from hidden states and the head, never the logits of all tokens.

The vocabulary is passed over in blocks of ``[N, block_size]`` logits; the reverse
pass makes each block again. The memory is that of a few blocks, the work 4/3 of the
three products that any gradient needs.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax.types import InputError

# Logits in a block at the most, 64 MiB in float32; of fewer, an eighth.
BLOCK = 1 << 24


class TokenStats(NamedTuple):
    """``logp`` as ``tokens`` has its shape; ``entropy`` and ``log_normaliser``
    ``[N]``. Float32, nats."""

    logp: Array
    entropy: Array
    log_normaliser: Array


def from_hidden(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, "*shape"],
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> TokenStats:
    """``log softmax(hidden @ head.T)`` at some tokens, and the law's entropy.

    Equal to ``token_logp`` and ``entropy`` of the logits, in value and gradient, to
    the rounding of float32.

    Args:
      hidden: ``[N, D]``; only the positions whose log-probability is wanted.
      head: ``[V, D]``; tied heads are the embedding.
      tokens: ``[N]`` or ``[N, K]``, below V.
      temperature: divides the logits.
      soft_cap: logits z become ``soft_cap · tanh(z / soft_cap)`` before that.
      block_size: columns at a time; by default what makes 2^24 logits, or an
        eighth of them.
      axis_name: inside ``shard_map``, the axis that the head's rows are split over;
        every device has all of ``hidden`` and ``tokens``, and gets all results.

    Returns:
      log-probabilities, entropy and log-normaliser.

    Raises:
      InputError: a number out of range.

    Reference:
      Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
      arXiv 2411.09009.

    Example:
      >>> hidden, head = jnp.eye(2), jnp.log(jnp.array([[0.2, 0.5], [0.8, 0.5]]))
      >>> stats = from_hidden(hidden, head, jnp.array([1, 0]))
      >>> print(jnp.exp(stats.logp), stats.entropy.round(4))
      [0.8 0.5] [0.5004 0.6931]
    """
    settings = _settings(hidden, head, temperature, soft_cap, block_size, axis_name)
    flat = tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))
    logp, entropy, lse = _stats(settings, hidden, head, flat)
    return TokenStats(logp.reshape(tokens.shape), entropy, lse)


class _Settings(NamedTuple):
    temperature: float
    soft_cap: float | None
    block: int
    axis_name: str | None


def _settings(
    hidden: Array,
    head: Array,
    temperature: float,
    soft_cap: float | None,
    block_size: int | None,
    axis_name: str | None,
) -> _Settings:
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    if soft_cap is not None and not soft_cap > 0:
        raise InputError(f"soft_cap must be positive or None, got {soft_cap}")
    if block_size is not None and block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    block = _block(block_size, hidden, head)
    return _Settings(temperature, soft_cap, block, axis_name)


def _block(size: int | None, hidden: Array, head: Array) -> int:
    if size is not None:
        return min(size, len(head))
    most = min(BLOCK // max(len(hidden), 1), len(head) // 8)
    steps = -(-len(head) // max(most, 1024))
    # As even as multiples of 64 go: the last block's overlap is work done twice.
    return min(-(-len(head) // (64 * steps)) * 64, len(head))


def _first(settings: _Settings, head: Array) -> Array:
    """The number of this device's first row of the head."""
    if settings.axis_name is None:
        return jnp.int32(0)
    return jax.lax.axis_index(settings.axis_name) * len(head)


def _steps(settings: _Settings, head: Array) -> Array:
    return jnp.arange(-(-len(head) // settings.block))


def _scores(settings: _Settings, hidden: Array, head: Array, step: Array):
    """A block's ``(start, rows of the head, logits, which columns are new)``.

    The last block ends with the vocabulary and overlaps the one before.
    """
    start = jnp.minimum(step * settings.block, len(head) - settings.block)
    rows = jax.lax.dynamic_slice_in_dim(head, start, settings.block)
    logits = jnp.einsum(
        "nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32
    ).astype(jnp.float32)
    fresh = start + jnp.arange(settings.block) >= step * settings.block
    return start, rows, _shape(settings, logits), fresh


def _shape(settings: _Settings, logits: Array) -> Array:
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    return logits / settings.temperature


def _slope(settings: _Settings, shaped: Array, gradient: Array) -> Array:
    """The gradient before ``_shape``."""
    gradient = gradient / settings.temperature
    if settings.soft_cap is not None:
        capped = shaped * (settings.temperature / settings.soft_cap)
        gradient = gradient * (1 - jnp.square(capped))
    return gradient


def _at(tokens: Array, start: Array, block: int) -> tuple[Array, Array]:
    """Where in a block the tokens are, and whether they are in it."""
    place = tokens - start
    inside = (place >= 0) & (place < block)
    return jnp.where(inside, place, 0), inside


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(settings, hidden, head, tokens):
    return _stats_forward(settings, hidden, head, tokens)[0]


def _stats_forward(settings, hidden, head, tokens):
    local = tokens - _first(settings, head)

    def pass_over(carry, step):
        top, total, weighted, taken = carry
        start, _, logits, fresh = _scores(settings, hidden, head, step)
        logits = jnp.where(fresh[None], logits, -jnp.inf)
        new = jnp.maximum(top, jnp.max(logits, axis=-1))
        # Rows whose logits are all -inf so far stay at zero mass.
        finite = jnp.where(new > -jnp.inf, new, 0)
        old = jnp.exp(jnp.where(top > -jnp.inf, top - finite, -jnp.inf))
        mass = jnp.exp(logits - finite[:, None])
        total = total * old + jnp.sum(mass, axis=-1)
        inside = jnp.where(mass > 0, logits, 0)
        weighted = weighted * old + jnp.sum(mass * inside, axis=-1)
        place, here = _at(local, start, settings.block)
        found = jnp.take_along_axis(logits, place, axis=-1)
        here &= jnp.take(fresh, place)
        return (new, total, weighted, jnp.where(here, found, taken)), None

    rows = len(hidden)
    start = (
        jnp.full(rows, -jnp.inf, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.full(tokens.shape, -jnp.inf, jnp.float32),
    )
    start = _varying(settings, start)
    (top, total, weighted, taken), _ = jax.lax.scan(
        pass_over, start, _steps(settings, head)
    )
    if settings.axis_name is not None:
        axis = settings.axis_name
        new = jax.lax.pmax(top, axis)
        old = jnp.exp(top - new)
        total, weighted = (jax.lax.psum(x * old, axis) for x in (total, weighted))
        top, taken = new, jax.lax.pmax(taken, axis)
    lse = top + jnp.log(total)
    logp = taken - lse[:, None]
    entropy = lse - weighted / total
    return (logp, entropy, lse), (hidden, head, tokens, lse, entropy)


def _varying(settings: _Settings, tree: Any) -> Any:
    """Constants as values that differ by device, where they will come to."""
    if settings.axis_name is None:
        return tree
    return jax.lax.pcast(tree, settings.axis_name, to="varying")


def _zeros(settings: _Settings, hidden: Array, head: Array):
    """Where the gradients of hidden states and head are gathered."""
    to_hidden = _varying(settings, jnp.zeros(hidden.shape, jnp.float32))
    return to_hidden, jnp.zeros_like(head)


def _accumulate(settings, carry, gradient, hidden, rows, start, fresh):
    """Add a block's gradient of the logits to those of hidden states and head."""
    to_hidden, to_head = carry
    to_hidden += jnp.einsum(
        "nv,vd->nd",
        gradient.astype(rows.dtype),
        rows,
        preferred_element_type=jnp.float32,
    )
    new = jnp.einsum(
        "nv,nd->vd",
        gradient.astype(hidden.dtype),
        hidden,
        preferred_element_type=jnp.float32,
    ).astype(to_head.dtype)
    old = jax.lax.dynamic_slice_in_dim(to_head, start, settings.block)
    # Each row of the head is made once; the overlap is there already.
    new = jnp.where(fresh[:, None], new, old)
    return to_hidden, jax.lax.dynamic_update_slice_in_dim(to_head, new, start, axis=0)


def _stats_backward(settings, residuals, cotangents):
    hidden, head, tokens, lse, entropy = residuals
    to_logp, to_entropy, to_lse = cotangents
    local = tokens - _first(settings, head)
    # Of the normaliser: each taken log-probability has one, with a minus sign.
    normaliser = to_lse - jnp.sum(to_logp, axis=-1)

    def pass_over(carry, step):
        to_hidden, to_head = carry
        start, rows, logits, fresh = _scores(settings, hidden, head, step)
        logp = logits - lse[:, None]
        p = jnp.exp(logp)
        inside = jnp.where(p > 0, logp, 0)
        gradient = p * (
            normaliser[:, None] - to_entropy[:, None] * (inside + entropy[:, None])
        )
        place, here = _at(local, start, settings.block)
        index = jnp.arange(len(hidden))[:, None]
        gradient = gradient.at[index, place].add(jnp.where(here, to_logp, 0))
        gradient = jnp.where(fresh[None], gradient, 0)
        gradient = _slope(settings, logits, gradient)
        carry = (to_hidden, to_head)
        return _accumulate(settings, carry, gradient, hidden, rows, start, fresh), None

    zeros = _zeros(settings, hidden, head)
    (to_hidden, to_head), _ = jax.lax.scan(pass_over, zeros, _steps(settings, head))
    if settings.axis_name is not None:
        to_hidden = jax.lax.psum(to_hidden, settings.axis_name)
    return to_hidden.astype(hidden.dtype), to_head, None


_stats.defvjp(_stats_forward, _stats_backward)
