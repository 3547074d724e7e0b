"""One decoder-only causal language model; its configuration spells the differences.

A norm before each block, grouped-query attention, an MLP, a tied or untied head. What
else there is, from biases (GPT-2, Qwen2) and norms of queries and keys (Qwen3) to
windows, capped scores and norms behind each block (Gemma), are fields of
``DecoderConfig``. Everybody outside ``alignax.models`` sees it as
``(apply_fn, params)``, from ``alignax.models.functional``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from alignax.models import attention
from alignax.models.config import DTYPES, DecoderConfig
from alignax.models.layers import (
    MLP,
    Linear,
    Norm,
    frequencies,
    make_param,
    rotate,
)
from alignax.pipeline import sharding


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions and an optional cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs | None):
        self.config = config
        width, head = config.hidden_size, config.head_dim
        bias = config.attention_bias
        queries, keys = config.num_heads * head, config.num_kv_heads * head
        self.query = Linear(
            (width, queries), ("embed", "heads"), config, rngs, bias=bias
        )
        self.key = Linear((width, keys), ("embed", "kv_heads"), config, rngs, bias=bias)
        self.value = Linear(
            (width, keys), ("embed", "kv_heads"), config, rngs, bias=bias
        )
        self.out = Linear(
            (queries, width),
            ("heads", "embed"),
            config,
            rngs,
            bias=config.linear_bias,
            dtype=config.residual_dtype,
        )
        self.query_norm = Norm(head, config, rngs) if config.qk_norm else None
        self.key_norm = Norm(head, config, rngs) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        mask: Bool[Array, "b s l"],
        prefix: attention.Prefix | None,
        cache: dict[str, Array] | None,
        index: Int[Array, "*b"] | None,
        local: bool | Bool[Array, ""],
    ):
        """Mixed values, and the heads-first keys and values: the cache's, where there
        is one, with the new ones written at ``index``; otherwise the new ones."""
        config = self.config
        batch, length, _ = x.shape
        head = config.head_dim
        q = self.query(x).reshape(batch, length, config.num_heads, head)
        k = self.key(x).reshape(batch, length, config.num_kv_heads, head)
        v = self.value(x).reshape(batch, length, config.num_kv_heads, head)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if not config.learned_positions:
            turns = _pick(local, *(frequencies(config, local=x) for x in (True, False)))
            q, k = rotate(q, positions, turns), rotate(k, positions, turns)
        keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None and index is not None:
            keys = _written(cache["key"], keys, index, axis=2)
            values = _written(cache["value"], values, index, axis=2)
        scale = (config.query_size or head) ** -0.5
        mixed = q
        if length:
            mixed = attention.attend(
                q,
                keys,
                values,
                mask,
                prefix=prefix,
                scale=scale,
                soft_cap=config.attention_soft_cap,
                kernel=config.attention,
            )
        kept = {"key": keys, "value": values}
        return self.out(mixed.reshape(batch, length, config.num_heads * head)), kept


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs | None):
        def norm(dtype=None):
            return Norm(config.hidden_size, config, rngs, dtype=dtype)

        def post_norm():
            return norm(config.residual_dtype) if config.post_norms else None

        self.attention_norm = norm()
        self.attention = Attention(config, rngs)
        self.attention_post_norm = post_norm()
        self.mlp_norm = norm()
        self.mlp = MLP(config, rngs)
        self.mlp_post_norm = post_norm()

    def __call__(self, x, positions, masks: "Masks", prefix, cache, index, local):
        """``masks`` are those of all layers and of the ``local`` ones."""
        mixed, kept = self.attention(
            self.attention_norm(x),
            positions,
            _pick(local, masks.local, masks.all),
            _shared(prefix, _pick(local, masks.local_prefix, masks.prefix)),
            cache,
            index,
            local,
        )
        if self.attention_post_norm is not None:
            mixed = self.attention_post_norm(mixed)
        x = x + mixed
        mixed = self.mlp(self.mlp_norm(x))
        if self.mlp_post_norm is not None:
            mixed = self.mlp_post_norm(mixed)
        return x + mixed, kept


# What the reverse pass of a block keeps; the rest it computes again.
REMAT: Mapping[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """Tokens to the last hidden states, and those to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs | None):
        self.config = config
        table = (config.vocab_size, config.hidden_size)
        scale = config.initializer_range
        self.embedding = make_param(
            rngs, config, table, ("vocab", "embed"), scale=scale
        )
        self.positions = (
            make_param(
                rngs,
                config,
                (config.max_length, config.hidden_size),
                (None, "embed"),
                scale=scale,
            )
            if config.learned_positions
            else None
        )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = Norm(config.hidden_size, config, rngs, dtype=config.head_dtype)
        self.head = (
            None
            if config.tie_embeddings
            else make_param(rngs, config, table, ("vocab", "embed"), scale=scale)
        )

    def head_table(self) -> Float[Array, "V d"]:
        """The head's rows, in the dtype of the product with them."""
        table = (self.embedding if self.head is None else self.head)[...]
        return table.astype(DTYPES[self.config.head_dtype or self.config.dtype])

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s V"]:
        """In float32, capped where the configuration has a cap."""
        logits = jnp.einsum(
            "bsd,vd->bsv",
            hidden,
            self.head_table(),
            preferred_element_type=jnp.float32,
        )
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def embed(
        self, tokens: Int[Array, "b s"], positions: Int[Array, "b s"]
    ) -> Float[Array, "b s d"]:
        config = self.config
        x = sharding.rows_apart(self.embedding[...][tokens])
        x = x.astype(DTYPES[config.residual_dtype or config.dtype])
        if config.scale_embeddings:
            # Rounded to the computation's dtype, as in the published code.
            root = jnp.asarray(config.hidden_size**0.5, DTYPES[config.dtype])
            x = x * root.astype(x.dtype)
        if self.positions is not None:
            x = x + self.positions[...][positions].astype(x.dtype)
        return x

    def _unrolled(self, x, positions, masks, prefix, cache, index, added, remat, _):
        layers = {}
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache["layers"][str(i)]
            shared = None if prefix is None else prefix["layers"][str(i)]
            local = i in self.config.local_layers

            def run(x, block=block, layer=layer, shared=shared, local=local):
                return block(x, positions, masks, shared, layer, index, local)

            if remat != "none":
                run = jax.checkpoint(run, policy=REMAT[remat])
            x, layers[str(i)] = run(x)
            if str(i) in added:
                x = x + added[str(i)].astype(x.dtype)[None, None]
        return x, layers

    def _scan(self, x, positions, masks, prefix, cache, index, added, remat, keep):
        """One block in a loop: it is compiled once, and what the reverse pass computes
        again cannot be merged with the first time, as XLA does on CPU."""
        assert cache is None
        names = [str(i) for i in range(self.config.num_layers)]
        graph, _ = nnx.split(self.blocks[0])
        each = [
            (
                nnx.split(block)[1],
                jnp.asarray(i in self.config.local_layers),
                None if prefix is None else prefix["layers"][names[i]],
                added.get(names[i], jnp.zeros(x.shape[-1:])) if added else None,
            )
            for i, block in enumerate(self.blocks)
        ]

        def run(x, part):
            state, local, shared, more = part
            block = nnx.merge(graph, state)
            x, kept = block(x, positions, masks, shared, None, index, local)
            x = x if more is None else x + more.astype(x.dtype)[None, None]
            return x, kept if keep else None

        if remat != "none":
            run = jax.checkpoint(run, policy=REMAT[remat], prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        x, kept = jax.lax.scan(run, x, stacked)
        layers = {
            name: jax.tree.map(lambda leaf, i=i: leaf[i], kept)
            for i, name in enumerate(names)
        }
        return x, layers

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        *,
        mask: Bool[Array, "b s"] | None = None,
        positions: Int[Array, "b s"] | None = None,
        segments: Int[Array, "b s"] | None = None,
        prefix: Any = None,
        cache: Any = None,
        cache_length: int | None = None,
        logits_from: int = 0,
        added: Mapping[str, Float[Array, " d"]] | None = None,
        remat: str = "none",
        scan: bool = False,
        final_norm: bool = True,
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Hidden states ``[b, s - logits_from, d]`` behind the last norm, and the
        cache where one was given or asked for. ``added`` has what is added to every
        token's stream behind a layer."""
        batch, length = tokens.shape
        if mask is None:
            mask = jnp.ones((batch, length), bool)
        if cache is not None:
            prefix = cache.get("prefix")
        seen = _seen(batch, prefix, cache)
        before = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask
        ranks = seen[:, None] + before
        if positions is None:
            positions = ranks
            if segments is not None:
                positions = ranks - _segment_start(ranks, segments)
        index, valid, own = None, mask, ranks
        slots = jnp.arange(length)
        attend = (slots[None, :] <= slots[:, None])[None] & mask[:, None, :]
        if cache is not None:
            room = cache["mask"].shape[1]
            # A token that finds the cache full takes the oldest one's place.
            index = cache["index"] % room
            valid = _written(cache["mask"], mask, index, axis=1)
            own = _written(cache["ranks"], ranks, index, axis=1)
            # The new ones see each other from the past, and all else that is kept.
            age = jnp.arange(room)[None, None] - index.reshape(-1, 1, 1)
            attend = (age <= slots[None, :, None]) | (age >= length)
            attend = attend & valid[:, None, :]
        if segments is not None:
            attend = attend & (segments[:, :, None] == segments[:, None, :])
        masks = _masks(self.config, ranks, own, attend, prefix)

        x = self.embed(tokens, positions)
        keep = cache is not None or cache_length is not None
        run = self._scan if scan else self._unrolled
        x, layers = run(
            x, positions, masks, prefix, cache, index, added or {}, remat, keep
        )
        hidden = self.norm(x[:, logits_from:]) if final_norm else x[:, logits_from:]
        if not keep:
            return hidden, None
        if cache is None and cache_length is not None:
            # A fresh cache is the new keys with room behind them.
            room = cache_length - length
            layers = jax.tree.map(
                lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))), layers
            )
            valid, own = (jnp.pad(x, ((0, 0), (0, room))) for x in (valid, own))
        kept = {
            "layers": layers,
            "mask": valid,
            "ranks": own,
            "seen": seen + jnp.sum(mask, axis=1, dtype=jnp.int32),
            "index": (0 if cache is None else cache["index"]) + jnp.int32(length),
        }
        return hidden, kept if prefix is None else kept | {"prefix": prefix}


def _written(old: Array, new: Array, index: Int[Array, "*b"], *, axis: int) -> Array:
    """The cache with new entries, at one place of all rows or at one of each row."""
    write = jax.lax.dynamic_update_slice_in_dim
    if not index.ndim:
        return write(old, new, index, axis=axis)
    return jax.vmap(lambda x, y, i: write(x, y, i, axis=axis - 1))(old, new, index)


def _seen(batch: int, prefix: Any, cache: Any) -> Int[Array, " b"]:
    """How many real tokens come before the given ones."""
    if cache is not None:
        return cache["seen"]
    if prefix is None:
        return jnp.zeros((batch,), jnp.int32)
    return jnp.repeat(prefix["seen"], batch // len(prefix["seen"]))


def _segment_start(
    positions: Int[Array, "b s"], segments: Int[Array, "b s"]
) -> Int[Array, "b s"]:
    """The position of the first token of each token's run of equal segments."""
    first = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    return jax.lax.cummax(jnp.where(first, positions, 0), axis=1)


class Masks(NamedTuple):
    """Who may look where, by number of real tokens between them in local layers."""

    all: Bool[Array, "b s l"]
    local: Bool[Array, "b s l"]
    prefix: Bool[Array, "n q p"] | None
    local_prefix: Bool[Array, "n q p"] | None


def _masks(
    config: DecoderConfig,
    ranks: Int[Array, "b s"],
    own: Int[Array, "b l"],
    attend: Bool[Array, "b s l"],
    prefix: Any,
) -> Masks:
    """``ranks`` are the numbers of real tokens before the queries, ``own`` before the
    keys."""
    far = None if prefix is None else prefix["mask"][:, None]
    if config.window is None or not config.local_layers:
        return Masks(attend, attend, far, far)
    near = ranks[:, :, None] - own[:, None, :] < config.window
    if prefix is None:
        return Masks(attend, attend & near, None, None)
    queries = ranks.reshape(len(prefix["mask"]), -1, 1)
    close = queries - prefix["ranks"][:, None, :] < config.window
    return Masks(attend, attend & near, far, far & close)


def _pick(local: bool | Bool[Array, ""], one: Any, other: Any) -> Any:
    """``one`` in a local layer, the ``other`` in the rest."""
    if isinstance(local, bool):
        return one if local else other
    return one if one is other else jnp.where(local, one, other)


def _shared(
    kept: dict[str, Array] | None, mask: Bool[Array, "n q p"] | None
) -> attention.Prefix | None:
    if kept is None or mask is None:
        return None
    return attention.Prefix(kept["key"], kept["value"], mask)
