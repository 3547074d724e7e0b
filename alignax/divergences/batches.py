"""Divergences between batches of points: entropic transport and kernels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import as_float
from alignax.types import InputError


def sinkhorn(
    cost: Float[Array, "N M"], *, epsilon: float, num_iterations: int
) -> tuple[Float[Array, ""], Float[Array, "N M"]]:
    """Entropic optimal transport between two uniform point sets.

    ``min_P <P, cost> + epsilon KL(P‖uniform)`` over plans with uniform
    marginals. Each iteration fits the rows, then the columns; so the columns are
    exact, the rows at convergence. Nothing is exponentiated but bounded numbers:
    any ``epsilon > 0`` is safe.

    Args:
      cost: ``[N, M]``.
      epsilon: strength of the entropy, in the cost's unit.
      num_iterations: at least 1.

    Returns:
      The dual value (``<P, cost> + epsilon KL`` at convergence) and the plan
      ``[N, M]``, whose sum is 1. The gradient goes through the iterations.

    Raises:
      InputError: if epsilon is not positive or there is no iteration.

    Reference:
      Cuturi, "Sinkhorn Distances", arXiv 1306.0895.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> value, plan = dv.sinkhorn(1.0 - jnp.eye(2), epsilon=0.01, num_iterations=5)
      >>> plan.round(4)
      Array([[0.5, 0.],
             [0. , 0.5]], dtype=float32)
    """
    if not epsilon > 0:
        raise InputError(f"epsilon must be positive, got {epsilon}.")
    if num_iterations < 1:
        raise InputError(f"num_iterations must be at least 1, got {num_iterations}.")
    scaled = -as_float(cost) / epsilon
    rows, columns = jnp.log(jnp.asarray(scaled.shape, scaled.dtype))

    def iterate(g: Float[Array, " M"], _):
        f = rows_of(g)
        return -jax.nn.logsumexp(scaled + f[:, None] - rows, axis=0), None

    def rows_of(g: Float[Array, " M"]):
        return -jax.nn.logsumexp(scaled + g[None, :] - columns, axis=1)

    g = jnp.zeros_like(scaled[0])
    if num_iterations > 1:
        g, _ = jax.lax.scan(iterate, g, length=num_iterations - 1)
    f = rows_of(g)
    g = -jax.nn.logsumexp(scaled + f[:, None] - rows, axis=0)
    plan = jnp.exp(scaled + f[:, None] + g[None, :] - rows - columns)
    return epsilon * (jnp.mean(f) + jnp.mean(g)), plan


def sinkhorn_divergence(
    cost: Float[Array, "N M"],
    cost_self: Float[Array, "N N"],
    cost_other: Float[Array, "M M"],
    *,
    epsilon: float,
    num_iterations: int,
) -> Float[Array, ""]:
    """The debiased transport ``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2``.

    Zero for equal sets, unlike the transport itself.

    Args:
      cost: between the sets ``[N, M]``.
      cost_self: within the first ``[N, N]``.
      cost_other: within the second ``[M, M]``.
      epsilon: strength of the entropy.
      num_iterations: at least 1.

    Returns:
      A scalar, non-negative at convergence for costs such as ``|x - y|^p`` with
      ``0 < p <= 2``.

    Raises:
      InputError: as ``sinkhorn``.

    Reference:
      Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
      Divergences", arXiv 1810.08278, eq. 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> cost = 1.0 - jnp.eye(3)
      >>> dv.sinkhorn_divergence(cost, cost, cost, epsilon=0.1, num_iterations=9)
      Array(0., dtype=float32)
    """

    def value(c: Float[Array, "..."]):
        return sinkhorn(c, epsilon=epsilon, num_iterations=num_iterations)[0]

    return value(cost) - value(cost_self) / 2 - value(cost_other) / 2


def sinkd(
    logits: Float[Array, "N V"],
    logits_ref: Float[Array, "N V"],
    *,
    epsilon: float = 0.1,
    num_iterations: int = 20,
    temperature: float = 2.0,
) -> Float[Array, ""]:
    """SinKD's distance between a batch of student and of teacher predictions.

    ``sum P_ij |p_i - q_j|_1`` with the plan's columns summing to 1. It compares
    sets: permuting the teacher's batch changes nothing, so it accompanies a loss
    that matches example to example. Not debiased: not 0 for equal batches.

    Args:
      logits: the student's ``[N, V]``.
      logits_ref: the teacher's ``[N, V]``.
      epsilon: strength of the entropy; the cost is at most 2.
      num_iterations: Sinkhorn iterations.
      temperature: divides both logits.

    Returns:
      A scalar, of size N times a transport cost.

    Raises:
      InputError: as ``sinkhorn``, or if the temperature is not positive.

    Reference:
      Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", arXiv
      2402.17110, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.sinkd(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
      Array(0., dtype=float32)
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}.")
    p = jax.nn.softmax(as_float(logits) / temperature, axis=-1)
    q = jax.nn.softmax(as_float(logits_ref) / temperature, axis=-1)
    gap = p[:, None, :] - q[None, :, :]
    # Not abs: its gradient at 0 is 1 in JAX, and the sign's is 0.
    cost = jnp.sum(jax.lax.stop_gradient(jnp.sign(gap)) * gap, axis=-1)
    _, plan = sinkhorn(cost, epsilon=epsilon, num_iterations=num_iterations)
    return jnp.sum(plan * cost) * len(p)


def cauchy_schwarz_kernel(
    x: Float[Array, "N D"], y: Float[Array, "M D"], *, bandwidth: float
) -> Float[Array, ""]:
    """The Cauchy-Schwarz divergence of two samples' kernel density estimates.

    ``D = log mean K_xx + log mean K_yy − 2 log mean K_xy``,
    ``K = e^{−|x − y|² / (2 bandwidth²)}``, the means over all pairs, the diagonals
    included: that of the densities smoothed with variance ``bandwidth^2 / 2`` each.
    Natural logarithms, summed in log space.

    Args:
      x: sample of the first law ``[N, D]``.
      y: sample of the second ``[M, D]``.
      bandwidth: the kernel's standard deviation, positive.

    Returns:
      A scalar, non-negative, 0 for equal samples.

    Raises:
      InputError: if the bandwidth is not positive.

    Reference:
      Yu et al., "Cauchy-Schwarz Divergence Information Bottleneck for Regression",
      arXiv 2404.17951, eq. 13.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.cauchy_schwarz_kernel(jnp.zeros((1, 1)), jnp.ones((1, 1)), bandwidth=1.0)
      Array(1., dtype=float32)
    """
    if not bandwidth > 0:
        raise InputError(f"bandwidth must be positive, got {bandwidth}.")
    x, y = as_float(x) / bandwidth, as_float(y) / bandwidth

    def log_mean(a: Float[Array, "..."], b: Float[Array, "..."]):
        distance = jnp.sum(jnp.square(a[:, None] - b[None]), axis=-1)
        return jax.nn.logsumexp(-distance / 2) - jnp.log(len(a) * len(b))

    return log_mean(x, x) + log_mean(y, y) - 2 * log_mean(x, y)
