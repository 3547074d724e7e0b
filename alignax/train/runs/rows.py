"""What runs on given rows share: pairs, labelled completions, answers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from alignax.pipeline import data, hosts, metrics
from alignax.pipeline.data.rows import answer_ids
from alignax.train import loop, tasks
from alignax.train.policy import Policy
from alignax.train.runs import measure, setting, watch
from alignax.train.runs.options import Model, Output
from alignax.train.runs.setting import Sets
from alignax.train.supervised import SFT
from alignax.types import InputError, Params, Prompts, Supervised, TrainState

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""A numerator and a denominator ``[N]`` of each metric, of N rows."""


WHOLE = {"process_index": 0, "process_count": 1}
"""Every process reads all rows; the compiled functions split them over the devices."""


class HeldOut(NamedTuple):
    """Batches of rows to measure on, and which of their rows count."""

    batches: list[Any]
    real: list[np.ndarray]


def check(length: int | None, batch_size: int, microbatches: int) -> None:
    """Refuse a length that is not positive, and parts that are not equal."""
    if length is not None and length < 1:
        raise InputError(f"length must be at least 1, got {length}")
    if microbatches < 1 or batch_size % microbatches:
        raise InputError(
            f"microbatches must divide the batch_size of {batch_size}, got "
            f"{microbatches}"
        )


def listed(records: data.Records) -> list[Mapping[str, Any]]:
    """All records, in a list."""
    return [records[i] for i in range(len(records))]


def settled(
    config: Any,
    training: SFT,
    sets: Sets,
    texts: Callable[[Mapping[str, Any]], Sequence[Any]],
    policy: Policy,
    *,
    rate: float,
) -> Any:
    """A configuration with its length and its learning rate filled in.

    Args:
      config: with ``length``, ``training``, ``data`` and ``model``.
      training: its own.
      sets: the records.
      texts: of a record: its prompt and answers.
      policy: of the model.
      rate: the learning rate by default.

    Returns:
      the configuration.

    Raises:
      InputError: the length is beyond the model's context.
    """
    length = config.length
    if length is None:
        length = data.lengths(
            map(texts, listed(sets.train)),
            policy.tokenizer,
            percentile=config.data.percentile,
            multiple=setting.MULTIPLE,
        ).row
        # Rounded up beyond the context, or a few rows are: those are left out.
        length = min(length, policy.config.max_length)
    setting.fits(policy, {"length": length}, config.model.folder)
    if training.learning_rate is None:
        training = dataclasses.replace(training, learning_rate=rate)
    return dataclasses.replace(config, length=length, training=training)


def settled_prompts(config: Any, sets: Sets, policy: Policy, *, rate: float) -> Any:
    """The same of a configuration with ``prompt_length`` and ``max_tokens``.

    Args:
      config: with these, ``training``, ``data`` and ``model``.
      sets: the records.
      policy: of the model.
      rate: the learning rate by default.

    Returns:
      the configuration.

    Raises:
      InputError: a prompt and a completion do not fit the model's context.
    """
    prompt_length, max_tokens = setting.lengths_of(
        config.data,
        sets,
        policy,
        prompt_length=config.prompt_length,
        max_tokens=config.max_tokens,
    )
    lengths = {"prompt_length": prompt_length, "max_tokens": max_tokens}
    setting.fits(policy, lengths, config.model.folder)
    training = config.training
    if training.learning_rate is None:
        training = dataclasses.replace(training, learning_rate=rate)
    return dataclasses.replace(config, **lengths, training=training)


def prompts_of(config: Any, sets: Sets, policy: Policy, *, size: int) -> Any:
    """Batches of prompts, of a configuration with nothing left open.

    Args:
      config: with ``prompt_length`` and ``output``.
      sets: the records.
      policy: whose tokenizer encodes them.
      size: prompts in a batch.

    Returns:
      an iterator of ``Prompts``.
    """
    return data.prompt_batches(
        sets.train,
        policy.tokenizer,
        prompt=lambda record: data.prompt_text(record, policy.tokenizer),
        batch_size=size,
        length=config.prompt_length,
        seed=config.output.seed,
        on_long="drop",
        **WHOLE,
    )


def held_out(
    sets: Sets,
    encoded: Callable[[list[Mapping[str, Any]]], Any],
    output: Output,
    *,
    count: int,
) -> HeldOut | None:
    """Rows to measure on, in batches of one shape.

    Args:
      sets: the records.
      encoded: ``records -> rows``, a pytree with the rows first.
      output: says how many records.
      count: rows in a batch.

    Returns:
      the batches; None where nothing is held out.
    """
    if sets.held_out is None:
        return None
    most = min(len(sets.held_out), output.evaluate_prompts)
    rows = encoded([sets.held_out[i] for i in range(most)])
    total = len(jax.tree.leaves(rows)[0])
    count = min(count, total)
    batches, real = [], []
    for start in range(0, total, count):
        # The last batch is filled up with rows that do not count.
        places = np.arange(start, start + count)
        real.append(places < total)
        batches.append(jax.tree.map(lambda x, at=places % total: x[at], rows))
    return HeldOut(batches, real)


def evaluator(
    measured: Callable[[Params, Any], Sums], held: HeldOut
) -> Callable[[TrainState], dict[str, float]]:
    """``state -> metrics`` on what is held out, with half-widths of 95 % intervals.

    A metric is ``r = Σ a / Σ b`` over rows; its half-width
    ``1.96 · √(n/(n−1) · Σ (a − r b)²) / Σ b``.

    Args:
      measured: ``(params, batch) -> sums``, compiled.
      held: the batches.

    Returns:
      the function.
    """

    def evaluate(state):
        parts = [
            jax.device_get(hosts.fetch(measured(state.params, batch)))
            for batch in held.batches
        ]
        values = {}
        for name in parts[0]:
            a, b = (
                np.concatenate(
                    [
                        np.asarray(part[name][i], np.float64)[real]
                        for part, real in zip(parts, held.real, strict=True)
                    ]
                )
                for i in (0, 1)
            )
            total, n = max(float(b.sum()), 1e-30), len(a)
            ratio = float(a.sum()) / total
            spread = float(np.sum((a - ratio * b) ** 2)) * n / max(n - 1, 1)
            values |= {name: ratio, f"{name}_half": 1.96 * spread**0.5 / total}
        return values

    return evaluate


def train(
    config: Any,
    output: Output,
    *,
    model: Model,
    kind: str,
    steps: int,
    shown: tuple[str, ...],
    state: TrainState,
    batches: loop.Batches,
    step: loop.Step,
    drawn: Sequence[str],
    held_out: HeldOut | None = None,
    measured: Callable[[Params, Any], Sums] | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    counted: Callable[[], int] | None = None,
) -> tuple[TrainState, list[metrics.Row]]:
    """Run the only phase of such a run, and draw its curves.

    Args:
      config: of the run, with nothing left open.
      output: its folder.
      model: that it begins from.
      kind: the run's; the phase's name as well.
      steps: of the optimiser.
      shown: the metrics that the progress shows.
      state: at step 0.
      batches: of rows, or of prompts.
      step: ``(state, batch) -> (state, metrics)``.
      drawn: the metrics that the picture shows.
      held_out: rows to measure on.
      measured: ``(params, batch) -> sums``.
      evaluate: ``state -> metrics``, where it is no sum over rows.
      counted: tokens of the step that was taken last, where the batch has no rows.

    Returns:
      the state at the end, and the rows of the log.
    """
    if held_out is not None and measured is not None:
        evaluate = evaluator(measured, held_out)

    def tokens(batch: Any) -> int:
        return counted() if counted else sum(map(_tokens, _sides(batch)))

    watched = watch.watched(step, tokens)
    phase = loop.Phase(name=kind, steps=steps, shown=shown)
    patience = model.mesh.timeout
    with loop.open_log(
        output.out, [phase], resume=output.resume, timeout=patience
    ) as writer:
        setting.begin(config, output, kind=kind, model=model, phase=kind)
        state = loop.train(
            state,
            batches,
            watched.step,
            phase=phase,
            number=0,
            out=output.out,
            config=setting.compared(config),
            writer=writer,
            evaluate=evaluate,
            evaluate_every=output.evaluate_every,
            save_every=output.save_every,
        )
        watched.finish()
    log = metrics.read(output.out)
    if jax.process_index() == 0:
        measure.draw(output.out / "curves.png", log, kind, drawn)
    return state, log


def _sides(batch: Any) -> Iterable[Supervised]:
    return [
        x
        for x in jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Supervised))
        if isinstance(x, Supervised)
    ]


def _tokens(rows: Supervised) -> int:
    return int(np.sum(np.asarray(rows.mask)))


def guide_of(
    sets: Sets, tokenizer: data.Tokenizer, length: int
) -> Callable[[Prompts], Prompts] | None:
    """What gives prompts their demonstrations, where the records have some.

    Args:
      sets: the records.
      tokenizer: encodes them.
      length: of the guides, in tokens.

    Returns:
      ``prompts -> prompts`` with guides; None where no record has one.
    """
    field = None if sets.format == "completions" else "solution"
    if field is not None and not isinstance(sets.train[0].get(field), str):
        return None

    def guide(prompts: Prompts) -> Prompts:
        answers = []
        for number in np.asarray(prompts.index):
            record = sets.train[int(number)]
            if field is not None:
                record = {"prompt": record["prompt"], "completion": record[field]}
                if not isinstance(record["prompt"], str):
                    record = data.as_chat(record)
            _, answer = data.supervised_texts(record, tokenizer)
            answers.append(answer_ids(answer, tokenizer))
        return tasks.guided(prompts, answers, length=length, pad_id=tokenizer.pad_id)

    return guide


def preferences(
    sets: Sets, tokenizer: data.Tokenizer, length: int, size: int, seed: int
) -> Any:
    """Batches of pairs or of labelled completions, of one width.

    Args:
      sets: the records.
      tokenizer: encodes them.
      length: the width in tokens; longer records are left out.
      size: rows in a batch.
      seed: of the order.

    Returns:
      an iterator of ``PairRows`` or ``UnpairedRows``.
    """
    make = data.pair_batches if sets.format == "pairs" else data.unpaired_batches
    return make(
        sets.train,
        tokenizer,
        lengths=(length,),
        tokens_per_batch=size * length,
        seed=seed,
        on_long="drop",
        **WHOLE,
    )


def encoder(
    format: str, tokenizer: data.Tokenizer, length: int
) -> Callable[[list[Mapping[str, Any]]], Any]:
    """``records -> rows`` of pairs or of labelled completions, cut to a width.

    Args:
      format: ``pairs`` or ``labelled``.
      tokenizer: encodes them.
      length: the width in tokens.

    Returns:
      the function.
    """

    def encoded(records):
        if format == "pairs":
            texts = [data.pair_texts(record, tokenizer) for record in records]
            return data.encode_pairs(
                texts, tokenizer, length=length, on_long="truncate"
            )
        return data.encode_unpaired(
            [data.labelled_texts(record, tokenizer) for record in records],
            [record["label"] for record in records],
            tokenizer,
            length=length,
            on_long="truncate",
        )

    return encoded
