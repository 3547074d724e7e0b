"""Distillation losses of logits, and of samples."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax import divergences, reduce
from alignax.divergences import Divergence
from alignax.numerics import as_float
from alignax.types import InputError

FORWARD, REVERSE = divergences.forward_kl(), divergences.reverse_kl()
Support = Literal["student", "teacher"]


def coarse(
    div: Divergence,
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    *,
    k: int,
    support: Support = "teacher",
) -> Float[Array, "*batch"]:
    """A divergence over k tokens, and all others as one.

    Both laws keep the probabilities of the k tokens and put the rest into one more
    outcome. To lump outcomes never raises a divergence, so this is at most the whole
    one, and all of it where the two agree in proportion on the rest. The student's
    likeliest tokens show what it should not say, the teacher's what it should: a
    reverse KL on the teacher's support does not see which of the other tokens the
    student prefers, a forward KL on the student's not which ones it has forgotten.

    Args:
      div: the divergence.
      logits: the student's ``[..., V]``.
      logits_ref: the teacher's ``[..., V]``, held fixed.
      k: how many tokens are told apart, from 1 to V − 1.
      support: whose likeliest tokens they are.

    Returns:
      ``[...]`` in nats.

    Value: a lower bound of the whole divergence.
    Gradient: the bound's own, the choice of tokens held fixed.

    Raises:
      InputError: ``k`` is out of range, or ``support`` unknown.

    Example:
      >>> student, teacher = jnp.zeros(4), jnp.log(jnp.array([0.7, 0.1, 0.1, 0.1]))
      >>> kl = divergences.forward_kl()
      >>> [round(float(coarse(kl, student, teacher, k=k)), 3) for k in (1, 3)]
      [0.446, 0.446]
    """
    size = logits.shape[-1]
    if not 1 <= k < size:
        raise InputError(f"k must be from 1 to {size - 1}, got {k}")
    if support not in ("student", "teacher"):
        raise InputError(f'support must be "student" or "teacher", got {support!r}')
    logits_ref = jax.lax.stop_gradient(logits_ref)
    of = logits_ref if support == "teacher" else jax.lax.stop_gradient(logits)
    _, chosen = jax.lax.top_k(of, k)
    told = jnp.any(jax.nn.one_hot(chosen, size, dtype=bool), axis=-2)

    def lumped(x):
        x = as_float(x)
        kept = jnp.take_along_axis(x, chosen, axis=-1)
        rest = jax.nn.logsumexp(jnp.where(told, -jnp.inf, x), axis=-1, keepdims=True)
        return jnp.concatenate([kept, rest], axis=-1)

    return divergences.exact(div, lumped(logits), lumped(logits_ref))


def balanced(
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    *,
    weigh: Callable[[Float[Array, "*batch"]], tuple[Array, Array]],
) -> Float[Array, "*batch"]:
    """Forward and reverse KL, weighed by how much surer one of the two is.

    Args:
      logits: the student's ``[..., V]``.
      logits_ref: the teacher's ``[..., V]``, held fixed.
      weigh: from the gap of entropies ``H(student) − H(teacher)`` (nats, held fixed)
        the weights of ``KL(teacher‖student)`` and of ``KL(student‖teacher)``.

    Returns:
      ``[...]`` in nats.

    Value: exact.
    Gradient: exact, with the weights held fixed.

    Reference:
      Amara et al., "BD-KD: Balancing the Divergences for Online Knowledge
      Distillation", arXiv 2212.12965. Which side of the gap gets which weight is the
      caller's to say.

    Example:
      >>> both = lambda gap: (jnp.ones_like(gap), jnp.ones_like(gap))
      >>> a, b = jnp.array([0.0, 1.0]), jnp.zeros(2)
      >>> print(f"{balanced(a, b, weigh=both):.4f}")  # Jeffreys
      0.2311
    """
    logits_ref = jax.lax.stop_gradient(as_float(logits_ref))

    def entropy(x):
        logp = jax.nn.log_softmax(x)
        return -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0), axis=-1)

    gap = entropy(jax.lax.stop_gradient(as_float(logits))) - entropy(logits_ref)
    forward, reverse = jax.lax.stop_gradient(weigh(gap))
    return forward * divergences.exact(
        FORWARD, logits, logits_ref
    ) + reverse * divergences.exact(REVERSE, logits, logits_ref)


def surer(gap: Float[Array, "*batch"]) -> tuple[Array, Array]:
    """Weights for ``balanced``: the less sure student is pulled by the reverse KL.

    Args:
      gap: ``H(student) − H(teacher)``, nats.

    Returns:
      the weights of the forward and of the reverse KL, 1 in all: ``σ(−gap), σ(gap)``.

    Example:
      >>> print(*(f"{x:.2f}" for x in surer(jnp.array(1.0))))
      0.27 0.73
    """
    share = jax.nn.sigmoid(as_float(gap))
    return 1 - share, share


def pld(
    logits: Float[Array, "*batch V"],
    logits_ref: Float[Array, "*batch V"],
    targets: Int[Array, "*batch"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Rank the vocabulary as the teacher does, the right token first (PLD).

    ``L = Σ_k q_{π_k} [log Σ_{j≥k} e^{s_{π_j}} − s_{π_k}]``, π the right token and then
    all others by the teacher's logits, q the teacher's softmax.

    Args:
      logits: the student's ``[..., V]``.
      logits_ref: the teacher's ``[..., V]``, held fixed.
      targets: ``[...]``, the right tokens.
      temperature: divides the teacher's logits in the weights.

    Returns:
      ``[...]``; convex in the student's logits, unchanged by a constant on them.

    Raises:
      InputError: the temperature is not positive.

    Reference:
      "Plackett-Luce Distillation", arXiv 2506.12542.

    Example:
      >>> student = jnp.array([0.3, -0.2, 0.8, 0.1])
      >>> teacher = jnp.array([2, 0.5, 1, -1.0])
      >>> print(f"{pld(student, teacher, jnp.array(1)):.4f}")
      1.1072
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    logits, logits_ref = as_float(logits), jax.lax.stop_gradient(as_float(logits_ref))
    first = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    order = jnp.argsort(jnp.where(first, jnp.inf, logits_ref), axis=-1, descending=True)
    weights = jax.nn.softmax(logits_ref / temperature, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    left = jax.lax.associative_scan(
        jnp.logaddexp, ranked, reverse=True, axis=ranked.ndim - 1
    )
    weights = jnp.take_along_axis(weights, order, axis=-1)
    return jnp.sum(weights * (left - ranked), axis=-1)


def tvd_surrogate(
    logp: Float[Array, "*batch T"],
    logp_ref: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    *,
    standardised: bool = True,
) -> Float[Array, "*batch T"]:
    """The total variation's policy gradient, on the student's own tokens (TVD++).

    ``−r log p``, r = 1 where the teacher gives the token more than the student does:
    what a draft model's acceptance, ``1 − TV``, rises by. Standardised over all trained
    tokens, r has the same expected direction and a lower variance.

    Args:
      logp: the student's ``[..., T]``.
      logp_ref: the teacher's ``[..., T]``, held fixed.
      mask: True on the tokens that the student drew.
      standardised: subtract the mean of r and divide by its standard deviation.

    Returns:
      ``[..., T]``, zero where masked; zero everywhere where r is the same for all
      tokens and it is standardised.

    Value: none of its own.
    Gradient: unbiased for that of each token's TV at its prefix, plain; standardised
      the same divided by the deviation, up to what the mean over a batch shares.

    Reference:
      "Direct alignment of draft model for speculative decoding", arXiv 2403.00858.

    Example:
      >>> logp, logp_ref = jnp.log(jnp.array([[0.4, 0.6], [0.6, 0.4]]))[:, None]
      >>> print(tvd_surrogate(logp, logp_ref, jnp.ones((1, 2), bool)).round(4))
      [[ 0.9163 -0.5108]]
    """
    logp = reduce.masked(as_float(logp), mask)
    logp_ref = jax.lax.stop_gradient(reduce.masked(as_float(logp_ref), mask))
    reward = reduce.masked((logp_ref > logp).astype(logp.dtype), mask)
    if standardised:
        count = jnp.sum(mask, dtype=logp.dtype)
        mean = reduce.divide(jnp.sum(reward), count)
        centred = reduce.masked(reward - mean, mask)
        spread = jnp.sqrt(reduce.divide(jnp.sum(jnp.square(centred)), count))
        reward = jnp.where(spread > 1e-6, centred / jnp.maximum(spread, 1e-6), 0)
    return -jax.lax.stop_gradient(reward) * logp
