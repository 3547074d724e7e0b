"""A run's parts from its options and a model: how to start, sample and step."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alignax.algorithms import Algorithm
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import critic as critics
from alignax.train import (
    drafts,
    joined,
    policy_gradient,
    sampler,
    teachers,
    two_policies,
)
from alignax.train import policy as policies
from alignax.train import scorer as scorers
from alignax.train.options import RL, algorithm_of, optimiser
from alignax.train.policy import Policy
from alignax.train.samples import Samples
from alignax.train.teachers import Teachers
from alignax.types import (
    ApplyFn,
    HiddenFn,
    InputError,
    Params,
    Prompts,
    Rollout,
    Scored,
    TrainState,
)


class Parts(NamedTuple):
    """What a run is made of; see ``policy_gradient`` and ``sampler``."""

    algorithm: Algorithm
    init: Callable[..., TrainState]
    """``(params, key, beta=None, reference=None, others=(), critic=None, records=None,
    prompts=None, preferred=None) -> state``: ``records``, how many there are, and
    ``prompts``, a batch for its shapes, of methods that keep something of each;
    ``preferred``, a policy trained on pairs, of RTO. With two roles the state's
    parameters are a pair, both policies beginning alike."""
    sample: Callable[[TrainState, Prompts], Samples]
    step: policy_gradient.Step
    generate: Callable[..., Rollout]
    """``(params, key, prompts, version=0, completions=K, temperature=…, prefix=…) ->
    rollout``: plain completions of each prompt, whatever the method."""
    score: Callable[..., Scored]
    """``(state, index, rollout, demonstrated=None, rescore=…) -> scored``: what
    ``sample`` says of its rollout, of another sampler's of K completions a prompt."""
    completions: int
    prefix: tuple[int, ...] = ()
    """Tokens that every completion begins with."""


def make(
    config: RL,
    apply_fn: ApplyFn,
    *,
    hidden_fn: HiddenFn | None = None,
    values: critics.ValueFn | None = None,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    pad_id: int = 0,
    stops: Any = None,
    prefix: Sequence[int] = (),
    teacher: tuple[HiddenFn, Params] | Teachers | None = None,
    teacher_weights: Float[Array, "*R N"] | None = None,
    teacher_mixture: bool = False,
    draft: tuple[ApplyFn, Params, int] | None = None,
    told_later: bool = False,
    shared_prompts: bool = True,
    shardings: TrainState | None = None,
    jit: bool = True,
) -> Parts:
    """The sampler and the step of a run, from its options and a model.

    Args:
      config: the options.
      apply_fn: the model.
      hidden_fn: the model up to its head: scores without the logits of all tokens,
        each prompt encoded once, and the critic a head on its hidden states.
      values: of methods with a critic, where it is a model of its own.
      max_tokens: of a completion.
      eos_id: the end, or the ends; None for never.
      pad_id: fills what follows.
      stops: of ``stops.table``: texts that end a completion.
      prefix: tokens that every completion begins with, attended and not trained.
      teacher: another model of the same vocabulary, up to its head, with its
        parameters, or several. It gives the log-probabilities of a teacher where the
        method asks for them, and stands for the reference where it does not.
      teacher_weights: of several teachers, of each record ``[R, N]`` or of all ``[N]``;
        by default equal. They need not sum to 1 but for a mixture.
      teacher_mixture: whether several are a mixture of whole completions and not a
        product.
      draft: a small model of the same vocabulary with its parameters, and how many
        tokens it proposes at a time: what is trained on is sampled speculatively, in
        the same law.
      told_later: what a teacher says is filled in between sampling and the step
        (``tasks.host_step(tell=)``): the sampler scores no reference.
      shared_prompts: a group's prompt is encoded once for all of its rows where they
        are scored; False encodes each row whole, as ``attention: cudnn`` needs it.
      shardings: of the train state.
      jit: False gives bare functions.

    Returns:
      the parts.

    Raises:
      InputError: the method needs what is not given.
    """
    algorithm, tx = algorithm_of(config), optimiser(config)
    roles, completions = algorithm.sampling.roles > 1, config.completions
    # An observer's prompt is its own.
    group = completions if shared_prompts and not roles else 1
    own_values = values is not None
    if hidden_fn is None:
        score = rollouts.score_by_logits(apply_fn)
    else:
        score = rollouts.score_by_hidden(hidden_fn, completions=group)
        values = values or critics.value_head(hidden_fn, completions=group)
    teaches, taught = teachers.unsaid if told_later else None, _listed(teacher)
    if taught:
        if roles:
            raise InputError("teacher must be None where two roles are sampled")
        teaches = teachers.score(taught, completions=group, mixture=teacher_mixture)
        if len(taught) > 1 and teacher_weights is None:
            teacher_weights = jnp.full(len(taught), 1 / len(taught))
    divergence, regulariser = None, algorithm.regulariser
    if regulariser is not None and regulariser.over_vocabulary:
        div = regulariser.divergence
        if taught:
            divergence = teachers.divergence(
                hidden_fn, regulariser, taught, completions=group
            )
        elif hidden_fn is None or regulariser.top is not None:
            divergence = rollouts.divergence_by_logits(apply_fn, div, k=regulariser.top)
        else:
            divergence = rollouts.divergence_by_hidden(
                hidden_fn, div, completions=group
            )
    values = values if algorithm.critic is not None else None
    if roles:
        every = algorithm.sampling.roles_every
        by_role = partial(two_policies.by_role, completions=completions, every=every)
        score = by_role(score)
        values = None if values is None else by_role(values)
        divergence = None if divergence is None else by_role(divergence)

    def init(
        params: Params,
        key: Key[Array, ""],
        *,
        critic: Params | None = None,
        prompts: Prompts | None = None,
        reference: Params | None = None,
        **slots: Any,
    ) -> TrainState:
        if algorithm.critic is None:
            critic = None
        elif critic is None and own_values:
            raise InputError(
                "critic must be given: values is a model of its own, whose parameters "
                "heads.init_reward or heads.reward_from_policy make"
            )
        elif critic is None and hidden_fn is not None:
            one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
            width = jax.eval_shape(hidden_fn, params, one).hidden.shape[-1]
            critic = critics.init_head(
                jax.random.fold_in(key, 7), width=width, outputs=algorithm.critic.heads
            )
        if reference is not None:
            slots["reference"] = (reference, reference) if roles else reference
        if roles:
            params = (params, params)
            critic = None if critic is None else (critic, critic)
        if algorithm.replay is not None and prompts is not None:
            bare = dataclasses.replace(algorithm, replay=None)
            state = policy_gradient.init_state(
                bare, params, tx, key, critic=critic, **slots
            )
            slots["example"] = jax.eval_shape(sample, state, prompts).scored
        return policy_gradient.init_state(
            algorithm, params, tx, key, critic=critic, **slots
        )

    drawn: dict[str, Any] = {
        "max_tokens": max_tokens,
        "eos_id": eos_id,
        "pad_id": pad_id,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "slots": config.slots,
        "stops": stops,
    }
    scored: dict[str, Any] = {
        "completions": completions,
        "values": values,
        "teacher": teaches,
        "teacher_weights": teacher_weights,
    }
    write = rollouts.generate
    if draft is not None:
        write = drafts.writer(draft[0], draft[1], tokens=draft[2])
    sample = sampler.make_sampler(
        algorithm,
        apply_fn,
        score,
        prefix=prefix,
        write=write,
        jit=jit,
        **scored,
        **drawn,
    )
    scorer = scorers.make_scorer(algorithm, score, **scored)
    begin = tuple(prefix)

    def generate(params, key, prompts, *, prefix=begin, **options):
        write = partial(rollouts.generate, apply_fn, **drawn)
        write = partial(joined.begun, write, prefix) if prefix else write
        options.setdefault("completions", completions)
        return write(params, key, prompts, **options)

    if jit:
        fixed = ("completions", "temperature", "prefix")
        generate = jax.jit(generate, static_argnames=fixed)
        scorer = jax.jit(scorer, static_argnames="rescore")
    step = policy_gradient.make_step(
        algorithm,
        score,
        tx,
        updates=config.updates,
        microbatches=config.microbatches,
        values=values,
        divergence=divergence,
        shardings=shardings,
        jit=jit,
    )
    return Parts(algorithm, init, sample, step, generate, scorer, completions, begin)


def _listed(teacher) -> Teachers:
    """One teacher or several as several."""
    if teacher is None:
        return ()
    return (teacher,) if callable(teacher[0]) else tuple(teacher)


def of_policy(
    config: RL,
    policy: Policy,
    *,
    teacher: Sequence[Policy] = (),
    draft: drafts.Draft | None = None,
    **options: Any,
) -> Parts:
    """``make`` of a policy: adapters' frozen base is an argument of what is compiled.

    Args:
      config: the options.
      policy: the model.
      teacher: others of the same vocabulary, as in ``make``.
      draft: another one, likewise.
      options: of ``make``, but for the functions and ``jit``; the ends and the padding
        are by default the tokenizer's.

    Returns:
      the parts.

    Raises:
      InputError: as ``make``.
    """
    options.setdefault("eos_id", policy.tokenizer.end_ids)
    options.setdefault("pad_id", policy.tokenizer.pad_id)
    options.setdefault("shared_prompts", policy.config.attention == "xla")

    taught = [policies.whole(each, each.params) for each in teacher] or None
    small = None if draft is None else policies.whole(draft.policy, draft.policy.params)
    frozen = None if taught is None and small is None else (taught, small)

    def bare(apply_fn: ApplyFn, hidden_fn: HiddenFn, frozen: Params = None) -> Parts:
        more, (taught, small) = dict(options), frozen or (None, None)
        if draft is not None:
            propose = functional.make_apply(draft.policy.config)
            more["draft"] = propose, small, draft.tokens
        if teacher:
            hidden = [functional.make_hidden(each.config) for each in teacher]
            more["teacher"] = tuple(zip(hidden, taught or (), strict=True))
        return make(config, apply_fn, hidden_fn=hidden_fn, jit=False, **more)

    def part(name: str, **how: Any):
        def build(*functions):
            return getattr(bare(*functions), name)

        return policies.jitted(policy, build, frozen=frozen, name=name, **how)

    return bare(policy.apply_fn, policy.hidden_fn, frozen)._replace(
        sample=part("sample"),
        step=part("step", donate=True),
        generate=part("generate", static=("completions", "temperature", "prefix")),
        score=part("score", static=("rescore",)),
    )
