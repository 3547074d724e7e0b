"""Sampled estimators of divergences between policies: values and losses."""

from alignax.estimators.myopic import myopic_kl_surrogate
from alignax.estimators.pointwise import k1, k2, k3
from alignax.estimators.sequence import sequence_kl_surrogate

__all__ = ["k1", "k2", "k3", "myopic_kl_surrogate", "sequence_kl_surrogate"]
