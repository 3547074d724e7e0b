"""What a reward does not show: diversity, calibration, forgetting, contamination."""

from alignax.diagnostics.calibration import (
    brier_score,
    calibration_error_equal_mass,
    calibration_error_equal_width,
)
from alignax.diagnostics.diversity import distinct, embedding_diversity, self_bleu

__all__ = [
    "brier_score",
    "calibration_error_equal_mass",
    "calibration_error_equal_width",
    "distinct",
    "embedding_diversity",
    "self_bleu",
]
