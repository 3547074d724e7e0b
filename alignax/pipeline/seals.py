"""Whether a checkpoint's files are as they were written.

A seal is a file in the folder, ``seal.json``: the size and the CRC-32 of each file.
"""

import itertools
import json
import os
import sys
import zlib
from pathlib import Path

import jax

from alignax.types import InputError

FILE = "seal.json"
METADATA = "_CHECKPOINT_METADATA"


def seal(folder: Path) -> None:
    """Seal the files of a folder that is complete."""
    new = folder / f"{FILE}.new"
    new.write_text(json.dumps(_contents(folder)), encoding="utf-8")
    os.replace(new, folder / FILE)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words.

    Args:
      folder: reads every file in it.

    Returns:
      the first file that is not as it was sealed, and how; None where all are, and
      where there is no seal, as of a run that was killed just before it.
    """
    try:
        sealed = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{FILE} is not JSON"
    found = _contents(folder)
    for name, (size, checksum) in sealed.items():
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]} bytes of {size}"
        if found[name][1] != checksum:
            return f"{name} is not what was saved: its CRC-32 differs"
    return None


def set_aside(folder: Path) -> Path:
    """Rename a folder to ``<name>.damaged``, with a number after it where there is
    one already.

    Returns:
      its new path.
    """
    for number in itertools.count(1):
        target = folder.with_name(
            f"{folder.name}.damaged{number if number > 1 else ''}"
        )
        if not target.exists():
            return folder.rename(target)
    raise AssertionError("the numbers do not end")


def _contents(folder: Path) -> dict[str, list[int]]:
    """``[size, CRC-32]`` of each file by its path in the folder, seals left out."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(FILE):
            size = checksum = 0
            with path.open("rb") as file:
                while part := file.read(1 << 24):
                    size, checksum = size + len(part), zlib.crc32(part, checksum)
            contents[name] = [size, checksum]
    return contents


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, ascending, whole or not."""
    paths = folder.iterdir() if folder.is_dir() else ()
    names = [path.name for path in paths if path.is_dir()]
    # As orbax names them, without leading zeros.
    numbers = [int(name) for name in names if name.isdecimal()]
    return sorted(n for n in numbers if str(n) in names)


def set_damaged_aside(folder: Path) -> None:
    """Set a run's damaged checkpoints aside, those newer than its newest whole one.

    Args:
      folder: of checkpoints, each a folder named by its step.

    Raises:
      InputError: there are checkpoints and none is whole.
    """
    damaged: dict[int, str] = {}
    whole = None
    for step in steps(folder)[::-1]:
        path = folder / str(step)
        # Of the older ones only what orbax reads as it opens the folder.
        files = damage(path) if whole is None else None
        wrong = metadata_damage(path) or files
        if wrong is not None:
            damaged[step] = wrong
        elif whole is None:
            whole = step
    if not damaged:
        return
    found = "; ".join(f"step {step}: {wrong}" for step, wrong in damaged.items())
    if whole is None:
        raise InputError(
            f"folder must hold a whole checkpoint, those of {folder} are damaged "
            f"({found}); put back a copy, or delete the folder to start anew"
        )
    # Every process has looked before one moves them, and goes on once it has.
    _wait_for_others("looked for damaged checkpoints")
    if jax.process_index() == 0:
        for step in damaged:
            set_aside(folder / str(step))
        print(
            f"warning: damaged checkpoints of {folder} are set aside ({found}); the "
            f"newest whole one is of step {whole}",
            file=sys.stderr,
            flush=True,
        )
    _wait_for_others("set damaged checkpoints aside")


def metadata_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's own metadata, in words; None where nothing."""
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{METADATA} is missing"
    except ValueError:
        return f"{METADATA} is not JSON"
    saved = metadata.get("custom_metadata") if isinstance(metadata, dict) else None
    if not isinstance(saved, dict) or not {"config", "data_state"} <= saved.keys():
        return f"{METADATA} has no config or no data_state"
    return None


def _wait_for_others(what: str) -> None:
    if jax.process_count() > 1:
        # Only such runs need it.
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
