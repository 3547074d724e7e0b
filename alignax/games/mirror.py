"""Mirror steps: towards what wins, but not far from where one is.

``π⁺ = argmax_π η ⟨q, π⟩ − B(π‖π_t)``, with the Bregman divergence B of a convex
function: the negative entropy, or any f-divergence from the reference. ``q`` is a
``win_rate``; constants added to it change nothing.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences, logprobs, targets
from alignax._checks import share
from alignax.games.game import Strength, column, divergence_optimum
from alignax.numerics import as_float


def geometric_mixture(
    logp: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    *,
    mixture: Strength,
) -> Float[Array, "*batch N"]:
    """``π^{1−m} ρ^m / Z``: of outcomes, or of the next token given logits.

    Args:
      logp: ``[..., N]`` log-probabilities or logits of π.
      logp_ref: ``[..., N]`` of ρ.
      mixture: m in [0, 1]; 0 is π, 1 is ρ, exactly.

    Returns:
      ``[..., N]`` log-probabilities, float32 or wider; ``-inf`` where a law of
      positive weight has no mass.

    Raises:
      InputError: ``mixture`` is a number outside [0, 1].

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §6.

    Example:
      >>> p, q = jnp.log(jnp.array([[0.8, 0.2], [0.2, 0.8]]))
      >>> print(jnp.exp(geometric_mixture(p, q, mixture=0.5)))
      [0.5 0.5]
    """
    share(mixture=mixture)
    logp, logp_ref = as_float(logp), as_float(logp_ref)
    m = column(mixture, logp)

    def part(weight, logp):
        # A law without weight has no say, where it is -inf neither.
        logp = logprobs.log_softmax(logp)
        finite = logp > -jnp.inf
        inside = weight * jnp.where(finite, logp, 0)
        return jnp.where(finite | (weight == 0), inside, -jnp.inf)

    return logprobs.log_softmax(part(1 - m, logp) + part(m, logp_ref))


def entropic_step(
    logp: Float[Array, "*batch N"], payoff: Float[Array, "*batch N"], *, eta: Strength
) -> Float[Array, "*batch N"]:
    """``π⁺ ∝ π e^{ηq}``: mirror descent of the entropy, multiplicative weights.

    Args:
      logp: ``[..., N]``, where one is.
      payoff: ``[..., N]``, q.
      eta: step size.

    Returns:
      ``[..., N]``.

    Reference:
      Freund and Schapire, "Adaptive game playing using multiplicative weights", 1999.

    Example:
      >>> half, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([3.0, 1.0]))
      >>> print(jnp.exp(entropic_step(half, q, eta=1.0)))
      [0.75 0.25]
    """
    payoff = as_float(payoff)
    return targets.posterior(column(eta, payoff) * payoff, logp, beta=1.0)[0]


def proximal_step(
    logp: Float[Array, "*batch N"],
    payoff: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    *,
    eta: Strength,
    beta: Strength,
) -> Float[Array, "*batch N"]:
    """``argmax_π η (⟨q, π⟩ − β KL(π‖ρ)) − KL(π‖π_t)``.

    ``log π⁺ = (log π_t + ηβ log ρ + ηq) / (1 + ηβ) + c``: the regularisation is
    solved for, not linearised. Magnetic mirror descent, each half of mirror prox.

    Args:
      logp: ``[..., N]``, where one is.
      payoff: ``[..., N]``, q.
      logp_ref: ``[..., N]``, ρ.
      eta: step size.
      beta: strength of the regularisation.

    Returns:
      ``[..., N]``.

    Reference:
      Sokota et al., "A unified approach to reinforcement learning, quantal response
      equilibria, and two-player zero-sum games", arXiv 2206.05825.

    Example:
      >>> half, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([9.0, 1.0]))
      >>> print(jnp.exp(proximal_step(half, q, half, eta=1.0, beta=1.0)).round(4))
      [0.75 0.25]
    """
    pull = eta * beta
    anchor = geometric_mixture(logp, logp_ref, mixture=pull / (1 + pull))
    return entropic_step(anchor, payoff, eta=eta / (1 + pull))


def divergence_step(
    div: divergences.Divergence,
    logp: Float[Array, "*batch N"],
    payoff: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    *,
    eta: Strength,
    beta: Strength = 0.0,
) -> Float[Array, "*batch N"]:
    """The step in the geometry of an f-divergence from the reference.

    ``argmax_π η (⟨q, π⟩ − β D(π‖ρ)) − B(π‖π_t)``, B the Bregman divergence of
    ``D_f(·‖ρ)``: ``(1 + ηβ) f'(π⁺/ρ) = f'(π_t/ρ) + ηq − λ``. With the reverse KL it
    is ``proximal_step``.

    Args:
      div: D.
      logp: ``[..., N]``, where one is.
      payoff: ``[..., N]``, q.
      logp_ref: ``[..., N]``, ρ.
      eta: step size.
      beta: strength of the regularisation by the same divergence.

    Returns:
      ``[..., N]``; outcomes can lose all mass where ``f'(0)`` is finite, and come
      back.

    Reference:
      Beck and Teboulle, "Mirror descent and nonlinear projected subgradient methods
      for convex optimization", 2003.

    Example:
      >>> half, q = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.25, 0.0])
      >>> div = divergences.pearson()
      >>> print(jnp.exp(divergence_step(div, half, q, half, eta=4.0)).round(4))
      [0.625 0.375]
    """
    logp, payoff, logp_ref = map(as_float, (logp, payoff, logp_ref))
    alive = logp > -jnp.inf
    l = jnp.where(alive, logp, 0) - jnp.where(alive, logp_ref, 0)
    # Without mass, the slope is the least that gives none.
    dual = jnp.where(alive, div.f_prime(l), div.slopes[0])
    rewards = (dual + column(eta, payoff) * payoff) / (1 + column(eta * beta, payoff))
    return divergence_optimum(div, rewards, logp_ref, beta=1.0)[0]
