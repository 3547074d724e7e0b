"""GRPO under a KL penalty, from rollout to step: what both GRPO experiments share.

    prompts ─▶ sample ─▶ score (host) ─▶ advantages ─▶ loss ─▶ update

The defaults give an update whose expectation is exactly the gradient of
``E r − beta · KL(π‖π_ref)`` over whole completions: leave-one-out baselines, the
reward-to-go of k1 as penalty, a sum over tokens. The paper's own choices are
values of the configuration.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from alignax import advantages, controllers, estimators, reduce, surrogates
from alignax.pipeline import rollout as rollouts
from alignax.pipeline import update
from alignax.types import ApplyFn, InputError, Prompts, Scored, Stateful, TrainState

ADVANTAGES = {
    "leave_one_out": advantages.leave_one_out,
    "group_centred": advantages.group_centred,
    "group_standardised": advantages.group_standardised,
}
KL = {"k1": estimators.k1, "k2": estimators.k2, "k3": estimators.k3}
REDUCTIONS = {
    "sequence_mean_token_sum": reduce.sequence_mean_token_sum,
    "sequence_mean_token_mean": reduce.sequence_mean_token_mean,
    "token_mean": reduce.token_mean,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO:
    """Group relative policy optimisation under a reverse KL to the reference."""

    steps: int = 150
    """Rollouts."""
    prompts: int = 32
    """Prompts a rollout."""
    completions: int = 8
    """Completions a prompt: the group."""
    updates: int = 1
    """Optimiser steps on each rollout."""
    microbatches: int = 1
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    temperature: float = 1.0
    """Of the sampling. Ratio, penalty and entropy are of what is sampled."""
    top_k: int | None = None
    """Sample from this many likeliest tokens only."""
    top_p: float | None = None
    """Sample from the likeliest tokens of this mass only."""
    slots: int | None = None
    """Rows decoded at a time, where finished ones make room for the next; None: all."""
    learning_rate: float = 3e-4
    """At the peak of its warm-up and cosine schedule."""
    warmup: int = 10
    """Optimiser steps of linear warm-up."""
    clip_norm: float = 1.0
    """Largest norm of a gradient."""
    clip_low: float = 0.2
    """How far below 1 a token's ratio may fall."""
    clip_high: float = 0.2
    """How far above 1 a token's ratio may rise."""
    advantage: Literal["leave_one_out", "group_centred", "group_standardised"] = (
        "leave_one_out"
    )
    """Baseline and scale of the rewards; GRPO's own is group_standardised."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the penalty; GRPO's own is k3 in the loss."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty goes. Only k1 in the reward has the sequence KL's gradient."""
    reduction: Literal[
        "sequence_mean_token_sum", "sequence_mean_token_mean", "token_mean"
    ] = "sequence_mean_token_sum"
    """How token losses become one; GRPO's own is sequence_mean_token_mean."""
    target_kl: float | None = None
    """Adapt beta to hold this KL, in nats a completion; None keeps beta fixed."""

    def __post_init__(self):
        for name in ("steps", "prompts", "updates", "microbatches"):
            _check(self, name, 1)
        _check(self, "completions", 2)
        _check(self, "warmup", 0)
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"learning_rate must be positive and finite, got {self.learning_rate}"
            )
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm must be positive, got {self.clip_norm}")
        for name in ("top_k", "slots"):
            if getattr(self, name) is not None:
                _check(self, name, 1)
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be positive to sample a group of different "
                f"completions, got {self.temperature}"
            )
        if self.kl == "k1" and self.kl_in == "loss":
            raise InputError(
                "kl k1 in the loss has no gradient in expectation and regularises "
                "nothing; use kl_in reward with k1, or kl k2 or k3 in the loss"
            )
        if self.prompts % self.microbatches:
            raise InputError(
                f"microbatches must divide the {self.prompts} prompts, got "
                f"{self.microbatches}"
            )


def _check(config: Any, name: str, least: int) -> None:
    if getattr(config, name) < least:
        raise InputError(
            f"{name} must be at least {least}, got {getattr(config, name)}"
        )


def optimiser(config: GRPO):
    return update.optimiser(
        learning_rate=config.learning_rate,
        steps=config.steps * config.updates,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        final_fraction=0.1,
    )


def controller(config: GRPO, beta: float) -> Stateful:
    if config.target_kl is None:
        return controllers.fixed(beta=beta)
    return controllers.adaptive_kl(beta=beta, target=config.target_kl)


def init_state(config: GRPO, params: Any, beta: float, key: jax.Array) -> TrainState:
    """A fresh state around a copy of ``params``, which the reference keeps."""
    return update.init_state(params, optimiser(config), controller(config, beta), key)


def make_sampler(
    config: GRPO,
    apply_fn: ApplyFn,
    score: rollouts.ScoreFn,
    *,
    max_tokens: int,
    eos_id: int | tuple[int, ...] | None,
    pad_id: int,
) -> Callable[[TrainState, Any, Prompts], Scored]:
    """``(state, ref_params, prompts) -> scored``, its rewards left out; jitted."""
    generate = partial(
        rollouts.generate,
        apply_fn,
        completions=config.completions,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        slots=config.slots,
    )

    @jax.jit
    def sample(state, ref_params, prompts):
        key = jax.random.fold_in(state.key, state.step)
        rollout = generate(state.params, key, prompts)
        ref = score(ref_params, rollout)
        return Scored(
            rollout=rollout,
            rewards=None,
            logp_old=rollout.logp_behaviour,
            # Of the whole reference: its own probability, truncated or not.
            logp_ref=reduce.masked(ref.logp + ref.log_mass, rollout.trained),
            log_mass_ref=None if rollout.support is None else ref.log_mass,
        )

    return sample


def token_advantages(config: GRPO, batch: Scored, beta: jax.Array) -> jax.Array:
    """``[B, T]``: the group-relative reward, less beta times the group-relative
    penalty from each token on where the penalty is part of the reward."""
    rollout, group = batch.rollout, config.completions
    relative = ADVANTAGES[config.advantage](batch.rewards)
    result = jnp.broadcast_to(relative.reshape(-1, 1), rollout.trained.shape)
    if config.kl_in == "reward":
        penalty = KL[config.kl](batch.logp_old, batch.logp_ref, rollout.trained)
        to_go = advantages.reward_to_go(penalty, rollout.trained)
        by_position = jnp.moveaxis(to_go.reshape(-1, group, to_go.shape[-1]), 1, 2)
        excess = jnp.moveaxis(advantages.leave_one_out(by_position), 2, 1)
        result = result - beta * excess.reshape(to_go.shape)
    return result


def loss_fn(config: GRPO, score: rollouts.ScoreFn, beta: jax.Array, params, rows):
    """The objective: a clipped policy term, and the penalty where it is a loss."""
    rollout = rows["rollout"]
    logp, entropy, log_mass = score(params, rollout)
    losses = surrogates.clipped_surrogate(
        logp,
        rows["logp_old"],
        rows["advantages"],
        rollout.trained,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )
    if config.kl_in == "loss":
        losses = losses + beta * KL[config.kl](logp, rows["logp_ref"], rollout.trained)
    numerator, denominator = REDUCTIONS[config.reduction](losses, rollout.trained)
    ratio = surrogates.log_ratio(logp, rows["logp_old"], rollout.trained)
    outside = (ratio > jnp.log1p(config.clip_high)) | (
        jnp.expm1(ratio) < -config.clip_low
    )
    aux = {
        "entropy": reduce.token_mean(entropy, rollout.trained),
        "mass": reduce.token_mean(jnp.exp(log_mass), rollout.trained),
        "clipped": reduce.token_mean(outside.astype(jnp.float32), rollout.trained),
    }
    return numerator, denominator, aux


def make_train_step(
    config: GRPO, score: rollouts.ScoreFn, *, shardings: TrainState | None = None
) -> Callable[[TrainState, Scored], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, batch) -> (state, metrics)``: jitted, the state donated.

    Metrics: ``loss``, ``grad_norm``, ``reward``, ``kl`` (k3 summed over each
    completion, nats), ``entropy`` (nats a token), ``clipped`` (share of tokens),
    ``mass`` and ``mass_ref`` (what a truncation keeps of the policy's and of the
    reference's probability, the second only where there is one), ``length``
    (tokens), ``tokens`` (of the batch), ``finished`` (share), ``beta``,
    ``skipped`` (share of the updates, see ``pipeline.update``).
    """
    tx = optimiser(config)

    def train_step(state, batch):
        rollout, beta = batch.rollout, state.controller.beta
        rows = {
            "rollout": rollout,
            "logp_old": batch.logp_old,
            "logp_ref": batch.logp_ref,
            "advantages": token_advantages(config, batch, beta),
        }
        one_update = update.make_update(
            partial(loss_fn, config, score, beta),
            tx,
            microbatches=config.microbatches,
            group=config.completions,
        )
        new, metrics = jax.lax.scan(
            lambda state, _: one_update(state, rows), state, length=config.updates
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        k3 = estimators.k3(batch.logp_old, batch.logp_ref, rollout.trained)
        if batch.log_mass_ref is not None:
            # The mean ratio to a truncated policy is the reference's mass there, not 1.
            lost = -jnp.expm1(batch.log_mass_ref)
            k3 = k3 + reduce.masked(lost, rollout.trained)
            mass = reduce.token_mean(1 - lost, rollout.trained)
            metrics["mass_ref"] = reduce.divide(*mass)
        kl = jnp.mean(jnp.sum(k3, axis=-1))
        metrics |= {
            "reward": jnp.mean(batch.rewards),
            "kl": kl,
            "beta": beta,
            "tokens": jnp.sum(rollout.trained, dtype=jnp.float32),
            "length": jnp.mean(jnp.sum(rollout.trained, axis=-1, dtype=jnp.float32)),
            "finished": jnp.mean(rollout.finished.astype(jnp.float32)),
        }
        # Which rule is applied does not depend on where beta starts.
        rule = controller(config, 1.0)
        new = dataclasses.replace(
            new,
            step=state.step + 1,
            controller=update.where(
                jnp.isfinite(kl),
                rule.update(state.controller, kl, batch.rewards.size),
                state.controller,
            ),
        )
        return new, metrics

    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)


def make_evaluator(
    apply_fn: ApplyFn,
    *,
    max_tokens: int,
    eos_id: int | tuple[int, ...] | None,
    pad_id: int,
    completions: int,
):
    """``(params, ref_params, key, prompts) -> (rollout, kl [B])``, jitted.

    ``kl`` is the reverse KL to the reference in nats a completion, exact over the
    vocabulary at each sampled prefix (Rao-Blackwellised over the next token).
    """
    generate = partial(
        rollouts.generate,
        apply_fn,
        completions=completions,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
    )

    @jax.jit
    def evaluate(params, ref_params, key, prompts):
        rollout = generate(params, key, prompts)
        logits, logits_ref = (
            rollouts.completion_logits(apply_fn, p, rollout)
            for p in (params, ref_params)
        )
        token_kl = estimators.rao_blackwell(logits, logits_ref, rollout.trained)
        return rollout, jnp.sum(token_kl, axis=-1)

    return evaluate
