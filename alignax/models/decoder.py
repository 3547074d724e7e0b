"""One decoder-only causal language model; its configuration spells the differences.

RMSNorm before each block, rotary positions, grouped-query attention, a gated MLP
with SiLU, a tied or untied head; optionally biases in attention (Qwen2) and a norm
of queries and keys (Qwen3). Everybody outside ``alignax.models`` sees it as
``(apply_fn, params)``, from ``alignax.models.functional``.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from alignax.types import InputError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The architecture. Hashable: it can be a static argument.

    Raises:
      InputError: a field is out of range.
    """

    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks of attention and MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; divides ``num_heads``."""
    head_dim: int
    """Width of a head, even."""
    mlp_size: int
    """Width inside the MLP."""
    max_length: int
    """Positions, of prompt and completion together."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    attention_bias: bool = False
    """Biases on queries, keys and values."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    initializer_range: float = 0.02
    """Standard deviation of fresh matrices."""
    param_dtype: str = "float32"
    """Of the parameters: float32 or bfloat16."""
    dtype: str = "float32"
    """Of the computation between them; logits and norms are float32."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field.name, field.type, getattr(self, field.name))
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim must be even for rotary positions, got {self.head_dim}"
            )
        for name in ("param_dtype", "dtype"):
            value = getattr(self, name)
            if value not in DTYPES:
                raise InputError(
                    f"{name} must be one of {sorted(DTYPES)}, got {value!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """What ``to_dict`` wrote.

        Raises:
          InputError: a field is missing, unknown or out of range.
        """
        fields = dataclasses.fields(cls)
        unknown = sorted(set(values) - {field.name for field in fields})
        needed = {f.name for f in fields if f.default is dataclasses.MISSING}
        missing = sorted(needed - set(values))
        if unknown or missing:
            raise InputError(
                "the decoder's configuration must have DecoderConfig's fields; "
                f"missing: {missing}, unknown: {unknown}"
            )
        return cls(**values)


def _check(name: str, kind: Any, value: Any) -> None:
    """A field's value has its type, and numbers are positive and finite."""
    allowed = (int, float) if kind is float else kind
    # A bool is an int to Python.
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind in (int, float) and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive and finite, got {value}")


# Compiled once a shape, not once a layer.
@functools.partial(jax.jit, static_argnames="shape")
def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)


def _param(rngs: nnx.Rngs, config: DecoderConfig, shape, axes, *, scale: float):
    """A normal matrix, or a constant vector where ``scale`` is 0 or 1, with the
    names of its logical axes."""
    dtype = DTYPES[config.param_dtype]
    if len(shape) > 1:
        value = scale * _normal(rngs.params(), shape)
    else:
        value = jnp.full(shape, scale, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


class RMSNorm(nnx.Module):
    """``x / √(mean x² + eps) · scale``, in float32."""

    def __init__(self, size: int, config: DecoderConfig, rngs: nnx.Rngs):
        self.scale = _param(rngs, config, (size,), (None,), scale=1.0)
        self.eps = config.norm_eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        # Not ``wide * rsqrt(...)``: of that, XLA's CPU backend (jaxlib 0.10.2)
        # compiles the vmapped reverse pass wrongly.
        normed = wide / jnp.sqrt(square + self.eps)
        scale = jnp.broadcast_to(self.scale[...], x.shape)
        return (normed * scale).astype(x.dtype)


class Linear(nnx.Module):
    """``x W + b``; the axes' names are those of W."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        config: DecoderConfig,
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
    ):
        scale = config.initializer_range
        self.kernel = _param(rngs, config, sizes, axes, scale=scale)
        self.bias = (
            _param(rngs, config, sizes[1:], axes[1:], scale=0.0) if bias else None
        )

    def __call__(self, x: Float[Array, "b s i"]) -> Float[Array, "b s o"]:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)[None, None]
        return y


def rotate(
    x: Float[Array, "b s n h"], positions: Int[Array, "b s"], theta: float
) -> Float[Array, "b s n h"]:
    """Rotary position embedding, angles in float32.

    Reference:
      Su et al., "RoFormer", arXiv 2104.09864, eq. 34, with the two halves of a
      head paired as in GPT-NeoX.
    """
    half = x.shape[-1] // 2
    frequencies = np.power(theta, -np.arange(half) / half).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies.reshape(
        1, 1, 1, half
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (left * cos - right * sin, right * cos + left * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


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
        cache: dict[str, Array] | None,
        index: Int[Array, ""] | None,
    ):
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
        if cache is not None and index is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache["key"], k, index, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache["value"], v, index, axis=1)
            cache = {"key": k, "value": v}
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        return self.out(mixed.reshape(batch, length, -1)), cache


class MLP(nnx.Module):
    """``(SiLU(x G) ⊙ x U) D``."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        inside = (config.hidden_size, config.mlp_size)
        self.gate = Linear(inside, ("embed", "mlp"), config, rngs)
        self.up = Linear(inside, ("embed", "mlp"), config, rngs)
        self.down = Linear(inside[::-1], ("mlp", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x, positions, mask, cache, index):
        mixed, cache = self.attention(
            self.attention_norm(x), positions, mask, cache, index
        )
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        table = (config.vocab_size, config.hidden_size)
        scale = config.initializer_range
        self.embedding = _param(rngs, config, table, ("vocab", "embed"), scale=scale)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config, rngs)
        self.head = (
            None
            if config.tie_embeddings
            else _param(rngs, config, table, ("vocab", "embed"), scale=scale)
        )

    def __call__(self, tokens, *, mask, positions, cache, cache_length, logits_from):
        config = self.config
        batch, length = tokens.shape
        dtype = DTYPES[config.dtype]
        if mask is None:
            mask = jnp.ones((batch, length), bool)
        if cache is None and cache_length is not None:
            cache = self.empty_cache(batch, cache_length)
        count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        if cache is None:
            index, seen = None, jnp.zeros((batch, 1), jnp.int32)
            slots, valid = jnp.arange(length), mask
        else:
            index, seen = cache["index"], cache["seen"][:, None]
            valid = jax.lax.dynamic_update_slice_in_dim(
                cache["mask"], mask, index, axis=1
            )
            slots = index + jnp.arange(length)
        if positions is None:
            positions = seen + count - mask
        causal = jnp.arange(valid.shape[1])[None, :] <= slots[:, None]
        attend = causal[None] & valid[:, None, :]

        x = self.embedding[...][tokens].astype(dtype)
        layers = {}
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache["layers"][str(i)]
            x, layers[str(i)] = block(x, positions, attend, layer, index)
        x = self.norm(x[:, logits_from:])
        table = (self.embedding if self.head is None else self.head)[...]
        logits = jnp.einsum(
            "bsd,vd->bsv", x, table.astype(dtype), preferred_element_type=jnp.float32
        )
        if cache is not None:
            cache = {
                "layers": layers,
                "mask": valid,
                "seen": (seen + count[:, -1:])[:, 0],
                "index": index + length,
            }
        return logits, cache

    def empty_cache(self, batch: int, length: int):
        config = self.config
        shape = (batch, length, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, DTYPES[config.dtype])
        return {
            "layers": {
                str(i): {"key": zeros, "value": zeros} for i in range(config.num_layers)
            },
            "mask": jnp.zeros((batch, length), bool),
            "seen": jnp.zeros((batch,), jnp.int32),
            "index": jnp.int32(0),
        }
