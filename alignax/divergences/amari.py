"""Amari's family, and its members under their own names: both KLs, both
chi-squareds, Hellinger. Their functions are written once."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences._numerics import excess, exp_expm1
from alignax.divergences.value import Divergence, scale
from alignax.numerics import exp, expm1, exponent_limit
from alignax.types import InputError

_Elementwise = Float[Array, "..."]


def alpha(alpha: float) -> Divergence:
    """Amari's alpha-divergence, scaled to ``f''(1) = 1``.

    ``D = 4/(1 − α²) · (1 − Σ π^{(1−α)/2} ρ^{(1+α)/2})``.

    ``-1`` is the reverse KL, ``1`` the forward KL, ``0`` four times the squared
    Hellinger distance, ``-3`` half of Pearson's and ``3`` half of Neyman's
    chi-squared. ``swap(alpha(s)) == alpha(-s)``. With ``a = (1 + alpha) / 2``,
    other conventions are (converters ``amari_from_*``):

    ==================  =================  =======================================
    convention          map                what it writes
    ==================  =================  =======================================
    f-DPO, DPH-RL       ``a``              f = (u^(1-a) - (1-a) u - a) / (a (a-1))
    TRL                 ``c = 1 - a``      f' = (u^(c-1) - 1) / (c - 1), c = 1 - a
    Cressie and Read    ``lambda = -a``    (Σ π (π/ρ)^l - 1) / (l (l + 1))
    Tsallis             ``q = 1 - a``      T_q = (Σ π^q ρ^(1-q) - 1) / (q - 1)
    Renyi               ``q = 1 - a``      R_q = log(Σ π^q ρ^(1-q)) / (q - 1)
    ==================  =================  =======================================

    so that ``T_q = q D`` and ``R_q = log1p(q (q - 1) D) / (q - 1)``.

    Args:
      alpha: any finite number.

    Returns:
      The divergence.

    Raises:
      InputError: if alpha is not finite.

    Reference:
      Amari, "Differential-Geometrical Methods in Statistics", 1985; Wang et al.,
      "Beyond Reverse KL", arXiv 2309.16240 (its ``a``).

    Example:
      >>> from alignax import divergences as dv
      >>> dv.alpha(0.5) == dv.alpha(0.5), dv.swap(dv.alpha(0.5))
      (True, alpha(-0.5))
    """
    order = float(alpha)
    if not math.isfinite(order):
        raise InputError(f"alpha must be finite, got {alpha}.")
    return _alpha(order)


def _alpha(order: float) -> Divergence:
    a, b = (1 + order) / 2, (1 - order) / 2

    def f(l: _Elementwise) -> _Elementwise:
        # f grows as e^max(1, b)l upwards and as e^bl downwards: beyond the cap it
        # goes on as its own tangent, since those of its terms could cancel.
        cap = exponent_limit(l)
        inner = jnp.where(l > cap / max(1, b), cap / max(1, b), l)
        if b < 0:
            inner = jnp.where(l < cap / b, cap / b, inner)
        tangent = exp(inner) * _box_cox(inner, -a)
        return bounded(inner) + tangent * (l - inner)

    def bounded(l: _Elementwise) -> _Elementwise:
        near = jnp.abs(l) * max(abs(a), abs(b), 1) < 0.5
        s, t = jnp.where(near, l, 0), jnp.where(near, 1, l)
        # Near 1, differences of second-order terms; beyond, of the functions.
        if a < 0.5:
            small = jnp.exp(s) * (excess(-s) - _divided(excess, -a * s, a)) / b
            if a == 0:
                return jnp.where(near, small, exp(t) * t - expm1(t))
            return jnp.where(near, small, (-exp_expm1(t, -a * t) / a - expm1(t)) / b)
        small = (excess(s) - _divided(excess, b * s, b)) / a
        return jnp.where(near, small, (expm1(t) - _box_cox(t, b)) / a)

    def log_inverse(x: _Elementwise) -> _Elementwise:
        if a == 0:
            return x
        inside = a * x < 1
        root = -jnp.log1p(-jnp.where(inside, a * x, 0)) / a
        return jnp.where(inside, root, math.copysign(math.inf, a))

    def conjugate(x: _Elementwise) -> _Elementwise:
        inside = jnp.isfinite(log_inverse(x))
        value = _box_cox(log_inverse(jnp.where(inside, x, 0)), b)
        # Below the range of f' (a < 0) the best u is 0; above it (a > 0) the
        # supremum is infinite.
        return jnp.where(inside, value, -f_zero if a < 0 else jnp.inf)

    f_zero = 1 / b if b > 0 else math.inf
    return Divergence(
        name=f"alpha({order})",
        f=f,
        f_prime=lambda l: _box_cox(l, -a),
        uf2=lambda l: exp(-a * l),
        log_inverse=log_inverse,
        conjugate=conjugate,
        dual=lambda: _alpha(-order),
        slopes=(1 / a if a < 0 else -math.inf, 1 / a if a > 0 else math.inf),
        curvature=1.0,
        f_zero=f_zero,
    )


def _divided(
    function: Callable[[_Elementwise], _Elementwise], x: _Elementwise, divisor: float
) -> _Elementwise:
    """``function(x) / divisor``, whose limit at divisor 0 is 0."""
    return function(x) / divisor if divisor else jnp.zeros_like(x)


def _box_cox(l: _Elementwise, power: float) -> _Elementwise:
    """``(u^power - 1) / power``, and ``log u`` for power 0."""
    return expm1(power * l) / power if power else l


def _named(div: Divergence, name: str, dual: str) -> Divergence:
    """``div`` under a name of its own, which the dual of the dual gets back."""
    return dataclasses.replace(
        div, name=name, dual=lambda: _named(div.dual(), dual, name)
    )


def reverse_kl() -> Divergence:
    """The reverse KL divergence ``KL(π‖ρ)``, the usual penalty of RLHF.

    ``f(u) = u log u - u + 1``.

    Args: none.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.swap(dv.reverse_kl()) == dv.forward_kl()
      True
    """
    return _named(_alpha(-1.0), "reverse_kl", "forward_kl")


def forward_kl() -> Divergence:
    """The forward KL divergence ``KL(ρ‖π)``, that of maximum likelihood.

    ``f(u) = u - 1 - log u``.

    Args: none.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.forward_kl().slopes
      (-inf, 1.0)
    """
    return _named(_alpha(1.0), "forward_kl", "reverse_kl")


def pearson() -> Divergence:
    """Pearson's chi-squared ``Σ (π - ρ)^2 / ρ``, ``f(u) = (u - 1)^2``.

    Called chi2(π‖ρ) in the literature on pessimism. Peers disagree on the
    names: disco's ``ReverseChiSquaredLoss`` is this one, its ``ChiSquaredLoss``
    is ``neyman``.

    Args: none.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.pearson().slopes
      (-2.0, inf)
    """
    return _named(scale(_alpha(-3.0), 2.0), "pearson", "neyman")


def neyman() -> Divergence:
    """Neyman's chi-squared ``Σ (π - ρ)^2 / π``, ``f(u) = (u - 1)^2 / u``.

    Args: none.

    Returns:
      The divergence, the dual of ``pearson``.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.neyman().slopes
      (-inf, 1.0)
    """
    return _named(scale(_alpha(3.0), 2.0), "neyman", "pearson")


def squared_hellinger() -> Divergence:
    """The squared Hellinger distance ``Σ (√π - √ρ)^2 / 2``, in [0, 1].

    ``f(u) = (√u - 1)^2 / 2``.

    Args: none.

    Returns:
      The divergence, its own dual.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.squared_hellinger().f_zero
      0.5
    """
    name = "squared_hellinger"
    return _named(scale(_alpha(0.0), 0.25), name, name)
