"""Parameters, norms, linear maps, rotary positions and the MLP of the decoder."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from alignax.models.config import DTYPES, DecoderConfig


# Compiled once a shape, not once a layer.
@partial(jax.jit, static_argnames="shape")
def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)


def make_param(
    rngs: nnx.Rngs | None, config: DecoderConfig, shape, axes, *, scale: float
):
    """A normal matrix, or a constant vector where ``scale`` is 0 or 1, with the
    names of its logical axes; without ``rngs`` its shape alone."""
    dtype = DTYPES[config.param_dtype]
    if rngs is None:
        # Not nnx.eval_shape, which looks through all it has traced so far at each
        # draw: a deep model would take minutes.
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes)
    if len(shape) > 1:
        value = scale * _normal(rngs.params(), shape)
    else:
        value = jnp.full(shape, scale, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


class Norm(nnx.Module):
    """``x / √(mean x² + eps) · scale`` in float32; layer norm subtracts the mean from
    x first and adds a bias, rms_offset has 1 + scale."""

    def __init__(
        self,
        size: int,
        config: DecoderConfig,
        rngs: nnx.Rngs | None,
        *,
        dtype: str | None = None,
    ):
        """``dtype`` of the result, None for that of the computation."""
        self.dtype = DTYPES[dtype or config.dtype]
        self.kind, self.eps = config.norm, config.norm_eps
        start = 0.0 if self.kind == "rms_offset" else 1.0
        self.scale = make_param(rngs, config, (size,), (None,), scale=start)
        self.bias = (
            make_param(rngs, config, (size,), (None,), scale=0.0)
            if self.kind == "layer"
            else None
        )

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        if self.kind == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        # Not ``wide * rsqrt(...)``: of that, XLA's CPU backend (jaxlib 0.10.2)
        # compiles the vmapped reverse pass wrongly.
        normed = wide / jnp.sqrt(square + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        if self.kind == "rms_offset":
            scale = 1 + scale
        normed = normed * jnp.broadcast_to(scale, x.shape)
        if self.bias is not None:
            normed = normed + jnp.broadcast_to(self.bias[...], x.shape)
        return normed.astype(self.dtype)


class Linear(nnx.Module):
    """``x W + b``; the axes' names are those of W."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        config: DecoderConfig,
        rngs: nnx.Rngs | None,
        *,
        bias: bool = False,
        dtype: str | None = None,
    ):
        """``dtype`` of the result, None for that of the computation."""
        self.dtype = DTYPES[dtype or config.dtype]
        scale = config.initializer_range
        self.kernel = make_param(rngs, config, sizes, axes, scale=scale)
        self.bias = (
            make_param(rngs, config, sizes[1:], axes[1:], scale=0.0) if bias else None
        )

    def __call__(self, x: Float[Array, "b s i"]) -> Float[Array, "b s o"]:
        # Of matrices: for three axes, XLA's CPU backend transposes a copy of what the
        # kernel's gradient contracts, which takes longer than the product.
        *rows, width = x.shape
        y = jnp.matmul(
            x.reshape(math.prod(rows), width),
            self.kernel[...].astype(x.dtype),
            preferred_element_type=self.dtype,
        )
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)[None]
        return y.reshape(*rows, y.shape[-1])


def frequencies(config: DecoderConfig, *, local: bool) -> np.ndarray:
    """``[head_dim / 2]`` turns a token, in radians.

    Reference:
      Su et al., "RoFormer", arXiv 2104.09864, eq. 34; for the scaling of low ones
      Grattafiori et al., "The Llama 3 herd of models", arXiv 2407.21783, in the form
      of the model's published code.
    """
    half = config.head_dim // 2
    powers = -np.arange(half) / half
    if local and config.local_rope_theta is not None:
        return np.power(config.local_rope_theta, powers)
    turns = np.power(config.rope_theta, powers)
    slow = turns / config.rope_factor
    low, high = config.rope_low, config.rope_high
    if low is None or high is None or config.rope_original_length is None:
        return slow
    # Whole turns over the length of the first training.
    count = config.rope_original_length * turns / (2 * np.pi)
    kept = np.clip((count - low) / (high - low), 0, 1)
    return kept * turns + (1 - kept) * slow


def rotate(
    x: Float[Array, "b s n h"],
    positions: Int[Array, "b s"],
    turns: np.ndarray | Float[Array, " t"],
) -> Float[Array, "b s n h"]:
    """Rotary position embedding, angles in float32; the two halves of a head are
    paired as in GPT-NeoX."""
    turns = turns.astype(jnp.float32).reshape(1, 1, 1, -1)
    angles = positions.astype(jnp.float32)[..., None, None] * turns
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (left * cos - right * sin, right * cos + left * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


ACTIVATION = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


class MLP(nnx.Module):
    """``(f(x G) ⊙ x U) D``, or ``f(x U) D`` where it is not gated."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs | None):
        inside, bias = (config.hidden_size, config.mlp_size), config.linear_bias
        axes = ("embed", "mlp")
        self.activation = config.activation
        self.gate = (
            Linear(inside, axes, config, rngs, bias=bias) if config.gated_mlp else None
        )
        self.up = Linear(inside, axes, config, rngs, bias=bias)
        self.down = Linear(
            inside[::-1],
            axes[::-1],
            config,
            rngs,
            bias=bias,
            dtype=config.residual_dtype,
        )

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        f = ACTIVATION[self.activation]
        if self.gate is None:
            return self.down(f(self.up(x)))
        return self.down(f(self.gate(x)) * self.up(x))
