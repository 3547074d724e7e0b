"""What is said of measured completions: means, intervals, calibration, as a table."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignax import diagnostics, evaluation
from alignax.pipeline import metrics
from alignax.train.evaluation import win_rate


class Measured(NamedTuple):
    """Of K completions for each of G prompts."""

    tokens: np.ndarray
    """``[G, K, T]``."""
    mask: np.ndarray
    """``[G, K, T]``."""
    finished: np.ndarray
    """``[G, K]``."""
    entropy: np.ndarray
    """``[G, K]``, nats a token."""
    confidence: np.ndarray
    """``[G, K]``, the mean probability of a token, under what was sampled."""
    embeddings: np.ndarray
    """``[G, K, D]``, the mean last hidden state."""
    texts: list[list[str]] | None = None
    """Of the G prompts' completions, where something reads them."""
    rewards: np.ndarray | None = None
    """``[G, K]``, NaN where a reward failed."""
    kl_sampled: np.ndarray | None = None
    """``[G, K]``, the log-ratio of each completion, nats."""
    kl_vocabulary: np.ndarray | None = None
    """``[G, K]``, the tokens' KL at its prefixes, summed, nats."""


Table = dict[str, tuple[float | None, float | None]]
"""Means and half-widths by name; None where there is none."""


def right_of(measured: Measured, *, right: float) -> np.ndarray:
    """The completions that count as right; one whose reward failed does not.

    Args:
      measured: with rewards.
      right: the reward from which on a completion counts as right.

    Returns:
      ``[G, K]`` booleans.
    """
    rewards = np.asarray(measured.rewards, np.float64)
    return np.nan_to_num(rewards, nan=-np.inf) >= right - 1e-6


def values_of(
    measured: Measured, others: Measured | None, *, right: float
) -> dict[str, np.ndarray]:
    """What is averaged.

    Args:
      measured: of the model.
      others: of the one that it is compared with.
      right: the reward from which on a completion counts as right.

    Returns:
      ``[G]`` or ``[G, K]`` by name, NaN where there is nothing to say.
    """
    lengths = measured.mask.sum(-1)
    values: dict[str, np.ndarray] = {}
    if measured.rewards is not None:
        hits = right_of(measured, right=right)
        values |= {"reward": measured.rewards, "accuracy": hits}
        count, n = jnp.asarray(hits.sum(-1)), hits.shape[-1]
        for k in sorted({2**i for i in range(1, n.bit_length())} | {n}):
            if 1 < k <= n:
                values[f"pass@{k}"] = np.asarray(evaluation.pass_at_k(count, n, k=k))
    if others is not None and others.rewards is not None:
        ours = values.get("reward", np.full_like(others.rewards, np.nan))
        values["reward_against"] = others.rewards
        values["win_rate"] = win_rate(ours, others.rewards)
    for name in ("kl_sampled", "kl_vocabulary", "entropy", "finished"):
        found = getattr(measured, name)
        values |= {} if found is None else {name: found}
    values["length"] = lengths
    for n in (1, 2, 3):
        values[f"distinct_{n}"] = diagnostics.distinct(
            measured.tokens, measured.mask, n=n
        )
    if measured.tokens.shape[1] > 1:
        states = jnp.asarray(measured.embeddings)
        values["embedding_diversity"] = np.asarray(
            diagnostics.embedding_diversity(states)
        )
    if measured.texts is not None:
        values["self_bleu"] = diagnostics.self_bleu(measured.texts)
    if measured.rewards is not None:
        judged = _judged(measured, right=right)
        scores = diagnostics.brier_score(*(x[..., None] for x in judged))
        known = np.asarray(judged[2])
        values["confidence"] = np.where(known, measured.confidence, np.nan)
        values["brier_score"] = np.where(known, np.asarray(scores), np.nan)
    return values


def _judged(measured: Measured, *, right: float) -> tuple[Array, Array, Array]:
    """Confidence, right, and whether both are known, ``[G, K]`` each."""
    hits = right_of(measured, right=right)
    judged = np.isfinite(np.asarray(measured.rewards, np.float64))
    known = judged & measured.mask.any(-1)
    return jnp.asarray(measured.confidence), jnp.asarray(hits), jnp.asarray(known)


def calibration(measured: Measured, *, right: float, bins: int = 10) -> Table:
    """The calibration errors of a completion's mean token probability.

    Args:
      measured: of the model.
      right: the reward from which on a completion counts as right.
      bins: of equal mass, and of equal width.

    Returns:
      by name, over all completions that were judged; empty without rewards. There is no
      interval: an error over bins is no mean.
    """
    if measured.rewards is None:
        return {}
    judged = tuple(x.reshape(-1) for x in _judged(measured, right=right))
    some = bool(judged[2].any())
    errors = {
        "ece_equal_mass": diagnostics.calibration_error_equal_mass,
        "ece_equal_width": diagnostics.calibration_error_equal_width,
    }
    return {
        name: (float(error(*judged, bins=bins)) if some else None, None)
        for name, error in errors.items()
    }


def summary(values: dict[str, np.ndarray]) -> Table:
    """Means with the half-widths of their intervals over prompts.

    Args:
      values: of ``values_of``.

    Returns:
      by name.
    """
    return {name: _mean(np.asarray(x, np.float64)) for name, x in values.items()}


def _mean(values: np.ndarray) -> tuple[float | None, float | None]:
    """Over what is a number; completions of one prompt are dependent."""
    prompts = np.broadcast_to(
        np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), values.shape
    )
    known = np.isfinite(values)
    if not known.any():
        return None, None
    mean, half = metrics.mean_and_interval(values[known], clusters=prompts[known])
    return mean, half if np.isfinite(half) else None


UNITS = {
    "kl_sampled": "nats a completion, sampled (k1)",
    "kl_vocabulary": "nats a completion, exact over the next token",
    "entropy": "nats a token",
    "length": "tokens",
    "reward_against": "of the other",
    "win_rate": "against the other, a tie counts half",
    "finished": "share that was not cut",
    "distinct_1": "different tokens over all, within a prompt",
    "distinct_2": "different pairs",
    "distinct_3": "different triples",
    "embedding_diversity": "1 − cosine of the mean last hidden states",
    "self_critique": "alike entropies of two answers: high says contaminated",
    "self_bleu": "of one against the others: high is alike",
    "confidence": "mean probability of a token",
    "brier_score": "(confidence − right)², lower is better",
    "ece_equal_mass": "of confidence, 10 bins of as many completions",
    "ece_equal_width": "10 bins of equal width",
    "rewards_failed": "completions",
}


def shown(table: Table) -> str:
    """The table as it is printed.

    Args:
      table: of ``summary``.

    Returns:
      a line for each row.
    """
    lines = []
    for name, (mean, half) in table.items():
        number = "-" if mean is None else f"{mean:.4g}"
        about = "" if half is None else f"± {half:.2g}"
        lines.append(f"{name:19} {number:>9} {about:10} {UNITS.get(name, '')}".rstrip())
    return "\n".join(lines)
