"""Completions in parts: what a step leaves unfinished, the next steps go on with.

A long completion holds up nobody: each step writes at most some tokens of every row,
and a group whose rows have not all ended keeps its place until they have. Every token
has the log-probability and the version of the policy that wrote it.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from alignax import algorithms, reduce
from alignax.algorithms import Sampling
from alignax.pipeline import decoding
from alignax.train import joined
from alignax.train.assembly import Parts
from alignax.train.samples import Samples
from alignax.types import InputError, Params, Prompts, Rollout, TrainState

OPEN = "open"
"""The groups that go on, in the state's memory."""


def in_parts(parts: Parts, *, max_tokens: int, window: bool = False) -> Parts:
    """The same parts, whose samples go on from step to step.

    Args:
      parts: of ``assembly.make``: its tokens are those of one step.
      max_tokens: of a whole completion; one that reaches them is cut.
      window: train on what each step writes, whether or not the completion has ended,
        as T-PPO does; else a group is trained once, when all of its rows have ended.

    Returns:
      the parts. The state's memory has the open groups, so that a resumed run goes on
      with them; ``init`` must be given ``prompts``, and a loop of one's own puts
      ``samples.memory`` into the state before the step. A prompt whose place is taken
      is left out. ``scored.index`` says whose completions the rows are. Ratios are to
      the policies that wrote the tokens: ``logp_old`` is theirs, but of methods whose
      weights are of ``logp_old`` to the sampler's (TIS), which have this step's. The
      host judges open groups, too, and their rewards are in the metrics. A prompt is
      encoded again for each row.

    Raises:
      InputError: the method samples or replays by a rule of its own or holds its ratio
        at 1, completions begin with a prefix, or ``max_tokens`` is less than 1.

    Reference:
      Kimi Team, "Kimi k1.5", arXiv 2501.12599, §2.6.2 (partial rollouts); Fan et al.,
      "Truncated proximal policy optimization", arXiv 2506.15050.

    Example:
      >>> def long(parts):
      ...     return in_parts(parts, max_tokens=1024)
    """
    if parts.algorithm.sampling != Sampling() or parts.algorithm.replay is not None:
        raise InputError(
            "algorithm samples or replays by a rule of its own, which completions in "
            "parts do not follow: take one that samples its own completions alone"
        )
    if parts.algorithm.on_policy:
        raise InputError(
            "algorithm holds its ratio at 1, so that tokens of older policies would be "
            "biased: take one with a ratio"
        )
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    if parts.prefix:
        raise InputError(
            "prefix must be empty where completions go on from their parts"
        )
    completions = parts.completions
    weighs = algorithms.reads_behaviour(parts.algorithm)

    def by_row(x: Array) -> Array:
        return jnp.repeat(x, completions, axis=0)

    def unfinished(rollout: Rollout) -> Bool[Array, " B"]:
        return ~rollout.finished & (jnp.sum(rollout.attended, axis=-1) < max_tokens)

    @jax.jit
    def taken(old: Prompts, new: Prompts, rollout: Rollout, kept: Bool[Array, " G"]):
        """Open groups and, in the other places, fresh prompts; what is seen of them."""
        prompts = jax.tree.map(
            lambda x, y: jnp.where(jnp.expand_dims(kept, range(1, x.ndim)), x, y),
            old,
            new,
        )
        none = jnp.zeros_like(rollout.attended)
        blank = dataclasses.replace(
            joined.foreign(rollout, jnp.zeros_like(rollout.tokens), none),
            finished=jnp.zeros_like(rollout.finished),
        )
        rollout = dataclasses.replace(
            joined.picked(by_row(kept), rollout, blank),
            prompt_tokens=by_row(prompts.tokens),
            prompt_mask=by_row(prompts.mask),
        )
        rows = joined.behind(prompts, rollout.tokens, rollout.attended, completions)
        return prompts, rollout, rows

    @jax.jit
    def grown(rollout: Rollout, more: Rollout) -> Rollout:
        longer = joined.appended(rollout, more)
        return joined.picked(unfinished(rollout), longer, rollout)

    @jax.jit
    def shown(rollout: Rollout, step: Array):
        """What of it is trained at this step, and which groups stay open."""
        rows = unfinished(rollout).reshape(-1, completions)
        still_open = jnp.any(rows, axis=-1)
        now = rollout.version == step if window else ~by_row(still_open)[:, None]
        trained = rollout.trained & now
        record = dataclasses.replace(
            rollout,
            trained=trained,
            logp_behaviour=reduce.masked(rollout.logp_behaviour, trained),
        )
        return record, still_open

    def sample(state: TrainState, prompts: Prompts) -> Samples:
        key = jax.random.fold_in(state.key, state.step)
        asked = decoding.left_padded(prompts)
        write = partial(parts.generate, state.params, key, version=state.step)
        held = (state.memory or {})[OPEN]
        asked, rollout, rows = taken(
            held["prompts"], asked, held["rollout"], held["open"]
        )
        rollout = grown(rollout, write(rows, completions=1))
        record, still_open = shown(rollout, state.step)
        held = {"prompts": asked, "rollout": rollout, "open": still_open}
        # A copy: the step is given the state's memory, and the record beside it.
        held = jax.tree.map(jnp.copy, held)
        scored = parts.score(
            state, asked.index, record, rescore=True if weighs else None
        )
        if not weighs:
            # Where it was scored again, older tokens' ratios stay to their own policy.
            old = record.version < state.step
            logp_old = jnp.where(old, record.logp_behaviour, scored.logp_old)
            scored = dataclasses.replace(scored, logp_old=logp_old)
        return Samples(scored, None, {OPEN: held})

    def init(params: Params, key: Key[Array, ""], **slots: Any) -> TrainState:
        prompts = slots.get("prompts")
        if prompts is None:
            raise InputError(
                "prompts must be given: a batch for its shapes, of the open groups"
            )
        state = parts.init(params, key, **slots)
        asked = jax.tree.map(jnp.asarray, decoding.left_padded(prompts))

        def written(params, prompts):
            rollout = parts.generate(params, key, prompts, version=state.step)
            return joined.widened(rollout, max_tokens)

        nothing = {
            "prompts": asked,
            "rollout": jax.eval_shape(written, params, asked),
            "open": jnp.zeros(len(prompts.index), bool),
        }
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)
        memory = {**(state.memory or {}), OPEN: nothing}
        return dataclasses.replace(state, memory=memory)

    return parts._replace(init=init, sample=sample)
