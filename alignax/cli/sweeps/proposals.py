"""Points that Optuna's samplers propose; the package is the extra ``sweep``.

The study is a journal in the sweep's folder. A point is asked for once, by whoever
does its first trial, and kept in ``points``; results are told to the study from the
trials' folders before the next is asked for, so that nothing is lost where a sweep is
killed.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

from alignax.cli.sweeps import folder, space
from alignax.cli.sweeps.space import Range, Sweep, Trial
from alignax.types import InputError

SAMPLERS = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
    "qmc": "QMCSampler",
}


def settled(sweep: Sweep, out: Path, trial: Trial) -> dict[str, Any]:
    """The options of a trial, where need be proposed now.

    Args:
      sweep: of the file.
      out: the sweep's folder.
      trial: of ``space.trials``.

    Returns:
      its own options.

    Raises:
      InputError: there is no such sampler, or Optuna is not installed.
    """
    if sweep.law in space.OWN:
        return dict(trial.options)
    path = _path(out, trial.point)
    with folder.locked(out / "points" / ".lock", wait=True):
        if not path.is_file():
            _propose(sweep, out, trial.point)
    return json.loads(path.read_text())["options"] | dict(trial.options)


def known(sweep: Sweep, out: Path, trial: Trial) -> dict[str, Any]:
    """The options of a trial as far as they are known."""
    path = _path(out, trial.point)
    if sweep.law in space.OWN or not path.is_file():
        return dict(trial.options)
    return json.loads(path.read_text())["options"] | dict(trial.options)


def _path(out: Path, point: int) -> Path:
    return out / "points" / f"{point:04d}.json"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(
            "sampler: this one is Optuna's, which is not installed; `pip install "
            "alignax[sweep]` brings it, and grid and random do without"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _propose(sweep: Sweep, out: Path, point: int) -> None:
    if sweep.law not in SAMPLERS:
        raise InputError(
            f"sampler must be one of {', '.join((*space.OWN, *SAMPLERS))}, got "
            f"{sweep.law!r}"
        )
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            study = _study(optuna, sweep, out, point)
            _tell(optuna, study, sweep, out)
            laws = {name: _law(optuna, law) for name, law in sweep.space.items()}
            asked = study.ask(laws)
        except ImportError as error:
            raise InputError(
                f"sampler: Optuna's {sweep.law} needs the package {error.name}; "
                "install it, or take another"
            ) from None
    content = {"number": asked.number, "options": asked.params}
    folder.write(_path(out, point), content)


def _study(optuna: Any, sweep: Sweep, out: Path, point: int) -> Any:
    from optuna.storages.journal import JournalFileBackend

    kind, extra = getattr(optuna.samplers, SAMPLERS[sweep.law]), {}
    if sweep.law == "tpe":
        # Points under way count as bad ones, so that workers look elsewhere.
        extra = {"constant_liar": True}
    backend = JournalFileBackend(str(out / "points" / "journal.log"))
    return optuna.create_study(
        study_name="sweep",
        storage=optuna.storages.JournalStorage(backend),
        sampler=kind(seed=sweep.seed + point, **extra),
        direction="maximize" if sweep.goal == "max" else "minimize",
        load_if_exists=True,
    )


def _law(optuna: Any, law: Any) -> Any:
    if not isinstance(law, Range):
        return optuna.distributions.CategoricalDistribution(law)
    kind = "IntDistribution" if law.whole else "FloatDistribution"
    return getattr(optuna.distributions, kind)(law.low, law.high, log=law.log)


def _tell(optuna: Any, study: Any, sweep: Sweep, out: Path) -> None:
    """What the folders know and the study does not."""
    points = {}
    for path in (out / "points").glob("[0-9]*.json"):
        points[json.loads(path.read_text())["number"]] = int(path.stem)
    state = optuna.trial.TrialState
    for waiting in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        if waiting.number not in points:
            # The sweep was killed between the question and its note.
            study.tell(waiting.number, state=state.FAIL)
            continue
        first = points[waiting.number] * sweep.seeds
        several = range(first, first + sweep.seeds)
        found = [folder.status(folder.of(out, index)) for index in several]
        if any(status.state not in ("done", "failed") for status in found):
            continue
        values = [folder.value_at(s, sweep.metric or "") for s in found]
        there = [x for x in values if x is not None and math.isfinite(x)]
        if len(there) < len(values) or any(s.state == "failed" for s in found):
            study.tell(waiting.number, state=state.FAIL)
        else:
            study.tell(waiting.number, sum(there) / len(there))
