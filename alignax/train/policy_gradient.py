"""Policy gradients: any method of ``alignax.algorithms``, any regulariser, one step.

    prompts ─▶ sampler ─▶ rewards (host) ─▶ step: prepare ─▶ updates ─▶ metrics

>>> from alignax.train import policy_gradient as pg
>>> def run(algorithm, state, prompts, reward, sample, step):
...     samples = sample(state, prompts)                    # on the device
...     scored = samples.rewarded(reward(samples.rollout))  # [B] rewards, the host's
...     return step(state, scored)                          # (state, metrics)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from alignax import algorithms, estimators, reduce, regularisers, surrogates
from alignax.algorithms import Algorithm, Rows
from alignax.algorithms import target as towards
from alignax.pipeline import update
from alignax.pipeline.rollout import ScoreFn
from alignax.train import diagnosis
from alignax.train import memory as memories
from alignax.types import InputError, Params, Rollout, Scored, TrainState

Step = Callable[[TrainState, Scored], tuple[TrainState, dict[str, Array]]]
TokenFn = Callable[[Params, Any, Rollout], Float[Array, "B T"]]

ROUNDING = 1e-4
"""Log-ratios within this many nats a token are the rounding of float32, no drift."""


def init_state(
    algorithm: Algorithm,
    params: Params,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    beta: float | None = None,
    reference: Params | None = None,
    others: Sequence[Params] = (),
    critic: Params | None = None,
    example: Scored | None = None,
    records: int | None = None,
    preferred: Params | None = None,
) -> TrainState:
    """A train state at step 0, with the slots that a method needs.

    Args:
      algorithm: the method.
      params: the policy's parameters, copied.
      tx: the optimiser; of ``(params, critic)`` where there is a critic.
      key: the run's.
      beta: where the controller starts; by default the algorithm's own.
      reference: parameters to regularise towards; by default ``params``.
      others: fine-tuned models whose soup with ``reference`` it is, for SALSA.
      critic: parameters of the value function; needed by methods with a critic.
      example: a scored rollout, or its shapes, for the buffer of methods that replay
        (``jax.eval_shape`` of the sampler).
      records: how many there are, for methods that keep a number of each.
      preferred: parameters of a policy trained on pairs, for RTO; without them the task
        gives its log-probabilities.

    Returns:
      the state.

    Raises:
      InputError: the method needs what is not given, or ``reference`` is of another
        architecture than ``params``.
    """
    if (algorithm.critic is None) != (critic is None):
        word = "needs" if critic is None else "has no"
        raise InputError(f"critic: this method {word} a value function")
    if reference is None:
        reference = params
    given = () if preferred is None else (preferred,)
    for other in (reference, *others, *given):
        _check_alike(params, other)
    beta = algorithm.beta if beta is None else beta
    return update.init_state(
        params,
        tx,
        algorithm.controller(beta=beta),
        key,
        reference=algorithm.reference.init(reference, *others),
        critic=critic,
        memory=memories.init(
            algorithm,
            records=records,
            example=example,
            params=params,
            preferred=preferred,
        ),
    )


def _check_alike(params: Params, reference: Params) -> None:
    def shapes(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure, [x.shape for x in leaves]

    if shapes(params) != shapes(reference):
        raise InputError(
            "reference must have the structure and shapes of the policy's parameters; "
            "it is of another architecture. For a teacher of another size use a "
            "distillation step"
        )


def has_signal(algorithm: Algorithm, scored: Scored, rows: Rows) -> Bool[Array, ""]:
    """Whether a step has anything to learn from.

    False where every weighted advantage is zero up to the rounding of the rewards, or
    of a penalty that finds the policy at its reference, and a regulariser in the loss
    finds it there, too. An optimiser that divides by the gradient's size would turn
    such a step's rounding into drift. Methods with a critic or a term of their own
    always have something to learn.

    Args:
      algorithm: the method.
      scored: the rollout.
      rows: of ``algorithms.prepare``.

    Returns:
      a truth on the device.
    """
    if algorithm.term is not None or algorithm.critic is not None:
        return jnp.bool_(True)
    regulariser = algorithm.regulariser
    # Written so that a NaN counts as a signal: it is for the guard to say.
    moved = jnp.bool_(False)
    if regulariser is not None:
        ratio = reduce.masked(scored.logp_old - scored.logp_ref, rows.mask)
        held = (jnp.abs(ratio) <= ROUNDING) | (rows.beta[:, None] == 0)
        moved = ~jnp.all(held)
    rewards = scored.rewards
    most = jnp.max(jnp.where(jnp.isfinite(rewards), jnp.abs(rewards), 0))
    floor = 1e-6 * most
    if regulariser is not None and regulariser.place == "reward":
        # Of equal rewards and no drift, what is left of the penalty is its rounding.
        spread = jnp.max(rewards, axis=-1) - jnp.min(rewards, axis=-1)
        still = jnp.all(spread <= floor) & ~moved
        rounding = ROUNDING * rows.mask.shape[-1] * jnp.max(rows.beta, initial=0)
        floor = floor + jnp.where(still, rounding, 0)
    weighed = ~jnp.all(jnp.abs(rows.advantages * rows.weights) <= floor)
    return weighed | moved


def _loss_fn(algorithm, score, values_of, divergence, reference, whole, params, batch):
    rollout, rows = batch["rollout"], batch["rows"]
    policy, critic = params if algorithm.critic is not None else (params, None)
    scores = score(policy, rollout)
    extra = {}
    if divergence is not None:
        extra["over_vocabulary"] = divergence(policy, reference, rollout)
    if critic is not None:
        extra["values"] = values_of(policy, critic, rollout)
    parts = algorithms.losses(algorithm, scores.logp, scores.entropy, rows, **extra)
    numerator, denominator = algorithms.reduced(algorithm, sum(parts.values()), rows)

    ratios = reduce.log_ratio(scores.logp, batch["logp_old"], rows.mask)
    ratios = jax.lax.stop_gradient(ratios)
    slope = jax.grad(lambda r: jnp.sum(rows.weights * algorithm.rule(r, rows)))(ratios)
    held = (slope == 0) & (rows.advantages * rows.weights != 0)
    tail = surrogates.ratio_tail(scores.logp, batch["logp_old"], rows.mask)
    aux = {
        "entropy": reduce.token_mean(scores.entropy, rows.mask),
        "clipped": reduce.token_mean(held.astype(jnp.float32), rows.mask),
        "mass": reduce.token_mean(jnp.exp(scores.log_mass), rows.mask),
        "ratio": tail.mean,
        "ratio_outside": tail.outside,
    }
    parts["logp"] = scores.logp
    aux |= diagnosis.counted(parts, rows.mask, row=batch["row"], whole=whole)
    if critic is not None and algorithm.critic is not None:
        values = algorithms.pooled(algorithm.critic, extra["values"], rows.mask)
        error = jnp.square(reduce.masked(values, rows.mask) - rows.returns)
        aux["value_error"] = reduce.token_mean(error, rows.mask)
    return numerator, denominator, aux


def make_step(
    algorithm: Algorithm,
    score: ScoreFn,
    tx: optax.GradientTransformation,
    *,
    updates: int = 1,
    microbatches: int = 1,
    values: TokenFn | None = None,
    divergence: TokenFn | None = None,
    jit: bool = True,
    shardings: TrainState | None = None,
) -> Step:
    """``(state, scored) -> (state, metrics)``: jitted, the state donated.

    Args:
      algorithm: the method.
      score: ``(params, rollout) -> Scores``.
      tx: the optimiser.
      updates: optimiser steps on each rollout; from the second on ratios differ
        from 1.
      microbatches: parts that the rows are scanned in, whole groups each.
      values: ``(params, critic, rollout) -> [B, T]``, of methods with a critic.
      divergence: ``(params, reference params, rollout) -> [B, T]``, of regularisers
        whose form is over the vocabulary (``rollout.divergence_by_logits``).
      jit: False gives the bare function, for a scan or a vmap of the caller's.
      shardings: of the state, for ``jax.jit``.

    Returns:
      the step. Its metrics, float32 scalars on the device: ``loss``, ``grad_norm``,
      ``reward``, ``kl`` (k3 summed over each own completion), ``entropy`` (nats a
      token), ``clipped`` (share of tokens without a gradient of the policy term),
      ``ratio`` and ``ratio_outside`` (mean, and share of tokens out of [0.9, 1.1], at
      the first update: 1 and 0 on-policy), ``sampler_ratio``, ``sampler_outside``,
      ``sampler_kl`` and ``sampler_largest`` (the same of ``logp_old`` to the sampler's
      own, the KL in nats a token, and the largest difference in nats: 1, 0, 0 and 0
      where it is not scored again), ``flat`` and ``steep`` (``regularisers.pull``),
      ``mass`` and ``mass_ref`` (what a truncation keeps of the policy's and of the
      reference's probability), ``length``, ``tokens``, ``finished``, ``signal`` (share
      of groups whose rewards differ), ``no_signal`` and ``skipped`` (share of updates
      without a signal, and not finite), ``beta``; with a critic ``value_error`` and
      ``value``; with a target those of ``algorithms.target.described``; and those of
      ``diagnosis``, which ``loop.train`` does not log.

    Raises:
      InputError: the method needs a critic's values, or a divergence over the
        vocabulary, that is not given; or it is on-policy and ``updates`` is not 1.
    """
    regulariser = algorithm.regulariser
    if algorithm.critic is not None and values is None:
        raise InputError(
            "values must be given: the method needs a critic, such as "
            "critic.value_head makes of a policy"
        )
    if algorithm.critic is None:
        values = None
    wanted = regulariser is not None and regulariser.over_vocabulary
    if wanted and divergence is None:
        raise InputError(
            "divergence must be given: the regulariser sums over the vocabulary; "
            "rollout.divergence_by_logits makes it of a model"
        )
    if algorithm.on_policy and updates != 1:
        raise InputError(
            f"updates must be 1, got {updates}: the method holds its ratio at 1, so "
            "that a second update on the same rollout would be biased"
        )

    def train_step(state: TrainState, scored: Scored):
        if scored.beta is None:
            scored = dataclasses.replace(scored, beta=state.controller.beta)
        own = scored
        scored, memory = memories.update(algorithm, state, scored)
        rows = algorithms.prepare(algorithm, scored)
        # A group's scale may turn a NaN into no advantage: the guard is to see it.
        bad = ~jnp.isfinite(scored.rewards).reshape(-1, 1) & rows.mask
        rows = dataclasses.replace(
            rows, advantages=jnp.where(bad, jnp.nan, rows.advantages)
        )
        batch = {
            "rollout": scored.rollout,
            "rows": rows,
            "logp_old": scored.logp_old,
            "row": jnp.arange(len(rows.mask)),
        }
        signal = has_signal(algorithm, scored, rows)
        reference = memories.measured_from(algorithm, state)
        alone = jnp.bool_(False)
        if algorithm.critic is not None and algorithm.critic.pretrain:
            alone = state.step < algorithm.critic.pretrain
        one_update = update.make_update(
            lambda params, batch: _loss_fn(
                algorithm,
                score,
                values,
                divergence if wanted else None,
                reference,
                rows.share,
                params,
                batch,
            ),
            tx,
            microbatches=microbatches,
            group=scored.rewards.shape[1],
        )

        def once(state, _):
            now = batch
            if algorithm.follow is not None and updates > 1:
                logp = score(state.params, scored.rollout).logp
                now = batch | {"rows": algorithms.followed(algorithm, logp, rows)}
            new, metrics = one_update(state, now, signal)
            if algorithm.critic is not None and algorithm.critic.pretrain:
                # The trunk under a value head is the policy's: it waits as well.
                params = update.where(alone, state.params, new.params)
                new = dataclasses.replace(new, params=params)
            return new, metrics

        new, each = jax.lax.scan(once, state, length=updates)
        each, bad = diagnosis.split(each)
        metrics = jax.tree.map(jnp.mean, each)
        metrics |= {name: each[name][0] for name in ("ratio", "ratio_outside")}
        metrics |= describe(algorithm, own)
        if algorithm.target is not None:
            known = memories.normaliser_of(memory, own)
            metrics |= towards.described(algorithm.target, own, own.beta, known)
        metrics |= diagnosis.first(bad, scored, rows.mask, index=own.index)
        if own.rollout.version is not None:
            behind = (state.step - own.rollout.version).astype(jnp.float32)
            metrics["staleness"] = reduce.divide(*reduce.token_mean(behind, own.mask))
        metrics["no_signal"] = 1 - signal.astype(jnp.float32)
        # Which rule is applied does not depend on where beta starts.
        rule = algorithm.controller(beta=algorithm.beta or 1.0)
        step = state.step + 1
        # One bad rollout must not stay in what later steps read.
        sound = [jnp.isfinite(metrics[x]) for x in ("kl", "reward", "entropy")]
        sound = jnp.all(jnp.stack(sound))
        memory = memories.followed(algorithm, memory, new.params, step)
        new = dataclasses.replace(
            new,
            step=step,
            controller=update.where(
                sound,
                rule.update(
                    state.controller,
                    metrics["kl"],
                    own.rewards.size,
                    entropy=metrics["entropy"],
                    reward=metrics["reward"],
                    tokens=metrics["tokens"],
                ),
                state.controller,
            ),
            reference=algorithm.reference.update(state.reference, new.params, step),
            memory=update.where(sound, memory, state.memory) if memory else None,
        )
        return new, metrics

    if not jit:
        return train_step
    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)


def describe(algorithm: Algorithm, scored: Scored) -> dict[str, Array]:
    """What a rollout says of itself, as float32 scalars on the device.

    Args:
      algorithm: the method.
      scored: the rollout.

    Returns:
      the metrics of ``make_step`` that need no update.
    """
    mask, rewards = scored.mask, scored.rewards
    spread = jnp.max(rewards, axis=-1) > jnp.min(rewards, axis=-1)
    metrics = {
        "reward": jnp.mean(rewards),
        "signal": jnp.mean(spread.astype(jnp.float32)),
        "tokens": jnp.sum(mask, dtype=jnp.float32),
        "length": jnp.mean(jnp.sum(mask, axis=-1, dtype=jnp.float32)),
        "beta": jnp.asarray(scored.beta, jnp.float32),
    }
    behaviour = scored.rollout.logp_behaviour
    if behaviour is not None:
        tail = surrogates.ratio_tail(scored.logp_old, behaviour, mask)
        metrics["sampler_ratio"] = reduce.divide(*tail.mean)
        metrics["sampler_outside"] = reduce.divide(*tail.outside)
        apart = surrogates.mismatch(scored.logp_old, behaviour, mask)
        metrics |= {"sampler_kl": apart.kl, "sampler_largest": apart.largest}
    if scored.rollout.finished is not None:
        metrics["finished"] = jnp.mean(scored.rollout.finished.astype(jnp.float32))
    if scored.right is not None:
        metrics["right"] = jnp.mean(scored.right.astype(jnp.float32))
    if scored.values is not None:
        values = scored.values
        if algorithm.critic is not None:
            values = algorithms.pooled(algorithm.critic, values, mask)
        metrics["value"] = reduce.divide(*reduce.token_mean(values, mask))
    metrics["kl"] = jnp.float32(0)
    if scored.logp_ref is not None:
        other = scored.demonstrated
        own = jnp.ones(len(mask), bool) if other is None else ~other
        k3 = estimators.k3(scored.logp_old, scored.logp_ref, mask & own[:, None])
        if scored.log_mass_ref is not None:
            # The mean ratio to a truncated policy is the reference's mass there, not 1.
            lost = -jnp.expm1(scored.log_mass_ref)
            k3 = k3 + reduce.masked(lost, mask & own[:, None])
            metrics["mass_ref"] = reduce.divide(*reduce.token_mean(1 - lost, mask))
        metrics["kl"] = reduce.divide(jnp.sum(k3), jnp.sum(own, dtype=jnp.float32))
        if algorithm.regulariser is not None:
            shares = regularisers.pull(
                algorithm.regulariser, scored.logp_old, scored.logp_ref, mask
            )
            metrics |= {name: reduce.divide(*x) for name, x in shares.items()}
    return metrics
