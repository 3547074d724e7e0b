"""Trust regions by a divergence, where PPO has a bound on the ratio.

A *statistic* ``[..., T]`` says how far each token's law has moved from the one that
sampled it, a *rule* what becomes of the tokens beyond the bound. Any statistic goes
with any rule, and any divergence of the core with both:

- statistics: ``binary_divergence`` (of the taken token alone), ``top_k_divergence``,
  ``completion_divergence``, ``divergences.exact`` over the vocabulary.
- rules: ``divergence_masked_surrogate`` drops a token, ``penalised_ratio_surrogate``
  pulls it back.

``budgets`` has bounds that the batch sets itself.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from alignax import divergences, numerics, reduce
from alignax.divergences import Divergence
from alignax.surrogates.ratios import geometric_log_ratio
from alignax.surrogates.rules import clean, ratio_of
from alignax.types import InputError


def binary_divergence(
    div: Divergence,
    logp: Float[Array, "*B T"],
    logp_old: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``D_f`` of "this token or another": Bernoulli(π(y)) from Bernoulli(π_old(y)).

    Never above the divergence of the whole laws (data processing), and needs nothing
    but the taken token. Total variation: ``|π − π_old|``; the paper's KL, of the
    sampler from the policy, is ``forward_kl()``.

    Args:
      div: any divergence, of the policy from the sampler.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_old: ``[..., T]`` under the law that sampled them; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32 in nats, not negative, zero where masked.

    Reference:
      Qi et al., "Rethinking the trust region in LLM reinforcement learning" (DPPO),
      arXiv 2602.04879, eqs. 13-14.

    Example:
      >>> from alignax import divergences as dv
      >>> new, old = jnp.log(jnp.array([0.75])), jnp.log(jnp.array([0.5]))
      >>> print(binary_divergence(dv.total_variation(), new, old, jnp.array([True])))
      [0.25]
    """
    return top_k_divergence(div, logp[..., None], logp_old[..., None], mask)


def top_k_divergence(
    div: Divergence,
    logp: Float[Array, "*B T N"],
    logp_old: Float[Array, "*B T N"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``D_f`` over N named tokens and one bucket for all others.

    Rises with N to the divergence of the whole laws. The tokens are the same under
    both: the sampler's N likeliest, say.

    Args:
      div: any divergence, of the policy from the sampler.
      logp: ``[..., T, N]`` of N different tokens, differentiated; their probabilities
        sum to 1 at the most. ``-inf`` where there is no token.
      logp_old: ``[..., T, N]`` of the same tokens under the sampler; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32 in nats, not negative, zero where masked.

    Reference:
      Qi et al., arXiv 2602.04879, top-k approximation (TRL: N = 20).

    Example:
      >>> from alignax import divergences as dv
      >>> new, old = jnp.log(jnp.array([[[0.5, 0.3]], [[0.4, 0.2]]]))
      >>> print(top_k_divergence(dv.total_variation(), new, old, jnp.array([True])))
      [0.2]
    """
    law, law_old = (_with_rest(x, mask) for x in (logp, logp_old))
    value = divergences.exact(div, law, jax.lax.stop_gradient(law_old))
    return jnp.where(mask, value, 0)


def _with_rest(
    logps: Float[Array, "*B T N"], mask: Bool[Array, "*B T"]
) -> Float[Array, "*B T M"]:
    """The law of the named tokens and the rest, uniform where masked."""
    uniform = -math.log(logps.shape[-1] + 1)
    logps = jnp.where(mask[..., None], numerics.as_float(logps), uniform)
    total = jax.nn.logsumexp(logps, axis=-1, keepdims=True)
    # What is left of 1 is known to its rounding only.
    rest = jnp.maximum(-jnp.expm1(total), jnp.finfo(total.dtype).eps)
    return jnp.concatenate([logps, jnp.log(rest)], axis=-1)


def completion_divergence(
    div: Divergence,
    log_ratios: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """The completion's mean ``f(r)``, at each of its tokens.

    Value: over the sampler's completions of one length, unbiased for the mean over
      steps of ``D_f(π(·|s)‖μ(·|s))``; T times it bounds the divergence of the
      completions for total variation, and is it for KL(μ‖π).
    Gradient: none, the result is stopped.

    Args:
      div: any divergence, of the policy from the sampler.
      log_ratios: ``[..., T]`` of tokens, the policy's over the sampler's.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32 in nats, zero where masked.

    Reference:
      Honari et al., "Align and filter" (VACO), arXiv 2603.01365, as in open-instruct,
      whose ``|r − 1|`` is twice the total variation.

    Example:
      >>> from alignax import divergences as dv
      >>> ratios, mask = jnp.log(jnp.array([1.5, 1.0])), jnp.array([True, True])
      >>> print(completion_divergence(dv.total_variation(), ratios, mask))
      [0.125 0.125]
    """
    values = div.f(jax.lax.stop_gradient(reduce.masked(log_ratios, mask)))
    return geometric_log_ratio(values, mask)


def diverging(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Bool[Array, "*B T"]:
    """Tokens whose update would lead further away from the sampler: ``A d > 0``.

    Args:
      log_ratios: ``[..., T]``; no gradient.
      advantages: ``[..., T]``.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]``, False where masked.

    Example:
      >>> ratios, mask = jnp.array([0.1, -0.1]), jnp.array([True, True])
      >>> print(diverging(ratios, jnp.ones(2), mask))
      [ True False]
    """
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    return mask & (jnp.sign(log_ratios) * jnp.sign(advantages) > 0)


def divergence_masked_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    statistic: Float[Array, "*B T"],
    *,
    low: ArrayLike,
    high: ArrayLike,
    cap: float = math.inf,
) -> Float[Array, "*B T"]:
    """PPO with a divergence for its bound (DPPO): ``−sg(min(r, cap) M) A log π``.

    M is 0 where the update leads away from the sampler and ``statistic`` exceeds the
    bound of its side. A rare token may double, a likely one may not fall by a third.
    Coefficient: ``c = min(r, cap)·A·M``.

    Args:
      log_ratios: ``[..., T]`` of tokens, the policy's over the sampler's (not over a
        recomputed old policy), differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      statistic: ``[..., T]``, how far each law has moved; no gradient.
      low: the largest statistic where A < 0, not negative, or ``[..., T]``.
      high: the same where A > 0. The paper: .15 for total variation, .05 for KL;
        prime-rl .2.
      cap: the largest ratio, positive; none in the paper's eq. 11, 10 in its code, 20
        in TRL.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: a bound is negative or ``cap`` not positive.

    Reference:
      Qi et al., "Rethinking the trust region in LLM reinforcement learning" (DPPO),
      arXiv 2602.04879, eqs. 11-12.

    Example:
      >>> ratios, mask = jnp.log(jnp.array([1.5, 1.5])), jnp.array([True, True])
      >>> moved, bounds = jnp.array([0.3, 0.1]), {"low": 0.2, "high": 0.2}
      >>> rule = lambda x: divergence_masked_surrogate(x, x, mask, moved, **bounds)
      >>> print(jax.grad(lambda x: rule(x).sum())(ratios))
      [0. -0.6082]
    """
    for name, bound in {"low": low, "high": high}.items():
        if isinstance(bound, int | float) and bound < 0:
            raise InputError(f"{name} must not be negative, got {bound}")
    if not cap > 0:
        raise InputError(f"cap must be positive, got {cap}")
    away = diverging(log_ratios, advantages, mask)
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    beyond = reduce.masked(statistic, mask) > jnp.where(advantages > 0, high, low)
    weights = jnp.where(away & beyond, 0, jnp.minimum(ratio_of(log_ratios), cap))
    return -jax.lax.stop_gradient(weights) * advantages * log_ratios


def penalised_ratio_surrogate(
    log_ratios: Float[Array, "*B T"],
    advantages: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    weights: Float[Array, "*B T"],
    *,
    div: Divergence,
    bound: float,
) -> Float[Array, "*B T"]:
    """``−rA + |A| w f(r) / (f''(1) ε)``: SPO, and with w = π_old DRPO.

    The penalty meets the advantage where ``w f'(r) = ±f''(1) ε``, and pulls back
    beyond. Pearson's f is the papers' ``(r − 1)² / 2ε``: SPO ends at ``|r − 1| = ε``,
    DRPO at ``|π − π_old| = ε``; every other f agrees with them at small steps.
    Coefficient: ``c = rA (1 − sign(A) w f'(r) / (f''(1) ε))``.

    Args:
      log_ratios: ``[..., T]`` of tokens, the policy's over the sampler's,
        differentiated.
      advantages: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      weights: ``[..., T]``, w, not negative; no gradient. Ones for SPO, the taken
        token's probability under the sampler for DRPO.
      div: a divergence with a curvature; ``pearson()`` is the papers'.
      bound: ε, positive; 12.5 in DRPO's experiments, for both.

    Returns:
      ``[..., T]`` float32 token losses, zero where masked.

    Raises:
      InputError: ``bound`` is not positive, or f has a kink at 1.

    Reference:
      Yao et al., "Rethinking the divergence regularization in LLM RL" (DRPO), arXiv
      2606.09821, eq. 8; Xie et al., "Simple policy optimization" (SPO), arXiv
      2401.16025.

    Example:
      >>> from alignax import divergences as dv
      >>> half, one, mask = jnp.array([0.5]), jnp.ones(1), jnp.array([True])
      >>> loss = lambda x: penalised_ratio_surrogate(
      ...     x, one, mask, half, div=dv.pearson(), bound=0.25).sum()
      >>> print(jax.grad(loss)(jnp.log(jnp.array([1.5]))))
      [0.]
    """
    if not bound > 0:
        raise InputError(f"bound must be positive, got {bound}")
    if not math.isfinite(div.curvature):
        raise InputError(f"div must have a second derivative at ratio 1, got {div}")
    log_ratios, advantages = clean(log_ratios, advantages, mask)
    weights = jax.lax.stop_gradient(reduce.masked(weights, mask))
    strength = jnp.abs(advantages) * weights / (div.curvature * bound)
    return jnp.where(
        mask, -ratio_of(log_ratios) * advantages + strength * div.f(log_ratios), 0
    )
