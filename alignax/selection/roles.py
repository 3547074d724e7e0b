"""Who generates: exchanged roles, rows with a text in context, versions of a judge."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from alignax.types import InputError

Tree = TypeVar("Tree")


def newest_version(versions: Int[Array, "*G K"]) -> Bool[Array, "*G K"]:
    """Completions that the group's newest judge has scored (MPO).

    Rewards of different rubrics do not compare: give this as ``where`` to
    ``advantages.group_centred``, and to the mask.

    Args:
      versions: ``[..., K]``, the rubric's number beside each reward.

    Returns:
      ``[..., K]``.

    Reference:
      Kim et al., "Toward evaluative thinking: Meta policy optimization with evolving
      reward models", arXiv 2504.20157.

    Example:
      >>> print(newest_version(jnp.array([[1, 2, 2]])))
      [[False  True  True]]
    """
    return versions == jnp.max(versions, axis=-1, keepdims=True)


def unsolved_completions(
    correct: Bool[Array, "*G K"], *, whole_group: bool = False
) -> Array:
    """Where a teacher is still needed: wrong completions (KDRL's guided masking).

    The weight of a distillation term, such as ``estimators.myopic_k2_surrogate`` to
    the teacher.

    Args:
      correct: ``[..., K]``.
      whole_group: only groups without a right completion.

    Returns:
      ``[..., K]`` booleans.

    Reference:
      Xu et al., "KDRL: Post-training reasoning LLMs via unified knowledge
      distillation and reinforcement learning", arXiv 2506.02208, §3.4.

    Example:
      >>> print(unsolved_completions(jnp.array([True, False])))
      [False  True]
    """
    if whole_group:
        none = ~jnp.any(correct, axis=-1, keepdims=True)
        return jnp.broadcast_to(none, correct.shape)
    return ~correct


def exchanged_roles(
    first: Tree, second: Tree, step: Int[Array, ""], *, every: int = 5
) -> tuple[Tree, Tree]:
    """Pioneer and observer, who change places every few steps (CORY).

    The pioneer answers the prompt, the observer the prompt and that answer; both
    learn from the sum of the two rewards.

    Args:
      first: a pytree, the pioneer's at step 0 (parameters, or a whole train state).
      second: one of the same structure.
      step: scalar, from 0.
      every: steps from exchange to exchange, positive.

    Returns:
      pioneer and observer at that step; the same call puts them back.

    Raises:
      InputError: ``every`` is not positive.

    Reference:
      Ma et al., "Coevolving with the other you: Fine-tuning LLM with sequential
      cooperative multi-agent reinforcement learning" (CORY), arXiv 2410.06101.

    Example:
      >>> print(*exchanged_roles(jnp.float32(1), jnp.float32(2), jnp.int32(5)))
      2.0 1.0
    """
    if every < 1:
        raise InputError(f"every must be positive, got {every}")
    turned = (step // every) % 2 == 1

    def pick(x, y):
        return jnp.where(turned, y, x)

    return jax.tree.map(pick, first, second), jax.tree.map(pick, second, first)
