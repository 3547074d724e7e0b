"""RPO's game of a policy and a reward that may be the worst the comparisons allow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import exact
from alignax._checks import Strength, not_negative, positive
from alignax.numerics import as_float


def _misfit(rewards: Array, wins: Array) -> Array:
    margins = rewards[..., :, None] - rewards[..., None, :]
    return jnp.sum(wins * jax.nn.softplus(-margins), axis=(-1, -2))


def adversarial_payoff(
    logp: Float[Array, "*batch N"],
    rewards: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    logp_base: Float[Array, "*batch N"],
    wins: Float[Array, "*batch N N"],
    *,
    beta: Strength,
    eta: Strength,
) -> Float[Array, "*batch"]:
    """``η (E_π r − E_base r − β KL(π‖ρ)) + L(r)``: the policy's to raise, r's to lower.

    L is the Bradley-Terry loss of the comparisons. The reward that wins lowers what
    the policy likes beyond the base, as far as the comparisons do not speak for it.

    Args:
      logp: ``[..., N]`` of the policy over all completions.
      rewards: ``[..., N]``.
      logp_ref: ``[..., N]`` of the reference.
      logp_base: ``[..., N]`` of the base, against which rewards are counted; the
        paper's is the law of the preferred completions.
      wins: ``[..., N, N]``, the share of pairs in which the row was preferred.
      beta: strength of the regularisation, positive.
      eta: weight of the adversary, not negative.

    Returns:
      ``[...]``; concave in the policy, convex in the rewards.

    Raises:
      InputError: ``beta`` or ``eta`` is out of its range.

    Reference:
      Liu et al., "Provably mitigating overoptimization in RLHF: your SFT loss is
      implicitly an adversarial regularizer", arXiv 2405.16436, §3.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> wins = jnp.array([[0.0, 1.0], [0.0, 0.0]])
      >>> rewards = jnp.array([2.0, 0.0])
      >>> laws = half, rewards, half, half
      >>> print(adversarial_payoff(*laws, wins, beta=1.0, eta=1.0).round(4))
      0.1269
    """
    positive(beta=beta)
    not_negative(eta=eta)
    logp, rewards, logp_ref, logp_base, wins = (
        as_float(x) for x in (logp, rewards, logp_ref, logp_base, wins)
    )
    gain = exact.objective(logp, logp_ref, rewards, beta=beta)
    gain = gain - exact.expectation(logp_base, rewards)
    return eta * gain + _misfit(rewards, wins)


def adversarial_reward_loss(
    rewards: Float[Array, "*batch N"],
    logp_ref: Float[Array, "*batch N"],
    logp_base: Float[Array, "*batch N"],
    wins: Float[Array, "*batch N N"],
    *,
    beta: Strength,
    eta: Strength,
) -> Float[Array, "*batch"]:
    """The payoff against the best policy, ``η (β log E_ρ e^{r/β} − E_base r) + L(r)``.

    With ``π_r ∝ ρ e^{r/β}`` its first part is ``−ηβ E_base log π_r/ρ`` and its second
    DPO's loss: the game's value is the least of DPO with an SFT term
    (``preference.rpo``), and the policy found there is the game's.

    Args:
      rewards: ``[..., N]`` of all completions; a constant more changes nothing.
      logp_ref: ``[..., N]`` of the reference.
      logp_base: ``[..., N]`` of the base.
      wins: ``[..., N, N]``, the share of pairs in which the row was preferred.
      beta: strength of the regularisation, positive.
      eta: weight of the adversary, not negative.

    Returns:
      ``[...]``, convex in the rewards.

    Raises:
      InputError: ``beta`` or ``eta`` is out of its range.

    Reference:
      arXiv 2405.16436, §4; its identity is derived in the tests.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> rewards, none = jnp.array([2.0, 0.0]), jnp.zeros((2, 2))
      >>> loss = adversarial_reward_loss(rewards, half, half, none, beta=1.0, eta=1.0)
      >>> print(loss.round(4))
      0.4338
    """
    positive(beta=beta)
    not_negative(eta=eta)
    rewards, logp_ref, logp_base, wins = (
        as_float(x) for x in (rewards, logp_ref, logp_base, wins)
    )
    best = beta * jax.nn.logsumexp(logp_ref + rewards / beta, axis=-1)
    gain = best - exact.expectation(logp_base, rewards)
    return eta * gain + _misfit(rewards, wins)
