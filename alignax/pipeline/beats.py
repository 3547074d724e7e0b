"""Who is waited for: processes of one run that hang say which one it is, and end.

A process that dies ends the others by JAX's own service; one that hangs, in a reward or
on its device, would be waited for without an end. Each process writes where it is into
a small file of the run's folder, which all of them see.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

FOLDER = "processes"
EXIT = 75
"""As of a run that was told to stop: the same command goes on with ``--resume``."""
_watching: list["_Watch"] = []


class _Watch:
    """One process' place, on the disk and in a thread that looks at the clock."""

    def __init__(self, folder: Path, patience: float):
        self.folder, self.patience = folder, patience
        self.exchange, self.waits, self.since = 0, False, time.monotonic()
        self.ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self.move(waits=False)
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def move(self, *, waits: bool) -> None:
        self.exchange += waits
        self.waits, self.since = waits, time.monotonic()
        path = self.folder / f"{jax.process_index()}.json"
        text = json.dumps(
            {"host": socket.gethostname(), "at": [self.exchange, int(waits)]}
        )
        # A run does not end for a place that could not be written.
        with contextlib.suppress(OSError):
            whole = path.with_suffix(".new")
            whole.write_text(text, encoding="utf-8")
            whole.replace(path)

    def look(self) -> None:
        while not self.ended.wait(min(self.patience / 10, 5.0)):
            # Who waits says for whom, before that one ends.
            grace = 0 if self.waits else self.patience / 4 + 5
            if time.monotonic() - self.since > self.patience + grace:
                print(f"error: {self.said()}", file=sys.stderr, flush=True)
                # The main thread may be in a collective that nothing interrupts.
                os._exit(EXIT)

    def said(self) -> str:
        own = [self.exchange, int(self.waits)]
        late = []
        for process in range(jax.process_count()):
            # Others may lie there of a run on more processes.
            path = self.folder / f"{process}.json"
            with contextlib.suppress(OSError, ValueError, KeyError):
                found = json.loads(path.read_text(encoding="utf-8"))
                if found["at"] < own:
                    late.append(f"process {process} on {found['host']}")
        whom = "all are there, so that the devices or the network hang"
        if late:
            more = f" and {len(late) - 4} more" if len(late) > 4 else ""
            whom = f"it waits for {', '.join(late[:4])}{more}"
        elif not self.waits:
            whom = "it is in its own work, a reward or a step of its devices"
        return (
            f"process {jax.process_index()} of {jax.process_count()} on "
            f"{socket.gethostname()} has not gone on for "
            f"{time.monotonic() - self.since:.0f} seconds: "
            f"{whom}. The last checkpoint is whole: mend that, or raise mesh.timeout, "
            "and go on with --resume"
        )


@contextlib.contextmanager
def watched(out: Path, *, patience: float) -> Iterator[None]:
    """End this process where it has not gone on for too long, with who is waited for.

    Args:
      out: the run's folder.
      patience: seconds between two exchanges among processes, at the most; 0 for no
        end. It does nothing where there is one process.
    """
    if patience <= 0 or jax.process_count() == 1:
        yield
        return
    watch = _Watch(out / FOLDER, patience)
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.remove(watch)
        watch.ended.set()
        watch.thread.join()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Around what returns only when all processes have come to it."""
    for watch in _watching:
        watch.move(waits=True)
    try:
        yield
    finally:
        for watch in _watching:
            watch.move(waits=False)
