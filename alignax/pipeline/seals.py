"""Whether a folder's files are as they were written.

A seal is a file in the folder, ``seal.json``: the size and the CRC-32 of each file.
"""

import itertools
import json
import os
import zlib
from pathlib import Path

FILE = "seal.json"


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
