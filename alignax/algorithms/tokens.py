"""Tokens: entropy, covariance, conflicts."""

from alignax import advantages
from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, lengths

ROWS = {
    "clip_cov": entry.row(
        "Clip-Cov",
        "2505.22617 eq. 11",
        "standardised · clip "
        "· no gradient on a random few of high covariance · token mean",
        "2e-4 of the tokens, covariance in (1, 5)",
        entry.in_terms("test_clip_cov_draws_within_its_bounds"),
        entry.change(
            entry.standard_token_mean, level=m.clip_cov_level, rule=m.clip_cov
        ),
    ),
    "kl_cov": entry.row(
        "KL-Cov",
        "2505.22617 eq. 12",
        "standardised · no clip · |log ratio| on the top covariances · token mean",
        "2e-3 of the tokens, coefficient 1 (verl: 2e-4 and .1)",
        entry.in_terms("test_kl_cov_has_no_gradient_at_ratio_one"),
        entry.change(entry.standard_token_mean, level=m.top_covariance, rule=m.kl_cov),
    ),
    "hapo": entry.row(
        "HAPO (heterogeneous)",
        "2509.16591",
        "mixed · token_group_standardised · redistributed_advantages · adaptive_clip, "
        "dual · token mean",
        "strengths 1, cap 10; the official code's level is jnp.abs of ours",
        entry.in_shaping("test_relative_entropy_worked_numbers"),
        Algorithm(
            advantage=lambda scored, r: advantages.token_group_standardised(
                r, lengths(scored)
            ),
            keep=s.mixed,
            level=m.entropy_level,
            rule=m.hapo,
            reduction=s.token_mean,
        ),
    ),
    "gtpo": entry.row(
        "GTPO",
        "2508.03772 eqs. 5-9",
        "conflict_weights · less .1 H̄ · calm completions · π/sg π "
        "· mean of token means",
        "log 2; the official code: .7, products, over the conflicts' number",
        entry.in_shaping("test_conflict_weights_worked_numbers"),
        entry.change(
            entry.no_kl,
            credit=s.on_group(m.gtpo_credit),
            keep=m.gtpo_keep,
            weight=m.conflicts,
            on_policy=True,
            rule=s.RATIO,
        ),
    ),
    "d3s": entry.row(
        "D3S",
        "2509.22115 eqs. 5-7",
        "widest_subset of the batch · top tokens by |A| H · schedule by linear",
        "half of the tokens",
        entry.in_selection("test_widest_subset_is_the_best_of_all"),
        entry.change(entry.no_kl, weight=m.informative, reduction=s.token_mean),
    ),
    "eighty_twenty": entry.row(
        "High-entropy tokens (80/20)",
        "2506.01939 eq. 5",
        "DAPO on the fifth of highest entropy",
        "fraction .2",
        entry.in_selection("test_top_tokens_counts_and_ranks"),
        entry.change(m.dapo, weight=m.entropic),
    ),
    "entropy_shaping": entry.row(
        "Entropy-shaped advantages",
        "2506.14758 eq. 3",
        "entropy_shaped · GRPO",
        "α .4, κ 2",
        entry.in_shaping("test_entropy_shaping_worked_numbers"),
        entry.change(entry.no_kl, credit=s.on_group(m.shaped_by_entropy)),
    ),
    "nlpo": entry.row(
        "NLPO",
        "2210.01241 §4",
        "masked_policy_logits for sampling and log π · PPO",
        "p .9",
        entry.in_terms("test_nlpo_worked_numbers"),
    ),
}
