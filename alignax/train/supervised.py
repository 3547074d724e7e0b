"""Maximum likelihood of answers, and the scores of answers that other steps share.

>>> from alignax.train import supervised
>>> def run(apply_fn, tx, state, batches):
...     step = supervised.make_step(supervised.score_by_logits(apply_fn), tx)
...     for batch in batches:  # of Supervised
...         state, metrics = step(state, batch)
...     return state
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from alignax import (
    controllers,
    logprobs,
    reduce,
    references,
)
from alignax.pipeline import update
from alignax.types import (
    ApplyFn,
    HiddenFn,
    InputError,
    Params,
    Supervised,
    TrainState,
)

ScoreFn = Callable[[Params, Supervised], Float[Array, "N T"]]
"""``(params, rows [N, S]) -> [N, S - 1]``: log-probabilities of the tokens after the
first, zero outside of the answers."""


FIXED = references.fixed()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT:
    """Maximum likelihood of the answers."""

    steps: int = 300
    """How many optimiser steps to take."""
    batch_size: int = 128
    """How many prompts with their answers a step learns from."""
    learning_rate: float | None = 2e-3
    """Learning rate at the peak of its warm-up and cosine schedule."""
    warmup: int | None = 20
    """Optimiser steps over which the learning rate rises from zero; None takes a tenth
    of all, 100 at the most."""
    clip_norm: float = 1.0
    """Largest norm of a gradient; a larger one is scaled down to it."""

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(
                f"learning_rate must be positive, got {self.learning_rate}"
            )


def optimiser(config: SFT) -> optax.GradientTransformation:
    """AdamW that warms up and decays to a tenth.

    Args:
      config: the schedule.

    Returns:
      an optax transformation.
    """
    return update.optimiser(
        learning_rate=update.given_rate(config.learning_rate),
        steps=config.steps,
        warmup=update.warmup_of(config.steps)
        if config.warmup is None
        else config.warmup,
        clip_norm=config.clip_norm,
        weight_decay=0.01,
        final_fraction=0.1,
    )


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    reference: Params | None = None,
) -> TrainState:
    """A train state at step 0, of a step without a regulariser.

    Args:
      params: copied.
      tx: the optimiser.
      key: the run's.
      reference: of losses that measure from one, copied.

    Returns:
      the state; its ``beta`` is 0.
    """
    held = None if reference is None else references.fixed().init(reference)
    controller = controllers.fixed(beta=0.0)
    return update.init_state(params, tx, controller, key, reference=held)


def answer_logits(
    apply_fn: ApplyFn, params: Params, rows: Supervised
) -> Float[Array, "N T V"]:
    """``[N, S - 1, V]``: the logits that predict the tokens after the first.

    Args:
      apply_fn: the model.
      params: its parameters.
      rows: ``[N, S]``.

    Returns:
      float32 logits.
    """
    return apply_fn(params, rows.tokens[:, :-1], mask=rows.mask[:, :-1]).logits


def score_by_logits(apply_fn: ApplyFn) -> ScoreFn:
    """Log-probabilities of answers' tokens, for any model.

    Args:
      apply_fn: the model.

    Returns:
      the scores' function; it holds the logits of all positions.
    """

    def score(params, rows):
        logits = answer_logits(apply_fn, params, rows)
        logp = logprobs.token_logp(logits, rows.tokens[:, 1:])
        return reduce.masked(logp, rows.loss_mask[:, 1:])

    return score


def score_by_hidden(hidden_fn: HiddenFn) -> ScoreFn:
    """The same without logits.

    Args:
      hidden_fn: the model up to its head.

    Returns:
      the scores' function; values and gradients are those of ``score_by_logits``.
    """

    def score(params, rows):
        out = hidden_fn(params, rows.tokens[:, :-1], mask=rows.mask[:, :-1])
        targets = rows.tokens[:, 1:]
        logp = logprobs.from_hidden(
            out.hidden.reshape(-1, out.hidden.shape[-1]),
            out.head,
            targets.reshape(-1),
            soft_cap=out.soft_cap,
        ).logp
        return reduce.masked(logp.reshape(targets.shape), rows.loss_mask[:, 1:])

    return score


def _loss_fn(score: ScoreFn, params: Params, batch: Supervised):
    nll, mask = -score(params, batch), batch.loss_mask[:, 1:]
    numerator, denominator = reduce.token_mean(nll, mask)
    rows = jnp.float32(len(nll))
    reports = {
        "answer_probability": (jnp.sum(jnp.exp(-jnp.sum(nll, axis=-1))), rows),
        "tokens": (denominator, rows),
    }
    return numerator, denominator, reports


def make_step(
    score: ScoreFn, tx: optax.GradientTransformation, *, microbatches: int = 1
) -> Callable[[TrainState, Supervised], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, rows) -> (state, metrics)``: jitted, the state donated.

    The loss is the mean over the batch's answer tokens, whatever the microbatches.

    Args:
      score: of answers' tokens.
      tx: the optimiser.
      microbatches: how many parts the rows are scanned in.

    Returns:
      the step. Metrics beside ``make_update``'s: ``loss`` (nats a token),
      ``answer_probability`` and ``tokens`` (means over the batch's answers).
    """
    step = update.make_update(partial(_loss_fn, score), tx, microbatches=microbatches)
    return jax.jit(step, donate_argnums=0)


Loss = Callable[[Params, Params, Supervised, Any, Any], reduce.Fraction]
"""``(params, reference, rows, key, step) -> (numerator, denominator)``: the parameters
that it measures from, and how many updates there were."""


def make_loss_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    reference: references.Reference = FIXED,
) -> Callable[[TrainState, Supervised], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, rows) -> (state, metrics)`` by another loss than likelihood.

    Args:
      loss: of ``alignax.train.answers``.
      tx: the optimiser.
      microbatches: how many parts the rows are scanned in.
      reference: what becomes of the reference after a step.

    Returns:
      the step; jitted, the state donated. ``state.reference`` is the reference's.
    """

    def step(state, rows):
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params, part):
            count = jnp.float32(len(part.tokens))
            tokens = jnp.sum(part.loss_mask[:, 1:], dtype=jnp.float32)
            held = state.reference
            past = None if held is None else reference.params(held)
            found = loss(params, past, part, key, state.step)
            return *found, {"tokens": (tokens, count)}

        one_update = update.make_update(loss_fn, tx, microbatches=microbatches)
        new, metrics = one_update(state, rows)
        if state.reference is not None:
            held = reference.update(state.reference, new.params, new.step)
            new = dataclasses.replace(new, reference=held)
        return new, metrics

    return jax.jit(step, donate_argnums=0)
