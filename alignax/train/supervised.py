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
from jaxtyping import Array, Float, Int, Key

from alignax import (
    controllers,
    divergences,
    logprobs,
    preference,
    reduce,
    references,
    surrogates,
)
from alignax.divergences import Divergence
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


def one_token_rollouts(
    apply_fn: ApplyFn,
    *,
    samples: int = 256,
    temperature: float = 1.3,
    other: float = -0.1,
) -> Loss:
    """Each answer's token as a one-step rollout (OTR, Ming et al., arXiv 2509.26313).

    Args:
      apply_fn: the model; the logits of all positions are held.
      samples: drawn at each token.
      temperature: of the draws.
      other: the reward of a token that is not the answer's.

    Returns:
      the loss, a mean over tokens.
    """

    def loss(params, reference, rows, key, step):
        del reference, step
        logits, labels = answer_logits(apply_fn, params, rows), rows.tokens[:, 1:]
        # Every part of a batch draws by its own records.
        key = jax.random.fold_in(key, rows.index[0])
        losses = surrogates.one_token_rollout_surrogate(
            key, logits, labels, samples=samples, temperature=temperature, other=other
        )
        return reduce.token_mean(losses, rows.loss_mask[:, 1:])

    return loss


def implicit_reward(score: ScoreFn, div: Divergence, *, beta: float) -> Loss:
    """Answers as demonstrations of an implicit reward (f-SFT, arXiv 2507.00018).

    ``preference.divergence_sft`` of whole answers: what the policy has taken up since
    the reference weighs less; total variation is plain likelihood.

    Args:
      score: of answers' tokens.
      div: how demonstrations are matched.
      beta: strength of the regularisation.

    Returns:
      the loss, a mean over answers, divided by beta: at the reference its gradient is
      likelihood's.
    """

    def loss(params, reference, rows, key, step):
        del key, step
        logp, ref = (jnp.sum(score(p, rows), axis=-1) for p in (params, reference))
        losses = preference.divergence_sft(div, logp, ref, beta=beta) / beta
        return jnp.sum(losses), jnp.float32(len(losses))

    return loss


def past_weight(
    step: int | Int[Array, ""], *, most: float, every: int, steps: int
) -> Float[Array, ""]:
    """``α_t = α_T (t + 1) / T`` in pass t of T; none in the first, which has no past.

    Args:
      step: how many updates there were.
      most: ``α_T``, of the last pass.
      every: steps of a pass.
      steps: of the run.

    Returns:
      the weight of the past in the targets.

    Example:
      >>> weights = [past_weight(t, most=0.8, every=2, steps=8) for t in range(0, 8, 2)]
      >>> print(*(f"{x:.1f}" for x in weights))
      0.0 0.4 0.6 0.8
    """
    now, passes = jnp.asarray(step) // every, -(-steps // every)
    return jnp.where(now > 0, most * (now + 1) / passes, 0.0).astype(jnp.float32)


def progressive(hidden_fn: HiddenFn, *, most: float, every: int, steps: int) -> Loss:
    """Answers softened by what the policy said in its last pass (PS-KD).

    Cross-entropy to the targets ``(1 − α_t) y + α_t p_past``, over all of the
    vocabulary: on the logit of the answer's token it pulls as likelihood does, times
    ``1 − α_t (1 − p_past(y)) / (1 − p(y))``. The past is the policy at the end of its last pass; the paper's code keeps what it
    said of each row when that was seen.

    Args:
      hidden_fn: the model up to its head.
      most: ``α_T``, the past's weight in the last pass.
      every: steps of a pass; the reference is renewed as often
        (``references.periodic_reset``).
      steps: of the run.

    Returns:
      the loss, a mean over tokens.

    Reference:
      Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets",
      arXiv 2006.12000, eqs. 3 and 6.
    """

    def loss(params, past, rows, key, step):
        del key
        targets, mask = rows.tokens[:, 1:], rows.loss_mask[:, 1:]

        def read(params):
            out = hidden_fn(params, rows.tokens[:, :-1], mask=rows.mask[:, :-1])
            return out.hidden.reshape(-1, out.hidden.shape[-1]), out

        def stats(hidden, out):
            return logprobs.from_hidden(
                hidden, out.head, targets.reshape(-1), soft_cap=out.soft_cap
            )

        (hidden, out), (hidden_past, out_past) = read(params), read(past)
        apart = logprobs.divergence_from_hidden(
            divergences.forward_kl(),
            hidden,
            out.head,
            hidden_past,
            out_past.head,
            soft_cap=out.soft_cap,
            soft_cap_ref=out_past.soft_cap,
        )
        # The cross-entropy to the past is their divergence and the past's entropy.
        entropy = jax.lax.stop_gradient(stats(hidden_past, out_past).entropy)
        weight = past_weight(step, most=most, every=every, steps=steps)
        losses = (weight - 1) * stats(hidden, out).logp + weight * (apart + entropy)
        return reduce.token_mean(losses.reshape(targets.shape), mask)

    return loss


def make_loss_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    reference: references.Reference = FIXED,
) -> Callable[[TrainState, Supervised], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, rows) -> (state, metrics)`` by another loss than likelihood.

    Args:
      loss: of ``one_token_rollouts``, ``implicit_reward`` or ``progressive``.
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
