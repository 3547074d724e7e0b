"""Several trials by one program: ``python -m alignax.cli.sweeps.batched MODULE``.

Standard input has a list of arguments for each trial. The module's ``VMAPPED`` names
the options in which the trials differ, and its ``batch(configs)`` writes what ``main``
would have written of each.
"""

import importlib
import json
import sys
from typing import Any

from alignax import cli


def main() -> None:
    """Parse and run."""
    sys.path.insert(0, "")
    module = importlib.import_module(sys.argv[1])
    found: list[Any] = []
    for args in json.load(sys.stdin):
        cli.run(found.append, module.Config, args=args)
    module.batch(found)


if __name__ == "__main__":
    main()
