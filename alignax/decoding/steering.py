"""A direction of the residual stream in which decisions were uncertain."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import as_float


def entropic_steering(
    states: Float[Array, "N d"], entropy: Float[Array, " N"], *, centred: bool = True
) -> Float[Array, " d"]:
    """``Σ_i H_i z_i / Σ_i H_i``, less the mean state: where decisions were uncertain.

    Added to the stream while a model writes, it makes decisions of higher entropy,
    which a temperature does not: that one flattens tokens, and a decision is made of
    many. Without centring most of it is what all states have in common.

    Args:
      states: ``[N, d]``, the stream behind one layer at the last token of each prompt.
      entropy: ``[N]`` nats or any other unit, not negative, of the decision behind each
        prompt.
      centred: subtract ``mean_i z_i``; then equal entropies give 0.

    Returns:
      ``[d]``, float32 or wider; 0 where every entropy is 0.

    Reference:
      Rahn, D'Oro and Bellemare, "Controlling large language model agents with entropic
      activation steering", arXiv 2406.00244; the weights are from its description, and
      its code was not found.

    Example:
      >>> states = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> print(entropic_steering(states, jnp.array([0.1, 0.9, 0.5])).round(4))
      [-0.2667  0.2667]
    """
    states, entropy = as_float(states), as_float(entropy)
    # The weights come first, so that equal ones cancel against the mean's.
    total = jnp.sum(entropy)
    known = total > 0
    weights = entropy / jnp.where(known, total, 1)
    if centred:
        weights = jnp.where(known, weights - 1 / len(states), 0)
    return jnp.sum(weights[:, None] * states, axis=0)
