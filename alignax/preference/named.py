"""Losses by their names: each a margin, a link and a noise, as its paper has it.

All take a ``Pair`` of ``[...]`` and return ``[...]``; ``beta`` is the strength of the
regularisation, positive. ``reference_free`` has those without a
reference, ``anchored`` those that see both sides apart.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences as dv
from alignax._checks import Strength, not_negative, positive
from alignax.numerics import as_float
from alignax.preference.links import (
    blended_link,
    hinge_link,
    logistic_link,
    reverse_cross_entropy_link,
    squared_link,
)
from alignax.preference.margins import (
    divergence_margin,
    log_ratio_margin,
    normalised_margin,
    policy_margin,
)
from alignax.preference.noise import debiased, label_smoothed
from alignax.preference.pairs import Pair, log_ratios

Losses = Float[Array, "..."]


def dpo(pair: Pair, *, beta: Strength) -> Losses:
    """``−log σ(βh)``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Rafailov et al., "Direct preference optimization", arXiv 2305.18290, eq. 7.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(dpo(pair, beta=1.0).round(4))
      0.2014
    """
    positive(beta=beta)
    return logistic_link(beta * log_ratio_margin(pair))


def f_dpo(div: dv.Divergence, pair: Pair, *, beta: Strength) -> Losses:
    """``−log σ(β f'(u_w) − β f'(u_l))``, u the ratios: DPO for any such divergence.

    The scale of f is β's: ``jensen_shannon()`` is half of what the paper and TRL call
    by that name, so that TRL's β is twice this one. ``divergences.from_trl`` gives
    theirs.

    Args:
      div: a divergence whose ``f'`` goes to minus infinity at ratio 0.
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``f'(0)`` is finite, as for total variation and chi-squared, or
        ``beta`` is not positive and finite.

    Reference:
      Wang et al., "Beyond reverse KL", arXiv 2309.16240, eq. 10.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(f_dpo(dv.forward_kl(), pair, beta=1.0).round(4))
      0.2451
    """
    return logistic_link(divergence_margin(div, pair, beta=beta))


def chi_po(pair: Pair, *, beta: Strength, reward_range: float) -> Losses:
    """χPO: ``−log σ(clip(βφ(u_w) − βφ(u_l)))``, ``φ(u) = u + log u``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      reward_range: R_max; margins beyond twice it are clipped and have no gradient.

    Returns:
      ``[...]``.

    Reference:
      Huang et al., "Correcting the mythos of KL-regularization", arXiv 2407.13399,
      algorithm 1.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(chi_po(pair, beta=1.0, reward_range=1.0).round(4))
      0.1269
    """
    margin = divergence_margin(dv.chi2_kl(), pair, beta=beta, clip=2 * reward_range)
    return logistic_link(margin)


def cdpo(pair: Pair, *, beta: Strength, noise: Strength) -> Losses:
    """Conservative DPO: ``−(1 − ε) log σ(βh) − ε log σ(−βh)``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      noise: ε in [0, 0.5).

    Returns:
      ``[...]``.

    Reference:
      Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(cdpo(pair, beta=1.0, noise=0.1).round(4))
      0.3514
    """
    positive(beta=beta)
    return label_smoothed(logistic_link, beta * log_ratio_margin(pair), noise=noise)


def rdpo(pair: Pair, *, beta: Strength, noise: Strength) -> Losses:
    """Robust DPO: ``−((1 − ε) log σ(βh) − ε log σ(−βh)) / (1 − 2ε)``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      noise: ε in [0, 0.5).

    Returns:
      ``[...]``, unbounded below.

    Reference:
      Chowdhury, Kini and Natarajan, "Provably robust DPO", arXiv 2403.00409, eq. 10.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(rdpo(pair, beta=1.0, noise=0.1).round(4))
      0.0139
    """
    positive(beta=beta)
    return debiased(logistic_link, beta * log_ratio_margin(pair), noise=noise)


def ipo(pair: Pair, *, beta: Strength) -> Losses:
    """``(h − 1/(2β))²``, of whole completions.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive; the paper's τ.

    Returns:
      ``[...]``.

    Reference:
      Azar et al., "A general theoretical paradigm to understand learning from human
      preferences", arXiv 2310.12036, eq. 17.

    Example:
      >>> print(ipo(Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4])), beta=0.5))
      0.25
    """
    positive(beta=beta)
    return squared_link(log_ratio_margin(pair), target=1 / (2 * beta))


def ipo_averaged(pair: Pair, *, beta: Strength) -> Losses:
    """``(h̄ − 1/(2β))²`` with the log-ratios a token: IPO as TRL's DPO trainer has it.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      TRL, ``DPOTrainer``, loss type ``ipo``; Azar et al., arXiv 2310.12036.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(ipo_averaged(pair, beta=0.5))
      0.1406
    """
    positive(beta=beta)
    return squared_link(normalised_margin(pair), target=1 / (2 * beta))


def hinge_dpo(pair: Pair, *, beta: Strength) -> Losses:
    """``max(0, 1 − βh)``: RSO's hinge-norm, and what TRL calls SLiC.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive; the paper's γ.

    Returns:
      ``[...]``.

    Reference:
      Liu et al., "Statistical rejection sampling improves preference optimization",
      arXiv 2309.06657, eq. 8.

    Example:
      >>> print(hinge_dpo(Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4])), beta=0.5))
      0.25
    """
    positive(beta=beta)
    return hinge_link(beta * log_ratio_margin(pair))


def ln_dpo(pair: Pair, *, beta: Strength) -> Losses:
    """``−log σ(β h̄)`` with the log-ratios a token: length-normalised DPO.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Lambert et al., "Tülu 3", arXiv 2411.15124, eq. 6.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(ln_dpo(pair, beta=5.0).round(4))
      0.043
    """
    positive(beta=beta)
    return logistic_link(beta * normalised_margin(pair))


def rpo(pair: Pair, *, beta: Strength, eta: Strength) -> Losses:
    """``−log σ(βh) − ηβ log π(w)``: against the worst reward that the data allow.

    The SFT term sums over tokens. TRL's list of ``sigmoid`` and ``sft`` is another
    scale: ``dpo + η · sft``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      eta: weight of the SFT term, not negative.

    Returns:
      ``[...]``.

    Reference:
      Liu et al., "Provably mitigating overoptimization in RLHF: your SFT loss is
      implicitly an adversarial regularizer", arXiv 2405.16436, eq. 3.5.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(rpo(pair, beta=0.1, eta=1.0).round(4))
      0.721
    """
    not_negative(eta=eta)
    return dpo(pair, beta=beta) - eta * beta * as_float(pair.logp_w)


def exo(pair: Pair, *, beta: Strength, noise: float = 1e-3) -> Losses:
    """``KL(σ(βh) ‖ 1 − ε)``: cross-entropy with model and label exchanged.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      noise: ε in (0, 1).

    Returns:
      ``[...]``.

    Reference:
      Ji et al., "Towards efficient exact optimization of language model alignment",
      arXiv 2402.00856, eq. 13.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(exo(pair, beta=0.1).round(4))
      2.5055
    """
    positive(beta=beta)
    return reverse_cross_entropy_link(beta * log_ratio_margin(pair), noise=noise)


def discopop(pair: Pair, *, beta: Strength, temperature: float = 0.05) -> Losses:
    """The blended link of ``βh``.

    Args:
      pair: of ``[...]``.
      beta: strength of the regularisation, positive.
      temperature: τ of the blend, positive.

    Returns:
      ``[...]``.

    Reference:
      Lu et al., "Discovering preference optimization algorithms with and for large
      language models", arXiv 2406.08414, eq. 5.

    Example:
      >>> pair = Pair(*jnp.array([-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(discopop(pair, beta=0.1).round(4))
      0.8493
    """
    positive(beta=beta)
    return blended_link(beta * log_ratio_margin(pair), temperature=temperature)


def aot(pair: Pair, *, beta: Strength) -> Losses:
    """Distributional preference: the margins' law above the reference's, quantilewise.

    Margins of policy and reference are sorted over the last axis, apart, and compared
    rank by rank. The result is in the order of ranks, and every pair of the batch must
    be there.

    Args:
      pair: of ``[..., B]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[..., B]``.

    Reference:
      Melnyk et al., "Distributional preference alignment of LLMs via optimal
      transport", arXiv 2406.05882, algorithm 1.

    Example:
      >>> pair = Pair(*(jnp.array([x, x]) for x in [-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(aot(pair, beta=0.1).round(4))
      [0.621 0.621]
    """
    positive(beta=beta)
    ref_w, ref_l = jax.lax.stop_gradient((pair.ref_w, pair.ref_l))
    policy = jnp.sort(policy_margin(pair), axis=-1)
    reference = jnp.sort(as_float(ref_w) - as_float(ref_l), axis=-1)
    return logistic_link(beta * (policy - reference))


def aot_unpaired(pair: Pair, *, beta: Strength) -> Losses:
    """As ``aot``, of completions that need not share prompts: their log-ratios.

    Args:
      pair: of ``[..., B]``; w and l of one place need not belong together.
      beta: strength of the regularisation, positive.

    Returns:
      ``[..., B]`` in the order of ranks.

    Reference:
      Melnyk et al., arXiv 2406.05882, algorithm 1.

    Example:
      >>> pair = Pair(*(jnp.array([x, x]) for x in [-1.0, -3.0, -2.0, -2.5, 2, 4]))
      >>> print(aot_unpaired(pair, beta=0.1).round(4))
      [0.621 0.621]
    """
    positive(beta=beta)
    u, v = log_ratios(pair)
    return logistic_link(beta * (jnp.sort(u, axis=-1) - jnp.sort(v, axis=-1)))
