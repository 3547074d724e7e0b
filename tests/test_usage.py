"""Public functions are used by a run, a report or an example, or say that they wait.

A function counts as used where its name is read by the library outside of its own
definition, by an experiment, a benchmark, a generator of the documentation, the README
or a notebook. ``WAITING`` has those that are not: they have their tests, and no run of
theirs yet. The list may only become shorter: a function that gets a run leaves it, and
a new one needs a run from the start.
"""

import ast
import importlib
import pkgutil
from pathlib import Path

import alignax

ROOT = Path(__file__).parent.parent
OUTSIDE = {"types", "cli", "models", "pipeline", "train"}
WAITING = {
    "advantages": (
        "contrastive_rewards history_length_reward_linear kl_penalised "
        "process_rewards semantic_shannon_entropy"
    ),
    "controllers": (
        "difficulty_strength dual_ascent_kl entropy_target lagrange_multipliers "
        "lagrangian_rewards scheduled"
    ),
    "divergences": (
        "amari_from_cressie_read amari_from_fdpo cauchy_schwarz "
        "cauchy_schwarz_kernel from_trl gaussian_kl information_projection kl_dro "
        "normalise pseudo_reward renyi score_weight sinkd sinkhorn_divergence "
        "swap"
    ),
    "estimators": ("context_weights"),
    "evaluation": ("calibration_error_equal_width"),
    "exact": (
        "best_of_n_kl_bound exp3_rate exponential_weights hedge_rate log_barrier "
        "log_barrier_rate play_bandit regret"
    ),
    "games": (
        "bradley_terry duality_gap equilibrium_residual inpo inpo_loss "
        "intransitive_dice log_barrier_step nash_mp_surrogate "
        "nash_pg_myopic_surrogate perturbed_cycle preference_matrix "
        "proximal_point regularised_preference rock_paper_scissors sppo_loss"
    ),
    "preference": (
        "best_of_n_estimate beta_smoothed charged_margin copg_group "
        "differential_entropy divergence_sft learned_weights mix_objectives "
        "optimal_rejected plackett_luce preference_model_loss process_reward_loss "
        "process_score rejection_law rejection_sample reward_relabelled "
        "segment_margin seppo sequence_forward_kl smooth_hinge ties_loss "
        "top_choice"
    ),
    "references": ("snapshots"),
    "selection": (
        "age_weights best_random_weights context_rows exchanged mastered "
        "power_weights r_squared recovered roll_in_masks"
    ),
    "surrogates": (
        "clipped_surrogate conservative_targets continuous_log_ratio "
        "dueling_values geometric_weights masked_policy_logits "
        "masked_ratio_surrogate mismatch mixture_logp one_token_exact_surrogate "
        "one_token_rollout_surrogate pair_policy_surrogate "
        "product_of_experts_logits sequence_keep"
    ),
    "targets": (
        "conditioned constrained_optimum cumulants importance_expectation "
        "kl_to_posterior quasi_rejection_law quasi_rejection_quality "
        "renyi_cross_entropy running_log_normaliser"
    ),
    "testing": ("check_divergence"),
}


def public():
    for module in pkgutil.iter_modules(alignax.__path__):
        if module.name not in OUTSIDE:
            loaded = importlib.import_module(f"alignax.{module.name}")
            for name in loaded.__all__:
                value = getattr(loaded, name)
                if callable(value) and value.__module__.startswith(loaded.__name__):
                    yield module.name, name


def read():
    """Every name that some code reads."""
    names = set()
    folders = ("alignax", "experiments", "benchmarks", "docs")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names.add(node.id)
    return names


def test_public_functions_are_used_or_wait():
    shown = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    text, used = "".join(p.read_text(encoding="utf-8") for p in shown), read()
    unused = {(r, n) for r, n in public() if n not in used and n not in text}
    waiting = {(room, n) for room, names in WAITING.items() for n in names.split()}
    assert unused - waiting == set(), "no run, report or example uses these"
    assert waiting - unused == set(), "these are used now: they wait no longer"
