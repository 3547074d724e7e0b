"""Where a command keeps what XLA compiled, so that the next one need not."""

import hashlib
import platform
from pathlib import Path

import jax

LEAST = 0.3
"""Seconds of compilation from which a program is kept."""


def keep(folder: Path) -> None:
    """Keep compiled programs in a run's folder, and take them from there.

    A directory that the user chose (``JAX_COMPILATION_CACHE_DIR``) goes before, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps none.

    Args:
      folder: the run's.
    """
    kept = jax.config.values
    if kept["jax_compilation_cache_dir"] or not kept["jax_enable_compilation_cache"]:
        return
    jax.config.update("jax_compilation_cache_dir", str(place(folder)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)


def place(folder: Path) -> Path:
    """Where the programs of a folder's runs are kept, on this processor."""
    return folder.resolve() / "compiled" / _processor()


def _processor() -> str:
    # XLA's key does not tell processors apart, whose instructions may not be another's.
    known = platform.machine() + platform.processor()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        lines = cpus.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = ("flags", "Features", "model name")
        known += "".join(sorted({x for x in lines if x.startswith(telling)}))
    return hashlib.sha256(known.encode()).hexdigest()[:12]
