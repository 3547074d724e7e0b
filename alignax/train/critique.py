"""Self-Critique: two greedy answers to a question, the second by another way."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from alignax import diagnostics
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import generation
from alignax.train import policy as policies
from alignax.train.generation import Law
from alignax.train.policy import Policy
from alignax.types import InputError

INSTRUCTION = """
Here is one answer, which may be right or wrong:
---
{answer}
---
Answer again, by another line of reasoning or with another solution."""


def asked_again(prompt: Any, answer: str, *, instruction: str = INSTRUCTION) -> Any:
    """A prompt with its answer and the wish for another one behind it.

    Args:
      prompt: a text, or messages of which the last one is the user's.
      answer: the first one.
      instruction: with ``{answer}`` in it.

    Returns:
      the same kind of prompt.

    Raises:
      InputError: the instruction has no place for the answer.

    Example:
      >>> asked_again("1+1?", "3", instruction=" Not {answer}:")
      '1+1? Not 3:'
    """
    if "{answer}" not in instruction:
        raise InputError(f"instruction must have {{answer}} in it, got {instruction!r}")
    more = instruction.replace("{answer}", answer)
    if isinstance(prompt, str):
        return prompt + more
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + more}]


def scores(
    policy: Policy,
    records: Sequence[Mapping[str, Any]],
    *,
    law: Law,
    plain: bool = False,
    system: str | None = None,
    instruction: str = INSTRUCTION,
) -> Float[np.ndarray, " G"]:
    """``diagnostics.entropy_similarity`` of two greedy answers to each prompt.

    Entropies are over the whole vocabulary, where the paper's code has those of the 50
    likeliest tokens; the instruction says the same as the paper's in other words; both
    answers have the same most tokens, where the paper's code gives the second twice
    as many.

    Args:
      policy: whose.
      records: of G prompts.
      law: its ``max_tokens``, ``stop`` and ``batch``; the answers are greedy.
      plain: leave texts as they are.
      system: a message before the prompt's.
      instruction: of ``asked_again``.

    Returns:
      ``[G]``, NaN where an answer is empty.

    Raises:
      InputError: a prompt with the answer behind it does not fit the context.

    Reference:
      arXiv 2510.09259.
    """
    greedy = dataclasses.replace(law, n=1, greedy=True, temperature=1.0)
    first, mask, texts = _answers(policy, records, greedy, plain, system)
    again = [
        {**record, "prompt": asked_again(record["prompt"], x, instruction=instruction)}
        for record, x in zip(records, texts, strict=True)
    ]
    second, other, _ = _answers(policy, again, greedy, plain, system)
    value = diagnostics.entropy_similarity(
        *(jnp.asarray(x) for x in (first, mask, second, other))
    )
    return np.where(mask.any(-1) & other.any(-1), np.asarray(value), np.nan)


def _answers(policy, records, law, plain, system):
    """Entropies and mask ``[G, T]``, and the texts."""
    prompts = generation.prompts_of(
        records, policy.tokenizer, plain=plain, system=system
    )
    hidden_fn = functional.make_hidden(policy.config)
    score = jax.jit(rollouts.score_by_hidden(hidden_fn))
    params = policies.whole(policy, policy.params)
    entropies, masks, texts = [], [], []
    for batch in generation.batches(policy, prompts, law=law):
        found = score(params, batch.rollout).entropy, batch.rollout.trained
        entropy, mask = (np.asarray(x)[: batch.rows] for x in found)
        entropies.append(entropy)
        masks.append(mask)
        texts += generation.texts_of(batch, policy.tokenizer)
    return np.concatenate(entropies), np.concatenate(masks), texts
