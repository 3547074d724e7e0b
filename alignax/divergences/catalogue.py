"""The named divergences.

With ``pi`` the policy, ``rho`` the reference, ``u = pi / rho``; every ``f`` is
centred (``f(1) = f'(1) = 0``).

=====================  ==============================  ========================  =======
constructor            D(pi || rho)                    f(u)                      f''(1)
=====================  ==============================  ========================  =======
``reverse_kl()``       KL(pi || rho)                   u log u - u + 1           1
``forward_kl()``       KL(rho || pi)                   u - 1 - log u             1
``jensen_shannon(w)``  w KL(rho||m) + (1-w) KL(pi||m)  m = w rho + (1-w) pi      w(1-w)
``alpha(s)``           Amari's, see there              with a = (1 + s) / 2      1
``pearson()``          sum (pi - rho)^2 / rho          (u - 1)^2                 2
``neyman()``           sum (pi - rho)^2 / pi           (u - 1)^2 / u             2
``squared_hellinger``  sum (√pi - √rho)^2 / 2          (√u - 1)^2 / 2            1/4
``jeffreys()``         KL(pi||rho) + KL(rho||pi)       (u - 1) log u             2
``chi2_kl(g)``         Pearson / 2 + g KL(pi || rho)   their sum                 1 + g
``total_variation()``  sum |pi - rho| / 2              |u - 1| / 2               inf
=====================  ==============================  ========================  =======

Both KLs, both chi-squareds and Hellinger are members of the alpha family under
their own names, so their functions are written once.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.divergences._numerics import (
    excess,
    exp,
    exp_expm1,
    expm1,
    log_excess,
    log_omega,
)
from alignax.divergences.value import Divergence, mix, scale
from alignax.types import InputError

_Elementwise = Float[Array, "..."]


def alpha(alpha: float) -> Divergence:
    r"""Amari's alpha-divergence, scaled to ``f''(1) = 1``.

    .. math:: D = \frac{4}{1 - \alpha^2}
       \Bigl(1 - \sum \pi^{(1 - \alpha)/2} \rho^{(1 + \alpha)/2}\Bigr)

    ``-1`` is the reverse KL, ``1`` the forward KL, ``0`` four times the squared
    Hellinger distance, ``-3`` half of Pearson's and ``3`` half of Neyman's
    chi-squared. ``swap(alpha(s)) == alpha(-s)``. With ``a = (1 + alpha) / 2``,
    other conventions are (converters ``amari_from_*``):

    ==================  =================  =======================================
    convention          map                what it writes
    ==================  =================  =======================================
    f-DPO, DPH-RL       ``a``              f = (u^(1-a) - (1-a) u - a) / (a (a-1))
    TRL                 ``c = 1 - a``      f' = (u^(c-1) - 1) / (c - 1), c = 1 - a
    Cressie and Read    ``lambda = -a``    (sum pi (pi/rho)^l - 1) / (l (l + 1))
    Tsallis             ``q = 1 - a``      T_q = (sum pi^q rho^(1-q) - 1) / (q - 1)
    Renyi               ``q = 1 - a``      R_q = log(sum pi^q rho^(1-q)) / (q - 1)
    ==================  =================  =======================================

    so that ``T_q = q D`` and ``R_q = log1p(q (q - 1) D) / (q - 1)``.

    Args:
      alpha: any finite number.

    Returns:
      The divergence.

    Raises:
      InputError: if alpha is not finite.

    Reference: Amari, "Differential-Geometrical Methods in Statistics", 1985;
    Wang et al., "Beyond Reverse KL", arXiv 2309.16240 (its ``a``).

    Example:
      >>> from alignax import divergences as dv
      >>> dv.alpha(0.5) == dv.alpha(0.5), dv.swap(dv.alpha(0.5)).parameters
      (True, (-0.5,))
    """
    order = float(alpha)
    if not math.isfinite(order):
        raise InputError(f"alpha must be finite, got {alpha}.")
    return _alpha(order)


def _alpha(order: float) -> Divergence:
    a, b = (1 + order) / 2, (1 - order) / 2

    def f(l: _Elementwise) -> _Elementwise:
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
        name="alpha",
        parameters=(order,),
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


def _divided(function, x: _Elementwise, divisor: float) -> _Elementwise:
    """``function(x) / divisor``, whose limit at divisor 0 is 0."""
    return function(x) / divisor if divisor else jnp.zeros_like(x)


def _box_cox(l: _Elementwise, power: float) -> _Elementwise:
    """``(u^power - 1) / power``, and ``log u`` for power 0."""
    return expm1(power * l) / power if power else l


def _named(div: Divergence, name: str, dual: str) -> Divergence:
    """``div`` under a name of its own, which the dual of the dual gets back."""
    return dataclasses.replace(
        div, name=name, parameters=(), dual=lambda: _named(div.dual(), dual, name)
    )


def reverse_kl() -> Divergence:
    """The reverse KL divergence ``KL(pi || rho)``, the usual penalty of RLHF.

    ``f(u) = u log u - u + 1``.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.swap(dv.reverse_kl()) == dv.forward_kl()
      True
    """
    return _named(_alpha(-1.0), "reverse_kl", "forward_kl")


def forward_kl() -> Divergence:
    """The forward KL divergence ``KL(rho || pi)``, that of maximum likelihood.

    ``f(u) = u - 1 - log u``.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.forward_kl().slopes
      (-inf, 1.0)
    """
    return _named(_alpha(1.0), "forward_kl", "reverse_kl")


def pearson() -> Divergence:
    """Pearson's chi-squared ``sum (pi - rho)^2 / rho``, ``f(u) = (u - 1)^2``.

    Called chi2(pi || rho) in the literature on pessimism. Peers disagree on the
    names: disco's ``ReverseChiSquaredLoss`` is this one, its ``ChiSquaredLoss``
    is :func:`neyman`.

    Returns:
      The divergence.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.pearson().slopes
      (-2.0, inf)
    """
    return _named(scale(_alpha(-3.0), 2.0), "pearson", "neyman")


def neyman() -> Divergence:
    """Neyman's chi-squared ``sum (pi - rho)^2 / pi``, ``f(u) = (u - 1)^2 / u``.

    Returns:
      The divergence, the dual of :func:`pearson`.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.neyman().slopes
      (-inf, 1.0)
    """
    return _named(scale(_alpha(3.0), 2.0), "neyman", "pearson")


def squared_hellinger() -> Divergence:
    """The squared Hellinger distance ``sum (√pi - √rho)^2 / 2``, in [0, 1].

    ``f(u) = (√u - 1)^2 / 2``.

    Returns:
      The divergence, its own dual.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.squared_hellinger().f_zero
      0.5
    """
    name = "squared_hellinger"
    return _named(scale(_alpha(0.0), 0.25), name, name)


def jensen_shannon(weight: float = 0.5) -> Divergence:
    """The Jensen-Shannon divergence with any weight.

    ``w KL(rho || m) + (1 - w) KL(pi || m)`` with ``m = w rho + (1 - w) pi``;
    at most the binary entropy of ``w``.

    This is the true divergence, as in GKD (``rho`` the teacher, ``w`` its
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

    Reference: Agarwal et al., "On-Policy Distillation of Language Models",
    arXiv 2306.13649, eq. 1.

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

    def f(l: _Elementwise) -> _Elementwise:
        near = jnp.abs(l) < 1
        s, t = jnp.where(near, l, 0), jnp.where(near, 1, l)
        small = v * jnp.exp(s) * log_excess(w * jnp.expm1(-s))
        small = small + w * log_excess(v * jnp.expm1(s))
        m = jnp.logaddexp(log_w, log_v + t)
        return jnp.where(near, small, v * exp(t) * (t - m) - w * m)

    def f_prime(l: _Elementwise) -> _Elementwise:
        near = jnp.abs(l) < 1
        s, t = jnp.where(near, l, 0), jnp.where(near, 1, l)
        small = -jnp.log1p(w * jnp.expm1(-s))
        return v * jnp.where(near, small, t - jnp.logaddexp(log_w, log_v + t))

    def gap(x: _Elementwise) -> tuple[_Elementwise, _Elementwise, _Elementwise]:
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
        name="jensen_shannon",
        parameters=(w,),
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
    """Jeffreys' divergence ``KL(pi || rho) + KL(rho || pi)``, ``f = (u - 1) log u``.

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
        parameters=(),
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

    Reference: Huang et al., "Correcting the Mythos of KL-Regularization",
    arXiv 2407.13399, Algorithm 1.

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
        name="chi2_kl",
        parameters=(g,),
        log_inverse=log_inverse,
        conjugate=conjugate,
        dual=lambda: dataclasses.replace(both.dual(), dual=lambda: chi2_kl(g)),
    )


def total_variation() -> Divergence:
    """Total variation ``sum |pi - rho| / 2``, ``f(u) = |u - 1| / 2``, in [0, 1].

    ``f'`` is -1/2 below ratio 1, +1/2 above and 0 at it: no inverse, no
    curvature, and the regularised optimum is a linear programme.

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
