"""Correlated proxies: what a policy visits, and how far a proxy of the reward is safe.

A tabular Markov decision process with S states and A actions: its occupancy measure is
the discounted share of time in each pair of state and action.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax._checks import Strength, positive
from alignax.divergences import Divergence
from alignax.numerics import as_float
from alignax.types import InputError


def occupancy(
    log_initial: Float[Array, " S"],
    log_steps: Float[Array, "S A S"],
    logp: Float[Array, "S A"],
    *,
    discount: float,
) -> Float[Array, "S A"]:
    """``μ(s, a) = (1 − γ) Σ_t γ^t P(s_t = s, a_t = a)``, by solving a linear system.

    ``μ(s') = (1 − γ) p_0(s') + γ Σ μ(s) π(a|s) P(s'|s, a)`` and
    ``μ(s, a) = μ(s) π(a|s)``. ``Σ μ r`` is ``1 − γ`` times the discounted return of r.

    Args:
      log_initial: ``[S]`` of the first state.
      log_steps: ``[S, A, S]``, the law of the next state.
      logp: ``[S, A]`` of the policy.
      discount: γ in [0, 1).

    Returns:
      ``[S, A]`` probabilities, which sum to 1; over actions, the states' occupancy.

    Raises:
      InputError: ``discount`` is not in [0, 1).

    Reference:
      Puterman, "Markov Decision Processes", 1994, §6.9.

    Example:
      >>> stay = jnp.log(jnp.array([[[0.5, 0.5]], [[0.0, 1.0]]]))
      >>> start, only = jnp.array([0.0, -jnp.inf]), jnp.zeros((2, 1))
      >>> print(occupancy(start, stay, only, discount=0.5)[:, 0].round(4))
      [0.6667 0.3333]
    """
    if not 0 <= discount < 1:
        raise InputError(f"discount must be in [0, 1), got {discount}")
    initial, steps, policy = (
        jnp.exp(as_float(x)) for x in (log_initial, log_steps, logp)
    )
    flow = jnp.einsum("sa,san->ns", policy, steps)
    states = jnp.linalg.solve(
        jnp.eye(len(initial), dtype=flow.dtype) - discount * flow,
        (1 - discount) * initial,
    )
    return states[:, None] * policy


def _moments(values: Array, occupancy: Array) -> tuple[Array, Array]:
    mean = jnp.sum(occupancy * values, axis=-1)
    centred = values - mean[..., None]
    return centred, jnp.sqrt(jnp.sum(occupancy * jnp.square(centred), axis=-1))


def correlation(
    proxy: Float[Array, "*batch N"],
    rewards: Float[Array, "*batch N"],
    reference: Float[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """The correlation of two rewards where the reference policy goes.

    Args:
      proxy: ``[..., N]``, of all pairs of state and action.
      rewards: ``[..., N]``, the true ones.
      reference: ``[..., N]``, the reference's occupancy.

    Returns:
      ``[...]``, in [−1, 1].

    Reference:
      Laidlaw, Singhal and Dragan, "Correlated proxies: a new definition and improved
      mitigation for reward hacking", arXiv 2403.03185.

    Example:
      >>> half = jnp.array([0.5, 0.5, 0.0])
      >>> print(correlation(jnp.array([0.0, 1, 9]), jnp.array([5.0, 7, 0]), half))
      1.0
    """
    reference = as_float(reference)
    first, spread = _moments(as_float(proxy), reference)
    second, spread_true = _moments(as_float(rewards), reference)
    return jnp.sum(reference * first * second, axis=-1) / (spread * spread_true)


def proxy_bound(
    proxy: Float[Array, "*batch N"],
    occupancy: Float[Array, "*batch N"],
    reference: Float[Array, "*batch N"],
    *,
    correlation: Strength,
) -> Float[Array, "*batch"]:
    """The least that the true reward gains, whatever it is, from a correlated proxy.

    ``(J(π, R) − J(ref, R)) / σ_R ≥ (1/r) [(J(π, R̃) − J(ref, R̃)) / σ_R̃ −
    √((1 − r²) χ²(μ_π‖μ_ref))]``, deviations under the reference. Where the ratio
    ``μ_π/μ_ref − 1`` is a multiple of what the proxy has and the true reward has not,
    it is an equality: no larger bound knows no more than r.

    Args:
      proxy: ``[..., N]``, of all pairs of state and action.
      occupancy: ``[..., N]`` of the policy.
      reference: ``[..., N]``, the reference's.
      correlation: r in (0, 1].

    Returns:
      ``[...]``, in deviations of the true reward; maximised, ORPO's objective. ``-inf``
      where the policy goes to what the reference never visits.

    Raises:
      InputError: ``correlation`` is a number outside of (0, 1].

    Reference:
      arXiv 2403.03185, theorem 5.1; its λ is ``σ_R̃ √(1 − r²)``.

    Example:
      >>> half, other = jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])
      >>> bound = proxy_bound(jnp.array([1.0, -1.0]), other, half, correlation=0.8)
      >>> print(bound.round(4))
      0.25
    """
    if isinstance(correlation, (int, float)) and not 0 < correlation <= 1:
        raise InputError(f"correlation must be in (0, 1], got {correlation}")
    occupancy, reference = as_float(occupancy), as_float(reference)
    centred, spread = _moments(as_float(proxy), reference)
    gain = jnp.sum(occupancy * centred, axis=-1) / spread
    visited = reference > 0
    weight = jnp.square(occupancy - reference) / jnp.where(visited, reference, 1)
    chi2 = jnp.sum(jnp.where(visited, weight, 0), axis=-1)
    unseen = jnp.any(~visited & (occupancy > 0), axis=-1)
    # At the reference itself χ² is 0, where a root has no slope.
    away = chi2 > 0
    root = jnp.where(away, jnp.sqrt(jnp.where(away, chi2, 1)), 0)
    bound = (gain - jnp.sqrt(1 - as_float(correlation) ** 2) * root) / correlation
    return jnp.where(unseen, -jnp.inf, bound)


def step_penalties(
    div: Divergence, log_ratio: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """What to subtract from each step's reward to penalise occupancies' divergence.

    ``f'(μ_π/μ_ref)`` of a step: the reward whose policy gradient is the gradient of
    ``D_f(μ_π‖μ_ref)``. ORPO's are ``d`` for the KL, the same but for a constant, and
    ``e^d − 1`` for χ², half of the gradient.

    Value: no estimate of the divergence.
    Gradient: none by itself; as a reward, held fixed, the divergence's.

    Args:
      div: the divergence.
      log_ratio: ``[...]``, ``log μ_π(s, a)/μ_ref(s, a)``: a discriminator's logit, or
        of the states alone.

    Returns:
      ``[...]`` without a gradient.

    Reference:
      arXiv 2403.03185; the rule for any f is derived in the tests.

    Example:
      >>> from alignax import divergences as dv
      >>> print(step_penalties(dv.pearson(), jnp.log(jnp.array([1.0, 3.0]))).round(4))
      [0. 4.]
    """
    return div.f_prime(jax.lax.stop_gradient(as_float(log_ratio)))


def root_step_penalties(
    div: Divergence,
    log_ratio: Float[Array, "*batch"],
    divergence: Float[Array, "*batch"],
    *,
    least: float,
) -> Float[Array, "*batch"]:
    """The same for ``√D_f``, what the bound of correlated proxies asks of χ².

    Value: no estimate of the divergence.
    Gradient: none by itself; as a reward, held fixed, that of ``√D_f`` where the
    divergence is at least ``least``.

    Args:
      div: the divergence.
      log_ratio: ``[...]`` of steps.
      divergence: ``D_f``, ``[...]`` like the steps (or one number for all): for χ² the
        policy's mean of ``e^d − 1``.
      least: positive, taken instead of a smaller divergence, whose root is too steep.

    Returns:
      ``f'/(2 √D_f)``, ``[...]`` without a gradient.

    Raises:
      InputError: ``least`` is not positive.

    Reference:
      arXiv 2403.03185 (``sqrt_chi2`` of its code, which trims the mean by 1%).

    Example:
      >>> from alignax import divergences as dv
      >>> d = jnp.log(jnp.array([1.0, 3.0]))
      >>> print(root_step_penalties(dv.pearson(), d, jnp.full(2, 4.0), least=1e-4))
      [0. 1.]
    """
    positive(least=least)
    root = jnp.sqrt(jnp.maximum(as_float(divergence), least))
    return step_penalties(div, log_ratio) / jax.lax.stop_gradient(2 * root)


def discriminator_losses(
    logits: Float[Array, "*batch"], of_policy: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The logistic losses whose minimum is at ``log μ_π/μ_ref``.

    The policy's steps and the reference's must be as many, or the logit is off by the
    log of their numbers' ratio.

    Args:
      logits: ``[...]``, a discriminator's d.
      of_policy: ``[...]``, True on steps of the policy, False on the reference's.

    Returns:
      ``softplus(−d)`` and ``softplus(d)``, ``[...]`` nats.

    Reference:
      arXiv 2403.03185.

    Example:
      >>> print(discriminator_losses(jnp.zeros(2), jnp.array([True, False])).round(4))
      [0.6931 0.6931]
    """
    logits = as_float(logits)
    return jax.nn.softplus(jnp.where(of_policy, -logits, logits))
