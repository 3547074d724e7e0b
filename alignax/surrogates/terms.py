"""Terms beside the clipped one: distillation on own tokens, exploration, pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import logprobs, numerics, reduce
from alignax.numerics import as_float
from alignax.types import InputError


def one_token_rollout_surrogate(
    key: Key[Array, ""],
    logits: Float[Array, "*B V"],
    labels: Int[Array, "*B"],
    *,
    samples: int = 256,
    temperature: float = 1.3,
    other: float = -0.1,
) -> Float[Array, "*B"]:
    """Supervised tokens as one-step roll-outs: ``−(1/K) Σ_k r_k log π(a_k)`` (OTR).

    ``a_k ~ softmax(z/κ)``; the reward is 1 for the label and ``other`` else.

    Args:
      key: of the draws.
      logits: ``[..., V]``, differentiated.
      labels: ``[...]`` tokens of the data.
      samples: K, positive.
      temperature: κ, positive; other than 1 the draws are not the policy's.
      other: the reward of any other token.

    Returns:
      ``[...]`` float32 losses.

    Raises:
      InputError: ``samples`` or ``temperature`` is not positive.

    Reference:
      Ming et al., "One-token rollout", arXiv 2509.26313, eq. 5.

    Example:
      >>> key, logits, labels = jax.random.key(0), jnp.zeros((1, 2)), jnp.array([1])
      >>> one_token_rollout_surrogate(key, logits, labels).shape
      (1,)
    """
    if samples < 1 or not temperature > 0:
        raise InputError(
            f"samples and temperature must be positive, got {samples}, {temperature}"
        )
    logp = logprobs.log_softmax(logits)
    scaled = jax.lax.stop_gradient(as_float(logits)) / temperature
    # By the inverse of the distribution: no noise for every token of every draw.
    mass = jnp.cumsum(jax.nn.softmax(scaled), axis=-1)
    uniform = jax.random.uniform(key, (*labels.shape, samples), mass.dtype)
    size = mass.shape[-1]
    drawn = jax.vmap(lambda c, u: jnp.searchsorted(c, u * c[-1], side="right"))(
        mass.reshape(-1, size), uniform.reshape(-1, samples)
    )
    drawn = jnp.minimum(drawn, size - 1).reshape(*labels.shape, samples)
    rewards = jnp.where(drawn == labels[..., None], 1.0, other)
    return -jnp.mean(rewards * jnp.take_along_axis(logp, drawn, axis=-1), axis=-1)


def forward_exploration_surrogate(
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    share: Float[Array, "*B"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """Forward KL to a flattened reference, on the policy's own tokens (RAPO).

    Value ``u log u − u + 1`` with ``u = π_ref^φ / π``; the reference stays
    unnormalised, so the target is the generalised divergence
    ``Σ q log(q/π) − q + π`` for ``q = π_ref^φ``. φ = 1 is KL(π_ref‖π), φ = 0 that to
    the uniform law.

    Value: unbiased for the generalised divergence of the token's law, given the
      prefix, for tokens from the policy.
    Gradient: of the same, unbiased: coefficient ``u − 1`` on the score, where the
      derivative of the value alone, without the score's part, is another vector.

    Args:
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]``; no gradient.
      share: ``[...]``, φ in [0, 1] of each completion, rising with its reward.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Deng et al., "Unlocking reasoning capabilities in LLMs via reinforcement
      learning exploration", arXiv 2510.03865, eqs. 6-8.

    Example:
      >>> logp, mask = jnp.log(jnp.array([[0.5]])), jnp.array([[True]])
      >>> print(forward_exploration_surrogate(logp, logp, jnp.ones(1), mask))
      [[0.]]
    """
    logp = reduce.masked(logp, mask)
    fixed = jax.lax.stop_gradient(logp)
    share = jax.lax.stop_gradient(as_float(share))[..., None]
    log_u = share * jax.lax.stop_gradient(reduce.masked(logp_ref, mask)) - fixed
    u = numerics.exp(log_u)
    value = u * log_u - u + 1
    return jnp.where(mask, value + (1 - u) * (logp - fixed), 0)


def product_of_experts_logits(
    logits: Float[Array, "*B V"],
    experts: Float[Array, "P *B V"],
    weights: Float[Array, " P"],
) -> Float[Array, "*B V"]:
    """``log π + Σ_p w_p log π_p``, to be sampled: expert-guided data (STEER).

    Weights of opposite signs for an expert and its anti-expert move along what
    tells them apart.

    Args:
      logits: ``[..., V]`` of the base.
      experts: ``[P, ..., V]`` logits.
      weights: ``[P]``, of either sign.

    Returns:
      ``[..., V]`` float32 logits; −inf where the base has −inf.

    Reference:
      Hallinan et al., "STEER: Unified style transfer with expert reinforcement",
      arXiv 2311.07167, eq. 1; Liu et al., "DExperts", arXiv 2105.03023.

    Example:
      >>> base, expert = jnp.zeros(2), jnp.log(jnp.array([[0.75, 0.25]]))
      >>> logits = product_of_experts_logits(base, expert, jnp.array([2.0]))
      >>> print(jax.nn.softmax(logits))
      [0.9 0.1]
    """
    base = logprobs.log_softmax(logits)
    inside = base > -jnp.inf
    logs = jnp.where(inside[None], logprobs.log_softmax(experts), 0)
    mixed = jnp.einsum("p,p...->...", as_float(weights), logs)
    return jnp.where(inside, base + mixed, -jnp.inf)
