"""Exact divergences between two categorical distributions, from their logits."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.divergences._numerics import support_log_softmax
from alignax.divergences.amari import alpha, reverse_kl
from alignax.divergences.conventions import amari_from_tsallis
from alignax.divergences.value import Divergence
from alignax.numerics import as_float
from alignax.types import InputError


def exact(
    div: Divergence,
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    *,
    where: Bool[Array, "*batch V"] | None = None,
) -> Float[Array, "*batch"]:
    """The divergence of two categorical distributions, by summation.

    ``D_f(π‖ρ) = Σ ρ_v f(u_v)`` where ``π_v ≤ ρ_v``, and ``Σ π_v f°(1/u_v)`` elsewhere,
    with the dual ``f°(t) = t f(1/t)``: both sums only exponentiate
    non-positive numbers, so that logits hundreds of nats apart stay finite in
    value and gradient (chi-squareds beyond ``e^40`` in float32 grow linearly in
    the log-ratio instead).

    As a distillation loss ``logits`` are the student's, ``logits_ref`` the
    teacher's, each divided by its temperature; GKD's is
    ``exact(jensen_shannon(beta), student, teacher)``.

    Args:
      div: the divergence; ``swap`` it for the other direction.
      logits: the policy's ``[..., V]``; normalised here. ``-inf`` is
        probability zero.
      logits_ref: the reference's ``[..., V]``.
      where: True at the entries that exist, default all; both distributions
        are normalised over them.

    Returns:
      ``[...]`` in nats, float32 or wider. Infinite where one distribution has
      no mass and ``f`` says so (reverse KL off the reference's support); the
      gradient there is that of the remaining terms. 0 if no entry exists.

    Reference:
      Csiszár, "Information-type measures of difference of probability distributions",
      1967; the use in distillation: Agarwal et al., "On-Policy Distillation of Language
      Models", arXiv 2306.13649.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.exact(dv.reverse_kl(), jnp.array([0.0, -jnp.inf]), jnp.zeros(2)).round(4)
      Array(0.6931, dtype=float32)
    """
    support, logp = support_log_softmax(as_float(logits), where)
    support_ref, logp_ref = support_log_softmax(as_float(logits_ref), where)
    return jnp.sum(perspective(div, logp, logp_ref, support, support_ref), axis=-1)


def perspective(
    div: Divergence,
    logp: Float[Array, "*batch V"],
    logp_ref: Float[Array, "*batch V"],
    support: Bool[Array, "*batch V"],
    support_ref: Bool[Array, "*batch V"],
) -> Float[Array, "*batch V"]:
    """The terms ``ρ f(π / ρ)`` of a divergence, each non-negative.

    The summand of ``exact``, shared with the regularised optimum.

    Args:
      div: the divergence.
      logp: the policy's finite log-probabilities where ``support``.
      logp_ref: the reference's finite log-probabilities where ``support_ref``.
      support: where the policy has mass.
      support_ref: where the reference has mass.

    Returns:
      The terms; 0 where neither has mass.
    """
    dual = div.dual()
    both = support & support_ref
    l = jnp.where(both, logp - logp_ref, 0)
    below = l <= 0
    rho = jnp.exp(jnp.where(support_ref & below, logp_ref, 0))
    pi = jnp.exp(jnp.where(support & ~(both & below), logp, 0))
    shared = jnp.where(
        below,
        rho * div.f(jnp.where(below, l, 0)),
        pi * dual.f(jnp.where(below, 0, -l)),
    )

    def alone(mass: Float[Array, "*batch V"], each: float):
        return jnp.inf if math.isinf(each) else mass * each

    unshared = jnp.where(support, alone(pi, dual.f_zero), 0)
    unshared = jnp.where(support_ref, alone(rho, div.f_zero), unshared)
    return jnp.where(both, shared, unshared)


def renyi(
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    *,
    order: float,
    where: Bool[Array, "*batch V"] | None = None,
) -> Float[Array, "*batch"]:
    """The Rényi divergence of two categorical distributions.

    ``R_q(π‖ρ) = log(Σ_v π_v^q ρ_v^{1−q}) / (q − 1)``.

    Not an f-divergence, yet monotone in ``alpha(1 - 2 q)``. Order 1 is the
    reverse KL; near it, where the definition is 0 / 0, the formula through the
    alpha-divergence is used.

    Args:
      logits: the policy's ``[..., V]``; ``-inf`` is probability zero.
      logits_ref: the reference's ``[..., V]``.
      order: ``q``, positive and finite.
      where: True at the entries that exist, default all.

    Returns:
      ``[...]`` in nats, non-negative. Infinite for ``order >= 1`` where the
      policy leaves the reference's support.

    Raises:
      InputError: if the order is not positive and finite.

    Reference:
      Rényi, "On measures of entropy and information", 1961; van Erven and Harremoës,
      "Rényi Divergence and Kullback-Leibler Divergence", arXiv 1206.2459.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.renyi(jnp.array([0.0, -jnp.inf]), jnp.zeros(2), order=2.0).round(4)
      Array(0.6931, dtype=float32)
    """
    q = float(order)
    if not (q > 0 and math.isfinite(q)):
        raise InputError(f"order must be positive and finite, got {order}.")
    if q == 1:
        return exact(reverse_kl(), logits, logits_ref, where=where)
    if abs(q - 1) < 0.05:
        amari = exact(alpha(amari_from_tsallis(q)), logits, logits_ref, where=where)
        return jnp.log1p(q * (q - 1) * amari) / (q - 1)
    support, logp = support_log_softmax(as_float(logits), where)
    support_ref, logp_ref = support_log_softmax(as_float(logits_ref), where)
    both = support & support_ref
    value = _log_sum(q * logp + (1 - q) * logp_ref, both) / (q - 1)
    # log of an empty sum: infinite, unless there is nothing to compare.
    apart = jnp.any(support, axis=-1) & ~jnp.any(both, axis=-1)
    if q > 1:
        apart = apart | jnp.any(support & ~support_ref, axis=-1)
    return jnp.where(apart, jnp.inf, value)


def cauchy_schwarz(
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    *,
    where: Bool[Array, "*batch V"] | None = None,
) -> Float[Array, "*batch"]:
    """The Cauchy-Schwarz divergence of two categorical distributions.

    ``D = log Σ π² + log Σ ρ² − 2 log Σ πρ``.

    Symmetric, zero only for equal distributions, not an f-divergence. Natural
    logarithms (the reference implementation takes base 2).

    Args:
      logits: the policy's ``[..., V]``; ``-inf`` is probability zero.
      logits_ref: the reference's ``[..., V]``.
      where: True at the entries that exist, default all.

    Returns:
      ``[...]`` in nats; infinite for disjoint supports.

    Reference:
      Príncipe, "Information Theoretic Learning", 2010; Yu et al., "Cauchy-Schwarz
      Divergence Information Bottleneck", arXiv 2404.17951.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.cauchy_schwarz(jnp.array([0.0, -jnp.inf]), jnp.zeros(2)).round(4)
      Array(0.6931, dtype=float32)
    """
    support, logp = support_log_softmax(as_float(logits), where)
    support_ref, logp_ref = support_log_softmax(as_float(logits_ref), where)
    both = support & support_ref
    value = _log_sum(2 * logp, support) + _log_sum(2 * logp_ref, support_ref)
    value = value - 2 * _log_sum(logp + logp_ref, both)
    apart = jnp.any(support, axis=-1) & ~jnp.any(both, axis=-1)
    return jnp.where(apart, jnp.inf, value)


def _log_sum(x: Float[Array, "*batch V"], where: Bool[Array, "*batch V"]):
    """``log sum exp`` over ``where``; 0, with no gradient, if it is empty."""
    x = jnp.where(where, x, 0)
    top = jnp.max(jnp.where(where, x, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.where(jnp.isneginf(top), 0, top)
    total = jnp.sum(jnp.where(where, jnp.exp(x - top), 0), axis=-1)
    return jnp.log(jnp.where(total == 0, 1, total)) + top[..., 0]
