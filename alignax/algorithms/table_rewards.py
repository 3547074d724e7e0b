"""Methods by what they make of rewards: baselines, scales, shapes, critics."""

from dataclasses import replace

from alignax import advantages, references, regularisers, surrogates
from alignax.algorithms import methods as m
from alignax.algorithms import rules
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Algorithm, Critic, Method, Sampling
from alignax.algorithms.values import partial
from alignax.regularisers import Regulariser

ROWS = {
    "unbiased": Method(
        "Policy gradient under a divergence",
        "Williams 1992; 2302.08215 theorem 1; 2506.09477",
        "leave one out, of the reward and of the penalty to come · token ratio · clip "
        "· sequence sum: in expectation the gradient of E r − β D",
        "any regulariser; k1 in the reward, β .1",
        Algorithm(
            advantage=m.leave_one_out,
            reduction=s.sequence_sum,
            regulariser=regularisers.k1_in_reward(),
            beta=0.1,
        ),
    ),
    "reinforce": Method(
        "REINFORCE",
        "Williams 1992",
        "A = r · π/sg π · sequence sum",
        "no baseline",
        Algorithm(
            advantage=s.raw, on_policy=True, rule=s.REINFORCE, reduction=s.sequence_sum
        ),
    ),
    "ppo": Method(
        "PPO",
        "1707.06347 eq. 7, 1909.08593 eq. 2",
        "k1 in the reward · GAE with a critic, whitened · token ratio · clip · "
        "token mean; clipped_value_loss",
        "clip .2, λ .95, γ 1, β .05, value clip .2; cut completions end",
        m.gae_ppo,
        {
            "bootstrapped": replace(
                m.gae_ppo,
                credit=partial(s.gae, truncated=True),
                critic=Critic(returns=partial(s.gae_returns, truncated=True)),
            )
        },
    ),
    "ppo_max": Method(
        "PPO-max",
        "2307.04964 §5.4",
        "running_standardised reward, clipped · PPO · critic from the reward model, "
        "trained alone first",
        "reward clip 10, β .02; 50 steps of the critic alone and .01 of the bonus are "
        "ours",
        replace(
            m.gae_ppo,
            shape=m.running,
            beta=0.02,
            critic=Critic(returns=s.gae_returns, coefficient=1.0, pretrain=50),
        ),
        {
            "entropy bonus": replace(
                m.gae_ppo,
                shape=m.running,
                beta=0.02,
                critic=Critic(returns=s.gae_returns, coefficient=1.0, pretrain=50),
                term=partial(rules.entropy_bonus, coefficient=0.01),
            )
        },
    ),
    "dr_grpo": Method(
        "Dr. GRPO",
        "2503.20783 §3",
        "group centred · token ratio · clip · constant length",
        "clip .2, no KL",
        replace(m.no_kl, advantage=s.centred, reduction=s.constant_length),
    ),
    "grpo": Method(
        "GRPO",
        "2402.03300 eq. 3",
        "group standardised · token ratio · clip · k3 in the loss "
        "· mean of token means",
        "clip .2, β .04, sample deviation",
        m.grpo,
        {
            "TRL default": m.token_mean,
            "prompt mean": replace(m.no_kl, reduction=s.prompt_mean),
            "batch scale": replace(
                m.no_kl,
                advantage=partial(s.of_rewards, function=advantages.batch_standardised),
            ),
        },
    ),
    "dapo": Method(
        "DAPO",
        "2503.14476 eqs. 8-13",
        "mixed groups · overlong_penalty · group standardised · clip-higher "
        "· token mean",
        "clip .2/.28, K 16, buffer a fifth of the length",
        m.dapo,
        {"official script": replace(m.dapo, rule=s.DUAL)},
    ),
    "rloo": Method(
        "RLOO",
        "2402.14740 eq. 8",
        "Σ k1 in the reward · leave one out · π/sg π · sequence sum",
        "β .05",
        m.rloo,
        {
            "TRL": replace(
                m.rloo,
                on_policy=False,
                rule=s.at(s.SEQUENCE, surrogates.ppo_surrogate),
                reduction=s.sequence_mean,
            )
        },
    ),
    "reinforce_plus_plus": Method(
        "REINFORCE++",
        "2501.03262 eq. 8",
        "token k1 in the reward · reward-to-go · whitened over the batch "
        "· clip · token mean",
        "β .01",
        Algorithm(
            advantage=s.raw,
            credit=s.whitened_to_go,
            regulariser=regularisers.k1_in_reward(),
            beta=0.01,
            reduction=s.token_mean,
        ),
        {
            "baseline": Algorithm(
                advantage=s.centred,
                credit=s.whitened_to_go,
                regulariser=regularisers.k1_in_reward(),
                beta=0.01,
                reduction=s.token_mean,
            )
        },
    ),
    "remax": Method(
        "ReMax",
        "2310.10505 eq. 6",
        "greedy_centred · each token's own k1 · π/sg π · token mean",
        "β .05; the code clips rewards at ±5, verl takes reward-to-go of the penalty",
        Algorithm(
            advantage=m.remax,
            regulariser=Regulariser(level="myopic"),
            beta=0.05,
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.token_mean,
            sampling=Sampling(greedy=True),
        ),
    ),
    "opo": Method(
        "OPO",
        "2505.23585",
        "length_weighted_centred · π/sg π · token mean",
        "exactly on-policy",
        Algorithm(
            advantage=m.opo, on_policy=True, rule=s.REINFORCE, reduction=s.token_mean
        ),
    ),
    "gpg": Method(
        "GPG",
        "2504.02546 eq. 6",
        "centred, over the share of useful prompts · π/sg π",
        "no clip, no KL",
        Algorithm(
            advantage=m.gpg, on_policy=True, rule=s.REINFORCE, reduction=s.token_mean
        ),
    ),
    "bnpo": Method(
        "BNPO",
        "2506.02864 eq. 12",
        "beta_normalised · clip-higher with a dual cap · sequence sum",
        "clip .2/.28, cap 10, K 16",
        Algorithm(
            advantage=partial(s.of_rewards, function=advantages.beta_normalised),
            rule=s.DUAL,
            reduction=s.sequence_sum,
        ),
    ),
    "pass_at_k": Method(
        "Pass@k training",
        "2508.10751 eqs. 12-15",
        "pass_at_k_standardised · clip",
        "k half of the group",
        replace(m.no_kl, advantage=m.pass_at_k),
    ),
    "pkpo": Method(
        "PKPO",
        "2505.15201 eq. 9",
        "pass_at_k_weights · π/sg π · sequence sum",
        "k half of the group",
        Algorithm(
            advantage=m.pkpo,
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.sequence_sum,
        ),
        {
            "best less second": Algorithm(
                advantage=partial(s.of_rewards, function=advantages.best_less_second),
                on_policy=True,
                rule=s.REINFORCE,
                reduction=s.sequence_sum,
            )
        },
    ),
    "seed_grpo": Method(
        "SEED-GRPO",
        "2505.12346 eqs. 5-6",
        "semantic_entropy_scaled · clip · constant length",
        "α .0417, linear",
        replace(m.no_kl, advantage=m.seed, reduction=s.constant_length),
    ),
    "confucius3": Method(
        "Confucius3-Math",
        "2506.18330",
        "recovered batches · ±1 · hardness_scaled · clip-higher · sum · entropy target",
        "slope −.256, constant 1.256, entropy .55 with .001",
        Algorithm(
            shape=m.signs,
            advantage=partial(s.of_rewards, function=advantages.hardness_scaled),
            keep=s.mixed,
            share=rules.targeted_entropy,
            level=rules.mean_length,
            rule=s.CLIP_HIGHER,
            term=rules.ter,
            reduction=s.sequence_sum,
        ),
    ),
    "grpo_care": Method(
        "GRPO-CARE",
        "2506.16141 eqs. 5-7",
        "consistency_bonus by an averaged reference's confidence · standardised "
        "· π/sg π",
        "margin .01, cap .95, no KL; decay .995 every 10 steps is ours",
        replace(
            m.no_kl,
            shape=m.care,
            on_policy=True,
            rule=s.RATIO,
            reference=references.moving_average(decay=0.995, every=10),
        ),
    ),
    "hapo_history": Method(
        "HAPO (history-aware)",
        "2505.11225 eq. 3",
        "history_length_reward added · GRPO",
        "weight 1, least −.7",
        replace(m.no_kl, shape=m.shorter_than_before),
    ),
    "apo": Method(
        "APO",
        "2506.21655",
        "standardised times long_failure_multiplier · clip "
        "· k3 with difficulty_weights",
        "β .001, rate 1e-5",
        Algorithm(
            advantage=m.apo_advantage,
            regulariser=regularisers.k3_in_loss(),
            beta=1e-3,
            strength=rules.dads,
            reduction=s.token_mean,
        ),
    ),
    "gdpo": Method(
        "GDPO, RLUF",
        "2601.05242, 2505.14946",
        "decoupled_standardised objectives · clip; RLUF sums them before GRPO",
        "weights 1",
        replace(m.no_kl, advantage=m.decoupled),
        {"RLUF": replace(m.no_kl, shape=m.summed)},
    ),
    "recap": Method(
        "RECAP",
        "2510.21978 eqs. 4-7",
        "objectives by objective_weights of their last rewards · GRPO; general data "
        "among the prompts",
        "T 5, window 10; the code: two softmaxes",
        replace(m.no_kl, shape=m.weighted),
    ),
    "carl": Method(
        "CaRL",
        "2504.17838 eq. 1",
        "multiplicative reward · PPO without KL",
        "factors in [0, 1]",
        replace(m.gae_ppo, shape=m.multiplied, regulariser=None, beta=0.0),
    ),
    "grace": Method(
        "GRACE",
        "2510.04506 eq. 6",
        "contrastive_rewards of the task · group centred · clip",
        "temperature .1, weights .2",
        replace(m.no_kl, advantage=s.centred),
    ),
    "prl": Method(
        "PRL, FRPO",
        "2601.10201 eqs. 7-9",
        "standardised outcome less the future KL, by steps · clip",
        "β 1/200",
        replace(
            m.no_kl,
            credit=s.own_penalty,
            regulariser=regularisers.k1_in_reward(),
            beta=1 / 200,
        ),
    ),
    "rto": Method(
        "RTO",
        "2404.18922 eq. 4.3",
        "preference_token_rewards + outcome · GAE · PPO",
        "β₁ .05, β₂ .01",
        replace(
            m.gae_ppo,
            credit=partial(s.gae, dense=m.implied),
            critic=Critic(returns=partial(s.gae_returns, dense=m.implied)),
            beta=0.01,
        ),
        {
            "official code": replace(
                m.gae_ppo,
                credit=partial(s.gae, dense=partial(m.implied, clip=0.05)),
                critic=Critic(
                    returns=partial(s.gae_returns, dense=partial(m.implied, clip=0.05))
                ),
                beta=0.01,
            )
        },
    ),
    "pcpg": Method(
        "PCPG",
        "2003.03983",
        "token rewards smoothed over neighbours, to come · π/sg π · sequence sum",
        "width 3 is ours",
        Algorithm(
            advantage=s.raw,
            credit=m.smoothed,
            on_policy=True,
            rule=s.REINFORCE,
            reduction=s.sequence_sum,
        ),
    ),
    "t_ppo": Method(
        "T-PPO",
        "2506.15050 eq. 7",
        "PPO on this window's tokens, cut completions worth their last value (EGAE) "
        "· critic on whole completions' returns · no KL",
        "λ .95, the critic's 1",
        replace(
            m.gae_ppo,
            keep=m.this_window,
            credit=partial(s.gae, truncated=True),
            critic=Critic(returns=partial(s.gae_returns, trace=1.0), learns=m.finished),
            regulariser=None,
            beta=0.0,
        ),
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
