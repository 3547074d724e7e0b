"""Completions of prompts in batches, for the commands that look at a policy."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np

from alignax.models import functional
from alignax.pipeline import data, speculative
from alignax.pipeline import rollout as rollouts
from alignax.train import policy as policies
from alignax.train import stops
from alignax.train.combined import Combined
from alignax.train.drafts import Draft
from alignax.train.policy import Policy
from alignax.train.vocabularies import check_same
from alignax.types import InputError, Params, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """How completions are drawn.

    Raises:
      InputError: a number is out of range.
    """

    n: int = 1
    """Completions of each prompt."""
    max_tokens: int = 128
    """Tokens of the longest completion; what is longer is cut, and counted as not
    finished."""
    temperature: float = 1.0
    """Of the law that is sampled; 1 is the policy's own."""
    top_k: int | None = None
    """Draw from this many likeliest tokens; None for all."""
    top_p: float | None = None
    """Draw from the likeliest tokens of this mass; None for all."""
    greedy: bool = False
    """Take the likeliest token each time."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, too, and are part of it."""
    seed: int = 0
    """Of the draws: each prompt's own, whatever is sampled beside it."""
    batch: int = 8
    """Prompts that are sampled at once."""

    def __post_init__(self):
        for name in ("n", "max_tokens", "batch"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be positive, got {self.temperature}; --greedy takes "
                "the likeliest tokens"
            )
        if self.greedy and self.n > 1:
            raise InputError(
                f"n must be 1 with greedy, which gives the same each time, got {self.n}"
            )


def prompts_of(
    records: Sequence[Mapping[str, Any]],
    tokenizer: data.Tokenizer,
    *,
    plain: bool = False,
    system: str | None = None,
) -> list[str]:
    """The records' prompts as texts: a user's turn where there is a chat template.

    Args:
      records: with the field ``prompt``, texts or messages.
      tokenizer: the policy's.
      plain: leave texts as they are.
      system: a message before the prompt's.

    Returns:
      a text for each.

    Raises:
      InputError: a system message without a chat template or with plain texts, or a
        prompt that is neither text nor messages.
    """
    chat = tokenizer.chat is not None and not plain
    if system is not None and not chat:
        raise InputError(
            "system must be left out where texts are given as they are, without a chat "
            f"template, got {system!r}"
        )
    if chat:
        records = [data.as_chat(record, system=system) for record in records]
    return [
        data.prompt_text(record, tokenizer, where=f"prompt {i}")
        for i, record in enumerate(records)
    ]


class Batch(NamedTuple):
    """The prompts' numbers, and their completions, which are the first ``rows`` of the
    rollout: a last batch is filled up to the size of the others."""

    numbers: list[int]
    rows: int
    rollout: Rollout
    spent: speculative.Speculation | None = None


def batches(
    policy: Policy,
    texts: Sequence[str],
    *,
    law: Law,
    params: Params | None = None,
    combined: Combined | None = None,
    draft: Draft | None = None,
) -> Iterator[Batch]:
    """Sample every prompt's completions; compiled once.

    Args:
      policy: adapters are merged first.
      texts: the prompts.
      law: how.
      params: the decoder's, such as steered ones; None for the policy's own.
      combined: a rule over this model's and other models' logits.
      draft: sample speculatively, in the same law: with fewer passes of the policy, and
        other completions than without, except for greedy ones.

    Yields:
      batch by batch, in order.

    Raises:
      InputError: a prompt is empty, or does not fit the context with ``max_tokens``.
    """
    tokenizer = policy.tokenizer
    context, ahead = policy.config.max_length, 0
    if draft is not None:
        check_same(policy, draft.policy, draft.folder, names=("model", "draft"))
        context, ahead = min(context, draft.policy.config.max_length), draft.tokens
    room = context - law.max_tokens - ahead
    width = data.lengths(texts, tokenizer).prompt
    if width > room:
        raise InputError(
            f"max_tokens must leave room for the prompts in the context of "
            f"{context} tokens: the longest one has {width}, got {law.max_tokens}"
            f"{f', and {ahead} for a draft' if ahead else ''}"
        )
    apply_fn = functional.make_apply(policy.config)
    if params is None:
        params = policies.whole(policy, policy.params)
    if combined is not None:
        apply_fn, params = combined.joined(apply_fn, params)
    generate, kept = rollouts.generate, lambda out: (out, None)
    if draft is not None:
        generate, kept = speculative.generate, lambda out: out
        generate = partial(
            generate,
            draft=functional.make_apply(draft.policy.config),
            rewind=functional.rewind,
            draft_tokens=draft.tokens,
        )
        params = params, policies.whole(draft.policy, draft.policy.params)
    sample = jax.jit(
        partial(
            generate,
            apply_fn,
            completions=law.n,
            max_tokens=law.max_tokens,
            eos_id=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
            temperature=0.0 if law.greedy else law.temperature,
            top_k=law.top_k,
            top_p=law.top_p,
            stops=stops.table(law.stop, tokenizer) if law.stop else None,
        )
    )
    size = min(law.batch, len(texts))
    for start in range(0, len(texts), size):
        numbers = list(range(start, min(start + size, len(texts))))
        filled = numbers + numbers[-1:] * (size - len(numbers))
        prompts = data.encode_prompts(
            [texts[i] for i in filled], tokenizer, length=width, indices=filled
        )
        rollout, spent = kept(sample(params, jax.random.key(law.seed), prompts))
        rows = len(numbers) * law.n
        yield Batch(
            numbers, rows, rollout, jax.tree.map(itemgetter(slice(rows)), spent)
        )


def texts_of(batch: Batch, tokenizer: data.Tokenizer) -> list[str]:
    """The completions of a batch as texts.

    Args:
      batch: of ``batches``.
      tokenizer: the policy's.

    Returns:
      ``batch.rows`` texts, those of a prompt adjacent.
    """
    rollout = batch.rollout
    tokens, mask = (
        np.asarray(x)[: batch.rows] for x in (rollout.tokens, rollout.trained)
    )
    return data.decode_rows(tokens, mask, tokenizer)
