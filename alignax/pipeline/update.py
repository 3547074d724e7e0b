"""From a loss to a step: exact microbatches, optimiser, metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from alignax import reduce
from alignax.types import Counters, InputError, Metrics, Params, Stateful, TrainState

Fraction = reduce.Fraction
Reports = dict[str, tuple[Array, Array]]
LossFn = Callable[[Params, Any], tuple[Array, Array, Reports]]
"""``(params, batch) -> (numerator, denominator, aux)``: the loss is the ratio;
``aux`` holds further fractions to report, scalars or arrays."""


def warmup_of(steps: int) -> int:
    """A tenth of the steps, 100 at the most.

    Args:
      steps: of the optimiser.

    Returns:
      steps of linear warm-up.
    """
    return min(steps // 10, 100)


def given_rate(learning_rate: float | None) -> float:
    """A learning rate that options may leave open, once it is filled in.

    Raises:
      InputError: it is None.
    """
    if learning_rate is None:
        raise InputError("learning_rate must be given: there is no default here")
    return learning_rate


def optimiser(
    *,
    learning_rate: float,
    steps: int,
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    final_fraction: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW with clipping by global norm and a warm-up, then cosine, schedule.

    Args:
      learning_rate: at the peak, positive.
      steps: length of the whole schedule.
      warmup: steps of linear warm-up from zero.
      weight_decay: decoupled; on matrices only, not on scales or biases.
      clip_norm: largest global norm of a gradient.
      final_fraction: of the peak, at the end.

    Returns:
      an optax transformation.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=learning_rate * final_fraction,
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            b2=0.95,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    controller: Stateful,
    key: Key[Array, ""],
    *,
    reference: Any = None,
    critic: Params = None,
    memory: Any = None,
) -> TrainState:
    """A train state at step 0.

    Args:
      params: the policy's parameters; copied, so that the state may be donated.
      tx: the optimiser.
      controller: what sets beta.
      key: the run's key, copied; each step folds its number into it.
      reference: the state of a rule of ``alignax.references``.
      critic: parameters of a value function, copied.
      memory: what the method keeps from step to step.

    Returns:
      the state.
    """
    params, critic, key = jax.tree.map(jnp.copy, (params, critic, key))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=tx.init(params if critic is None else (params, critic)),
        controller=controller.init(),
        counters=Counters(
            skipped=jnp.int32(0), skipped_in_row=jnp.int32(0), no_signal=jnp.int32(0)
        ),
        key=key,
        reference=reference,
        critic=critic,
        memory=memory,
    )


def state_shardings(
    state: TrainState,
    tx: optax.GradientTransformation,
    *,
    params: Any,
    replicated: jax.sharding.Sharding,
    critic: Any = None,
) -> TrainState:
    """Shardings for a whole train state from those of its parameters.

    A reference, or a policy in the memory, that has the structure of the parameters is
    laid out as they are.

    Args:
      state: arrays or their shapes.
      tx: the optimiser whose state it holds: moments follow their parameter.
      params: a sharding for each parameter.
      replicated: the sharding of all else.
      critic: a sharding for each of the critic's parameters, replicated by default.

    Returns:
      a train state of shardings, for ``jax.device_put`` or ``jax.jit``.
    """
    shared = jax.tree.map(lambda _: replicated, state)
    critic = shared.critic if critic is None else critic
    opt_state = optax.tree.map_params(
        tx.init,
        lambda _, sharding: sharding,
        state.opt_state,
        params if state.critic is None else (params, critic),
        transform_non_params=lambda _: replicated,
    )
    structure = jax.tree.structure(state.params)

    def laid_out(tree, sharding):
        return params if jax.tree.structure(tree) == structure else sharding

    memory = shared.memory
    if isinstance(memory, dict):
        memory = {n: laid_out(state.memory[n], x) for n, x in memory.items()}
    return dataclasses.replace(
        shared,
        params=params,
        opt_state=opt_state,
        reference=laid_out(state.reference, shared.reference),
        critic=critic,
        memory=memory,
    )


def where(ok: Bool[Array, ""], new: Any, old: Any) -> Any:
    """``new`` where ``ok`` is true, else ``old``: a choice between two whole trees.

    Args:
      ok: one truth for all leaves, on the device.
      new: a pytree of arrays, of any numbers.
      old: the same structure, shapes and dtypes.

    Returns:
      the same structure. Nothing of the tree that is not chosen comes through, not
      even a NaN.
    """
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def trained(state: TrainState) -> Any:
    """What the optimiser moves: the parameters, and the critic's where there is one."""
    return state.params if state.critic is None else (state.params, state.critic)


def _with_trained(state: TrainState, new: Any) -> TrainState:
    params, critic = (new, None) if state.critic is None else new
    return dataclasses.replace(state, params=params, critic=critic)


def _split(batch: Any, microbatches: int, group: int) -> Any:
    def split(x):
        rows = x.shape[0]
        if rows % (microbatches * group):
            whole = f" into whole groups of {group}" if group > 1 else ""
            raise InputError(
                f"microbatches must divide the batch's {rows} rows{whole}, got "
                f"{microbatches}"
            )
        # Every microbatch takes rows from each device's share of a sharded batch.
        parts = x.reshape(-1, microbatches, group, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(microbatches, -1, *x.shape[1:])

    return jax.tree.map(split, batch)


def accumulate(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    *,
    microbatches: int = 1,
    group: int = 1,
) -> tuple[Fraction, Reports, Params]:
    """Sums of a loss' numerator, denominator, reports and numerator gradient.

    Args:
      loss_fn: ``(params, batch) -> (numerator, denominator, aux)``. The
        denominator and ``aux`` must not need a gradient.
      params: differentiated.
      batch: a pytree with the rows first.
      microbatches: how many parts to scan over; must divide the rows.
      group: adjacent rows that stay together, as those of one prompt do where its
        forward pass is shared.

    Returns:
      ``(numerator, denominator)``, ``aux``, and the numerator's gradient in
      float32 or wider: all sums over the whole batch, whatever the split.

    Raises:
      InputError: ``microbatches`` does not divide the rows into whole groups.
    """

    def numerator_of(params, part):
        numerator, denominator, aux = loss_fn(params, part)
        return numerator, (denominator, aux)

    def sums(part):
        (numerator, (denominator, aux)), gradient = jax.value_and_grad(
            numerator_of, has_aux=True
        )(params, part)
        return jax.tree.map(
            lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)),
            ((numerator, denominator), aux, gradient),
        )

    if microbatches == 1:
        return sums(batch)
    parts = _split(batch, microbatches, group)
    # Of a jitted function the second use is not traced again.
    sums = jax.jit(sums)
    shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, sums(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def make_update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    group: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One optimiser step: ``(state, batch, signal=True) -> (state, metrics)``, pure.

    The gradient is that of ``Σ numerators / Σ denominators`` over the whole
    batch: the same for any number of microbatches or devices. Jit it with
    ``donate_argnums=0``; batch and state may be sharded.

    Where the loss or the gradient is not finite, parameters and optimiser state stay
    as they were, and ``state.counters`` counts it: one bad reward costs one update,
    not the run. They stay, too, where ``signal``, a truth on the device, is false: an
    optimiser such as Adam would make whole steps of a gradient that is rounding.
    ``step`` goes on.

    Args:
      loss_fn: see ``LossFn``.
      tx: the optimiser.
      microbatches: how many parts the rows are scanned in.
      group: adjacent rows that stay together.

    Returns:
      the update. Its metrics: ``loss``, ``grad_norm``, ``skipped`` (1 where one
      of them was not finite, else 0) and the fractions of ``aux``, in float32 on the
      device, scalars where those are.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> def loss_fn(params, batch):
      ...     return jnp.sum((params - batch) ** 2), jnp.float32(batch.size), {}
      >>> update = jax.jit(make_update(loss_fn, optax.sgd(0.5)), donate_argnums=0)
    """

    def update(state, batch, signal=True):
        before = trained(state)
        (numerator, denominator), aux, gradient = accumulate(
            loss_fn, before, batch, microbatches=microbatches, group=group
        )
        scale: Float[Array, ""] = reduce.divide(jnp.ones_like(denominator), denominator)
        gradient = jax.tree.map(
            lambda g, p: (g * scale).astype(p.dtype), gradient, before
        )
        loss, norm = numerator * scale, _norm(gradient)
        updates, opt_state = tx.update(gradient, state.opt_state, before)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        after, opt_state = where(
            finite & signal,
            (optax.apply_updates(before, updates), opt_state),
            (before, state.opt_state),
        )
        skipped = 1 - finite.astype(jnp.int32)
        counters = dataclasses.replace(
            state.counters,
            skipped=state.counters.skipped + skipped,
            skipped_in_row=(state.counters.skipped_in_row + skipped) * skipped,
            no_signal=state.counters.no_signal + 1 - jnp.asarray(signal, jnp.int32),
        )
        metrics = {name: reduce.divide(*fraction) for name, fraction in aux.items()}
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "skipped": skipped.astype(jnp.float32),
        }
        state = dataclasses.replace(
            _with_trained(state, after),
            step=state.step + 1,
            opt_state=opt_state,
            counters=counters,
        )
        return state, metrics

    return update


def _norm(tree: Any) -> Float[Array, ""]:
    # In float32: half a precision's squares overflow long before their numbers do.
    wide = jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )
    return optax.tree.norm(wide)
