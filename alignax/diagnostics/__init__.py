"""What a reward does not show: diversity, calibration, unlearning, contamination."""

from alignax.diagnostics.calibration import (
    brier_score,
    calibration_error_equal_mass,
    calibration_error_equal_width,
)
from alignax.diagnostics.contamination import entropy_similarity
from alignax.diagnostics.diversity import distinct, embedding_diversity, self_bleu
from alignax.diagnostics.unlearning import (
    datamodel,
    klom,
    left_out_outputs,
    margin,
    matched,
    ridge,
)

__all__ = [
    "brier_score",
    "calibration_error_equal_mass",
    "calibration_error_equal_width",
    "datamodel",
    "distinct",
    "embedding_diversity",
    "entropy_similarity",
    "klom",
    "left_out_outputs",
    "margin",
    "matched",
    "ridge",
    "self_bleu",
]
