"""A run's parts from its options and a model: how to start, sample and step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from alignax.algorithms import Algorithm
from alignax.pipeline import rollout as rollouts
from alignax.train import critic as critics
from alignax.train import policy_gradient, sampler
from alignax.train.options import RL, algorithm_of, optimiser
from alignax.train.samples import Samples
from alignax.types import ApplyFn, HiddenFn, InputError, Params, Prompts, TrainState


class Parts(NamedTuple):
    """What a run is made of; see ``policy_gradient`` and ``sampler``."""

    algorithm: Algorithm
    init: Callable[..., TrainState]
    """``(params, key, beta=None, reference=None, others=(), critic=None, records=None,
    prompts=None) -> state``: ``records``, how many there are, and ``prompts``, a batch
    for its shapes, of methods that keep something of each."""
    sample: Callable[[TrainState, Prompts], Samples]
    step: policy_gradient.Step


def make(
    config: RL,
    apply_fn: ApplyFn,
    *,
    hidden_fn: HiddenFn | None = None,
    values: critics.ValueFn | None = None,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    pad_id: int = 0,
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
      shardings: of the train state.
      jit: False gives bare functions.

    Returns:
      the parts.

    Raises:
      InputError: the method needs what is not given.
    """
    algorithm, tx, group = algorithm_of(config), optimiser(config), config.completions
    own_values = values is not None
    if hidden_fn is None:
        score = rollouts.score_by_logits(apply_fn)
    else:
        score = rollouts.score_by_hidden(hidden_fn, completions=group)
        values = values or critics.value_head(hidden_fn, completions=group)
    divergence, regulariser = None, algorithm.regulariser
    if regulariser is not None and regulariser.over_vocabulary:
        div = regulariser.divergence
        if hidden_fn is None or regulariser.top is not None:
            divergence = rollouts.divergence_by_logits(apply_fn, div, k=regulariser.top)
        else:
            divergence = rollouts.divergence_by_hidden(
                hidden_fn, div, completions=group
            )
    values = values if algorithm.critic is not None else None

    def init(
        params: Params,
        key: Key[Array, ""],
        *,
        critic: Params | None = None,
        prompts: Prompts | None = None,
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
        if algorithm.replay is not None and prompts is not None:
            bare = dataclasses.replace(algorithm, replay=None)
            state = policy_gradient.init_state(
                bare, params, tx, key, critic=critic, **slots
            )
            slots["example"] = jax.eval_shape(sample, state, prompts).scored
        return policy_gradient.init_state(
            algorithm, params, tx, key, critic=critic, **slots
        )

    sample = sampler.make_sampler(
        algorithm,
        apply_fn,
        score,
        completions=group,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        slots=config.slots,
        values=values,
        jit=jit,
    )
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
    return Parts(algorithm, init, sample, step)
