"""Score distillation where every score is known: Gaussian mixtures on a line.

Noise is added by ``dx = −x/2 dt + dW``, under which a mixture stays one, so that the
student's and the teacher's scores, which in practice are networks, are closed forms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignax._checks import not_negative, positive, share
from alignax.divergences import Divergence, score_weight
from alignax.numerics import as_float
from alignax.types import InputError, Leaf


class Mixture(NamedTuple):
    """Normal laws on a line, their weights normalised where they are read."""

    log_weights: Leaf  # Float[..., K]
    means: Leaf  # Float[..., K]
    variances: Leaf  # Float[..., K], positive


def _components(mixture: Mixture) -> tuple[Array, Array, Array]:
    log_weights, means, variances = (as_float(x) for x in mixture)
    return jax.nn.log_softmax(log_weights), means, variances


def diffused(mixture: Mixture, time: Float[Array, "*batch"] | float) -> Mixture:
    """The mixture after a while of noise, ``x_t = e^{−t/2} x_0 + √(1 − e^{−t}) ε``.

    Args:
      mixture: of ``[..., K]``.
      time: t ≥ 0, ``[...]``.

    Returns:
      a mixture of ``[..., K]``; that of t → ∞ is the standard normal law.

    Raises:
      InputError: ``time`` is a negative number.

    Reference:
      Song et al., "Score-based generative modeling through stochastic differential
      equations", arXiv 2011.13456, eq. 11 with β = 1.

    Example:
      >>> start = Mixture(jnp.zeros(1), jnp.array([2.0]), jnp.array([0.5]))
      >>> later = diffused(start, 2 * jnp.log(2.0))
      >>> print(later.means, later.variances)
      [1.] [0.875]
    """
    not_negative(time=time)
    log_weights, means, variances = (as_float(x) for x in mixture)
    batch = jnp.broadcast_shapes(jnp.shape(time), means.shape[:-1])
    time = jnp.broadcast_to(as_float(time), batch)[..., None]
    means, variances = (
        jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (means, variances)
    )
    shrunk = jnp.exp(-time) * variances - jnp.expm1(-time)
    return Mixture(
        jnp.broadcast_to(log_weights, shrunk.shape), jnp.exp(-time / 2) * means, shrunk
    )


def log_density(mixture: Mixture, x: Float[Array, "*batch N"]) -> Float[Array, "..."]:
    """``log p(x)`` of a mixture.

    Args:
      mixture: of ``[..., K]``.
      x: ``[..., N]`` points.

    Returns:
      ``[..., N]`` nats.

    Example:
      >>> normal = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
      >>> print(log_density(normal, jnp.zeros(1)).round(4))
      [-0.9189]
    """
    return jax.nn.logsumexp(_terms(mixture, as_float(x)), axis=-1)


def _terms(mixture: Mixture, x: Array) -> Array:
    log_weights, means, variances = (y[..., None, :] for y in _components(mixture))
    distance = jnp.square(x[..., None] - means) / variances
    return log_weights - (distance + jnp.log(2 * jnp.pi * variances)) / 2


def score(mixture: Mixture, x: Float[Array, "*batch N"]) -> Float[Array, "..."]:
    """``d log p(x) / dx``: each component's pull ``(m − x)/v``, by its share of x.

    Args:
      mixture: of ``[..., K]``.
      x: ``[..., N]`` points.

    Returns:
      ``[..., N]``.

    Example:
      >>> normal = Mixture(jnp.zeros(1), jnp.ones(1), jnp.full(1, 0.5))
      >>> print(score(normal, jnp.zeros(1)))
      [2.]
    """
    x = as_float(x)
    shares = jax.nn.softmax(_terms(mixture, x))
    _, means, variances = (y[..., None, :] for y in _components(mixture))
    return jnp.sum(shares * (means - x[..., None]) / variances, axis=-1)


def quadrature(
    mixture: Mixture, *, order: int = 40
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Points and weights whose sum is an expectation: Gauss-Hermite, a component each.

    The points are ``m + √v ξ`` with fixed ξ: a sum over them has the gradient that
    samples of a generator have, through where they are.

    Args:
      mixture: of ``[..., K]``.
      order: points a component; exact for polynomials of degree ``2 order − 1``.

    Returns:
      ``x [..., K·order]`` and their weights, which sum to 1.

    Raises:
      InputError: ``order`` is below 1.

    Example:
      >>> x, w = quadrature(Mixture(jnp.zeros(1), jnp.ones(1), jnp.ones(1)), order=4)
      >>> print(jnp.sum(w * x**2).round(4))
      2.0
    """
    if order < 1:
        raise InputError(f"order must be at least 1, got {order}")
    log_weights, means, variances = (y[..., None] for y in _components(mixture))
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    last = (1,) * (means.ndim - 1) + (order,)
    nodes = jnp.asarray(nodes, means.dtype).reshape(last)
    weights = jnp.asarray(weights / weights.sum(), means.dtype).reshape(last)
    x = means + jnp.sqrt(variances) * nodes
    w = jnp.exp(log_weights) * weights
    shape = (*x.shape[:-2], -1)
    return x.reshape(shape), jnp.broadcast_to(w, x.shape).reshape(shape)


def mixture_divergence(
    div: Divergence, mixture: Mixture, ref: Mixture, *, order: int = 40
) -> Float[Array, "..."]:
    """``D_f(p‖q)`` of two mixtures, in expectation under p.

    Args:
      div: the divergence.
      mixture: p, of ``[..., K]``.
      ref: q, of ``[..., L]``.
      order: points a component of p.

    Returns:
      ``[...]`` nats, as exact as the quadrature is: where p has no mass, what q has
      there counts through ``f``'s own growth alone.

    Example:
      >>> from alignax import divergences as dv
      >>> p = Mixture(jnp.zeros(1), jnp.ones(1), jnp.ones(1))
      >>> q = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
      >>> print(mixture_divergence(dv.reverse_kl(), p, q).round(4))
      0.5
    """
    x, weights = quadrature(mixture, order=order)
    l = log_density(mixture, x) - log_density(ref, x)
    # f(u) under q is f(u)/u under p: the dual's f, at the ratio upside down.
    return jnp.sum(weights * div.dual().f(-l), axis=-1)


def pseudo_huber(
    difference: Float[Array, "*batch"], *, width: float
) -> Float[Array, "*batch"]:
    """``√(x² + c²) − c``: a square near 0, an absolute value far out.

    Args:
      difference: ``[...]``.
      width: c, positive: where the one becomes the other.

    Returns:
      ``[...]``, not negative.

    Raises:
      InputError: ``width`` is not positive.

    Reference:
      Luo et al., "Diff-Instruct*", arXiv 2410.20898: the distance of scores there.

    Example:
      >>> print(pseudo_huber(jnp.array([0.0, 3.0]), width=4.0))
      [0. 1.]
    """
    positive(width=width)
    x = as_float(difference)
    # √(x² + c²) − c, without the cancellation.
    return jnp.square(x) / (jnp.sqrt(jnp.square(x) + width**2) + width)


def half_square(difference: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``x²/2``, the distance of scores that makes ``score_divergence`` a KL.

    Args:
      difference: ``[...]``.

    Returns:
      ``[...]``.

    Example:
      >>> print(half_square(jnp.array([3.0])))
      [4.5]
    """
    return jnp.square(as_float(difference)) / 2


def score_divergence(
    mixture: Mixture,
    ref: Mixture,
    times: Float[Array, " M"],
    weights: Float[Array, " M"],
    *,
    distance: Callable[[Array], Array] = half_square,
    order: int = 40,
) -> Float[Array, "..."]:
    """``Σ_t w(t) E_{p_t} d(s_p − s_q)``: the Fisher divergence over noise levels.

    With ``half_square`` and weights that integrate over [0, T] it is exactly what the
    noise takes from the KL, ``KL(p_0‖q_0) − KL(p_T‖q_T)`` (de Bruijn), and so nearly
    the KL itself for a long T.

    Args:
      mixture: p, of ``[..., K]``.
      ref: q, of ``[..., L]``.
      times: ``[M]`` of noise, not negative.
      weights: ``[M]``.
      distance: of the two scores, elementwise: ``half_square``, or ``pseudo_huber``
        with its width bound.
      order: points a component of p.

    Returns:
      ``[...]``.

    Reference:
      Luo et al., "Diff-Instruct*", arXiv 2410.20898; de Bruijn's identity for this
      noise is derived in the tests.

    Example:
      >>> p = Mixture(jnp.zeros(1), jnp.ones(1), jnp.ones(1))
      >>> q = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
      >>> print(score_divergence(p, q, jnp.zeros(1), jnp.ones(1)).round(4))
      0.5
    """

    def at(time):
        p, q = diffused(mixture, time), diffused(ref, time)
        x, w = quadrature(p, order=order)
        return jnp.sum(w * distance(score(p, x) - score(q, x)), axis=-1)

    levels = jax.vmap(at)(as_float(times))
    return jnp.tensordot(as_float(weights), levels, axes=1)


def distribution_matching(
    div: Divergence,
    score_student: Float[Array, "*batch"],
    score_teacher: Float[Array, "*batch"],
    log_r: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """f-distill's gradient at a sample: ``h(r) (s_student − s_teacher)``.

    ``∇_θ D_f(student‖teacher) = E_student[h(r) (s_student − s_teacher) ∂x/∂θ]``, with
    ``h = score_weight``: 1 for the reverse KL (distribution matching distillation),
    r for the forward KL, which does not let go of what only the teacher has.

    Value: at samples of the student, the gradient's factor before ``∂x/∂θ``.
    Gradient: none to use; all is held fixed.

    Args:
      div: the divergence of the student from the teacher.
      score_student: ``[...]``, ``d log p_student / dx`` at the samples.
      score_teacher: ``[...]``.
      log_r: ``[...]``, the log-ratio of teacher to student, or a discriminator's logit.

    Returns:
      ``[...]``; a loss with this gradient is ``sum(stopped(result) · x)``.

    Reference:
      Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching",
      arXiv 2502.15681, theorem 1.

    Example:
      >>> from alignax import divergences as dv
      >>> one = jnp.ones(1)
      >>> print(distribution_matching(dv.forward_kl(), 2 * one, one, jnp.log(3 * one)))
      [3.]
    """
    difference = as_float(score_student) - as_float(score_teacher)
    return jax.lax.stop_gradient(score_weight(div, log_r) * difference)


def entropic_score(
    score_marginal: Float[Array, "*batch"],
    score_view: Float[Array, "*batch"],
    score_target: Float[Array, "*batch"],
    *,
    entropy_weight: float,
) -> Float[Array, "*batch"]:
    """Entropic score distillation's gradient at a sample of one view.

    ``λ s_q + (1 − λ) s_{q_c} − s_p``: the score of all views together is mixed with
    that of the sample's own view as guidance without a classifier mixes them. Its mean
    over views and samples is the gradient of ``entropic_objective``, and of ``λ KL(q‖p)
    + (1 − λ) E_c KL(q_c‖p)``.

    Value: at samples of the views, the gradient's factor before ``∂x/∂θ``.
    Gradient: none to use; all is held fixed.

    Args:
      score_marginal: ``[...]`` of the mixture of all views.
      score_view: ``[...]`` of the view that the sample is of.
      score_target: ``[...]`` of the teacher.
      entropy_weight: λ in [0, 1]; at 0 each view seeks a mode on its own.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``entropy_weight`` is not in [0, 1].

    Reference:
      Wang et al., "Taming Mode Collapse in Score Distillation for Text-to-3D
      Generation", arXiv 2401.00909; the identity is derived in the tests.

    Example:
      >>> one = jnp.ones(1)
      >>> print(entropic_score(4 * one, 2 * one, one, entropy_weight=0.5))
      [2.]
    """
    share(entropy_weight=entropy_weight)
    marginal, view, target = map(as_float, (score_marginal, score_view, score_target))
    mixed = entropy_weight * marginal + (1 - entropy_weight) * view
    return jax.lax.stop_gradient(mixed - target)


def entropic_objective(
    views: Mixture, target: Mixture, *, entropy_weight: float, order: int = 40
) -> Float[Array, "..."]:
    """``−E_q log p − λ H(q)``, q the mixture of all views.

    Args:
      views: q, of ``[..., K]``: a component a view.
      target: p, of ``[..., L]``.
      entropy_weight: λ in [0, 1]: 1 is the reverse KL of the mixture, 0 is maximum
        likelihood, whose optimum has all views at p's highest mode.
      order: points a view.

    Returns:
      ``[...]`` nats.

    Raises:
      InputError: ``entropy_weight`` is not in [0, 1].

    Reference:
      Wang et al., arXiv 2401.00909.

    Example:
      >>> normal = Mixture(jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
      >>> print(entropic_objective(normal, normal, entropy_weight=1.0).round(4) + 0.0)
      0.0
    """
    share(entropy_weight=entropy_weight)
    x, w = quadrature(views, order=order)
    values = entropy_weight * log_density(views, x) - log_density(target, x)
    return jnp.sum(w * values, axis=-1)
