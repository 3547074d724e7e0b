"""The table of ``experiments.rlvr`` and what the papers report beside it."""

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


def markdown(task: str, results: dict[str, Any], absent: dict[str, Any]) -> str:
    """The table and the findings."""
    config = results["config"]
    names = (*(f"pass@{k}" for k in KS), "kl", "entropy", "length")
    lines = [
        "# Every method on one task\n\n",
        f"{task}\n\n",
        f"{config['seeds']} seeds, {config['steps']} rollouts of "
        f"{config['prompts']} sums × {config['completions']} completions, "
        f"{config['updates']} updates each. Means (standard error over "
        "seeds); KL and entropy in nats a completion, length in "
        "tokens, all exact on "
        f"{config['held_out']} held-out sums. Made by\n\n"
        "    python -m experiments.rlvr --out runs/rlvr --report docs/rlvr.md\n\n",
        f"| method | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n",
    ]
    rows = {name: row for name, row in results.items() if name != "config"}
    for name, row in rows.items():
        cells = []
        for column in names:
            values = np.array(row[column])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
            cells.append(f"{values.mean():.3f} ({error:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    lines.append("\nNot run here:")
    for need, keys in absent.items():
        lines.append(f" {', '.join(keys)} need {need};")
    lines[-1] = lines[-1].rstrip(";") + ".\n"
    lines.append(findings(rows))
    return "".join(lines)


def findings(rows: dict[str, Any]) -> str:
    """What the papers report, and what is seen here."""

    def mean(name, column):
        return float(np.mean(rows[name][column])) if name in rows else float("nan")

    def line(names, column):
        return ", ".join(f"{n} {mean(n, column):.3f}" for n in names if n in rows)

    text = ["\n## What the papers report, here\n\n"]
    fitted = [n for n in ("grpo (TRL default)", "dapo", "kl_cov") if n in rows]
    if fitted:
        text.append(
            "**Entropy collapse and `R = −a e^H + b`** (arXiv 2505.22617). Entropy a "
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
    kept = (
        "reference",
        "grpo (TRL default)",
        "dapo",
        "dph_rl",
        "dph_rl (JS)",
        "dph_rl (forward KL on own rows)",
        "dph_rl (JS on own rows)",
        "rapo",
        "kdrl (every answer)",
    )
    text.append(
        f"\n**pass@16 kept by forward KL and JS** (arXiv 2509.07430): "
        f"{line(kept, 'pass@16')}; their pass@1: {line(kept, 'pass@1')}.\n"
    )
    short = ("reference", "grpo (TRL default)", "hapo_history")
    text.append(
        "\n**Length shrinking with the history reward** (arXiv 2505.11225), tokens "
        f"with the end: {line(short, 'length')}.\n"
    )
    return "".join(text)
