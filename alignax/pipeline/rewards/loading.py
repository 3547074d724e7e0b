"""Rewards from how a command line spells them.

=========================================== ==========================================
spelling                                    reward
=========================================== ==========================================
``FILE.py:function``                        your own ``(completions, records) -> [N]``
``exact``, ``numeric``, ``math_verify``     an answer in the record's field ``answer``
``reasoning_gym``                           the verifier of a generated problem
``sentiment``, ``fluency``, ``review``      of words
``length,target=40``                        words, as near to a number as may be
``overlong,most=60,buffer=20``              words, no more than a number
``format,pattern=REGEX``                    the form
``judge:FILE.py:function,rubric=TEXT``      your own judge (``rewards.Judge``)
``2*SPELLING``                              any of these, times a weight
=========================================== ==========================================
"""

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignax import spelling
from alignax.pipeline.rewards import builtin
from alignax.pipeline.rewards.fluency import fluency, review
from alignax.pipeline.rewards.judges import Rubric, judged
from alignax.pipeline.rewards.matches import Reward, real_numbers, weighted_sum
from alignax.types import InputError, RunError

BUILTIN: dict[str, Callable[..., Reward]] = {
    "exact": builtin.exact_answer,
    "numeric": builtin.numeric_answer,
    "math_verify": builtin.math_answer,
    "reasoning_gym": builtin.reasoning_gym_answer,
    "sentiment": builtin.sentiment,
    "fluency": fluency,
    "review": review,
    "length": builtin.target_length,
    "overlong": builtin.overlong,
    "format": builtin.matching,
}
_WEIGHT = re.compile(r"\s*([-+0-9.eE]+)\s*\*(?=[^*])")


def weight_of(text: str) -> tuple[float, str]:
    """The weight in front of a star, 1 without one, and the rest."""
    match = _WEIGHT.match(text)
    if match is None:
        return 1.0, text
    with contextlib.suppress(ValueError):
        weight = float(match[1])
        if np.isfinite(weight):
            return weight, text[match.end() :]
    raise InputError(
        f"reward: {text!r} was given; a number before the star would do, as in 2*exact."
    )


def load_reward(text: str) -> Reward:
    """A reward from its spelling, without a weight.

    Args:
      text: as this module's table has it; a file's path is relative to the working
        folder, and options behind it are the function's keyword arguments.

    Returns:
      the reward; it refuses by name what returns anything but a real number for each
      completion.

    Raises:
      InputError: there is none of that name; a file or its function is missing, fails
        to load, or is no function; or an option is not the reward's.

    Example:
      >>> load_reward("exact,field=key")(["7"], [{"key": "7"}]).tolist()
      [1.0]
    """
    name, options = spelling.spelled(text)
    if name.startswith("judge:"):
        reward = _judge(name.removeprefix("judge:"), options)
    elif name in BUILTIN:
        reward = spelling.bound(BUILTIN[name], options, name)
    elif ".py" in name:
        reward = _from_file(name, options)
    else:
        raise InputError(
            f"reward: {text!r} was given; FILE.py:function would do, or one of "
            f"{', '.join(BUILTIN)}, or judge:FILE.py:function,rubric=TEXT."
        )

    def named(completions, records):
        values = reward(completions, records)
        return real_numbers(values, len(completions), f"reward {name}")

    return named


def load_function(name: str, what: str = "reward") -> Callable[..., Any]:
    """A function of the user's own file.

    Args:
      name: ``FILE.py:function``, relative to the working folder.
      what: the option that it was given for, which errors name.

    Returns:
      the function.

    Raises:
      InputError: the file or its function is missing, fails to load or is none.
    """
    path, _, attribute = name.rpartition(":")
    file = Path(path or name)
    if not path.endswith(".py") or not attribute.isidentifier():
        raise InputError(f"{what}: {name!r} was given; FILE.py:function would do.")
    if not file.is_file():
        raise InputError(
            f"{what}: there is no file {str(file)!r} (from {str(Path.cwd())!r}); a "
            "Python file of yours would do, as in FILE.py:function."
        )
    try:
        module = _module(file.resolve())
    except InputError as error:
        raise InputError(f"{what}: {error}") from error.__cause__
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        found = "no function" if function is None else f"a {type(function).__name__}"
        raise InputError(
            f"{what}: {attribute!r} is {found} in {str(file)!r}; its functions are "
            f"{', '.join(public) or 'none'}."
        )
    return function


def _from_file(name: str, options: dict[str, str]) -> Callable[..., Any]:
    """The user's own reward, with its options bound."""
    function = load_function(name)
    given = {key: spelling.value_of(value) for key, value in options.items()}
    try:
        inspect.signature(function).bind([], [], **given)
    except TypeError as error:
        raise InputError(
            f"reward: {name} cannot be called with (completions, records"
            + "".join(f", {key}=…" for key in given)
            + f"): {error}."
        ) from error
    return functools.partial(function, **given)


@functools.lru_cache(maxsize=64)
def _module(file: Path) -> Any:
    """The user's own file as a module, run once."""
    # Files of one name in two folders are two modules.
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}_{digest}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{str(file)!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise InputError(
            f"{str(file)!r} failed as it was loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def _judge(name: str, options: dict[str, str]) -> Reward:
    if set(options) != {"rubric"}:
        raise InputError(
            f"reward: judge:{name} was given with the options "
            f"{', '.join(options) or 'none'}; rubric=TEXT would do."
        )
    judge = load_function(name)
    rubric = Rubric(text=options["rubric"])

    def reward(completions, records):
        prompts = builtin.fields_of(records, "prompt", "judge")
        texts = [p if isinstance(p, str) else json.dumps(p) for p in prompts]
        return judged(judge, texts, list(completions), rubric=rubric)

    return reward


def load_rewards(texts: Sequence[str], *, on_error: str = "nan") -> Reward:
    """The weighted sum of rewards, one that fails on a completion said and survived.

    Args:
      texts: spellings, each with its weight where it has one.
      on_error: ``"nan"`` is what a completion gets on which a reward raises, with a
        warning that names the record; ``"raise"`` ends the run. What a reward refuses
        as bad input always does.

    Returns:
      the reward.

    Raises:
      InputError: as ``load_reward``; or ``on_error`` is neither.

    Example:
      >>> reward = load_rewards(["2*exact", "-0.5*length,target=2"])
      >>> reward(["7"], [{"answer": "7"}]).tolist()
      [2.25]
    """
    check_on_error(on_error)
    terms = []
    for text in texts:
        weight, rest = weight_of(text)
        terms.append((weight, survived(load_reward(rest), rest, on_error)))
    return weighted_sum(terms)


def check_on_error(on_error: str) -> None:
    if on_error not in ("nan", "raise"):
        raise InputError(
            f'on_error: {on_error!r} was given; "nan" or "raise" would do.'
        )


def survived(reward: Reward, name: str, on_error: str) -> Reward:
    """One call for all; where it raises, one for each completion, to find which."""

    def each(completions, records):
        try:
            return reward(completions, records)
        except (InputError, RunError):
            raise
        except Exception as error:
            if len(completions) == 1:
                failed(name, records[0], 0, said(error), on_error)
                return np.full(1, np.nan, np.float32)
        values = []
        for i, (text, record) in enumerate(zip(completions, records, strict=True)):
            try:
                values.append(reward([text], [record])[0])
            except (InputError, RunError):
                raise
            except Exception as error:
                failed(name, record, i, said(error), on_error)
                values.append(np.nan)
        return np.array(values, np.float32)

    return each


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def failed(name: str, record: Any, i: int, why: str, on_error: str) -> None:
    """Say which record a reward failed on, or end the run with it."""
    message = (
        f"the reward {name} failed for record {record.get('index', i)} (completion "
        f"{i}): {why}"
    )
    if on_error == "raise":
        raise RunError(message)
    print(f"warning: {message}", file=sys.stderr, flush=True)
