"""A divergence is a value, with one definition and many uses.

>>> from alignax import divergences as dv
>>> div = dv.chi2_kl(1.0)

==============================  =================================================
use                             function
==============================  =================================================
exact, over a vocabulary        ``exact(div, logits, logits_ref)``
from samples of either side     ``estimators.f_from_policy``, ``f_from_reference``
as losses on these samples      ``estimators.myopic_f_surrogate`` and the like
regularised-optimal policy      ``regularised_optimum(div, rewards, logp_ref, beta=)``
pairs (f-DPO)                   ``preference.f_dpo(div, pair, beta=)``
pseudo-reward (f-DPG)           ``pseudo_reward``
distillation                    ``exact(div, student, teacher)``, ``score_weight``
==============================  =================================================

A new divergence is its ``f`` given to ``from_f``, or a ``mix``;
``testing.check_divergence`` tells what is wrong with one.
"""

from alignax.divergences.amari import (
    alpha,
    forward_kl,
    neyman,
    pearson,
    reverse_kl,
    squared_hellinger,
)
from alignax.divergences.batches import (
    cauchy_schwarz_kernel,
    sinkd,
    sinkhorn,
    sinkhorn_divergence,
)
from alignax.divergences.catalogue import (
    chi2_kl,
    jeffreys,
    jensen_shannon,
    skewed_kl,
    total_variation,
)
from alignax.divergences.conventions import (
    amari_from_cressie_read,
    amari_from_fdpo,
    amari_from_trl,
    amari_from_tsallis,
    from_trl,
)
from alignax.divergences.definition import from_f
from alignax.divergences.link import (
    pseudo_reward,
    score_weight,
)
from alignax.divergences.optimum import regularised_optimum
from alignax.divergences.tilting import gaussian_kl, information_projection, kl_dro
from alignax.divergences.value import Divergence, mix, normalise, scale, swap
from alignax.divergences.vocabulary import cauchy_schwarz, exact, renyi

__all__ = [
    "Divergence",
    "alpha",
    "amari_from_cressie_read",
    "amari_from_fdpo",
    "amari_from_trl",
    "amari_from_tsallis",
    "cauchy_schwarz",
    "cauchy_schwarz_kernel",
    "chi2_kl",
    "exact",
    "forward_kl",
    "from_f",
    "from_trl",
    "gaussian_kl",
    "information_projection",
    "jeffreys",
    "jensen_shannon",
    "kl_dro",
    "mix",
    "neyman",
    "normalise",
    "pearson",
    "pseudo_reward",
    "regularised_optimum",
    "renyi",
    "reverse_kl",
    "scale",
    "score_weight",
    "sinkd",
    "sinkhorn",
    "sinkhorn_divergence",
    "skewed_kl",
    "squared_hellinger",
    "swap",
    "total_variation",
]
