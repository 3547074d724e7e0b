"""How different the completions of one prompt are."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from alignax.numerics import as_float
from alignax.types import InputError


def distinct(
    tokens: Int[ArrayLike, "G K T"], mask: Bool[ArrayLike, "G K T"], *, n: int
) -> Float[np.ndarray, " G"]:
    """distinct-n of each prompt's completions: different n-grams over all of them.

    Args:
      tokens: ids.
      mask: True on generated tokens, from the first on.
      n: tokens of an n-gram.

    Returns:
      ``[G]`` in [0, 1], 1 where no n-gram comes twice; NaN where there is none.

    Reference:
      Li et al., "A Diversity-Promoting Objective Function for Neural Conversation
      Models", arXiv 1510.03055, §5.
    """
    shares = []
    for rows, kept in zip(np.asarray(tokens), np.asarray(mask), strict=True):
        grams = [
            tuple(row[: keep.sum()][i : i + n].tolist())
            for row, keep in zip(rows, kept, strict=True)
            for i in range(int(keep.sum()) - n + 1)
        ]
        shares.append(len(set(grams)) / len(grams) if grams else np.nan)
    return np.array(shares)


def self_bleu(texts: Sequence[Sequence[str]]) -> Float[np.ndarray, " G"]:
    """Self-BLEU of each prompt's completions: the mean BLEU of one against the others.

    BLEU-4 of a sentence by sacrebleu, with its tokenizer (13a), exponential smoothing
    and effective order, over all others as references. High is alike, unlike
    ``distinct``.

    Args:
      texts: the completions of each of G prompts.

    Returns:
      ``[G]`` in [0, 1], 1 where all are the same; NaN where there are fewer than two
      completions that say anything.

    Raises:
      InputError: the package sacrebleu is not installed.

    Reference:
      Zhu et al., "Texygen: A Benchmarking Platform for Text Generation Models",
      arXiv 1802.01886, §3.2; Post, "A Call for Clarity in Reporting BLEU Scores",
      arXiv 1804.08771.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError(
            'self-BLEU needs the package sacrebleu; pip install "alignax[text]" would '
            "do."
        ) from error
    bleu, means = BLEU(effective_order=True), []
    for group in texts:
        said = [text for text in group if text.strip()]
        scores = [
            bleu.sentence_score(text, said[:i] + said[i + 1 :]).score
            for i, text in enumerate(said)
            if len(said) > 1
        ]
        means.append(np.mean(scores) / 100 if scores else np.nan)
    return np.array(means, np.float64)


def embedding_diversity(
    embeddings: Float[Array, "*batch K D"],
) -> Float[Array, "*batch"]:
    """The mean of ``1 − max(cosine, 0)`` over the pairs of one prompt's completions.

    The score of verbalized sampling's code (``evals/diversity.py``), which takes
    embeddings of OpenAI's text-embedding-3-small and one mean over the pairs of all
    prompts; with as many completions for each, that is the mean of these.

    Args:
      embeddings: ``[..., K, D]``, a vector for each completion.

    Returns:
      ``[...]`` in [0, 1]: 0 where all point the same way. A zero vector is as far from
      all others as one at a right angle; its gradient is zero. NaN for K = 1.

    Reference:
      Zhang et al., "Verbalized Sampling: How to Mitigate Mode Collapse and Unlock LLM
      Diversity", arXiv 2510.01171; code of CHATS-lab/verbalized-sampling.

    Example:
      >>> vectors = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
      >>> print(f"{embedding_diversity(vectors):.4f}")
      0.5286
    """
    x = as_float(embeddings)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    # Inside the root too: the gradient at 0 is 0, not NaN.
    unit = jnp.where(square > 0, x / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    count = x.shape[-2]
    if count < 2:
        return jnp.full(x.shape[:-2], jnp.nan, x.dtype)
    first, second = np.triu_indices(count, 1)
    cosine = jnp.sum(unit[..., first, :] * unit[..., second, :], axis=-1)
    return jnp.mean(1 - jnp.clip(cosine, 0, 1), axis=-1)
