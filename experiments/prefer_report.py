"""The page of ``experiments.prefer``: a table with intervals, and its picture."""

from pathlib import Path
from typing import Any

import numpy as np

from alignax.pipeline import metrics, plots
from alignax.train import evaluation
from experiments import real_model

COLUMNS = ("accuracy", "gain", "win rate", "KL", "held-out pairs")


def by_seed(runs: dict[str, Any], name: str, field: str) -> list[np.ndarray]:
    """A field of all runs of one loss, in the order of seeds."""
    found = {}
    for key, run in runs.items():
        loss, _, seed = key.rpartition("/")
        if loss == name and field in run:
            found[int(seed)] = np.asarray(run[field], np.float64)
    return [found[seed] for seed in sorted(found)]


def names_of(runs: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.rpartition("/")[0] for key in runs))


def summary(runs: dict[str, Any], name: str) -> dict[str, tuple[float, float]]:
    """Each column's mean and half-width: the runs of one held-out sum in a cluster,
    those of pairs over pairs."""
    right = by_seed(runs, name, "right")
    before = by_seed(runs, "before", "right")[: len(right)]
    means = np.stack([x.mean(axis=1) for x in right])
    wins = [evaluation.win_rate(a, b) for a, b in zip(right, before, strict=True)]
    pairs = np.concatenate(by_seed(runs, name, "pair_accuracy"))
    return {
        "accuracy": real_model.estimate(means),
        "gain": real_model.estimate(means - np.stack([x.mean(axis=1) for x in before])),
        "win rate": real_model.estimate(np.stack(wins)),
        "KL": real_model.estimate(np.stack(by_seed(runs, name, "kl"))),
        "held-out pairs": metrics.mean_and_interval(pairs),
    }


def markdown(results: dict[str, Any], picture: str) -> str:
    """The page."""
    config, runs = results["settings"], results["runs"]
    rows = {name: summary(runs, name) for name in names_of(runs)}
    seeds = len(by_seed(runs, "before", "right"))
    policy = config["policy"]
    pairs = ", ".join(f"{int(x)}" for x in by_seed(runs, "dpo", "pairs")) or "the"
    lines = [
        "# Preference losses on a real model's own answers\n\n",
        "SmolLM2-135M-Instruct completes sums and differences of two "
        f"one-digit numbers behind one that is solved. {config['samples']} completions "
        f"of at most {config['max_tokens']} tokens for each of {config['problems']} "
        f"sums give {pairs} pairs of a right and a wrong one (a number a seed), at "
        f"most {config['pairs_per_problem']} of a sum. Each loss trains adapters of "
        f"rank {config['rank']} for {policy['steps']} steps of {policy['batch_size']} "
        f"pairs, learning rate {policy['learning_rate']:g}, β {config['beta']:g} (IPO "
        "half of it, SimPO twenty times as much: their margins have another scale). "
        "`online_dpo` draws pairs from the policy as it is, `reward_model` is DPO on "
        "the best and the worst of each sum's completions by a reward model of the "
        "same pairs. The tokens that are trained are those that were sampled.\n\n",
        f"{seeds} seeds; {config['held_out']} held-out sums, {config['measured']} "
        "samples each. ± is half of a 95 % interval, the runs of one sum in a cluster. "
        "Gain and win rate are against the model before, KL the reverse KL to it in "
        "nats a completion; held-out pairs is how often the right side gained on the "
        f"wrong one. {real_model.provenance(runs)} Made by\n\n",
        "    python -m experiments.prefer --report docs/prefer.md\n\n",
        f"![Held-out accuracy against the KL to the model before]({picture})\n\n",
        f"| loss | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n",
    ]
    for name, row in rows.items():
        cells = [real_model.told(*row[column], digits=3) for column in COLUMNS]
        if name == "before":
            cells[1:] = [""] * (len(cells) - 1)
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    lines.append("\n")
    learned = by_seed(runs, "reward_model", "reward_accuracy")
    if learned:
        told = metrics.mean_and_interval(np.concatenate(learned))
        lines.append(
            f"The reward model tells {real_model.told(*told)} of the held-out pairs. "
        )
    empty = by_seed(runs, "online_dpo", "steps_without_pairs")
    if empty:
        lines.append(
            f"`online_dpo` found no pair in {int(np.sum(empty))} of its "
            f"{len(empty) * policy['steps']} steps and left the policy alone there. "
        )
    trained = {name: row for name, row in rows.items() if name != "before"}
    up = [n for n, row in trained.items() if row["gain"][0] > row["gain"][1]]
    down = [n for n, row in trained.items() if -row["gain"][0] > row["gain"][1]]
    flat = [n for n in trained if n not in up + down]
    for text, which in (
        ("More accurate than the model before, beyond the interval", up),
        ("Less accurate, beyond the interval", down),
        ("Not told apart from it", flat),
    ):
        if which:
            lines.append(f"{text}: {', '.join(which)}. ")
    lines.append(
        "The losses move unequally far at one β and one learning rate: compare them at "
        "equal KL, by the picture.\n"
    )
    return "".join(lines)


def write(path: Path, results: dict[str, Any]) -> None:
    """The page, and beside it the picture of accuracy against KL."""
    points = []
    for name in names_of(results["runs"]):
        row = summary(results["runs"], name)
        ends = {k: np.array([x]) for k, x in zip("rh", row["accuracy"], strict=True)}
        kls = {k: np.array([x]) for k, x in zip("rh", row["KL"], strict=True)}
        points.append(plots.Trajectory(name, kls["r"], kls["h"], ends["r"], ends["h"]))
    picture = path.with_suffix(".png")
    plots.frontier(
        picture,
        points,
        title="Preference losses on SmolLM2-135M-Instruct",
        legend_title="loss",
        ylabel="held-out accuracy",
    )
    path.write_text(markdown(results, picture.name), encoding="utf-8")
