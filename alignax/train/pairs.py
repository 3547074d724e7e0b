"""What a policy and its reference say of pairs and of answers, token by token."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import divergences, logprobs, reduce
from alignax.pipeline.data import PairRows
from alignax.train.supervised import ScoreFn, answer_logits
from alignax.types import ApplyFn, HiddenFn, Params, Supervised


class Laws(NamedTuple):
    """Of the tokens after the first, each ``[N, S - 1]`` and 0 outside of answers."""

    logp: Float[Array, "N T"]
    logp_ref: Float[Array, "N T"]
    kl: Float[Array, "N T"]  # KL(ρ‖π), exact over the vocabulary
    log_collision: Float[Array, "N T"]  # log Σ π²


LawsFn = Callable[[Params, Params, Supervised], Laws]
"""``(params, reference's params, rows) -> Laws``, for losses that need the laws."""


def laws_by_logits(apply_fn: ApplyFn) -> LawsFn:
    """The tokens' laws of any model, from its logits at all positions.

    Args:
      apply_fn: the model, of policy and reference.

    Returns:
      the function.
    """

    def laws(params, reference, rows):
        logits, logits_ref = (
            answer_logits(apply_fn, p, rows) for p in (params, reference)
        )
        targets, mask = rows.tokens[:, 1:], rows.loss_mask[:, 1:]
        found = (
            logprobs.token_logp(logits, targets),
            logprobs.token_logp(logits_ref, targets),
            divergences.exact(divergences.forward_kl(), logits, logits_ref),
            jax.nn.logsumexp(2 * logprobs.log_softmax(logits), axis=-1),
        )
        return Laws(*(reduce.masked(x, mask) for x in found))

    return laws


def laws_by_hidden(hidden_fn: HiddenFn) -> LawsFn:
    """The same without logits, some blocks of the vocabulary at a time.

    Args:
      hidden_fn: the model up to its head, of policy and reference.

    Returns:
      the function; values and gradients are those of ``laws_by_logits``.
    """

    def laws(params, reference, rows):
        out, ref = (
            hidden_fn(p, rows.tokens[:, :-1], mask=rows.mask[:, :-1])
            for p in (params, reference)
        )
        targets, mask = rows.tokens[:, 1:], rows.loss_mask[:, 1:]
        (hidden, hidden_ref) = (
            x.hidden.reshape(-1, x.hidden.shape[-1]) for x in (out, ref)
        )

        def stats(hidden, of, temperature=1.0):
            return logprobs.from_hidden(
                hidden,
                of.head,
                targets.reshape(-1),
                temperature=temperature,
                soft_cap=of.soft_cap,
            )

        ours = stats(hidden, out)
        # log Σ (e^z / Z)² = log Σ e^{2z} − 2 log Z.
        twice = stats(jax.lax.stop_gradient(hidden), out, temperature=0.5)
        found = (
            ours.logp,
            stats(hidden_ref, ref).logp,
            logprobs.divergence_from_hidden(
                divergences.forward_kl(),
                hidden,
                out.head,
                hidden_ref,
                ref.head,
                soft_cap=out.soft_cap,
                soft_cap_ref=ref.soft_cap,
            ),
            jax.lax.stop_gradient(twice.log_normaliser - 2 * ours.log_normaliser),
        )
        return Laws(*(reduce.masked(x.reshape(targets.shape), mask) for x in found))

    return laws


def both_sides(pairs: PairRows) -> Supervised:
    """The preferred completions' rows, then the others'.

    Args:
      pairs: N of them.

    Returns:
      2N rows.
    """
    return jax.tree.map(lambda *x: jnp.concatenate(x), pairs.chosen, pairs.rejected)


def pair_logp(
    score: ScoreFn, params: Params, pairs: PairRows
) -> tuple[Float[Array, "N T"], Float[Array, "N T"]]:
    """Token log-probabilities of both sides, by one forward.

    Args:
      score: of answers' tokens.
      params: the model's parameters.
      pairs: N of them, of width S.

    Returns:
      ``[N, S - 1]`` of the preferred completions and of the others.
    """
    w, l = jnp.split(score(params, both_sides(pairs)), 2)
    return w, l


def with_reference(score: ScoreFn, params: Params) -> Callable[[PairRows], PairRows]:
    """A function that stores the reference's log-probabilities in the pairs.

    A run on such pairs holds no parameters of the reference.

    Args:
      score: of answers' tokens.
      params: the reference's.

    Returns:
      ``pairs -> pairs``, jitted.
    """
    scored = jax.jit(partial(pair_logp, score))
    return lambda pairs: pairs._replace(logp_ref=scored(params, pairs))


def mismatched(rows: Supervised) -> Supervised:
    """Each prompt with the answer of the row before it, the first with the last's.

    What KTO measures its anchor on. What does not fit the width is cut off.

    Args:
      rows: ``[N, S]``, N at least 2.

    Returns:
      rows of the same prompts.

    Reference:
      Ethayarajh et al., "KTO", arXiv 2402.01306, §4.1; TRL's ``KTOTrainer`` shifts its
      batches alike.
    """
    before = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), rows)
    place = jnp.arange(rows.tokens.shape[1])[None]

    def lengths(x):
        return jnp.sum(x.mask & ~x.loss_mask, axis=1, keepdims=True)

    head = lengths(rows)
    source = place - head + lengths(before)
    given = place < head
    answer = ~given & (source < jnp.sum(before.mask, axis=1, keepdims=True))
    moved = jnp.take_along_axis(before.tokens, source, axis=1, mode="clip")
    return dataclasses.replace(
        rows,
        tokens=jnp.where(given, rows.tokens, jnp.where(answer, moved, 0)),
        mask=given | answer,
        loss_mask=answer,
    )
