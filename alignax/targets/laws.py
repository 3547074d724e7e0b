"""Target laws over enumerated outcomes: the last axis holds all K of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax._checks import not_negative, positive
from alignax.numerics import as_float
from alignax.targets.samples import column, log_acceptance


def _tilt(
    logp_ref: Float[Array, "*batch K"], exponent: Float[Array, "*batch K"]
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """``log ρ e^x / Z`` and ``log Z``; no outcome, no weight, whatever its x."""
    support = logp_ref > -jnp.inf
    tilted = jnp.where(support, logp_ref, 0) + jnp.where(support, exponent, 0)
    log_z = jax.nn.logsumexp(tilted, axis=-1, where=support)
    return jnp.where(support, tilted - log_z[..., None], -jnp.inf), log_z


def _mean(logp: Float[Array, "*batch K"], values: Array) -> Float[Array, "*batch"]:
    support = logp > -jnp.inf
    return jnp.sum(jnp.exp(logp) * jnp.where(support, values, 0), axis=-1)


def posterior(
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    beta: float | Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """``p* = ρ e^{r/β} / Z``, the optimum of KL-regularised RL, and ``log Z``.

    ``log Z = log Σ_y ρ(y) e^{r(y)/β}``; ``β log Z`` is the largest regularised reward.

    Args:
      rewards: ``[..., K]``.
      logp_ref: ``[..., K]``; ``-inf`` excludes an outcome, whatever its reward.
      beta: strength of the regularisation, positive.

    Returns:
      ``log p* [..., K]`` and ``log Z [...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Korbak, Perez and Buckley, "RL with KL penalties is better viewed as Bayesian
      inference", arXiv 2205.11275.

    Example:
      >>> logp, log_z = posterior(jnp.arange(2.0), jnp.log(jnp.full(2, 0.5)), beta=1.0)
      >>> print(f"{jnp.exp(logp)[1]:.4f} {log_z:.4f}")
      0.7311 0.6201
    """
    positive(beta=beta)
    rewards = as_float(rewards)
    return _tilt(as_float(logp_ref), rewards / column(beta, rewards))


def conditioned(
    logp_ref: Float[Array, "*batch K"], satisfied: Bool[Array, "*batch K"]
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """``p = ρ b / Z``: the reference given a constraint b that every sample meets.

    The nearest law to ρ that does: ``KL(p‖ρ) = −log Z``.

    Args:
      logp_ref: ``[..., K]``.
      satisfied: ``[..., K]``, b.

    Returns:
      ``log p [..., K]`` and ``log Z [...]``, ``-inf`` where nothing satisfies b.

    Reference:
      Khalifa, Elsahar and Dymetman, "A distributional approach to controlled text
      generation", arXiv 2012.11635.

    Example:
      >>> logp, log_z = conditioned(jnp.log(jnp.full(4, 0.25)), jnp.arange(4) < 2)
      >>> print(jnp.exp(logp), f"{log_z:.4f}")
      [0.5 0.5 0. 0.] -0.6931
    """
    masses = jnp.where(satisfied, as_float(logp_ref), -jnp.inf)
    return _tilt(masses, jnp.zeros_like(masses))


class Cumulants(NamedTuple):
    """Of the reward under ``φ ∝ ρ e^{ηr}``: ``log_z`` is Λ(η) = log E_ρ e^{ηr},
    ``mean`` is Λ', ``variance`` is Λ'', ``kl`` is KL(φ‖ρ) = ηΛ' − Λ."""

    log_z: Float[Array, "*batch"]
    mean: Float[Array, "*batch"]
    variance: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]


def _normalise(logp_ref: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
    logp_ref = as_float(logp_ref)
    return _tilt(logp_ref, jnp.zeros_like(logp_ref))[0]


def _kl(logp: Float[Array, "*batch K"], logp_ref: Float[Array, "*batch K"]):
    support = logp_ref > -jnp.inf
    ratio = jnp.where(support, logp, 0) - jnp.where(support, logp_ref, 0)
    return _mean(logp, ratio)


def cumulants(
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    eta: float | Float[Array, "*batch"],
) -> Cumulants:
    """Reward and KL along the tilted laws ``φ ∝ ρ e^{ηr}``, where η is 1/β.

    Args:
      rewards: ``[..., K]``.
      logp_ref: ``[..., K]``, normalised here.
      eta: inverse strength of the regularisation.

    Returns:
      ``Cumulants``, each ``[...]``.

    Reference:
      Yang et al., "Asymptotics of language model alignment", arXiv 2404.01730.

    Example:
      >>> c = cumulants(jnp.arange(2.0), jnp.log(jnp.full(2, 0.5)), eta=0.0)
      >>> print(c.mean, c.variance, c.kl)
      0.5 0.25 0.0
    """
    logp_ref, rewards = _normalise(logp_ref), as_float(rewards)
    rewards = jnp.where(logp_ref > -jnp.inf, rewards, 0)
    logp, log_z = _tilt(logp_ref, column(eta, rewards) * rewards)
    mean = _mean(logp, rewards)
    variance = _mean(logp, jnp.square(rewards - mean[..., None]))
    return Cumulants(log_z, mean, variance, _kl(logp, logp_ref))


def constrained_optimum(
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    kl: float | Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """The largest expected reward within a KL budget.

    ``max E_φ r`` subject to ``KL(φ‖ρ) ≤ Δ``: ``φ ∝ ρ e^{ηr}`` with the η ≥ 0 that
    spends the budget, found by bisection since KL(η) increases. Derivatives are the
    implicit ones, ``dη = −∂KL / (η Var_φ r)``.

    Args:
      rewards: ``[..., K]``.
      logp_ref: ``[..., K]``, normalised here.
      kl: Δ in nats, not negative. From ``−log ρ(best outcomes)`` on, all mass is on
        the best and η is merely large.

    Returns:
      ``log φ [..., K]`` and ``η [...]``.

    Raises:
      InputError: ``kl`` is negative.

    Reference:
      Yang et al., "Asymptotics of language model alignment", arXiv 2404.01730.

    Example:
      >>> uniform, rewards = jnp.log(jnp.full(2, 0.5)), jnp.arange(2.0)
      >>> logp, eta = constrained_optimum(rewards, uniform, kl=0.110944)
      >>> print(f"{jnp.exp(logp)[1]:.4f} {eta:.4f}")
      0.7311 1.0000
    """
    not_negative(kl=kl)
    logp_ref = _normalise(logp_ref)
    support = logp_ref > -jnp.inf
    rewards = jnp.where(support, as_float(rewards), 0)
    top = jnp.max(rewards, -1, keepdims=True, where=support, initial=-jnp.inf)
    low = jnp.min(rewards, -1, keepdims=True, where=support, initial=jnp.inf)
    top, low = jax.lax.stop_gradient((top, low))
    # In units of the rewards' range one bracket serves all.
    scale = jnp.where(top > low, top - low, 1)
    gaps = jnp.where(support, (rewards - top) / scale, 0)
    budget = jnp.zeros_like(scale[..., 0]) + jnp.asarray(kl, gaps.dtype)

    def spent(eta, logp_ref, gaps):
        return _kl(_tilt(logp_ref, eta[..., None] * gaps)[0], logp_ref)

    fixed = jax.lax.stop_gradient((logp_ref, gaps))

    def halve(_, bracket):
        lower, upper = bracket
        middle = (lower + upper) / 2
        less = spent(jnp.exp(middle), *fixed) < jax.lax.stop_gradient(budget)
        return jnp.where(less, middle, lower), jnp.where(less, upper, middle)

    ends = jnp.full_like(budget, -25.0), jnp.full_like(budget, 25.0)
    lower, upper = jax.lax.fori_loop(0, 60, halve, jax.lax.stop_gradient(ends))
    eta = jnp.exp((lower + upper) / 2)

    tilted = _tilt(fixed[0], eta[..., None] * fixed[1])[0]
    mean = _mean(tilted, fixed[1])
    slope = eta * _mean(tilted, jnp.square(fixed[1] - mean[..., None]))
    # Where the law no longer moves with η, nor does η with anything.
    moves = slope > jnp.finfo(slope.dtype).tiny
    excess = spent(eta, logp_ref, gaps) - budget
    excess = excess - jax.lax.stop_gradient(excess)
    eta = eta - jnp.where(moves, excess / jnp.where(moves, slope, 1), 0)
    return _tilt(logp_ref, eta[..., None] * gaps)[0], eta / scale[..., 0]


class Rate(NamedTuple):
    """How unlikely a mean reward is, each ``[...]``."""

    rate: Float[Array, "*batch"]
    """``Λ*(x)`` in nats: of m independent draws the mean reaches x with a probability
    of about ``e^{−m Λ*(x)}``."""
    eta: Float[Array, "*batch"]
    """The tilt whose mean reward is x; its law is the likeliest way to get there."""


def rate_function(
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    mean: float | Float[Array, "*batch"],
) -> Rate:
    """``Λ*(x) = sup_η ηx − Λ(η)``, the cumulants' Legendre transform.

    It is ``KL(φ_η‖ρ)`` of the tilted law ``φ_η ∝ ρ e^{ηr}`` with mean reward x: what
    KL-regularised RL pays for x is the exponent with which best-of-n finds it, so that
    n = e^{mΔ} samples of m symbols reach what a budget of mΔ nats does.

    Gradient: in ``mean`` it is η; in the rewards and the reference that of
    ``ηx − Λ(η)`` at the η found.

    Args:
      rewards: ``[..., K]``.
      logp_ref: ``[..., K]``, normalised here.
      mean: x. Beyond the smallest or largest reward the rate is that of the end and η
        merely large.

    Returns:
      ``Rate``.

    Reference:
      Yang et al., "Asymptotics of language model alignment", arXiv 2404.01730; Cramér's
      theorem.

    Example:
      >>> uniform, rewards = jnp.log(jnp.full(2, 0.5)), jnp.arange(2.0)
      >>> print(*(f"{x:.4f}" for x in rate_function(rewards, uniform, mean=0.75)))
      0.1308 1.0986
    """
    logp_ref, rewards = _normalise(logp_ref), as_float(rewards)
    support = logp_ref > -jnp.inf
    rewards = jnp.where(support, rewards, 0)
    top = jnp.max(rewards, -1, keepdims=True, where=support, initial=-jnp.inf)
    low = jnp.min(rewards, -1, keepdims=True, where=support, initial=jnp.inf)
    top, low = jax.lax.stop_gradient((top, low))
    scale = jnp.where(top > low, top - low, 1)
    wanted = jnp.zeros_like(scale[..., 0]) + jnp.asarray(mean, rewards.dtype)
    wanted = jnp.clip(wanted, low[..., 0], top[..., 0])
    fixed = jax.lax.stop_gradient((logp_ref, rewards / scale, wanted / scale[..., 0]))

    def halve(_, bracket):
        lower, upper = bracket
        middle = (lower + upper) / 2
        tilt = jnp.sinh(middle)[..., None] * (fixed[1] - low / scale)
        less = _mean(_tilt(fixed[0], tilt)[0], fixed[1]) < fixed[2]
        return jnp.where(less, middle, lower), jnp.where(less, upper, middle)

    # In the tilt's inverse hyperbolic sine, fine about 0 and far-reaching.
    ends = jnp.full_like(fixed[2], -25.0), jnp.full_like(fixed[2], 25.0)
    lower, upper = jax.lax.fori_loop(0, 60, halve, ends)
    eta = jax.lax.stop_gradient(jnp.sinh((lower + upper) / 2) / scale[..., 0])
    # Around x, or large tilts would leave the difference of two large numbers.
    gaps = jnp.where(support, rewards - wanted[..., None], 0)
    return Rate(-_tilt(logp_ref, eta[..., None] * gaps)[1], eta)


def quasi_rejection_law(
    log_target: Float[Array, "*batch K"],
    logp_proposal: Float[Array, "*batch K"],
    *,
    log_kappa: float | Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"]]:
    """What quasi-rejection sampling samples: ``p_κ ∝ min(P, κ q)``.

    The target itself once κ bounds P/q everywhere.

    Args:
      log_target: ``[..., K]``, log P, not normalised.
      logp_proposal: ``[..., K]``, log q.
      log_kappa: log κ.

    Returns:
      ``log p_κ [..., K]`` and the log of the acceptance rate ``Z_κ / κ``, ``[...]``.

    Reference:
      Eikema et al., "An approximate sampler for energy-based models with divergence
      diagnostics", 2022.

    Example:
      >>> uniform, target = jnp.log(jnp.full(2, 0.5)), jnp.log(jnp.array([3.0, 1.0]))
      >>> logp, log_rate = quasi_rejection_law(target, uniform, log_kappa=jnp.log(6.0))
      >>> print(jnp.exp(logp), f"{jnp.exp(log_rate):.4f}")
      [0.75 0.25] 0.6667
    """
    log_target, logp_proposal = as_float(log_target), as_float(logp_proposal)
    support = logp_proposal > -jnp.inf
    log_weights = log_target - jnp.where(support, logp_proposal, 0)
    kappa = column(log_kappa, log_weights)
    kept = jnp.where(support, log_acceptance(log_weights, log_kappa=kappa), -jnp.inf)
    # Impossible targets are excluded like impossible proposals.
    masses = jnp.where(kept > -jnp.inf, logp_proposal, -jnp.inf)
    return _tilt(masses, kept)


def renyi_cross_entropy(
    logp: Float[Array, "*batch K"], logq: Float[Array, "*batch K"], *, order: float
) -> Float[Array, "*batch"]:
    """``H_α(p, q) = log(Σ p q^{α−1}) / (1 − α)``; at α = 1, ``−Σ p log q``.

    With the reward ``r = log q``, the cumulant ``Λ(t)`` is ``−t H_{1+t}(p, q)``.

    Args:
      logp: ``[..., K]``.
      logq: ``[..., K]``, finite where p is positive.
      order: α.

    Returns:
      ``[...]`` in nats.

    Reference:
      Yang et al., "Asymptotics of language model alignment", arXiv 2404.01730.

    Example:
      >>> half = jnp.log(jnp.full(2, 0.5))
      >>> print(f"{renyi_cross_entropy(half, half, order=2.0):.4f}")
      0.6931
    """
    logp, logq = as_float(logp), as_float(logq)
    if order == 1:
        return -_mean(logp, logq)
    return _tilt(logp, (order - 1) * logq)[1] / (1 - order)
