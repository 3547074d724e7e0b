"""From logits to log-probabilities, in float32 whatever the model's dtype.

Logits of −inf are tokens outside the support of a truncated law: they have
log-probability −inf, and add nothing to an entropy or to a gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax.numerics import as_float


def log_softmax(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch V"]:
    """``z − log Σ_v exp z_v`` in float32 at least.

    Args:
      logits: ``[..., V]``, finite or −inf, at least one of each V finite.

    Returns:
      ``[..., V]`` in nats; −inf stays −inf.

    Example:
      >>> print(jnp.exp(log_softmax(jnp.array([0.0, 0.0, -jnp.inf]))))
      [0.5 0.5 0.]
    """
    return jax.nn.log_softmax(as_float(logits), axis=-1)


def token_logp(
    logits: Float[Array, "*batch V"], tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``log softmax(logits)[token]``: the log-probability of the taken token.

    Args:
      logits: ``[..., V]``, finite or −inf.
      tokens: ``[...]``; one outside ``[0, V)``, as padding may be, counts as the
        nearest that is inside.

    Returns:
      ``[...]`` in nats; −inf for a token outside the support.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> print(jnp.exp(token_logp(logits, jnp.array([2]))))
      [0.25]
    """
    logp = log_softmax(logits)
    tokens = jnp.clip(tokens, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def entropy(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """``−Σ_v p_v log p_v`` of ``p = softmax(logits)``.

    Args:
      logits: ``[..., V]``, finite or −inf.

    Returns:
      ``[...]`` in nats, between 0 and log V.

    Example:
      >>> print(entropy(jnp.zeros(4)))
      1.3863
    """
    logp = log_softmax(logits)
    inside = logp > -jnp.inf
    logp = jnp.where(inside, logp, 0)
    return jnp.sum(jnp.where(inside, -jnp.exp(logp) * logp, 0), axis=-1)
