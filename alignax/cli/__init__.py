"""Command lines: a configuration from the arguments, errors as one paragraph.

``alignax`` says what one would do first and lists the commands; each is a module of
this package with a ``Config`` of options and a ``main``.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import alignax
from alignax.types import InputError, Preempted, RunError

Config = TypeVar("Config")

# What a user types: the module that does it, and what it does in a line.
VERBS: dict[tuple[str, ...], tuple[str, str]] = {
    ("pretrained",): (
        "alignax.cli.pretrained",
        "get a real language model by pip, ready to train",
    ),
    ("convert",): (
        "alignax.cli.convert",
        "a GGUF file, adapters or a run into a Hugging Face folder",
    ),
    ("train", "rl"): (
        "alignax.cli.train_rl",
        "a policy by its own samples, on your prompts and your reward",
    ),
    ("train", "preference"): (
        "alignax.cli.train_preference",
        "a policy by pairs or labels: DPO, f-DPO, KTO and their like",
    ),
    ("train", "game"): (
        "alignax.cli.train_game",
        "a policy that no other is preferred to, by a judge of pairs: Nash-MD",
    ),
    ("train", "distil"): (
        "alignax.cli.train_distil",
        "a student by a teacher's distributions: GKD and its kin",
    ),
    ("train", "reward"): (
        "alignax.cli.train_reward",
        "a reward model by pairs or labels, for train rl's --reward",
    ),
    ("train", "target"): (
        "alignax.cli.train_target",
        "a policy towards a law: a posterior, a filter, constraints on means",
    ),
    ("train", "supervised"): (
        "alignax.cli.train_supervised",
        "a policy by answers that you have (SFT)",
    ),
    ("sweep",): (
        "alignax.cli.sweep",
        "many runs of a train command, by a file of what differs among them",
    ),
    ("sample",): ("alignax.cli.sample", "read what a model, adapters or a run write"),
    ("evaluate",): (
        "alignax.cli.evaluate",
        "rewards, pass@k, win rate, KL, entropy and more, on data",
    ),
    ("forgetting",): (
        "alignax.cli.forgetting",
        "what was lost on several tasks, from evaluations before and after",
    ),
    ("plan",): (
        "alignax.cli.plan",
        "whether a run fits devices that are not there, and how long it takes",
    ),
    ("info",): ("alignax.cli.info", "versions and devices, for a bug report"),
}
EXPERIMENTS = {
    "grpo_arithmetic": "GRPO on generated sums, with the frontier: needs nothing",
    "rlvr": "sixty policy-gradient methods on one task, with their table",
    "reason": "four methods on sums with the pretrained model, in a quarter of an hour",
    "frontier": "its sentiment against KL by divergence, with a gold reward held back",
    "constraints": "that its sentences exclaim, or name their thing, by divergence",
    "prefer": "nine preference losses on pairs that it wrote, judged by a verifier",
    "distill": "the model teaches a student of its own layers: GKD, OPD, SDPO and more",
    "speculate": "speculative sampling by a draft of its own layers, aligned or not",
    "sweep_divergences": "strength by divergence by seed, many runs in one program",
    "nash": "preference games: every solver, then language models that play one",
}
FILES = """\
--config FILE.yaml takes options from a file, which those of the command line override;
--print-config prints such a file, with all options, and ends.
"""
FIRST = """\
to begin, from the repository's root:
  python -m experiments.grpo_arithmetic     a small model learns sums, in minutes
  alignax pretrained                        a real language model, in models/smollm2
  alignax sample models/smollm2 --prompt "What is a prime number?"
  alignax train rl --model models/smollm2 --data problems.jsonl --reward numeric
"""


def run(
    main: Callable[[Config], Any],
    config: type[Config],
    *,
    args: Sequence[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
    resumes: bool = True,
    files: bool = False,
) -> None:
    """Parse the arguments into ``config``, call ``main`` with it, and exit.

    Bad input, a run that cannot go on, and what the operating system refuses exit with
    code 2 and one paragraph on standard error, a run that was told to stop and has
    saved itself with 75, an interrupt with 130, a closed pipe quietly with 141; any
    other exception is a defect and keeps its traceback.

    Args:
      main: the experiment.
      config: a frozen dataclass; its fields are the options.
      args: instead of the command line's.
      description: for ``--help``.
      prog: what was typed before the options; None for the script's name.
      resumes: there is a ``--resume``, which what stops the run speaks of.
      files: take ``--config FILE.yaml``, which other options override, and
        ``--print-config``.
    """
    # Only commands need it.
    import tyro

    shown = None
    try:
        if files:
            args, shown = _from_file(config, sys.argv[1:] if args is None else args)
            description = f"{description}\n{FILES}"
        given = _parse(tyro, config, args, description, prog)
        _refuse_nan(given, "")
        if shown is not None:
            print(shown(given), end="")
        else:
            main(given)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(75)
    except BrokenPipeError:
        # Whoever reads has enough, as `head` does; what Python flushes at the end
        # must find somebody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        goes_on = " (a run that had begun goes on with --resume)" if resumes else ""
        print(
            f"error: {where}{os.strerror(error.errno)}; mend that, or name another "
            f"file or folder{goes_on}",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = "with --resume goes on from the last checkpoint"
        begins = "begins again"
        print(
            f"interrupted: the same command {goes_on if resumes else begins}",
            file=sys.stderr,
        )
        sys.exit(130)


def _from_file(config: type, args: Sequence[str]):
    """The arguments with those of a file before them, and what prints a configuration
    where that is asked for."""
    from alignax.train.runs import configs

    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--print-config", action="store_true")
    try:
        own, rest = parser.parse_known_args(list(args))
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    before = [x for path in own.config for x in configs.arguments(config, path)]
    return before + rest, configs.dumped if own.print_config else None


def _parse(tyro: Any, config: type[Config], args, description, prog) -> Config:
    """The configuration; what its own checks raise comes out as it was raised."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config,
                args=args,
                description=description,
                prog=prog,
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


def _listing(verbs: Sequence[tuple[str, ...]]) -> str:
    width = max(len(" ".join(words)) for words in verbs)
    lines = [f"  {' '.join(w):{width}}   {VERBS[w][1]}" for w in verbs]
    return "commands (each has a --help):\n" + "\n".join(lines)


def _greeting() -> str:
    experiments = "\n".join(
        f"  python -m experiments.{name}\n      {text}"
        for name, text in EXPERIMENTS.items()
    )
    return (
        f"alignax {alignax.__version__}: divergence-regularised policy optimisation of "
        f"language models in JAX\n\n{FIRST}\n{_listing(list(VERBS))}\n\n"
        f"experiments, from the repository's root:\n{experiments}"
    )


def _verb(args: Sequence[str]) -> tuple[str, ...]:
    """The longest verb that the arguments begin with.

    Raises:
      InputError: there is none.
    """
    for size in range(max(map(len, VERBS)), 0, -1):
        if tuple(args[:size]) in VERBS:
            return tuple(args[:size])
    begun = [words for words in VERBS if words[0] == args[0]]
    if begun:
        given = f"got {args[1]!r}" if len(args) > 1 else "got nothing"
        ways = ", ".join(words[-1] for words in begun)
        raise InputError(f"after alignax {args[0]} must come one of {ways}, {given}")
    known = sorted({words[0] for words in VERBS})
    near = difflib.get_close_matches(args[0], known) or known
    raise InputError(
        f"the command must be one of alignax's, got {args[0]!r}; did you mean "
        f"{' or '.join(near)}? `alignax` alone lists them"
    )


def main(args: Sequence[str] | None = None) -> None:
    """The ``alignax`` command.

    Args:
      args: instead of the command line's.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_greeting())
        return
    if args[0] == "--version":
        print(f"alignax {alignax.__version__}")
        return
    try:
        words = _verb(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # Of a package that nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    module, trains = importlib.import_module(VERBS[words][0]), words[0] == "train"

    def begin(config):
        from alignax.cli import programs

        if hasattr(config, "output"):
            programs.keep(config.output.out)
        module.main(config)

    run(
        begin,
        module.Config,
        args=args[len(words) :],
        description=module.__doc__,
        prog=f"alignax {' '.join(words)}",
        resumes=trains,
        files=trains,
    )
