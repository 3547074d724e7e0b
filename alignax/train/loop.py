"""The host's loop around a step: resume, log, evaluate, save."""

import contextlib
import dataclasses
import fcntl
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from alignax.pipeline import beats, checkpoint, metrics, seals
from alignax.train import diagnosis
from alignax.types import InputError, Preempted, RunError, TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


@runtime_checkable
class Batches(Protocol):
    """An iterator whose position can be saved, as grain's are."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a run with its own train state: its folder's name, its length,
    and the metrics that its progress shows."""

    name: str
    steps: int
    shown: tuple[str, ...] = ("reward", "kl", "entropy")


def starts(phases: list[Phase]) -> list[int]:
    """The log's number of each phase's start: its own, so that no two rows of
    different phases share one."""
    numbers = [0]
    for phase in phases[:-1]:
        numbers.append(numbers[-1] + phase.steps + 1)
    return numbers


def resume_step(out: Path, phases: list[Phase]) -> int:
    """The log's number that the whole checkpoints below ``out`` reach; −1 without any.

    Where a phase has not reached its end, what the later ones have computed is of
    another run: their folders are set aside, with a warning.
    """
    numbers = starts(phases)
    for i, (phase, start) in enumerate(zip(phases, numbers, strict=True)):
        done = None
        if (out / phase.name).exists():
            with checkpoint.open_run(out / phase.name) as checkpoints:
                done = checkpoint.latest_step(checkpoints)
        if done is None or done < phase.steps:
            for later in phases[i + 1 :]:
                if (out / later.name).exists():
                    moved = seals.set_aside(out / later.name)
                    _warn(
                        f"{later.name} is computed again, as {phase.name} before "
                        f"it is; what there was is in {moved}"
                    )
            return start - 1 if done is None else start + done
    return numbers[-1] + phases[-1].steps


def check_folder(out: Path, *, resume: bool) -> None:
    """Refuse to write over a run, or to resume where there is none.

    Raises:
      InputError: ``out`` holds a run and ``resume`` is off, or the other way round.
    """
    holds_run = (out / "metrics.jsonl").exists()
    if holds_run and not resume:
        raise InputError(
            f"out: {out} holds a run already; add --resume to go on with it, or give "
            "another folder"
        )
    if resume and not holds_run:
        raise InputError(
            f"resume: {out} holds no run to go on with; leave --resume out to start one"
        )


@contextlib.contextmanager
def open_log(out: Path, phases: list[Phase], *, resume: bool, timeout: float = 0.0):
    """The run's log, in a context that no other process has the run's folder in; of a
    resumed run, put back to its last whole checkpoint.

    Args:
      out: the run's folder.
      phases: of the run.
      resume: whether to go on with what is there.
      timeout: of ``beats.watched``, where there are several processes.

    Raises:
      InputError: another process is at work in ``out``.
    """
    with _only_process(out):
        last = resume_step(out, phases) if resume else None
        with metrics.Writer(out, resume_step=last) as writer:
            if last is not None and jax.process_index() == 0:
                _warn_of_gaps(out, phases, last)
            with beats.watched(out, patience=timeout):
                yield writer


@contextlib.contextmanager
def _only_process(out: Path):
    if jax.process_index() != 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    # The operating system lets go of it when the process ends, however it does.
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"out: another process is at work in {out}; wait for its end, or give "
                "another folder"
            ) from None
        except OSError as error:
            _warn(
                f"{out} cannot be locked ({error}): see that no other process uses it"
            )
        yield


def _warn_of_gaps(out: Path, phases: list[Phase], last: int) -> None:
    logged = {row["step"] for row in metrics.read(out)}
    steps = [
        (phase.name, done)
        for phase, start in zip(phases, starts(phases), strict=True)
        for done in range(1, phase.steps + 1)
        if start + done <= last and start + done not in logged
    ]
    if steps:
        name, done = steps[0]
        _warn(
            f"{out / metrics.FILE} lacks the rows of {len(steps)} steps before the "
            f"checkpoint, the first is step {done} of {name}; curves will have gaps"
        )


def saved_config(config: Any, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration as JSON, for the checkpoints to compare with, less what may
    differ when a run goes on."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("out", "resume", *but)
    }


def train(
    state: TrainState,
    data: Batches,
    step: Step,
    *,
    phase: Phase,
    number: int,
    out: Path,
    config: dict[str, Any],
    writer: metrics.Writer,
    evaluate: Callable[[TrainState], dict[str, Any]] | None = None,
    evaluate_every: int = 0,
    save_every: int = 50,
    stop_after_skips: int = 5,
) -> TrainState:
    """Run a phase from where its checkpoints left off to its end.

    A resumed phase logs and computes what an unbroken one would have: the train
    state, the data's position and the log are put back to the last checkpoint.

    Args:
      state: fresh; replaced by the checkpoint's where there is one.
      data: a grain iterator; its position is saved.
      step: ``(state, batch) -> (state, metrics)``; donates the state.
      phase: its name is the checkpoints' folder and the prefix of its metrics.
      number: the log's number of the phase's start.
      out: the run's folder.
      config: of the experiment; a checkpoint of another one is refused.
      writer: of the log.
      evaluate: ``state -> metrics``, called at the start, every ``evaluate_every``
        steps and at the end.
      evaluate_every: 0 for the start and the end alone.
      save_every: steps from checkpoint to checkpoint; the end is always saved, and the
        beginning never: a run that has no checkpoint begins again.
      stop_after_skips: updates in a row that may be skipped because a number was not
        finite; each one is said on standard error.

    Returns:
      the state at the end.

    Raises:
      RunError: as many updates in a row were skipped, or a parameter is not finite
        where a checkpoint is due. Checkpoints hold the parameters before that.
      Preempted: SIGTERM came; the step that was under way is saved.
    """

    prefix = f"{phase.name}/"

    def log(done, values, kind=""):
        named = {f"{prefix}{kind}{name}": value for name, value in values.items()}
        row = writer.log(number + done, named)
        return {name.removeprefix(prefix): value for name, value in row.items()}

    def refuse_nonfinite(done, state):
        _refuse_nonfinite(done, {"params": state.params, "critic": state.critic}, phase)

    def save(done, state):
        refuse_nonfinite(done, state)
        writer.flush()
        position = data.get_state()
        checkpoint.save(checkpoints, done, state, data_state=position, config=config)

    with (
        contextlib.ExitStack() as stack,
        checkpoint.open_run(out / phase.name) as checkpoints,
        metrics.progress(
            phase.steps,
            initial=checkpoint.latest_step(checkpoints) or 0,
            description=phase.name,
            names=phase.shown,
        ) as show,
    ):
        if checkpoint.latest_step(checkpoints) is None:
            if evaluate is not None:
                log(0, evaluate(state), "eval/")
            # Its checkpoint would be the beginning, which a run without one has.
            refuse_nonfinite(0, state)
            writer.flush()
        else:
            state, position = checkpoint.restore(checkpoints, state, config=config)
            data.set_state(position)
        told = stack.enter_context(_told_to_stop())
        watch = _watch(state, phase=phase, stop_after_skips=stop_after_skips)
        for done in range(int(state.step) + 1, phase.steps + 1):
            state, values = step(state, next(data))
            values, found = diagnosis.split(values)
            show(done, log(done, values))
            watch(done, state, values, found)
            last = done == phase.steps
            due = evaluate_every and done % evaluate_every == 0
            if evaluate is not None and (last or due):
                log(done, evaluate(state), "eval/")
            stop = not last and told(done)
            if last or stop or done % save_every == 0:
                save(done, state)
            if stop:
                raise Preempted(
                    f"{phase.name} was told to stop and did, at step {done} of "
                    f"{phase.steps}, which is saved; the same command goes on with "
                    "--resume"
                )
        watch(phase.steps, None, {}, {})
    return state


@contextlib.contextmanager
def _told_to_stop():
    """``step -> truth``: SIGTERM came, for all processes at the same step."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # JAX's own service hears the signal and agrees on the step.
        yield multihost_utils.reached_preemption_sync_point
        return
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda done: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(state: TrainState, *, phase: Phase, stop_after_skips: int):
    """``watch(done, state, values, found)`` says which updates were skipped, a step
    late, so that the host does not wait for the device."""
    skipped = int(state.counters.skipped)
    pending: tuple[int, Any, dict[str, Any], dict[str, Any]] | None = None

    def watch(done, state, values, found):
        nonlocal skipped, pending
        # The next step donates the state.
        now = None if state is None else jax.tree.map(jnp.copy, state.counters)
        pending, before = (done, now, values, found), pending
        if before is None or int(before[1].skipped) == skipped:
            return
        done, counters, values, found = before
        skipped, in_row = int(counters.skipped), int(counters.skipped_in_row)
        numbers = {name: float(value) for name, value in values.items()}
        bad = [f"{n} {x}" for n, x in numbers.items() if not np.isfinite(x)]
        bad = ", ".join(bad) or "what the optimiser made of a finite gradient"
        bad += diagnosis.said(found)
        _warn(
            f"step {done} of {phase.name} left the parameters as they were, not "
            f"finite: {bad}"
        )
        if in_row >= stop_after_skips:
            raise RunError(
                f"{phase.name} stopped at step {done}: {in_row} updates in a row were "
                f"skipped because numbers were not finite, at the end {bad}; the "
                "parameters are those before the first of them. Look at the rewards if "
                "they are among these, else lower the learning rate; then go on with "
                "--resume"
            )

    return watch


def _refuse_nonfinite(done: int, params: Any, phase: Phase) -> None:
    """Keep a checkpoint from taking the place of a good one."""
    good = jax.device_get(_finite(params))
    bad = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree.leaves_with_path(good)
        if not leaf
    ]
    if bad:
        why = (
            "the model that was given is damaged"
            if done == 0
            else "lower the learning rate, then go on with --resume"
        )
        raise RunError(
            f"{phase.name} stopped at step {done}, before its checkpoint: parameters "
            f"are not finite, {bad[0]} and {len(bad) - 1} more arrays; {why}"
        )


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        print(f"warning: {text}", file=sys.stderr, flush=True)
