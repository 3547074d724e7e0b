"""Named losses without a reference model. They take a ``Pair`` and do not read
``ref_*``; what holds the policy back is a likelihood term, a length or nothing."""

from alignax._checks import Strength, not_negative, positive
from alignax.preference.links import hinge_link, logistic_link
from alignax.preference.margins import (
    average_margin,
    odds_margin,
    policy_margin,
    power_margin,
)
from alignax.preference.named import Losses
from alignax.preference.pairs import Pair, average_logps


def sft(pair: Pair) -> Losses:
    """``−log π(w) / |w|``: the preferred completion's negative log-likelihood a token.

    A batch's token mean is the mean of these weighted by ``length_w``.

    Args:
      pair: of ``[...]``; only ``w`` is read.

    Returns:
      ``[...]``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(sft(Pair(*jnp.array([-4.0, 0.0, 0.0, 0.0, 2, 1]))))
      2.0
    """
    return -average_logps(pair)[0]


def slic(pair: Pair, *, beta: Strength) -> Losses:
    """``max(0, 1 − β (log π(w) − log π(l)))``: SLiC's, RSO's hinge without reference.

    Add ``λ · sft`` for SLiC-HF's regularisation.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      beta: 1/δ, positive.

    Returns:
      ``[...]``.

    Reference:
      Zhao et al., "SLiC-HF", arXiv 2305.10425; Liu et al., arXiv 2309.06657, eq. 9.

    Example:
      >>> import jax.numpy as jnp
      >>> print(slic(Pair(*jnp.array([-1.0, -1.5, 0.0, 0.0, 1, 1])), beta=1.0))
      0.5
    """
    positive(beta=beta)
    return hinge_link(beta * policy_margin(pair))


def simpo(pair: Pair, *, beta: Strength, gamma: Strength) -> Losses:
    """``−log σ(β (log π(w)/|w| − log π(l)/|l|) − γ)``.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      beta: scale of the reward, positive; 2 to 10 in the paper.
      gamma: γ, a margin to exceed; the paper's code stores γ/β.

    Returns:
      ``[...]``.

    Reference:
      Meng, Xia and Chen, "SimPO: simple preference optimization with a reference-free
      reward", arXiv 2405.14734, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> pair = Pair(*jnp.array([-1.0, -2.0, 0.0, 0.0, 1, 1]))
      >>> print(simpo(pair, beta=2.0, gamma=2.0).round(4))
      0.6931
    """
    positive(beta=beta)
    return logistic_link(beta * average_margin(pair) - gamma)


def alpha_po(pair: Pair, *, beta: Strength, alpha: float, gamma: Strength) -> Losses:
    """SimPO with the reward ``(1 − p^{−α}) / α``; α → 0 is SimPO.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      beta: scale of the reward, positive.
      alpha: shape of the reward.
      gamma: a margin to exceed.

    Returns:
      ``[...]``.

    Reference:
      Gupta et al., "AlphaPO", arXiv 2501.03884, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> pair = Pair(*jnp.array([-1.0, -1.0, 0.0, 0.0, 1, 1]))
      >>> print(alpha_po(pair, beta=2.0, alpha=0.25, gamma=0.0).round(4))
      0.6931
    """
    positive(beta=beta)
    return logistic_link(beta * power_margin(pair, alpha=alpha) - gamma)


def cpo(pair: Pair, *, beta: Strength, alpha: Strength = 1.0) -> Losses:
    """``−log σ(β (log π(w) − log π(l))) + α · sft``.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      beta: scale of the margin, positive.
      alpha: weight of the SFT term, not negative.

    Returns:
      ``[...]``.

    Reference:
      Xu et al., "Contrastive preference optimization", arXiv 2401.08417, eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> pair = Pair(*jnp.array([-1.0, -1.0, 0.0, 0.0, 1, 1]))
      >>> print(cpo(pair, beta=0.1).round(4))
      1.6931
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    return logistic_link(beta * policy_margin(pair)) + alpha * sft(pair)


def orpo(pair: Pair, *, beta: Strength) -> Losses:
    """``sft − λ log σ(log odds ratio)``: no reference, no separate SFT phase.

    Args:
      pair: of ``[...]``; ``ref_*`` is not read.
      beta: λ, weight of the odds ratio, positive.

    Returns:
      ``[...]``.

    Reference:
      Hong, Lee and Thorne, "ORPO", arXiv 2403.07691, eq. 6.

    Example:
      >>> import jax.numpy as jnp
      >>> pair = Pair(*jnp.array([-1.0, -1.0, 0.0, 0.0, 1, 1]))
      >>> print(f"{orpo(pair, beta=0.1):.4f}")
      1.0693
    """
    positive(beta=beta)
    return sft(pair) + beta * logistic_link(odds_margin(pair))
