"""Parameters, norms, linear maps and rotary positions of the decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from alignax.models.config import DTYPES, DecoderConfig


# Compiled once a shape, not once a layer.
@functools.partial(jax.jit, static_argnames="shape")
def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)


def make_param(rngs: nnx.Rngs, config: DecoderConfig, shape, axes, *, scale: float):
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
        self.scale = make_param(rngs, config, (size,), (None,), scale=1.0)
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
        self.kernel = make_param(rngs, config, sizes, axes, scale=scale)
        self.bias = (
            make_param(rngs, config, sizes[1:], axes[1:], scale=0.0) if bias else None
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


class MLP(nnx.Module):
    """``(SiLU(x G) ⊙ x U) D``."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        inside = (config.hidden_size, config.mlp_size)
        self.gate = Linear(inside, ("embed", "mlp"), config, rngs)
        self.up = Linear(inside, ("embed", "mlp"), config, rngs)
        self.down = Linear(inside[::-1], ("mlp", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
