"""Preference games on language models: sample both sides, judge, one step.

    prompts ─▶ sampler ─▶ judge ─▶ step ─▶ metrics

>>> from alignax.train import game
>>> def play(state, prompts, judge, sample, step):
...     contest = sample(state, prompts)                  # on the device
...     return step(state, contest.judged(judge(contest)))  # [G, K, L] preferences

The reference is ``state.reference``; a policy that is played against and is not the
last one has its state in ``state.memory["opponent"]``. ``beta`` is the controller's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from alignax import controllers, games, reduce, references
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.pipeline.rollout import ScoreFn
from alignax.train.game_methods import (
    Method,
    Sides,
    inpo,
    ipo_md,
    nash_ema,
    nash_md,
    nash_mp,
    sppo,
    xpo,
)
from alignax.types import (
    ApplyFn,
    InputError,
    Leaf,
    Params,
    Prompts,
    Rollout,
    Stateful,
    TrainState,
)

__all__ = [
    "Contest",
    "Method",
    "Sides",
    "init_state",
    "inpo",
    "ipo_md",
    "make_sampler",
    "make_step",
    "nash_ema",
    "nash_md",
    "nash_mp",
    "sppo",
    "xpo",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """K completions for each of G prompts and L of the opponent's, with the
    probabilities that one is preferred to the other."""

    rollout: Rollout  # G·K rows
    opponents: Rollout  # G·L rows
    preferences: Leaf = None  # float32 [G, K, L]

    def judged(self, preferences: Any) -> "Contest":
        """The contest with the judge's verdicts, in [0, 1]."""
        return dataclasses.replace(self, preferences=jnp.asarray(preferences))


def init_state(
    method: Method,
    params: Params,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    beta: float | Stateful,
    reference: Params | None = None,
) -> TrainState:
    """A train state at step 0.

    Args:
      method: the method.
      params: the policy's parameters, copied.
      tx: the optimiser.
      key: the run's.
      beta: strength of the regularisation, or the controller that holds it.
      reference: parameters to regularise towards; by default ``params``.

    Returns:
      the state.
    """
    controller = beta if isinstance(beta, Stateful) else controllers.fixed(beta=beta)
    reference = params if reference is None else reference
    return update.init_state(
        params,
        tx,
        controller,
        key,
        reference=references.fixed().init(reference),
        memory=method.opponent and {"opponent": method.opponent.init(params)},
    )


def make_sampler(
    method: Method,
    apply_fn: ApplyFn,
    *,
    completions: int,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    opponents: int | None = None,
    jit: bool = True,
    **options: Any,
) -> Callable[[TrainState, Prompts], Contest]:
    """``(state, prompts) -> contest``: both sides' completions, not yet judged.

    Args:
      method: the method.
      apply_fn: the model.
      completions: K of each prompt.
      max_tokens: T, at the most, of a completion.
      eos_id: the end, or the ends; None for never.
      opponents: L of each prompt; K by default.
      jit: False gives the bare function.
      options: further ones of ``rollout.generate``.

    Returns:
      the sampler; its draws depend on the state's key and step.
    """
    mixed = games.mixture_policy(apply_fn, apply_fn, mixture=method.mixture)
    share = method.mixture if isinstance(method.mixture, (int, float)) else None
    options |= {"max_tokens": max_tokens, "eos_id": eos_id}

    def generate(params, reference, key, prompts, count):
        model: Any = apply_fn
        if share == 1:
            params = reference
        elif share != 0:
            model, params = mixed, (params, reference)
        return rollouts.generate(
            model, params, key, prompts, completions=count, **options
        )

    def sample(state, prompts):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))
        opponent, reference = state.params, state.reference
        if method.opponent is not None:
            opponent = method.opponent.params(state.memory["opponent"])
        if method.both:
            own = generate(opponent, reference, keys[0], prompts, completions)
        else:
            own = rollouts.generate(
                apply_fn,
                state.params,
                keys[0],
                prompts,
                completions=completions,
                **options,
            )
        count = completions if opponents is None else opponents
        return Contest(
            rollout=own,
            opponents=generate(opponent, reference, keys[1], prompts, count),
        )

    return jax.jit(sample) if jit else sample


def make_step(
    method: Method,
    score: ScoreFn,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    jit: bool = True,
) -> Callable[[TrainState, Contest], tuple[TrainState, dict[str, Array]]]:
    """``(state, contest) -> (state, metrics)``: jitted, the state donated.

    Args:
      method: the method.
      score: ``(params, rollout) -> Scores``.
      tx: the optimiser.
      microbatches: parts that the prompts are scanned in.
      jit: False gives the bare function.

    Returns:
      the step. Metrics beside ``make_update``'s, means over completions:
      ``preference`` (for the own completions), ``kl`` (the log-ratio to the reference,
      nats a completion), ``length`` and ``beta``.

    Raises:
      InputError: from the step, a contest that nobody has judged.
    """

    def step(state, contest):
        if contest.preferences is None:
            raise InputError(
                "contest.preferences is missing: the judge's, [G, K, L]; "
                "contest.judged(preferences) would do"
            )
        beta, held = state.controller.beta, (state.memory or {}).get("opponent")
        groups = len(contest.preferences)

        def logp_of(params, rollout):
            """``[G, K, T]`` of rows by group."""
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
            logp = reduce.masked(score(params, rows).logp, rows.trained)
            return logp.reshape(rollout.trained.shape)

        def loss_fn(params, part):
            ref, ref_other = (
                jax.lax.stop_gradient(logp_of(state.reference, x))
                for x in (part.rollout, part.opponents)
            )
            anchors: Any = (None, None)
            if method.anchor is not None:
                params_t = method.anchor(held)
                anchors = [logp_of(params_t, x) for x in (part.rollout, part.opponents)]
            sides = Sides(
                logp=logp_of(params, part.rollout),
                ref=ref,
                mask=part.rollout.trained,
                logp_other=logp_of(params, part.opponents),
                ref_other=ref_other,
                preferences=part.preferences,
                anchor=anchors[0],
                anchor_other=anchors[1],
            )
            losses = method.loss(sides, beta)
            count = jnp.float32(losses.size)
            reports = {
                "preference": jnp.mean(part.preferences, axis=-1),
                "kl": jnp.sum(sides.logp - sides.ref, axis=-1),
                "length": jnp.sum(sides.mask, axis=-1, dtype=jnp.float32),
            }
            aux = {name: (jnp.sum(x), count) for name, x in reports.items()}
            return jnp.sum(losses), count, aux

        grouped = jax.tree.map(
            lambda x: x.reshape(groups, -1, *x.shape[1:]),
            (contest.rollout, contest.opponents),
        )
        parts = Contest(
            rollout=grouped[0], opponents=grouped[1], preferences=contest.preferences
        )
        move = update.make_update(loss_fn, tx, microbatches=microbatches)
        new, metrics = move(state, parts)
        if method.opponent is not None:
            held = method.opponent.update(held, new.params, new.step)
            new = dataclasses.replace(new, memory={"opponent": held})
        return new, metrics | {"beta": beta}

    return jax.jit(step, donate_argnums=0) if jit else step
