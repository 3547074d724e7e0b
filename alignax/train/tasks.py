"""Tasks: records, a prompt for each, and what a completion is worth.

The host's part of a policy-gradient step. A reward sees whole completions, a tool's
answers and a roll-in included, and says what the method may ask of the task.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from alignax import algorithms
from alignax.pipeline import data, hosts, rewards
from alignax.train import drafts, dynamic
from alignax.train.assembly import Parts
from alignax.types import InputError, Params, Prompts, Rollout, Scored, TrainState

Judge = Callable[[Rollout, np.ndarray], dict[str, Any]]
"""``(rollout, record numbers [N]) -> fields``: ``rewards [N]``, and what else a
task knows of each: ``right``, ``clusters``, ``confidence``, ``reward_version``, and
``failed``, where a reward is not the completion's own."""


def judge_texts(
    records: data.Records,
    reward: rewards.Reward,
    tokenizer: data.Tokenizer,
    *,
    right: rewards.Reward | None = None,
    on_failed: float | None = None,
) -> Judge:
    """A judge from functions of texts.

    Args:
      records: all that prompts are made of.
      reward: ``(completions, records) -> [N]``; a record has its number in the field
        ``index``, where it has none of its own.
      tokenizer: decodes the completions.
      right: ``(completions, records) -> [N]``, 1 for right answers; methods that
        filter or weigh by right answers need it.
      on_failed: what a completion gets whose reward is not a finite number, said and
        counted; where not given, its batch updates nothing.

    Returns:
      the judge.
    """

    def judge(rollout, numbers):
        texts = data.decode_rows(rollout.tokens, rollout.attended, tokenizer)
        asked = [{"index": int(n), **records[int(n)]} for n in numbers]
        fields: dict[str, Any] = {"rewards": reward(texts, asked)}
        if on_failed is not None:
            values = rewards.checked(fields["rewards"], numbers)
            failed = ~np.isfinite(values)
            values = np.where(failed, np.float32(on_failed), values)
            fields = {"rewards": values, "failed": failed}
        if right is not None:
            fields["right"] = np.asarray(right(texts, asked)) > 0
        return fields

    return judge


def guided(
    prompts: Prompts, texts: Sequence[Sequence[int]], *, length: int, pad_id: int = 0
) -> Prompts:
    """Prompts with a guide each: a demonstration, or a text to go on from or behind.

    Args:
      prompts: ``[N, P]``.
      texts: N rows of tokens; a demonstration ends with the end of sequence.
      length: of the guides; longer ones are cut.
      pad_id: fills what follows.

    Returns:
      the prompts, for methods whose ``sampling`` asks for a guide.

    Raises:
      InputError: there is not one text for each prompt.
    """
    if len(texts) != len(prompts.index):
        raise InputError(
            f"texts must be one for each of the {len(prompts.index)} prompts, got "
            f"{len(texts)}"
        )
    tokens = np.full((len(texts), length), pad_id, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        kept = list(text)[:length]
        tokens[row, : len(kept)], mask[row, : len(kept)] = kept, True
    return dataclasses.replace(prompts, guide=tokens, guide_mask=mask)


def side_by_side(
    parts: Parts,
    params: Params,
    key: Key[Array, ""],
    prompts: Prompts,
    judge: Judge,
    *,
    samples: int,
    best: int = 1,
) -> tuple[Rollout, Rollout, dict[str, np.ndarray]]:
    """The greedy completion of each prompt beside the best of several samples.

    Args:
      parts: of ``assembly.make``.
      params: the policy's.
      key: consumed.
      prompts: N.
      judge: the task's.
      samples: of each prompt.
      best: how many of them are kept, from 1 to ``samples``.

    Returns:
      the greedy rollout of N rows; the best one of ``N * best``, each prompt's from the
      best on; and float32 rewards: ``greedy [N]``, ``best [N, best]`` and ``mean [N]``
      of all samples.

    Raises:
      InputError: ``best`` is not from 1 to ``samples``.
    """
    if not 1 <= best <= samples:
        raise InputError(f"best must be from 1 to {samples}, got {best}")
    index = np.asarray(prompts.index)
    greedy = parts.generate(params, key, prompts, completions=1, temperature=0.0)
    drawn = parts.generate(params, key, prompts, completions=samples)

    def worth(rollout, numbers):
        return rewards.checked(judge(rollout, numbers)["rewards"], numbers)

    values = worth(drawn, np.repeat(index, samples)).reshape(-1, samples)
    order = np.argsort(-values, axis=1, kind="stable")[:, :best]
    rows = (np.arange(len(index))[:, None] * samples + order).reshape(-1)
    found = {
        "greedy": worth(greedy, index),
        "best": np.take_along_axis(values, order, axis=1),
        "mean": values.mean(axis=1),
    }
    return greedy, jax.tree.map(lambda x: x[rows], drawn), found


# Draws of other times than a step's own; no step has these numbers.
_BEFOREHAND, _AHEAD, _ROUNDS = 2**32 - 1, 2**32 - 1, 2**31


def reference_rewards(
    parts: Parts, judge: Judge
) -> Callable[[TrainState, Prompts], np.ndarray]:
    """Rewards of the reference's own completions, each prompt's sampled once.

    A prompt's completions are drawn by the run's key and its record's number, whatever
    the step: a resumed run draws the same.

    Args:
      parts: of ``assembly.make``; K completions of each prompt are sampled.
      judge: the task's.

    Returns:
      ``(state, prompts) -> [N, K]``. They are kept while the reference is one that does
      not move, and drawn at each step otherwise.

    Reference:
      Brantley et al., "Accelerating RL for LLM reasoning with optimal advantage
      regression" (A*-PO), arXiv 2505.20686, stage 1.
    """
    rule, kept = parts.algorithm.reference, {}

    def rewards_of(state, prompts):
        index = np.asarray(prompts.index)
        if rule.name not in ("fixed", "soup"):
            kept.clear()
        if any(number not in kept for number in index):
            key = jax.random.fold_in(state.key, _BEFOREHAND)
            rollout = parts.generate(rule.params(state.reference), key, prompts)
            rollout = hosts.fetch(rollout)
            numbers = np.repeat(index, len(rollout.tokens) // len(index))
            found = rewards.checked(judge(rollout, numbers)["rewards"], numbers)
            for number, row in zip(index, found.reshape(len(index), -1), strict=True):
                kept.setdefault(number, row)
        return np.stack([kept[number] for number in index])

    return rewards_of


def host_step(
    parts: Parts,
    judge: Judge,
    *,
    guide: Callable[[Prompts], Prompts] | None = None,
    further: Callable[[int, int], Prompts] | None = None,
    rounds: int = 0,
    ahead: int = 0,
    tell: Callable[[TrainState, Scored], tuple[Scored, dict[str, Any]]] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """Sample, judge, update: a step for ``loop.train``.

    Args:
      parts: of ``assembly.make``.
      judge: the task's.
      guide: gives prompts their guides, where the method samples with them.
      further: ``(step, round) -> prompts`` of the batch's shape, for dynamic sampling:
        prompts whose rewards are all equal are replaced within the step by further ones
        that have a spread (DAPO, arXiv 2503.14476, §3.2).
      rounds: of further prompts in a step, at the most; where they do not suffice,
        prompts without a spread stay.
      ahead: batches that are sampled before they are due, while the host judges: the
        tokens of a batch are as many steps behind the policy that they train, and no
        more. Then ``ahead.windows`` of the data are asked for in place of prompts.
      tell: ``(state, scored) -> (scored, metrics)``, of teachers that are shown what
        was right (``runs.siblings``).

    Returns:
      ``(state, prompts) -> (state, metrics)``; it waits for the samples, as the host
      judges them. Its metric ``reward_failed`` is the share of completions without a
      reward of their own; with ``further``, ``resampled`` is the number of further
      prompts that were sampled, ``replaced`` of those that took a place; with a draft,
      those of ``drafts.metrics``. A reward that is not finite is named by its record in
      a warning, and the step leaves the parameters as they were. Samples that are
      behind have their own policy's ``logp_old``, to which the method's ratios are;
      where its weights are of ``logp_old`` to the sampler's (TIS and its kin), they are
      scored again.

    Raises:
      InputError: ``rounds`` without ``further``, or ``ahead`` with a method that holds
        its ratio at 1, which would not see that the samples are another policy's.
    """
    algorithm, beforehand = parts.algorithm, None
    if rounds and further is None:
        raise InputError(
            f"further must be given for {rounds} rounds of further prompts"
        )
    if ahead and algorithm.on_policy:
        raise InputError(
            f"ahead must be 0, got {ahead}: the method holds its ratio at 1, so that "
            "samples of an older policy would be biased; take one with a ratio"
        )
    if ahead and rounds and algorithm.sampling.roles > 1:
        raise InputError("rounds must be 0 where two roles are sampled ahead")
    if "reference_rewards" in algorithms.needs(algorithm):
        beforehand = reference_rewards(parts, judge)
    weighs = ahead > 0 and algorithms.reads_behaviour(algorithm)
    held: dict[str, Any] = {}

    def drawn(state, prompts, draw=None):
        if guide is not None and algorithm.sampling.guided:
            prompts = guide(prompts)
        if draw is not None:
            # Other draws than the step's own.
            key = jax.random.fold_in(state.key, draw)
            state = dataclasses.replace(state, key=key)
        return prompts, parts.sample(state, prompts)

    def judged(state, prompts, samples):
        index = np.asarray(hosts.fetch(samples.scored.index))
        memory = state.memory or {}
        for known in jax.tree.leaves(
            [memory.get(x) for x in ("history", "normaliser")]
        ):
            if index.max() >= len(known):
                raise InputError(
                    f"records must be at least {index.max() + 1}, the number of a "
                    f"record that was asked, got {len(known)}"
                )
        numbers = np.repeat(index, samples.scored.rewards.shape[1])
        fields = judge(hosts.fetch(samples.rollout), numbers)
        fields["rewards"] = rewards.checked(fields["rewards"], numbers)
        if beforehand is not None and "reference_rewards" not in fields:
            fields["reference_rewards"] = beforehand(state, prompts)
        failed = fields.pop("failed", ~np.isfinite(fields["rewards"]))
        if samples.greedy is not None:
            best = judge(hosts.fetch(samples.greedy), index)["rewards"]
            fields["greedy"] = rewards.checked(best, index)
        return samples.rewarded(**fields), np.mean(failed, dtype=np.float32)

    def due(state, batch):
        """The samples of this step, those of the next ones under way."""
        if not ahead:
            return drawn(state, batch)
        window = list(batch)
        if state is not held.get("state") or len(held["pending"]) > len(window):
            # The first step, or a state that was put back: nothing is under way for it.
            held["pending"] = []
        pending = held["pending"]
        for place in range(len(pending), len(window)):
            draw = None if place == 0 else _AHEAD - place
            pending.append((place, *drawn(state, window[place], draw)))
        # Not a number of the state's, for which the host would wait.
        behind, prompts, samples = pending.pop(0)
        if weighs and behind:
            scored = parts.score(
                state,
                prompts.index,
                samples.rollout,
                samples.scored.demonstrated,
                rescore=True,
            )
            samples = samples._replace(scored=scored)
        return prompts, samples

    def step(state, batch):
        prompts, samples = due(state, batch)
        scored, failed = judged(state, prompts, samples)
        if samples.memory is not None:
            memory = {**(state.memory or {}), **samples.memory}
            state = dataclasses.replace(state, memory=memory)
        more = {"reward_failed": failed}
        if further is not None:
            groups, left = len(scored.rewards), dynamic.without_spread(scored)
            more |= {"resampled": np.float32(0), "replaced": np.float32(0)}
            for number in range(rounds):
                if left == 0:
                    break
                asked = drawn(state, further(int(state.step), number), _ROUNDS + number)
                other, _ = judged(state, *asked)
                scored, before = dynamic.refilled(scored, other), left
                left = dynamic.without_spread(scored)
                more["resampled"] += np.float32(groups)
                more["replaced"] += np.float32(before - left)
        if tell is not None:
            scored, known = tell(state, scored)
            more |= known
        more |= drafts.metrics(scored.rollout)
        state, metrics = parts.step(state, scored)
        held["state"] = state
        return state, metrics | more

    return step
