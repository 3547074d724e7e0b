"""Named losses that say where each side of a pair goes, not only how far apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, not_negative, positive
from alignax.preference import unpaired
from alignax.preference.links import logistic_link, squared_link
from alignax.preference.margins import policy_margin
from alignax.preference.named import Losses
from alignax.preference.pairs import Pair, log_ratios, per_token


def nca(pair: Pair, *, beta: Strength) -> Losses:
    """``−log σ(βu) − ½ log σ(−βu) − ½ log σ(−βv)``: noise-contrastive alignment.

    The preferred completion's likelihood does not fall with the margin's growth.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Chen et al., "Noise contrastive alignment of language models with explicit
      rewards", arXiv 2402.05369, eq. 12.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(nca(pair, beta=0.1).round(4))
      1.3863
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    return (
        logistic_link(beta * u)
        + (logistic_link(-beta * u) + logistic_link(-beta * v)) / 2
    )


def bco_pair(
    pair: Pair, shift: Float[Array, "..."] | float = 0.0, *, beta: Strength
) -> Losses:
    """``−log σ(βu − δ) − log σ(δ − βv)``: BCO's classifier on both sides.

    Args:
      pair: of ``[...]``.
      shift: δ, the mean of ``advantages.running_moments``; TRL leaves it 0.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Jung et al., "Binary classifier optimization for large language model
      alignment", arXiv 2404.04656.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(bco_pair(pair, beta=0.1).round(4))
      1.3863
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    shift = jax.lax.stop_gradient(shift)
    return logistic_link(beta * u - shift) + logistic_link(shift - beta * v)


def bco_batch(pair: Pair, *, beta: Strength) -> Losses:
    """``bco_pair`` with the batch's own δ: the mean implicit reward of both sides.

    Every pair of the batch must be there. ``advantages.running_moments`` keeps that of
    all batches instead, as the paper does; the first one's is the same.

    Args:
      pair: of ``[..., B]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[..., B]``.

    Reference:
      Jung et al., arXiv 2404.04656, §3.3.

    Example:
      >>> pair = Pair(*(jnp.array([x]) for x in [-1.0, -1.0, -2.0, -2.0, 1, 1]))
      >>> print(bco_batch(pair, beta=0.1).round(4))  # δ = 0.1
      [1.3863]
    """
    rewards = beta * (sum(log_ratios(pair)) / 2)
    return bco_pair(pair, jnp.mean(rewards, axis=-1, keepdims=True), beta=beta)


def kto_pair(
    pair: Pair, anchor: Float[Array, "..."] | float, *, beta: Strength
) -> Losses:
    """KTO of both sides of a pair; at anchor 0 it would be ``apo_zero_pair``.

    Args:
      pair: of ``[...]``.
      anchor: z₀, by ``kto_anchor`` from the batch's mismatched completions.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Ethayarajh et al., "KTO", arXiv 2402.01306, eq. 8.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(kto_pair(pair, 0.0, beta=0.1))
      1.0
    """
    u, v = log_ratios(pair)
    anchor = jnp.broadcast_to(jnp.asarray(anchor, u.dtype), u.shape)
    good = jnp.ones(u.shape, bool)
    return unpaired.kto(u, good, anchor, beta=beta) + unpaired.kto(
        v, ~good, anchor, beta=beta
    )


def sppo_hard(pair: Pair, *, beta: Strength) -> Losses:
    """``(u − 1/(2β))² + (v + 1/(2β))²``: SPPO with the pair's labels as win rates.

    ``games.sppo_loss`` is the method itself, on a policy's own samples.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Wu et al., "Self-play preference optimization", arXiv 2405.00675.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(sppo_hard(pair, beta=0.5))
      2.0
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    return squared_link(u, target=1 / (2 * beta)) + squared_link(
        v, target=-1 / (2 * beta)
    )


def apo_zero_pair(pair: Pair, *, beta: Strength) -> Losses:
    """``1 − σ(βu) + σ(βv)``: for pairs whose winner is better than the policy.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      D'Oosterlinck et al., "Anchored preference optimization and contrastive
      revisions", arXiv 2408.06266, eq. 7.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(apo_zero_pair(pair, beta=0.1))
      1.0
    """
    u, v = log_ratios(pair)
    good = jnp.ones(u.shape, bool)
    return unpaired.apo_zero(u, good, beta=beta) + unpaired.apo_zero(
        v, ~good, beta=beta
    )


def apo_down(pair: Pair, *, beta: Strength) -> Losses:
    """``σ(βu) + 1 − σ(βh)``: both down, the loser further; the policy is better.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      D'Oosterlinck et al., arXiv 2408.06266, eq. 8.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, -1.0, -1.0, 1, 1]))
      >>> print(apo_down(pair, beta=0.1))
      1.0
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    return jax.nn.sigmoid(beta * u) + jax.nn.sigmoid(-beta * (u - v))


def tpo(
    pair: Pair,
    logp_gold: Float[Array, "*batch"],
    length_gold: Float[Array, "*batch"],
    *,
    beta: Strength,
    alpha: Strength = 1.0,
) -> Float[Array, "*batch"]:
    """Triple preference: ``−log σ(β (log π(w) − log π(l))) − α log π(gold)/|gold|``.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      logp_gold: ``[...]`` of a third, best completion, differentiated.
      length_gold: ``[...]``, its tokens.
      beta: scale of the margin, positive.
      alpha: weight of the gold completion, not negative.

    Returns:
      ``[...]``.

    Reference:
      Saeidi et al., "Triple preference optimization", arXiv 2405.16681, eq. 9.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -1.0, 0.0, 0.0, 1, 1]))
      >>> print(tpo(pair, *jnp.array([-3.0, 3.0]), beta=0.1).round(4))
      1.6931
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    gold = per_token(logp_gold, length_gold)
    return logistic_link(beta * policy_margin(pair)) - alpha * gold
