"""Losses towards a teacher's distribution, that are no divergence of the core.

A divergence of two distributions over the vocabulary is ``divergences.exact(div,
student, teacher)``: forward and reverse KL, GKD's generalised Jensen-Shannon, alpha,
skewed and the rest. Here is what else teaches, each of arrays alone; the step that
trains by either is ``alignax.train.distillation``.
"""

from alignax.distillation.chunks import chunk_ids, chunk_logp, chunk_sums
from alignax.distillation.objectives import (
    balanced,
    coarse,
    pld,
    surer,
    tvd_surrogate,
)

__all__ = [
    "balanced",
    "chunk_ids",
    "chunk_logp",
    "chunk_sums",
    "coarse",
    "pld",
    "surer",
    "tvd_surrogate",
]
