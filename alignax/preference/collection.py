"""Pairs from scored samples: best and worst, best of n, rejection sampling."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import targets
from alignax._checks import positive
from alignax.numerics import as_float, varying_as
from alignax.types import InputError


def best_and_worst(
    rewards: Float[Array, "*G K"], mask: Bool[Array, "*G K"]
) -> tuple[Int[Array, "*G"], Int[Array, "*G"], Bool[Array, "*G"]]:
    """Which completions of each prompt make its pair: the highest and lowest reward.

    The pair of an iterated method: sample K, score, keep two, train, sample again.

    Args:
      rewards: ``[G, K]``.
      mask: ``[G, K]``, True on completions that may be chosen.

    Returns:
      the best's number ``[G]``, the worst's ``[G]`` (of equal ones the first), and
      ``[G]`` True where their rewards differ: other pairs say nothing.

    Reference:
      Dong et al., "RLHF workflow: from reward modeling to online RLHF",
      arXiv 2405.07863, §3.2.

    Example:
      >>> some = jnp.ones((1, 3), bool)
      >>> best, worst, differ = best_and_worst(jnp.array([[0.0, 2.0, 1.0]]), some)
      >>> print(best, worst, differ)
      [1] [0] [ True]
    """
    rewards = as_float(rewards)
    high = jnp.where(mask, rewards, -jnp.inf)
    low = jnp.where(mask, rewards, jnp.inf)
    differ = jnp.max(high, axis=-1) > jnp.min(low, axis=-1)
    return jnp.argmax(high, axis=-1), jnp.argmin(low, axis=-1), differ


def best_of_n_estimate(
    proxy: Float[Array, "*batch N"], gold: Float[Array, "*batch N"], *, n: int
) -> Float[Array, "*batch"]:
    """The gold reward of the best of n by the proxy, from N ≥ n samples.

    ``Σ_i C(i−1, n−1)/C(N, n) · gold_(i)``, samples in ascending order of the proxy: the
    mean over all subsets of n. The law itself, over enumerated outcomes, is
    ``exact.best_of_n``.

    Value: unbiased for the best-of-n reward, of samples of the reference.
    Gradient: in ``gold``; none in ``proxy``, whose order alone counts.

    Args:
      proxy: ``[..., N]``, what selects.
      gold: ``[..., N]``, what is measured.
      n: samples to select from, in 1 to N.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``n`` is not in 1 to N.

    Reference:
      Nakano et al., "WebGPT", arXiv 2112.09332, appendix I.

    Example:
      >>> gold = jnp.array([0.3, 0.9, 0.1])
      >>> print(best_of_n_estimate(gold, gold, n=2).round(4))
      0.7
    """
    count = proxy.shape[-1]
    if not 1 <= n <= count:
        raise InputError(f"n must be in 1 to the {count} samples, got {n}")
    order = jnp.argsort(jax.lax.stop_gradient(as_float(proxy)), axis=-1, stable=True)
    ranked = jnp.take_along_axis(as_float(gold), order, axis=-1)
    # The lowest n − 1 are never the best of n.
    ranked = ranked[..., n - 1 :]
    weights = jnp.asarray(_rank_weights(count, n), ranked.dtype)
    return _pairwise_sum(ranked * jnp.broadcast_to(weights, ranked.shape))


def _rank_weights(count: int, n: int) -> np.ndarray:
    """``C(i−1, n−1)/C(N, n)`` of the ranks i = n to N, by their ratios, in float64."""
    ranks = np.arange(count, n, -1, dtype=np.float64)
    ratios = np.concatenate([[n / count], (ranks - n) / (ranks - 1)])
    return np.cumprod(ratios)[::-1]


def _pairwise_sum(x: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """By halves: one after another, 10⁵ float32 terms are off by 1e-5."""
    while (width := x.shape[-1]) > 1:
        odd = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width % 2)])
        x = jnp.sum(odd.reshape(*x.shape[:-1], -1, 2), axis=-1)
    return x[..., 0]


def rejection_law(
    logp_ref: Float[Array, "*batch K"],
    rewards: Float[Array, "*batch K"],
    *,
    beta: float,
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """What statistical rejection sampling samples, over enumerated outcomes.

    Accepting with probability ``e^{(r − r_max)/β}`` leaves ``π ∝ ρ e^{r/β}``.

    Args:
      logp_ref: ``[..., K]`` of the law that proposes.
      rewards: ``[..., K]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``log π [..., K]``, and the log of the acceptance rate ``E_ρ e^{(r − r_max)/β}``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Liu et al., "Statistical rejection sampling improves preference optimization",
      arXiv 2309.06657, theorem 1.

    Example:
      >>> uniform = jnp.log(jnp.array([0.5, 0.5]))
      >>> rewards = jnp.log(jnp.array([1.0, 3.0]))
      >>> logp, log_rate = rejection_law(uniform, rewards, beta=1.0)
      >>> print(jnp.exp(logp).round(4), jnp.exp(log_rate).round(4))
      [0.25 0.75] 0.6667
    """
    logp, log_z = targets.posterior(rewards, logp_ref, beta=beta)
    support = logp_ref > -jnp.inf
    top = jnp.max(as_float(rewards), axis=-1, where=support, initial=-jnp.inf)
    return logp, log_z - top / beta


def rejection_sample(
    key: Key[Array, ""], rewards: Float[Array, " N"], *, count: int, beta: float
) -> Int[Array, " count"]:
    """RSO's algorithm 1: which of N candidates to keep, without replacement.

    Candidates are visited in turn and accepted with probability
    ``e^{(r − r_max)/β}``, ``r_max`` the highest reward not yet accepted, until there
    are ``count``. β → ∞ keeps the first ones, β → 0 the ``count`` best.

    Value: the first accepted is a sample of ``rejection_law`` as N grows.
    Gradient: none; the result is of integers.

    Args:
      key: of the acceptances.
      rewards: ``[N]`` of candidates that the reference proposed; vmap over prompts.
      count: how many to keep, at most N.
      beta: strength of the regularisation, positive.

    Returns:
      ``[count]``, numbers of candidates in the order of acceptance.

    Raises:
      InputError: ``count`` is not in 1 to N, or ``beta`` not positive.

    Reference:
      Liu et al., arXiv 2309.06657, algorithm 1.

    Example:
      >>> rewards = jnp.array([0.0, 5.0, 1.0])
      >>> print(rejection_sample(jax.random.key(0), rewards, count=2, beta=0.01))
      [1 2]
    """
    positive(beta=beta)
    size = rewards.shape[-1]
    if not 1 <= count <= size:
        raise InputError(f"count must be in 1 to the {size} candidates, got {count}")
    rewards = as_float(jax.lax.stop_gradient(rewards))

    def going(state):
        return state[1] < count

    def visit(state):
        step, accepted, kept, chosen = state
        candidate = step % size
        top = jnp.max(jnp.where(kept, -jnp.inf, rewards))
        log_u = jnp.log(jax.random.uniform(jax.random.fold_in(key, step)))
        # The best one left has log-probability 0 and log u < 0: each pass accepts one.
        take = ~kept[candidate] & (log_u < (rewards[candidate] - top) / beta)
        place = jnp.where(take, accepted, count)
        chosen = chosen.at[place].set(candidate, mode="drop")
        kept = kept.at[candidate].set(kept[candidate] | take)
        return step + 1, accepted + take, kept, chosen

    zero = jnp.int32(0)
    start = (zero, zero, jnp.zeros(size, bool), jnp.zeros(count, jnp.int32))
    start = varying_as(start, rewards, key)
    return jax.lax.while_loop(going, visit, start)[3]
