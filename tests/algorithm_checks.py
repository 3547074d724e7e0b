"""Which test shows each method of the table: a file of this folder, its function."""

COEFFICIENTS = "surrogates/test_coefficients.py"
CREDIT = "advantages/test_credit.py"
SHAPING = "advantages/test_shaping.py"
SCALES = "advantages/test_scales.py"
GROUPS = "advantages/test_groups.py"
RATIOS = "surrogates/test_ratios.py"
TERMS = "surrogates/test_terms.py"
SELECTION = "selection/test_selection.py"
HERE = "test_algorithms.py"
REGIONS = "surrogates/test_regions.py"
BUDGETS = "surrogates/test_budgets.py"
REGRESSION = "surrogates/test_regression.py"

CHECKS = {
    **dict.fromkeys(
        ("opd", "g_opd"),
        ("train/test_teachers.py", "test_generalised_is_plain_distillation_at_one"),
    ),
    **dict.fromkeys(
        ("opsd", "sdft"),
        ("train/test_teachers.py", "test_a_policy_is_taught_by_what_it_would_say"),
    ),
    "sdpo": ("train/test_teachers.py", "test_a_policy_descends_to_itself_told_more"),
    "unbiased": (
        "train/test_whole_step.py",
        "test_expected_step_is_the_gradient_of_the_objective",
    ),
    "reinforce": (COEFFICIENTS, "test_autodiff_is_minus_u_c"),
    "ppo": (CREDIT, "test_gae_worked_numbers"),
    "ppo_max": (SHAPING, "test_running_moments_do_not_depend_on_the_split"),
    "dual_clip": (COEFFICIENTS, "test_trl_two_sided_bound_is_dual_clip"),
    "grpo": (HERE, "test_updates_by_hand"),
    "dr_grpo": (GROUPS, "test_policy_gradient_is_unbiased"),
    "dapo": (HERE, "test_updates_by_hand"),
    "rloo": (GROUPS, "test_policy_gradient_is_unbiased"),
    "reinforce_plus_plus": (CREDIT, "test_reinforce_plus_plus_worked_numbers"),
    "remax": (SCALES, "test_greedy_baseline_is_unbiased"),
    "opo": (SCALES, "test_token_group_worked_numbers"),
    "gpg": (HERE, "test_updates_by_hand"),
    "gspo": (COEFFICIENTS, "test_sequence_rules_are_means_over_completions"),
    "gmpo": (COEFFICIENTS, "test_sequence_rules_are_means_over_completions"),
    "cispo": (COEFFICIENTS, "test_autodiff_is_minus_u_c"),
    "sapo": (COEFFICIENTS, "test_autodiff_is_minus_u_c"),
    "vespo": (COEFFICIENTS, "test_autodiff_is_minus_u_c"),
    "topr": (COEFFICIENTS, "test_topr_on_policy_is_reinforce"),
    "tis": (RATIOS, "test_the_divergence_term_needs_the_correction_too"),
    "opsm": (HERE, "test_updates_by_hand"),
    "remix": (SELECTION, "test_sampling_follows_ages"),
    "rl_plus": (RATIOS, "test_mixture_is_unbiased_over_the_mixture_only"),
    "dppo": (REGIONS, "test_dppo_is_the_official_rule"),
    "drpo": (REGIONS, "test_drpo_is_the_official_loss"),
    "vaco": (REGIONS, "test_completion_divergence_is_unbiased"),
    "cppo": (BUDGETS, "test_prefix_budget_is_the_loop"),
    "m2po": (BUDGETS, "test_budget_keeps_what_the_loop_keeps"),
    "p3o": (BUDGETS, "test_p3o_gradient_by_hand_and_by_enumeration"),
    "a_star_po": (REGRESSION, "test_a_star_po_is_the_reverse_kl"),
    "oapl": (REGRESSION, "test_oapl_is_its_published_loss"),
    "f_oapl": (REGRESSION, "test_the_minimiser_is_the_optimum_whatever_sampled"),
    "rebel": (REGRESSION, "test_rebel_is_its_paper_and_its_code"),
    "max_rl": (
        "advantages/test_optimal.py",
        "test_mean_normalised_is_truncated_maximum_likelihood",
    ),
    "bnpo": (SCALES, "test_beta_normalised_reduces_to_grpo_and_reinforce"),
    "pass_at_k": (SCALES, "test_pass_at_k_training_worked_numbers"),
    "pkpo": (SCALES, "test_pkpo_is_the_gradient_of_pass_at_k"),
    "seed_grpo": (SCALES, "test_semantic_entropy_worked_numbers"),
    "confucius3": (SCALES, "test_hardness_worked_numbers"),
    "grpo_care": (SHAPING, "test_consistency_bonus_worked_numbers"),
    "hapo_history": (SHAPING, "test_history_length_worked_numbers"),
    "apo": (SHAPING, "test_long_failures_worked_numbers"),
    "gdpo": (SCALES, "test_gdpo_does_not_follow_the_largest_reward"),
    "carl": (SHAPING, "test_multiplicative_worked_numbers"),
    "grace": (SHAPING, "test_contrastive_rewards_worked_numbers"),
    "mpo": (SELECTION, "test_versions_and_teachers"),
    "prl": (CREDIT, "test_kl_in_reward_is_the_sequence_gradient"),
    "f_dpg": ("train/test_target.py", "test_expected_step_descends_the_divergence"),
    "rto": (CREDIT, "test_preference_token_rewards_are_potential_shaping"),
    "pcpg": (CREDIT, "test_smoothed_worked_numbers"),
    "t_ppo": (CREDIT, "test_egae_worked_numbers"),
    "clip_cov": (TERMS, "test_clip_cov_draws_within_its_bounds"),
    "kl_cov": (TERMS, "test_kl_cov_has_no_gradient_at_ratio_one"),
    "hapo": (SHAPING, "test_relative_entropy_worked_numbers"),
    "gtpo": (SHAPING, "test_conflict_weights_worked_numbers"),
    "d3s": (SELECTION, "test_widest_subset_is_the_best_of_all"),
    "eighty_twenty": (SELECTION, "test_top_tokens_counts_and_ranks"),
    "entropy_shaping": (SHAPING, "test_entropy_shaping_worked_numbers"),
    "nlpo": (TERMS, "test_nlpo_worked_numbers"),
    "online_difficulty": (SELECTION, "test_difficulty_band_and_its_theory"),
    "pf_ppo": (SELECTION, "test_filtration_worked_numbers"),
    "dr_po": (SELECTION, "test_prefix_cuts_are_uniform"),
    "cure": (SELECTION, "test_critical_tokens"),
    "rlgf": (SELECTION, "test_prefix_cuts_are_uniform"),
    "cory": (SELECTION, "test_team_reward_is_exact_for_both_roles"),
    "trimpi": (HERE, "test_text_in_context_is_off_policy"),
    "recap": (SELECTION, "test_objective_weights_worked_numbers"),
    "kdrl": (RATIOS, "test_the_divergence_term_needs_the_correction_too"),
    "rapo": (TERMS, "test_forward_exploration_is_the_generalised_kl"),
    "dph_rl": (HERE, "test_stored_rows_are_only_regularised"),
    "salsa": ("test_references.py", "test_soup_of_logits_is_a_geometric_mixture"),
    "safe": ("test_controllers.py", "test_safe_worked_numbers"),
    "copg": (TERMS, "test_pair_policy_has_its_optimum_for_any_pairs"),
    "otr": (TERMS, "test_one_token_rollout_is_dynamic_fine_tuning"),
    "cot2": (RATIOS, "test_continuous_tokens_worked_numbers"),
    "steer": (TERMS, "test_product_of_experts_is_a_tilted_law"),
    "b_coder": (TERMS, "test_conservative_operator_contracts_and_inverts"),
}
