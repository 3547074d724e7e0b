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
OUTSIDE = {"types", "cli", "models", "pipeline", "plan", "train"}
WAITING = [
    # Teachers, targets and decoding: their train steps are to come.
    ("divergences", "sinkd"),
    (
        "preference",
        "plackett_luce rejection_sample reward_relabelled seppo",
    ),
    ("references", "snapshots"),
    (
        "targets",
        "conditioned kl_to_posterior renyi_cross_entropy",
    ),
    # Games of language models: losses for a `train.game.Method` of one's own.
    (
        "games",
        "divergence_step nash_pg_myopic_surrogate regularised_preference",
    ),
    # Rollouts and off-policy steps that are to come.
    ("selection", "recent_sample_recovery"),
    ("surrogates", "continuous_log_ratio"),
    # What no task here gives: representations, costs, ties, reactions, a critic of Q.
    ("advantages", "contrastive_rewards"),
    ("controllers", "lagrange_multipliers lagrangian_rewards"),
    ("preference", "best_of_n_estimate soft_labelled ties_loss"),
    ("surrogates", "conservative_targets dueling_values"),
]


def public():
    for module in pkgutil.iter_modules(alignax.__path__):
        if module.name not in OUTSIDE and not module.name.startswith("_"):
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
    waiting = {(room, n) for room, names in WAITING for n in names.split()}
    assert unused - waiting == set(), "no run, report or example uses these"
    assert waiting - unused == set(), "these are used now: they wait no longer"
