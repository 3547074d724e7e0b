"""Command lines: a configuration from the arguments, errors as one paragraph.

``alignax`` lists the experiments; ``alignax info`` prints what a bug report needs.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import io
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import alignax
from alignax.types import InputError, RunError

Config = TypeVar("Config")

EXPERIMENTS = {
    "grpo_arithmetic": "GRPO on generated sums, with the frontier: needs nothing",
    "rlvr": "sixty policy-gradient methods on one task, with their table",
    "grpo_gsm8k": "GRPO on GSM8K, from a Hugging Face folder or from scratch",
    "nash": "preference games: every solver, then language models that play one",
}
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "grain",
    "tensorflow-datasets",
)


def run(
    main: Callable[[Config], Any],
    config: type[Config],
    *,
    args: Sequence[str] | None = None,
    description: str | None = None,
) -> None:
    """Parse the arguments into ``config``, call ``main`` with it, and exit.

    Bad input, a run that cannot go on, and what the operating system refuses exit with
    code 2 and one paragraph on standard error, an interrupt with 130; any other
    exception is a defect and keeps its traceback.

    Args:
      main: the experiment.
      config: a frozen dataclass; its fields are the options.
      args: instead of the command line's.
      description: for ``--help``.
    """
    # Only commands need it.
    import tyro

    try:
        given = _parse(tyro, config, args, description)
        _refuse_nan(given, "")
        main(given)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{os.strerror(error.errno)}; mend that, or name another "
            "file or folder (a run that had begun goes on with --resume)",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted: the same command with --resume goes on from the last "
            "checkpoint",
            file=sys.stderr,
        )
        sys.exit(130)


def _parse(tyro: Any, config: type[Config], args, description) -> Config:
    """The configuration; what its own checks raise comes out as it was raised."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config,
                args=args,
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        # tyro turns any ValueError of a constructor into a box of its own.
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(complaint.getvalue())
        raise


def _refuse_nan(value: Any, name: str) -> None:
    # It is neither above nor below a limit, and passes checks that ask for either.
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse_nan(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for part in value:
            _refuse_nan(part, name)
    elif isinstance(value, float) and math.isnan(value):
        raise InputError(f"{name} must be a number, got nan")


def info() -> str:
    """Versions and devices, as lines."""
    import jax

    lines = [f"alignax {alignax.__version__}", f"python {platform.python_version()}"]
    lines += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    devices = ", ".join(str(device) for device in jax.devices())
    return "\n".join([*lines, f"devices {devices}"])


def main(args: Sequence[str] | None = None) -> None:
    """The ``alignax`` command."""
    listing = "\n".join(
        f"  python -m experiments.{name}\n      {text}"
        for name, text in EXPERIMENTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="alignax",
        description="Divergence-regularised policy optimisation in JAX.",
        epilog=f"experiments, from the repository's root:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"alignax {alignax.__version__}"
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("info", help="versions and devices, for a bug report")
    if parser.parse_args(args).command == "info":
        print(info())
    else:
        parser.print_help()
