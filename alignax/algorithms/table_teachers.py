"""Methods that learn from a teacher on their own samples.

With a teacher (``assembly.make(teacher=…)``) the regulariser of any method measures
from it in place of the reference. Here are those for which that is all, and one that
reads both.
"""

from dataclasses import replace

from alignax import divergences, references
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Method, Sampling
from alignax.algorithms.values import partial
from alignax.regularisers import Regulariser

K1 = Regulariser(
    divergence=divergences.reverse_kl(),
    level="myopic",
    form="sampled",
    place="reward",
)
OPD = replace(
    m.token_mean,
    keep=s.told,
    shape=s.no_rewards,
    advantage=s.raw,
    regulariser=K1,
    beta=1.0,
)
# As ports say of the paper's scripts; its code's own defaults are other ones.
SUMMED = Regulariser(
    divergence=divergences.jensen_shannon(),
    level="myopic",
    form="exact",
    place="loss",
    weight_cap=2.0,
)
SDPO = replace(
    OPD,
    regulariser=SUMMED,
    sampling=Sampling(taught="reference"),
    reference=references.moving_average(decay=0.95),
)
G_OPD = replace(
    m.token_mean,
    shape=s.no_rewards,
    advantage=s.raw,
    credit=partial(s.towards_teacher, scale=1.0),
)

ROWS = {
    "opd": Method(
        "On-policy distillation",
        "2306.13649; 2602.12125 eq. 4",
        "−k1 to the teacher (logp_ref) as each token's advantage · clip · token mean",
        "clip .2",
        OPD,
        {"to go": replace(OPD, regulariser=replace(K1, level="sequence"))},
    ),
    "g_opd": Method(
        "G-OPD, ExOPD",
        "2602.12125 eq. 6",
        "λ log π_T/ρ − log π_old/ρ as each token's advantage · clip · token mean",
        "λ 1; ExOPD 1.25",
        G_OPD,
        {"exopd": replace(G_OPD, credit=partial(s.towards_teacher, scale=1.25))},
    ),
    "opsd": Method(
        "OPSD",
        "2601.18734",
        "opd to the first policy shown the solution; k1 in place of all tokens'",
        "clip .2",
        replace(OPD, sampling=Sampling(taught="reference")),
        {"live teacher": replace(OPD, sampling=Sampling(taught="own"))},
    ),
    "sdft": Method(
        "SDFT",
        "2601.19897",
        "opd to the moving average shown a demonstration; k1 in place of all tokens'",
        "decay .99, TRL's example",
        replace(
            OPD,
            sampling=Sampling(taught="reference"),
            reference=references.moving_average(decay=0.99),
        ),
    ),
    "sdpo": Method(
        "SDPO",
        "2601.20802; its ports' settings",
        "each token's divergence, over the vocabulary, from the moving average shown "
        "feedback · weights of the prefix · token mean",
        "Jensen-Shannon, cap 2, decay .95",
        SDPO,
        {
            "reverse kl": replace(
                SDPO,
                regulariser=replace(SUMMED, divergence=divergences.reverse_kl()),
            ),
            "live teacher": replace(
                SDPO, sampling=Sampling(taught="own"), reference=references.fixed()
            ),
            "top k": replace(SDPO, regulariser=replace(SUMMED, form="top_k", k=100)),
        },
    ),
}
