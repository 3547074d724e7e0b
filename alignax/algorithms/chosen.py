"""Roll-outs and selection."""

from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s

ROWS = {
    "online_difficulty": entry.row(
        "Online difficulty filtering",
        "2504.03380 §3",
        "difficulty_band · GRPO",
        "[.25, .75]",
        entry.in_selection("test_difficulty_band_and_its_theory"),
        entry.change(entry.no_kl, keep=m.in_band),
    ),
    "pf_ppo": entry.row(
        "PF-PPO",
        "2409.06957 §4",
        "best_worst_weights · clip; r_squared chooses",
        "BR .4, |r|²; verl ranks the whole batch",
        entry.in_selection("test_filtration_worked_numbers"),
        entry.change(entry.standard_token_mean, weight=m.best_and_worst),
    ),
    "dr_po": entry.row(
        "DR-PO",
        "2404.08495",
        "prefix_cuts of data · the roll-out trained · PPO",
        "probability 1",
        entry.in_selection("test_resets_leave_the_prefix_out"),
        entry.change(entry.standard_token_mean),
    ),
    "cure": entry.row(
        "CURE",
        "2508.11016 §3",
        "critical_tokens · roll-out trained · DAPO, dual",
        "top 20, K 4 + 4 · 3",
        entry.in_selection("test_critical_tokens"),
        entry.change(m.dapo, rule=s.DUAL),
    ),
    "rlgf": entry.row(
        "RLGF (PPO++, AggreVaTeD, LOLS)",
        "2306.11816",
        "prefix_cuts of a guide · roll_in_masks for policy and value",
        "mix .5",
        entry.in_selection("test_resets_leave_the_prefix_out"),
        entry.change(entry.standard_token_mean),
    ),
    "cory": entry.row(
        "CORY",
        "2410.06101",
        "exchanged roles · shared reward · PPO each",
        "every 5",
        entry.in_selection("test_team_reward_is_exact_for_both_roles"),
    ),
    "trimpi": entry.row(
        "TriMPI",
        "2510.09474",
        "context_rows sampled with the policy's text · ratio to the sampler · GRPO",
        "half of the group",
        "tests/test_algorithms.py::test_text_in_context_is_off_policy",
        entry.change(entry.no_kl, denominator=m.behaviour),
    ),
    "recap": entry.row(
        "RECAP",
        "2510.21978 eqs. 4-7",
        "objective_weights over replayed objectives · GRPO",
        "T 5, window 10; the code: two softmaxes",
        entry.in_selection("test_objective_weights_worked_numbers"),
    ),
}
