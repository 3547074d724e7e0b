"""Terms beside the clipped one, references, critics."""

from alignax import divergences, regularisers
from alignax.algorithms import entry
from alignax.algorithms import methods as m
from alignax.algorithms import stages as s
from alignax.algorithms.compose import Sampling
from alignax.regularisers import Regulariser

IN_LOSS = {"level": "myopic", "place": "loss"}

ROWS = {
    "kdrl": entry.row(
        "KDRL",
        "2506.02208 eq. 7",
        "GRPO at token mean + β k2 to a teacher (logp_ref) on wrong answers",
        "β 5e-3 → 1e-3 by linear",
        entry.in_ratios("test_the_divergence_term_needs_the_correction_too"),
        entry.change(
            entry.standard_token_mean,
            regulariser=regularisers.k2_in_loss(),
            beta=5e-3,
            strength=m.kdrl_share,
        ),
        every_answer=entry.change(
            entry.standard_token_mean, regulariser=regularisers.k2_in_loss(), beta=5e-3
        ),
    ),
    "rapo": entry.row(
        "RAPO",
        "2510.03865 eqs. 6-8",
        "GRPO + forward_exploration_surrogate − η H",
        ".01, .001, φ = reward",
        entry.in_terms("test_forward_exploration_is_the_generalised_kl"),
        entry.change(entry.no_kl, share=m.rapo_share, term=m.rapo, beta=0.01),
    ),
    "dph_rl": entry.row(
        "DPH-RL",
        "2509.07430 eqs. 6-9",
        "DAPO; on stored rows of the reference an f-divergence alone",
        "forward KL .05, JS .1; split by mastered prompts",
        "tests/test_algorithms.py::test_stored_rows_are_only_regularised",
        entry.change(
            m.dapo,
            keep=s.mixed_or_stored,
            weight=m.not_stored,
            strength=m.stored,
            regulariser=Regulariser(
                divergence=divergences.forward_kl(), samples="reference", **IN_LOSS
            ),
            beta=0.05,
            sampling=Sampling(last="reference"),
        ),
        JS=entry.change(
            m.dapo,
            keep=s.mixed_or_stored,
            weight=m.not_stored,
            strength=m.stored,
            regulariser=Regulariser(
                divergence=divergences.jensen_shannon(), samples="reference", **IN_LOSS
            ),
            beta=0.1,
            sampling=Sampling(last="reference"),
        ),
        forward_KL_on_own_rows=entry.change(
            entry.standard_token_mean,
            regulariser=regularisers.k3_in_loss(),
            beta=0.05,
        ),
        JS_on_own_rows=entry.change(
            entry.standard_token_mean,
            regulariser=Regulariser(divergence=divergences.jensen_shannon(), **IN_LOSS),
            beta=0.1,
        ),
    ),
    "salsa": entry.row(
        "SALSA",
        "2411.01798 eq. 4",
        "soup of two fine-tuned models as logp_ref · PPO",
        "weight .5",
        "tests/test_references.py::test_soup_of_logits_is_a_geometric_mixture",
        entry.gae_ppo,
    ),
    "safe": entry.row(
        "SAFE",
        "2602.04651",
        "soft_minimum critic · safe controller's beta · PPO",
        "α .3, τ .3",
        "tests/test_controllers.py::test_safe_worked_numbers",
        entry.gae_ppo,
    ),
    "copg": entry.row(
        "CoPG",
        "2406.19185 eq. 6",
        "pair_policy_surrogate on pairs from anywhere",
        "β required",
        entry.in_terms("test_pair_policy_has_its_optimum_for_any_pairs"),
    ),
    "otr": entry.row(
        "OTR",
        "2509.26313 eq. 5",
        "one_token_rollout_surrogate on supervised tokens",
        "K 256, κ 1.3, other −.1",
        entry.in_terms("test_one_token_rollout_is_dynamic_fine_tuning"),
    ),
    "cot2": entry.row(
        "CoT2-MTS",
        "2505.23648 §5",
        "continuous_log_ratio · standardised · clip",
        "clip .1",
        entry.in_ratios("test_continuous_tokens_worked_numbers"),
    ),
    "steer": entry.row(
        "STEER, Quark",
        "2311.07167 eq. 1",
        "product_of_experts_logits for data · likelihood in reward bins · "
        "rao_blackwell KL − η H",
        "β .05, η .06",
        entry.in_terms("test_product_of_experts_is_a_tilted_law"),
    ),
    "b_coder": entry.row(
        "B-Coder",
        "2310.03173 eqs. 10-14",
        "dueling_values · conservative_targets · squared error",
        "α, γ of the task",
        entry.in_terms("test_conservative_operator_contracts_and_inverts"),
    ),
}
