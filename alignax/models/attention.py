"""Softmax attention over keys just made, over a cache, and over a shared prefix."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.types import InputError


class Prefix(NamedTuple):
    """Keys and values that come before all of the queries; row i of N is that of the
    B / N adjacent rows from i · B / N on."""

    keys: Float[Array, "N m P h"]
    values: Float[Array, "N m P h"]
    mask: Bool[Array, "N Q P"]
    """Q is 1, or counts the queries of a row of N: those of the first of its rows of
    B, then of the second ..."""


def attend(
    q: Float[Array, "B S n h"],
    keys: Float[Array, "B m L h"],
    values: Float[Array, "B m L h"],
    mask: Bool[Array, "B S L"],
    *,
    prefix: Prefix | None = None,
    scale: float,
    soft_cap: float | None = None,
    kernel: str = "xla",
) -> Float[Array, "B S n h"]:
    """Grouped-query attention to heads-first keys, and to those of a shared prefix.

    The two softmaxes are joined by their normalisers, so that a prefix is neither
    copied nor repeated: all of its queries meet it in one product.

    Args:
      q: queries; head i of n attends to head ``i // (n / m)`` of m.
      keys: a cache's layout, in which no product needs a transposed copy.
      values: as ``keys``.
      mask: True where a query may look.
      prefix: keys before all of these.
      scale: of the products.
      soft_cap: scaled products z become ``soft_cap · tanh(z / soft_cap)``.
      kernel: ``xla``; or ``cudnn``, for more than one query.

    Returns:
      the mixed values, in ``q``'s dtype; softmax in float32.

    Raises:
      InputError: ``cudnn`` with a prefix.

    Reference:
      Juravsky et al., "Hydragen", arXiv 2402.05099, eq. 3-5, for the joined softmax;
      Liu et al., "Prefix Grouper", arXiv 2506.05433, for training with it.
    """
    batch, length, heads, width = q.shape
    if kernel == "cudnn" and length > 1:
        if prefix is not None or soft_cap is not None:
            raise InputError(
                "attention must be xla where rows share a prefix or scores are capped, "
                "got cudnn"
            )
        return fused(q, keys, values, mask, scale=scale, kernel="cudnn")
    groups = keys.shape[1]
    per = heads // groups

    def scores(q, keys, mask):
        z = jnp.einsum("bmqh,bmlh->bmql", q, keys, preferred_element_type=jnp.float32)
        z = z.astype(jnp.float32) * scale
        if soft_cap is not None:
            z = soft_cap * jnp.tanh(z / soft_cap)
        # Finite: a row that may look nowhere gives no NaN.
        return jnp.where(mask, z, 0.7 * jnp.finfo(jnp.float32).min)

    def mixed(z, top, values):
        mass = jnp.exp(z - top[..., None])
        mix = jnp.einsum(
            "bmql,bmlh->bmqh",
            mass.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        return jnp.sum(mass, axis=-1), mix.astype(jnp.float32)

    # [B, m, per · S, h]: a group's heads and positions meet its keys in one product.
    split = q.reshape(batch, length, groups, per, width)
    own_q = jnp.moveaxis(split, 1, 3).reshape(batch, groups, per * length, width)
    own_mask = jnp.tile(mask, (1, per, 1))[:, None]
    z = scores(own_q, keys, own_mask)
    top = jnp.max(z, axis=-1)
    if prefix is None:
        total, mix = mixed(z, jax.lax.stop_gradient(top), values)
    else:
        rows = len(prefix.keys)
        shape = (rows, batch // rows, groups, per * length)

        def together(x):
            """From rows of B to rows of N: [N, m, K · per · S, ...]."""
            x = jnp.moveaxis(x.reshape(*shape, *x.shape[3:]), 1, 2)
            return x.reshape(rows, groups, -1, *x.shape[4:])

        def apart(x):
            x = x.reshape(rows, groups, batch // rows, per * length, *x.shape[3:])
            return jnp.moveaxis(x, 2, 1).reshape(batch, *shape[2:], *x.shape[4:])

        prefix_mask = prefix.mask[:, None]
        if prefix.mask.shape[1] > 1:
            every = prefix.mask.reshape(rows, batch // rows, 1, length, -1)
            every = jnp.tile(every, (1, 1, per, 1, 1))
            prefix_mask = every.reshape(rows, 1, -1, prefix.mask.shape[-1])
        far = scores(together(own_q), prefix.keys, prefix_mask)
        top = jnp.maximum(top, apart(jnp.max(far, axis=-1)))
        top = jax.lax.stop_gradient(top)
        total, mix = mixed(z, top, values)
        far_total, far_mix = mixed(far, together(top), prefix.values)
        total, mix = total + apart(far_total), mix + apart(far_mix)
    mix = (mix / total[..., None]).reshape(batch, groups, per, length, width)
    return jnp.moveaxis(mix, 3, 1).reshape(q.shape).astype(q.dtype)


def fused(
    q: Float[Array, "B S n h"],
    keys: Float[Array, "B m L h"],
    values: Float[Array, "B m L h"],
    mask: Bool[Array, "B S L"],
    *,
    scale: float,
    kernel: Literal["xla", "cudnn"],
) -> Float[Array, "B S n h"]:
    """The same without a prefix, by one of JAX's kernels; it raises where there is
    none for the device, and takes no other in its place.

    Args:
      q: queries.
      keys: heads first.
      values: as ``keys``.
      mask: True where a query may look.
      scale: of the products.
      kernel: an ``implementation`` of ``jax.nn.dot_product_attention``.

    Returns:
      the mixed values, in ``q``'s dtype.
    """
    return jax.nn.dot_product_attention(
        q,
        jnp.swapaxes(keys, 1, 2).astype(q.dtype),
        jnp.swapaxes(values, 1, 2).astype(q.dtype),
        mask=mask[:, None],
        scale=scale,
        implementation=kernel,
    )
