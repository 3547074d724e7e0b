"""Divergences by the names and parameters that other papers and libraries use."""

from alignax.divergences.amari import alpha, forward_kl, reverse_kl
from alignax.divergences.catalogue import jensen_shannon
from alignax.divergences.value import Divergence, scale
from alignax.types import InputError


def from_trl(f_divergence_type: str, *, coefficient: float = 1.0) -> Divergence:
    """The divergence that TRL's ``DPOConfig`` calls by this name, at the same beta.

    Their Jensen-Shannon divergence is twice the true one.

    Args:
      f_divergence_type: ``"reverse_kl"``, ``"forward_kl"``, ``"js_divergence"`` or
        ``"alpha_divergence"``.
      coefficient: TRL's ``f_alpha_divergence_coef``, of the last one.

    Returns:
      A divergence, for ``preference.f_dpo``.

    Raises:
      InputError: the name is none of these.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.from_trl("js_divergence").curvature
      0.5
    """
    named = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": lambda: scale(jensen_shannon(), 2.0),
        "alpha_divergence": lambda: alpha(amari_from_trl(coefficient)),
    }
    if f_divergence_type not in named:
        raise InputError(
            f"f_divergence_type: {f_divergence_type!r} was given; "
            f"{', '.join(named)} would do."
        )
    return named[f_divergence_type]()


def amari_from_fdpo(a: float) -> float:
    """Amari's alpha of f-DPO's (and DPH-RL's) ``a``: ``2 a - 1``.

    Args:
      a: 0 for the reverse KL, 1 for the forward KL.

    Returns:
      The argument of ``alpha``.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.amari_from_fdpo(0.75)
      0.5
    """
    return 2 * a - 1


def amari_from_trl(coefficient: float) -> float:
    """Amari's alpha of TRL's ``f_alpha_divergence_coef``: ``1 - 2 c``.

    Args:
      coefficient: 1 for the reverse KL, 0 for the forward KL.

    Returns:
      The argument of ``alpha``.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.amari_from_trl(0.25)
      0.5
    """
    return 1 - 2 * coefficient


def amari_from_cressie_read(power: float) -> float:
    """Amari's alpha of Cressie and Read's ``lambda``: ``-(1 + 2 lambda)``.

    Args:
      power: 1 for half of Pearson's chi-squared, 0 for the reverse KL.

    Returns:
      The argument of ``alpha``.

    Reference:
      Cressie and Read, "Multinomial Goodness-of-Fit Tests", 1984.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.amari_from_cressie_read(1.0)
      -3.0
    """
    return -(1 + 2 * power)


def amari_from_tsallis(order: float) -> float:
    """Amari's alpha of Tsallis' and of Renyi's order ``q``: ``1 - 2 q``.

    ``T_q = scale(alpha(1 - 2 q), q)`` and
    ``R_q = log1p(q (q - 1) D_alpha) / (q - 1)``.

    Args:
      order: 1 for the reverse KL, 2 for Pearson's chi-squared.

    Returns:
      The argument of ``alpha``.

    Example:
      >>> from alignax import divergences as dv
      >>> dv.amari_from_tsallis(2.0)
      -3.0
    """
    return 1 - 2 * order
