"""The law that tokens are drawn from: transforms of logits ``[..., V]``.

What a transform removes gets logit −inf; compose them, then ``log_softmax``
gives the law that is really sampled.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from alignax.numerics import as_float
from alignax.types import InputError

__all__ = [
    "checked_support",
    "inverse_cdf",
    "restricted",
    "support_bits",
    "tempered",
    "top_k",
    "top_p",
]


def tempered(
    logits: Float[Array, "*batch V"], *, temperature: float
) -> Float[Array, "*batch V"]:
    """Logits divided by the temperature.

    Args:
      logits: ``[..., V]``.
      temperature: positive; below 1 sharpens.

    Returns:
      ``[..., V]`` float32.

    Raises:
      InputError: ``temperature`` is not positive.

    Example:
      >>> print(tempered(jnp.array([1.0, 2.0]), temperature=0.5))
      [2. 4.]
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    return as_float(logits) / temperature


def top_k(logits: Float[Array, "*batch V"], *, k: int) -> Float[Array, "*batch V"]:
    """Keep the ``k`` likeliest tokens, and those tied with the last of them.

    Args:
      logits: ``[..., V]``.
      k: at least 1; at V and above nothing is removed.

    Returns:
      ``[..., V]`` float32, −inf where removed.

    Raises:
      InputError: ``k`` is less than 1.

    Reference:
      Fan et al., "Hierarchical Neural Story Generation", arXiv 1805.04833, §5.

    Example:
      >>> print(top_k(jnp.array([1.0, 3.0, 2.0]), k=2))
      [-inf   3.   2.]
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    logits = as_float(logits)
    if k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def top_p(logits: Float[Array, "*batch V"], *, p: float) -> Float[Array, "*batch V"]:
    """Keep the likeliest tokens until their mass reaches ``p`` (nucleus).

    A token stays when the tokens strictly before it in descending order hold
    less than ``p``; the likeliest one always stays, and so do ties with the last.

    Args:
      logits: ``[..., V]``.
      p: mass to keep, in (0, 1]; 1 removes nothing.

    Returns:
      ``[..., V]`` float32, −inf where removed.

    Raises:
      InputError: ``p`` is outside (0, 1].

    Reference:
      Holtzman et al., "The Curious Case of Neural Text Degeneration",
      arXiv 1904.09751, §3.1.

    Example:
      >>> print(top_p(jnp.log(jnp.array([0.5, 0.25, 0.25])), p=0.5) > -jnp.inf)
      [ True False False]
    """
    if not 0 < p <= 1:
        raise InputError(f"p must be in (0, 1], got {p}")
    logits = as_float(logits)
    if p == 1:
        return logits
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
    keys = _ordered(probabilities)

    def halve(_, bounds):
        """The lowest key whose strictly likelier tokens hold less than ``p``."""
        low, high = bounds
        middle = low + (high - low) // 2
        likelier = keys > middle[..., None]
        enough = jnp.sum(jnp.where(likelier, probabilities, 0), axis=-1) < p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # Of probabilities the bits below the sign tell all: no sort is needed.
    most = jnp.max(keys, axis=-1)
    bits = 8 * most.dtype.itemsize - 1
    low, _ = jax.lax.fori_loop(0, bits, halve, (jnp.zeros_like(most), most))
    return jnp.where(keys < low[..., None], -jnp.inf, logits)


def _ordered(x: Float[Array, "*s"]) -> Int[Array, "*s"]:
    """Integers in the same order as these numbers, none of which is negative."""
    return jax.lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}")


def support_bits(logits: Float[Array, "*batch V"]) -> UInt8[Array, "*batch bytes"]:
    """Which tokens could be drawn, one bit each: those whose logit is not −inf.

    A 32nd of the float32 logits' memory, and all that a scorer needs to restrict its
    own logits to the law that was sampled.

    Args:
      logits: ``[..., V]``, −inf where removed.

    Returns:
      ``[..., ⌈V / 8⌉]`` uint8; token v is bit ``v % 8`` of byte ``v // 8``.

    Example:
      >>> print(support_bits(jnp.array([0.0, -jnp.inf, 0.0])))
      [5]
    """
    return jnp.packbits(logits > -jnp.inf, axis=-1, bitorder="little")


def restricted(
    logits: Float[Array, "*batch V"], bits: UInt8[Array, "*batch bytes"]
) -> Float[Array, "*batch V"]:
    """Keep the tokens of a support that was taken down when another law was sampled.

    Args:
      logits: ``[..., V]``.
      bits: ``[..., ⌈V / 8⌉]`` of ``support_bits``. A row of zeros, which no law has
        and padding may, restricts nothing.

    Returns:
      ``[..., V]`` float32, −inf where removed.

    Raises:
      InputError: ``bits`` are not of V tokens.

    Example:
      >>> print(restricted(jnp.arange(3.0), jnp.array([5], jnp.uint8)))
      [  0. -inf   2.]
    """
    size = logits.shape[-1]
    bits = checked_support(bits, size)
    kept = jnp.unpackbits(bits, axis=-1, count=size, bitorder="little") > 0
    return jnp.where(kept, as_float(logits), -jnp.inf)


def checked_support(
    bits: UInt8[Array, "*batch bytes"], size: int
) -> UInt8[Array, "*batch bytes"]:
    """The bits of a support of ``size`` tokens, all of them where a row has none.

    Args:
      bits: ``[..., ⌈size / 8⌉]``.
      size: V.

    Returns:
      as ``bits``.

    Raises:
      InputError: ``bits`` are not of V tokens.

    Example:
      >>> print(checked_support(jnp.array([[5], [0]], jnp.uint8), 3)[:, 0])
      [  5 255]
    """
    if bits.shape[-1] != -(-size // 8):
        raise InputError(
            f"support must have a bit for each of the {size} tokens, packed in "
            f"{-(-size // 8)} bytes, got {bits.shape[-1]}"
        )
    some = jnp.any(bits > 0, axis=-1, keepdims=True)
    return jnp.where(some, bits, jnp.uint8(255))


# Columns of a block: a block's sums and a block itself are both short.
_BLOCK = 128


def inverse_cdf(
    uniforms: Float[Array, "*batch 2"], logits: Float[Array, "*batch V"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """One draw a row from ``softmax(logits)``, by the inverse of its distribution
    function on two levels: a block of 128 tokens, then one token of the block.

    One pass over the vocabulary and two uniforms a row take the place of a Gumbel
    variate for every token, which on CPUs costs more than the model's head.

    Args:
      uniforms: ``[..., 2]`` in [0, 1), independent.
      logits: ``[..., V]``, −inf for what is never drawn; one of each row is finite.

    Returns:
      tokens int32, and the row's ``logsumexp`` float32: the log-probability of a
      token is its logit less that. A float32 uniform is a multiple of 2^-23, which
      is the precision of a block's probability, and of a token's in its block.

    Reference:
      Devroye, "Non-Uniform Random Variate Generation", 1986, §III.2, with a guide
      table of two levels.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> print(*inverse_cdf(jnp.array([[0.0, 0.6]]), logits))
      [1] [0.]
    """
    logits = as_float(logits)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    mass = jnp.exp(logits - top)
    *batch, size = logits.shape
    mass = jnp.pad(mass, [(0, 0)] * len(batch) + [(0, -size % _BLOCK)])
    mass = mass.reshape(*batch, -1, _BLOCK)
    sums = jnp.sum(mass, axis=-1)
    block = _place(uniforms[..., 0], sums)
    inside = jnp.take_along_axis(mass, block[..., None, None], axis=-2)[..., 0, :]
    token = block * _BLOCK + _place(uniforms[..., 1], inside)
    return token, top[..., 0] + jnp.log(jnp.sum(sums, axis=-1))


def _place(
    uniform: Float[Array, "*batch"], mass: Float[Array, "*batch n"]
) -> Int[Array, "*batch"]:
    """The first place of positive mass whose cumulated mass is above ``uniform`` of
    the whole; the last one of positive mass where rounding leaves none."""
    cumulated = jnp.cumsum(mass, axis=-1)
    # A parallel sum's roundings may lift the cumulated mass where there is none.
    above = (cumulated > uniform[..., None] * cumulated[..., -1:]) & (mass > 0)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[..., ::-1] > 0, axis=-1)
    place = jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
    return place.astype(jnp.int32)
