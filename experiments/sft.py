"""Supervised fine-tuning: teach a decoder the answers of its prompts."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from alignax import controllers, logprobs, reduce
from alignax.pipeline import update
from alignax.types import ApplyFn, InputError, Supervised, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT:
    """Maximum likelihood of the answers."""

    steps: int = 300
    """Optimiser steps."""
    batch_size: int = 128
    """Prompts with their answers in a step."""
    learning_rate: float = 2e-3
    """At the peak of its warm-up and cosine schedule."""
    warmup: int = 20
    """Optimiser steps of linear warm-up."""
    clip_norm: float = 1.0
    """Largest norm of a gradient."""

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"learning_rate must be positive and finite, got {self.learning_rate}"
            )
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm must be positive, got {self.clip_norm}")


def optimiser(config: SFT):
    return update.optimiser(
        learning_rate=config.learning_rate,
        steps=config.steps,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        weight_decay=0.01,
        final_fraction=0.1,
    )


def init_state(config: SFT, params, key: jax.Array) -> TrainState:
    return update.init_state(
        params, optimiser(config), controllers.fixed(beta=0.0), key
    )


def answer_logp(apply_fn: ApplyFn, params, batch: Supervised) -> jax.Array:
    """``[N, S - 1]``: log-probabilities of the tokens after the first, zero outside
    of the answers."""
    logits = apply_fn(params, batch.tokens[:, :-1], mask=batch.mask[:, :-1]).logits
    logp = logprobs.token_logp(logits, batch.tokens[:, 1:])
    return reduce.masked(logp, batch.loss_mask[:, 1:])


def loss_fn(apply_fn: ApplyFn, params, batch: Supervised):
    nll = -answer_logp(apply_fn, params, batch)
    numerator, denominator = reduce.token_mean(nll, batch.loss_mask[:, 1:])
    answers = (jnp.sum(jnp.exp(-jnp.sum(nll, axis=-1))), jnp.float32(nll.shape[0]))
    return numerator, denominator, {"answer_probability": answers}


def make_train_step(
    config: SFT, apply_fn: ApplyFn
) -> Callable[[TrainState, Supervised], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, batch) -> (state, metrics)``: jitted, the state donated.

    Metrics: ``loss`` (nats a token), ``grad_norm``, ``answer_probability`` (mean over
    the batch's answers), ``tokens`` (of the answers).
    """
    step = update.make_update(partial(loss_fn, apply_fn), optimiser(config))

    def train_step(state, batch):
        state, metrics = step(state, batch)
        tokens = jnp.sum(batch.loss_mask[:, 1:], dtype=jnp.float32)
        return state, metrics | {"tokens": tokens}

    return jax.jit(train_step, donate_argnums=0)
