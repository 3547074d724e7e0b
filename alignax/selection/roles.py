"""Who generates: exchanged roles, rows with a text in context, versions of a judge."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alignax.types import InputError

Tree = TypeVar("Tree")


def exchanged(
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
      >>> print(*exchanged(jnp.float32(1), jnp.float32(2), jnp.int32(5)))
      2.0 1.0
    """
    if every < 1:
        raise InputError(f"every must be positive, got {every}")
    turned = (step // every) % 2 == 1

    def pick(x, y):
        return jnp.where(turned, y, x)

    return jax.tree.map(pick, first, second), jax.tree.map(pick, second, first)


def context_rows(*, prompts: int, completions: int, with_context: int) -> np.ndarray:
    """Which rows are sampled with the policy's text before the prompt (TriMPI).

    The last ``with_context`` completions of each prompt explore with the document in
    context; advantages are over the whole group, log-probabilities of all rows under
    the prompt without it, and the sampler's own are the ratio's denominator.

    Args:
      prompts: G.
      completions: K of each.
      with_context: from 0 to K.

    Returns:
      ``[G · K]`` booleans of the host.

    Raises:
      InputError: ``with_context`` is not from 0 to K.

    Reference:
      Wang et al., "Multimodal policy internalization for conversational agents"
      (TriMPI's PolicyRollout), arXiv 2510.09474.

    Example:
      >>> print(context_rows(prompts=2, completions=3, with_context=1))
      [False False  True False False  True]
    """
    if not 0 <= with_context <= completions:
        raise InputError(
            f"with_context must be from 0 to {completions}, got {with_context}"
        )
    return np.tile(np.arange(completions) >= completions - with_context, prompts)


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


def unsolved(correct: Bool[Array, "*G K"], *, whole_group: bool = False) -> Array:
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
      >>> print(unsolved(jnp.array([True, False])))
      [False  True]
    """
    if whole_group:
        none = ~jnp.any(correct, axis=-1, keepdims=True)
        return jnp.broadcast_to(none, correct.shape)
    return ~correct


def mastered(correct: Bool[Array, "*G K"]) -> Bool[Array, "*G"]:
    """Prompts that every completion solves: only regularised from here on (DPH-RL).

    On these the loss is an f-divergence on stored completions of the base model
    (``estimators.sequence_f_reference_surrogate``); on all others the policy term
    stands alone.

    Args:
      correct: ``[..., K]`` of the *base* model's completions.

    Returns:
      ``[...]``.

    Reference:
      Li et al., "The choice of divergence: A neglected key to mitigating diversity
      collapse", arXiv 2509.07430, §3.2.

    Example:
      >>> print(mastered(jnp.array([[True, True], [True, False]])))
      [ True False]
    """
    return jnp.all(correct, axis=-1)
