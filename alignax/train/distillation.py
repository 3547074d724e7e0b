"""Distillation: a student learns a teacher's next-token distributions.

    prompts ─▶ sampler: own, the data's or the teacher's completions ─▶ step ─▶ metrics

>>> from alignax.train import distillation
>>> def learn(state, teacher, prompts, sample, step):
...     rollout = sample(state, teacher, prompts)
...     return step(state, teacher, rollout)  # (state, metrics)

The teacher's parameters are an argument and never trained. Its vocabulary is the
student's; its width, depth and family are its own. ``div`` is measured from the student
to the teacher, as everywhere: ``reverse_kl`` is ``KL(student‖teacher)``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from alignax import reduce
from alignax.divergences import Divergence
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.pipeline.rollout import ScoreFn
from alignax.train import joined
from alignax.types import (
    ApplyFn,
    HiddenFn,
    InputError,
    Params,
    Prompts,
    Rollout,
    TrainState,
)

TokenLoss = Callable[[Params, Params, Rollout], Float[Array, "B T"]]
"""``(student's parameters, teacher's, rollout) -> [B, T]``, nats."""


def _tempered(rollout: Rollout, temperature: float) -> Rollout:
    """What was written, under both models' whole laws at a temperature."""
    at = None
    if temperature != 1:
        at = jnp.full(len(rollout.tokens), temperature, jnp.float32)
    return dataclasses.replace(rollout, temperature=at, support=None)


def by_divergence(
    hidden_fn: HiddenFn,
    teacher_fn: HiddenFn,
    div: Divergence,
    *,
    temperature: float = 1.0,
) -> TokenLoss:
    """A divergence over all of the vocabulary, without the logits of all tokens.

    With ``jensen_shannon(b)`` GKD's loss (Agarwal et al., arXiv 2306.13649).

    Args:
      hidden_fn: the student up to its head.
      teacher_fn: the teacher up to its head.
      div: the divergence.
      temperature: divides both logits; the loss is not multiplied by its square.

    Returns:
      the loss.
    """
    token = rollouts.divergence_by_hidden(hidden_fn, div, reference_fn=teacher_fn)
    return lambda params, teacher, rollout: token(
        params, teacher, _tempered(rollout, temperature)
    )


def by_logits(
    apply_fn: ApplyFn,
    teacher_fn: ApplyFn,
    loss: Callable[..., Array],
    *,
    temperature: float = 1.0,
) -> TokenLoss:
    """A loss of both models' logits, such as those of ``alignax.distillation``.

    Args:
      apply_fn: the student.
      teacher_fn: the teacher.
      loss: ``(logits, logits_ref [B, T, V], tokens, mask [B, T]) -> [B, T]``, or a
        scalar of the whole batch, which is then the mean token's.
      temperature: divides both logits.

    Returns:
      the loss; it holds the logits of all tokens.
    """

    def of(params, teacher, rollout):
        logits, logits_ref = (
            rollouts.completion_logits(f, p, rollout) / temperature
            for f, p in ((apply_fn, params), (teacher_fn, teacher))
        )
        logits_ref = jax.lax.stop_gradient(logits_ref)
        found = loss(logits, logits_ref, rollout.tokens, rollout.trained)
        return jnp.broadcast_to(found, rollout.tokens.shape)

    return of


def by_samples(
    score: ScoreFn, teacher_score: ScoreFn, loss: Callable[..., Array]
) -> TokenLoss:
    """A loss of the tokens' log-probabilities, such as ``distillation.tvd_surrogate``.

    Args:
      score: the student's, ``(params, rollout) -> Scores``.
      teacher_score: the teacher's.
      loss: ``(logp, logp_ref, mask [B, T]) -> [B, T]``.

    Returns:
      the loss.
    """

    def of(params, teacher, rollout):
        rollout = _tempered(rollout, 1.0)
        logp_ref = jax.lax.stop_gradient(teacher_score(teacher, rollout).logp)
        return loss(score(params, rollout).logp, logp_ref, rollout.trained)

    return of


def make_sampler(
    apply_fn: ApplyFn,
    teacher_fn: ApplyFn,
    *,
    own_share: float,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    jit: bool = True,
    **options: Any,
) -> Callable[[TrainState, Params, Prompts], Rollout]:
    """``(state, teacher, prompts) -> rollout``: one completion of each prompt.

    Args:
      apply_fn: the student.
      teacher_fn: the teacher.
      own_share: of the completions that the student writes itself, spread evenly over
        the batch; the others are the prompts' guides, or the teacher's own where there
        are none (sequence-level distillation).
      max_tokens: T, at the most, of a completion.
      eos_id: the end, or the ends; None for never.
      jit: False gives the bare function.
      options: further ones of ``rollout.generate``.

    Returns:
      the sampler; its draws depend on the state's key and step.

    Raises:
      InputError: ``own_share`` is out of range.
    """
    if not 0 <= own_share <= 1:
        raise InputError(f"own_share must be from 0 to 1, got {own_share}")
    options |= {"max_tokens": max_tokens, "eos_id": eos_id}

    def sample(state, teacher, prompts):
        count = len(prompts.index)
        place = np.floor(np.arange(count + 1) * own_share + 1e-9)
        own = np.diff(place) > 0
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))

        def rows(where):
            return jax.tree.map(lambda x: x[np.flatnonzero(where)], prompts)

        def write(model, params, key, asked):
            asked = dataclasses.replace(asked, guide=None, guide_mask=None)
            return rollouts.generate(
                model, params, key, asked, completions=1, **options
            )

        parts = []
        if own.any():
            parts.append(write(apply_fn, state.params, keys[0], rows(own)))
        if not own.all():
            rest = rows(~own)
            if rest.guide is None:
                parts.append(write(teacher_fn, teacher, keys[1], rest))
            else:
                parts.append(joined.given(rest, length=max_tokens))
        parts = [_plain(part) for part in parts]
        order = np.argsort(np.argsort(~own, kind="stable"))
        return jax.tree.map(lambda *x: jnp.concatenate(x)[order], *parts)

    return jax.jit(sample) if jit else sample


def _plain(rollout: Rollout) -> Rollout:
    """Without what says how it was drawn: nothing here is a ratio to that."""
    return dataclasses.replace(rollout, temperature=None, support=None)


def make_step(
    loss: TokenLoss,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    jit: bool = True,
) -> Callable[[TrainState, Params, Rollout], tuple[TrainState, dict[str, Array]]]:
    """``(state, teacher, rollout) -> (state, metrics)``: jitted, the state donated.

    The loss is the mean over the batch's trained tokens, whatever the microbatches; a
    loss of batches (``divergences.sinkd``, TVD++'s statistics) is of each part.

    Args:
      loss: of each token.
      tx: the optimiser.
      microbatches: parts that the rows are scanned in.
      jit: False gives the bare function.

    Returns:
      the step. Metrics beside ``make_update``'s: ``loss`` (nats a token), ``length``
      (tokens) and ``finished`` (the share that was not cut).
    """

    def step(state, teacher, rollout):
        def loss_fn(params, part):
            mask = part.trained
            numerator, denominator = reduce.token_mean(
                loss(params, teacher, part), mask
            )
            rows = jnp.float32(len(mask))
            aux = {
                "length": (jnp.sum(mask, dtype=jnp.float32), rows),
                "finished": (jnp.sum(part.finished, dtype=jnp.float32), rows),
            }
            return numerator, denominator, aux

        return update.make_update(loss_fn, tx, microbatches=microbatches)(
            state, rollout
        )

    return jax.jit(step, donate_argnums=0) if jit else step
