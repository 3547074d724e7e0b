"""Token rows and the resumable, sharded batches that a run consumes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grain
import jax
import jax.numpy as jnp
import numpy as np

from alignax.pipeline.data.records import Records
from alignax.pipeline.data.tokenizers import Tokenizer
from alignax.types import InputError, Prompts, Supervised

Template = Callable[[Mapping[str, Any]], str]
Rows = TypeVar("Rows")


def _prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(text)
    # A chat template may have written the token already.
    if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    return ids


def _check_prompt(ids: list[int], number: int) -> None:
    if not ids:
        raise InputError(
            f"texts: the prompt of record {number} has no token; a prompt needs at "
            "least one (this tokenizer adds none of its own)."
        )


def _select(
    lengths: list[int], numbers: Sequence[int], length: int, on_long: str
) -> list[int]:
    """Positions of the rows that fit, or an error about the first that does not."""
    if on_long not in ("error", "drop"):
        raise InputError(f'on_long: {on_long!r} was given; "error" or "drop" would do.')
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
    numbers = _numbers(indices, len(texts))
    rows = [_prompt_ids(text, tokenizer) for text in texts]
    for row, number in zip(rows, numbers, strict=True):
        _check_prompt(row, number)
    fits = _select([len(row) for row in rows], numbers, length, on_long)
    tokens, mask = _pad([rows[i] for i in fits], length, tokenizer.pad_id, left=True)
    return Prompts(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        index=jnp.asarray([numbers[i] for i in fits], jnp.int32),
    )


def encode_supervised(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    indices: Sequence[int] | None = None,
    on_long: str = "error",
) -> Supervised:
    """Prompts with their answers and ``eos_id``, right-padded, for teacher forcing.

    A prompt and its answer are encoded apart, so that the answer's tokens are those
    that a policy would have to sample after the prompt's.

    Args:
      prompts: N prompts.
      answers: their N answers.
      tokenizer: encodes them.
      length: S, the width of the rows: prompt, answer and end-of-sequence.
      indices: the N record numbers; 0 to N - 1 where not given.
      on_long: ``"drop"`` or ``"error"``, as in ``encode_prompts``.

    Returns:
      Supervised rows; ``loss_mask`` is True on the answer and its ``eos_id``.

    Raises:
      InputError: a row is too long, a prompt is empty, or none is left.

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
    numbers = _numbers(indices, len(prompts))
    heads = [_prompt_ids(text, tokenizer) for text in prompts]
    for head, number in zip(heads, numbers, strict=True):
        _check_prompt(head, number)
    tails = [[*tokenizer.encode(text), tokenizer.eos_id] for text in answers]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    fits = _select([len(row) for row in rows], numbers, length, on_long)
    tokens, mask = _pad([rows[i] for i in fits], length, tokenizer.pad_id, left=False)
    starts = np.array([len(heads[i]) for i in fits])
    return Supervised(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        loss_mask=jnp.asarray(mask & (np.arange(length) >= starts[:, None])),
        index=jnp.asarray([numbers[i] for i in fits], jnp.int32),
    )


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
    widths, lengths = _widths(length), []
    for number in range(len(records)):
        ids = _prompt_ids(prompt(records[number]), tokenizer)
        _check_prompt(ids, number)
        lengths.append(len(ids))
    numbers = _select(lengths, range(len(records)), widths[-1], on_long)

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
    answer: Template,
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
      on_long: ``"drop"`` or ``"error"``, as in ``encode_prompts``.
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
    widths, lengths = _widths(length), []
    for number in range(len(records)):
        head = _prompt_ids(prompt(records[number]), tokenizer)
        _check_prompt(head, number)
        lengths.append(len(head) + len(tokenizer.encode(answer(records[number]))) + 1)
    numbers = _select(lengths, range(len(records)), widths[-1], on_long)

    def encode(mine: list[int], whole: list[int]) -> Supervised:
        rows = [records[i] for i in mine]
        return encode_supervised(
            [prompt(row) for row in rows],
            [answer(row) for row in rows],
            tokenizer,
            length=_narrowest(widths, [lengths[i] for i in whole]),
            indices=mine,
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
