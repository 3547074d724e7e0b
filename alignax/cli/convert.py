"""Write a model as a Hugging Face folder.

From a GGUF file, another Hugging Face folder, an adapter's folder (merged into its
base) or a run's folder (its newest whole checkpoint).
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

from alignax.models import gguf, hf, shards, students
from alignax.train import folders
from alignax.train import policy as policies
from alignax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Write a model as a Hugging Face folder."""

    source: tyro.conf.Positional[Path]
    """A GGUF file, or the folder of a Hugging Face model, of adapters or of a run."""
    folder: tyro.conf.Positional[Path]
    """The new folder; there must be none of this name, or an empty one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights. None keeps a folder's own, and takes float32 for a GGUF file,
    which holds every packed format's numbers exactly."""
    base: Path | None = None
    """The base of adapters or of a run, where it is not in the place that they name."""
    step: int | None = None
    """The run's checkpoint; None for the newest whole one."""
    layers: int | None = None
    """Write so many of the model's layers alone, evenly spread, as a student to teach
    or a draft; None writes all."""


def main(config: Config) -> None:
    """Convert, and say what was written.

    Args:
      config: the options.

    Raises:
      InputError: the source cannot be read, or the folder is not free.
    """
    with fresh(config.folder) as folder:
        if config.source.is_file():
            given = (config.base, config.step, config.layers)
            if any(x is not None for x in given):
                raise InputError(
                    "base, step and layers are of folders, got a file as source; "
                    "convert it first"
                )
            gguf.convert(config.source, folder, dtype=config.dtype or "float32")
        else:
            found = folders.find(config.source, base=config.base)
            dtype = config.dtype or _own_dtype(found.base)
            policy = folders.open_policy(
                config.source, base=config.base, step=config.step, param_dtype=dtype
            )
            model, params = policy.config, policies.whole(policy, policy.params)
            if config.layers is not None:
                kept = students.spread_layers(model.num_layers, config.layers)
                model, params = students.from_layers(model, params, kept)
            hf.save(folder, model, params, source=found.base)
    print(f"{config.folder}: {described(config.folder)}")


def _own_dtype(folder: Path) -> str:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def described(folder: Path) -> str:
    """A line about the model in a Hugging Face folder.

    Args:
      folder: a whole one.

    Returns:
      its architecture, size and dtype.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return (
        f"{raw['architectures'][0]}, {size / 1e6:.0f} MB of "
        f"{raw.get('dtype', 'float32')}, with "
        f"{'a' if (folder / 'tokenizer.json').is_file() else 'no'} tokenizer and "
        f"{'a' if (folder / 'chat_template.jinja').is_file() else 'no'} chat template"
    )


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A folder to write to that gets its name once it is whole.

    Args:
      folder: the name; there must be none of this name, or an empty folder.

    Yields:
      a folder beside it, removed where the work fails.

    Raises:
      InputError: the name is taken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"folder must be free, {folder} is there already; give another name, or "
            "remove it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be writing the same.
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    half.chmod(0o777 & ~shards.umask())
    try:
        yield half
        if folder.exists():
            folder.rmdir()
        half.replace(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
