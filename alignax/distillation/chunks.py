"""A teacher with another tokenizer: the chunks of text that both write whole.

Two tokenisations of one text have some ends in common, and these cut it into chunks of
one or more tokens of either. A chunk is the smallest text that both models gave a
probability to as they went: the product of its tokens'.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax.numerics import as_float


def chunk_ids(
    ends: Int[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    other_ends: Int[Array, "*batch S"],
    other_mask: Bool[Array, "*batch S"],
) -> Int[Array, "*batch T"]:
    """The number of the chunk that each token is in.

    A chunk ends where a token of each side ends, and nowhere in between; tokens with
    the same end are in the same chunk. With the sides exchanged these are the other
    side's numbers of the same chunks.

    Args:
      ends: ``[..., T]``, where in the text each token ends, in any unit that both
        sides count in (characters, bytes); they do not fall from token to token.
      mask: ``[..., T]``, True on tokens of the text.
      other_ends: ``[..., S]`` of the other side's tokens of the same text.
      other_mask: ``[..., S]``, likewise.

    Returns:
      ``[..., T]``, from 0 without a gap; −1 where masked, and behind the last common
      end.

    Reference:
      Niu et al., "Breaking the Tokenizer Barrier: On-Policy Distillation across Model
      Families", arXiv 2606.09456: the same chunks, by two pointers.

    Example:
      >>> student, teacher = jnp.array([1, 3, 4, 6]), jnp.array([2, 3, 6])
      >>> known = student > 0, teacher > 0
      >>> print(chunk_ids(student, known[0], teacher, known[1]))
      [0 0 1 1]
      >>> print(chunk_ids(teacher, known[1], student, known[0]))
      [0 0 1]
    """
    same = ends[..., :, None] == other_ends[..., None, :]
    common = mask & jnp.any(same & other_mask[..., None, :], axis=-1)
    so_far = jax.lax.cummax(jnp.where(mask, ends, -1), axis=ends.ndim - 1)
    before = jnp.concatenate([jnp.full_like(ends[..., :1], -1), so_far[..., :-1]], -1)
    count = jnp.cumsum(common & (ends > before), axis=-1, dtype=jnp.int32)
    ids = count - common.astype(jnp.int32)
    return jnp.where(mask & (ids < count[..., -1:]), ids, -1)


def chunk_sums(
    values: Float[Array, "*batch T"], ids: Int[Array, "*batch T"], *, chunks: int
) -> Float[Array, "*batch C"]:
    """Sums over the tokens of each chunk: of log-probabilities, a chunk's own.

    Args:
      values: ``[..., T]``, anything where there is no chunk.
      ids: ``[..., T]`` of ``chunk_ids``.
      chunks: C, how many there are at the most; what is beyond is left out.

    Returns:
      ``[..., C]`` float32, or float64 if the values came so; zero where there is no
      such chunk.

    Example:
      >>> logp = jnp.log(jnp.array([0.5, 0.5, 0.25]))
      >>> print(jnp.exp(chunk_sums(logp, jnp.array([0, 0, 1]), chunks=3)).round(4))
      [0.25 0.25 1.  ]
    """
    shape, values = ids.shape, as_float(values)
    values = jnp.where(ids >= 0, values, 0).reshape(-1, shape[-1])
    rows = jnp.where(ids >= 0, ids, chunks).reshape(-1, shape[-1])
    summed = jax.vmap(lambda x, i: jax.ops.segment_sum(x, i, num_segments=chunks))
    return summed(values, rows).reshape(*shape[:-1], chunks)


def chunk_logp(
    logp: Float[Array, "*batch T"],
    ids: Int[Array, "*batch T"],
    logp_teacher: Float[Array, "*batch S"],
    teacher_ids: Int[Array, "*batch S"],
) -> Float[Array, "*batch T"]:
    """What a teacher of another tokenizer says of each of the student's tokens.

    The teacher's log-probability of the chunk, less the student's of the chunk's other
    tokens: so the difference from the student's own is ``log π_T(c) − log π(c)``, the
    whole chunk's, at each of its tokens. Where a chunk is one token for both it is the
    teacher's number, bit for bit.

    As an advantage that difference has, in expectation over the student's samples, the
    gradient of the reverse KL of chunks at each chunk's beginning: ``∇ log π(c)`` is
    the sum of the tokens', each with the same factor. (Parts of it, in whatever
    proportion, have not.) It holds which prefixes there are fixed, as token by token,
    and beside them which ends are common ones: where the token that follows decides
    it, that choice is not learned.

    Both probabilities are of the tokens that were written, by the student, and that
    the teacher's tokenizer makes of the text. What either gives other tokens of the
    same text is not counted: where n ways to write a chunk are open to the student, the
    optimum ``π(c) ∝ π_T(text of c)`` takes each as often, the text n times.

    Args:
      logp: the student's ``[..., T]``, when the update begins.
      ids: ``[..., T]`` of ``chunk_ids``.
      logp_teacher: ``[..., S]``, of the teacher's own tokens.
      teacher_ids: ``[..., S]``, of the same chunks.

    Returns:
      ``[..., T]`` float32 in nats, zero where there is no chunk.

    Value: as above; its difference from ``logp`` summed over a chunk is the chunk's
      times the number of its tokens.
    Gradient: not for it; it is held fixed where it is read.

    Example:
      >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.4]))
      >>> found = chunk_logp(student, jnp.zeros(2, int), teacher, jnp.zeros(1, int))
      >>> print((found - student).round(2))
      [0.47 0.47]
    """
    size = ids.shape[-1]
    logp, known = as_float(logp), ids >= 0
    own = chunk_sums(logp, ids, chunks=size)
    theirs = chunk_sums(logp_teacher, teacher_ids, chunks=size)
    own, theirs = (
        jnp.take_along_axis(x, jnp.maximum(ids, 0), axis=-1) for x in (own, theirs)
    )
    # Of one token the inner difference is 0 exactly.
    return jnp.where(known, theirs - (own - logp), 0)
