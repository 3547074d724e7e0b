"""More than two candidates: Plackett-Luce."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.numerics import as_float


def plackett_luce(
    rewards: Float[Array, "*batch K"], mask: Bool[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """``−log p`` of a ranking: the best of all first, then the best of the rest.

    ``−Σ_k log e^{r_k} / Σ_{j ≥ k} e^{r_j}``; with implicit rewards, listwise DPO; with
    two candidates the logistic link.

    Args:
      rewards: ``[..., K]``, the best candidate first, such as ``β log π/ρ``.
      mask: ``[..., K]``, True on candidates, for lists of different lengths.

    Returns:
      ``[...]``, 0 for lists of less than two.

    Reference:
      Rafailov et al., "Direct preference optimization", arXiv 2305.18290, eq. 20.

    Example:
      >>> candidates = jnp.array([True, True, True])
      >>> print(f"{plackett_luce(jnp.zeros(3), candidates):.4f}")  # log 3!
      1.7918
    """
    safe = as_float(jnp.where(mask, rewards, 0))
    # Finite, so that what is left out has a gradient of 0 and not NaN.
    ranked = jnp.where(mask, safe, -1e30)
    rest = jax.lax.cumlogsumexp(ranked, axis=ranked.ndim - 1, reverse=True)
    return jnp.sum(jnp.where(mask, rest - safe, 0), axis=-1)
