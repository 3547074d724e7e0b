"""Records from JSON-lines files and from TFDS, behind one random-access sequence."""

import dataclasses
import importlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from alignax.types import InputError

# Catalogue sets that TFDS resolves by name only once their module is imported
# (its own walk over such modules needs TensorFlow).
_LEGACY = {"gsm8k": "tensorflow_datasets.text.gsm8k.gsm8k"}


@runtime_checkable
class Records(Protocol):
    """A random-access sequence of dictionaries; a list of them is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def _check_fields(fields: Sequence[str]) -> None:
    if isinstance(fields, str) or not fields:
        raise InputError(
            f"fields: {fields!r} was given; a sequence of field names would do, such "
            'as ("question", "answer").'
        )


def read_jsonl(
    path: str | os.PathLike[str], *, fields: Sequence[str]
) -> list[dict[str, Any]]:
    """Read a JSON-lines file: one object a line, blank lines skipped.

    Args:
      path: the file, UTF-8.
      fields: what every record must have (null counts as missing); other fields
        are left out.

    Returns:
      The records, in the file's order.

    Raises:
      InputError: the file is missing or has no record, or a line is not JSON, is
        not an object or lacks a field; the message names file, line and field.
    """
    _check_fields(fields)
    records = []
    for where, line in jsonl_lines(path):
        record = parse_line(line, where)
        require(record, fields, where)
        records.append({field: record[field] for field in fields})
    if not records:
        raise InputError(
            f"path: {str(path)!r} holds no record; a JSON-lines file with at least one "
            "object would do."
        )
    return records


def jsonl_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with its place."""
    path = pathlib.Path(path)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise InputError(
            f"path: {str(path)!r} cannot be read ({error.strerror}); a JSON-lines file "
            "would do, one object a line."
        ) from error


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """One object, or an error that names its place."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    # ValueError: no JSON, no UTF-8, an endless number; RecursionError: deep nesting.
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"path: {where}: not valid JSON ({error}); one JSON object a line would do."
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"path: {where}: a JSON {type(record).__name__} where an object would do."
        )
    return record


def require(record: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    """Refuse a record without one of the fields, with those that it has."""
    for field in fields:
        if record.get(field) is None:
            raise InputError(
                f"path: {where}: the record has no field {field!r}; it has "
                f"{', '.join(map(repr, record)) or 'none'}."
            )


@dataclasses.dataclass(frozen=True)
class _Tfds:
    """A TFDS data source whose records are plain Python values."""

    source: Any
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        record = self.source[index % len(self)]
        return {field: _plain(record[field]) for field in self.fields}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    ):
        return _plain(value.item())
    if isinstance(value, list) or (
        isinstance(value, np.ndarray) and value.dtype == object
    ):
        return [_plain(item) for item in value]
    return value


def read_tfds(
    name: str,
    *,
    split: str,
    data_dir: str | os.PathLike[str],
    fields: Sequence[str] | None = None,
) -> Records:
    """Read a prepared TFDS set by random access; TensorFlow is never imported.

    Nothing is downloaded. Text arrives as ``str``, a scalar as a Python number.

    Args:
      name: as TFDS has it: ``"gsm8k"``, ``"name/config"``, ``"name:1.0.0"``.
      split: such as ``"train"`` or ``"train[:100]"``.
      data_dir: where the sets were prepared, in array_record or parquet.
      fields: what every record must have; other features are left out. All that the
        set has where not given.

    Returns:
      The records; each is read when it is asked for.

    Raises:
      InputError: TFDS knows no such set, it is not prepared in a random-access
        format, or a split or field is not there.
    """
    if fields is not None:
        _check_fields(fields)
    # Half a second that runs on other data do without.
    import tensorflow_datasets as tfds

    base = name.split("/")[0].split(":")[0]
    if base in _LEGACY:
        importlib.import_module(_LEGACY[base])
    prepare = (
        f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, "
        'file_format="array_record").download_and_prepare()'
    )
    try:
        builder = tfds.builder(name, data_dir=str(data_dir))
    except tfds.core.registered.DatasetNotFoundError as error:
        raise InputError(
            f"name: TFDS knows no {name!r}, neither in its catalogue nor prepared in "
            f"{str(data_dir)!r}; tfds_from_jsonl prepares a JSON-lines file under "
            "such a name."
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"name: TFDS cannot load {name!r} from {str(data_dir)!r}: {error}"
        ) from error
    if not builder.is_prepared():
        needs = f"import {_LEGACY[base]}; " if base in _LEGACY else ""
        raise InputError(
            f"name: {name!r} is not prepared in {str(data_dir)!r}; prepare it with "
            f"{needs}{prepare}, or give the data_dir that has it."
        )
    fields = tuple(builder.info.features) if fields is None else fields
    missing = [field for field in fields if field not in builder.info.features]
    if missing:
        raise InputError(
            f"fields: {name!r} has no feature {missing[0]!r}; it has "
            f"{', '.join(map(repr, sorted(builder.info.features)))}."
        )
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise InputError(
            f"name: {name!r} is prepared in {str(data_dir)!r} in a format without "
            f"random access; prepare it elsewhere with {prepare}."
        ) from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"split: {split!r} is not in {name!r}; it has "
            f"{', '.join(map(repr, sorted(builder.info.splits)))}."
        ) from error
    return _Tfds(source, tuple(fields))


def tfds_from_jsonl(
    paths: Mapping[str, str | os.PathLike[str]],
    *,
    name: str,
    fields: Sequence[str],
    data_dir: str | os.PathLike[str],
    version: str = "1.0.0",
) -> pathlib.Path:
    """Prepare JSON-lines files as a TFDS set that ``read_tfds`` reads by name.

    The records keep their numbers: they are written in the files' order, as
    array_record, without TensorFlow. A field is text, an integer or a boolean, as
    the first record has it; TFDS would round a float to 32 bits.

    Args:
      paths: a file for each split.
      name: the set's name: lower-case letters, digits and underscores.
      fields: what every record must have; other fields are left out.
      data_dir: where TFDS sets are kept.
      version: the set's version.

    Returns:
      The folder that was written, or that held the same records already.

    Raises:
      InputError: a file is bad (as in ``read_jsonl``), a field has another type in
        a later record, the name is not one that TFDS takes, or this version is
        there already with other records.
    """
    import tensorflow_datasets as tfds

    if not (name.isidentifier() and name.islower() and name.isascii()):
        raise InputError(
            f"name: {name!r} was given; lower-case letters, digits and underscores, "
            "a letter first, would do."
        )
    if not paths:
        raise InputError("paths: no split was given; {'train': path} would do.")
    splits = {split: read_jsonl(path, fields=fields) for split, path in paths.items()}
    features = {
        str: tfds.features.Text(),
        bool: tfds.features.Scalar(np.bool_),
        int: tfds.features.Scalar(np.int64),
    }
    kinds = {key: type(value) for key, value in next(iter(splits.values()))[0].items()}
    for split, records in splits.items():
        for number, record in enumerate(records):
            for field, kind in kinds.items():
                if type(record[field]) is not kind or kind not in features:
                    raise InputError(
                        f"fields: {field!r} of record {number} of {split!r} is a "
                        f"{type(record[field]).__name__}; text, an integer or a "
                        "boolean would do, the same in every record."
                    )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        # TFDS looks for checksums of downloads beside the code; there are none.
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {field: features[kind] for field, kind in kinds.items()}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            yield from enumerate(splits[split])

    Builder.name = name
    builder = Builder(data_dir=str(data_dir), file_format="array_record")
    was_there = builder.is_prepared()
    builder.download_and_prepare()
    folder = pathlib.Path(builder.data_path)
    if was_there and not _holds(folder, splits, fields):
        raise InputError(
            f"version: {str(folder)!r} holds other records than these files; another "
            "version or name would do, or remove that folder."
        )
    return folder


def _holds(folder: pathlib.Path, splits, fields: Sequence[str]) -> bool:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    return set(builder.info.splits) == set(splits) and all(
        set(fields) <= set(builder.info.features)
        and list(_Tfds(builder.as_data_source(split=split), tuple(fields))) == records
        for split, records in splits.items()
    )
