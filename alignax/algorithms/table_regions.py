"""Methods with a divergence for their trust region or their target, and maximum
likelihood."""

from dataclasses import replace

from alignax import advantages, divergences
from alignax.algorithms import methods as m
from alignax.algorithms import regions, rules
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Method
from alignax.algorithms.values import partial

TV, REVERSE = divergences.total_variation(), divergences.reverse_kl()
FORWARD, PEARSON = divergences.forward_kl(), divergences.pearson()
SAMPLER = replace(m.token_mean, denominator=rules.behaviour)
DRPO = replace(
    SAMPLER,
    advantage=s.centred,
    rule=partial(regions.drpo, div=PEARSON, bound=12.5),
    reduction=s.constant_length,
)


def dppo(div=TV, bound=0.15, **cap) -> Algorithm:
    rule = partial(regions.dppo, div=div, low=bound, high=bound, **cap)
    return replace(SAMPLER, rule=rule)


def oapl(div, beta=0.1) -> Algorithm:
    return Algorithm(
        advantage=partial(regions.optimal, div=div, beta=beta),
        denominator=rules.behaviour,
        rule=partial(regions.regression, div=div),
        beta=beta,
        reduction=s.sequence_mean,
    )


ROWS = {
    "dppo": Method(
        "DPPO",
        "2602.04879 eqs. 11-14",
        "standardised · ratio to the sampler · no gradient beyond a bound on the taken "
        "token's binary divergence · token mean",
        "total variation .15, KL .05; the code's ratios ≤ 10, prime-rl's bound .2",
        dppo(),
        {
            "KL": dppo(FORWARD, 0.05),
            "official code": dppo(cap=10.0),
            "prime-rl": dppo(bound=0.2),
        },
    ),
    "drpo": Method(
        "DRPO, SPO",
        "2606.09821 eq. 8, 2401.16025",
        "centred · ratio to the sampler · quadratic penalty by the shift of the "
        "token's probability (SPO: by the ratio) · constant length",
        "ε 12.5 for both",
        DRPO,
        {"SPO": replace(DRPO, rule=partial(regions.spo, div=PEARSON, bound=12.5))},
    ),
    "vaco": Method(
        "VACO",
        "2603.01365, as open-instruct's rho_mask_tv_divergence",
        "DPPO by the completion's mean total variation; without the paper's V-trace",
        "ratios ≤ 2; the bound .1 is ours",
        replace(
            SAMPLER, rule=partial(regions.vaco, div=TV, low=0.1, high=0.1, cap=2.0)
        ),
    ),
    "cppo": Method(
        "CPPO",
        "2606.10968, as verl's pull request 6731",
        "DPPO with lower bounds on early tokens and after a prefix that has drifted "
        "(prefix_budget)",
        "total variation .15, budget .02 to .04, weights 1 to .8, ratios ≤ 20",
        replace(
            SAMPLER,
            rule=partial(regions.cppo, div=TV, bound=0.15, budget=0.02, cap=20.0),
        ),
    ),
    "m2po": Method(
        "M2PO",
        "2510.01161",
        "standardised · ratio to the sampler · the batch's furthest tokens lose their "
        "gradient until the mean of (log r)² is within a budget · token mean",
        ".04; the code clips instead, at bounds of the same budget ≥ .3/.5",
        replace(
            SAMPLER,
            follow=partial(regions.within_budget, budget=0.04),
            rule=regions.m2po,
        ),
        {
            "official code": replace(
                SAMPLER, follow=regions.second_moment, rule=regions.bounded
            )
        },
    ),
    "p3o": Method(
        "P3O",
        "2605.12380",
        "standardised · weights of the sampler's ratio ≤ the batch's effective share s "
        "· (1 − s) KL to the sampler · token mean",
        "none to set",
        replace(
            SAMPLER,
            follow=regions.effective_share,
            rule=partial(regions.p3o, div=REVERSE),
        ),
        {
            "official code": replace(
                SAMPLER, follow=regions.effective_share, rule=regions.p3o_code
            )
        },
    ),
    "a_star_po": Method(
        "A*-PO",
        "2505.20686",
        "reward less V* of the reference's own samples · (β log π/ρ − A*)² of the "
        "completion",
        "β .5 for V*, 1e-3; 8 samples beforehand",
        Algorithm(
            advantage=partial(regions.above_reference, div=REVERSE, beta=0.5),
            denominator=regions.to_reference,
            rule=partial(regions.regression, div=REVERSE),
            beta=1e-3,
            reduction=s.sequence_mean,
        ),
    ),
    "oapl": Method(
        "OAPL",
        "2602.19362 eq. 3",
        "reward less the group's V̂* · (β log π/μ − A*)² of the completion, μ the law "
        "that sampled",
        "β .1 (NeMo-RL)",
        oapl(REVERSE),
    ),
    "f_oapl": Method(
        "f-OAPL",
        "derived: divergences.regularised_optimum",
        "OAPL to the optimum of another divergence: reward less the group's λ̂ · "
        "(β f'(π/μ) − A*)²",
        "β .1",
        oapl(divergences.jensen_shannon()),
        {
            "forward KL": oapl(FORWARD),
            "chi2": oapl(PEARSON),
            "chi2 KL": oapl(divergences.chi2_kl(1.0)),
        },
    ),
    "rebel": Method(
        "REBEL",
        "2404.16767 Algorithm 1",
        "rebel on pairs of one prompt, the policy before for its reference",
        "η = 1/β 1; its code's loss is η² times the paper's",
        step="preference",
    ),
    "max_rl": Method(
        "MaxRL",
        "2602.02710",
        "mean_normalised · clip · token mean",
        "failed groups dropped (code): order K − 1; with −1 there: order K",
        replace(
            m.token_mean,
            advantage=partial(s.of_rewards, function=advantages.mean_normalised),
        ),
        {
            "order K": replace(
                m.token_mean,
                advantage=partial(
                    s.of_rewards,
                    function=partial(advantages.mean_normalised, failed=-1.0),
                ),
            )
        },
    ),
}
