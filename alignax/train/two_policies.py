"""Two policies that sample as one: a pioneer and an observer, and a slower copy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from alignax import decoding, selection, surrogates
from alignax.train import joined
from alignax.types import ApplyFn, Prompts, Rollout, TrainState


def among_copy(apply_fn: ApplyFn, *, p: float, temperature: float = 1.0) -> ApplyFn:
    """A policy that draws only what a slower copy of it finds likely (NLPO).

    Args:
      apply_fn: the model.
      p: mass of the copy's likeliest tokens that are kept.
      temperature: of the copy's distribution, as of the policy's.

    Returns:
      the model of ``(params, copy)``: −inf on all other tokens.

    Reference:
      Ramamurthy et al., "Is reinforcement learning (not) for natural language
      processing?", arXiv 2210.01241, §4.
    """

    def kept(logits, logits_copy):
        return surrogates.masked_policy_logits(logits, logits_copy / temperature, p=p)

    return decoding.combine(kept, apply_fn, apply_fn)


def in_turn(
    generate: Callable[..., Rollout],
    state: TrainState,
    key: Key[Array, ""],
    prompts: Prompts,
    *,
    completions: int,
    every: int,
) -> Rollout:
    """A pioneer answers each prompt, an observer the prompt and that answer (CORY).

    Args:
      generate: ``(params, key, prompts, completions=) -> Rollout``.
      state: ``params`` are the two policies'.
      key: consumed.
      prompts: N.
      completions: K, even: half the pioneer's.
      every: steps from one exchange of roles to the next.

    Returns:
      N·K rows; each group's first half is the pioneer's, and row K/2 + i saw row i,
      which is a part of its prompt.

    Reference:
      Ma et al., "Coevolving with the other you: Fine-tuning LLM with sequential
      cooperative multi-agent reinforcement learning" (CORY), arXiv 2410.06101.
    """
    first, second = state.params
    pioneer, observer = selection.exchanged_roles(
        first, second, state.step, every=every
    )
    half = completions // 2
    first = generate(pioneer, key, prompts, completions=half)
    longer = joined.behind(prompts, first.tokens, first.trained, half)
    second = generate(observer, jax.random.fold_in(key, 3), longer, completions=1)
    wide = ((0, 0), (first.tokens.shape[1], 0))
    first = dataclasses.replace(
        first,
        prompt_tokens=jnp.pad(first.prompt_tokens, wide),
        prompt_mask=jnp.pad(first.prompt_mask, wide),
    )
    return _joined(first, second, half)


def _joined(first: Any, second: Any, half: int) -> Any:
    """Rows of two halves, group by group."""

    def join(x, y):
        x, y = (z.reshape(-1, half, *z.shape[1:]) for z in (x, y))
        both = jnp.concatenate([x, y], axis=1)
        return both.reshape(-1, *both.shape[2:])

    return jax.tree.map(join, first, second)


def by_role(
    function: Callable[..., Any], *, completions: int, every: int
) -> Callable[..., Any]:
    """A function of parameters and rows, each row by the policy that wrote it.

    Args:
      function: ``(params, …, rollout) -> pytree of [B, …]``, as scores and values are.
      completions: K, the first half of each group the pioneer's.
      every: steps from one exchange of roles to the next; the rollout's version says
        at which step it was.

    Returns:
      the same of pairs of parameters.
    """
    half = completions // 2

    def both(*args):
        *pairs, rollout = args

        def part(i):
            def rows(x):
                x = x.reshape(-1, 2, half, *x.shape[1:])[:, i]
                return x.reshape(-1, *x.shape[2:])

            return jax.tree.map(rows, rollout)

        step = rollout.version.reshape(-1)[0]
        rows = selection.exchanged_roles(part(0), part(1), step, every=every)
        first, second = [
            function(*[pair[i] for pair in pairs], rows[i]) for i in range(2)
        ]
        return _joined(
            *selection.exchanged_roles(first, second, step, every=every), half
        )

    return both
