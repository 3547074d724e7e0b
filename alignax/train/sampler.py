"""From prompts to scored rollouts: what a method samples, and under which policy."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import selection
from alignax.algorithms import Algorithm
from alignax.pipeline import decoding
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.rollout import ScoreFn
from alignax.train import joined, two_policies
from alignax.train.samples import Samples
from alignax.train.scorer import TokenFn, make_scorer, step_keys
from alignax.types import (
    ApplyFn,
    InputError,
    Prompts,
    Rollout,
    TrainState,
)


def _guide(prompts: Prompts, why: str) -> tuple[Array, Array]:
    if prompts.guide is None:
        raise InputError(
            f"prompts.guide is missing: this method samples with {why} of each prompt"
        )
    return prompts.guide, prompts.guide_mask


def make_sampler(
    algorithm: Algorithm,
    apply_fn: ApplyFn,
    score: ScoreFn,
    *,
    completions: int,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    slots: int | None = None,
    stops: Any = None,
    prefix: Sequence[int] = (),
    rescore: bool | None = None,
    values: TokenFn | None = None,
    teacher: Callable[[Rollout], rollouts.Scores] | None = None,
    teacher_weights: Float[Array, "*R N"] | None = None,
    write: Callable[..., Rollout] = rollouts.generate,
    jit: bool = True,
) -> Callable[[TrainState, Prompts], Samples]:
    """``(state, prompts) -> samples``, jitted: what the method trains on, but rewards.

    Args:
      algorithm: the method; its ``sampling`` says what beside its own completions.
      apply_fn: the model.
      score: ``(params, rollout) -> Scores``.
      completions: K of each prompt.
      max_tokens: T, at the most, of a completion with its roll-in.
      eos_id: the end, or the ends; None for never.
      pad_id: fills what follows.
      temperature: of the sampled distribution.
      top_k: sample from this many likeliest tokens.
      top_p: sample from the likeliest tokens of this mass.
      slots: rows decoded at a time; None for all.
      stops: of ``stops.table``: texts that end a completion.
      prefix: tokens that every completion begins with, attended and not trained.
      rescore: take ``logp_old`` from the scorer and not from the sampler. None does
        where it must: the method needs the entropy, rows come from elsewhere, or
        parameters are of half precision, where sampler and scorer differ.
      values: ``(params, critic, rollout) -> [B, T]``, of methods with a critic.
      teacher: as in ``make_scorer``.
      teacher_weights: likewise.
      write: what samples in the law of ``rollout.generate`` and is called as it is,
        such as ``drafts.writer``'s.
      jit: False gives the bare function.

    Returns:
      the sampler. The reference's log-probabilities are those of its whole
      distribution at the sampling temperature.

    Raises:
      InputError: K is too small for what the method mixes into a group; and the
        sampler, where prompts lack a guide that the method needs.
    """
    plan = algorithm.sampling
    extra = round(plan.context * completions)
    begun = round(plan.roll_in_share * completions)
    slow = plan.copy_top_p < 1
    if plan.draws > 1:
        raise InputError(
            "algorithm samples several tokens at each position, which this sampler "
            "does not: make the rollouts yourself and give policy_gradient.make_step "
            "their records"
        )
    if plan.roles > 1 and completions % 2:
        raise InputError(
            f"completions must be even, got {completions}: half of each group are a "
            "pioneer's, half an observer's"
        )
    for name, share, count in (
        ("context", plan.context, extra),
        ("roll_in_share", plan.roll_in_share if plan.roll_in else 0, begun),
    ):
        if share > 0 and count < 1:
            raise InputError(
                f"completions must be more than {completions}: a {name} of {share:g} "
                "of each group is no completion"
            )
    if plan.last != "own" and completions < 2:
        raise InputError(
            f"completions must be at least 2, got {completions}: the last of each "
            f"group is a {plan.last}"
        )
    if not temperature > 0:
        raise InputError(
            "temperature must be positive to sample a group of different completions, "
            f"got {temperature}"
        )
    generate = partial(
        write,
        two_policies.among_copy(apply_fn, p=plan.copy_top_p, temperature=temperature)
        if slow
        else apply_fn,
        restricted=slow,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        slots=slots,
        stops=stops,
    )
    if prefix and (plan.roll_in is not None or plan.last == "demonstration"):
        raise InputError(
            "prefix must be empty: the method begins completions by a rule of its own"
        )
    if prefix:
        generate = partial(joined.begun, generate, prefix)
    scorer = make_scorer(
        algorithm,
        score,
        completions=completions,
        rescore=rescore,
        values=values,
        teacher=teacher,
        teacher_weights=teacher_weights,
    )

    def shown(prompts, rollout):
        """The completions behind the prompts that the teacher sees."""
        if plan.taught is None:
            return None
        tokens, mask = _guide(prompts, "the prompt that its teacher sees")
        asked = decoding.left_padded(Prompts(tokens=tokens, mask=mask, index=None))
        return dataclasses.replace(
            rollout,
            prompt_tokens=jnp.repeat(asked.tokens, completions, axis=0),
            prompt_mask=jnp.repeat(asked.mask, completions, axis=0),
        )

    def rolled_in(params, reference, key, prompts, own):
        """Completions that go on from somebody's prefix."""
        cut_key, go_on, prefix_key = jax.random.split(key, 3)
        if plan.roll_in == "data":
            tokens, mask = _guide(prompts, "a completion to go on from")
            tokens, mask = (
                jnp.repeat(x, completions, axis=0)[:, :max_tokens]
                for x in (tokens, mask)
            )
            given = dataclasses.replace(own, tokens=tokens, attended=mask)
        elif plan.roll_in == "guide":
            given = generate(reference, prefix_key, prompts, completions=completions)
        else:
            given = own
        # The end itself is never given: something is left to write.
        most = jnp.minimum(jnp.sum(given.attended, axis=-1), max_tokens) - 1
        most = jnp.maximum(most, 0)
        if plan.roll_in == "critical":
            entropy = score(params, own).entropy
            places = selection.critical_tokens(
                cut_key, entropy, own.trained.at[:, 0].set(False)
            )
            cut = jnp.minimum(places, most)
        else:
            cut = selection.prefix_cuts(cut_key, most)
        kept = jnp.arange(given.tokens.shape[1])[None] < cut[:, None]
        longer = joined.behind(
            prompts, given.tokens, given.attended & kept, completions
        )
        more = generate(params, go_on, longer, completions=1)
        result = joined.shifted(given, cut, more, own)
        last = jnp.arange(len(cut)) % completions >= completions - begun
        return result if begun == completions else joined.picked(last, result, own)

    def in_context(params, key, prompts, own):
        """The last rows of each group with the guide's text before the prompt."""
        tokens, mask = _guide(prompts, "a text before the prompt")
        longer = Prompts(
            tokens=jnp.concatenate([tokens, prompts.tokens], axis=1),
            mask=jnp.concatenate([mask, prompts.mask], axis=1),
            index=prompts.index,
        )
        shown = generate(params, key, longer, completions=completions)
        shown = dataclasses.replace(
            shown, prompt_tokens=own.prompt_tokens, prompt_mask=own.prompt_mask
        )
        rows = jnp.arange(len(own.tokens)) % completions
        return joined.picked(rows >= completions - extra, shown, own)

    def with_last(reference, key, prompts, own):
        last = jnp.arange(len(own.tokens)) % completions == completions - 1
        if plan.last == "reference":
            other = generate(reference, key, prompts, completions=completions)
            return last, joined.picked(last, other, own)
        tokens, mask = (
            jnp.repeat(x, completions, axis=0)[:, :max_tokens]
            for x in _guide(prompts, "a demonstration")
        )
        wide = ((0, 0), (0, max_tokens - tokens.shape[1]))
        tokens, mask = jnp.pad(tokens, wide), jnp.pad(mask, wide)
        support = own.support
        if support is not None:
            # Whoever wrote it drew from all tokens.
            support = jnp.full_like(support, 255)
        given = dataclasses.replace(
            own,
            tokens=tokens,
            attended=mask,
            trained=mask,
            finished=jnp.ones_like(own.finished),
            support=support,
        )
        return last, joined.picked(last, given, own)

    def sample(state: TrainState, prompts: Prompts) -> Samples:
        reference = algorithm.reference.params(state.reference)
        key = jax.random.fold_in(state.key, state.step)
        begin_key, context_key, last_key, _ = step_keys(state)
        own = partial(generate, version=state.step)
        if plan.roles > 1:
            rollout = two_policies.in_turn(
                own,
                state,
                key,
                prompts,
                completions=completions,
                every=plan.roles_every,
            )
        else:
            policy = (state.params, state.memory["copy"]) if slow else state.params
            rollout = own(policy, key, prompts, completions=completions)
        demonstrated = None
        if plan.roll_in is not None:
            rollout = rolled_in(state.params, reference, begin_key, prompts, rollout)
        if extra:
            rollout = in_context(state.params, context_key, prompts, rollout)
        if plan.last != "own":
            demonstrated, rollout = with_last(reference, last_key, prompts, rollout)

        scored = scorer(
            state,
            prompts.index,
            rollout,
            demonstrated,
            shown=shown(prompts, rollout),
        )
        greedy = None
        if plan.greedy:
            greedy = generate(
                state.params,
                key,
                prompts,
                completions=1,
                temperature=0.0,
                top_k=None,
                top_p=None,
                slots=None,
            )
        return Samples(scored, greedy)

    return jax.jit(sample) if jit else sample
