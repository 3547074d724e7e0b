"""The law of given completions that likelihood is trained on in a reward's stead."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.numerics import as_float
from alignax.targets.laws import posterior


def exponentiated_payoff(
    rewards: Float[Array, "*batch K"],
    where: Bool[Array, "*batch K"] | None = None,
    *,
    temperature: float,
) -> Float[Array, "*batch K"]:
    """``q(y) ∝ e^{r(y)/τ}`` over the K completions that are there (RAML).

    The ``posterior`` of a uniform prior. Likelihood of samples of q descends
    ``KL(q‖π)``, where the optimum of ``E_π r + τ H(π)`` over the same completions
    descends ``KL(π‖q)``: both have their least at q.

    Args:
      rewards: ``[..., K]``.
      where: True at the completions that exist, default all.
      temperature: τ, positive; to 0 the best alone, to infinity all alike.

    Returns:
      ``q [..., K]``, float32 or wider; 0 where there is none, and everywhere where
      there is not a single one.

    Raises:
      InputError: ``temperature`` is not positive.

    Reference:
      Norouzi et al., "Reward Augmented Maximum Likelihood for Neural Structured
      Prediction", arXiv 1609.00150.

    Example:
      >>> print(exponentiated_payoff(jnp.array([1.0, 0.0]), temperature=0.5).round(4))
      [0.8808 0.1192]
    """
    rewards = as_float(rewards)
    if where is None:
        where = jnp.ones(rewards.shape, bool)
    prior = jnp.where(where, 0, -jnp.inf).astype(rewards.dtype)
    rewards = jnp.where(where, rewards, 0)
    log_law, _ = posterior(rewards, prior, beta=temperature)
    return jnp.where(where, jnp.exp(jnp.where(where, log_law, 0)), 0)
