"""Small configurations, random parameters, and the decoder once more in numpy.

The reference is written from the papers' definitions, one row and one head at a time
in float64; it shares no line with ``alignax.models``.
"""

import functools

import jax
import numpy as np
import pytest

from alignax.models import functional
from alignax.models.decoder import DecoderConfig

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_size": 12,
    "max_length": 16,
}
CONFIGS = {
    "llama": DecoderConfig(**SIZES, tie_embeddings=False, rope_theta=100.0),
    "qwen2": DecoderConfig(**SIZES, attention_bias=True, norm_eps=1e-3),
    "qwen3": DecoderConfig(**(SIZES | {"head_dim": 6}), qk_norm=True),
    "all heads": DecoderConfig(**(SIZES | {"num_kv_heads": 4})),
    "one key": DecoderConfig(
        **(SIZES | {"num_kv_heads": 1}), attention_bias=True, qk_norm=True
    ),
    # More than ten layers: "10" sorts before "2".
    "deep": DecoderConfig(**(SIZES | {"num_layers": 11})),
}
GEMMA = {
    "norm": "rms_offset",
    "post_norms": True,
    "scale_embeddings": True,
    "activation": "gelu_tanh",
    "query_size": 6,
    "window": 3,
    "local_layers": (0,),
}
# Compared with transformers' models in test_hf_parity.
FAMILIES = {
    "llama3": DecoderConfig(
        **SIZES,
        rope_factor=4.0,
        rope_low=1.0,
        rope_high=4.0,
        rope_original_length=8,
    ),
    "gemma2": DecoderConfig(
        **SIZES, **GEMMA, attention_soft_cap=2.0, logit_soft_cap=3.0
    ),
    "gemma3": DecoderConfig(
        **SIZES, **GEMMA, qk_norm=True, local_rope_theta=50.0, rope_factor=2.0
    ),
    "gpt2": DecoderConfig(
        **(SIZES | {"num_kv_heads": 4, "head_dim": 2}),
        learned_positions=True,
        norm="layer",
        attention_bias=True,
        linear_bias=True,
        activation="gelu_tanh",
        gated_mlp=False,
    ),
}


@functools.lru_cache
def jitted(config):
    """The model compiled: one compilation is faster than many small ones."""
    static = ("cache_length", "logits_from")
    return jax.jit(functional.make_apply(config), static_argnames=static)


def needs_float16():
    """Skip where XLA has no float16: on a CPU without F16C, as under SSE4_2."""
    try:
        x = jax.jit(lambda x: x.astype("float16") * 2)(np.ones(9, np.float32))
        np.asarray(x)
    except jax.errors.JaxRuntimeError:
        pytest.skip("this processor has no conversions to float16")


def random_params(config, seed=0):
    """Every leaf random, so that none is at a value that hides it."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = "scale" in jax.tree_util.keystr(path)
        noise = 0.4 * rng.standard_normal(leaf.shape).astype(np.float32)
        return jax.numpy.asarray(noise + scale, leaf.dtype)

    return jax.tree.map_with_path(draw, functional.shapes(config))


def random_tokens(config, shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.vocab_size, shape).astype(np.int32)


def norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * scale


def turn(x, position, theta):
    """Each pair (x_i, x_{i + h/2}) turned by position * theta^(-2i/h)."""
    half = len(x) // 2
    y = np.zeros_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        pair = complex(x[i], x[i + half]) * np.exp(1j * angle)
        y[i], y[i + half] = pair.real, pair.imag
    return y


def attention(config, p, x, positions):
    """Of one row without padding, ``[S, d] -> [S, d]``."""

    def project(name, heads):
        y = x @ p[name]["kernel"]
        if config.attention_bias:
            y = y + p[name]["bias"]
        y = y.reshape(len(x), heads, config.head_dim)
        if name == "value":
            return y
        for t in range(len(x)):
            for h in range(heads):
                if config.qk_norm:
                    scale = p[f"{name}_norm"]["scale"]
                    y[t, h] = norm(y[t, h], scale, config.norm_eps)
                y[t, h] = turn(y[t, h], positions[t], config.rope_theta)
        return y

    q = project("query", config.num_heads)
    k = project("key", config.num_kv_heads)
    v = project("value", config.num_kv_heads)
    out = np.zeros_like(q)
    for h in range(config.num_heads):
        shared = h // (config.num_heads // config.num_kv_heads)
        for t in range(len(x)):
            scores = k[: t + 1, shared] @ q[t, h] / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ v[: t + 1, shared]
    return out.reshape(len(x), -1) @ p["out"]["kernel"]


def mlp(p, x):
    gate = x @ p["gate"]["kernel"]
    return (gate / (1 + np.exp(-gate)) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]


def stream(config, params, tokens, positions=None, *, layers=None, added=None):
    """Float64 residual stream ``[S, d]`` behind so many layers, of one row; ``added``
    has what is added behind a layer."""
    positions = range(len(tokens)) if positions is None else positions
    x = params["embedding"][tokens]
    eps = config.norm_eps
    for i in range(config.num_layers if layers is None else layers):
        p = params["blocks"][str(i)]
        y = np.stack([norm(row, p["attention_norm"]["scale"], eps) for row in x])
        x = x + attention(config, p["attention"], y, positions)
        y = np.stack([norm(row, p["mlp_norm"]["scale"], eps) for row in x])
        x = x + mlp(p["mlp"], y)
        x = x + np.asarray((added or {}).get(i, 0), np.float64)
    return x


def reference(config, params, tokens, positions=None, **options):
    """Float64 logits ``[S, V]`` of one row without padding."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = stream(config, params, tokens, positions, **options)
    x = np.stack([norm(row, params["norm"]["scale"], config.norm_eps) for row in x])
    return x @ params["embedding" if config.tie_embeddings else "head"].T
