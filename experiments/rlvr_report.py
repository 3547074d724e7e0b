"""The table of ``experiments.rlvr`` and what the papers report beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

KS = (1, 4, 16)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """One number a seed: means over the held-out sums."""
    p = np.asarray(report["p"], np.float64)
    means = {f"pass@{k}": 1 - (1 - p) ** k for k in KS}
    means |= {name: report[name] for name in ("kl", "entropy", "length")}
    return {name: np.mean(x, axis=-1).tolist() for name, x in means.items()}


def entropy_fit(curves: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """a, b and R² of ``R = −a e^H + b`` over all steps, by least squares."""
    x, y = np.exp(np.ravel(curves["entropy"])), np.ravel(curves["reward"])
    slope, b = np.polyfit(x, y, 1)
    error = np.var(y - slope * x - b)
    return -slope, b, 1 - error / max(np.var(y), 1e-12)


def markdown(
    task: str,
    results: dict[str, Any],
    absent: dict[str, Any],
    left_out: Sequence[str] = (),
) -> str:
    """The table and the findings; ``left_out`` could run and did not."""
    config = results["config"]
    rows = {name: row for name, row in results.items() if name != "config"}
    versions = sorted({row["code"] for row in rows.values()})
    names = (*(f"pass@{k}" for k in KS), "kl", "entropy", "length")
    lines = [
        "# Every method on one task\n\n",
        f"{task}\n\n",
        f"{config['seeds']} seeds, {config['steps']} rollouts of "
        f"{config['prompts']} sums × {config['completions']} completions, "
        f"{config['updates']} updates each, one where the method holds its ratio at "
        "1. Means (standard error over seeds); KL and entropy in nats a completion, "
        f"length in tokens, all exact on {config['held_out']} held-out sums. Every "
        "method runs by the one step of `alignax.train.policy_gradient`, with the "
        "settings of its paper as the table of algorithms has them and one learning "
        "rate for all: a place here says how a method's defaults do on this task, not "
        "which is best. "
        f"Code: {', '.join(versions)}. Made by\n\n"
        "    python -m experiments.rlvr --out runs/rlvr --report docs/rlvr.md\n\n",
        f"| method | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n",
    ]
    for name, row in rows.items():
        cells = [
            f"{mean:.3f} ({error:.3f})"
            for mean, error in (estimate(row[column]) for column in names)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    alike: dict[str, list[str]] = {}
    for name, row in rows.items():
        alike.setdefault(repr([row[column] for column in names]), []).append(name)
    equal = [", ".join(group) for group in alike.values() if len(group) > 1]
    if equal:
        lines.append(
            "\nOne run, number by number, as what tells them apart never acts here "
            f"(such as weights where sampler and trainer agree): {'; '.join(equal)}.\n"
        )
    lines.append("\nNot run here:")
    for need, keys in absent.items():
        verb = "needs" if len(keys) == 1 else "need"
        lines.append(f" {', '.join(keys)} {verb} {need};")
    lines[-1] = lines[-1].rstrip(";") + ".\n"
    if left_out:
        lines.append(f"\nNot run for this page: {', '.join(left_out)}.\n")
    lines.append(findings(rows))
    return "".join(lines)


def estimate(values: Any) -> tuple[float, float]:
    """Mean and standard error."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def difference(rows: dict[str, Any], one: str, other: str, column: str) -> str:
    """``one`` less ``other``, seed by seed, and whether the seeds tell them apart."""
    first, second = (np.asarray(rows[name][column]) for name in (one, other))
    mean, error = estimate(first - second)
    verdict = "" if abs(mean) > 3 * error else ", not told apart by these seeds"
    return f"{one} less {other}: {mean:+.3f} ({error:.3f}){verdict}"


# What papers report of a method beside another, by what it is measured in.
CLAIMS = {
    "pass@16 is kept by forward KL and JS (arXiv 2509.07430)": (
        "pass@16",
        [
            ("dph_rl", "dapo"),
            ("dph_rl (JS)", "dapo"),
            ("dph_rl (forward KL on own rows)", "grpo (TRL default)"),
            ("dph_rl (JS on own rows)", "grpo (TRL default)"),
        ],
    ),
    "Answers shrink with the history reward (arXiv 2505.11225)": (
        "length",
        [("hapo_history", "grpo (TRL default)")],
    ),
    "Clip-higher keeps entropy (arXiv 2503.14476)": (
        "entropy",
        [("dapo", "grpo (TRL default)")],
    ),
    "A critic, against a group's mean": ("pass@1", [("ppo", "grpo")]),
}


def findings(rows: dict[str, Any]) -> str:
    """What the papers report, and what is seen here."""
    text = [
        "\n## What the papers report, here\n\nDifferences are of the same seeds' runs; "
        "below three standard errors nothing is concluded.\n"
    ]
    fitted = [n for n in ("grpo (TRL default)", "dapo", "kl_cov") if n in rows]
    if fitted:
        text.append(
            "\n**Entropy collapse and `R = −a e^H + b`** (arXiv 2505.22617). Entropy a "
            "token of the training samples, first and last rollout, and the fit over "
            "all rollouts:\n\n"
        )
        for name in fitted:
            a, b, r2 = rows[name]["fit"]
            entropy = rows[name]["curves"]["entropy"]
            text.append(
                f"- {name}: {entropy[0]:.3f} → {entropy[-1]:.3f}; a = {a:.3f}, "
                f"b = {b:.3f}, R² = {r2:.3f}\n"
            )
    for claim, (column, pairs) in CLAIMS.items():
        found = [
            f"- {difference(rows, one, other, column)}\n"
            for one, other in pairs
            if one in rows and other in rows
        ]
        if found:
            text.append(f"\n**{claim}**, {column}:\n\n{''.join(found)}")
    skipped = [
        n for n, row in rows.items() if max(row.get("curves", {}).get("skipped", [0]))
    ]
    if skipped:
        text.append(
            f"\nUpdates that were not finite were skipped in {', '.join(skipped)}.\n"
        )
    return "".join(text)
