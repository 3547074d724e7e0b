"""Methods by what they do at each token: ratios, clips, weights, chosen tokens; trust
regions and targets by a divergence."""

from dataclasses import replace

from alignax import divergences, surrogates
from alignax.algorithms import methods as m
from alignax.algorithms import regions, rules
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Method, Sampling
from alignax.algorithms.values import partial

GSPO = s.at(s.GEOMETRIC, surrogates.ppo_surrogate, clip_low=3e-4, clip_high=4e-4)

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
    "dual_clip": Method(
        "Dual clip, INTELLECT-2",
        "1912.09729 eq. 5, 2505.07291 eq. 2",
        "dual_clip_surrogate in place of the clip",
        "cap 3 (verl), 10 (DAPO's scripts), 4 (INTELLECT-2, TRL's delta)",
        replace(m.no_kl, rule=s.by(surrogates.dual_clip_surrogate)),
        {
            "INTELLECT 2": replace(
                m.no_kl, rule=s.by(surrogates.dual_clip_surrogate, cap=4.0)
            )
        },
    ),
    "gspo": Method(
        "GSPO",
        "2507.18071 eqs. 5-7",
        "group standardised · geometric_log_ratio · clip · mean over completions",
        "clip 3e-4/4e-4",
        replace(m.no_kl, rule=GSPO),
        {
            "GSPO token": replace(
                m.no_kl,
                rule=s.at(
                    surrogates.geometric_token_log_ratio,
                    surrogates.ppo_surrogate,
                    clip_low=3e-4,
                    clip_high=4e-4,
                ),
            ),
            "LUSPO": replace(m.no_kl, weight=m.luspo, rule=GSPO),
        },
    ),
    "gmpo": Method(
        "GMPO",
        "2507.20673 eq. 4",
        "clipped_log_ratio, then geometric_log_ratio · no further clip "
        "· mean of completions",
        "±.4 nats",
        replace(m.no_kl, rule=rules.gmpo),
    ),
    "cispo": Method(
        "CISPO, ScaleRL",
        "2506.13585 eqs. 4-5, 2510.13786 §3",
        "standardised · clipped weight on log π · token mean; ScaleRL: uneven prompts, "
        "the batch's deviation, prompt mean",
        "weight ≤ 1 + clip_high; TRL's epsilon_high is the bound itself",
        replace(m.token_mean, rule=s.by(surrogates.cispo_surrogate, clip_high=0.28)),
        {
            "ScaleRL": replace(
                m.no_kl,
                advantage=m.scale_rl,
                keep=m.uneven,
                rule=s.by(surrogates.cispo_surrogate, clip_high=4.0),
                reduction=s.prompt_mean,
            )
        },
    ),
    "sapo": Method(
        "SAPO",
        "2511.20347 eq. 5",
        "standardised · soft gate · mean of token means",
        "τ 1 and 1.05",
        replace(m.no_kl, rule=s.by(surrogates.sapo_surrogate)),
    ),
    "vespo": Method(
        "VESPO",
        "2602.10693",
        "standardised · gamma weight of the sequence ratio · token mean",
        "(k, λ) (2, 3) and (3, 2)",
        replace(
            m.token_mean,
            rule=partial(
                s.score_rule, level=s.SEQUENCE, function=surrogates.vespo_surrogate
            ),
        ),
    ),
    "topr": Method(
        "TOPR",
        "2503.14286 eq. 8",
        "reward less a constant · taper of the sequence ratio · sequence sum, no KL",
        "weights [1, 1] and [0, 1]; reward −1 for failures",
        Algorithm(
            advantage=s.raw,
            shape=m.signs,
            denominator=rules.behaviour,
            rule=partial(
                s.score_rule, level=s.SEQUENCE, function=surrogates.topr_surrogate
            ),
            reduction=s.sequence_sum,
        ),
    ),
    "tis": Method(
        "TIS, MIS, IcePop",
        "Yao et al. 2025; Ionides 2008; 2110.00641",
        "π_old/μ truncated or masked, on the surrogate and the divergence alike",
        "cap 2; [.5, 5]",
        replace(m.token_mean, weight=m.truncated),
        {"IcePop": replace(m.token_mean, weight=m.icepop)},
    ),
    "opsm": Method(
        "Off-policy sequence masking",
        "2512.02556 eq. 9",
        "bad completions that the policy leaves behind count no longer, at each update",
        "δ 2 nats a token",
        replace(m.no_kl, level=rules.sampler_gap, rule=rules.opsm),
    ),
    "rl_plus": Method(
        "RL-PLUS",
        "2508.00222 eqs. 4-8",
        "baseline of the policy's own rows · blind_mixture_logp under demonstrations · "
        "exploration_advantages there · no clip · constant length",
        "γ .5, K 8 with one demonstration",
        Algorithm(
            advantage=m.own_centred,
            denominator=rules.rl_plus_denominator,
            level=rules.demonstrated,
            rule=rules.rl_plus,
            reduction=s.constant_length,
            sampling=Sampling(last="demonstration"),
        ),
        {
            "by the old policy": Algorithm(
                advantage=m.own_centred,
                credit=partial(s.less_group, credit=m.explored_when_sampled),
                denominator=rules.rl_plus_denominator,
                rule=s.RATIO,
                reduction=s.constant_length,
                sampling=Sampling(last="demonstration"),
            )
        },
    ),
    "clip_cov": Method(
        "Clip-Cov",
        "2505.22617 eq. 11",
        "standardised · clip "
        "· no gradient on a random few of high covariance · token mean",
        "2e-4 of the tokens, covariance in (1, 5), chosen anew at each update",
        replace(
            m.token_mean,
            level=rules.draws,
            follow=rules.chosen_covariances,
            rule=rules.clip_cov,
        ),
    ),
    "kl_cov": Method(
        "KL-Cov",
        "2505.22617 eq. 12",
        "standardised · no clip · |log ratio| on the top covariances · token mean",
        "2e-3 of the tokens, chosen anew at each update, coefficient 1 "
        "(verl: 2e-4 and .1)",
        replace(m.token_mean, follow=rules.top_covariances, rule=rules.kl_cov),
    ),
    "hapo": Method(
        "HAPO (heterogeneous)",
        "2509.16591",
        "mixed · token_group_standardised · redistributed_advantages · adaptive_clip, "
        "dual · token mean",
        "strengths 1, cap 10; the official code's level is jnp.abs of ours",
        Algorithm(
            advantage=m.token_group,
            keep=s.mixed,
            level=rules.entropy_level,
            rule=rules.hapo,
            reduction=s.token_mean,
        ),
    ),
    "gtpo": Method(
        "GTPO",
        "2508.03772 eqs. 5-9",
        "conflict_weights · less .1 H̄ · calm completions · π/sg π "
        "· mean of token means",
        "log 2",
        replace(
            m.no_kl,
            credit=partial(s.less_group, credit=m.gtpo_credit),
            weight=m.gtpo_weight,
            on_policy=True,
            rule=s.RATIO,
        ),
        {
            "official code": replace(
                m.no_kl,
                credit=partial(s.less_group, credit=m.gtpo_credit),
                weight=partial(m.gtpo_weight, official=True),
                on_policy=True,
                rule=s.RATIO,
            )
        },
    ),
    "d3s": Method(
        "D3S",
        "2509.22115 eqs. 5-7",
        "widest_subset of the batch · its top tokens by |A| H; no schedule",
        "half of the completions, half of their tokens",
        replace(m.token_mean, keep=m.widest, weight=m.informative),
    ),
    "eighty_twenty": Method(
        "High-entropy tokens (80/20)",
        "2506.01939 eq. 5",
        "DAPO on the fifth of highest entropy",
        "fraction .2",
        replace(m.dapo, weight=m.entropic),
    ),
    "entropy_shaping": Method(
        "Entropy-shaped advantages",
        "2506.14758 eq. 3",
        "entropy_shaped · GRPO",
        "α .4, κ 2",
        replace(m.no_kl, credit=partial(s.less_group, credit=m.shaped_by_entropy)),
    ),
    "cot2": Method(
        "CoT2-MTS",
        "2505.23648 §5",
        "continuous_log_ratio · standardised · clip · sum",
        "clip .1; 4 draws a step are ours",
        replace(
            m.no_kl,
            rule=s.by(surrogates.ppo_surrogate, clip_low=0.1, clip_high=0.1),
            reduction=s.sequence_sum,
            sampling=Sampling(draws=4),
        ),
        {
            "root": replace(
                m.no_kl,
                rule=partial(rules.root, draws=4),
                reduction=s.sequence_sum,
                sampling=Sampling(draws=4),
            )
        },
    ),
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
}
