"""The safetensors files of a Hugging Face folder: one, or several with their index."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from alignax.types import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Bytes of tensors in one file, at most, and in memory while it is written.
SIZE = 4 * 2**30


def files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Args:
      folder: a model's.

    Returns:
      the one file, or those that an index lists.

    Raises:
      InputError: there are none, or the index is broken.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} must have a weight_map, got {error}") from error
        bad = [f for f in names if Path(f).name != f or not (folder / f).is_file()]
        if bad:
            raise InputError(f"{index} must list files beside it, got {bad}")
        return [folder / f for f in names]
    pickles = sorted(
        file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}")
    )
    if pickles:
        raise InputError(
            f"the weights in {folder} must be safetensors, got only {pickles}, pickles "
            "that could run code when read; convert them, for instance with "
            "transformers' save_pretrained"
        )
    raise InputError(f"{folder} must hold {WEIGHTS} or {INDEX}, got neither")


def write(
    folder: Path,
    named: Iterable[tuple[str, np.ndarray]],
    *,
    done: Callable[[], object],
    size: int = SIZE,
) -> None:
    """Write tensors as they come; a half-written file never stands for the model.

    Args:
      folder: an existing one; its weights are replaced.
      named: names and values.
      done: called when all tensors are on disk and none has its name yet.
      size: bytes of tensors in a file, at most, unless one tensor is larger.
    """
    halves: list[tuple[Path, list[str]]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        half = folder / f"{WEIGHTS}.{len(halves)}.half"
        save_file(held, half, metadata={"format": "pt"})
        # The package leaves it to its owner alone.
        half.chmod(0o666 & ~umask())
        halves.append((half, list(held)))
        held.clear()

    for name, value in named:
        if held and sum(x.nbytes for x in held.values()) + value.nbytes > size:
            flush()
        held[name] = np.ascontiguousarray(value)
        total += value.nbytes
    flush()
    done()
    (folder / INDEX).unlink(missing_ok=True)
    if len(halves) == 1:
        halves[0][0].replace(folder / WEIGHTS)
        return
    places = {}
    for i, (half, names) in enumerate(halves, 1):
        file = f"model-{i:05}-of-{len(halves):05}.safetensors"
        half.replace(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    # It would be read in place of the index.
    (folder / WEIGHTS).unlink(missing_ok=True)


def umask() -> int:
    """The permissions that new files go without."""
    # It can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
