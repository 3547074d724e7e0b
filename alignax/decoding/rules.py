"""Rules over the logits of several models: pure functions of ``[..., V]``."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences, logprobs, surrogates
from alignax._checks import Strength, not_negative
from alignax.types import InputError


def product(
    logits: Float[Array, "*batch V"],
    *experts: Float[Array, "*batch V"],
    weights: tuple[Strength, ...],
) -> Float[Array, "*batch V"]:
    """``log π + Σ_p w_p log π_p``: a product of a base and of weighted experts.

    Args:
      logits: the base's ``[..., V]``.
      experts: each ``[..., V]``.
      weights: one for each expert; a negative one makes it an anti-expert.

    Returns:
      ``[..., V]`` logits, float32 or wider; −inf where the base has −inf.

    Raises:
      InputError: another number of weights than of experts.

    Reference:
      Hallinan et al., "STEER", arXiv 2311.07167, eq. 1; Liu et al., "DExperts", arXiv
      2105.03023.

    Example:
      >>> import jax
      >>> base, expert = jnp.zeros(2), jnp.log(jnp.array([0.75, 0.25]))
      >>> print(jax.nn.softmax(product(base, expert, weights=(2.0,))))
      [0.9 0.1]
    """
    if len(weights) != len(experts) or not experts:
        raise InputError(
            f"weights must be one for each of the {len(experts)} experts, got "
            f"{len(weights)}"
        )
    return surrogates.product_of_experts_logits(
        logits, jnp.stack(experts), jnp.stack([jnp.asarray(w) for w in weights])
    )


def contrastive(
    logits: Float[Array, "*batch V"],
    logits_amateur: Float[Array, "*batch V"],
    *,
    strength: Strength,
    alpha: float = 0.1,
    gate: float = 0.0,
    deviation: float | None = None,
) -> Float[Array, "*batch V"]:
    """``(1 + η) log π − η log π_a`` among plausible tokens, where the two differ.

    A token is plausible when the expert gives it at least ``alpha`` times the mass of
    its likeliest one; the others are removed. Where the Jensen-Shannon divergence of
    the two laws is below ``gate``, the expert's logits are left as they are, without
    the mask: so much the amateur has to be wrong before it is contrasted with.

    They are left as well where the probabilities of the expert's tokens have a standard
    deviation above ``deviation``: it is sure. That is USCD's gate, whose amateur is the
    same model behind a prompt without its examples. The square of it is
    ``(Σ π² − 1/V) / (V − 1)``, so that a number is of one size of vocabulary; a certain
    token has 1/√V. The rest is not USCD's, which draws from ``(π − 0.7 π_a)_+``, of
    probabilities, among tokens of at least a share of 1/V.

    Args:
      logits: the expert's ``[..., V]``.
      logits_amateur: ``[..., V]``.
      strength: η, at least 0; 0 is the expert, truncated.
      alpha: in (0, 1]; as it tends to 0 nothing is removed, 1 leaves the likeliest.
      gate: nats, at least 0; 0 contrasts everywhere, log 2 and above nowhere.
      deviation: at least 0, of probabilities, with V − 1 below the sum of squares;
        None contrasts everywhere, 0.0035 is USCD's default and 0.005 what it takes for
        a vocabulary of 32 thousand.

    Returns:
      ``[..., V]`` logits, float32 or wider. Plausible tokens that the amateur rules
      out keep the expert's, as if the amateur were the expert there.

    Raises:
      InputError: a number is out of range.

    Reference:
      Li et al., "Contrastive decoding", arXiv 2210.15097, eq. 2 for the mask; O'Brien
      and Lewis, "Contrastive decoding improves reasoning in large language models",
      arXiv 2309.09117, §2, for this form; Wang et al., "USCD", arXiv 2409.05923, for
      the deviation, from its published code; the gate by the divergence is ours.

    Example:
      >>> import jax
      >>> expert, amateur = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.6, 0.2, 0.2]]))
      >>> law = contrastive(expert, amateur, strength=1.0, alpha=0.3)
      >>> print(jax.nn.softmax(law))
      [0.5714 0.4286 0. ]
    """
    not_negative(strength=strength, gate=gate, deviation=deviation or 0.0)
    if not 0 < alpha <= 1:
        raise InputError(f"alpha must be in (0, 1], got {alpha}")
    logp, amateur = (logprobs.log_softmax(x) for x in (logits, logits_amateur))
    top = jnp.max(logp, axis=-1, keepdims=True)
    plausible = logp >= top + jnp.log(jnp.asarray(alpha, logp.dtype))
    inside = jnp.isfinite(amateur) & jnp.isfinite(logp)
    gap = jnp.where(inside, logp, 0) - jnp.where(inside, amateur, 0)
    contrasted = jnp.where(plausible, logp + strength * gap, -jnp.inf)
    if deviation is not None:
        unsure = jnp.std(jnp.exp(logp), axis=-1, ddof=1, keepdims=True) <= deviation
        contrasted = jnp.where(unsure, contrasted, logp)
    if gate == 0:
        return contrasted
    apart = divergences.exact(divergences.jensen_shannon(), logp, amateur)
    return jnp.where((apart >= gate)[..., None], contrasted, logp)
