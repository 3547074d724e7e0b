"""Closed forms of KL: Gaussians, worst-case weights, exponential tilting."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.divergences._numerics import excess, support_log_softmax
from alignax.numerics import as_float, varying_as
from alignax.types import InputError


def gaussian_kl(
    mean: Float[Array, "*batch"],
    log_variance: Float[Array, "*batch"],
    mean_ref: Float[Array, "*batch"] | float = 0.0,
    log_variance_ref: Float[Array, "*batch"] | float = 0.0,
) -> Float[Array, "*batch"]:
    """KL divergence between normal laws, one a coordinate.

    ``½ ((μ − μ₀)²/σ₀² + e^δ − 1 − δ)``, ``δ = log σ²/σ₀²``.

    Args:
      mean: of the first law.
      log_variance: its log-variance.
      mean_ref: of the second, default 0.
      log_variance_ref: its log-variance, default 0 (the standard normal).

    Returns:
      KL(first‖second) elementwise; sum over the coordinates of a diagonal
      Gaussian.

    Reference:
      Kingma and Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114, appendix
      B.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.gaussian_kl(jnp.array([0.5, -1.0]), jnp.zeros(2))
      Array([0.125, 0.5  ], dtype=float32)
    """
    delta = as_float(log_variance) - as_float(log_variance_ref)
    near = jnp.abs(delta) < 0.5
    far = jnp.where(near, 1, delta)
    spread = jnp.where(near, excess(jnp.where(near, delta, 0)), jnp.expm1(far) - far)
    shift = jnp.square(as_float(mean) - as_float(mean_ref))
    return (shift * jnp.exp(-as_float(log_variance_ref)) + spread) / 2


def kl_dro(
    losses: Float[Array, "*batch N"],
    *,
    strength: float,
    where: Bool[Array, "*batch N"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch N"]]:
    """The worst case of a mean loss under reweighting, penalised by KL.

    ``max_w Σ w_i ℓ_i − λ KL(w‖1/N) = λ log (1/N) Σ e^{ℓ_i/λ}``, ``w = softmax(ℓ/λ)``.

    Between the mean (strength to infinity, plus ``var / (2 strength)``) and the
    maximum (strength to 0).

    Args:
      losses: ``[..., N]``, of examples or of groups.
      strength: the penalty ``lambda``, positive.
      where: True at the losses that count, default all.

    Returns:
      The value ``[...]``, whose gradient is the mean under the worst-case
      weights, and these weights ``[..., N]``, stopped. 0 if no loss counts.

    Raises:
      InputError: if the strength is not positive.

    Reference:
      Hu and Hong, "Kullback-Leibler Divergence Constrained Distributionally Robust
      Optimization", 2013.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> dv.kl_dro(jnp.array([0.2, 1.0, 0.5, 2.0]), strength=0.7)[0].round(4)
      Array(1.2816, dtype=float32)
    """
    if not strength > 0:
        raise InputError(f"strength must be positive, got {strength}.")
    losses = as_float(losses)
    where = jnp.ones(losses.shape, bool) if where is None else where
    losses = jnp.where(where, losses, 0)
    count = jnp.maximum(jnp.sum(where, axis=-1), 1)
    mean = jnp.sum(losses, axis=-1) / count
    # Around the mean the first order is exactly 0: no cancellation when the
    # strength is large, which a log of a mean of exponentials would suffer.
    z = jnp.where(where, (losses - mean[..., None]) / strength, 0)
    _, log_weights = support_log_softmax(z, where)
    weights = jnp.where(where, jnp.exp(log_weights), 0)
    near = jnp.max(jnp.abs(z), axis=-1) < 0.5
    bend = jnp.sum(excess(jnp.where(near[..., None], z, 0)), axis=-1) / count
    # log N-th of sum e^z, from any entry: z_i - log w_i is the log of the sum.
    top = jnp.argmax(jnp.where(where, z, -jnp.inf), axis=-1)[..., None]
    log_sum = jnp.take_along_axis(z - log_weights, top, axis=-1)[..., 0]
    above = jnp.where(near, jnp.log1p(bend), log_sum - jnp.log(count))
    return mean + strength * above, jax.lax.stop_gradient(weights)


def information_projection(
    logits_ref: Float[Array, " K"],
    features: Float[Array, "K D"],
    moments: Float[Array, " D"],
    *,
    num_iterations: int = 30,
    ridge: float = 1e-6,
    where: Bool[Array, " K"] | None = None,
) -> tuple[Float[Array, " K"], Float[Array, " D"]]:
    """The law closest to a reference among those with given moments.

    ``p = argmin KL(p‖ρ)`` with ``E_p φ`` given, ``p_k ∝ ρ_k e^{λ·φ_k}``.

    The multipliers minimise the convex ``log E_ρ e^{λ·φ} −
    λ·moments``, by Newton's method with halved steps. On samples, give their log
    importance weights ``log ρ - log b`` as ``logits_ref``.

    Args:
      logits_ref: the reference's ``[K]``, normalised here; ``-inf`` excludes.
      features: ``phi`` of each candidate ``[K, D]``.
      moments: the wanted means ``[D]``, inside the convex hull of the features.
      num_iterations: Newton steps.
      ridge: added to the covariance's diagonal, relative to its mean; keeps
        redundant features solvable and does not move the solution.
      where: True at the candidates that exist, default all.

    Returns:
      The projection's log-probabilities ``[K]`` (``-inf`` where excluded) and
      the multipliers ``[D]``. First derivatives are the implicit ones. Moments
      that cannot be met leave ``E_p[phi]`` as near as the iterations got.

    Reference:
      Csiszár, "I-Divergence Geometry", 1975; Khalifa et al., "A Distributional Approach
      to Controlled Text Generation", arXiv 2012.11635.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> ref = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
      >>> features = jnp.array([[1.0], [0.0], [0.0], [1.0]])
      >>> logp, _ = dv.information_projection(ref, features, jnp.array([0.8]))
      >>> jnp.exp(logp).round(4)
      Array([0.16, 0.08, 0.12, 0.64], dtype=float32)
    """
    support, logp_ref = support_log_softmax(as_float(logits_ref), where)
    features = jnp.where(support[:, None], as_float(features), 0)
    moments = as_float(moments)

    def tilt(multipliers, logp_ref, features):
        logits = jnp.where(support, logp_ref + features @ multipliers, -jnp.inf)
        return support_log_softmax(logits, None)[1]

    def newton(multipliers, logp_ref, features, moments):
        """The Newton direction; the metric is held fixed."""
        p = jnp.where(support, jnp.exp(tilt(multipliers, logp_ref, features)), 0)
        error = p @ features - moments
        centred = features - (p @ features)[None]
        metric = (p[:, None] * centred).T @ centred
        scale = jnp.trace(metric) / len(moments)
        scale = jnp.where(scale > 0, scale, 1)
        metric = metric + ridge * scale * jnp.eye(len(moments), dtype=metric.dtype)
        return -jnp.linalg.solve(jax.lax.stop_gradient(metric), error)

    fixed = jax.lax.stop_gradient((logp_ref, features, moments))
    halvings = 0.5 ** jnp.arange(12, dtype=logp_ref.dtype)

    def objective(multipliers):
        logits = jnp.where(support, fixed[0] + fixed[1] @ multipliers, 0)
        top = jnp.max(jnp.where(support, logits, -jnp.inf), initial=-1e30)
        mass = jnp.sum(jnp.where(support, jnp.exp(logits - top), 0))
        return jnp.log(jnp.where(mass > 0, mass, 1)) + top - fixed[2] @ multipliers

    def step(_, multipliers):
        direction = newton(multipliers, *fixed)
        trials = multipliers[None] + halvings[:, None] * direction[None]
        return trials[jnp.argmin(jax.vmap(objective)(trials))]

    start = varying_as(jnp.zeros_like(moments), fixed)
    solution = jax.lax.stop_gradient(jax.lax.fori_loop(0, num_iterations, step, start))
    # A last step with the solution held fixed carries the implicit derivatives.
    solution = solution + newton(solution, logp_ref, features, moments)
    logp = jnp.where(support, tilt(solution, logp_ref, features), -jnp.inf)
    return logp, solution
