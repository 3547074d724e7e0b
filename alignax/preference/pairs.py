"""What a loss knows of a pair: whole-completion log-probabilities and lengths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax.numerics import as_float


class Pair(NamedTuple):
    """Preferred completions ``w`` and the others ``l``, each field ``[...]``.

    ``logp_*`` sum the policy's log-probabilities over a completion's tokens, ``ref_*``
    the reference's, ``length_*`` counts the tokens. Only ``logp_*`` has a gradient.
    """

    logp_w: Float[Array, "*batch"]
    logp_l: Float[Array, "*batch"]
    ref_w: Float[Array, "*batch"]
    ref_l: Float[Array, "*batch"]
    length_w: Float[Array, "*batch"]
    length_l: Float[Array, "*batch"]


def pair_from_tokens(
    logp_w: Float[Array, "*batch T"],
    logp_l: Float[Array, "*batch U"],
    ref_w: Float[Array, "*batch T"],
    ref_l: Float[Array, "*batch U"],
    mask_w: Bool[Array, "*batch T"],
    mask_l: Bool[Array, "*batch U"],
) -> Pair:
    """Token log-probabilities to the sums and lengths that losses take.

    Sums are in float32: in bfloat16 those of long completions are off by nats.

    Args:
      logp_w: ``[..., T]`` of the preferred completions' tokens, differentiated.
      logp_l: ``[..., U]`` of the others'.
      ref_w: ``[..., T]`` under the reference.
      ref_l: ``[..., U]``.
      mask_w: ``[..., T]``, True on the completion's tokens.
      mask_l: ``[..., U]``.

    Returns:
      ``Pair`` of ``[...]``.

    Example:
      >>> logp, mask = jnp.array([-1.0, -2.0]), jnp.array([True, True])
      >>> pair = pair_from_tokens(logp, logp, logp, logp, mask, mask)
      >>> print(pair.logp_w, pair.length_w)
      -3.0 2.0
    """

    def total(values, mask):
        return jnp.sum(reduce.masked(values, mask), axis=-1)

    return Pair(
        logp_w=total(logp_w, mask_w),
        logp_l=total(logp_l, mask_l),
        ref_w=total(ref_w, mask_w),
        ref_l=total(ref_l, mask_l),
        length_w=jnp.sum(mask_w, axis=-1, dtype=jnp.float32),
        length_l=jnp.sum(mask_l, axis=-1, dtype=jnp.float32),
    )


def log_ratios(pair: Pair) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``log π/ρ`` of the preferred completions and of the others.

    Args:
      pair: of ``[...]``.

    Returns:
      two ``[...]``, the reference held fixed.

    Example:
      >>> u, v = log_ratios(Pair(*jnp.array([-1.0, -2.0, -1.5, -1.0, 1.0, 1.0])))
      >>> print(u, v)
      0.5 -1.0
    """
    ref_w, ref_l = jax.lax.stop_gradient((pair.ref_w, pair.ref_l))
    u = as_float(pair.logp_w) - as_float(ref_w)
    v = as_float(pair.logp_l) - as_float(ref_l)
    return u, v


def average_logps(pair: Pair) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Log-probabilities a token of either completion, without a reference.

    Args:
      pair: of ``[...]``.

    Returns:
      two ``[...]``; of an empty completion 0.

    Example:
      >>> means = average_logps(Pair(*jnp.array([-4.0, -2.0, 0.0, 0.0, 4.0, 1.0])))
      >>> print(*means)
      -1.0 -2.0
    """
    return per_token(pair.logp_w, pair.length_w), per_token(pair.logp_l, pair.length_l)


def per_token(total: Array, length: Array) -> Array:
    """A sum over the length, which is at least 1: an empty completion sums to 0."""
    total, length = as_float(total), as_float(jax.lax.stop_gradient(length))
    return total / jnp.where(length < 1, 1, length)
