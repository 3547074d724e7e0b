"""One decoder-only causal language model; its configuration spells the differences.

RMSNorm before each block, rotary positions, grouped-query attention, a gated MLP
with SiLU, a tied or untied head; optionally biases in attention (Qwen2) and a norm
of queries and keys (Qwen3). Everybody outside ``alignax.models`` sees it as
``(apply_fn, params)``, from ``alignax.models.functional``.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from alignax.models import attention
from alignax.models.config import DTYPES, DecoderConfig
from alignax.models.layers import MLP, Linear, RMSNorm, make_param, rotate


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions and an optional cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
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
        self.out = Linear((queries, width), ("heads", "embed"), config, rngs)
        self.query_norm = RMSNorm(head, config, rngs) if config.qk_norm else None
        self.key_norm = RMSNorm(head, config, rngs) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        mask: Bool[Array, "b s l"],
        prefix: attention.Prefix | None,
        cache: dict[str, Array] | None,
        index: Int[Array, ""] | None,
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
        q = rotate(q, positions, config.rope_theta)
        k = rotate(k, positions, config.rope_theta)
        keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if cache is not None and index is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            keys = write(cache["key"], keys, index, axis=2)
            values = write(cache["value"], values, index, axis=2)
        if length == 0:
            mixed = q
        elif prefix is None and cache is None:
            # Flash attention where the device has it.
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        else:
            mixed = attention.attend(
                q, keys, values, mask, prefix=prefix, scale=head**-0.5
            )
        kept = {"key": keys, "value": values}
        return self.out(mixed.reshape(batch, length, config.num_heads * head)), kept


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x, positions, mask, prefix, cache, index):
        mixed, kept = self.attention(
            self.attention_norm(x), positions, mask, prefix, cache, index
        )
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), kept


# What the reverse pass of a block keeps; the rest it computes again.
REMAT: Mapping[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """Tokens to the last hidden states, and those to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        table = (config.vocab_size, config.hidden_size)
        scale = config.initializer_range
        self.embedding = make_param(
            rngs, config, table, ("vocab", "embed"), scale=scale
        )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config, rngs)
        self.head = (
            None
            if config.tie_embeddings
            else make_param(rngs, config, table, ("vocab", "embed"), scale=scale)
        )

    def head_table(self) -> Float[Array, "V d"]:
        """The head's rows, in the computation's dtype."""
        table = (self.embedding if self.head is None else self.head)[...]
        return table.astype(DTYPES[self.config.dtype])

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s V"]:
        return jnp.einsum(
            "bsd,vd->bsv",
            hidden,
            self.head_table(),
            preferred_element_type=jnp.float32,
        )

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
        remat: str = "none",
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Hidden states ``[b, s - logits_from, d]`` behind the last norm, and the
        cache where one was given or asked for."""
        batch, length = tokens.shape
        if mask is None:
            mask = jnp.ones((batch, length), bool)
        if cache is not None:
            prefix = cache.get("prefix")
        index = None if cache is None else cache["index"]
        seen = _seen(batch, prefix, cache)
        count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        if positions is None:
            positions = seen[:, None] + count - mask
            if segments is not None:
                positions = positions - _segment_start(positions, segments)
        if cache is None or index is None:
            slots, valid = jnp.arange(length), mask
        else:
            slots = index + jnp.arange(length)
            valid = jax.lax.dynamic_update_slice_in_dim(
                cache["mask"], mask, index, axis=1
            )
        causal = jnp.arange(valid.shape[1])[None, :] <= slots[:, None]
        attend = causal[None] & valid[:, None, :]
        if segments is not None:
            attend = attend & (segments[:, :, None] == segments[:, None, :])

        x = self.embedding[...][tokens].astype(DTYPES[self.config.dtype])
        layers = {}
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache["layers"][str(i)]
            shared = _shared(prefix, str(i))

            def run(x, block=block, layer=layer, shared=shared):
                return block(x, positions, attend, shared, layer, index)

            if remat != "none":
                run = jax.checkpoint(run, policy=REMAT[remat])
            x, layers[str(i)] = run(x)
        hidden = self.norm(x[:, logits_from:])
        if cache is None and cache_length is None:
            return hidden, None
        if cache is None and cache_length is not None:
            # A fresh cache is the new keys with room behind them.
            room = cache_length - length
            layers = jax.tree.map(
                lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))), layers
            )
            valid = jnp.pad(valid, ((0, 0), (0, room)))
        kept = {
            "layers": layers,
            "mask": valid,
            "seen": seen + jnp.sum(mask, axis=1, dtype=jnp.int32),
            "index": (0 if index is None else index) + jnp.int32(length),
        }
        return hidden, kept if prefix is None else kept | {"prefix": prefix}


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


def _shared(prefix: Any, layer: str) -> attention.Prefix | None:
    if prefix is None:
        return None
    kept = prefix["layers"][layer]
    return attention.Prefix(kept["key"], kept["value"], prefix["mask"][:, None])
