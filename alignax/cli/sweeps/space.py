"""What the trials of a sweep are, from its file: a pure function of it."""

import dataclasses
import importlib
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from alignax import cli
from alignax.spelling import value_of
from alignax.train.runs import configs
from alignax.types import InputError

OWN = ("grid", "random")
"""The samplers that need no Optuna."""
PLACE = ("out", "resume")
"""The options that the sweep sets itself."""


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, whole where both are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: a point of the space under one seed."""

    index: int
    point: int
    options: Mapping[str, Any]
    """What sets it apart from others, by dotted names; of a point that is still to be
    proposed, its seed alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep's file says; its keys are these names."""

    run: str
    """What is run: ``train rl`` and its like, or a module with a ``Config``, such as
    experiments.grpo_arithmetic."""
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of all trials."""
    space: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A list, or low, high and log, for each option that differs."""
    points: Sequence[Mapping[str, Any]] = ({},)
    """Options that go together, each crossed with the space."""
    sampler: str | None = None
    """grid, random, or one of Optuna's: tpe, cmaes, nsga2, qmc. By default grid
    where the space is of lists, else random."""
    trials: int | None = None
    """Points that are drawn; a grid has as many as it has."""
    seed: int = 0
    """Of the draws."""
    seeds: int = 1
    """Runs of each point: above 1 with the option ``seed`` from 0 on."""
    metric: str | None = None
    """What trials are compared by, a name in their metrics.jsonl."""
    goal: Literal["max", "min"] = "max"
    kl: str | None = None
    """The metric on the frontier's horizontal axis; by default the ``kl`` beside
    ``metric``."""
    rungs: tuple[int, ...] = ()
    """Steps of the log at which trials are compared and most of them left
    (successive halving)."""
    factor: int = 3
    """A rung keeps one in so many points."""
    batch: int = 64
    """Most runs of one program, where a module can vmap them; 1 for none."""

    def __post_init__(self):
        least = {"seeds": 1, "seed": 0, "factor": 2, "batch": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < bound:
                raise InputError(
                    f"{name} must be a whole number from {bound} on, got {value!r}"
                )
        if self.goal not in ("max", "min"):
            raise InputError(f"goal must be max or min, got {self.goal!r}")
        rising = all(a < b for a, b in itertools.pairwise((0, *self.rungs)))
        if not rising:
            raise InputError(
                f"rungs must be rising numbers of steps, got {list(self.rungs)}"
            )
        guided = self.rungs or self.law not in OWN
        if guided and self.metric is None:
            raise InputError(
                f"metric: {'rungs compare' if self.rungs else self.law + ' looks at'} "
                "a metric; name one of the runs' metrics.jsonl, such as rl/eval/reward"
            )
        ranges = [name for name, law in self.space.items() if isinstance(law, Range)]
        if self.law == "grid" and ranges:
            raise InputError(f"space: a grid is of lists, got a range of {ranges[0]}")
        if self.law != "grid" and (type(self.trials) is not int or self.trials < 1):
            raise InputError(
                f"trials: the sampler {self.law} must be told how many points to draw, "
                f"got {self.trials!r}"
            )
        if self.law not in OWN and len(self.points) > 1:
            raise InputError(f"points: {self.law} chooses its own, got {self.points}")
        if self.law not in OWN and not self.space:
            raise InputError(f"space: {self.law} must have something to choose")

    @property
    def law(self) -> str:
        """The sampler, also where the file leaves it open."""
        free = any(isinstance(law, Range) for law in self.space.values())
        return self.sampler or ("random" if free else "grid")


def trials(sweep: Sweep) -> list[Trial]:
    """The trials, each at its index.

    Args:
      sweep: of the file.

    Returns:
      ``points × seeds`` trials, the seeds of a point beside each other. More ``trials``
      leave those before as they are.

    Example:
      >>> law = {"beta": [0.1, 1.0], "lora.rank": [8]}
      >>> for trial in trials(Sweep(run="train rl", space=law, seeds=2)):
      ...     print(trial.index, trial.point, trial.options)
      0 0 {'beta': 0.1, 'lora.rank': 8, 'seed': 0}
      1 0 {'beta': 0.1, 'lora.rank': 8, 'seed': 1}
      2 1 {'beta': 1.0, 'lora.rank': 8, 'seed': 0}
      3 1 {'beta': 1.0, 'lora.rank': 8, 'seed': 1}
    """
    if sweep.law == "grid":
        names = list(sweep.space)
        grid = itertools.product(*sweep.space.values())
        drawn = [dict(zip(names, values, strict=True)) for values in grid]
        points = [{**own, **more} for own in sweep.points for more in drawn]
    elif sweep.law == "random":
        points = [_drawn(sweep, number) for number in range(sweep.trials or 0)]
    else:
        points = [{}] * (sweep.trials or 0)
    several = range(sweep.seeds)
    return [
        Trial(
            index=point * sweep.seeds + seed,
            point=point,
            options=options | ({"seed": seed} if sweep.seeds > 1 else {}),
        )
        for point, options in enumerate(points)
        for seed in several
    ]


def _drawn(sweep: Sweep, number: int) -> dict[str, Any]:
    # A point's draw depends on its number alone: any of them can be had by itself.
    rng = np.random.default_rng((sweep.seed, number))
    options = dict(sweep.points[int(rng.integers(len(sweep.points)))])
    for name, law in sweep.space.items():
        if not isinstance(law, Range):
            options[name] = law[int(rng.integers(len(law)))]
            continue
        low, high = (math.log(x) for x in law[:2]) if law.log else law[:2]
        if law.whole:
            # Each number has the stretch of half a unit about it, or its logarithm.
            low, high = law.low - 0.5, law.high + 0.5
            low, high = (math.log(low), math.log(high)) if law.log else (low, high)
        value = rng.uniform(low, high)
        value = math.exp(value) if law.log else value
        value = round(value) if law.whole else float(f"{value:.6g}")
        options[name] = min(max(value, law.low), law.high)
    return options


def whole(sweep: Sweep, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a trial, groups nested: the sweep's base with the trial's own."""
    tree: dict[str, Any] = {}
    for name, value in [*flat(sweep.base).items(), *flat(options).items()]:
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return tree


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted names, whether they were nested or dotted."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


class Target(NamedTuple):
    """What a trial runs."""

    config: type
    """Of its options."""
    command: tuple[str, ...]
    """The process, before the options."""
    module: str
    vmapped: tuple[str, ...]
    """The options in which runs of one program may differ; none for no such program."""


def target(run: str) -> Target:
    """What ``run`` of a sweep's file names.

    Args:
      run: ``train rl`` and its like, or a module's name.

    Returns:
      its configuration and its command.

    Raises:
      InputError: there is none such.
    """
    words = tuple(run.split())
    if words in cli.VERBS and words[0] == "train":
        name = cli.VERBS[words][0]
        command = (sys.executable, "-m", "alignax.cli", *words)
    else:
        name, command = run, (sys.executable, "-m", run)
        if os.getcwd() not in sys.path:  # as `python -m` has it
            sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
        config = module.Config
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(" ".join(w) for w in cli.VERBS if w[0] == "train")
        raise InputError(
            f"run must be one of {known}, or a module with a Config such as "
            f"experiments.grpo_arithmetic, got {run!r}"
        ) from None
    return Target(config, command, name, tuple(getattr(module, "VMAPPED", ())))


def arguments(sweep: Sweep, kind: type, options: Mapping[str, Any]) -> list[str]:
    """The options of a trial as a command line gives them, less the folder.

    Raises:
      InputError: there is no such option, or the sweep sets it itself.
    """
    given = whole(sweep, options)
    for name in PLACE:
        if name in given:
            raise InputError(f"{name}: a sweep sets it for each trial; leave it out")
    return configs.flags(kind, given, where="a trial's options")


def read(path: str | Path) -> Sweep:
    """A sweep's file.

    Args:
      path: a YAML file, whose keys are the fields of ``Sweep``.

    Returns:
      the sweep, every name of an option checked.

    Raises:
      InputError: it cannot be read, or says something that cannot be.
    """
    given = configs.loaded(path, what="sweep")
    if not isinstance(given, Mapping):
        raise InputError(f"sweep: {path} must hold keys and values, such as run")
    fields = {field.name for field in dataclasses.fields(Sweep)}
    unknown = [str(key) for key in given if key not in fields]
    if unknown or "run" not in given:
        said = f"got {unknown[0]!r}" if unknown else "got no run"
        raise InputError(
            f"sweep: {path} must have run, and may have {', '.join(sorted(fields))}; "
            f"{said}"
        )
    given = dict(given)
    for name in ("base", "space"):
        if not isinstance(given.setdefault(name, {}), Mapping):
            raise InputError(f"{name} must be options by their names, in {path}")
    points = given.setdefault("points", [{}])
    if not isinstance(points, list) or not all(isinstance(p, Mapping) for p in points):
        raise InputError(f"points must be a list of options by their names, in {path}")
    given["points"] = tuple(_numbers(flat(point)) for point in points)
    given["space"] = {str(k): _law(str(k), v) for k, v in given["space"].items()}
    given["rungs"] = tuple(given.get("rungs", ()))
    sweep = Sweep(**given)
    kind = target(sweep.run).config
    for trial in trials(sweep):
        arguments(sweep, kind, trial.options)
    # Of points that are still to be proposed.
    example = {name: "" for name in sweep.space}
    arguments(sweep, kind, example)
    return sweep


def _numbers(value: Any) -> Any:
    """Texts such as 1e-5, which YAML takes for no number, as numbers."""
    if isinstance(value, Mapping):
        return {name: _numbers(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_numbers(x) for x in value]
    number = value_of(value) if isinstance(value, str) else value
    return number if isinstance(number, int | float) else value


def _law(name: str, value: Any) -> Any:
    value = _numbers(value)
    if isinstance(value, list) and value:
        return value
    bounds = value if isinstance(value, Mapping) else {}
    low, high = bounds.get("low"), bounds.get("high")
    numbers = [
        x for x in (low, high) if isinstance(x, int | float) and not isinstance(x, bool)
    ]
    if (
        set(bounds) - {"low", "high", "log"}
        or len(numbers) < 2
        or not (-math.inf < numbers[0] < numbers[1] < math.inf)
        or (bounds.get("log") and not numbers[0] > 0)
    ):
        raise InputError(
            f"space: {name} must be a list, or low and high with low below high "
            f"(above 0 with log: true), got {value!r}"
        )
    return Range(numbers[0], numbers[1], bool(bounds.get("log", False)))
