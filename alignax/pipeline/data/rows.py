"""Token rows: prompts to sample from, prompts with answers to train on."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError, Prompts, Supervised


class Turn(NamedTuple):
    """An answer with the end of turn that a chat template gave it: trained on as it
    is, where a plain text gets ``eos_id``."""

    text: str


def answer_ids(answer: str | Turn, tokenizer: Tokenizer) -> list[int]:
    if isinstance(answer, Turn):
        return tokenizer.encode(answer.text)
    return [*tokenizer.encode(answer), tokenizer.eos_id]


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(text)
    # A chat template may have written the token already.
    if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    return ids


def check_prompt(ids: list[int], number: int) -> None:
    if not ids:
        raise InputError(
            f"texts: the prompt of record {number} has no token; a prompt needs at "
            "least one (this tokenizer adds none of its own)."
        )


def check_on_long(on_long: str, *, answers: bool) -> None:
    """Only rows with answers can be cut: a prompt's end is where sampling begins."""
    known = ("error", "drop", "truncate")[: 3 if answers else 2]
    if on_long not in known:
        names = " or ".join(f'"{name}"' for name in known)
        raise InputError(f"on_long: {on_long!r} was given; {names} would do.")


def check_room(head: int, number: int, length: int) -> None:
    """A row that is cut must keep some of its answer."""
    if head >= length:
        raise InputError(
            f"length: the prompt of record {number} alone has {head} tokens, so that "
            f"a row cut to {length} would hold nothing of its answer; raise the limit, "
            'or leave such records out with on_long="drop".'
        )


def select(
    lengths: list[int], numbers: Sequence[int], length: int, on_long: str
) -> list[int]:
    """Positions of the rows that fit, or an error about the first that does not."""
    if length < 1:
        raise InputError(f"length: {length} was given; at least 1 token would do.")
    fits = [i for i, n in enumerate(lengths) if n <= length]
    if on_long == "error" and len(fits) < len(lengths):
        i = next(i for i, n in enumerate(lengths) if n > length)
        raise InputError(
            f"length: record {numbers[i]} has {lengths[i]} tokens, more than the limit "
            f"of {length} ({len(lengths) - len(fits)} of {len(lengths)} records do; "
            f"the longest has {max(lengths)}); raise the limit, or leave such records "
            'out with on_long="drop".'
        )
    if 0 < len(fits) < len(lengths):
        print(
            f"warning: {len(lengths) - len(fits)} of {len(lengths)} records have more "
            f"than {length} tokens and are left out",
            file=sys.stderr,
            flush=True,
        )
    if not fits:
        what = "no record was given" if not lengths else f"all have more than {length}"
        raise InputError(
            f"length: no record is left ({what}); give records of at most {length} "
            "tokens, or raise the limit."
        )
    return fits


def _pad(rows: list[list[int]], length: int, pad_id: int, *, left: bool):
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[i, where] = row
        mask[i, where] = True
    return tokens, mask


def _numbers(indices: Sequence[int] | None, count: int) -> list[int]:
    if indices is None:
        return list(range(count))
    if len(indices) != count:
        raise InputError(
            f"indices: {len(indices)} were given for {count} texts; one record number "
            "for each text would do."
        )
    return [int(i) for i in indices]


def encode_prompts(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    indices: Sequence[int] | None = None,
    on_long: str = "error",
) -> Prompts:
    """Texts as left-padded prompts, each begun with ``bos_id`` where there is one.

    Args:
      texts: N prompts.
      tokenizer: encodes them.
      length: P, the width of the rows in tokens.
      indices: the N record numbers; 0 to N - 1 where not given.
      on_long: ``"drop"`` leaves prompts of more than ``length`` tokens out (then
        ``index`` tells which are left); ``"error"`` refuses them.

    Returns:
      Prompts with ``tokens`` int32 ``[N, P]``, ``mask [N, P]``, ``index [N]``.

    Raises:
      InputError: a prompt is too long or empty, or none is left.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> encode_prompts(["1+2="], byte_tokenizer(), length=6).tokens.tolist()
      [[256, 257, 49, 43, 50, 61]]
    """
    check_on_long(on_long, answers=False)
    numbers = _numbers(indices, len(texts))
    rows = [prompt_ids(text, tokenizer) for text in texts]
    for row, number in zip(rows, numbers, strict=True):
        check_prompt(row, number)
    fits = select([len(row) for row in rows], numbers, length, on_long)
    tokens, mask = _pad([rows[i] for i in fits], length, tokenizer.pad_id, left=True)
    return Prompts(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        index=jnp.asarray([numbers[i] for i in fits], jnp.int32),
    )


def encode_supervised(
    prompts: Sequence[str],
    answers: Sequence[str | Turn],
    tokenizer: Tokenizer,
    *,
    length: int,
    indices: Sequence[int] | None = None,
    on_long: str = "error",
) -> Supervised:
    """Prompts with their answers and ends, right-padded, for teacher forcing.

    A plain answer is followed by ``eos_id``; a ``Turn`` has its end already. A
    prompt and its answer are encoded apart, so that the answer's tokens are those that
    a policy would have to sample after the prompt's.

    Args:
      prompts: N prompts.
      answers: their N answers.
      tokenizer: encodes them.
      length: S, the width of the rows: prompt, answer and end-of-sequence.
      indices: the N record numbers; 0 to N - 1 where not given.
      on_long: ``"drop"`` or ``"error"``, as in ``encode_prompts``; ``"truncate"``
        cuts the ends of answers off, end-of-sequence and all.

    Returns:
      Supervised rows; ``loss_mask`` is True on the answer and its end.

    Raises:
      InputError: a row is too long, a prompt is empty or leaves no room for its
        answer, or none is left.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> rows = encode_supervised(["1+2="], ["3"], byte_tokenizer(), length=8)
      >>> rows.tokens[rows.loss_mask].tolist()
      [51, 258]
    """
    if len(prompts) != len(answers):
        raise InputError(
            f"answers: {len(answers)} were given for {len(prompts)} prompts; one "
            "answer for each prompt would do."
        )
    check_on_long(on_long, answers=True)
    numbers = _numbers(indices, len(prompts))
    heads = [prompt_ids(text, tokenizer) for text in prompts]
    for head, number in zip(heads, numbers, strict=True):
        check_prompt(head, number)
    tails = [answer_ids(answer, tokenizer) for answer in answers]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    if on_long == "truncate":
        for head, number in zip(heads, numbers, strict=True):
            check_room(len(head), number, length)
        rows = [row[:length] for row in rows]
    fits = select([len(row) for row in rows], numbers, length, on_long)
    tokens, mask = _pad([rows[i] for i in fits], length, tokenizer.pad_id, left=False)
    starts = np.array([len(heads[i]) for i in fits])
    return Supervised(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        loss_mask=jnp.asarray(mask & (np.arange(length) >= starts[:, None])),
        index=jnp.asarray([numbers[i] for i in fits], jnp.int32),
    )
