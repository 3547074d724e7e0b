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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from alignax import controllers, games, reduce, references
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.pipeline.rollout import ScoreFn
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


class Sides(NamedTuple):
    """What a loss is shown: of K completions of each of G prompts, and of L of the
    opponent's, the tokens' log-probabilities ``[G, K, T]``, zero where masked. Only the
    policy's have a gradient."""

    logp: Float[Array, "G K T"]
    ref: Float[Array, "G K T"]
    mask: Any
    logp_other: Float[Array, "G L T"]
    ref_other: Float[Array, "G L T"]
    preferences: Float[Array, "G K L"]
    anchor: Any = None
    """Of the own completions, under the anchor of mirror prox."""


Loss = Callable[[Sides, Any], Float[Array, "G K"]]
"""``(sides, beta) -> [G, K]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A loss, and who the opponents are."""

    loss: Loss
    opponent: references.Reference | None = None
    """The rule of the policy that is played against; None for the policy itself."""
    mixture: float | Float[Array, ""] = 0.0
    """Share of the reference in what samples the opponents' completions."""
    both: bool = False
    """Whether the mixture samples the own completions, too."""
    anchor: Callable[[Any], Params] | None = None
    """From the opponent's state, the policy that the loss has a second KL to."""


def gradient_loss(sides: Sides, beta: Any) -> Float[Array, "G K"]:
    """``games.nash_pg_surrogate`` against the mean opponent."""
    wins = jnp.mean(sides.preferences, axis=-1)
    losses = games.nash_pg_surrogate(sides.logp, sides.ref, wins, sides.mask, beta=beta)
    return jnp.sum(losses, axis=-1)


def squared_loss(sides: Sides, beta: Any) -> Float[Array, "G K"]:
    """``games.online_ipo_loss`` over all pairs, times β/4: its gradient then has the
    size of the preference's own."""
    own = [jnp.sum(x, axis=-1)[:, :, None] for x in (sides.logp, sides.ref)]
    other = [jnp.sum(x, -1)[:, None] for x in (sides.logp_other, sides.ref_other)]
    shape = sides.preferences.shape
    logp, ref, logp_other, ref_other = (
        jnp.broadcast_to(x, shape) for x in (*own, *other)
    )
    losses = games.online_ipo_loss(
        logp, logp_other, ref, ref_other, sides.preferences, beta=beta
    )
    return beta / 4 * jnp.mean(losses, axis=-1)


def nash_md(*, mixture: float | Float[Array, ""] = 0.125) -> Method:
    """Nash-MD-PG; with ``mixture`` 0 self-play (Munos et al., arXiv 2312.00886)."""
    return Method(loss=gradient_loss, mixture=mixture)


def nash_ema(*, decay: float | Float[Array, ""]) -> Method:
    """Nash-EMA-PG: against the moving average (Munos et al., arXiv 2312.00886)."""
    return Method(loss=gradient_loss, opponent=references.moving_average(decay=decay))


def nash_mp(*, eta: float, inner_steps: int) -> Method:
    """Nash mirror prox (Tiapkin et al., arXiv 2505.19731)."""
    rule = games.mirror_prox_loop(inner_steps=inner_steps)

    def loss(sides, beta):
        wins = jnp.mean(sides.preferences, axis=-1)
        losses = games.nash_mp_surrogate(
            sides.logp, sides.ref, sides.anchor, wins, sides.mask, beta=beta, eta=eta
        )
        return jnp.sum(losses, axis=-1)

    return Method(
        loss=loss,
        opponent=references.Reference(
            name="mirror_prox",
            settings=(("inner_steps", inner_steps),),
            init=rule.init,
            update=lambda state, params, step: rule.update(state, params),
            params=lambda state: state.opponent,
        ),
        anchor=lambda state: state.anchor,
    )


def ipo_md(*, mixture: float | Float[Array, ""] = 0.125) -> Method:
    """IPO-MD; with ``mixture`` 0 online IPO (Calandriello et al., arXiv 2403.08635)."""
    return Method(loss=squared_loss, mixture=mixture, both=True)


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
    plain = isinstance(method.mixture, (int, float)) and method.mixture == 0
    options |= {"max_tokens": max_tokens, "eos_id": eos_id}

    def generate(params, reference, key, prompts, count, mix):
        model, params = (mixed, (params, reference)) if mix else (apply_fn, params)
        return rollouts.generate(
            model, params, key, prompts, completions=count, **options
        )

    def sample(state, prompts):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step))
        opponent = state.params
        if method.opponent is not None:
            opponent = method.opponent.params(state.memory["opponent"])
        own_mix = method.both and not plain
        return Contest(
            rollout=generate(
                state.params, state.reference, keys[0], prompts, completions, own_mix
            ),
            opponents=generate(
                opponent,
                state.reference,
                keys[1],
                prompts,
                completions if opponents is None else opponents,
                not plain,
            ),
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
            anchor = None
            if method.anchor is not None:
                anchor = logp_of(method.anchor(held), part.rollout)
            sides = Sides(
                logp=logp_of(params, part.rollout),
                ref=ref,
                mask=part.rollout.trained,
                logp_other=logp_of(params, part.opponents),
                ref_other=ref_other,
                preferences=part.preferences,
                anchor=anchor,
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
