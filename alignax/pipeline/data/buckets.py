"""Batches of preferences in few static shapes: rows of like lengths together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from alignax.pipeline.data.batches import _batches
from alignax.pipeline.data.preferences import (
    PairRows,
    UnpairedRows,
    check_on_bad,
    encode_pairs,
    encode_unpaired,
    labelled_texts,
    pair_texts,
)
from alignax.pipeline.data.records import Records
from alignax.pipeline.data.rows import (
    answer_ids,
    check_on_long,
    check_room,
    prompt_ids,
)
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError

Rows = TypeVar("Rows")


def _sizes(
    records: Records,
    texts: Callable[..., tuple[Any, ...]],
    tokenizer: Tokenizer,
    *,
    widest: int,
    on_bad: str,
    on_long: str,
) -> dict[int, int]:
    """Tokens of each usable record, its longest answer's end included, by its number;
    of one that is to be cut, the widest width."""
    check_on_bad(on_bad)
    check_on_long(on_long, answers=True)
    sizes = {}
    for number in range(len(records)):
        where = f"record {number}"
        try:
            prompt, *answers = texts(records[number], tokenizer, where=where)
            head = len(prompt_ids(prompt, tokenizer))
            if not head:
                raise InputError(f"{where}, field 'prompt': it has no token.")
        except InputError:
            if on_bad == "error":
                raise
            continue
        size = head + max(len(answer_ids(answer, tokenizer)) for answer in answers)
        if on_long == "truncate" and size > widest:
            check_room(head, number, widest)
            size = widest
        sizes[number] = size
    return sizes


def _bricks(
    sizes: Mapping[int, int],
    lengths: Sequence[int],
    *,
    tokens: int,
    processes: int,
    seed: int,
    on_long: str,
) -> list[tuple[int, list[int]]]:
    """Full batches ``(width, record numbers)`` of few shapes.

    A record goes to the narrowest width that holds it; what does not fill a batch
    there goes with the next wider ones.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 1:
        raise InputError(
            f"lengths: {tuple(lengths)} was given; widths of 1 token or more would do."
        )
    long = [n for n, size in sizes.items() if size > lengths[-1]]
    if long and on_long == "error":
        raise InputError(
            f"lengths: record {long[0]} has {sizes[long[0]]} tokens, more than the "
            f"widest of {lengths} ({len(long)} of {len(sizes)} records do); add a "
            'wider one, leave such records out with on_long="drop", or cut the ends '
            'of their answers off with on_long="truncate".'
        )
    shuffle = np.random.default_rng(seed)
    bricks, waiting, below = [], [], 0
    for width in lengths:
        rows = tokens // width // processes * processes
        here = [n for n, size in sizes.items() if below < size <= width]
        below = width
        if not here:
            continue
        if rows < 1:
            raise InputError(
                f"tokens_per_batch: {tokens} was given; {processes * width} or more "
                f"would do, for a row of {width} tokens on each of {processes} "
                "processes."
            )
        here = [*waiting, *shuffle.permutation(here).tolist()]
        full = len(here) // rows * rows
        bricks += [(width, here[i : i + rows]) for i in range(0, full, rows)]
        waiting = here[full:]
    if not bricks:
        raise InputError(
            f"tokens_per_batch: the {len(sizes)} usable records do not fill one batch "
            f"of {tokens} tokens; a smaller one would do."
        )
    return bricks


def _bucketed(
    sizes: Mapping[int, int],
    encode: Callable[[int, list[int]], Rows],
    *,
    lengths: Sequence[int],
    tokens_per_batch: int,
    seed: int,
    num_epochs: int | None,
    on_long: str,
    process_index: int | None,
    process_count: int | None,
) -> grain.DatasetIterator[Rows]:
    processes = jax.process_count() if process_count is None else process_count
    process = jax.process_index() if process_index is None else process_index
    if not 0 <= process < processes:
        raise InputError(
            f"process_index: {process} was given for {processes} processes; 0 to "
            f"{processes - 1} would do."
        )
    bricks = _bricks(
        sizes,
        lengths,
        tokens=tokens_per_batch,
        processes=processes,
        seed=seed,
        on_long=on_long,
    )

    def local(numbers: list[int], _: list[int]) -> Rows:
        width, members = bricks[numbers[0]]
        rows = len(members) // processes
        return encode(width, members[process * rows : (process + 1) * rows])

    # One brick is one batch; its rows are shared out here and not by ``_batches``.
    return _batches(
        list(range(len(bricks))),
        local,
        batch_size=1,
        seed=seed,
        num_epochs=num_epochs,
        process_index=0,
        process_count=1,
    )


def _cut(on_long: str) -> str:
    """What is dropped never comes to be encoded."""
    return "truncate" if on_long == "truncate" else "error"


def pair_batches(
    records: Records,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    tokens_per_batch: int,
    seed: int,
    num_epochs: int | None = None,
    on_bad: str = "error",
    on_long: str = "error",
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator[PairRows]:
    """Batches of pairs in few shapes: equally many tokens, rows of like lengths.

    A batch has one of the widths ``lengths`` and as many pairs as ``tokens_per_batch``
    allows, so that a run compiles ``len(lengths)`` times at the most. Which records
    share a batch depends on the seed alone; the batches' order is new each epoch.
    Resumes and shards as ``prompt_batches`` does.

    Args:
      records: of ``PAIRS`` or ``CONVERSATIONS``.
      tokenizer: encodes them.
      lengths: widths of rows in tokens: prompt, answer and end-of-sequence.
      tokens_per_batch: width times pairs, of one side, over all processes.
      seed: of the order.
      num_epochs: passes over the batches; None never ends.
      on_bad: ``"drop"`` leaves bad records out; ``"error"`` names the first.
      on_long: for pairs with a side beyond all lengths: ``"error"``, ``"drop"``, or
        ``"truncate"``, which cuts the end of such a side off.
      process_index: this process; jax's where not given.
      process_count: the number of processes; jax's where not given.

    Returns:
      An iterator of ``PairRows``; ``index`` counts within ``records``.

    Raises:
      InputError: a record is bad or too long, or an argument is out of range.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> records = [{"prompt": "1+1=", "chosen": "2", "rejected": "11"}]
      >>> sizes = dict(lengths=(8, 16), tokens_per_batch=8, seed=0)
      >>> next(pair_batches(records, byte_tokenizer(), **sizes)).chosen.tokens.shape
      (1, 8)
    """

    def encode(width, numbers):
        texts = [pair_texts(records[n], tokenizer) for n in numbers]
        return encode_pairs(
            texts, tokenizer, length=width, indices=numbers, on_long=_cut(on_long)
        )

    return _bucketed(
        _sizes(
            records,
            pair_texts,
            tokenizer,
            widest=max(lengths, default=0),
            on_bad=on_bad,
            on_long=on_long,
        ),
        encode,
        lengths=lengths,
        tokens_per_batch=tokens_per_batch,
        seed=seed,
        num_epochs=num_epochs,
        on_long=on_long,
        process_index=process_index,
        process_count=process_count,
    )


def unpaired_batches(
    records: Records,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    tokens_per_batch: int,
    seed: int,
    num_epochs: int | None = None,
    on_bad: str = "error",
    on_long: str = "error",
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator[UnpairedRows]:
    """Batches of labelled completions, as ``pair_batches`` makes those of pairs.

    Args:
      records: of ``UNPAIRED``.
      tokenizer: encodes them.
      lengths: widths of rows in tokens: prompt, answer and end-of-sequence.
      tokens_per_batch: width times rows, over all processes.
      seed: of the order.
      num_epochs: passes over the batches; None never ends.
      on_bad: ``"drop"`` leaves bad records out; ``"error"`` names the first.
      on_long: for rows beyond all lengths: ``"error"``, ``"drop"``, or
        ``"truncate"``, which cuts their ends off.
      process_index: this process; jax's where not given.
      process_count: the number of processes; jax's where not given.

    Returns:
      An iterator of ``UnpairedRows``.

    Raises:
      InputError: a record is bad or too long, or an argument is out of range.

    Example:
      >>> from alignax.pipeline.data import byte_tokenizer
      >>> records = [{"prompt": "1+1=", "completion": "2", "label": True}]
      >>> sizes = dict(lengths=(8,), tokens_per_batch=8, seed=0)
      >>> next(unpaired_batches(records, byte_tokenizer(), **sizes)).desirable.tolist()
      [True]
    """

    def encode(width, numbers):
        texts = [labelled_texts(records[n], tokenizer) for n in numbers]
        labels = [records[n]["label"] for n in numbers]
        return encode_unpaired(
            texts,
            labels,
            tokenizer,
            length=width,
            indices=numbers,
            on_long=_cut(on_long),
        )

    return _bucketed(
        _sizes(
            records,
            labelled_texts,
            tokenizer,
            widest=max(lengths, default=0),
            on_bad=on_bad,
            on_long=on_long,
        ),
        encode,
        lengths=lengths,
        tokens_per_batch=tokens_per_batch,
        seed=seed,
        num_epochs=num_epochs,
        on_long=on_long,
        process_index=process_index,
        process_count=process_count,
    )
