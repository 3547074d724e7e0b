"""Decoding from several models at once, and a direction to steer one in.

``combine``        a rule over logits and several models, as one ``ApplyFn``
``product``        experts and anti-experts (STEER, DExperts)
``contrastive``    an expert against an amateur, among plausible tokens, gated
``fused``          what tuning changed in a small model, added to a large one
``fusion_weight``  how much of it: the solved problem
``switching``      one of two models, by the rolling entropy (EAD)
``switch``         its rule over positions
``entropic_steering``  a vector to add to one model's stream (EAST)

The geometric mixture is ``games.mixture_policy``, NLPO's mask
``surrogates.masked_policy_logits``: both go through ``combine``.
"""

from alignax.decoding.fusion import fused, fusion_weight
from alignax.decoding.models import combine
from alignax.decoding.rules import contrastive, product
from alignax.decoding.steering import entropic_steering
from alignax.decoding.switching import SwitchState, switch, switching

__all__ = [
    "SwitchState",
    "combine",
    "contrastive",
    "entropic_steering",
    "fused",
    "fusion_weight",
    "product",
    "switch",
    "switching",
]
