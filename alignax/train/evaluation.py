"""Completions and their divergence from the reference, to measure with."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alignax import divergences
from alignax.pipeline import rollout as rollouts
from alignax.types import ApplyFn, HiddenFn, Params, Prompts, Rollout


def make_evaluator(
    apply_fn: ApplyFn,
    *,
    max_tokens: int,
    eos_id: int | Sequence[int] | None,
    pad_id: int,
    completions: int,
    hidden_fn: HiddenFn | None = None,
) -> Callable[
    [Params, Params, Key[Array, ""], Prompts], tuple[Rollout, Float[Array, " B"]]
]:
    """``(params, ref_params, key, prompts) -> (rollout, kl [B])``, jitted.

    Args:
      apply_fn: the model.
      max_tokens: of a completion.
      eos_id: the end, or the ends.
      pad_id: fills what follows.
      completions: of each prompt.
      hidden_fn: the model up to its head: the divergence without the logits of all
        tokens.

    Returns:
      the evaluator. ``kl`` is the reverse KL to the reference in nats a completion,
      exact over the vocabulary at each sampled prefix (Rao-Blackwellised over the next
      token).
    """
    generate = partial(
        rollouts.generate,
        apply_fn,
        completions=completions,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    div = divergences.reverse_kl()
    token_kl = rollouts.divergence_by_logits(apply_fn, div)
    if hidden_fn is not None:
        token_kl = rollouts.divergence_by_hidden(
            hidden_fn, div, completions=completions
        )

    @jax.jit
    def evaluate(params, ref_params, key, prompts):
        rollout = generate(params, key, prompts)
        token = token_kl(params, ref_params, rollout)
        return rollout, jnp.sum(jnp.where(rollout.trained, token, 0), axis=-1)

    return evaluate
