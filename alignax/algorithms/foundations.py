"""The family's trunk: baselines, clips, normalisers."""

from alignax import advantages, regularisers, surrogates
from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Sampling, needed
from alignax.regularisers import Regulariser

ROWS = {
    "reinforce": entry.row(
        "REINFORCE",
        "Williams 1992",
        "A = r · π/sg π · sequence sum",
        "no baseline",
        entry.COEFFICIENTS,
        Algorithm(
            advantage=s.raw, on_policy=True, rule=s.REINFORCE, reduction=s.sequence_sum
        ),
    ),
    "ppo": entry.row(
        "PPO",
        "1707.06347 eq. 7, 1909.08593 eq. 2",
        "k1 in the reward · GAE with a critic, whitened · token ratio · clip · "
        "token mean; clipped_value_loss",
        "clip .2, λ .95, γ 1, β .05, value clip .2",
        entry.in_credit("test_gae_worked_numbers"),
        entry.gae_ppo,
    ),
    "ppo_max": entry.row(
        "PPO-max",
        "2307.04964 §5.4",
        "running_standardised reward, then PPO; entropy_target_surrogate; critic from "
        "the reward model, pretrained",
        "reward clip 10, β .02",
        entry.in_shaping("test_running_moments_do_not_depend_on_the_split"),
        entry.change(entry.gae_ppo, beta=0.02),
    ),
    "dual_clip": entry.row(
        "Dual clip, INTELLECT-2",
        "1912.09729 eq. 5, 2505.07291 eq. 2",
        "dual_clip_surrogate in place of the clip",
        "cap 3 (verl), 10 (DAPO's scripts), 4 (INTELLECT-2, TRL's delta)",
        "tests/surrogates/test_coefficients.py::test_trl_two_sided_bound_is_dual_clip",
        entry.change(entry.no_kl, rule=s.by(surrogates.dual_clip_surrogate)),
        INTELLECT_2=entry.change(
            entry.no_kl, rule=s.by(surrogates.dual_clip_surrogate, cap=4.0)
        ),
    ),
    "grpo": entry.row(
        "GRPO",
        "2402.03300 eq. 3",
        "group standardised · token ratio · clip · k3 in the loss "
        "· mean of token means",
        "clip .2, β .04, sample deviation",
        entry.HAND,
        m.grpo,
        TRL_default=entry.change(entry.no_kl, reduction=s.token_mean),
        prompt_mean=entry.change(entry.no_kl, reduction=s.prompt_mean),
        batch_scale=entry.change(
            entry.no_kl, advantage=entry.of_rewards(advantages.batch_standardised)
        ),
    ),
    "dr_grpo": entry.row(
        "Dr. GRPO",
        "2503.20783 §3",
        "group centred · token ratio · clip · constant length",
        "clip .2, no KL",
        "tests/advantages/test_groups.py::test_policy_gradient_is_unbiased",
        entry.change(entry.no_kl, advantage=s.centred, reduction=s.constant_length),
    ),
    "dapo": entry.row(
        "DAPO",
        "2503.14476 eqs. 8-13",
        "mixed groups · overlong_penalty · group standardised · clip-higher "
        "· token mean",
        "clip .2/.28, K 16, buffer a fifth of the length",
        entry.HAND,
        m.dapo,
        official_script=entry.change(m.dapo, rule=s.DUAL),
    ),
    "rloo": entry.row(
        "RLOO",
        "2402.14740 eq. 8",
        "Σ k1 in the reward · leave one out · π/sg π · sequence sum",
        "β .05",
        "tests/advantages/test_groups.py::test_policy_gradient_is_unbiased",
        m.rloo,
        TRL=entry.change(
            m.rloo,
            on_policy=False,
            rule=s.at(s.SEQUENCE, surrogates.ppo_surrogate),
            reduction=s.sequence_mean,
        ),
    ),
    "reinforce_plus_plus": entry.row(
        "REINFORCE++",
        "2501.03262 eq. 8",
        "token k1 in the reward · reward-to-go · whitened over the batch "
        "· clip · token mean",
        "β .01",
        entry.in_credit("test_reinforce_plus_plus_worked_numbers"),
        Algorithm(
            advantage=s.raw,
            credit=s.whitened_to_go(),
            regulariser=regularisers.k1_in_reward(),
            beta=0.01,
            reduction=s.token_mean,
        ),
        baseline=Algorithm(
            advantage=s.centred,
            credit=s.whitened_to_go(),
            regulariser=regularisers.k1_in_reward(),
            beta=0.01,
            reduction=s.token_mean,
        ),
    ),
    "remax": entry.row(
        "ReMax",
        "2310.10505 eq. 6",
        "greedy_centred · each token's own k1 · π/sg π · token mean",
        "reward clip ±5; verl takes reward-to-go of the penalty",
        entry.in_scales("test_greedy_baseline_is_unbiased"),
        Algorithm(
            advantage=lambda scored, r: advantages.greedy_centred(
                r, needed(scored, "greedy")
            ),
            regulariser=Regulariser(level="myopic"),
            beta=0.05,
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.token_mean,
            sampling=Sampling(greedy=True),
        ),
    ),
    "opo": entry.row(
        "OPO",
        "2505.23585",
        "length_weighted_centred · π/sg π · token mean",
        "exactly on-policy",
        entry.in_scales("test_token_group_worked_numbers"),
        Algorithm(
            advantage=m.opo, on_policy=True, rule=s.REINFORCE, reduction=s.token_mean
        ),
    ),
    "gpg": entry.row(
        "GPG",
        "2504.02546 eq. 6",
        "centred, over the share of useful prompts · π/sg π",
        "no clip, no KL",
        entry.HAND,
        Algorithm(
            advantage=m.gpg, on_policy=True, rule=s.REINFORCE, reduction=s.token_mean
        ),
    ),
}
