"""The process of ``in_workers``, with a descriptor and its parent as arguments.

It reads the spellings of the rewards, says that it has loaded them, and answers each
completion with a number or with what went wrong.
"""

import json
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from alignax.pipeline.rewards.loading import load_rewards, said
from alignax.types import InputError, RunError


def main(descriptor: int, parent: int) -> None:
    """Answer until the connection closes.

    Args:
      descriptor: of the inherited end of a pipe.
      parent: the process that asks; with it this one ends.
    """
    # An interrupt is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()
    # Standard output is the run's.
    os.dup2(2, 1)
    with Connection(descriptor) as connection:
        try:
            reward = load_rewards(json.loads(connection.recv_bytes()), on_error="raise")
        except InputError as error:
            connection.send_bytes(json.dumps({"refused": str(error)}).encode())
            return
        connection.send_bytes(b"{}")
        while True:
            try:
                asked = json.loads(connection.recv_bytes())
            except EOFError:
                return
            answer = _answer(reward, asked["completion"], asked["record"])
            connection.send_bytes(json.dumps(answer).encode())


def _answer(reward: Any, completion: str, record: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": float(reward([completion], [record])[0])}
    except InputError as error:
        return {"refused": str(error)}
    except RunError as error:
        return {"error": str(error).partition("): ")[2] or str(error)}
    except (Exception, SystemExit) as error:
        return {"error": said(error)}


def _outlive_nobody(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
