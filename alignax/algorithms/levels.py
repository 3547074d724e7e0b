"""Ratios: levels, weights, samplers that differ."""

from alignax import advantages, surrogates
from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm

ROWS = {
    "gspo": entry.row(
        "GSPO",
        "2507.18071 eqs. 5-7",
        "group standardised · geometric_log_ratio · clip · mean over completions",
        "clip 3e-4/4e-4",
        entry.SEQUENCES,
        entry.change(
            entry.no_kl,
            rule=s.at(
                s.GEOMETRIC, surrogates.ppo_surrogate, clip_low=3e-4, clip_high=4e-4
            ),
        ),
        GSPO_token=entry.change(
            entry.no_kl,
            rule=s.at(
                surrogates.geometric_token_log_ratio,
                surrogates.ppo_surrogate,
                clip_low=3e-4,
                clip_high=4e-4,
            ),
        ),
        LUSPO=entry.change(
            entry.no_kl,
            weight=m.luspo,
            rule=s.at(
                s.GEOMETRIC, surrogates.ppo_surrogate, clip_low=3e-4, clip_high=4e-4
            ),
        ),
    ),
    "gmpo": entry.row(
        "GMPO",
        "2507.20673 eq. 4",
        "clipped_log_ratio, then geometric_log_ratio · no further clip "
        "· mean of completions",
        "±.4 nats",
        entry.SEQUENCES,
        entry.change(entry.no_kl, rule=m.gmpo),
    ),
    "cispo": entry.row(
        "CISPO",
        "2506.13585 eqs. 4-5",
        "standardised · clipped weight on log π · token mean",
        "weight ≤ 1 + clip_high; TRL's epsilon_high is the bound itself",
        entry.COEFFICIENTS,
        entry.change(
            entry.standard_token_mean,
            rule=s.by(surrogates.cispo_surrogate, clip_high=0.28),
        ),
        ScaleRL=entry.change(
            entry.standard_token_mean,
            rule=s.by(surrogates.cispo_surrogate, clip_high=4.0),
        ),
    ),
    "sapo": entry.row(
        "SAPO",
        "2511.20347 eq. 5",
        "standardised · soft gate · mean of token means",
        "τ 1 and 1.05",
        entry.COEFFICIENTS,
        entry.change(entry.no_kl, rule=s.by(surrogates.sapo_surrogate)),
    ),
    "vespo": entry.row(
        "VESPO",
        "2602.10693",
        "standardised · gamma weight of the sequence ratio · token mean",
        "(k, λ) (2, 3) and (3, 2)",
        entry.COEFFICIENTS,
        entry.change(
            entry.standard_token_mean,
            rule=s.own_score(s.SEQUENCE, surrogates.vespo_surrogate),
        ),
    ),
    "topr": entry.row(
        "TOPR",
        "2503.14286 eq. 8",
        "reward less a constant · taper of the sequence ratio · sequence sum, no KL",
        "weights [1, 1] and [0, 1]; reward −1 for failures",
        "tests/surrogates/test_coefficients.py::test_topr_on_policy_is_reinforce",
        Algorithm(
            advantage=s.raw,
            shape=m.signs,
            denominator=lambda scored: scored.rollout.logp_behaviour,
            rule=s.own_score(s.SEQUENCE, surrogates.topr_surrogate),
            reduction=s.sequence_sum,
        ),
    ),
    "tis": entry.row(
        "TIS, MIS, IcePop",
        "Yao et al. 2025; Ionides 2008; 2110.00641",
        "π_old/μ truncated or masked, on the surrogate and the divergence alike",
        "cap 2; [.5, 5]",
        entry.in_ratios("test_the_divergence_term_needs_the_correction_too"),
        entry.change(entry.standard_token_mean, weight=m.truncated),
        IcePop=entry.change(entry.standard_token_mean, weight=m.icepop),
    ),
    "opsm": entry.row(
        "Off-policy sequence masking",
        "2512.02556 eq. 9",
        "bad completions that the policy left behind are dropped",
        "δ 2 nats a token",
        entry.HAND,
        entry.change(entry.no_kl, keep=m.not_drifted),
    ),
    "remix": entry.row(
        "ReMix",
        "2507.06892 §4",
        "replay_sample fills 40 % · ratio to what sampled each row · clip "
        "· KL to a soup "
        "of base and last policy, reset to the policy after stage one",
        "ages ≤ 2",
        entry.in_selection("test_sampling_follows_ages"),
        entry.change(entry.no_kl, denominator=m.behaviour),
    ),
    "rl_plus": entry.row(
        "RL-PLUS",
        "2508.00222 eqs. 4-8",
        "baseline of the policy's own rows · blind_mixture_logp under demonstrations · "
        "exploration_advantages there · no clip · constant length",
        "γ .5, K 8 with one demonstration",
        entry.in_ratios("test_mixture_is_unbiased_over_the_mixture_only"),
        Algorithm(
            advantage=lambda scored, r: advantages.group_centred(r, m.own_rows(scored)),
            credit=s.on_group(m.rl_plus_credit),
            denominator=m.rl_plus_denominator,
            rule=s.RATIO,
            reduction=s.constant_length,
        ),
    ),
}
