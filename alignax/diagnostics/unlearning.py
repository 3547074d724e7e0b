"""Whether a model is as if it had never seen some data, and how it gets there.

Retraining without the data is the truth. KLoM compares with it example by example; a
data model predicts its outputs, which a model can then be fitted to. Of ridge
regression the predictions are exact.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax.numerics import as_float
from alignax.types import InputError


def margin(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The margin of the right class, ``f_y − log Σ_{k≠y} e^{f_k}``: its log-odds.

    Args:
      logits: ``[..., V]``, normalised or not, V at least 2.
      targets: ``[...]``, y.

    Returns:
      ``[...]`` nats.

    Reference:
      Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching",
      arXiv 2410.23232.

    Example:
      >>> print(margin(jnp.array([2.0, 0.0, 0.0]), jnp.array(0)).round(4))
      1.3069
    """
    f = as_float(logits)
    is_target = jax.nn.one_hot(targets, f.shape[-1], dtype=bool)
    right = jnp.sum(jnp.where(is_target, f, 0), axis=-1)
    return right - jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, f), axis=-1)


def klom(
    unlearned: Float[Array, "*batch N"],
    retrained: Float[Array, "*batch M"],
    *,
    bins: int = 20,
    floor: float = 1e-5,
    limit: float = 100.0,
) -> Float[Array, "*batch"]:
    """KL divergence of margins: of one example's margins under N unlearned models from
    those under M models that were retrained without the data.

    ``KL(p‖q) = Σ p log(p/q)`` of two histograms over ``bins`` bins of equal width,
    which share the range of all N + M margins. Where p is not zero q is at least
    ``floor``, and is normalised again, so that the value stays below about
    ``log(1/floor)``, 11.5 nats: what is there says "disjoint", not how far apart.
    Unlike in the authors' code the last bin holds the largest margin, too.

    The order is the authors' code's, ``KL(unlearned‖retrained)``; with the arguments
    exchanged it is the other one.

    Value: of the histograms; biased upwards as the models are few: N = M = 100 of one
    law have 0.3 to 0.4 nats in 20 bins, as q misses bins of p.
    Gradient: none; the histograms are counts.

    Args:
      unlearned: ``[..., N]`` margins, of ``margin``; the models differ in their seeds.
      retrained: ``[..., M]``, of the same examples.
      bins: of either histogram, at least 1.
      floor: the least probability in q, in (0, 1).
      limit: margins are clipped to ± this, positive.

    Returns:
      ``[...]`` nats, not negative; NaN where a margin is NaN.

    Raises:
      InputError: a number is out of range, or there are no models.

    Reference:
      Georgiev et al., arXiv 2410.23232, and the code of its benchmark
      (RoyRin/data-unlearning-bench, ``eval.py``).

    Example:
      >>> apart = klom(jnp.zeros(100), jnp.ones(100))
      >>> print(apart.round(3), klom(jnp.ones(100), jnp.ones(100)))
      11.513 0.0
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    if not 0 < floor < 1:
        raise InputError(f"floor must be within (0, 1), got {floor}")
    if not limit > 0:
        raise InputError(f"limit must be positive, got {limit}")
    if not (unlearned.shape[-1] and retrained.shape[-1]):
        raise InputError(
            f"margins must be of at least one model each, got {unlearned.shape[-1]} "
            f"unlearned and {retrained.shape[-1]} retrained"
        )
    p, q = (jnp.clip(as_float(x), -limit, limit) for x in (unlearned, retrained))
    both = jnp.concatenate([p, q], axis=-1)
    low = jnp.min(both, axis=-1, keepdims=True)
    high = jnp.max(both, axis=-1, keepdims=True)
    width = jnp.where(high > low, high - low, 1)

    def histogram(x):
        index = jnp.floor((x - low) / width * bins)
        index = jnp.clip(jnp.nan_to_num(index), 0, bins - 1).astype(int)
        return jnp.mean(jax.nn.one_hot(index, bins, dtype=x.dtype), axis=-2)

    p, q = histogram(p), histogram(q)
    q = jnp.where(p > 0, jnp.maximum(q, floor), q)
    # p log(p/q) with 0 log 0 = 0.
    terms = jax.scipy.special.xlogy(p, p) - jax.scipy.special.xlogy(p, q)
    value = jnp.sum(terms, axis=-1) + jnp.log(jnp.sum(q, axis=-1))
    known = ~jnp.any(jnp.isnan(both), axis=-1)
    return jnp.where(known, jnp.maximum(value, 0), jnp.nan)


def ridge(
    features: Float[Array, "*batch N D"],
    targets: Float[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
    *,
    penalty: float,
) -> Float[Array, "*batch D"]:
    """Ridge regression, ``argmin ½ Σ (x·θ − y)² + ½ penalty |θ|²``: retraining, where
    the mask leaves examples out.

    Args:
      features: ``[..., N, D]``.
      targets: ``[..., N]``.
      mask: ``[..., N]``, True on the examples that are trained on.
      penalty: positive.

    Returns:
      ``[..., D]``, 0 where nothing is trained on; differentiable in all.

    Raises:
      InputError: ``penalty`` is not positive.

    Example:
      >>> x, y = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1.0, 2.0, 9.0])
      >>> print(ridge(x, y, jnp.array([True, True, False]), penalty=1.0).round(4))
      [0.8333]
    """
    return jnp.einsum(
        "...dn,...n->...d", *_solved(features, targets, mask, penalty=penalty)
    )


def _solved(features: Array, targets: Array, mask: Array, *, penalty: float):
    """``(XᵀX + penalty)⁻¹ Xᵀ`` and the targets, zero where masked."""
    if not penalty > 0:
        raise InputError(f"penalty must be positive, got {penalty}")
    x = jnp.where(mask[..., None], as_float(features), 0)
    gram = jnp.einsum("...nd,...ne->...de", x, x)
    gram = gram + penalty * _identity(gram)
    return jnp.linalg.solve(gram, jnp.swapaxes(x, -1, -2)), jnp.where(
        mask, as_float(targets), 0
    )


def _identity(like: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=like.dtype), like.shape)


def left_out_outputs(
    features: Float[Array, "*batch N D"],
    targets: Float[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
    forget: Bool[Array, "*batch N"],
    queries: Float[Array, "*batch M D"],
    *,
    penalty: float,
) -> Float[Array, "*batch M"]:
    """What ridge regression without the forget set would say, from the whole fit.

    With ``A = XᵀX + penalty``, ``H = X A⁻¹ Xᵀ`` and residuals ``r = y − Xθ``,
    ``θ₋ = θ − A⁻¹ X_Fᵀ (1 − H_FF)⁻¹ r_F`` (Woodbury), exactly. Its price is a solve of
    the size of the data here, where shapes are static; nothing is fitted again.

    Args:
      features: ``[..., N, D]``.
      targets: ``[..., N]``.
      mask: ``[..., N]``, True on the examples that were trained on.
      forget: ``[..., N]``, True on those that are to be forgotten.
      queries: ``[..., M, D]``, the features of the outputs.
      penalty: positive.

    Returns:
      ``[..., M]``; differentiable in all floats.

    Raises:
      InputError: ``penalty`` is not positive.

    Reference:
      the oracle's outputs that the data model of arXiv 2410.23232 predicts; the
      closed form is derived here and tested against retraining.

    Example:
      >>> x, y = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1.0, 2.0, 9.0])
      >>> everyone, last = jnp.ones(3, bool), jnp.arange(3) == 2
      >>> print(left_out_outputs(x, y, everyone, last, jnp.ones((1, 1)), penalty=1.0))
      [0.8333]
    """
    inverse, y = _solved(features, targets, mask, penalty=penalty)
    x = jnp.where(mask[..., None], as_float(features), 0)
    theta = jnp.einsum("...dn,...n->...d", inverse, y)
    gone = (forget & mask).astype(x.dtype)
    residual = (y - jnp.einsum("...nd,...d->...n", x, theta)) * gone
    hat = jnp.einsum("...nd,...dm->...nm", x, inverse)
    inside = gone[..., :, None] * hat * gone[..., None, :]
    solved = jnp.linalg.solve(_identity(inside) - inside, residual[..., None])[..., 0]
    theta = theta - jnp.einsum("...dn,...n->...d", inverse, solved)
    return jnp.einsum("...md,...d->...m", as_float(queries), theta)


def datamodel(
    features: Float[Array, "*batch N D"],
    targets: Float[Array, "*batch N"],
    mask: Bool[Array, "*batch N"],
    queries: Float[Array, "*batch M D"],
    *,
    penalty: float,
) -> Float[Array, "*batch M N"]:
    """Each example's effect on each output of ridge regression, by leaving it out.

    ``f(x) − f₋ᵢ(x) = xᵀA⁻¹xᵢ rᵢ / (1 − hᵢᵢ)``, exactly. As a data model they are
    added: without a set the output is about ``f(x) − Σ_{i∈F}`` of these, which is
    exact of one example, and leaves out what the members of F say in each other's
    place; ``left_out_outputs`` has that, too.

    Args:
      features: ``[..., N, D]``.
      targets: ``[..., N]``.
      mask: ``[..., N]``, True on the examples that were trained on.
      queries: ``[..., M, D]``.
      penalty: positive.

    Returns:
      ``[..., M, N]``, 0 for what was not trained on.

    Raises:
      InputError: ``penalty`` is not positive.

    Reference:
      Georgiev et al., arXiv 2410.23232 (its linear data models); leave-one-out by
      the hat matrix is Allen's PRESS, 1974.

    Example:
      >>> x, y = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1.0, 2.0, 9.0])
      >>> effects = datamodel(x, y, jnp.ones(3, bool), jnp.ones((1, 1)), penalty=1.0)
      >>> print((32 / 15 - effects[0, 2]).round(4))
      0.8333
    """
    inverse, y = _solved(features, targets, mask, penalty=penalty)
    x = jnp.where(mask[..., None], as_float(features), 0)
    theta = jnp.einsum("...dn,...n->...d", inverse, y)
    residual = y - jnp.einsum("...nd,...d->...n", x, theta)
    leverage = jnp.einsum("...nd,...dn->...n", x, inverse)
    change = inverse * (residual / (1 - leverage))[..., None, :]
    return jnp.einsum("...md,...dn->...mn", as_float(queries), change)


def matched(
    params: Float[Array, "*batch D"],
    queries: Float[Array, "*batch M D"],
    outputs: Float[Array, "*batch M"],
) -> Float[Array, "*batch D"]:
    """Data-model matching of a linear model: the nearest parameters with these outputs.

    ``θ + Q⁺ (outputs − Qθ)``: where gradient descent on ``½ Σ (q·θ − output)²`` from
    ``params`` ends. With outputs that are the retrained model's, and queries that span
    the features, it is that model.

    Args:
      params: ``[..., D]`` θ, of the model that has seen the data.
      queries: ``[..., M, D]`` Q.
      outputs: ``[..., M]``, predicted of a model that has not.

    Returns:
      ``[..., D]``.

    Reference:
      Georgiev et al., arXiv 2410.23232: datamodel matching, its convex case.

    Example:
      >>> print(matched(jnp.zeros(2), jnp.eye(2), jnp.array([1.0, 2.0])))
      [1. 2.]
    """
    theta, q = as_float(params), as_float(queries)
    missing = as_float(outputs) - jnp.einsum("...md,...d->...m", q, theta)
    return theta + jnp.einsum("...dm,...m->...d", jnp.linalg.pinv(q), missing)
