"""Rewards and baselines."""

from alignax import advantages, regularisers
from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm

ROWS = {
    "bnpo": entry.row(
        "BNPO",
        "2506.02864 eq. 12",
        "beta_normalised · clip-higher with a dual cap · sequence sum",
        "clip .2/.28, cap 10, K 16",
        entry.in_scales("test_beta_normalised_reduces_to_grpo_and_reinforce"),
        Algorithm(
            advantage=entry.of_rewards(advantages.beta_normalised),
            rule=s.DUAL,
            reduction=s.sequence_sum,
        ),
    ),
    "pass_at_k": entry.row(
        "Pass@k training",
        "2508.10751 eqs. 12-15",
        "pass_at_k_standardised · clip",
        "k half of the group",
        entry.in_scales("test_pass_at_k_training_worked_numbers"),
        entry.change(entry.no_kl, advantage=m.pass_at_k),
    ),
    "pkpo": entry.row(
        "PKPO",
        "2505.15201 eq. 9",
        "pass_at_k_weights · π/sg π · sequence sum",
        "k half of the group",
        entry.in_scales("test_pkpo_is_the_gradient_of_pass_at_k"),
        Algorithm(
            advantage=m.pkpo,
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.sequence_sum,
        ),
        best_less_second=Algorithm(
            advantage=entry.of_rewards(advantages.best_less_second),
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.sequence_sum,
        ),
    ),
    "seed_grpo": entry.row(
        "SEED-GRPO",
        "2505.12346 eqs. 5-6",
        "semantic_entropy_scaled · clip · constant length",
        "α .0417, linear; Shannon's entropy and e^{−x} as alternatives",
        entry.in_scales("test_semantic_entropy_worked_numbers"),
        entry.change(entry.no_kl, advantage=m.seed, reduction=s.constant_length),
    ),
    "confucius3": entry.row(
        "Confucius3-Math",
        "2506.18330",
        "recovered batches · ±1 · hardness_scaled · clip-higher · sum · entropy target",
        "slope −.256, constant 1.256, entropy .55 with .001",
        entry.in_scales("test_hardness_worked_numbers"),
        Algorithm(
            shape=m.signs,
            advantage=entry.of_rewards(advantages.hardness_scaled),
            keep=s.mixed,
            share=m.targeted_entropy,
            rule=s.CLIP_HIGHER,
            term=m.ter,
            reduction=s.sequence_sum,
        ),
    ),
    "grpo_care": entry.row(
        "GRPO-CARE",
        "2506.16141 eqs. 5-7",
        "consistency_bonus of an averaged reference · standardised · π/sg π",
        "margin .01, cap .95, no KL; reference: soup with the policy",
        entry.in_shaping("test_consistency_bonus_worked_numbers"),
        entry.change(entry.no_kl, shape=m.care, on_policy=True, rule=s.RATIO),
    ),
    "hapo_history": entry.row(
        "HAPO (history-aware)",
        "2505.11225 eq. 3",
        "history_length_reward added · GRPO",
        "weight 1, least −.7; linear as alternative",
        entry.in_shaping("test_history_length_worked_numbers"),
        entry.change(entry.no_kl, shape=m.shorter_than_before),
    ),
    "apo": entry.row(
        "APO",
        "2506.21655",
        "standardised times long_failure_multiplier · clip "
        "· k3 with difficulty_weights",
        "β .001, rate 1e-5",
        entry.in_shaping("test_long_failures_worked_numbers"),
        Algorithm(
            advantage=m.apo_advantage,
            regulariser=regularisers.k3_in_loss(),
            beta=1e-3,
            strength=m.dads,
            reduction=s.token_mean,
        ),
    ),
    "gdpo": entry.row(
        "GDPO, RLUF",
        "2601.05242, 2505.14946",
        "decoupled_standardised, or weighted_sum before GRPO",
        "weights 1",
        entry.in_scales("test_gdpo_does_not_follow_the_largest_reward"),
    ),
    "carl": entry.row(
        "CaRL",
        "2504.17838 eq. 1",
        "multiplicative reward · any",
        "factors in [0, 1]",
        entry.in_shaping("test_multiplicative_worked_numbers"),
    ),
    "grace": entry.row(
        "GRACE",
        "2510.04506 eq. 6",
        "contrastive_rewards · group centred · clip",
        "temperature .1, weights .2",
        entry.in_shaping("test_contrastive_rewards_worked_numbers"),
    ),
    "mpo": entry.row(
        "MPO (meta policy optimisation)",
        "2504.20157",
        "group_centred with where=newest_version · PPO",
        "a new rubric every 10 batches",
        entry.in_selection("test_versions_and_teachers"),
    ),
    "prl": entry.row(
        "PRL, FRPO",
        "2601.10201 eqs. 7-9",
        "standardised outcome less the future KL, by steps · clip",
        "β 1/200",
        entry.in_credit("test_process_rewards_are_the_sequence_gradient"),
        entry.change(
            entry.no_kl,
            credit=s.own_penalty,
            regulariser=regularisers.k1_in_reward(),
            beta=1 / 200,
        ),
    ),
    "rto": entry.row(
        "RTO",
        "2404.18922 eq. 4.3",
        "preference_token_rewards + outcome · GAE · PPO",
        "β₁ .05, β₂ .01; official code clips at .05",
        entry.in_credit("test_preference_token_rewards_are_potential_shaping"),
    ),
    "pcpg": entry.row(
        "PCPG",
        "2003.03983",
        "smoothed token rewards and losses · REINFORCE",
        "odd width",
        entry.in_credit("test_smoothed_worked_numbers"),
    ),
    "t_ppo": entry.row(
        "T-PPO",
        "2506.15050 eq. 7",
        "PPO with last_value as bootstrap (EGAE)",
        "λ .95",
        entry.in_credit("test_egae_worked_numbers"),
        entry.change(entry.gae_ppo, regulariser=None, beta=0.0),
    ),
}
