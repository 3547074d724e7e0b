"""Small models that draft what a policy then accepts or replaces."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array, Key

from alignax.models import functional
from alignax.pipeline import speculative
from alignax.train.policy import Policy
from alignax.types import ApplyFn, Params, Prompts, Rollout


class Draft(NamedTuple):
    """A small model that proposes so many ``tokens`` at a time."""

    policy: Policy
    tokens: int
    folder: Path


def writer(draft: ApplyFn, params: Params, *, tokens: int) -> Callable[..., Rollout]:
    """``rollout.generate`` of the same law, with fewer passes of the policy.

    Args:
      draft: the small model, of the same vocabulary.
      params: its parameters, which stay as they are while the policy learns.
      tokens: that are drafted at a time; fewer where fewer are written.

    Returns:
      the function; its rollouts have ``spent``. Its samples are others than
      ``rollout.generate``'s from the same key, except for greedy ones. It raises what
      ``speculative.generate`` raises.
    """

    def generate(
        apply_fn: ApplyFn,
        own: Params,
        key: Key[Array, ""],
        prompts: Prompts,
        *,
        max_tokens: int,
        **options: Any,
    ) -> Rollout:
        rollout, spent = speculative.generate(
            apply_fn,
            (own, params),
            key,
            prompts,
            draft=draft,
            rewind=functional.rewind,
            draft_tokens=min(tokens, max_tokens),
            max_tokens=max_tokens,
            **options,
        )
        return dataclasses.replace(rollout, spent=spent)

    return generate


def metrics(rollout: Rollout) -> dict[str, Any]:
    """What a draft saved; nothing of a rollout without one.

    Args:
      rollout: of any sampler.

    Returns:
      ``draft_accepted``, the share of its tokens that the policy took, and
      ``draft_block``, tokens for each pass of the policy.
    """
    if rollout.spent is None:
        return {}
    return {
        "draft_accepted": speculative.acceptance(rollout.spent),
        "draft_block": speculative.block_efficiency(rollout.spent),
    }
