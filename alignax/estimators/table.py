"""Every estimator of the package and what it estimates, as data.

One record says how to call a function on ``Samples`` and what then holds; the
table of the package's docstring, the docs and the estimator report read it, and
the tests check each claim by enumeration.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from alignax import divergences
from alignax.estimators import (
    control,
    generators,
    myopic,
    off_policy,
    pointwise,
    sequence,
    vocabulary,
)

# What may be estimated. "Myopic": the law of the prefixes is held fixed.
SEQUENCE_KL = "sequence KL(π‖ρ)"
MYOPIC_KL = "myopic KL(π‖ρ)"
BEHAVIOUR_MYOPIC_KL = "myopic KL(π‖ρ), b's prefixes"
SEQUENCE_FORWARD_KL = "sequence KL(ρ‖π)"
MYOPIC_FORWARD_KL = "myopic KL(ρ‖π)"
SEQUENCE_F = "sequence D(π‖ρ)"
MYOPIC_F = "myopic D(π‖ρ)"
REFERENCE_F = "ΣD(π‖ρ), ρ's prefixes"
MYOPIC_L1 = "myopic ‖π − ρ‖₁"
BUCKET_KL = "ΣKL of top-k buckets"
MYOPIC_BUCKET_KL = "myopic KL of top-k buckets"
ZERO = "none: mean zero"

# Whose law the tokens follow.
POLICY, BEHAVIOUR, REFERENCE = "π", "b", "ρ"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """All that an estimator may ask for; leave out what yours does not.

    ``logp``, ``logp_ref`` and ``logp_behaviour`` are of the taken ``tokens``, and
    ``logp`` is ``token_logp(logits, tokens)``.
    """

    logp: Float[Array, "*B T"]
    logp_ref: Float[Array, "*B T"]
    mask: Bool[Array, "*B T"]
    logp_behaviour: Float[Array, "*B T"] | None = None
    tokens: Int[Array, "*B T"] | None = None
    logits: Float[Array, "*B T V"] | None = None
    logits_ref: Float[Array, "*B T V"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
    """A function ``[..., T] -> [..., T]`` and what its sum over tokens estimates.

    Args:
      function: of the package.
      arguments: names of ``Samples``' fields in the function's order; the
        divergence, where there is one, comes before them.
      keywords: hyper-parameters bound for this record.
      divergence: bound for this record, where the function takes one.
      sampled_from: ``POLICY``, ``BEHAVIOUR`` or ``REFERENCE``.
      surrogate: made to be differentiated.
      value: what the value is unbiased for; None where biased.
      gradient: whose gradient the expected gradient is; None where nobody's.
      order: for log-ratios of order ε, the variance of the value (of the gradient,
        for a surrogate) is of order ε to this power.
      used: where it is found.
    """

    function: Callable[..., Array]
    arguments: tuple[str, ...]
    keywords: Mapping[str, Any]
    divergence: divergences.Divergence | None
    sampled_from: str
    surrogate: bool
    value: str | None
    gradient: str | None
    order: int
    used: str

    def __call__(self, samples: Samples) -> Float[Array, "*B T"]:
        """The token terms; sum them over the last axis."""
        missing = [name for name in self.arguments if getattr(samples, name) is None]
        if missing:
            raise ValueError(f"{self.function.__name__} needs samples.{missing[0]}")
        first = () if self.divergence is None else (self.divergence,)
        arrays = (getattr(samples, name) for name in self.arguments)
        return self.function(*first, *arrays, **self.keywords)


_TOKEN = ("logp", "logp_ref", "mask")
_OFF_POLICY = ("logp", "logp_ref", "logp_behaviour", "mask")
_LAWS = ("logits", "logits_ref", "mask")
_LAWS_TOKENS = ("logits", "logits_ref", "tokens", "mask")

_Row = tuple[Callable[..., Array], str | None, str | None, int, str]


def _rows(
    *rows: _Row,
    arguments: tuple[str, ...] = _TOKEN,
    sampled_from: str = POLICY,
    divergence: divergences.Divergence | None = None,
    **keywords: Any,
) -> dict[str, Estimator]:
    return {
        function.__name__: Estimator(
            function=function,
            arguments=arguments,
            keywords=keywords,
            divergence=divergence,
            sampled_from=sampled_from,
            surrogate=function.__name__.endswith("_surrogate"),
            value=value,
            gradient=gradient,
            order=order,
            used=used,
        )
        for function, value, gradient, order, used in rows
    }


def _sequence_losses() -> dict[str, Estimator]:
    s, v, o = sequence, vocabulary, off_policy
    kl, forward, chi2 = SEQUENCE_KL, SEQUENCE_FORWARD_KL, divergences.pearson()
    return {
        **_rows(
            (s.sequence_kl_surrogate, kl, kl, 2, "KL in reward, γ = 1"),
            (s.sequence_control_variate_surrogate, kl, kl, 2, "alignax"),
            (s.sequence_k2_surrogate, None, kl, 2, "alignax"),
        ),
        **_rows(
            (v.rao_blackwell_surrogate, kl, kl, 2, "Amini et al. 2025"),
            arguments=_LAWS_TOKENS,
        ),
        **_rows(
            (v.top_k_sampled_tail_surrogate, kl, kl, 2, "alignax"),
            (v.top_k_bucket_surrogate, BUCKET_KL, BUCKET_KL, 2, "alignax"),
            arguments=_LAWS_TOKENS,
            k=2,
        ),
        **_rows(
            (s.off_policy_sequence_kl_surrogate, kl, kl, 2, "alignax"),
            (s.sequence_ratio_kl_surrogate, kl, kl, 2, "Shah et al. 2025, disco"),
            (o.sequence_weighted_k3_surrogate, kl, kl, 2, "TRL's, for sequences"),
            arguments=_OFF_POLICY,
            sampled_from=BEHAVIOUR,
        ),
        **_rows(
            (s.sequence_f_surrogate, SEQUENCE_F, SEQUENCE_F, 2, "f-DPG"),
            divergence=chi2,
        ),
        **_rows(
            (s.sequence_f_reference_surrogate, SEQUENCE_F, SEQUENCE_F, 2, "DPH-RL"),
            sampled_from=REFERENCE,
            divergence=chi2,
        ),
        **_rows(
            (s.forward_kl_surrogate, forward, forward, 2, "DPH-RL"),
            sampled_from=REFERENCE,
        ),
    }


def _myopic_losses() -> dict[str, Estimator]:
    m, kl, chi2 = myopic, MYOPIC_KL, divergences.pearson()
    through, forward = m.myopic_straight_through_surrogate, MYOPIC_FORWARD_KL
    peers = "GRPO: TRL, verl, OpenRLHF, Tunix"
    return {
        **_rows(
            (m.myopic_kl_surrogate, SEQUENCE_KL, kl, 2, "KL in reward, γ = 0"),
            (m.myopic_k2_surrogate, None, kl, 2, "verl, OpenRLHF, KDRL"),
            (through, SEQUENCE_KL, kl, 2, "verl k3+"),
            (m.myopic_forward_k3_surrogate, SEQUENCE_KL, forward, 2, peers),
        ),
        **_rows(
            (vocabulary.myopic_rao_blackwell_surrogate, SEQUENCE_KL, kl, 2, "GKD"),
            arguments=_LAWS,
        ),
        **_rows(
            (m.off_policy_myopic_kl_surrogate, SEQUENCE_KL, kl, 2, "alignax"),
            (
                m.myopic_weighted_k3_surrogate,
                BEHAVIOUR_MYOPIC_KL,
                BEHAVIOUR_MYOPIC_KL,
                2,
                "TRL ≥ 1.16 by default",
            ),
            arguments=_OFF_POLICY,
            sampled_from=BEHAVIOUR,
        ),
        **_rows(
            (generators.myopic_f_surrogate, MYOPIC_F, MYOPIC_F, 2, "alignax"),
            divergence=chi2,
        ),
        **_rows(
            (m.myopic_top_k_f_surrogate, MYOPIC_F, MYOPIC_F, 2, "alignax"),
            arguments=_LAWS_TOKENS,
            divergence=chi2,
            k=2,
        ),
        **_rows(
            (
                generators.myopic_f_reference_surrogate,
                REFERENCE_F,
                REFERENCE_F,
                2,
                "DPH-RL",
            ),
            sampled_from=REFERENCE,
            divergence=chi2,
        ),
    }


def _values() -> dict[str, Estimator]:
    p, v, kl, forward = pointwise, vocabulary, SEQUENCE_KL, SEQUENCE_FORWARD_KL
    chi2 = divergences.pearson()
    return {
        **_rows(
            (p.k1, kl, ZERO, 2, "Schulman 2020"),
            (p.k2, None, MYOPIC_KL, 4, "Schulman 2020"),
            (p.k3, kl, MYOPIC_FORWARD_KL, 4, "Schulman 2020"),
            (p.absolute_log_ratio, None, MYOPIC_L1, 2, "verl"),
            (control.estimated_control_variate, kl, None, 4, "alignax"),
        ),
        **_rows(
            (control.control_variate, kl, None, 2, "Schulman 2020"), coefficient=0.5
        ),
        **_rows(
            (v.rao_blackwell, kl, MYOPIC_KL, 4, "Amini et al. 2025"), arguments=_LAWS
        ),
        **_rows(
            (v.top_k_bucket, BUCKET_KL, MYOPIC_BUCKET_KL, 4, "distillation"),
            (v.top_k_partial, None, None, 2, "distillation"),
            arguments=_LAWS,
            k=2,
        ),
        **_rows(
            (v.top_k_sampled_tail, kl, MYOPIC_KL, 2, "alignax"),
            arguments=_LAWS_TOKENS,
            k=2,
        ),
        **_rows(
            (generators.f_from_policy, MYOPIC_F, ZERO, 4, "RAPO (forward KL)"),
            divergence=chi2,
        ),
        **_rows(
            (generators.f_from_reference, REFERENCE_F, ZERO, 4, "DPH-RL"),
            sampled_from=REFERENCE,
            divergence=chi2,
        ),
        **_rows(
            (p.forward_k1, forward, forward, 2, "fine-tuning"),
            sampled_from=REFERENCE,
        ),
    }


TABLE: dict[str, Estimator] = _sequence_losses() | _myopic_losses() | _values()
"""Losses with the gradient of sequences, token-myopic losses, then values."""


def as_text() -> str:
    """``TABLE`` as the table of the package's docstring (reStructuredText)."""
    header = ("function", "tokens", "value", "gradient", "variance", "used by")
    rows = [header] + [
        (
            name,
            row.sampled_from,
            row.value or "biased",
            row.gradient or "other",
            f"ε^{row.order}",
            row.used,
        )
        for name, row in TABLE.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("=" * w for w in widths)
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
