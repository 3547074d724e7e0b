"""Answers drawn by what they are worth, for likelihood to learn from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignax import targets
from alignax.train.runs.teaching import with_text
from alignax.types import InputError


def rewards_of(records: Sequence[Mapping[str, Any]], field: str) -> np.ndarray:
    """The answers' rewards.

    Args:
      records: with the field.
      field: its name.

    Returns:
      ``[N]`` float64.

    Raises:
      InputError: a record has no finite number there.
    """
    rewards = np.zeros(len(records))
    for number, record in enumerate(records):
        value = record.get(field)
        if not (isinstance(value, (int, float)) and np.isfinite(value)):
            raise InputError(
                f"payoff_field: record {number} has no finite number in the field "
                f"{field!r}, got {value!r}; its fields are {', '.join(record)}"
            )
        rewards[number] = value
    return rewards


def edges_of(rewards: np.ndarray, bins: int) -> np.ndarray:
    """Where bins of about equally many rewards begin, but for the first.

    Args:
      rewards: ``[N]``.
      bins: how many; each value is one of its own where there are no more values.

    Returns:
      increasing numbers, one fewer than there are bins.

    Raises:
      InputError: all rewards are one.

    Example:
      >>> print(edges_of(np.arange(6.0), 3), edges_of(np.array([0, 1, 1]), 5))
      [2. 4.] [1.]
    """
    values = np.unique(rewards)
    if len(values) < 2:
        raise InputError(
            f"payoff_bins has nothing to tell apart: all {len(rewards)} answers have "
            f"the reward {values[0]:g}"
        )
    ordered, edges = np.sort(np.asarray(rewards, np.float64)), []
    for k in range(1, bins):
        # Where many rewards are alike, the next bin begins with the next value.
        larger = values[values > (edges[-1] if edges else values[0])]
        if not len(larger):
            break
        edges.append(max(ordered[len(ordered) * k // bins], larger[0]))
    return np.array(edges)


def told(
    records: Sequence[Mapping[str, Any]], edges: np.ndarray, field: str
) -> list[dict[str, Any]]:
    """Records whose prompts begin with the bin of their answer's reward.

    Args:
      records: of a prompt, a completion and the field's number.
      edges: of ``edges_of``.
      field: of the rewards.

    Returns:
      the records, ``quality: K/N`` and an empty line before each prompt.

    Raises:
      InputError: a record has no reward.
    """
    bins = 1 + np.searchsorted(edges, rewards_of(records, field), side="right")
    return [
        with_text(record, f"quality: {place}/{len(edges) + 1}")
        for record, place in zip(records, bins, strict=True)
    ]


def repeats(law: np.ndarray, count: int, uniform: float) -> np.ndarray:
    """How often each of K outcomes is drawn in ``count`` draws of one random number.

    Systematic draws: each outcome's number has the mean ``count · law`` and is that
    number rounded up or down.

    Args:
      law: ``[K]``, probabilities.
      count: of the draws.
      uniform: in [0, 1).

    Returns:
      ``[K]`` integers that add up to ``count``.

    Reference:
      Kitagawa, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space
      models", 1996.

    Example:
      >>> print(repeats(np.array([0.7, 0.3]), 2, 0.5))
      [1 1]
    """
    edges = np.cumsum(np.asarray(law, np.float64))
    edges = np.ceil(count * edges / edges[-1] - uniform)
    edges[-1] = count
    return np.diff(np.maximum(edges, 0), prepend=0).astype(int)


def resampled(
    records: Sequence[Mapping[str, Any]],
    *,
    temperature: float,
    field: str = "reward",
    seed: int = 0,
) -> list[Mapping[str, Any]]:
    """As many records as there were, the answers of each prompt drawn by their rewards.

    Args:
      records: of a prompt, a completion and the field's number.
      temperature: τ of ``targets.exponentiated_payoff``.
      field: of the rewards.
      seed: of the draws.

    Returns:
      records of ``records``, some several times, some not at all.

    Raises:
      InputError: a record has no reward, or no prompt has answers of two rewards, so
        that there is nothing to draw by.
    """
    groups: dict[str, list[int]] = {}
    rewards = rewards_of(records, field)
    for number, record in enumerate(records):
        groups.setdefault(json.dumps(record["prompt"]), []).append(number)
    if all(np.ptp(rewards[rows]) == 0 for rows in groups.values()):
        raise InputError(
            f"payoff_temperature has nothing to act on: no prompt has answers of "
            f"different {field}, of {len(groups)} prompts and {len(records)} answers"
        )
    most = max(map(len, groups.values()))
    padded, there = np.zeros((2, len(groups), most))
    for row, members in enumerate(groups.values()):
        padded[row, : len(members)], there[row, : len(members)] = rewards[members], 1
    # The largest of each prompt is taken away first: rewards may be any numbers.
    top = np.max(np.where(there > 0, padded, -np.inf), axis=-1, keepdims=True)
    laws = targets.exponentiated_payoff(
        jnp.asarray(padded - top, jnp.float32),
        jnp.asarray(there > 0),
        temperature=temperature,
    )
    draws = np.random.default_rng(seed).random(len(groups))
    drawn = []
    for law, uniform, members in zip(
        np.asarray(laws), draws, groups.values(), strict=True
    ):
        count = len(members)
        for place, times in enumerate(repeats(law[:count], count, uniform)):
            drawn += [records[members[place]]] * int(times)
    return drawn
