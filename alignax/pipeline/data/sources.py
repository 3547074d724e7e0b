"""Records from any source, by one spelling.

======================================== ===========================================
spelling                                 records
======================================== ===========================================
``FILE.jsonl``                           a line each
``FILE.parquet``                         a row each; a pattern (``data/*.parquet``)
                                         takes several files, in the order of names
``tfds:NAME,split=train``                a prepared TFDS set, ``data_dir=`` too
``reasoning_gym:NAME,size=500,seed=0``   generated problems, with NAME's own options
``reviews``                              requests for one-sentence reviews
======================================== ===========================================
"""

import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignax import spelling
from alignax.pipeline.data.formats import FORMATS, check_format, format_of
from alignax.pipeline.data.gym import reasoning_gym_records
from alignax.pipeline.data.preferences import check_on_bad
from alignax.pipeline.data.records import (
    Records,
    jsonl_lines,
    parse_line,
    read_tfds,
    require,
)
from alignax.pipeline.data.reviews import review_prompts
from alignax.types import InputError

Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Source(NamedTuple):
    """Records, the name of their format (of ``FORMATS``), and a sentence for each that
    was left out."""

    records: Records
    format: str
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class _View:
    """Some records of a sequence, each changed when it is asked for."""

    records: Any
    numbers: Sequence[int]
    change: Change

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self.change(self.records[self.numbers[index]])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self)))


@dataclasses.dataclass(frozen=True)
class _Table:
    """The rows of an Arrow table: its columns stay as they are, a row becomes Python
    values when it is asked for."""

    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.table.slice(range(len(self))[index], 1).to_pylist()[0]


def read_parquet(path: str | os.PathLike[str]) -> Records:
    """The rows of a Parquet file, memory-mapped; decoded columns are kept as Arrow.

    Args:
      path: the file.

    Returns:
      the records.

    Raises:
      InputError: it is missing, no Parquet file, or damaged.
    """
    # A tenth of a second that runs on other data do without.
    import pyarrow
    from pyarrow import parquet

    try:
        return _Table(parquet.read_table(os.fspath(path), memory_map=True))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"path: {str(path)!r} cannot be read ({' '.join(str(error).split())}); a "
            "Parquet file would do."
        ) from error


def read_records(
    source: str | os.PathLike[str],
    *,
    fields: Mapping[str, str] | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    on_bad: str = "error",
    data_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """Read records of any source, recognise their format, and check every one.

    Args:
      source: as this module's table spells them.
      fields: the set's own name of a field, for each that has another one here:
        ``{"prompt": "question"}``.
      formats: which of ``FORMATS`` would do, tried in this order on the first record.
      on_bad: ``"drop"`` leaves bad records out; ``"error"`` refuses the first.
      data_dir: where TFDS sets were prepared.

    Returns:
      the records, with all their fields; those of a file or set in its order.

    Raises:
      InputError: the source is missing or none of these, a record is bad (file, line
        and field are named, with the fields that it has), or none is left.
    """
    check_on_bad(on_bad)
    found, where = _open(os.fspath(source), data_dir)
    fields = dict(fields or {})

    def renamed(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**record, **{field: record[own] for field, own in fields.items()}}

    kind, kept, left_out = None, [], []
    for number in range(len(found)):
        try:
            record = found[number]
            if isinstance(record, InputError):
                raise record
            require(record, tuple(fields.values()), where(number))
            record = renamed(record)
            if kind is None:
                kind = format_of(record, formats=formats, where=where(number))
            check_format(record, kind, where(number))
            kept.append(number)
        except InputError as error:
            if on_bad == "error":
                raise
            left_out.append(str(error))
    if kind is None or not kept:
        raise InputError(
            f"source: {str(source)!r} holds no usable record ({len(left_out)} bad "
            f"ones); at least one of the formats {', '.join(formats)} would do."
        )
    whole = len(kept) == len(found) and not fields
    return Source(found if whole else _View(found, kept, renamed), kind, left_out)


def _open(
    source: str, data_dir: str | os.PathLike[str] | None
) -> tuple[Any, Callable[[int], str]]:
    """The records, or what is wrong with one in its place; and where each stands."""
    if source.startswith("tfds:"):
        name, options = spelling.spelled(source.removeprefix("tfds:"))

        def tfds(*, split: str = "train", data_dir: str | None = _given(data_dir)):
            if data_dir is None:
                raise InputError(
                    f"source: {source!r} needs to know where TFDS sets were prepared: "
                    f"tfds:{name},data_dir=FOLDER, or by data_dir."
                )
            return read_tfds(name, split=split, data_dir=data_dir)

        records = spelling.bound(tfds, options, f"tfds:{name}")
        return records, lambda number: f"{source}, record {number}"
    if source.startswith("reasoning_gym:"):
        name, options = spelling.spelled(source.removeprefix("reasoning_gym:"))
        values = {key: spelling.value_of(text) for key, text in options.items()}
        return reasoning_gym_records(name, **values), lambda n: f"{source}, record {n}"
    if source == "reviews":
        return review_prompts(), lambda number: f"reviews, record {number}"
    return _open_files(source)


def _given(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _open_files(source: str) -> tuple[Any, Callable[[int], str]]:
    paths = [source]
    if glob.has_magic(source) and not Path(source).exists():
        paths = sorted(glob.glob(source))
    kinds = {Path(path).suffix.lower() for path in paths}
    if kinds == {".parquet"}:
        tables = [read_parquet(path) for path in paths]
        ends = list(itertools.accumulate(map(len, tables)))

        def where(number: int) -> str:
            file = int(np.searchsorted(ends, number, side="right"))
            return f"{paths[file]}, row {number - ends[file] + len(tables[file])}"

        return _joined(tables, paths), where
    if kinds <= {".jsonl", ".ndjson", ".json"} and paths:
        places, records = [], []
        for place, line in itertools.chain.from_iterable(map(jsonl_lines, paths)):
            places.append(place)
            try:
                records.append(parse_line(line, place))
            except InputError as error:
                records.append(error)
        return records, places.__getitem__
    raise InputError(
        f"source: {source!r} was given"
        + (" and names no file" if not paths else "")
        + "; FILE.jsonl, FILE.parquet, tfds:NAME,split=train, "
        "reasoning_gym:NAME,size=500 or reviews would do."
    )


def _joined(tables: list[Any], paths: list[str]) -> Records:
    import pyarrow

    try:
        return _Table(pyarrow.concat_tables([table.table for table in tables]))
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"source: the files {', '.join(paths)} have not the same columns "
            f"({str(error).splitlines()[0]}); files of one schema would do."
        ) from error


def _asked(record: Mapping[str, Any]) -> str:
    """What tells whether two records ask the same."""
    for field in ("prompt", "messages", "chosen"):
        value = record.get(field)
        if value is not None:
            if field != "prompt" and isinstance(value, list):
                value = value[:-1]  # what stands before the last turn
            return json.dumps(value, sort_keys=True, default=str)
    return json.dumps(dict(record), sort_keys=True, default=str)


def split(records: Records, *, held_out: float, seed: int) -> tuple[Records, Records]:
    """Hold a share of the records out; equal prompts stay on one side.

    Args:
      records: N of them.
      held_out: the share of prompts that is held out, between 0 and 1.
      seed: of the choice; the order within both sides is that of ``records``.

    Returns:
      what is trained on, and what is held out.

    Raises:
      InputError: the share is no share, or leaves a side empty.

    Example:
      >>> records = [{"prompt": text} for text in "abcdef"]
      >>> [len(side) for side in split(records, held_out=0.5, seed=0)]
      [3, 3]
    """
    if not 0 < held_out < 1:
        raise InputError(
            f"held_out: {held_out} was given; a share between 0 and 1 would do."
        )
    asked = [_asked(records[number]) for number in range(len(records))]
    prompts = sorted(set(asked))
    count = round(held_out * len(prompts))
    if not 0 < count < len(prompts):
        raise InputError(
            f"held_out: {held_out} of {len(prompts)} prompts leaves a side empty; more "
            "prompts or another share would do."
        )
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:count]
    held = {prompts[i] for i in chosen}
    sides = [[], []]
    for number, text in enumerate(asked):
        sides[text in held].append(number)
    train, test = (_View(records, side, dict) for side in sides)
    return train, test


def apart(records: Records, held: Records) -> Records:
    """The records whose prompts are not among those held out in a second file.

    Args:
      records: to train on.
      held: to evaluate on.

    Returns:
      the records that are left, in order.

    Raises:
      InputError: none is left.

    Example:
      >>> list(apart([{"prompt": "a"}, {"prompt": "b"}], [{"prompt": "a"}]))
      [{'prompt': 'b'}]
    """
    known = {_asked(held[number]) for number in range(len(held))}
    numbers = [n for n in range(len(records)) if _asked(records[n]) not in known]
    if not numbers:
        raise InputError(
            f"records: all {len(records)} prompts are among the {len(held)} held out; "
            "other records would do."
        )
    return _View(records, numbers, dict)


def changed(records: Records, change: Change) -> Records:
    """The records, each changed when it is asked for, as by ``as_chat``.

    Args:
      records: N of them.
      change: a pure function of a record.

    Returns:
      N records.
    """
    return _View(records, range(len(records)), change)
