"""The law that tokens are drawn from: transforms of logits ``[..., V]``.

What a transform removes gets logit −inf; compose them, then ``log_softmax``
gives the law that is really sampled.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError


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
    return logits.astype(jnp.float32) / temperature


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
    logits = logits.astype(jnp.float32)
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
    logits = logits.astype(jnp.float32)
    if p == 1:
        return logits
    descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < p, descending, jnp.inf)
    threshold = jnp.min(kept, axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)
