"""The resumable, sharded batches that a run consumes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from alignax.pipeline.data.records import Records
from alignax.pipeline.data.rows import (
    Turn,
    answer_ids,
    check_on_long,
    check_prompt,
    check_room,
    encode_prompts,
    encode_supervised,
    prompt_ids,
    select,
)
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError, Prompts, Supervised

Template = Callable[[Mapping[str, Any]], str]
Rows = TypeVar("Rows")


def _widths(length: int | Sequence[int]) -> list[int]:
    widths = [length] if isinstance(length, int) else sorted(set(length))
    if not widths or widths[0] < 1:
        raise InputError(
            f"length: {length!r} was given; a width of at least 1 token, or several, "
            "would do."
        )
    return widths


def _narrowest(widths: list[int], lengths: list[int]) -> int:
    return next(width for width in widths if width >= max(lengths))


def _batches(
    numbers: list[int],
    encode: Callable[[list[int], list[int]], Rows],
    *,
    batch_size: int,
    seed: int,
    num_epochs: int | None,
    process_index: int | None,
    process_count: int | None,
) -> grain.DatasetIterator[Rows]:
    """Shuffle record numbers, batch them, give this process its block, encode.

    ``encode`` gets this process's numbers, and those of the whole batch.
    """
    count = jax.process_count() if process_count is None else process_count
    index = jax.process_index() if process_index is None else process_index
    if not 0 <= index < count:
        raise InputError(
            f"process_index: {index} was given for {count} processes; 0 to "
            f"{count - 1} would do."
        )
    if batch_size < 1 or batch_size % count:
        raise InputError(
            f"batch_size: {batch_size} was given for {count} processes; a positive "
            "multiple of their number would do (it counts the rows of all of them)."
        )
    if seed < 0:
        raise InputError(f"seed: {seed} was given; 0 or more would do.")
    if num_epochs is not None and num_epochs * len(numbers) < batch_size:
        raise InputError(
            f"batch_size: {num_epochs} epochs of {len(numbers)} records do not fill "
            f"one batch of {batch_size}; a smaller batch or more epochs would do."
        )
    rows = batch_size // count

    def local(positions: np.ndarray) -> Rows:
        whole = [numbers[i] for i in positions.tolist()]
        return encode(whole[index * rows : (index + 1) * rows], whole)

    dataset = (
        grain.MapDataset.range(len(numbers))
        .seed(seed)
        .shuffle()
        .repeat(num_epochs)
        .batch(batch_size, drop_remainder=True)
        .map(local)
        # No thread reads ahead: sampling takes far longer than encoding a batch.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    return iter(dataset)


def prompt_batches(
    records: Records,
    tokenizer: Tokenizer,
    *,
    prompt: Template,
    batch_size: int,
    length: int | Sequence[int],
    seed: int,
    num_epochs: int | None = None,
    on_long: str = "error",
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator[Prompts]:
    """Batches of prompts, shuffled anew each epoch; batch s depends on (seed, s).

    Every record is encoded once at the start, so that one that is too long stops
    the run before its first step. The iterator's ``get_state()`` is a dictionary of
    one number; ``set_state`` goes on from there, and orbax saves the iterator as it
    is. With P processes, process p has the p-th block of rows of the same global
    batch, as ``jax.make_array_from_process_local_data`` wants it. A last batch that
    is not full is left out; score a whole set with ``encode_prompts``.

    Args:
      records: a random-access sequence of dictionaries.
      tokenizer: encodes the prompts.
      prompt: the text of a record's prompt, such as ``lambda r: r["question"]``.
      batch_size: prompts in a batch, over all processes.
      length: P, the width of the rows in tokens; or several, of which a batch gets
        the narrowest that holds all of its prompts, so that a step is compiled for
        few widths and short batches are not padded to the longest.
      seed: of the order.
      num_epochs: passes over the records; None never ends.
      on_long: ``"drop"`` or ``"error"``, as in ``encode_prompts``.
      process_index: this process; jax's where not given.
      process_count: the number of processes; jax's where not given.

    Returns:
      An iterator of ``Prompts``; ``index`` counts within ``records``.

    Raises:
      InputError: a prompt is too long or empty, or an argument is out of range.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> records, ask = [{"q": "1+1="}, {"q": "1+2="}], lambda record: record["q"]
      >>> sizes = dict(batch_size=2, length=6, seed=0, num_epochs=1)
      >>> batches = prompt_batches(records, byte_tokenizer(), prompt=ask, **sizes)
      >>> sorted(next(batches).index.tolist())
      [0, 1]
    """
    check_on_long(on_long, answers=False)
    widths, lengths = _widths(length), []
    for number in range(len(records)):
        ids = prompt_ids(prompt(records[number]), tokenizer)
        check_prompt(ids, number)
        lengths.append(len(ids))
    numbers = select(lengths, range(len(records)), widths[-1], on_long)

    def encode(mine: list[int], whole: list[int]) -> Prompts:
        texts = [prompt(records[i]) for i in mine]
        width = _narrowest(widths, [lengths[i] for i in whole])
        return encode_prompts(texts, tokenizer, length=width, indices=mine)

    return _batches(
        numbers,
        encode,
        batch_size=batch_size,
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
    )


def supervised_batches(
    records: Records,
    tokenizer: Tokenizer,
    *,
    prompt: Template,
    answer: Callable[[Mapping[str, Any]], str | Turn],
    batch_size: int,
    length: int | Sequence[int],
    seed: int,
    num_epochs: int | None = None,
    on_long: str = "error",
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator[Supervised]:
    """Batches of prompts with answers, in the order that ``prompt_batches`` has.

    Args:
      records: a random-access sequence of dictionaries.
      tokenizer: encodes the texts.
      prompt: the text of a record's prompt.
      answer: the text of a record's answer.
      batch_size: rows in a batch, over all processes.
      length: S, the width of the rows in tokens: prompt, answer and ``eos_id``; or
        several, as in ``prompt_batches``.
      seed: of the order.
      num_epochs: passes over the records; None never ends.
      on_long: ``"drop"``, ``"error"`` or ``"truncate"``, as in ``encode_supervised``.
      process_index: this process; jax's where not given.
      process_count: the number of processes; jax's where not given.

    Returns:
      An iterator of ``Supervised``; resumes and shards as ``prompt_batches`` does.

    Raises:
      InputError: a row is too long, a prompt is empty, or an argument is out of
        range.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> texts = dict(prompt=lambda r: r["q"], answer=lambda r: r["a"])
      >>> sizes = dict(batch_size=1, length=8, seed=0)
      >>> records = [{"q": "1+1=", "a": "2"}]
      >>> batches = supervised_batches(records, byte_tokenizer(), **texts, **sizes)
      >>> next(batches).tokens.tolist()
      [[257, 49, 43, 49, 61, 50, 258, 256]]
    """
    check_on_long(on_long, answers=True)
    widths, lengths = _widths(length), []
    for number in range(len(records)):
        head = prompt_ids(prompt(records[number]), tokenizer)
        check_prompt(head, number)
        tail = answer_ids(answer(records[number]), tokenizer)
        lengths.append(len(head) + len(tail))
        if on_long == "truncate":
            check_room(len(head), number, widths[-1])
            lengths[-1] = min(lengths[-1], widths[-1])
    numbers = select(lengths, range(len(records)), widths[-1], on_long)

    def encode(mine: list[int], whole: list[int]) -> Supervised:
        rows = [records[i] for i in mine]
        return encode_supervised(
            [prompt(row) for row in rows],
            [answer(row) for row in rows],
            tokenizer,
            length=_narrowest(widths, [lengths[i] for i in whole]),
            indices=mine,
            on_long=on_long,
        )

    return _batches(
        numbers,
        encode,
        batch_size=batch_size,
        seed=seed,
        num_epochs=num_epochs,
        process_index=process_index,
        process_count=process_count,
    )
