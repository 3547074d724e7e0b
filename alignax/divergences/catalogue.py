"""The named divergences.

With ``π`` the policy, ``ρ`` the reference, ``u = π / ρ``; every ``f`` is
centred (``f(1) = f'(1) = 0``).

=====================  ==============================  ========================  =======
constructor            D(π‖ρ)                          f(u)                      f''(1)
=====================  ==============================  ========================  =======
``reverse_kl()``       KL(π‖ρ)                         u log u - u + 1           1
``forward_kl()``       KL(ρ‖π)                         u - 1 - log u             1
``jensen_shannon(w)``  w KL(ρ‖m) + (1-w) KL(π‖m)       m = w ρ + (1-w) π         w(1-w)
``alpha(s)``           Amari's, see there              with a = (1 + s) / 2      1
``pearson()``          Σ (π - ρ)^2 / ρ                 (u - 1)^2                 2
``neyman()``           Σ (π - ρ)^2 / π                 (u - 1)^2 / u             2
``squared_hellinger``  Σ (√π - √ρ)^2 / 2               (√u - 1)^2 / 2            1/4
``jeffreys()``         KL(π‖ρ) + KL(ρ‖π)               (u - 1) log u             2
``chi2_kl(g)``         Pearson / 2 + g KL(π‖ρ)         their sum                 1 + g
``skewed_kl(s)``       KL(ρ‖m)                         m = s ρ + (1-s) π         (1-s)^2
``total_variation()``  Σ |π - ρ| / 2                   |u - 1| / 2               inf
=====================  ==============================  ========================  =======

This file has those that are not members of the alpha family; it is ``amari.py``.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.divergences._numerics import exp_expm1, log_excess, log_omega
from alignax.divergences.amari import forward_kl, pearson, reverse_kl
from alignax.divergences.definition import from_f
from alignax.divergences.value import Divergence, mix
from alignax.numerics import exp, expm1
from alignax.types import InputError

_Elementwise = Float[Array, "..."]


def jensen_shannon(weight: float = 0.5) -> Divergence:
    """The Jensen-Shannon divergence with any weight.

    ``w KL(ρ‖m) + (1 - w) KL(π‖m)`` with ``m = w ρ + (1 - w) π``;
    at most the binary entropy of ``w``.

    This is the true divergence, as in GKD (``ρ`` the teacher, ``w`` its
    ``beta``). The "JS" of GANs, f-DPO and f-DPG is twice it:
    ``scale(jensen_shannon(), 2.0)``. As ``w -> 0`` it vanishes and ``JSD / w``
    tends to the forward KL; as ``w -> 1``, ``JSD / (1 - w)`` tends to the
    reverse KL. The end points themselves are refused, since libraries that
    replace them by the KLs jump in scale there.

    Args:
      weight: the reference's share of the mixture, in (0, 1).

    Returns:
      The divergence; its dual has weight ``1 - w``.

    Raises:
      InputError: if the weight is not inside (0, 1).

    Reference:
      Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649, eq.
      1.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.jensen_shannon(0.25).curvature
      0.1875
    """
    w = float(weight)
    if not 0 < w < 1:
        raise InputError(
            f"weight must be inside (0, 1), got {weight}. The limits are "
            "forward_kl() (of JSD / weight, weight -> 0) and reverse_kl() (of "
            "JSD / (1 - weight), weight -> 1)."
        )
    return _jensen_shannon(w, 1 - w)


def _jensen_shannon(w: float, v: float) -> Divergence:
    log_w, log_v = math.log(w), math.log(v)
    top = -v * log_v

    def share(l: _Elementwise) -> _Elementwise:
        """log π / m."""
        return -jnp.logaddexp(log_w - l, log_v)

    def f(l: _Elementwise) -> _Elementwise:
        near = jnp.abs(l) < 1
        s, t = jnp.where(near, l, 0), jnp.where(near, 1, l)
        small = v * jnp.exp(s) * log_excess(w * jnp.expm1(-s))
        small = small + w * log_excess(v * jnp.expm1(s))
        m = jnp.logaddexp(log_w, log_v + t)
        return jnp.where(near, small, v * exp(t) * share(t) - w * m)

    def f_prime(l: _Elementwise) -> _Elementwise:
        near = jnp.abs(l) < 1
        s, t = jnp.where(near, l, 0), jnp.where(near, 1, l)
        small = -jnp.log1p(w * jnp.expm1(-s))
        return v * jnp.where(near, small, share(t))

    def gap(
        x: _Elementwise,
    ) -> tuple[Bool[Array, "..."], _Elementwise, _Elementwise]:
        y = x / v + log_v
        inside = y < 0
        y = jnp.where(inside, y, -1)
        return inside, y, jnp.log(-jnp.expm1(y))

    def log_inverse(x: _Elementwise) -> _Elementwise:
        inside, y, log_gap = gap(x)
        return jnp.where(inside, log_w - log_v + y - log_gap, jnp.inf)

    def conjugate(x: _Elementwise) -> _Elementwise:
        inside, _, log_gap = gap(x)
        return jnp.where(inside, w * (log_w - log_gap), jnp.inf)

    return Divergence(
        name=f"jensen_shannon({w})",
        f=f,
        f_prime=f_prime,
        uf2=lambda l: w * v * jnp.exp(-jnp.logaddexp(log_w, log_v + l)),
        log_inverse=log_inverse,
        conjugate=conjugate,
        dual=lambda: _jensen_shannon(v, w),
        slopes=(-math.inf, top),
        curvature=w * v,
        f_zero=-w * log_w,
    )


def jeffreys() -> Divergence:
    """Jeffreys' divergence ``KL(π‖ρ) + KL(ρ‖π)``, ``f = (u - 1) log u``.

    Args: none.

    Returns:
      The divergence, its own dual.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.jeffreys().curvature
      2.0
    """

    def log_inverse(x: _Elementwise) -> _Elementwise:
        return -log_omega(1 - x)

    def conjugate(x: _Elementwise) -> _Elementwise:
        root = log_inverse(x)
        return expm1(root) + root

    return dataclasses.replace(
        mix([reverse_kl(), forward_kl()], [1.0, 1.0]),
        name="jeffreys",
        log_inverse=log_inverse,
        conjugate=conjugate,
        dual=jeffreys,
    )


def chi2_kl(gamma: float = 1.0) -> Divergence:
    """Half of Pearson's chi-squared plus ``gamma`` times the reverse KL.

    ``f'(u) = u - 1 + gamma log u``: grows as fast as chi-squared where the
    policy exceeds the reference, yet goes to minus infinity at 0, so that it
    defines a preference link. ``gamma = 1`` is chi-PO's.

    Args:
      gamma: weight of the KL, positive.

    Returns:
      The divergence.

    Raises:
      InputError: if gamma is not positive and finite.

    Reference:
      Huang et al., "Correcting the Mythos of KL-Regularization", arXiv 2407.13399,
      Algorithm 1.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.chi2_kl().slopes
      (-inf, inf)
    """
    g = float(gamma)
    if not (g > 0 and math.isfinite(g)):
        raise InputError(f"gamma must be positive and finite, got {gamma}.")

    def log_inverse(x: _Elementwise) -> _Elementwise:
        return math.log(g) + log_omega((x + 1) / g - math.log(g))

    def conjugate(x: _Elementwise) -> _Elementwise:
        root = log_inverse(x)
        return exp_expm1(root, root) / 2 + (g + 0.5) * expm1(root)

    both = mix([pearson(), reverse_kl()], [0.5, g])
    return dataclasses.replace(
        both,
        name=f"chi2_kl({g})",
        log_inverse=log_inverse,
        conjugate=conjugate,
        dual=lambda: dataclasses.replace(both.dual(), dual=lambda: chi2_kl(g)),
    )


def total_variation() -> Divergence:
    """Total variation ``Σ |π - ρ| / 2``, ``f(u) = |u - 1| / 2``, in [0, 1].

    ``f'`` is -1/2 below ratio 1, +1/2 above and 0 at it: no inverse, no
    curvature, and the regularised optimum is a linear programme.

    Args: none.

    Returns:
      The divergence, its own dual.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.total_variation().slopes
      (-0.5, 0.5)
    """

    def f(l: _Elementwise) -> _Elementwise:
        # sign is 0 at 0, so the subgradient taken there is the central one.
        return 0.5 * jnp.sign(l) * expm1(l)

    def conjugate(x: _Elementwise) -> _Elementwise:
        return jnp.where(x > 0.5, jnp.inf, jnp.where(x >= -0.5, x, -0.5))

    return Divergence(
        name="total_variation",
        f=f,
        f_prime=lambda l: 0.5 * jnp.sign(l),
        uf2=jnp.zeros_like,
        log_inverse=None,
        conjugate=conjugate,
        dual=total_variation,
        slopes=(-0.5, 0.5),
        curvature=math.inf,
        f_zero=0.5,
    )


def skewed_kl(skew: float) -> Divergence:
    """The forward KL to a mixture: ``KL(ρ‖s ρ + (1 − s) π)``, at most ``−log s``.

    ``swap(skewed_kl(s))`` is ``KL(π‖s π + (1 − s) ρ)``, the skewed reverse KL. ``ρ`` is
    the teacher in distillation: what it never says costs the student nothing, and the
    gradient stays bounded where the student says nothing of the teacher's.

    Args:
      skew: s, the reference's share of the mixture, in (0, 1).

    Returns:
      The divergence.

    Raises:
      InputError: the skew is not inside (0, 1).

    Reference:
      Ko et al., "DistiLLM", arXiv 2402.03898, eq. 4; 0.1 is theirs.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> never = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> round(float(dv.exact(dv.skewed_kl(0.1), *never)), 4)  # -log 0.1
      2.3026
    """
    s = float(skew)
    if not 0 < s < 1:
        raise InputError(
            f"skew must be inside (0, 1), got {skew}; forward_kl() is that of 0"
        )
    rest = 1 - s

    def log_mixture(l: _Elementwise):
        return jnp.logaddexp(math.log(s), math.log(rest) + l)

    return from_f(
        f"skewed_kl({s:g})",
        lambda l: rest * expm1(l) - log_mixture(l),
        f_prime=lambda l: rest * -jnp.expm1(-log_mixture(l)),
        uf2=lambda l: rest**2 * jnp.exp(l - 2 * log_mixture(l)),
        slopes=(-(rest**2) / s, rest),
        curvature=rest**2,
        f_zero=-math.log(s) - rest,
    )
