"""The methods by their published names: those of this page by whose samples they take,
by their reference or their kind of step; ``table_rewards``, ``table_ratios``,
``table_targets`` and ``table_teachers`` have the others."""

import functools
from dataclasses import replace

from alignax import divergences, references, regularisers, surrogates
from alignax.algorithms import methods as m
from alignax.algorithms import (
    rules,
    table_ratios,
    table_rewards,
    table_targets,
    table_teachers,
)
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Critic, Method, Replay, Sampling
from alignax.algorithms.values import partial
from alignax.regularisers import Regulariser

in_loss = functools.partial(Regulariser, level="myopic", place="loss")
# The f of the paper, u log u − (u + 1) log((u + 1)/2), is twice the usual one.
JS = divergences.scale(divergences.jensen_shannon(), 2.0)
STORED = replace(
    m.dapo,
    keep=s.mixed_or_stored,
    weight=m.not_stored,
    strength=rules.stored,
    regulariser=in_loss(divergence=divergences.forward_kl(), samples="reference"),
    beta=0.05,
    sampling=Sampling(last="reference"),
)

ROWS = {
    "online_difficulty": Method(
        "Online difficulty filtering",
        "2504.03380 §3",
        "difficulty_band · GRPO",
        "[.25, .75]",
        replace(m.no_kl, keep=m.in_band),
    ),
    "pf_ppo": Method(
        "PF-PPO",
        "2409.06957 §4",
        "PPO on each prompt's best and worst completion (best_worst_weights)",
        "verl ranks the whole batch",
        replace(
            m.gae_ppo,
            keep=m.best_and_worst,
            credit=partial(s.among, kept=m.best_and_worst, credit=s.gae),
        ),
    ),
    "mpo": Method(
        "MPO (meta policy optimisation)",
        "2504.20157",
        "PPO on what the newest rubric has judged (newest_version)",
        "a new rubric every 10 batches",
        replace(
            m.gae_ppo,
            keep=m.newest_judged,
            credit=partial(s.among, kept=m.newest_judged, credit=s.gae),
        ),
    ),
    "dr_po": Method(
        "DR-PO",
        "2404.08495",
        "prefix_cuts of data · the roll-out trained · PPO",
        "probability 1",
        replace(m.gae_ppo, sampling=Sampling(roll_in="data")),
    ),
    "cure": Method(
        "CURE",
        "2508.11016 §3",
        "critical_tokens · roll-out trained · DAPO, dual",
        "top 20, K 4 + 4 · 3",
        replace(
            m.dapo,
            rule=s.DUAL,
            sampling=Sampling(roll_in="critical", roll_in_share=0.75),
        ),
    ),
    "rlgf": Method(
        "RLGF (PPO++, AggreVaTeD, LOLS)",
        "2306.11816",
        "prefix_cuts of a guide · PPO on the roll-out",
        "mix .5",
        replace(m.gae_ppo, sampling=Sampling(roll_in="guide", roll_in_share=0.5)),
    ),
    "cory": Method(
        "CORY",
        "2410.06101",
        "two roles, exchanged · shared reward · PPO each, one token mean over both",
        "every 5; β .05 is ours",
        replace(m.gae_ppo, shape=m.team, sampling=Sampling(roles=2)),
    ),
    "trimpi": Method(
        "TriMPI",
        "2510.09474",
        "half of the rows sampled with the policy's text · ratio to the sampler · GRPO",
        "half of the group",
        replace(m.no_kl, denominator=rules.behaviour, sampling=Sampling(context=0.5)),
    ),
    "nlpo": Method(
        "NLPO",
        "2210.01241 §4",
        "PPO of masked_policy_logits: drawn and scored among a slower copy's likeliest",
        "p .9, a new copy every 20 steps",
        replace(m.gae_ppo, sampling=Sampling(copy_top_p=0.9, copy_every=20)),
    ),
    "remix": Method(
        "ReMix",
        "2507.06892 §4",
        "replay_sample fills 40 % · ratio to what sampled each row · clip · KL to base "
        "and last policy (KL-convex), the policy as base after stage one",
        "ages ≤ 2; β .01, weight .5 and 50 steps are ours",
        replace(
            m.no_kl,
            denominator=rules.behaviour,
            regulariser=regularisers.k2_in_loss(),
            beta=0.01,
            reference=references.convex(weight=0.5, reset=50),
            replay=Replay(share=0.4, most_age=2),
        ),
    ),
    "kdrl": Method(
        "KDRL",
        "2506.02208 eq. 7",
        "GRPO at token mean + β k2 to a teacher (logp_ref) on wrong answers",
        "β 5e-3 → 1e-3, in 200 steps (ours)",
        replace(
            m.token_mean,
            regulariser=regularisers.k2_in_loss(),
            beta=5e-3,
            strength=rules.kdrl_share,
            controller=partial(s.annealed, end=1e-3, steps=200),
        ),
        {
            "every answer": replace(
                m.token_mean,
                regulariser=regularisers.k2_in_loss(),
                beta=5e-3,
                controller=partial(s.annealed, end=1e-3, steps=200),
            )
        },
    ),
    "rapo": Method(
        "RAPO",
        "2510.03865 eqs. 6-8",
        "GRPO + forward_exploration_surrogate − η H",
        ".01, .001, φ = reward",
        replace(m.no_kl, share=rules.rapo_share, term=rules.rapo, beta=0.01),
    ),
    "dph_rl": Method(
        "DPH-RL",
        "2509.07430 eqs. 6-9",
        "DAPO; on stored rows of the reference an f-divergence alone",
        "forward KL .05, JS .1; split by solved prompts",
        STORED,
        {
            "JS": replace(
                STORED,
                regulariser=in_loss(divergence=JS, samples="reference"),
                beta=0.1,
            ),
            "forward KL on own rows": replace(
                m.token_mean, regulariser=regularisers.k3_in_loss(), beta=0.05
            ),
            "JS on own rows": replace(
                m.token_mean,
                regulariser=in_loss(divergence=JS),
                beta=0.1,
            ),
        },
    ),
    "salsa": Method(
        "SALSA",
        "2411.01798 eq. 4",
        "PPO to a soup of two fine-tuned models",
        "weight .5",
        replace(m.gae_ppo, reference=references.soup(weight=0.5)),
    ),
    "safe": Method(
        "SAFE",
        "2602.04651",
        "PPO · soft minimum of two critic heads, huber_value_loss · safe's β from "
        "KL, entropy and reward",
        "α .3, τ .3, λ 1",
        replace(
            m.gae_ppo,
            credit=partial(s.gae, trace=1.0),
            beta=0.0,
            controller=s.safe,
            critic=Critic(
                returns=partial(s.gae_returns, trace=1.0),
                loss=surrogates.huber_value_loss,
                heads=2,
                pool=m.soft_minimum,
            ),
        ),
    ),
    "copg": Method(
        "CoPG",
        "2406.19185 eq. 6",
        "copg on pairs from anywhere",
        "β required",
        step="preference",
    ),
    "rebel": Method(
        "REBEL",
        "2404.16767 Algorithm 1",
        "rebel on pairs of one prompt, the policy before for its reference",
        "η = 1/β 1; its code's loss is η² times the paper's",
        step="preference",
    ),
    "otr": Method(
        "OTR",
        "2509.26313 eq. 5",
        "one_token_rollout_surrogate on supervised tokens",
        "K 256, κ 1.3, other −.1",
        step="supervised",
    ),
    "ps_kd": Method(
        "PS-KD",
        "2006.12000; official code",
        "cross-entropy to (1 − α_t) y + α_t p of the last pass",
        "α_T .8; the policy at the end of the pass",
        step="supervised",
    ),
    "raml": Method(
        "RAML",
        "1609.00150",
        "likelihood of given answers drawn by e^{r/τ} (exponentiated_payoff)",
        "τ required",
        step="supervised",
    ),
    "steer": Method(
        "STEER, Quark",
        "2311.07167 eq. 1",
        "product_of_experts_logits for data · likelihood in reward bins · "
        "KL over the vocabulary − η H",
        "β .05, η .06",
        step="supervised",
    ),
    "b_coder": Method(
        "B-Coder",
        "2310.03173 eqs. 10-14",
        "dueling_values · conservative_targets · squared error",
        "α, γ of the task",
        step=None,
    ),
}

METHODS: dict[str, Method] = (
    table_rewards.ROWS
    | table_ratios.ROWS
    | table_targets.ROWS
    | table_teachers.ROWS
    | ROWS
)
