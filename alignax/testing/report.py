"""Bias and variance of an estimator: finite sums, and simulation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alignax import exact, logprobs
from alignax.estimators import Estimator, Samples
from alignax.testing.findings import Report, Row
from alignax.testing.worlds import World
from alignax.types import InputError

Law = Literal["policy", "behaviour", "reference"]
Target = Callable[[Array, Array], Array]

# Of a normal law: 95 % lie within.
Z = 1.96


def estimator_report(
    estimator: Callable[..., Array] | Estimator,
    worlds: Sequence[World],
    *,
    target: Target = exact.kl,
    sampled_from: Law | None = None,
    samples: Sequence[int] = (),
    replicates: int = 256,
    key: Key[Array, ""] | None = None,
    name: str | None = None,
) -> Report:
    """Bias and variance of an estimator's value and gradient.

    The value of a sample is the sum of the estimator's token terms. Its gradient is
    what automatic differentiation makes of that sum with the tokens held fixed, as a
    training step does.

    Args:
      estimator: ``(logp, logp_ref, mask) -> terms``, all ``[B, T]``; or a record of
        ``estimators.TABLE``.
      worlds: such as ``random_world`` makes; those of one shape share a compilation.
      target: ``(logp [N], logp_ref [N]) -> []``, a function of the two laws over all
        completions; the KL from the policy to the reference by default.
      sampled_from: whose tokens the estimator sees; by default the record's, or the
        policy's.
      samples: batch sizes to simulate. An estimator whose rows depend on each other
        has no exact rows, and needs these.
      replicates: batches simulated for each size.
      key: of the simulation.
      name: for tables; by default the function's.

    Returns:
      a row for each world, then one for each world and batch size.

    Raises:
      InputError: there is no world, the estimator returns another shape, or it is
        not a sum over rows and ``samples`` is empty.

    Example:
      >>> from alignax import estimators
      >>> from alignax.testing import estimator_report, random_world
      >>> world = random_world(jax.random.key(0), horizon=1)
      >>> (row,) = estimator_report(estimators.k1, [world]).rows
      >>> abs(row.value_bias) < 1e-6, round(row.gradient_miss, 3)
      (True, 1.0)
    """
    if not worlds:
        raise InputError("worlds must hold at least one world, got none")
    if any(n < 2 for n in samples) or replicates < 2:
        raise InputError(
            f"samples and replicates must be at least 2, got {samples}, {replicates}"
        )
    record = estimator if isinstance(estimator, Estimator) else None
    function: Any = estimator if record is None else record.function
    if sampled_from is None:
        laws: dict[str, Law] = {"π": "policy", "b": "behaviour", "ρ": "reference"}
        sampled_from = "policy" if record is None else laws[record.sampled_from]
    if sampled_from not in ("policy", "behaviour", "reference"):
        raise InputError(
            f"sampled_from must be policy, behaviour or reference, got {sampled_from!r}"
        )
    name = name or getattr(function, "__name__", type(function).__name__)

    def terms(given: Samples) -> Array:
        if record is not None:
            return record(given)
        return function(given.logp, given.logp_ref, given.mask)

    compiled: dict[Any, Callable[..., Any]] = {}

    def program(kind, world, **static):
        at = (kind, world.apply_fn, world.tokens.shape, *static.values())
        if at not in compiled:
            compiled[at] = jax.jit(
                functools.partial(kind, terms, target, world.apply_fn, **static)
            )
        arrays = (world.policy, world.reference, world.behaviour)
        return functools.partial(
            compiled[at], *arrays, world.prompt, world.tokens, world.mask
        )

    rows = []
    for world in worlds:
        found = program(_exact, world, sampled_from=sampled_from)()
        found = jax.tree.map(float, found)
        if found.pop("coupled"):
            if not samples:
                raise InputError(
                    f"estimator {name} makes a row of its batch depend on the others, "
                    "so that it has no expectation over one sample; give samples, "
                    "such as (64,), to simulate batches"
                )
        else:
            rows.append(Row(settings=world.settings, samples=None, **found))
    key = jax.random.key(0) if key is None else key
    for n in samples:
        for number, world in enumerate(worlds):
            simulate = program(
                _simulated,
                world,
                sampled_from=sampled_from,
                samples=n,
                replicates=replicates,
            )
            found = simulate(jax.random.fold_in(jax.random.fold_in(key, n), number))
            found = jax.tree.map(float, found)
            rows.append(Row(settings=world.settings, samples=n, **found))
    return Report(name, tuple(rows))


def _samples(apply_fn, params, ref, behaviour, prompt, tokens, mask) -> Samples:
    """What an estimator sees of all completions, as a function of the policy."""
    prompts = jnp.broadcast_to(prompt, (len(tokens), len(prompt)))
    whole = jnp.concatenate([prompts, tokens], axis=1)[:, :-1]
    valid = jnp.concatenate([jnp.ones_like(prompts, bool), mask], axis=1)[:, :-1]

    def logits(params):
        start = len(prompt) - 1
        return apply_fn(params, whole, mask=valid, logits_from=start).logits

    def taken(logits):
        return jnp.where(mask, logprobs.token_logp(logits, tokens), 0)

    laws = [logits(p) for p in (params, ref, behaviour)]
    return Samples(
        logp=taken(laws[0]),
        logp_ref=taken(laws[1]),
        logp_behaviour=taken(laws[2]),
        mask=mask,
        tokens=tokens,
        logits=laws[0],
        logits_ref=laws[1],
    )


def _flat(tree) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def _total(terms, given: Samples) -> Float[Array, " N"]:
    found = terms(given)
    if found.shape != given.mask.shape:
        raise InputError(
            f"estimator must return token terms of its input's shape "
            f"{given.mask.shape}, got {found.shape}"
        )
    return jnp.sum(found, axis=-1)


def _truth(target, apply_fn, policy, ref, behaviour, prompt, tokens, mask):
    def value(params):
        given = _samples(apply_fn, params, ref, behaviour, prompt, tokens, mask)
        return target(given.logp.sum(axis=-1), given.logp_ref.sum(axis=-1))

    value, gradient = jax.value_and_grad(value)(policy)
    return value, _flat(gradient)


def _law(given: Samples, sampled_from: Law):
    laws: dict[str, Any] = {
        "policy": given.logp,
        "behaviour": given.logp_behaviour,
        "reference": given.logp_ref,
    }
    return laws[sampled_from].sum(axis=-1)


def _compare(target, gradient_target, gradient) -> dict[str, Array]:
    norm = jnp.linalg.norm(gradient_target)
    length = jnp.linalg.norm(gradient)
    # A gradient of rounding errors points nowhere.
    points = length > 1e-5 * norm
    cosine = gradient @ gradient_target / (jnp.where(points, length, 1) * norm)
    return {
        "target": target,
        "gradient_miss": jnp.linalg.norm(gradient - gradient_target) / norm,
        "gradient_cosine": jnp.where(points, cosine, 0),
    }


def _exact(
    terms, target, apply_fn, policy, ref, behaviour, prompt, tokens, mask, sampled_from
):
    """Expectations over one sample, as finite sums."""
    world = (ref, behaviour, prompt, tokens, mask)
    seen = _samples(apply_fn, policy, *world)
    law = jnp.exp(_law(seen, sampled_from))

    def totals(params):
        return _total(terms, _samples(apply_fn, params, *world))

    def alone(row):
        def total(params):
            one = (ref, behaviour, prompt, *(x[None] for x in row))
            return _total(terms, _samples(apply_fn, params, *one))[0]

        value, gradient = jax.value_and_grad(total)(policy)
        return value, _flat(gradient)

    values = totals(policy)
    gradient = _flat(jax.grad(lambda params: law @ totals(params))(policy))
    # One after the other: a vmapped reverse pass is where compilers have failed.
    singles, rows = jax.lax.map(alone, (tokens, mask))
    # A relative difference far above rounding.
    size = jnp.maximum(jnp.max(jnp.abs(values)), 1e-3)
    coupled = jnp.any(jnp.abs(values - singles) > 1e-3 * size)
    value = law @ values
    truth, slope = _truth(target, apply_fn, policy, *world)
    noise = law @ jnp.sum((rows - gradient[None]) ** 2, axis=-1)
    return _compare(truth, slope, gradient) | {
        "coupled": coupled,
        "value_bias": value - truth,
        "value_bias_half": 0.0,
        "value_std": jnp.sqrt(law @ (values - value) ** 2),
        "gradient_miss_half": 0.0,
        "gradient_std": jnp.sqrt(noise) / jnp.linalg.norm(slope),
    }


def _simulated(
    terms, target, apply_fn, policy, *world_and_key, sampled_from, samples, replicates
):
    """Means of batches, drawn again and again."""
    *world, key = world_and_key
    logp = _law(_samples(apply_fn, policy, *world), sampled_from)

    def one(key):
        chosen = jax.random.categorical(key, logp, shape=(samples,))
        *policies, prompt, tokens, mask = world
        drawn = (*policies, prompt, tokens[chosen], mask[chosen])

        def mean(params):
            return jnp.mean(_total(terms, _samples(apply_fn, params, *drawn)))

        value, gradient = jax.value_and_grad(mean)(policy)
        return value, _flat(gradient)

    values, gradients = jax.lax.map(
        one, jax.random.split(key, replicates), batch_size=min(replicates, 32)
    )
    truth, slope = _truth(target, apply_fn, policy, *world)
    norm, gradient = jnp.linalg.norm(slope), jnp.mean(gradients, axis=0)
    offset = gradient - slope
    away = offset / jnp.maximum(jnp.linalg.norm(offset), 1e-30)
    spread = jnp.std(values, ddof=1), jnp.std(gradients @ away, ddof=1)
    halves = [Z * x / jnp.sqrt(replicates) for x in spread]
    variance = jnp.sum(jnp.var(gradients, axis=0, ddof=1))
    # The mean's own noise lengthens the offset; taken off, none is left on average.
    miss = jnp.sqrt(jnp.maximum(offset @ offset - variance / replicates, 0)) / norm
    return _compare(truth, slope, gradient) | {
        "value_bias": jnp.mean(values) - truth,
        "value_bias_half": halves[0],
        "value_std": spread[0],
        "gradient_miss": miss,
        "gradient_miss_half": halves[1] / norm
        + Z * jnp.sqrt(variance / replicates) / norm * (miss == 0),
        "gradient_std": jnp.sqrt(variance) / norm,
    }
