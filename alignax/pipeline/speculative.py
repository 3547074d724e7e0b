"""Speculative sampling: a small model drafts, the policy accepts, in one program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import logprobs, sampling
from alignax.pipeline import decoding
from alignax.types import ApplyFn, Cache, InputError, Params, Prompts, Rollout


class Speculation(NamedTuple):
    """What it took, row by row; the first token of a row comes from the prompt."""

    calls: Int[Array, " B"]
    """Forward passes of the policy behind the prompt's."""
    drafted: Int[Array, " B"]
    """Tokens that the draft proposed up to the first that was rejected, it included."""
    accepted: Int[Array, " B"]
    """Those of them that the policy took."""
    written: Int[Array, " B"]
    """Tokens that these calls made; the rest of a block after an end is not counted."""


class _Held(NamedTuple):
    """Of each row: how many tokens it has, the last of them, whether that is an end,
    the state of the automaton of stops, what is written, and what it took."""

    count: Int[Array, " B"]
    last: Int[Array, " B"]
    finished: Bool[Array, " B"]
    state: Int[Array, " B"]
    out: decoding.Out
    spent: Speculation


def block_efficiency(found: Speculation) -> Float[Array, ""]:
    """Tokens for each forward pass of the policy, of all rows; γ + 1 at most."""
    return jnp.sum(found.written) / jnp.maximum(jnp.sum(found.calls), 1)


def acceptance(found: Speculation) -> Float[Array, ""]:
    """The share of the draft's tokens that was accepted: of those whose turn came, an
    average of ``Σ_v min(p_v, q_v) = 1 − TV`` over the prefixes they were drawn at."""
    return jnp.sum(found.accepted) / jnp.maximum(jnp.sum(found.drafted), 1)


def residual(
    logp: Float[Array, "*batch V"], logp_draft: Float[Array, "*batch V"]
) -> Float[Array, "*batch V"]:
    """Logits of ``(p − q)_+``: what is drawn where the draft's token was rejected.

    Args:
      logp: ``[..., V]`` of the policy's law.
      logp_draft: ``[..., V]`` of the draft's; all −inf for none, which leaves p.

    Returns:
      ``[..., V]``; p's own where rounding leaves no excess.
    """
    more = logp > logp_draft
    gap = jnp.where(more, logp_draft - logp, -jnp.inf)
    # log(1 − e^gap) of a negative gap.
    excess = jnp.where(more, logp + jnp.log(-jnp.expm1(gap)), -jnp.inf)
    some = jnp.any(excess > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(some, excess, logp)


def generate(
    apply_fn: ApplyFn,
    params: tuple[Params, Params],
    key: Key[Array, ""],
    prompts: Prompts,
    *,
    draft: ApplyFn,
    rewind: Callable[[Cache, Int[Array, " B"]], Cache],
    draft_tokens: int,
    completions: int,
    max_tokens: int,
    eos_id: decoding.Ends,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    slots: int | None = None,
    restricted: bool = False,
    stops: decoding.Stops = None,
    version: int | Int[Array, ""] = 0,
) -> tuple[Rollout, Speculation]:
    """``rollout.generate``'s samples, in law, with fewer forward passes of the policy.

    The draft writes γ tokens, the policy reads them in one pass, and each is accepted
    with probability ``min(1, p/q)``; the first that is not is drawn anew from
    ``(p − q)_+``, and one more token from p where all are. Rows go on by themselves: a
    row's draws come from its key and the position alone. The completions are others
    than ``rollout.generate``'s from the same key, except for greedy ones.

    With ``slots``, that many rows are decoded at a time, and one that has ended makes
    room for the next, so that none waits for the slowest; the samples are the same.
    Each slot has a prompt's cache of its own, of both models.

    Args:
      apply_fn: the policy.
      params: its parameters, and the draft's.
      key: consumed; fold the step in first.
      prompts: ``[N, P]``, padded on either side; every row has a token.
      draft: the small model, of the same vocabulary; it is sampled under the same
        temperature and truncation.
      rewind: ``models.functional.rewind``, which takes rejected tokens back from a
        cache of either model.
      draft_tokens: γ, from 1 to ``max_tokens``.
      completions: K, at least 1.
      max_tokens: T, at least 1. Both models need room for γ more.
      eos_id: token that ends a completion, or several of them; None for never.
      pad_id: fills what follows the end.
      temperature: of the sampling law; 0 is greedy.
      top_k: keep only this many likeliest tokens; None for all.
      top_p: keep the likeliest tokens of this mass; None for all.
      slots: rows decoded at a time; None for all.
      restricted: as in ``rollout.generate``.
      stops: an automaton over tokens, as ``train.stops.table`` makes of texts.
      version: of the policy, such as its step; written on every token.

    Returns:
      a rollout of B = N·K rows whose ``logp_behaviour`` and ``support`` are those of
      the policy's tempered, truncated law, and what it took.

    Raises:
      InputError: a number is out of range, more is drafted than is written, a model
        has no room for γ more tokens, the draft has another vocabulary.

    Reference:
      Leviathan, Kalman and Matias, "Fast inference from transformers via speculative
      decoding", arXiv 2211.17192; Chen et al., arXiv 2302.01318, theorem 1.
    """
    least = {"completions": completions, "max_tokens": max_tokens, "slots": slots}
    for name, value in least.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if temperature < 0:
        raise InputError(
            f"temperature must not be negative, got {temperature}; 0 is greedy"
        )
    if not 1 <= draft_tokens <= max_tokens:
        raise InputError(
            f"draft_tokens must be from 1 to max_tokens, {max_tokens}, got "
            f"{draft_tokens}: no more is drafted than can be written"
        )
    prompts = decoding.left_padded(prompts)
    keys = decoding.row_keys(key, prompts.index, completions)
    rows, length, block = len(keys), prompts.tokens.shape[1], draft_tokens + 1
    room = max_tokens + draft_tokens
    models = tuple(zip((apply_fn, draft), params, strict=True))
    if slots is not None and slots >= rows:
        slots = None  # As many as there are: the shared prompts' way is the cheaper.

    def read(function, own):
        """The first logits, and the prompts' cache."""
        out = function(
            own,
            prompts.tokens,
            mask=prompts.mask,
            cache_length=length,
            logits_from=length - 1,
        )
        return out.logits[:, -1], out.cache

    (first, prefix), (first_draft, draft_prefix) = (read(*model) for model in models)
    prefixes = prefix, draft_prefix

    def opened(prefixes, count):
        """The completions' caches behind those of their prompts."""
        nothing = jnp.zeros((count, 0), prompts.tokens.dtype)
        none = jnp.zeros((count,), jnp.int32)
        return tuple(
            rewind(function(own, nothing, prefix=x, cache_length=room).cache, none)
            for (function, own), x in zip(models, prefixes, strict=True)
        )

    def renewed(caches, slot, prompt):
        """The caches with a slot begun anew behind a prompt."""

        def pick(x):
            return jax.lax.dynamic_slice_in_dim(x, prompt, 1) if x.ndim else x

        def put(old, new):
            if not old.ndim:
                return old
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=0)

        return jax.tree.map(put, caches, opened(jax.tree.map(pick, prefixes), 1))

    if first.shape != first_draft.shape:
        raise InputError(
            f"draft must have the policy's vocabulary of {first.shape[-1]} tokens, got "
            f"{first_draft.shape[-1]}"
        )

    def law(logits):
        """Log-probabilities of the law that is sampled; of one token if greedy."""
        if temperature == 0:
            best = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=bool)
            return jnp.where(best, 0.0, -jnp.inf)
        return logprobs.log_softmax(
            decoding.sampling_logits(
                logits, temperature=temperature, top_k=top_k, top_p=top_p
            )
        )

    def uniforms(keys, position, purpose):
        """[B, 2] of each row's key, its position and what they are for."""

        def one(row, t):
            own = jax.random.fold_in(jax.random.fold_in(row, t), purpose)
            return jax.random.uniform(own, (2,))

        return jax.vmap(one)(keys, position)

    def pick(logp, token):
        return jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]

    def fields(tokens, logp):
        found = {"tokens": tokens, "logp_behaviour": pick(logp, tokens)}
        cut = restricted or not (top_k is None and top_p is None)
        truncated = temperature > 0 and cut
        return found | ({"support": sampling.support_bits(logp)} if truncated else {})

    def put(old, new, start, alive):
        """``new [B, n, …]`` written from a row's ``start`` where ``alive [B, n]``."""

        def one(old, new, start, alive):
            kept = jax.lax.dynamic_slice_in_dim(old, start, len(new))
            alive = jnp.expand_dims(alive, range(1, new.ndim))
            new = jnp.where(alive, new.astype(old.dtype), kept)
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=0)

        return jax.vmap(one)(old, new, start, alive)

    def write(out, found, start, alive):
        found = found | {"trained": jnp.ones(alive.shape, bool)}
        return out | {k: put(out[k], x, start, alive) for k, x in found.items()}

    def over(held):
        return held.finished | (held.count >= max_tokens)

    def round_(own, held, caches):
        """A block more of rows with these keys, each at its own place."""
        count, last, finished, state, out, spent = held
        running, (cache, draft_cache) = ~over(held), caches

        def propose(carry, i):
            token, draft_cache = carry
            logits, draft_cache = draft(params[1], token[:, None], cache=draft_cache)
            logq = law(logits[:, -1])
            token, _ = sampling.inverse_cdf(uniforms(own, count + i, 0), logq)
            return (token.astype(last.dtype), draft_cache), (token, logq)

        (end, draft_cache), (drafted, logq) = jax.lax.scan(
            propose, (last, draft_cache), jnp.arange(draft_tokens)
        )
        drafted, logq = jnp.moveaxis(drafted, 0, 1), jnp.moveaxis(logq, 0, 1)
        # The draft reads its last token too, should all be accepted; no logits of it.
        draft_cache = draft(params[1], end[:, None], cache=draft_cache).cache
        given = jnp.concatenate([last[:, None], drafted.astype(last.dtype)], axis=1)
        logits, cache = apply_fn(params[0], given, cache=cache)
        logp = law(logits)

        chances = jax.vmap(lambda i: uniforms(own, count + i, 1)[:, 0])(
            jnp.arange(draft_tokens)
        )
        ratio = pick(logp[:, :-1], drafted) - pick(logq, drafted)
        taken = jnp.log(jnp.moveaxis(chances, 0, 1)) < ratio
        accepted = jnp.sum(jnp.cumprod(taken, axis=1, dtype=jnp.int32), axis=1)
        # At the place behind the accepted ones: what the draft lacks, or p itself.
        logq = jnp.pad(logq, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)
        here = accepted[:, None, None]
        left = residual(
            *(jnp.take_along_axis(x, here, axis=1)[:, 0] for x in (logp, logq))
        )
        extra, _ = sampling.inverse_cdf(uniforms(own, count + accepted, 2), left)
        places = jnp.arange(block)[None]
        tokens = jnp.where(
            places < accepted[:, None],
            jnp.pad(drafted, ((0, 0), (0, 1))),
            extra[:, None],
        )

        ended, kept = ~running, []
        for i in range(block):
            alive = ~ended & (i <= accepted) & (count + i < max_tokens)
            after, ends = decoding.ending(stops, eos_id, state, tokens[:, i])
            state = jnp.where(alive, after, state)
            finished = finished | (alive & ends)
            ended = ended | (alive & ends)
            kept.append(alive)
        kept = jnp.stack(kept, axis=1)
        number = jnp.sum(kept, axis=1, dtype=jnp.int32)
        out = write(out, fields(tokens, logp), count, kept)
        ends_at = jnp.maximum(number - 1, 0)[:, None]
        last = jnp.where(
            number > 0, jnp.take_along_axis(tokens, ends_at, axis=1)[:, 0], last
        ).astype(last.dtype)
        back = block - number
        spent = Speculation(
            spent.calls + running,
            spent.drafted
            + jnp.where(running, jnp.minimum(accepted + 1, draft_tokens), 0),
            spent.accepted + jnp.where(running, accepted, 0),
            spent.written + number,
        )
        held = _Held(count + number, last, finished, state, out, spent)
        return held, (rewind(cache, back), rewind(draft_cache, back))

    def in_slots(carry):
        """A block more of each slot's row; others take the places of the ended."""
        waiting, row, held, caches = carry
        # Idle slots stand at row ``rows``, whose writes are dropped.
        known = jnp.minimum(row, rows - 1)
        mine = jax.tree.map(lambda x: x[known], held)
        mine = mine._replace(finished=mine.finished | (row == rows))
        mine, caches = round_(keys[known], mine, caches)
        held = jax.tree.map(lambda x, y: x.at[row].set(y, mode="drop"), held, mine)
        free = (row < rows) & over(mine)
        following = waiting + jnp.cumsum(free, dtype=jnp.int32) - free
        row = jnp.where(free, jnp.minimum(following, rows), row)
        fresh = free & (row < rows)
        prompt = jnp.minimum(row, rows - 1) // completions
        order = jnp.argsort(~fresh, stable=True)
        caches = jax.lax.fori_loop(
            0,
            jnp.sum(fresh, dtype=jnp.int32),
            lambda i, caches: renewed(caches, order[i], prompt[order[i]]),
            caches,
        )
        return waiting + jnp.sum(free, dtype=jnp.int32), row, held, caches

    def blank(x, fill):
        return jnp.full((rows, room, *x.shape[1:]), fill, x.dtype)

    zeros = jnp.zeros((rows,), jnp.int32)
    logp = law(jnp.repeat(first, completions, axis=0))
    token, _ = sampling.inverse_cdf(uniforms(keys, zeros, 0), logp)
    found = fields(token, logp)
    fill = {"tokens": pad_id, "support": 255}
    out = {name: blank(x, fill.get(name, 0)) for name, x in found.items()}
    out |= {"trained": jnp.zeros((rows, room), bool)}
    out |= {"tokens": out["tokens"].astype(prompts.tokens.dtype)}
    everyone = jnp.ones((rows, 1), bool)
    out = write(out, {k: x[:, None] for k, x in found.items()}, zeros, everyone)
    state, finished = decoding.ending(stops, eos_id, zeros, token)
    last = token.astype(prompts.tokens.dtype)
    spent = Speculation(zeros, zeros, zeros, zeros)
    held = _Held(zeros + 1, last, finished, state, out, spent)
    if slots is None:
        held, _ = jax.lax.while_loop(
            lambda carry: jnp.any(~over(carry[0])),
            lambda carry: round_(keys, *carry),
            (held, opened(prefixes, rows)),
        )
    else:
        row = jnp.arange(slots, dtype=jnp.int32)
        behind = jax.tree.map(
            lambda x: x[row // completions] if x.ndim else x, prefixes
        )
        _, _, held, _ = jax.lax.while_loop(
            lambda carry: jnp.any(carry[1] < rows),
            in_slots,
            (jnp.int32(slots), row, held, opened(behind, slots)),
        )
    _, _, finished, _, out, spent = held
    out = {name: x[:, :max_tokens] for name, x in out.items()}
    out["logp_behaviour"] = jnp.where(out["trained"], out["logp_behaviour"], 0.0)
    tokens, mask = (
        jnp.repeat(x, completions, axis=0) for x in (prompts.tokens, prompts.mask)
    )
    tempered = temperature not in (0, 1)
    rollout = Rollout(
        prompt_tokens=tokens,
        prompt_mask=mask,
        attended=out["trained"],
        version=jnp.full(out["tokens"].shape, version, jnp.int32),
        temperature=jnp.full(len(tokens), temperature) if tempered else None,
        finished=finished,
        **out,
    )
    return rollout, spent
