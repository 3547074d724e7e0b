"""Constraints in expectation: the exponential family's multipliers from samples."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignax.numerics import as_float, varying_as
from alignax.types import InputError


class Multipliers(NamedTuple):
    """The fit of ``p_x ∝ ρ e^{λ·φ}``, for D features and G prompts."""

    values: Float[Array, " D"]
    """λ."""
    errors: Float[Array, " D"]
    """Their standard errors, of the samples."""
    moments: Float[Array, " D"]
    """``E φ`` under the fitted targets: the wanted ones, where they can be met."""
    log_z: Float[Array, " G"]
    """Of each prompt."""
    effective: Float[Array, " G"]
    """Effective sample size of each prompt."""
    lowest: Float[Array, " D"]
    """The mean over prompts of the samples' smallest feature: no target on these
    samples has a moment below it."""
    highest: Float[Array, " D"]
    """The same of the largest."""


def fit_multipliers(
    features: Float[Array, "G N D"],
    moments: Float[Array, " D"],
    log_weights: Float[Array, "G N"] | None = None,
    *,
    iterations: int = 40,
    ridge: float = 1e-6,
) -> Multipliers:
    """The multipliers with which the targets' mean features are the wanted moments.

    ``p_x ∝ ρ_x e^{λ·φ}`` for each prompt x, one λ for all, so that ``mean_x E_{p_x} φ``
    is given: among all conditional laws with those moments the nearest to ρ, in mean
    KL. λ minimises the convex ``mean_x log Z_x(λ) − λ·moments`` by Newton's method with
    halved steps, ``Z_x`` and the means self-normalised on N samples. One prompt is
    GDC's unconditional target.

    Value: consistent for λ; biased by O(1/N).
    Gradient: none; the fit is stopped.

    Args:
      features: ``[G, N, D]``, φ of N samples of each of G prompts.
      moments: ``[D]``, wanted means.
      log_weights: ``[G, N]``, ``log ρ − log q`` of samples of a proposal q; by default
        the reference itself sampled. ``-inf`` excludes a sample: constraints that every
        sample must meet. A prompt whose samples are all excluded does not count.
      iterations: Newton steps.
      ridge: added to the covariance's diagonal relative to its mean, for features that
        say the same; it does not move the solution.

    Returns:
      ``Multipliers``. The errors are the sandwich's, ``H⁻¹ S H⁻¹`` with S the variance
      of the self-normalised means; the prompts are taken as they are. Moments that
      cannot be met leave large multipliers and moments that differ:
      ``refuse_unmet`` says so.

    Reference:
      Khalifa, Elsahar and Dymetman, arXiv 2012.11635, §2.2, and their code, which
      descends by plain steps and weighs prompts by their normalisers; here each counts
      alike, as it does in training.

    Example:
      >>> features = jnp.array([[1.0], [0.0], [0.0], [1.0]])[None]
      >>> logp = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
      >>> fit = fit_multipliers(features, jnp.array([0.8]), logp)
      >>> print(fit.values.round(4))
      [1.3863]
    """
    features, moments = as_float(features), as_float(moments)
    if log_weights is None:
        log_weights = jnp.zeros(features.shape[:2], features.dtype)
    log_weights = as_float(log_weights)
    features, moments, log_weights = jax.lax.stop_gradient(
        (features, moments, log_weights)
    )
    inside = log_weights > -jnp.inf
    counts = jnp.any(inside, axis=-1)
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    features = jnp.where(inside[..., None], features, 0)
    size, width = features.shape[1:]

    def log_normalisers(values):
        logits = jnp.where(inside, log_weights, 0) + features @ values
        logits = jnp.where(counts[:, None], logits, 0)
        kept = inside | ~counts[:, None]
        return logits, kept, jax.nn.logsumexp(logits, axis=-1, where=kept)

    def shares(values):
        logits, kept, log_sum = log_normalisers(values)
        return jnp.where(kept, jnp.exp(logits - log_sum[:, None]), 0)

    def objective(values):
        return jnp.sum(share * log_normalisers(values)[2]) - values @ moments

    def around(values):
        p = shares(values)
        means = jnp.einsum("gn,gnd->gd", p, features)
        return p, means, jnp.where(inside[..., None], features - means[:, None], 0)

    def curvature(values):
        p, means, centred = around(values)
        metric = jnp.einsum("g,gn,gnd,gne->de", share, p, centred, centred)
        scale = jnp.trace(metric) / width
        scale = jnp.where(scale > 0, scale, 1)
        return share @ means, metric + ridge * scale * jnp.eye(width, dtype=p.dtype)

    halvings = 0.5 ** jnp.arange(12, dtype=features.dtype)

    def step(_, values):
        means, metric = curvature(values)
        direction = -jnp.linalg.solve(metric, means - moments)
        trials = values[None] + halvings[:, None] * direction[None]
        trials = jnp.concatenate([trials, values[None]])
        found = jax.vmap(objective)(trials)
        return trials[jnp.argmin(jnp.where(jnp.isfinite(found), found, jnp.inf))]

    start = varying_as(jnp.zeros_like(moments), features, moments, log_weights)
    values = jax.lax.fori_loop(0, iterations, step, start)
    p, _, centred = around(values)
    reached, metric = curvature(values)
    noise = jnp.einsum(
        "g,gn,gnd,gne->de", jnp.square(share), jnp.square(p), centred, centred
    )
    inverse = jnp.linalg.inv(metric)
    errors = jnp.sqrt(jnp.maximum(jnp.diagonal(inverse @ noise @ inverse), 0))
    low = jnp.min(features, axis=1, where=inside[..., None], initial=jnp.inf)
    high = jnp.max(features, axis=1, where=inside[..., None], initial=-jnp.inf)
    own = share[:, None] > 0
    log_z = log_normalisers(values)[2] - jnp.log(jnp.asarray(size, p.dtype))
    return Multipliers(
        values=values,
        errors=errors,
        moments=reached,
        log_z=jnp.where(counts, log_z, -jnp.inf),
        effective=jnp.where(
            counts, 1 / jnp.maximum(jnp.sum(jnp.square(p), axis=-1), 1e-30), 0
        ),
        lowest=jnp.sum(share[:, None] * jnp.where(own, low, 0), axis=0),
        highest=jnp.sum(share[:, None] * jnp.where(own, high, 0), axis=0),
    )


def refuse_unmet(
    fit: Multipliers,
    moments: Sequence[float],
    names: Sequence[str],
    *,
    tolerance: float = 0.01,
) -> None:
    """Refuse constraints that no target on the samples meets: which, and how far.

    One at the edge of what the samples have is refused as well: it is met by an endless
    multiplier alone, as of a mean of 0.5 where half of the prompts have no sample with
    the feature.

    On the host, once the multipliers are fitted.

    Args:
      fit: of ``fit_multipliers``.
      moments: the wanted ones.
      names: of the features.
      tolerance: relative to what the samples' feature ranges over.

    Raises:
      InputError: a moment is not met, or met at the edge alone, or no sample is left
        to meet any.

    Example:
      >>> fit = fit_multipliers(jnp.array([[[0.0], [0.5]]]), jnp.array([0.8]))
      >>> try:
      ...     refuse_unmet(fit, [0.8], ["exclaims"])
      ... except InputError as error:
      ...     print(str(error).split(":")[0])
      moment of exclaims cannot be 0.8
    """
    if not np.any(np.asarray(fit.effective) > 0):
        raise InputError(
            "the constraints exclude every sample of the reference: there is no target "
            "to move towards; sample more, or ask for what the model sometimes does"
        )
    parts = zip(names, moments, *map(np.asarray, fit[2:3] + fit[5:]), strict=True)
    said = []
    for name, wanted, reached, low, high in parts:
        off, slack = abs(reached - wanted), tolerance * max(high - low, 1e-6)
        between = (
            f"on the samples of the reference it is between {low:.4g} and {high:.4g}"
        )
        if not off <= slack:
            said.append(
                f"moment of {name} cannot be {wanted:g}: {between}, and with the other "
                f"constraints {reached:.4g} at the nearest, {off:.4g} away"
            )
        elif not low + slack < wanted < high - slack:
            # In the limit alone: the multiplier grows with the iterations.
            said.append(
                f"moment of {name} must be within what the samples have, got "
                f"{wanted:g}: {between}, and at the edge no multiplier is finite"
            )
    if said:
        raise InputError(
            "; ".join(said) + ". Ask for less, or take more samples for the fit"
        )
