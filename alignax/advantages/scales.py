"""Scales that depend on lengths, on success rates and on meanings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln
from jaxtyping import Array, Bool, Float, Int

from alignax import evaluation, reduce
from alignax.advantages import groups
from alignax.numerics import as_float
from alignax.types import InputError

# Beyond this the Beta law of the success rates is a spike, and its fit noise.
CONCENTRATION = 1e4


def length_weighted_centred(
    rewards: Float[Array, "*G K"], lengths: Int[Array, "*G K"]
) -> Float[Array, "*G K"]:
    """Rewards less their mean over the group's *tokens* (OPO).

    ``A_k = r_k − Σ_j n_j r_j / Σ_j n_j``: the baseline of least variance if a
    score's square grows with the length. The advantages of all tokens add up to 0.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      lengths: ``[..., K]`` tokens.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2.

    Reference:
      Hao et al., "On-policy RL with optimal reward baseline", arXiv 2505.23585.

    Example:
      >>> print(length_weighted_centred(jnp.array([1.0, 0.0]), jnp.array([2, 6])))
      [0.75 -0.25]
    """
    rewards = groups.at_least_two(rewards)
    weights = as_float(lengths)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return rewards - reduce.divide(
        jnp.sum(weights * rewards, axis=-1, keepdims=True), total
    )


def token_group_standardised(
    rewards: Float[Array, "*G K"],
    lengths: Int[Array, "*G K"],
    *,
    eps: float = 1e-6,
    fallback: float = 5.0,
) -> Float[Array, "*G K"]:
    """Rewards standardised over the group's tokens (HAPO).

    Each token carries its completion's reward; mean and population deviation are
    over tokens. A group where an advantage would reach ``fallback`` (a short
    completion among long ones) is standardised over completions instead.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      lengths: ``[..., K]`` tokens.
      eps: added to the deviation; positive.
      fallback: the largest advantage; positive.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2, ``eps`` or ``fallback`` is not positive.

    Reference:
      Liu et al., "From uniform to heterogeneous: tailoring policy optimization to
      every token's nature", arXiv 2509.16591, token-level group average.

    Example:
      >>> rewards, lengths = jnp.array([1.0, 0.0]), jnp.array([2, 6])
      >>> print(token_group_standardised(rewards, lengths))
      [1.732 -0.5773]
    """
    if not fallback > 0:
        raise InputError(f"fallback must be positive, got {fallback}")
    by_sequence = groups.group_standardised(rewards, eps=eps, ddof=0)
    centred = length_weighted_centred(rewards, lengths)
    weights = as_float(lengths)
    variance = reduce.divide(
        jnp.sum(weights * centred**2, axis=-1, keepdims=True),
        jnp.sum(weights, axis=-1, keepdims=True),
    )
    equal = jnp.ptp(as_float(rewards), axis=-1, keepdims=True) == 0
    by_token = jnp.where(equal, 0, centred / (jnp.sqrt(variance) + eps))
    extreme = jnp.max(jnp.abs(by_token), axis=-1, keepdims=True) >= fallback
    return jnp.where(extreme, by_sequence, by_token)


def beta_normalised(
    rewards: Float[Array, "G K"], *, low: float = 0.0, high: float = 1.0
) -> Float[Array, "G K"]:
    """Centred rewards over a Beta density fitted to the success rates (BNPO).

    ``A = (r − p) / f_Beta(p; 1 + a/3, 1 + b/3)`` with p the group's mean and (a, b)
    the moments' fit to all groups' p, each parameter at least 1: the density that
    minimises the variance of the gradient when ``p ~ Beta(a, b)``. Parameters of 1
    give centred rewards, of 3/2 ``π/8`` of GRPO's advantages.

    Args:
      rewards: ``[G, K]``, between ``low`` and ``high``.
      low: the reward of a failure.
      high: the reward of a success.

    Returns:
      ``[G, K]`` float32, without gradient, in units of ``high − low``.

    Raises:
      InputError: K is less than 2 or ``high`` is not above ``low``.

    Reference:
      Xiao, Zhang and Cao, "BNPO: Beta normalization policy optimization",
      arXiv 2506.02864, eq. 12.

    Example:
      >>> rates = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
      >>> print(beta_normalised(jnp.array(rates, float))[0])
      [0.6674 -0.2225 -0.2225 -0.2225]
    """
    if not high > low:
        raise InputError(f"high must be above low, got low={low}, high={high}")
    scaled = (groups.at_least_two(rewards) - low) / (high - low)
    rate = jnp.mean(scaled, axis=-1)
    alpha, beta = _beta_parameters(rate)
    inside = (rate > 0) & (rate < 1)
    p = jnp.where(inside, rate, 0.5)
    log_density = (
        (alpha - 1) * jnp.log(p) + (beta - 1) * jnp.log1p(-p) - betaln(alpha, beta)
    )
    weight = jnp.where(inside, jnp.minimum(jnp.exp(-log_density), 1e6), 0)
    return (scaled - rate[:, None]) * weight[:, None]


def _beta_parameters(rate: Float[Array, " G"]):
    mean = jnp.mean(rate)
    # One prompt says nothing about the spread: both parameters become 1.
    variance = jnp.var(rate, ddof=1) if len(rate) > 1 else 1
    spread = mean * (1 - mean)
    fitted = spread / jnp.maximum(variance, spread / CONCENTRATION)
    concentration = jnp.where(spread > 0, fitted, 0) - 1
    a, b = concentration * mean, concentration * (1 - mean)
    return jnp.maximum(1, 1 + a / 3), jnp.maximum(1, 1 + b / 3)


def pass_at_k_weights(correct: Bool[Array, "*G K"], *, k: int) -> Float[Array, "*G K"]:
    """Unbiased weights for the gradient of pass@k (PKPO).

    ``k/n`` for a right completion, ``(k/n) · ρ(n−1, c, k−1)`` for a wrong one: the
    probability that the other draws hold a right one. With
    ``−w · log π`` summed over the group, the expected gradient is exactly that of
    ``1 − (1 − p)^k``.

    Args:
      correct: ``[..., K]``, which of the n = K completions are right.
      k: attempts, from 1 to n.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: ``k`` is not from 1 to n.

    Reference:
      Walder and Karkhanis, "Pass@K policy optimization", arXiv 2505.15201, eq. 9.

    Example:
      >>> correct = jnp.array([1, 0, 0, 0, 1, 0, 0, 0]) > 0
      >>> print(pass_at_k_weights(correct, k=2)[:2])
      [0.25 0.0714]
    """
    n = correct.shape[-1]
    if not 1 <= k <= n:
        raise InputError(f"k must be from 1 to the {n} completions, got {k}")
    if k == 1:
        return as_float(correct) / n
    right = jnp.sum(correct, axis=-1, keepdims=True)
    # Among the others of a wrong one, of which there is none where all are right.
    others = evaluation.pass_at_k(jnp.minimum(right, n - 1), n - 1, k=k - 1)
    return jnp.where(correct, 1.0, others) * (k / n)


def pass_at_k_standardised(
    correct: Bool[Array, "*G K"], *, k: int
) -> Float[Array, "*G K"]:
    """Advantages that train pass@k (Pass@k Training).

    ``A = ((n/k) w − ρ) / √(ρ(1−ρ))`` with w of ``pass_at_k_weights`` and ρ the
    group's unbiased pass@k. k = 1 is GRPO with the population's deviation.

    Args:
      correct: ``[..., K]``, which of the n = K completions are right.
      k: attempts, from 1 to n.

    Returns:
      ``[..., K]`` float32, without gradient; zero where ρ is 0 or 1.

    Raises:
      InputError: ``k`` is not from 1 to n.

    Reference:
      Chen et al., "Pass@k training", arXiv 2508.10751, eqs. 12-15.

    Example:
      >>> correct = jnp.array([1, 0, 0, 0, 1, 0, 0, 0]) > 0
      >>> print(pass_at_k_standardised(correct, k=2)[:2])
      [1.0742 -0.3581]
    """
    n = correct.shape[-1]
    weights = pass_at_k_weights(correct, k=k) * (n / k)
    right = jnp.sum(correct, axis=-1, keepdims=True)
    rate = evaluation.pass_at_k(right, n, k=k)
    deviation = jnp.sqrt(jnp.maximum(rate * (1 - rate), 0))
    return reduce.divide(weights - rate, jnp.broadcast_to(deviation, weights.shape))


def semantic_entropy(
    clusters: Int[Array, "*G K"], logp: Float[Array, "*G K"]
) -> Float[Array, "*G"]:
    """Entropy over the meanings of a prompt's answers, each meaning counted once.

    ``−(1/M) Σ_m log p(C_m)`` over the M clusters met, where ``p(C)`` is the share of
    the sampled answers' probability in C (Shannon's form weighs each by ``p(C_m)``).

    Args:
      clusters: ``[..., K]``, equal where answers mean the same.
      logp: ``[..., K]`` of the whole answers (length-normalised if wished), or zeros.

    Returns:
      ``[...]`` float32 in nats, without gradient; 0 for a single cluster.

    Reference:
      Farquhar et al., "Detecting hallucinations in large language models using
      semantic entropy", Nature 630, 2024; Chen et al., "SEED-GRPO",
      arXiv 2505.12346, eq. 5.

    Example:
      >>> print(semantic_entropy(jnp.array([7, 7, 2, 3]), jnp.zeros(4)))
      1.1552
    """
    log_cluster, _, size = _cluster_mass(clusters, logp)
    met = jnp.sum(1 / size, axis=-1)
    return -jnp.sum(log_cluster / size, axis=-1) / met


def _cluster_mass(clusters: Array, logp: Array):
    logp = jax.nn.log_softmax(jax.lax.stop_gradient(as_float(logp)), axis=-1)
    same = clusters[..., :, None] == clusters[..., None, :]
    inside = jnp.where(same, logp[..., None, :], -jnp.inf)
    mass = jax.nn.logsumexp(inside, axis=-1)
    return mass, jnp.exp(logp), jnp.sum(same, axis=-1, dtype=jnp.float32)


def linear_decay(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``1 − x``: SEED-GRPO's default form of a scale.

    Args:
      x: ``[...]``, the share of the largest semantic entropy, times alpha.

    Returns:
      ``[...]``.

    Example:
      >>> print(linear_decay(jnp.array([0.25])))
      [0.75]
    """
    return 1 - as_float(x)


def semantic_entropy_scaled(
    rewards: Float[Array, "*G K"],
    entropy: Float[Array, "*G"],
    *,
    most: float,
    alpha: float = 0.0417,
    form: Callable[[Array], Array] = linear_decay,
) -> Float[Array, "*G K"]:
    """Centred rewards, lighter where the answers' meanings differ (SEED-GRPO).

    ``A = (r − mean) · form(alpha · SE / most)``.

    Args:
      rewards: ``[..., K]``, the K completions of one prompt last.
      entropy: ``[...]``, the group's semantic entropy.
      most: the largest entropy, ``log K``; positive.
      alpha: strength.
      form: 1 at 0 and falling: ``linear_decay`` or ``lambda x: jnp.exp(-x)``.

    Returns:
      ``[..., K]`` float32, without gradient.

    Raises:
      InputError: K is less than 2 or ``most`` is not positive.

    Reference:
      Chen et al., "SEED-GRPO", arXiv 2505.12346, eq. 6.

    Example:
      >>> rewards, entropy = jnp.array([[1.0, 0.0]]), jnp.array([0.5])
      >>> print(semantic_entropy_scaled(rewards, entropy, most=1.0, alpha=0.4))
      [[0.4 -0.4]]
    """
    if not most > 0:
        raise InputError(f"most must be positive, got {most}")
    share = jax.lax.stop_gradient(as_float(entropy)) / most
    return groups.group_centred(rewards) * form(alpha * share)[..., None]
