"""Links: what a loss makes of a margin. All fall where a margin grows from 0.

``margin [...] -> loss [...]``, finite in value and gradient at any finite margin.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, positive
from alignax.numerics import as_float, exp
from alignax.types import InputError


def logistic_link(margin: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``−log σ(m)``: the likelihood of a Bradley-Terry label (DPO).

    Args:
      margin: ``[...]``.

    Returns:
      ``[...]``.

    Reference:
      Rafailov et al., "Direct preference optimization", arXiv 2305.18290, eq. 7.

    Example:
      >>> print(logistic_link(jnp.array([0.0, -1e4])).round(4))
      [6.931e-01 1.000e+04]
    """
    return jax.nn.softplus(-as_float(margin))


def squared_link(
    margin: Float[Array, "*batch"], *, target: Strength
) -> Float[Array, "*batch"]:
    """``(m − target)²``: a margin to reach and not to exceed (IPO).

    IPO applies it to the log-ratio margin h itself with target ``1/(2β)``.

    Args:
      margin: ``[...]``.
      target: where the loss is 0.

    Returns:
      ``[...]``.

    Reference:
      Azar et al., "A general theoretical paradigm to understand learning from human
      preferences", arXiv 2310.12036, eq. 17.

    Example:
      >>> print(squared_link(jnp.array([0.0, 2.0]), target=2.0))
      [4. 0.]
    """
    return jnp.square(as_float(margin) - target)


def hinge_link(margin: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``max(0, 1 − m)``: nothing to gain beyond a margin of 1 (SLiC, RSO).

    Args:
      margin: ``[...]``.

    Returns:
      ``[...]``.

    Reference:
      Zhao et al., "SLiC-HF", arXiv 2305.10425; Liu et al., "Statistical rejection
      sampling improves preference optimization", arXiv 2309.06657, eq. 8.

    Example:
      >>> print(hinge_link(jnp.array([0.0, 2.0])))
      [1. 0.]
    """
    return jax.nn.relu(1 - as_float(margin))


def exponential_link(margin: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``e^{−m}``, as in boosting; its tangent below a margin of −40 (float32).

    Args:
      margin: ``[...]``.

    Returns:
      ``[...]`` float32.

    Reference:
      Tang et al., "Generalized preference optimization", arXiv 2402.05749, table 1.

    Example:
      >>> print(exponential_link(jnp.array([0.0, -jnp.log(2.0)])).round(4))
      [1. 2.]
    """
    return exp(-as_float(margin))


def blended_link(
    margin: Float[Array, "*batch"], *, temperature: float = 0.05
) -> Float[Array, "*batch"]:
    """DiscoPOP's discovered link, from logistic to exponential as m turns positive.

    ``(1 − w) softplus(−m) + w e^{−m}``, ``w = σ(m/τ)``. Not convex; w is
    differentiated, as by its authors.

    Args:
      margin: ``[...]``.
      temperature: τ, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``temperature`` is not positive.

    Reference:
      Lu et al., "Discovering preference optimization algorithms with and for large
      language models", arXiv 2406.08414, eq. 5.

    Example:
      >>> print(blended_link(jnp.array(0.0)).round(4))
      0.8466
    """
    positive(temperature=temperature)
    margin = as_float(margin)
    weight = jax.nn.sigmoid(margin / temperature)
    return (1 - weight) * logistic_link(margin) + weight * exponential_link(margin)


def reverse_cross_entropy_link(
    margin: Float[Array, "*batch"], *, noise: float = 1e-3
) -> Float[Array, "*batch"]:
    """EXO's ``KL(model ‖ label)``: the reverse of cross-entropy, which seeks modes.

    ``σ(m) log σ(m)/(1 − ε) + σ(−m) log σ(−m)/ε``; 0 at ``m = logit(1 − ε)``.

    Args:
      margin: ``[...]``.
      noise: ε, in (0, 1): a certain label would make the KL infinite.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``noise`` is not in (0, 1).

    Reference:
      Ji et al., "Towards efficient exact optimization of language model alignment",
      arXiv 2402.00856, eq. 13.

    Example:
      >>> print(reverse_cross_entropy_link(jnp.log(jnp.array([999.0, 1.0]))).round(4))
      [0. 2.7612]
    """
    if not 0 < noise < 1:
        raise InputError(f"noise must be in (0, 1), got {noise}")
    margin = as_float(margin)
    win, lose = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return jax.nn.sigmoid(margin) * (win - math.log1p(-noise)) + jax.nn.sigmoid(
        -margin
    ) * (lose - math.log(noise))
