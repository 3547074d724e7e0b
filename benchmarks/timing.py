"""Interleaved timing, so that drift of the machine falls on everybody alike."""

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

Seconds = dict[str, np.ndarray]


def interleaved(
    programs: Mapping[str, Callable[[], object]], *, repeats: int
) -> Seconds:
    """Seconds ``[repeats]`` of each, one of each in turn, after one turn unmeasured.

    A program returns what JAX can wait for; others have to wait for themselves.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray, unit: str = "s") -> str:
    """The median, and the range behind it."""
    median = np.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 3
    parts = [f"{x:,.{digits}f}" for x in (median, values.min(), values.max())]
    return f"{parts[0]} {unit} ({parts[1]} – {parts[2]})"


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missing(*packages: str) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def machine() -> str:
    """One line on where this ran."""
    devices = jax.devices()
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, "
        f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"
    )
