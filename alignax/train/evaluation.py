"""Completions and their divergence from the reference, to measure with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from alignax import divergences
from alignax.pipeline import rollout as rollouts
from alignax.train.policy import Policy, jitted
from alignax.types import Params, Prompts, Rollout


def make_writer(
    policy: Policy, *, max_tokens: int, completions: int, stops: Any = None
) -> Callable[[Params, Key[Array, ""], Prompts], Rollout]:
    """``(params, key, prompts) -> rollout``, compiled: plain completions.

    Args:
      policy: the model; its tokenizer says the ends.
      max_tokens: of a completion.
      completions: of each prompt.
      stops: of ``stops.table``: texts that end a completion.

    Returns:
      the function.
    """
    drawn = {
        "completions": completions,
        "max_tokens": max_tokens,
        "eos_id": policy.tokenizer.end_ids,
        "pad_id": policy.tokenizer.pad_id,
        "stops": stops,
    }

    def build(apply_fn, _):
        return partial(rollouts.generate, apply_fn, **drawn)

    return jitted(policy, build, name="write")


def make_evaluator(
    policy: Policy,
    write: Callable[[Params, Key[Array, ""], Prompts], Rollout],
    *,
    completions: int,
) -> Callable[
    [Params, Params, Key[Array, ""], Prompts], tuple[Rollout, Float[Array, " B"]]
]:
    """``(params, ref_params, key, prompts) -> (rollout, kl [B])``, compiled.

    Args:
      policy: the model.
      write: of ``make_writer``, or of several turns.
      completions: of each prompt.

    Returns:
      the evaluator. ``kl`` is the reverse KL to the reference in nats a completion,
      exact over the vocabulary at each sampled prefix (Rao-Blackwellised over the next
      token).
    """

    def build(_, hidden_fn):
        token_kl = rollouts.divergence_by_hidden(
            hidden_fn, divergences.reverse_kl(), completions=completions
        )

        def of(params, ref_params, rollout):
            token = token_kl(params, ref_params, rollout)
            return jnp.sum(jnp.where(rollout.trained, token, 0), axis=-1)

        return of

    kl_of = jitted(policy, build, name="kl_of")

    def evaluate(params, ref_params, key, prompts):
        rollout = write(params, key, prompts)
        return rollout, kl_of(params, ref_params, rollout)

    return evaluate


def win_rate(
    rewards: Float[ArrayLike, "G K"], others: Float[ArrayLike, "G M"]
) -> Float[np.ndarray, " G"]:
    """How often a completion's reward is above another policy's, prompt by prompt.

    Args:
      rewards: ``[G, K]``.
      others: ``[G, M]``, of the same prompts.

    Returns:
      ``[G]``: the share over all K·M pairs, a tie counting half; NaN rewards are left
      out, and a prompt without a pair is NaN.
    """
    a, b = np.asarray(rewards)[:, :, None], np.asarray(others)[:, None, :]
    known = np.isfinite(a) & np.isfinite(b)
    won = np.where(known, (a > b) + 0.5 * (a == b), 0).sum((1, 2))
    pairs = known.sum((1, 2))
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)
