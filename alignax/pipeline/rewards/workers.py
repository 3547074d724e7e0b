"""Rewards in processes of their own, with a time limit for each completion.

A worker is a fresh interpreter that loads the rewards by their spelling. Only texts
cross, as JSON; nothing is pickled and nothing is forked, so that threads and devices of
the run are left alone. One that exceeds its time is ended, and another takes its place.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np

from alignax.pipeline.rewards.loading import check_on_error, failed
from alignax.pipeline.rewards.matches import Reward
from alignax.types import InputError


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: list[bool]


@contextlib.contextmanager
def in_workers(
    texts: Sequence[str],
    *,
    processes: int,
    timeout: float,
    on_error: str = "nan",
    start_timeout: float = 120.0,
) -> Iterator[Reward]:
    """The weighted sum of rewards, computed in worker processes.

    Each completion is a call of its own, so that what a function knows is one
    completion and its record, and a time limit costs that completion alone. Records
    arrive as JSON has them: tuples as lists. Workers see no accelerator
    (``JAX_PLATFORMS=cpu``), and what they print goes to standard error.

    Args:
      texts: as ``load_rewards`` takes them.
      processes: how many workers.
      timeout: seconds for one completion.
      on_error: ``"nan"`` is what a completion gets on which a reward raises, ends its
        process or takes too long, with a warning that names the record; ``"raise"``
        ends the run.
      start_timeout: seconds for a worker to load the rewards.

    Yields:
      the reward, which may be called from any thread. Workers end with the context.

    Raises:
      InputError: a reward cannot be loaded, or an option is out of range; and the
        reward, for records that it refuses or that JSON cannot hold.

    Example:
      >>> with in_workers(["exact"], processes=1, timeout=9.0) as reward:
      ...     reward(["7", "8"], [{"answer": "7"}] * 2).tolist()
      [1.0, 0.0]
    """
    check_on_error(on_error)
    if processes < 1 or not timeout > 0 or not start_timeout > 0:
        raise InputError(
            f"processes: {processes} was given, and timeout {timeout}; at least 1, and "
            "seconds above 0, would do."
        )
    if isinstance(texts, str) or not texts:
        raise InputError(f"texts: {texts!r} was given; one spelling or more would do.")
    name = " + ".join(texts)
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started: list[_Worker] = []
    closing = threading.Event()

    def start() -> _Worker:
        worker = _start(texts)
        started.append(worker)
        return worker

    def score(item: tuple[int, str, Mapping[str, Any]]) -> float:
        i, completion, record = item
        message = _json({"completion": completion, "record": dict(record)})
        worker = idle.get()
        try:
            _await_ready(worker, start_timeout)
            answer = _asked(worker, message, timeout)
            if "ended" in answer and not closing.is_set():
                _end(worker)
                worker = start()
        finally:
            idle.put(worker)
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "value" in answer:
            return answer["value"]
        failed(name, record, i, answer.get("ended") or answer["error"], on_error)
        return float("nan")

    def reward(completions, records):
        items = list(zip(range(len(completions)), completions, records, strict=True))
        return np.array(list(pool.map(score, items)), np.float32)

    pool = futures.ThreadPoolExecutor(max_workers=processes)
    try:
        workers = [start() for _ in range(processes)]
        for worker in workers:
            _await_ready(worker, start_timeout)
            idle.put(worker)
        yield reward
    finally:
        # Whoever waits for an answer learns that none will come.
        closing.set()
        for worker in list(started):
            worker.process.kill()
        pool.shutdown(cancel_futures=True)
        for worker in started:
            _end(worker)


def _start(texts: Sequence[str]) -> _Worker:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "alignax.pipeline.rewards.worker",
                str(theirs.fileno()),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
    ours.send_bytes(_json(list(texts)))
    return _Worker(process, ours, [])


def _await_ready(worker: _Worker, seconds: float) -> None:
    """Return once a worker has loaded its rewards."""
    if worker.ready:
        return
    answer = _received(worker, seconds)
    if "refused" in answer:
        raise InputError(answer["refused"])
    if "ended" in answer:
        raise InputError(
            f"reward: a worker process could not load the rewards: {answer['ended']}"
        )
    worker.ready.append(True)


def _asked(worker: _Worker, message: bytes, seconds: float) -> dict[str, Any]:
    try:
        worker.connection.send_bytes(message)
    except OSError:
        return {"ended": _how(worker)}
    return _received(worker, seconds)


def _received(worker: _Worker, seconds: float) -> dict[str, Any]:
    """The worker's next message, or why there will be none."""
    try:
        if worker.connection.poll(seconds):
            return json.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        return {"ended": _how(worker)}
    return {"ended": f"no answer within {seconds:g} s"}


def _how(worker: _Worker) -> str:
    try:
        return f"its process ended (exit code {worker.process.wait(timeout=5)})"
    except subprocess.TimeoutExpired:
        return "its process closed the connection"


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.wait()


def _json(value: Any) -> bytes:
    def plain(item: Any) -> Any:
        if isinstance(item, (np.ndarray, np.generic)):
            return item.tolist()
        raise TypeError(f"a {type(item).__name__}")

    try:
        return json.dumps(value, default=plain).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"records: one holds {error}, which cannot go to a worker process; texts, "
            "numbers, lists and dictionaries would do."
        ) from error
