"""The report of ``experiments.preference``: what each loss made of the reference."""

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import preference as pf
from alignax.models import heads
from alignax.pipeline import data, metrics
from alignax.train import pairs as pair_rows
from alignax.train import reward_model, supervised


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every loss is trained with and measured by."""

    config: Any
    apply_fn: Any
    score: supervised.ScoreFn
    hidden_fn: Any
    reward_fn: heads.RewardFn
    tokenizer: data.Tokenizer
    test_pairs: data.PairRows
    problems: np.ndarray
    prompts: Any
    evaluator: Any


def to_pair(logp, logp_ref, batch: data.PairRows) -> pf.Pair:
    return pf.pair_from_tokens(
        logp[0],
        logp[1],
        logp_ref[0],
        logp_ref[1],
        batch.chosen.loss_mask[:, 1:],
        batch.rejected.loss_mask[:, 1:],
    )


def sampled(bench: Bench, params, reference, judge):
    """The judge's scores, KLs and lengths of a policy's own completions."""
    key = jax.random.key(bench.config.seed + 1)
    rollout, kl = bench.evaluator(params, reference, key, bench.prompts)
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.trained], axis=1)
    values = bench.reward_fn(judge, tokens, mask=mask)
    scores = heads.last_values(values, mask)[:, 0]
    lengths = jnp.sum(rollout.trained, axis=1)
    return {"score": scores, "kl": kl, "length": lengths}


def measure(bench: Bench, params, reference, judge, before) -> dict[str, Any]:
    """One row of the report."""
    pair = to_pair(
        pair_rows.pair_logp(bench.score, params, bench.test_pairs),
        pair_rows.pair_logp(bench.score, reference, bench.test_pairs),
        bench.test_pairs,
    )
    margins = np.asarray(pf.log_ratio_margin(pair))
    after = sampled(bench, params, reference, judge)
    wins = np.sign(np.asarray(after["score"] - before["score"])) / 2 + 0.5
    prompts = np.repeat(np.arange(len(wins) // 2), 2)
    by_problem = partial(metrics.mean_and_interval, clusters=bench.problems)
    return {
        "accuracy": by_problem(np.sign(margins) / 2 + 0.5),
        "margin": by_problem(margins),
        "logp chosen": by_problem(pair.logp_w - pair.ref_w),
        "KL": metrics.mean_and_interval(after["kl"], clusters=prompts),
        "length": metrics.mean_and_interval(after["length"], clusters=prompts),
        "win rate": metrics.mean_and_interval(wins, clusters=prompts),
    }


def write_report(
    config, bench, reference, reward, judge, policies, train, judged, test
):
    """``report.json`` and ``report.md``."""
    everyone = jnp.ones(len(test), bool)
    margins = {}
    for name, params in {"reward model": reward, "judge": judge}.items():
        w, l = reward_model.pair_rewards(bench.reward_fn, params, bench.test_pairs)
        margins[name] = w - l
    shorter = bench.test_pairs.chosen.loss_mask.sum(1) < (
        bench.test_pairs.rejected.loss_mask.sum(1)
    )
    lines = [
        f"{len(train)} pairs train the policy and the reward model, {len(judged)} the "
        f"judge, {len(test)} of {len(set(bench.problems))} problems are measured on "
        f"({config.tests} prompts at most).\n",
        "| | accuracy | NLL (nats) | calibration error |",
        "| --- | --- | --- | --- |",
    ]
    for name, margin in margins.items():
        report = pf.agreement(margin, everyone, bins=5)
        lines.append(
            f"| {name} | {report.accuracy:.3f} | {report.nll:.3f} | "
            f"{report.calibration_error:.3f} |"
        )
    lines.append(f"| “the shorter one” | {np.mean(shorter):.3f} | | |")
    same = pf.pairwise_agreement(margins["reward model"], margins["judge"], everyone)
    lines.append(f"\nReward model and judge agree on {same:.3f} of the pairs.\n")
    before = sampled(bench, reference, reference, judge)
    length, half = metrics.mean_and_interval(before["length"])
    lines.append(f"The reference's completions have {length:.1f} ± {half:.1f} bytes.\n")
    rows = {
        name: measure(bench, params, reference, judge, before)
        for name, params in policies.items()
    }
    columns = list(next(iter(rows.values())))
    lines += [f"| loss | {' | '.join(columns)} |", f"| --- {'| --- ' * len(columns)}|"]
    for name, row in rows.items():
        cells = " | ".join(f"{mean:.2f} ± {half:.2f}" for mean, half in row.values())
        lines.append(f"| {name} | {cells} |")
    (config.out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (config.out / "report.json").write_text(
        json.dumps(rows, indent=1), encoding="utf-8"
    )
    print("\n".join(lines))
