"""Margins: by how much a policy ranks one completion above the other.

A margin is a difference of implicit rewards, ``m = r(w) − r(l)``; the reward is what
distinguishes the methods. See ``tokens`` for those that look inside a completion.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences as dv
from alignax._checks import Strength, positive
from alignax.numerics import as_float, expm1
from alignax.preference.pairs import Pair, average_logps, log_ratios, per_token
from alignax.types import InputError


def implicit_reward(
    div: dv.Divergence,
    logp: Float[Array, "*batch"],
    logp_ref: Float[Array, "*batch"],
    *,
    beta: Strength,
) -> Float[Array, "*batch"]:
    """``β f'(π/ρ)``: the reward, up to a constant a prompt, that π is optimal for.

    With the reverse KL, ``β log π/ρ``. ``divergence_margin`` is the difference of two.

    Args:
      div: a divergence whose ``f'`` goes to minus infinity at ratio 0.
      logp: ``[...]`` of whole completions.
      logp_ref: ``[...]``, held fixed.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``f'(0)`` is finite: 0 is in the domain of f', the optimum leaves
        completions out, and of those π does not tell the reward.

    Reference:
      Wang et al., "Beyond reverse KL: generalizing direct preference optimization
      with diverse divergence constraints", arXiv 2309.16240, theorem 1.

    Example:
      >>> print(implicit_reward(dv.reverse_kl(), *jnp.array([-1.0, -3.0]), beta=0.5))
      1.0
    """
    positive(beta=beta)
    if math.isfinite(div.slopes[0]):
        raise InputError(
            f"div must have f'(0) = -inf to define an implicit reward, got {div} with "
            f"f'(0) = {div.slopes[0]:g}: the policy may rightly have no mass where the "
            "reward is low. reverse_kl(), forward_kl(), jensen_shannon(), alpha(s) "
            "with s >= -1, or chi2_kl() would do."
        )
    ratio = as_float(logp) - jax.lax.stop_gradient(as_float(logp_ref))
    return beta * div.f_prime(ratio)


def log_ratio_margin(pair: Pair) -> Float[Array, "..."]:
    """DPO's ``h = log π(w)/ρ(w) − log π(l)/ρ(l)``, without its β.

    Args:
      pair: of ``[...]``.

    Returns:
      ``[...]``.

    Reference:
      Rafailov et al., "Direct preference optimization", arXiv 2305.18290, eq. 7.

    Example:
      >>> print(log_ratio_margin(Pair(*jnp.array([-1.0, -3.0, -2.0, -2.0, 1.0, 1.0]))))
      2.0
    """
    u, v = log_ratios(pair)
    return u - v


def divergence_margin(
    div: dv.Divergence, pair: Pair, *, beta: Strength, clip: float | None = None
) -> Float[Array, "..."]:
    """f-DPO's and χPO's margin ``β f'(π(w)/ρ(w)) − β f'(π(l)/ρ(l))``.

    With ``chi2_kl()`` and ``clip = 2 R_max`` it is χPO's; its gradient differs from
    one divergence to another by ``u f''`` alone.

    Args:
      div: a divergence whose ``f'`` goes to minus infinity at ratio 0.
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      clip: bound on the margin's size, beyond which it has no gradient.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``f'(0)`` is finite, or ``beta`` or ``clip`` not positive.

    Reference:
      Wang et al., arXiv 2309.16240, eq. 10; Huang et al., "Correcting the mythos of
      KL-regularization", arXiv 2407.13399, algorithm 1.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.0, 1.0, 1.0]))
      >>> print(divergence_margin(dv.reverse_kl(), pair, beta=0.5))
      1.0
    """
    if clip is not None:
        positive(clip=clip)
    margin = implicit_reward(div, pair.logp_w, pair.ref_w, beta=beta)
    margin = margin - implicit_reward(div, pair.logp_l, pair.ref_l, beta=beta)
    if clip is None:
        return margin
    ends = clip * jax.lax.stop_gradient(jnp.sign(margin))
    return jnp.where(jnp.abs(margin) < clip, margin, ends)


def normalised_margin(pair: Pair) -> Float[Array, "..."]:
    """The log-ratio a token: ``log(π/ρ)(w) / |w| − log(π/ρ)(l) / |l|`` (LN-DPO).

    Args:
      pair: of ``[...]``.

    Returns:
      ``[...]``; an empty completion has ratio 0.

    Reference:
      Ahrabian et al., "The hitchhiker's guide to human alignment with ``*PO``",
      arXiv 2407.15229; Lambert et al., "Tülu 3", arXiv 2411.15124.

    Example:
      >>> print(normalised_margin(Pair(*jnp.array([-1.0, -4.0, -3.0, -2.0, 1.0, 2.0]))))
      3.0
    """
    u, v = log_ratios(pair)
    return per_token(u, pair.length_w) - per_token(v, pair.length_l)


def policy_margin(pair: Pair) -> Float[Array, "..."]:
    """``log π(w) − log π(l)``: no reference (CPO, SLiC).

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.

    Returns:
      ``[...]``.

    Reference:
      Xu et al., "Contrastive preference optimization", arXiv 2401.08417, eq. 3.

    Example:
      >>> print(policy_margin(Pair(*jnp.array([-1.0, -3.0, 0.0, 0.0, 1.0, 1.0]))))
      2.0
    """
    return as_float(pair.logp_w) - as_float(pair.logp_l)


def average_margin(pair: Pair) -> Float[Array, "..."]:
    """``log π(w) / |w| − log π(l) / |l|``: no reference, no lengths (SimPO).

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.

    Returns:
      ``[...]``.

    Reference:
      Meng, Xia and Chen, "SimPO", arXiv 2405.14734, eq. 4.

    Example:
      >>> print(average_margin(Pair(*jnp.array([-1.0, -6.0, 0.0, 0.0, 1.0, 2.0]))))
      2.0
    """
    w, l = average_logps(pair)
    return w - l


def power_margin(pair: Pair, *, alpha: float) -> Float[Array, "..."]:
    """AlphaPO's ``r(w) − r(l)``, ``r = (1 − p^{−α}) / α``, p the mean log-prob's exp.

    α = 0 is ``average_margin``. Powers beyond ``e^40`` go on as their tangent.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      alpha: shape of the reward; negative ones favour likely completions.

    Returns:
      ``[...]``.

    Reference:
      Gupta et al., "AlphaPO: reward shape matters for LLM alignment",
      arXiv 2501.03884.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -2.0, 0.0, 0.0, 1.0, 1.0]))
      >>> print(power_margin(pair, alpha=0.25).round(4))
      1.4588
    """
    w, l = average_logps(pair)
    if alpha == 0:
        return w - l

    def reward(p):
        return -expm1(-alpha * p) / alpha

    return reward(w) - reward(l)


def odds_margin(pair: Pair) -> Float[Array, "..."]:
    """ORPO's log odds ratio, of completions' mean token log-probability.

    ``log p̄/(1 − p̄)`` of w less that of l, with ``log p̄ = log π / length``. Where p̄ is
    within 1e-5 of 1 the odds go on as their tangent.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.

    Returns:
      ``[...]``.

    Reference:
      Hong, Lee and Thorne, "ORPO: monolithic preference optimization without
      reference model", arXiv 2403.07691, eq. 7.

    Example:
      >>> half = jnp.log(0.5)
      >>> pair = Pair(half, 2 * half, half, half, jnp.ones(()), jnp.ones(()))
      >>> print(odds_margin(pair).round(4))  # log 1 - log 1/3
      1.0986
    """
    least = 1e-5

    def log_odds(p):
        sure = p > -least
        inside = jnp.where(sure, -least, p)
        value = inside - jnp.log(-jnp.expm1(inside))
        return value + jnp.where(sure, p + least, 0) / least

    w, l = average_logps(pair)
    return log_odds(w) - log_odds(l)
