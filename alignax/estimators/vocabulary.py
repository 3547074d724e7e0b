"""KL(π‖ρ) summed over the vocabulary at each sampled prefix (Rao–Blackwell).

``KL_t = Σ_v π(v|y_<t) log π(v|y_<t)/ρ(v|y_<t)`` replaces the taken token's log-ratio
by its expectation given the prefix: what is left to vary is the prefix. Where
the vocabulary is too large, the k likeliest tokens are summed and the tail is
dropped, put in one bucket, or sampled.

Functions without ``surrogate`` give token values whose own gradient is myopic.
With it, the score of the prefixes is added and the gradient is the sequence's.
Other divergences: ``sequence_surrogate(divergences.exact(…), logp, mask)``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import logprobs
from alignax.divergences import reverse_kl
from alignax.divergences.vocabulary import perspective
from alignax.estimators import _common, sequence
from alignax.types import InputError


def rao_blackwell(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``KL_t``, exact given the prefix.

    Value: unbiased for the sequence KL(π‖ρ) when summed over tokens, never
      negative. The noise of each token given its prefix is gone, which almost
      always lowers the variance of the sum; that is no theorem for sequences.
    Gradient: of the token-myopic KL(π‖ρ), with no noise but that of the prefixes;
      not of the sequence KL: see ``rao_blackwell_surrogate``.

    Args:
      logits: ``[..., T, V]`` at the policy's own prefixes; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked; +inf where the policy leaves the
      reference's support, the gradient there being that of the remaining terms.

    Reference:
      Amini, Vieira and Cotterell, "Better Estimation of the KL Divergence Between
      Language Models", arXiv 2504.10637.

    Example:
      >>> logits = jnp.array([[0.0, -jnp.inf]])
      >>> print(rao_blackwell(logits, jnp.zeros((1, 2)), jnp.array([True])).round(3))
      [0.693]
    """
    return jnp.sum(_divergence_terms(*_log_laws(logits, logits_ref, mask)), axis=-1)


def rao_blackwell_surrogate(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``KL_t`` with the score of the prefixes: exact, and noisy in the prefixes alone.

    ``∇ = Σ_t (∇KL_t + ∇log π_t · (Σ_{n > t} KL_n − baseline_t))``.

    Value: ``KL_t``, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the sequence KL(π‖ρ), unbiased, for tokens from the policy.

    Args:
      logits: ``[..., T, V]``, differentiated; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      tokens: ``[..., T]``, the taken ones.
      mask: ``[..., T]``, True on generated tokens.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Amini, Vieira and Cotterell, "Better Estimation of the KL Divergence Between
      Language Models", arXiv 2504.10637.

    Example:
      >>> logits, tokens = jnp.zeros((2, 2)), jnp.array([0, 1])
      >>> mask = jnp.array([True, True])
      >>> print(rao_blackwell_surrogate(logits, logits, tokens, mask))
      [0. 0.]
    """
    loss = rao_blackwell(logits, logits_ref, mask)
    logp = _taken(logits, tokens, mask)
    return sequence.sequence_surrogate(loss, logp, mask, baseline=baseline)


def myopic_rao_blackwell_surrogate(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """``KL_t`` differentiated as it stands: "full KL in the loss", distillation.

    Value: ``KL_t``, unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the token-myopic KL(π‖ρ), unbiased, for prefixes from the policy.
      Summing over the vocabulary does not make it the sequence KL's.

    Args:
      logits: ``[..., T, V]``, differentiated; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Reference:
      Agarwal et al., "On-Policy Distillation of Language Models",
      arXiv 2306.13649 (reverse KL on the student's own samples).

    Example:
      >>> logits, mask = jnp.zeros((1, 2)), jnp.array([True])
      >>> print(myopic_rao_blackwell_surrogate(logits, logits, mask))
      [0.]
    """
    return rao_blackwell(logits, logits_ref, mask)


def top_k_partial(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
) -> Float[Array, "*B T"]:
    """The terms of the policy's k likeliest tokens, the tail dropped.

    Value: biased for KL(π‖ρ), to either side: the dropped terms have no sign. The
      other two ``top_k`` functions cost the same and say what they give.
    Gradient: of the part, token-myopic; of no divergence. It goes on pulling
      when the policies agree.

    Args:
      logits: ``[..., T, V]`` at the policy's own prefixes; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are summed as well.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Example:
      >>> law, ref = jnp.log(jnp.array([[[0.5, 0.3, 0.2]], [[0.25, 0.25, 0.5]]]))
      >>> print(top_k_partial(law, ref, jnp.array([True]), k=1).round(3))
      [0.347]
    """
    logp, logp_ref = _log_laws(logits, logits_ref, mask)
    kept = _likeliest(logp, k)
    return jnp.sum(jnp.where(kept, _terms(logp, logp_ref), 0), axis=-1)


def top_k_bucket(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
) -> Float[Array, "*B T"]:
    """KL between the laws of "which of the k likeliest tokens, or another".

    ``Σ_{v ∈ top} π_v log π_v/ρ_v + π_tail log π_tail/ρ_tail``.

    Value: a lower bound of ``KL_t`` (data processing), never negative; equal to it
      for k = V, and zero where the policies agree.
    Gradient: of the bound, token-myopic, with no noise but that of the prefixes.

    Args:
      logits: ``[..., T, V]`` at the policy's own prefixes; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are kept as well.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Example:
      >>> law, ref = jnp.log(jnp.array([[[0.5, 0.3, 0.2]], [[0.25, 0.25, 0.5]]]))
      >>> print(top_k_bucket(law, ref, jnp.array([True]), k=1).round(2))
      [0.14]
    """
    logp, logp_ref = _log_laws(logits, logits_ref, mask)
    kept = _likeliest(logp, k)
    terms = _divergence_terms(logp, logp_ref)
    head = jnp.sum(jnp.where(kept, terms, 0), axis=-1)
    tail = _divergence_terms(_log_tail(logp, kept), _log_tail(logp_ref, kept))
    return head + tail


def top_k_sampled_tail(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
) -> Float[Array, "*B T"]:
    """The terms of the k likeliest tokens, and k1 where another was taken.

    ``Σ_{v ∈ top} π_v l_v + 1{y ∉ top} l_y``: the tail corrected by its own sample.

    Value: unbiased for ``KL_t``, and for the sequence KL(π‖ρ) when summed over
      tokens. Its variance is k1's less ``Var X − 2 H T``, with ``X = l`` in the top
      and 0 elsewhere, ``H`` and ``T`` the shares of top and tail in ``KL_t``: less than
      k1's where they differ in sign, more where two large terms of one are parted.
    Gradient: of the token-myopic KL(π‖ρ), unbiased, for tokens from the policy.

    Args:
      logits: ``[..., T, V]`` at the policy's own prefixes; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      tokens: ``[..., T]``, the taken ones.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are summed as well.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Reference:
      Liu et al., "Rao-Blackwellized Stochastic Gradients for Discrete
      Distributions", arXiv 1810.04777 (the sum-and-sample form).

    Example:
      >>> logits, mask = jnp.zeros((1, 2)), jnp.array([True])
      >>> print(top_k_sampled_tail(logits, logits, jnp.array([1]), mask, k=1))
      [0.]
    """
    logp, logp_ref = _log_laws(logits, logits_ref, mask)
    kept = _likeliest(logp, k)
    covered = logp_ref > -jnp.inf
    inside = kept & (logp > -jnp.inf)
    both = inside & covered
    safe = jnp.where(both, logp, 0)
    ratio = jax.lax.stop_gradient(safe - jnp.where(both, logp_ref, 0))
    # ∇Σπl = Σπl∇log π over the whole vocabulary: l is constant in both parts.
    head = jnp.sum(jnp.where(both, jnp.exp(safe) * ratio, 0), axis=-1)
    in_tail = mask & ~_take(kept, tokens)
    counted = in_tail & _take(covered, tokens)
    taken = jnp.where(counted, _take(logp, tokens), 0)
    l = taken - jnp.where(counted, _take(logp_ref, tokens), 0)
    off = jnp.any(inside & ~covered, axis=-1) | (in_tail & ~counted)
    return head + _common.attach(l, l, taken) + jnp.where(off, jnp.inf, 0)


def top_k_bucket_surrogate(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``top_k_bucket`` with the score of the prefixes.

    Value: summed over tokens unbiased for a lower bound of the sequence KL(π‖ρ).
    Gradient: of that lower bound ``E_{y~π} Σ_t bucket_t``, unbiased, for tokens from
      the policy.

    Args:
      logits: ``[..., T, V]``, differentiated; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      tokens: ``[..., T]``, the taken ones.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are kept as well.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Example:
      >>> logits, mask = jnp.zeros((1, 2)), jnp.array([True])
      >>> print(top_k_bucket_surrogate(logits, logits, jnp.array([1]), mask, k=1))
      [0.]
    """
    loss = top_k_bucket(logits, logits_ref, mask, k=k)
    logp = _taken(logits, tokens, mask)
    return sequence.sequence_surrogate(loss, logp, mask, baseline=baseline)


def top_k_sampled_tail_surrogate(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    k: int,
    baseline: Float[Array, "*#B #T"] | None = None,
) -> Float[Array, "*B T"]:
    """``top_k_sampled_tail`` with the score of the prefixes.

    Value: unbiased for the sequence KL(π‖ρ) when summed over tokens.
    Gradient: of the sequence KL(π‖ρ), unbiased, for tokens from the policy.

    Args:
      logits: ``[..., T, V]``, differentiated; −inf is probability 0.
      logits_ref: ``[..., T, V]`` of the reference; no gradient.
      tokens: ``[..., T]``, the taken ones.
      mask: ``[..., T]``, True on generated tokens.
      k: at least 1; tokens tied with the last are summed as well.
      baseline: ``[..., T]``, or 1 in place of any axis; a function of what comes
        before the token. No gradient.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``k`` is less than 1.

    Example:
      >>> logits, mask = jnp.zeros((1, 2)), jnp.array([True])
      >>> print(top_k_sampled_tail_surrogate(logits, logits, jnp.array([1]), mask, k=1))
      [0.]
    """
    loss = top_k_sampled_tail(logits, logits_ref, tokens, mask, k=k)
    logp = _taken(logits, tokens, mask)
    return sequence.sequence_surrogate(loss, logp, mask, baseline=baseline)


def _log_laws(
    logits: Float[Array, "*B T V"],
    logits_ref: Float[Array, "*B T V"],
    mask: Bool[Array, "*B T"],
) -> tuple[Float[Array, "*B T V"], Float[Array, "*B T V"]]:
    """Both log-softmaxes, uniform where masked; the second is constant."""
    logp = logprobs.log_softmax(jnp.where(mask[..., None], logits, 0))
    logp_ref = logprobs.log_softmax(jnp.where(mask[..., None], logits_ref, 0))
    return logp, jax.lax.stop_gradient(logp_ref)


def _divergence_terms(
    logp: Float[Array, "*shape"], logp_ref: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``π log π/ρ − π + ρ``: of one sum with ``π log π/ρ``, and none is negative."""
    supports = logp > -jnp.inf, logp_ref > -jnp.inf
    finite = jnp.where(supports[0], logp, 0), jnp.where(supports[1], logp_ref, 0)
    return perspective(reverse_kl(), *finite, *supports)


def _terms(
    logp: Float[Array, "*shape"], logp_ref: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``π log π/ρ``, 0 where π is 0; infinite and without gradient where ρ alone is."""
    inside = logp > -jnp.inf
    both = inside & (logp_ref > -jnp.inf)
    logp = jnp.where(both, logp, 0)
    ratio = logp - jnp.where(both, logp_ref, 0)
    return jnp.where(both, jnp.exp(logp) * ratio, jnp.where(inside, jnp.inf, 0))


def _likeliest(logp: Float[Array, "*B V"], k: int) -> Bool[Array, "*B V"]:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    logp = jax.lax.stop_gradient(logp)
    return logp >= jax.lax.top_k(logp, min(k, logp.shape[-1]))[0][..., -1:]


def _log_tail(
    logp: Float[Array, "*B V"], kept: Bool[Array, "*B V"]
) -> Float[Array, "*B"]:
    """The log of the mass that is not kept, −inf if there is none."""
    mass = jnp.sum(jnp.where(kept, 0, jnp.exp(logp)), axis=-1)
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1)), -jnp.inf)


def _take(
    values: Float[Array, "*B V"] | Bool[Array, "*B V"], tokens: Int[Array, "*B"]
) -> Float[Array, "*B"] | Bool[Array, "*B"]:
    return jnp.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]


def _taken(
    logits: Float[Array, "*B T V"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    return logprobs.token_logp(jnp.where(mask[..., None], logits, 0), tokens)
