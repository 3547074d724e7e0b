"""Several turns: the policy writes, the host's tool answers, the policy goes on.

A completion is all of its turns in one row: what the policy wrote is attended and
trained, what the tool answered is attended and not trained, so that every later token
is drawn, scored and trained behind both.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from alignax.algorithms import Sampling
from alignax.pipeline import data, rewards
from alignax.train import joined
from alignax.train.assembly import Parts
from alignax.train.samples import Samples
from alignax.types import InputError, Prompts, Rollout, TrainState

Environment = Callable[[list[str], list[Any], int], list[str | None]]
"""``(texts, records, turn) -> answers``: to what each policy wrote in its last turn,
counted from 0, the text that it is shown next, empty for none, or None at the end."""


def make_writer(
    parts: Parts,
    environment: Environment,
    records: data.Records,
    tokenizer: data.Tokenizer,
    *,
    turns: int,
    max_tokens: int,
    answer_tokens: int,
) -> Callable[..., Rollout]:
    """``(params, key, prompts, version=0) -> rollout`` of several turns.

    A turn is what ``parts.generate`` writes: up to an end or a text to stop at. Where
    one stops for want of tokens, or an answer does not fit, the completion is cut.

    Args:
      parts: of ``assembly.make``: its tokens are those of one turn.
      environment: the tool, on the host; it is asked of the rows that are to go on.
      records: all that prompts are made of.
      tokenizer: the policy's.
      turns: of the policy, at the most.
      max_tokens: of a completion, with all turns and answers.
      answer_tokens: of an answer, at the most.

    Returns:
      the writer, of ``parts.completions`` a prompt; it waits for each turn. The model
      must have room for the prompt, all of the completion and one more turn.

    Raises:
      InputError: a number is too small.
    """
    for name, value in (("turns", turns), ("answer_tokens", answer_tokens)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")

    completions = parts.completions

    @jax.jit
    def told(rollout, prompts, tokens, mask):
        """The record with the answers, and what the policy sees of it."""
        rollout = joined.appended(rollout, joined.foreign(rollout, tokens, mask))
        shown = rollout.tokens, rollout.attended
        return rollout, joined.behind(prompts, *shown, completions)

    @jax.jit
    def gone_on(rollout, more, going):
        return joined.picked(going, joined.appended(rollout, more), rollout)

    def answered(turn, latest, rollout, going, numbers):
        """Tokens, their mask, which rows go on, and which were cut by an answer."""
        asked = np.flatnonzero(going & np.asarray(rollout.finished))
        room = max_tokens - np.asarray(rollout.attended).sum(axis=1)
        texts = data.decode_rows(
            np.asarray(latest.tokens)[asked],
            np.asarray(latest.attended)[asked],
            tokenizer,
        )
        lengths = np.asarray(latest.attended).sum(axis=1)
        ends = np.maximum(lengths - 1, 0)
        last = np.asarray(latest.tokens)[np.arange(len(ends)), ends]
        answers = environment(texts, [records[int(n)] for n in numbers[asked]], turn)
        if len(answers) != len(asked):
            raise InputError(
                f"environment must give one answer, or None, for each of the "
                f"{len(asked)} texts, got {len(answers)}"
            )
        tokens = np.zeros((len(going), answer_tokens), np.int32)
        mask, going, cut = (
            np.zeros(x, bool) for x in (tokens.shape, *[len(going)] * 2)
        )
        for row, answer in zip(asked, answers, strict=True):
            if answer is None:
                continue
            ids = tokenizer.encode(answer) if answer else []
            if ids and ids[0] in tokenizer.end_ids and ids[0] == last[row]:
                # The turn has its end already.
                ids = ids[1:]
            going[row] = len(ids) <= answer_tokens and len(ids) < room[row]
            cut[row] = not going[row]
            if going[row]:
                tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        return tokens, mask, going, cut

    def write(params, key, prompts, version=0):
        write_turn = partial(parts.generate, params, version=version)
        latest = write_turn(key, prompts, completions=completions)
        rollout = joined.widened(latest, max_tokens)
        numbers = np.repeat(np.asarray(prompts.index), completions)
        going = np.ones(len(numbers), bool)
        for turn in range(turns - 1):
            *answer, going, cut = answered(turn, latest, rollout, going, numbers)
            rollout = dataclasses.replace(rollout, finished=rollout.finished & ~cut)
            if not going.any():
                break
            rollout, longer = told(rollout, prompts, *answer)
            turn_key = jax.random.fold_in(key, _TURNS + turn)
            latest = write_turn(turn_key, longer, completions=1, prefix=())
            rollout = gone_on(rollout, latest, going)
        return rollout

    return write


def make_sampler(
    parts: Parts, write: Callable[..., Rollout]
) -> Callable[[TrainState, Prompts], Samples]:
    """``(state, prompts) -> samples``, for ``Parts.sample``.

    Args:
      parts: of ``assembly.make``.
      write: of ``make_writer``.

    Returns:
      the sampler.

    Raises:
      InputError: the method samples by a rule of its own.

    Example:
      >>> def with_tool(parts, environment, records, tokenizer):
      ...     sizes = {"turns": 3, "max_tokens": 256, "answer_tokens": 16}
      ...     write = make_writer(parts, environment, records, tokenizer, **sizes)
      ...     sample = make_sampler(parts, write)
      ...     return parts._replace(sample=sample)  # for tasks.host_step
    """
    if parts.algorithm.sampling != Sampling() or parts.algorithm.replay is not None:
        raise InputError(
            "algorithm samples or replays by a rule of its own, which several turns do "
            "not follow: take one that samples its own completions alone"
        )

    def sample(state, prompts):
        key = jax.random.fold_in(state.key, state.step)
        rollout = write(state.params, key, prompts, state.step)
        return Samples(parts.score(state, prompts.index, rollout), None)

    return sample


# Beyond what the sampler folds into a step's key.
_TURNS = 16
_OPEN_MARK = re.compile(r"<<[^<>=]*=\Z")


def calculator(texts: list[str], records: list[Any], turn: int) -> list[str | None]:
    """A calculator for turns that stop at ``=``: ``<<48/2=`` is answered ``24>>``.

    Whatever else the policy stopped at goes on with an empty answer where it is an
    equals sign, and is at its end where not.

    Args:
      texts: of the turns.
      records: not used.
      turn: not used.

    Returns:
      the answers, as an ``Environment``'s; what is no sum gets ``>>``.

    Example:
      >>> calculator(["It is <<48/2=", "x =", "It is 24"], [{}, {}, {}], 0)
      ['24>>', '', None]
    """
    del records, turn

    def answer(text):
        mark = _OPEN_MARK.search(text)
        if mark is not None:
            return rewards.execute_marks(mark[0] + ">>")[len(mark[0]) :]
        return "" if text.endswith("=") else None

    return [answer(text) for text in texts]


def hints(
    reward: rewards.Reward, hint: Callable[[str, Any], str], *, right: float = 1.0
) -> Environment:
    """An environment that answers a wrong try with a hint, and ends at a right one.

    Args:
      reward: ``(completions, records) -> [N]``, of a try.
      hint: ``(try, record) -> text``, with all that stands between two turns, such as
        the end of a turn and the beginning of the next one in a chat template.
      right: from this reward on nothing is left to improve.

    Returns:
      the environment.
    """

    def environment(texts, records, turn):
        del turn
        values = np.asarray(reward(texts, records))
        return [
            None if value >= right else hint(text, record)
            for text, record, value in zip(texts, records, values, strict=True)
        ]

    return environment


def told(tokenizer: data.Tokenizer, text: str) -> str:
    """A user's text between two turns of the assistant's.

    Args:
      tokenizer: of the policy.
      text: what it is told.

    Returns:
      the text with all that the chat template has between an answer and the next one,
      the end of the first included; the text alone without a template.
    """
    if tokenizer.chat is None:
        return text
    mark = "\u2042"
    messages = [("user", mark), ("assistant", mark), ("user", text)]
    whole = tokenizer.chat([{"role": r, "content": c} for r, c in messages])
    return whole.rpartition(mark)[2]
