"""Learning from preferences: a loss is a margin, a link and a noise.

>>> import jax.numpy as jnp
>>> from alignax import preference as pf
>>> pair = pf.Pair(*jnp.array([-10.0, -12.0, -11.0, -11.5, 5.0, 6.0]))
>>> margin = 0.1 * pf.log_ratio_margin(pair)           # how far apart
>>> loss = pf.label_smoothed(pf.logistic_link, margin, noise=0.1)  # of which labels
>>> print(loss == pf.cdpo(pair, beta=0.1, noise=0.1))  # its name
True

=================  =============================================================
file               holds
=================  =============================================================
``pairs``          ``Pair``: whole-completion log-probabilities and lengths
``margins``        implicit rewards under any divergence, reference-free, a token
``tokens``         margins and rewards that look inside a completion
``links``          logistic, squared, hinge, exponential …
``noise``          wrong, soft and counted labels; relabelling by reward
``named``          losses by their names; others are ``reference_free``, ``anchored``
``paired``         a loss as a step takes it: ``PairLoss``, ``PairTokens``; TDPO …
``catalogue``      ``LOSSES``, ``LABEL_LOSSES``, peers' loss types: ``TRL``, ``TUNIX``
``unpaired``       single completions: KTO, BCO, APO; SePPO
``listwise``       more than two candidates
``contrastive``    CoPG, REBEL: any two scored samples
``collection``     pairs from scored samples; rejection sampling, best of n
``sampling``       online and offline sampling on the same loss
``information``    differential information; SFT as reward learning
``reward_models``  losses of reward models; ``ensembles`` of them, reports
=================  =============================================================
"""

from alignax.preference.anchored import (
    apo_down,
    apo_zero_pair,
    bco_batch,
    bco_pair,
    kto_pair,
    nca,
    sppo_hard,
    tpo,
)
from alignax.preference.catalogue import (
    LABEL_LOSSES,
    LOSSES,
    TRL,
    TUNIX,
)
from alignax.preference.collection import (
    best_and_worst,
    best_of_n_estimate,
    rejection_law,
    rejection_sample,
)
from alignax.preference.contrastive import copg, rebel
from alignax.preference.ensembles import (
    Agreement,
    agreement,
    ensemble_mean,
    ensemble_uncertain,
    ensemble_worst,
    pairwise_agreement,
    standardise,
)
from alignax.preference.information import (
    divergence_sft,
)
from alignax.preference.links import (
    blended_link,
    exponential_link,
    hinge_link,
    logistic_link,
    reverse_cross_entropy_link,
    squared_link,
)
from alignax.preference.listwise import (
    plackett_luce,
)
from alignax.preference.margins import (
    average_margin,
    divergence_margin,
    implicit_reward,
    log_ratio_margin,
    normalised_margin,
    odds_margin,
    policy_margin,
    power_margin,
)
from alignax.preference.named import (
    aot,
    aot_unpaired,
    cdpo,
    chi_po,
    discopop,
    dpo,
    exo,
    f_dpo,
    hinge_dpo,
    ipo,
    ipo_averaged,
    ln_dpo,
    rdpo,
    rpo,
)
from alignax.preference.noise import (
    debiased,
    label_smoothed,
    reward_relabelled,
    soft_labelled,
)
from alignax.preference.paired import (
    PairLoss,
    PairTokens,
    ld_dpo,
    sparse_po,
    tdpo1,
    tdpo2,
    whole,
    wpo,
)
from alignax.preference.pairs import (
    Pair,
    average_logps,
    log_ratios,
    pair_from_tokens,
)
from alignax.preference.reference_free import (
    alpha_po,
    cpo,
    orpo,
    sft,
    simpo,
    slic,
)
from alignax.preference.reward_models import (
    binary_feedback_loss,
    bradley_terry_loss,
    ties_loss,
)
from alignax.preference.tokens import (
    activation_weights,
    on_policy_weight,
    sparse_score,
    tail_discounted_logp,
    tdpo1_margin,
    tdpo2_margin,
    token_rewards,
)
from alignax.preference.unpaired import (
    apo_zero,
    bco,
    bco_batch_labels,
    kto,
    kto_anchor,
    seppo,
)

__all__ = [
    "LABEL_LOSSES",
    "LOSSES",
    "TRL",
    "TUNIX",
    "Agreement",
    "Pair",
    "PairLoss",
    "PairTokens",
    "activation_weights",
    "agreement",
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_pair",
    "average_logps",
    "average_margin",
    "bco",
    "bco_batch",
    "bco_batch_labels",
    "bco_pair",
    "best_and_worst",
    "best_of_n_estimate",
    "binary_feedback_loss",
    "blended_link",
    "bradley_terry_loss",
    "cdpo",
    "chi_po",
    "copg",
    "cpo",
    "debiased",
    "discopop",
    "divergence_margin",
    "divergence_sft",
    "dpo",
    "ensemble_mean",
    "ensemble_uncertain",
    "ensemble_worst",
    "exo",
    "exponential_link",
    "f_dpo",
    "hinge_dpo",
    "hinge_link",
    "implicit_reward",
    "ipo",
    "ipo_averaged",
    "kto",
    "kto_anchor",
    "kto_pair",
    "label_smoothed",
    "ld_dpo",
    "ln_dpo",
    "log_ratio_margin",
    "log_ratios",
    "logistic_link",
    "nca",
    "normalised_margin",
    "odds_margin",
    "on_policy_weight",
    "orpo",
    "pair_from_tokens",
    "pairwise_agreement",
    "plackett_luce",
    "policy_margin",
    "power_margin",
    "rdpo",
    "rebel",
    "rejection_law",
    "rejection_sample",
    "reverse_cross_entropy_link",
    "reward_relabelled",
    "rpo",
    "seppo",
    "sft",
    "simpo",
    "slic",
    "soft_labelled",
    "sparse_po",
    "sparse_score",
    "sppo_hard",
    "squared_link",
    "standardise",
    "tail_discounted_logp",
    "tdpo1",
    "tdpo1_margin",
    "tdpo2",
    "tdpo2_margin",
    "ties_loss",
    "token_rewards",
    "tpo",
    "whole",
    "wpo",
]
