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
from jaxtyping import Array, Float, Int, UInt8

from alignax import sampling
from alignax.numerics import as_float, varying_as
from alignax.types import InputError

# Logits in a block at the most, 64 MiB in float32; of fewer, an eighth.
BLOCK = 1 << 24


class TokenStats(NamedTuple):
    """``logp`` as ``tokens`` has its shape; ``entropy``, ``log_normaliser`` and
    ``log_mass``, the log-probability of the support before the truncation (0 without
    one), ``[N]``. Float32, nats."""

    logp: Array
    entropy: Array
    log_normaliser: Array
    log_mass: Array


def from_hidden(
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, "*shape"],
    *,
    temperature: float | Float[Array, " N"] = 1.0,
    support: UInt8[Array, "N bytes"] | None = None,
    soft_cap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> TokenStats:
    """``log softmax(hidden @ head.T)`` at some tokens, and the law's entropy.

    Equal to ``token_logp`` and ``entropy`` of the logits, in value and gradient, to
    the rounding of float32. A truncated law needs no logits of all tokens either: its
    support is read bit by bit.

    Args:
      hidden: ``[N, D]``; only the positions whose log-probability is wanted.
      head: ``[V, D]``; tied heads are the embedding.
      tokens: ``[N]`` or ``[N, K]``; one outside ``[0, V)``, as padding may be, counts
        as the nearest that is inside.
      temperature: divides the logits; one for all, or one a row, without gradient.
      support: ``[N, ⌈V / 8⌉]``, what ``sampling.support_bits`` took down of the law
        that sampled: others have no probability. None for all tokens.
      soft_cap: logits z become ``soft_cap · tanh(z / soft_cap)`` before that.
      block_size: columns at a time; by default what makes 2^24 logits, or an
        eighth of them.
      axis_name: inside ``shard_map``, the axis that the head's rows are split over;
        along it every device has all of the other arrays, and gets all results.

    Returns:
      log-probabilities, entropy, log-normaliser and the support's log-mass.

    Gradient: by reverse mode; ``jax.jvp`` and ``jax.jacfwd`` are refused by JAX.

    Raises:
      InputError: a number out of range, or a gradient with ``axis_name`` under
        ``shard_map(check_vma=False)``, where the head's would be a share of the truth.

    Reference:
      Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
      arXiv 2411.09009.

    Example:
      >>> hidden, head = jnp.eye(2), jnp.log(jnp.array([[0.2, 0.5], [0.8, 0.5]]))
      >>> stats = from_hidden(hidden, head, jnp.array([1, 0]))
      >>> print(jnp.exp(stats.logp), stats.entropy.round(4))
      [0.8 0.5] [0.5004 0.6931]
    """
    settings = _settings(hidden, head, soft_cap, block_size, axis_name)
    law = _law(settings, head, temperature, support)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    flat = tokens.reshape(len(tokens), math.prod(tokens.shape[1:]))
    flat = jnp.clip(flat, 0, len(head) * devices - 1)
    logp, *others = _stats(settings, law, hidden, head, flat)
    return TokenStats(logp.reshape(tokens.shape), *others)


class _Settings(NamedTuple):
    soft_cap: float | None
    block: int
    axis_name: str | None


class _Law(NamedTuple):
    """What makes the sampled law of the softmax, without gradient."""

    scale: Array | float | None
    """One over the temperature, ``[N, 1]`` or ``[]``; None for 1."""
    support: Array | None


def _law(
    settings: _Settings,
    head: Array,
    temperature: float | Array,
    support: Array | None,
) -> _Law:
    if support is not None:
        axis = settings.axis_name
        shards = 1 if axis is None else jax.lax.axis_size(axis)
        support = sampling.checked_support(support, len(head) * shards)
    if isinstance(temperature, jax.Array):
        return _Law(1 / as_float(temperature)[:, None], support)
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    return _Law(None if temperature == 1 else 1 / temperature, support)


def _settings(
    hidden: Array,
    head: Array,
    soft_cap: float | None,
    block_size: int | None,
    axis_name: str | None,
) -> _Settings:
    if soft_cap is not None and not soft_cap > 0:
        raise InputError(f"soft_cap must be positive or None, got {soft_cap}")
    if block_size is not None and block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
    return _Settings(soft_cap, _block(block_size, hidden, head), axis_name)


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


def _wide(hidden: Array, head: Array) -> jnp.dtype:
    """What is accumulated in."""
    return jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)


def _steps(settings: _Settings, head: Array) -> Array:
    return jnp.arange(-(-len(head) // settings.block))


def _scores(settings: _Settings, law: _Law, hidden: Array, head: Array, step: Array):
    """A block's ``(start, rows of the head, logits, which columns are new)``.

    The last block ends with the vocabulary and overlaps the one before.
    """
    start = jnp.minimum(step * settings.block, len(head) - settings.block)
    rows = jax.lax.dynamic_slice_in_dim(head, start, settings.block)
    wide = _wide(hidden, head)
    logits = jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=wide).astype(
        wide
    )
    fresh = start + jnp.arange(settings.block) >= step * settings.block
    return start, rows, _shape(settings, law, logits), fresh


def _shape(settings: _Settings, law: _Law, logits: Array) -> Array:
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    if law.scale is None:
        return logits
    return logits * jnp.asarray(law.scale, logits.dtype)


def _slope(settings: _Settings, law: _Law, shaped: Array, gradient: Array) -> Array:
    """The gradient before ``_shape``."""
    if law.scale is not None:
        scale = jnp.asarray(law.scale, shaped.dtype)
        gradient, shaped = gradient * scale, shaped / scale
    if settings.soft_cap is not None:
        gradient = gradient * (1 - jnp.square(shaped / settings.soft_cap))
    return gradient


def _inside(settings: _Settings, law: _Law, head: Array, start: Array) -> Array | bool:
    """Which of a block's tokens the law can draw, ``[N, block]``."""
    if law.support is None:
        return True
    first = _first(settings, head) + start
    width = law.support.shape[1]
    size = min(-(-settings.block // 8) + 1, width)
    byte = jnp.minimum(first // 8, width - size)
    bits = jax.lax.dynamic_slice_in_dim(law.support, byte, size, axis=1)
    bits = jnp.unpackbits(bits, axis=1, bitorder="little")
    offset = first - 8 * byte
    return jax.lax.dynamic_slice_in_dim(bits, offset, settings.block, axis=1) > 0


def _at(tokens: Array, start: Array, block: int) -> tuple[Array, Array]:
    """Where in a block the tokens are, and whether they are in it."""
    place = tokens - start
    inside = (place >= 0) & (place < block)
    return jnp.where(inside, place, 0), inside


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats(settings, law, hidden, head, tokens):
    return _stats_forward(settings, law, hidden, head, tokens)[0]


def _grown(top, total, logits):
    """The running maximum and mass with a block more; what old masses are worth, and
    the block's own."""
    new = jnp.maximum(top, jnp.max(logits, axis=-1))
    # Rows whose logits are all -inf so far stay at zero mass.
    finite = jnp.where(new > -jnp.inf, new, 0)
    old = jnp.exp(jnp.where(top > -jnp.inf, top - finite, -jnp.inf))
    mass = jnp.exp(logits - finite[:, None])
    return new, total * old + jnp.sum(mass, axis=-1), old, mass


def _stats_forward(settings, law, hidden, head, tokens):
    local = tokens - _first(settings, head)
    truncated = law.support is not None

    def pass_over(carry, step):
        top, total, weighted, taken, whole = carry
        start, _, logits, fresh = _scores(settings, law, hidden, head, step)
        logits = jnp.where(fresh[None], logits, -jnp.inf)
        if truncated:
            whole_top, whole_total = whole
            whole = _grown(whole_top, whole_total, logits)[:2]
            kept = _inside(settings, law, head, start)
            logits = jnp.where(kept, logits, -jnp.inf)
        top, total, old, mass = _grown(top, total, logits)
        inside = jnp.where(mass > 0, logits, 0)
        weighted = weighted * old + jnp.sum(mass * inside, axis=-1)
        place, here = _at(local, start, settings.block)
        found = jnp.take_along_axis(logits, place, axis=-1)
        here &= jnp.take(fresh, place)
        return (top, total, weighted, jnp.where(here, found, taken), whole), None

    rows = len(hidden)
    wide = _wide(hidden, head)
    nothing = jnp.full(rows, -jnp.inf, wide), jnp.zeros(rows, wide)
    start = (
        *nothing,
        jnp.zeros(rows, wide),
        jnp.full(tokens.shape, -jnp.inf, wide),
        nothing if truncated else None,
    )
    start = _varying(settings, start, law, hidden, head, tokens)
    (*masses, taken, whole), _ = jax.lax.scan(pass_over, start, _steps(settings, head))

    def together(top, *masses):
        """Of all devices."""
        axis = settings.axis_name
        if axis is None:
            return top, *masses
        new = jax.lax.pmax(top, axis)
        return new, *(jax.lax.psum(x * jnp.exp(top - new), axis) for x in masses)

    top, total, weighted = together(*masses)
    if settings.axis_name is not None:
        taken = jax.lax.pmax(taken, settings.axis_name)
    lse = top + jnp.log(total)
    logp = taken - lse[:, None]
    entropy = lse - weighted / total
    lse_whole = lse
    if truncated:
        top, total = together(*whole)
        lse_whole = top + jnp.log(total)
    residuals = (law, hidden, head, tokens, lse, lse_whole, entropy)
    return (logp, entropy, lse, lse - lse_whole), residuals


def _varying(settings: _Settings, tree: Any, *inputs: Any) -> Any:
    """Constants as values that differ by device, where the inputs or the head's
    rows do."""
    if settings.axis_name is not None:
        inputs = *inputs, jax.lax.axis_index(settings.axis_name)
    return varying_as(tree, *inputs)


def _zeros(settings: _Settings, hidden: Array, head: Array, *inputs: Any):
    """Where the gradients of hidden states and head are gathered."""
    zeros = jnp.zeros(hidden.shape, _wide(hidden, head)), jnp.zeros_like(head)
    return _varying(settings, zeros, hidden, head, *inputs)


def _added(gradient: Array, primal: Array) -> Array:
    """A gradient summed over the devices on which what it belongs to is the same."""
    same = jax.typeof(gradient).mat.varying - jax.typeof(primal).mat.varying
    gradient = jax.lax.psum(gradient, tuple(same)) if same else gradient
    return gradient.astype(primal.dtype)


def _refuse_unchecked(settings: _Settings) -> None:
    axis = settings.axis_name
    if axis and axis not in jax.typeof(jax.lax.axis_index(axis)).mat.varying:
        raise InputError(
            f"axis_name={axis!r} has a gradient under shard_map's own checks alone: "
            "with check_vma=False nothing tells whether the results' cotangents are "
            "whole or each device's share, and the head's gradient could silently be "
            "a fraction of the truth; leave check_vma=True"
        )


def _accumulate(settings, carry, gradient, hidden, rows, start, fresh):
    """Add a block's gradient of the logits to those of hidden states and head."""
    to_hidden, to_head = carry
    to_hidden += jnp.einsum(
        "nv,vd->nd",
        gradient.astype(rows.dtype),
        rows,
        preferred_element_type=to_hidden.dtype,
    )
    new = jnp.einsum(
        "nv,nd->vd",
        gradient.astype(hidden.dtype),
        hidden,
        preferred_element_type=to_hidden.dtype,
    ).astype(to_head.dtype)
    old = jax.lax.dynamic_slice_in_dim(to_head, start, settings.block)
    # Each row of the head is made once; the overlap is there already.
    new = jnp.where(fresh[:, None], new, old)
    return to_hidden, jax.lax.dynamic_update_slice_in_dim(to_head, new, start, axis=0)


def _stats_backward(settings, residuals, cotangents):
    law, hidden, head, tokens, lse, lse_whole, entropy = residuals
    to_logp, to_entropy, to_lse, to_mass = cotangents
    local = tokens - _first(settings, head)
    # Of the normaliser: each taken log-probability has one, with a minus sign.
    normaliser = to_lse - jnp.sum(to_logp, axis=-1)
    if law.support is not None:
        normaliser += to_mass

    def pass_over(carry, step):
        to_hidden, to_head = carry
        start, rows, logits, fresh = _scores(settings, law, hidden, head, step)
        kept = _inside(settings, law, head, start)
        logp = jnp.where(kept, logits - lse[:, None], -jnp.inf)
        p = jnp.exp(logp)
        inside = jnp.where(p > 0, logp, 0)
        gradient = p * (
            normaliser[:, None] - to_entropy[:, None] * (inside + entropy[:, None])
        )
        place, here = _at(local, start, settings.block)
        index = jnp.arange(len(hidden))[:, None]
        gradient = gradient.at[index, place].add(jnp.where(here, to_logp, 0))
        if law.support is not None:
            gradient = jnp.where(kept, gradient, 0)
            whole = jnp.exp(logits - lse_whole[:, None])
            gradient -= to_mass[:, None] * whole
        gradient = jnp.where(fresh[None], gradient, 0)
        gradient = _slope(settings, law, logits, gradient)
        carry = (to_hidden, to_head)
        return _accumulate(settings, carry, gradient, hidden, rows, start, fresh), None

    zeros = _zeros(settings, hidden, head, law, tokens, cotangents)
    (to_hidden, to_head), _ = jax.lax.scan(pass_over, zeros, _steps(settings, head))
    return None, _added(to_hidden, hidden), _added(to_head, head), None


def _stats_differentiated(settings, *arrays):
    _refuse_unchecked(settings)
    return _stats_forward(settings, *arrays)


_stats.defvjp(_stats_differentiated, _stats_backward)
