"""The update's program, compiled while the first completions are written."""

import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alignax.train.assembly import Parts
from alignax.types import Prompts, TrainState


def _shape(x: Any) -> Any:
    committed = getattr(x, "committed", False)
    return jax.ShapeDtypeStruct(
        jnp.shape(x),
        jax.typeof(x).dtype,
        # A program is found again by these: of an array without a place, none.
        sharding=x.sharding if committed else None,
        weak_type=getattr(x, "weak_type", False),
    )


def beside(parts: Parts) -> Parts:
    """Compile the step in a thread of its own while the first rollout is sampled.

    It takes as long as all else before the first update, and uses one core where
    sampling waits for none. The rollout is taken to be judged by ``rewards`` and
    ``right``; one that is judged by more, or a state that is not of one device, is
    compiled when it comes, as without this.

    Args:
      parts: of ``assembly.of_policy``.

    Returns:
      the parts; the first step waits for the thread, if ``sample`` was called.
    """
    step = parts.step
    if not isinstance(step, partial):
        return parts
    jitted: Any = step.func
    thread: list[threading.Thread] = []

    def scored(state: TrainState, prompts: Prompts) -> Any:
        samples = parts.sample(state, prompts)
        rows = len(samples.rollout.tokens)
        return samples.rewarded(
            rewards=jnp.zeros(rows, jnp.float32), right=jnp.zeros(rows, bool)
        )

    def compiled(shapes: Any) -> None:
        # What cannot be compiled says so where it is called.
        try:
            jitted.lower(*step.args, *shapes).compile()
        except Exception:
            return

    def sample(state: TrainState, prompts: Prompts):
        if not thread:
            shapes = jax.tree.map(_shape, state)
            shapes = shapes, jax.eval_shape(scored, state, prompts)
            thread.append(threading.Thread(target=compiled, args=(shapes,)))
            thread[0].start()
        return parts.sample(state, prompts)

    def update(state: TrainState, batch: Any):
        for each in thread:
            each.join()
        return step(state, batch)

    return parts._replace(sample=sample, step=update)
