"""Losses of single completions, labelled good or bad, and the anchors they need.

``log_ratio`` is ``log π/ρ`` of whole completions. A pair's two sides may be given as
well: then these are anchored losses, which say where each side goes and not only
how far apart they end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax._checks import Strength, not_negative, positive
from alignax.numerics import as_float


def _sign(desirable: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    return jnp.where(desirable, 1.0, -1.0)


def kto_anchor(
    log_ratio_mismatched: Float[Array, "*batch B"], *, axis_name: str | None = None
) -> Float[Array, "*batch"]:
    """KTO's reference point ``z₀ = max(0, mean log π/ρ)`` over mismatched pairs.

    Value: an estimate of ``KL(π‖ρ)``, biased, since completions of other prompts are
      no samples of the policy; one number a batch.
    Gradient: none; the result is stopped.

    Args:
      log_ratio_mismatched: ``[..., B]``, prompts with the completions of others.
      axis_name: devices to average over, before the maximum.

    Returns:
      ``[...]``.

    Reference:
      Ethayarajh et al., "KTO: model alignment as prospect theoretic optimization",
      arXiv 2402.01306, §4.1.

    Example:
      >>> print(kto_anchor(jnp.array([1.0, -0.5])))
      0.25
    """
    mean = jnp.mean(as_float(log_ratio_mismatched), axis=-1)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    return jax.lax.stop_gradient(jax.nn.relu(mean))


def kto(
    log_ratio: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    anchor: Float[Array, "*#batch"],
    *,
    beta: Strength,
    weight_desirable: Strength = 1.0,
    weight_undesirable: Strength = 1.0,
) -> Float[Array, "*batch"]:
    """``λ (1 − σ(±β (log π/ρ − z₀)))``: loss-averse, saturating on both sides.

    Args:
      log_ratio: ``[...]``, differentiated.
      desirable: ``[...]``, the labels.
      anchor: z₀, ``[...]`` or broadcast; no gradient.
      beta: strength of the regularisation, positive.
      weight_desirable: λ of good completions, not negative.
      weight_undesirable: λ of bad ones.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive or a weight negative.

    Reference:
      Ethayarajh et al., arXiv 2402.01306, eq. 8.

    Example:
      >>> labels = jnp.array([True, False])
      >>> print(kto(jnp.zeros(2), labels, jnp.zeros(1), beta=0.1))
      [0.5 0.5]
    """
    positive(beta=beta)
    not_negative(
        weight_desirable=weight_desirable, weight_undesirable=weight_undesirable
    )
    anchor = jax.lax.stop_gradient(as_float(anchor))
    value = beta * (as_float(log_ratio) - anchor) * _sign(desirable)
    weight = jnp.where(desirable, weight_desirable, weight_undesirable)
    return weight * jax.nn.sigmoid(-value)


def bco(
    log_ratio: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    shift: Float[Array, "*#batch"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """``−log σ(±(β log π/ρ − δ))``: a classifier whose logit is the implicit reward.

    Args:
      log_ratio: ``[...]``, differentiated.
      desirable: ``[...]``, the labels.
      shift: δ, the mean of all implicit rewards so far, as
        ``advantages.running_moments`` keeps it; no gradient.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Jung et al., "Binary classifier optimization for large language model
      alignment", arXiv 2404.04656, eq. 12.

    Example:
      >>> print(bco(jnp.zeros(1), jnp.array([True]), jnp.zeros(1), beta=0.1).round(4))
      [0.6931]
    """
    positive(beta=beta)
    shift = jax.lax.stop_gradient(as_float(shift))
    logit = beta * as_float(log_ratio) - shift
    return jax.nn.softplus(-logit * _sign(desirable))


def bco_batch_labels(
    log_ratio: Float[Array, "*batch B"],
    desirable: Bool[Array, "*batch B"],
    *,
    beta: Strength,
) -> Float[Array, "*batch B"]:
    """``bco`` with the batch's own δ, the mean reward of good and bad ones alike.

    Every completion of the batch must be there.

    Args:
      log_ratio: ``[..., B]``, differentiated.
      desirable: ``[..., B]``, the labels.
      beta: strength of the regularisation, positive.

    Returns:
      ``[..., B]``.

    Reference:
      Jung et al., arXiv 2404.04656, §3.3.

    Example:
      >>> labels = jnp.array([True, False])
      >>> print(bco_batch_labels(jnp.ones(2), labels, beta=1.0).round(4))  # δ = 1
      [0.6931 0.6931]
    """
    shift = beta * jnp.mean(as_float(log_ratio), axis=-1, keepdims=True)
    return bco(log_ratio, desirable, shift, beta=beta)


def apo_zero(
    log_ratio: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """APO-zero: good completions above the reference, bad ones below, apart.

    ``1 − σ(β log π/ρ)`` for good ones, ``σ(β log π/ρ)`` for bad: KTO at anchor 0. For
    data better than the policy.

    Args:
      log_ratio: ``[...]``, differentiated.
      desirable: ``[...]``, the labels.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      D'Oosterlinck et al., "Anchored preference optimization and contrastive
      revisions", arXiv 2408.06266, eq. 7.

    Example:
      >>> print(apo_zero(jnp.zeros(1), jnp.array([True]), beta=0.1))
      [0.5]
    """
    positive(beta=beta)
    return jax.nn.sigmoid(-beta * as_float(log_ratio) * _sign(desirable))


def seppo(
    log_ratio_w: Float[Array, "*batch"],
    log_ratio_sample: Float[Array, "*batch"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """SePPO for language models: the loser is an earlier policy's own sample.

    ``−log σ(β (u − s v))`` with ``s = sg sign(u)`` (0 counts as 1): where the policy
    fits the winner worse than the reference does, the sample is treated as good.

    Args:
      log_ratio_w: ``[...]``, u of the preferred completions, differentiated.
      log_ratio_sample: ``[...]``, v of the samples, differentiated.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Zhang et al., "SePPO: semi-policy preference optimization for diffusion
      alignment", arXiv 2410.05255; for language models by analogy.

    Example:
      >>> one = jnp.ones(())
      >>> print(seppo(one, one, beta=1.0).round(4), seppo(-one, one, beta=1.0).round(4))
      0.6931 0.6931
    """
    positive(beta=beta)
    u, v = as_float(log_ratio_w), as_float(log_ratio_sample)
    side = jax.lax.stop_gradient(jnp.where(u < 0, -1.0, 1.0))
    return jax.nn.softplus(-beta * (u - side * v))
