"""The two loops behind ``rollout.generate``, and what they share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from alignax import sampling
from alignax.types import ApplyFn, Params, Prompts, Rollout


def left_padded(prompts: Prompts) -> Prompts:
    """The same prompts with their padding, wherever it was, on the left."""
    order = jnp.argsort(prompts.mask, axis=-1, stable=True)
    return Prompts(
        tokens=jnp.take_along_axis(prompts.tokens, order, axis=-1),
        mask=jnp.take_along_axis(prompts.mask, order, axis=-1),
        index=prompts.index,
    )


def row_keys(
    key: Key[Array, ""], index: Int[Array, " N"], completions: int
) -> Key[Array, " B"]:
    """One key a completion, from the prompt's record number and the completion's.

    So a row's sample does not depend on which rows it shares a batch or a device
    with. A record that stands in the batch twice gets other keys the second time.
    """
    same = index[:, None] == index[None, :]
    occurrence = jnp.sum(jnp.tril(same, -1), axis=-1)

    def keys_of(index, occurrence):
        base = jax.random.fold_in(jax.random.fold_in(key, index), occurrence)
        return jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.arange(completions))

    return jax.vmap(keys_of)(index, occurrence).reshape(-1)


def sampling_logits(
    logits: Float[Array, "*batch V"],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Float[Array, "*batch V"]:
    """Logits of the law that is sampled: temperature, then top-k, then top-p."""
    if temperature != 1:
        logits = sampling.tempered(logits, temperature=temperature)
    if top_k is not None:
        logits = sampling.top_k(logits, k=top_k)
    if top_p is not None:
        logits = sampling.top_p(logits, p=top_p)
    return logits


Out = dict[str, Array]
"""A rollout's fields that are sampled."""

Draw = Callable[[Key[Array, " B"], Int[Array, " B"], Float[Array, "B V"]], Out]
"""``(row keys, positions, logits) -> fields of one token a row``: ``tokens``,
``logp_behaviour`` and, of a truncated distribution, its ``support``."""


def make_draw(
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    restricted: bool = False,
) -> Draw:
    """The draw of one token a row, from its key and its position in the completion."""

    def draw(keys, positions, logits):
        if temperature == 0:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return {
                "tokens": token,
                "logp_behaviour": jnp.zeros(token.shape, jnp.float32),
            }
        law = sampling_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        uniforms = jax.vmap(
            lambda row, t: jax.random.uniform(jax.random.fold_in(row, t), (2,))
        )(keys, positions)
        token, normaliser = sampling.inverse_cdf(uniforms, law)
        picked = jnp.take_along_axis(law, token[:, None], axis=-1)[:, 0]
        drawn = {"tokens": token, "logp_behaviour": picked - normaliser}
        if top_k is None and top_p is None and not restricted:
            return drawn
        return drawn | {"support": sampling.support_bits(law)}

    return draw


def empty(
    draw: Draw,
    keys: Key[Array, " B"],
    vocabulary: int,
    *,
    max_tokens: int,
    pad_id: int,
    dtype: Any,
) -> Out:
    """The fields of B rows before anything is drawn."""
    logits = jax.ShapeDtypeStruct((1, vocabulary), jnp.float32)
    drawn = jax.eval_shape(draw, keys[:1], jnp.zeros((1,), jnp.int32), logits)
    shape = (len(keys), max_tokens)
    # Where no token is drawn, none is ruled out.
    fill = {"tokens": pad_id, "support": 255}
    fields = {
        name: jnp.full(shape + x.shape[1:], fill.get(name, 0), x.dtype)
        for name, x in drawn.items()
    }
    return fields | {
        "tokens": fields["tokens"].astype(dtype),
        "trained": jnp.zeros(shape, bool),
        "finished": jnp.zeros(shape[:1], bool),
    }


Ends = int | Sequence[int] | None
"""Which token, or any of which, ends a completion."""


Stops = Int[ArrayLike, "S V"] | None
"""An automaton over tokens, whose last state ends a completion: ``train.stops``."""


def ending(
    stops: Stops, eos_id: Ends, state: Int[Array, " B"], token: Int[Array, " B"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The automaton's state after a token, and whether that one ends its row."""
    state = _after(stops, state, token)
    return state, _ends(token, eos_id) | _stopped(stops, state)


def _ends(token: Int[Array, " B"], eos_id: Ends) -> Bool[Array, " B"]:
    if eos_id is None:
        return jnp.zeros(token.shape, bool)
    return jnp.isin(token, jnp.array(eos_id))


def _after(stops: Stops, state: Int[Array, " B"], token: Int[Array, " B"]) -> Array:
    """The automaton's state after a token; one that it does not know is no letter."""
    if stops is None:
        return state
    stops = jnp.asarray(stops)
    width = stops.shape[1]
    after = stops[state, jnp.minimum(token, width - 1)].astype(jnp.int32)
    return jnp.where(token < width, after, 0)


def _stopped(stops: Stops, state: Int[Array, " B"]) -> Bool[Array, " B"]:
    if stops is None:
        return jnp.zeros(state.shape, bool)
    return state == jnp.shape(stops)[0] - 1


def at_once(
    apply_fn: ApplyFn,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, " B"],
    draw: Draw,
    *,
    completions: int,
    max_tokens: int,
    eos_id: Ends,
    pad_id: int,
    stops: Stops = None,
) -> Out:
    """All rows in step, a group's prompt held once for all of its completions."""
    rows, length = len(keys), prompts.tokens.shape[1]

    def write(t, out, state, logits):
        """Sample position t from ``logits`` and write it down."""
        drawn = draw(keys, jnp.full((rows,), t), logits)
        alive = ~out["finished"]

        def put(name, value):
            kept = jnp.expand_dims(alive, range(1, value.ndim))
            return out[name].at[:, t].set(jnp.where(kept, value, out[name][:, t]))

        new = {name: put(name, x) for name, x in drawn.items()}
        state, ends = ending(stops, eos_id, state, drawn["tokens"])
        new |= {"trained": put("trained", alive), "finished": out["finished"] | ends}
        return new, state

    prefill = apply_fn(
        params,
        prompts.tokens,
        mask=prompts.mask,
        cache_length=length,
        logits_from=length - 1,
    )
    out = empty(
        draw,
        keys,
        prefill.logits.shape[-1],
        max_tokens=max_tokens,
        pad_id=pad_id,
        dtype=prompts.tokens.dtype,
    )
    state = jnp.zeros((rows,), jnp.int32)
    logits = jnp.repeat(prefill.logits[:, -1], completions, axis=0)
    out, state = write(0, out, state, logits)
    if max_tokens == 1:
        return out

    def unfinished(carry):
        t, out, *_ = carry
        return (t < max_tokens) & ~jnp.all(out["finished"])

    def step(carry):
        t, out, state, cache = carry
        last = jax.lax.dynamic_slice_in_dim(out["tokens"], t - 1, 1, axis=1)
        logits, cache = apply_fn(params, last, cache=cache)
        return t + 1, *write(t, out, state, logits[:, -1]), cache

    # A prompt's cache is shared by its completions; their own is opened empty.
    nothing = out["tokens"][:, :0]
    opened = apply_fn(
        params, nothing, prefix=prefill.cache, cache_length=max_tokens - 1
    )
    start = (jnp.int32(1), out, state, opened.cache)
    return jax.lax.while_loop(unfinished, step, start)[1]


def in_slots(
    apply_fn: ApplyFn,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, " B"],
    draw: Draw,
    *,
    slots: int,
    completions: int,
    max_tokens: int,
    eos_id: Ends,
    pad_id: int,
    stops: Stops = None,
) -> Out:
    """``slots`` rows at a time; one that has ended makes room for the next.

    All slots write at one place of their caches, which are rings, so that no write is
    a scatter; what a slot's last row left there is masked.
    """
    total, tokens, mask = len(keys), prompts.tokens, prompts.mask
    if tokens.shape[1] == 1:
        tokens, mask = (jnp.pad(x, ((0, 0), (1, 0))) for x in (tokens, mask))
    # A prompt's last token is a row's first step: nobody waits for a refill's logits.
    before = tokens.shape[1] - 1
    prefill = apply_fn(
        params,
        tokens[:, :-1],
        mask=mask[:, :-1],
        cache_length=before,
        logits_from=before - 1,
    )

    def opened(cache, rows):
        nothing = jnp.zeros((rows, 0), tokens.dtype)
        return apply_fn(params, nothing, prefix=cache, cache_length=max_tokens).cache

    def renewed(cache, slot, prompt):
        """The cache with a slot begun anew behind a prompt."""

        def pick(x):
            return jax.lax.dynamic_slice_in_dim(x, prompt, 1) if x.ndim else x

        def put(old, new):
            if not old.ndim:
                return old
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=0)

        return jax.tree.map(put, cache, opened(jax.tree.map(pick, prefill.cache), 1))

    def step(carry):
        waiting, row, position, last, state, cache, out = carry
        logits, cache = apply_fn(params, last[:, None], cache=cache)
        known = jnp.minimum(row, total - 1)
        drawn = draw(keys[known], position, logits[:, -1])
        state, ends = ending(stops, eos_id, state, drawn["tokens"])
        # Idle slots stand at row ``total``, whose writes are dropped.
        new = {
            name: out[name].at[row, position].set(x, mode="drop")
            for name, x in (drawn | {"trained": True}).items()
        }
        out = new | {"finished": out["finished"].at[row].set(ends, mode="drop")}

        free = (row < total) & (ends | (position + 1 == max_tokens))
        next_row = waiting + jnp.cumsum(free, dtype=jnp.int32) - free
        row = jnp.where(free, jnp.minimum(next_row, total), row)
        fresh = free & (row < total)
        prompt = jnp.minimum(row, total - 1) // completions
        first = jnp.argsort(~fresh, stable=True)
        cache = jax.lax.fori_loop(
            0,
            jnp.sum(fresh, dtype=jnp.int32),
            lambda i, cache: renewed(cache, first[i], prompt[first[i]]),
            cache,
        )
        return (
            waiting + jnp.sum(free, dtype=jnp.int32),
            row,
            jnp.where(free, 0, position + 1),
            jnp.where(fresh, tokens[prompt, -1], drawn["tokens"]),
            jnp.where(free, 0, state),
            cache,
            out,
        )

    row = jnp.arange(slots, dtype=jnp.int32)
    prompt = row // completions
    held = jax.tree.map(lambda x: x[prompt] if x.ndim else x, prefill.cache)
    carry = (
        jnp.int32(slots),
        row,
        jnp.zeros_like(row),
        tokens[prompt, -1],
        jnp.zeros_like(row),
        opened(held, slots),
        empty(
            draw,
            keys,
            prefill.logits.shape[-1],
            max_tokens=max_tokens,
            pad_id=pad_id,
            dtype=tokens.dtype,
        ),
    )
    *_, out = jax.lax.while_loop(lambda carry: jnp.any(carry[1] < total), step, carry)
    return out


def as_shown(rollout: Rollout) -> Rollout:
    """The completions behind the prompts that a teacher sees.

    Args:
      rollout: of any sampler.

    Returns:
      the rollout with ``shown_tokens`` for its prompts; as it is where there are none.
    """
    if rollout.shown_tokens is None:
        return rollout
    return dataclasses.replace(
        rollout,
        prompt_tokens=rollout.shown_tokens,
        prompt_mask=rollout.shown_mask,
    )
