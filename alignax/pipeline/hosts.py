"""Several processes as one run: what each of them holds whole, and shares of work.

Every process reads the same records in the same order and runs the same program; the
arrays lie spread over all of their devices. Rewards are the host's work: each process
computes those of its own share, and all get all of them.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from alignax.pipeline import beats
from alignax.types import InputError, Preempted, RunError


def initialize(
    coordinator: str, *, processes: int | None = None, process: int | None = None
) -> None:
    """Join the processes of a run; once, before anything is computed.

    Args:
      coordinator: ``HOST:PORT`` of the first process, the same for all; or ``auto``,
        which takes all three from Slurm, a TPU pod, GKE or Open MPI.
      processes: how many there are.
      process: this one's number, from 0.

    Raises:
      InputError: they cannot be joined.
    """
    if jax.distributed.is_initialized():
        return
    given: dict[str, Any] = {"num_processes": processes, "process_id": process}
    if coordinator != "auto":
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise InputError(
                f"mesh.coordinator {coordinator} needs mesh.processes and "
                "mesh.process; or give auto where a cluster says them"
            )
        given["coordinator_address"] = coordinator
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"mesh.coordinator: the processes of {coordinator} could not be joined: "
            f"{error}"
        ) from error


def fetch(tree: Any) -> Any:
    """Arrays that this process can read whole.

    Args:
      tree: of arrays. All processes must ask for the same.

    Returns:
      the same pytree; on one process as it is, on several numpy arrays of all rows.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def leaf(x):
        if not isinstance(x, jax.Array):
            return x
        if x.is_fully_replicated or x.is_fully_addressable:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    with _exchange():
        return jax.tree.map(leaf, tree)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Around what waits for all processes, and cannot go on without one of them."""
    try:
        with beats.waiting():
            yield
    except jax.errors.JaxRuntimeError as error:
        raise Preempted(
            f"process {jax.process_index()} of {jax.process_count()} lost another one, "
            f"whose own words say more: {str(error).splitlines()[0]}; the same command "
            "goes on with --resume"
        ) from error


def own_share(count: int) -> slice:
    """This process' share of so many rows, in order, as equal as can be."""
    edges = np.linspace(0, count, jax.process_count() + 1).round().astype(int)
    return slice(*map(int, edges[jax.process_index() : jax.process_index() + 2]))


def divided(
    function: Callable[..., Any],
) -> Callable[[Sequence[Any], Sequence[Any]], np.ndarray]:
    """A function of rows, such as a reward, each process computing its share.

    Args:
      function: ``(texts, records) -> [N]`` numbers, of each row for itself.

    Returns:
      the same function, for all processes to call with the same rows; on one process
      the function itself. It raises ``RunError`` on all of them where it raised on one,
      with that one's words.
    """
    if jax.process_count() == 1:
        return function

    def whole(texts, records):
        own = own_share(len(texts))
        found, said = np.zeros(own.stop - own.start), ""
        try:
            if own.stop > own.start:
                found = np.asarray(function(texts[own], records[own]), np.float64)
                if found.shape != (own.stop - own.start,):
                    count = own.stop - own.start
                    said = f"{count} numbers were asked, got {list(found.shape)}"
                    found = np.zeros(count)
        except Exception as error:
            # Others wait for these numbers: they must hear of it.
            said = f"{type(error).__name__}: {error}"
        _told(said)
        return np.concatenate(_gathered(found)).astype(np.float32)

    return whole


def first(function: Callable[[], Any]) -> None:
    """Call a function on the first process; what it refuses, all refuse.

    Args:
      function: such as a look at the run's folder, before any of them writes to it.

    Raises:
      InputError: the first process raised it.
    """
    if jax.process_count() == 1:
        function()
        return
    said = ""
    try:
        if jax.process_index() == 0:
            function()
    except InputError as error:
        said = str(error)
    words = bytes(_gathered(_bytes(said))[0]).decode(errors="replace")
    if words:
        raise InputError(words)


def _told(said: str) -> None:
    """End on all processes what one of them cannot go on with."""
    words = [bytes(x).decode(errors="replace") for x in _gathered(_bytes(said))]
    bad = [(i, text) for i, text in enumerate(words) if text]
    if bad:
        raise RunError(f"process {bad[0][0]} of {len(words)} cannot go on: {bad[0][1]}")


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode()[:4000], np.uint8)


def _gathered(values: np.ndarray) -> list[np.ndarray]:
    """One-dimensional arrays of all processes, of any lengths."""
    from jax.experimental import multihost_utils

    with _exchange():
        sizes = multihost_utils.process_allgather(np.int32(len(values)))
        padded = np.zeros(int(sizes.max()), values.dtype)
        padded[: len(values)] = values
        # float64 would be rounded on the way.
        rows = multihost_utils.process_allgather(padded.view(np.uint8))
    return [
        row.view(values.dtype)[:size] for row, size in zip(rows, sizes, strict=True)
    ]
