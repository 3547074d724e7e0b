"""The flax boundary: everyone else sees ``(apply_fn, params)``.

``params`` is nested dictionaries of arrays with strings as keys; what flax needs
beside them is rebuilt from the configuration while tracing.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from alignax.models.decoder import Decoder, DecoderConfig
from alignax.types import ApplyFn, InputError, ModelOutput, Params


def _with_keys(tree: Any, convert) -> Any:
    """The same nested dictionaries with converted keys."""
    if not isinstance(tree, dict):
        return tree
    return {convert(key): _with_keys(value, convert) for key, value in tree.items()}


def _list_key(key: str) -> str | int:
    return int(key) if key.isdigit() else key


@functools.lru_cache(maxsize=64)
def _skeleton(config: DecoderConfig):
    """The module without its arrays: a graph definition and abstract parameters."""
    abstract = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    return nnx.split(abstract, nnx.Param)


def init(config: DecoderConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters.

    Args:
      config: the architecture.
      key: of their values.

    Returns:
      nested dictionaries of arrays in ``config.param_dtype``.

    Example:
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> params = init(DecoderConfig(**sizes, **more), jax.random.key(0))
      >>> params["embedding"].shape
      (11, 8)
    """
    return _build(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _build(config: DecoderConfig, key: Key[Array, ""]) -> Params:
    _, state = nnx.split(Decoder(config, nnx.Rngs(params=key)), nnx.Param)
    return _with_keys(nnx.to_pure_dict(state), str)


def _module(config: DecoderConfig, params: Params) -> Decoder:
    """The module around these parameters, to be called while tracing."""
    graph, abstract = _skeleton(config)
    expected = _with_keys(nnx.to_pure_dict(abstract), str)
    if jax.tree.structure(params) != jax.tree.structure(expected):
        raise InputError(
            "params must have the structure that functional.init(config, key) gives "
            f"for this config, got {jax.tree.structure(params)}"
        )

    def fits(leaf, like):
        if leaf.shape != like.shape:
            raise InputError(
                f"params must have the shapes of this config: expected {like.shape}, "
                f"got {leaf.shape}"
            )
        # Parameters may come from a file, as numpy arrays.
        return jnp.asarray(leaf)

    arrays = jax.tree.map(fits, params, expected)
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, _with_keys(arrays, _list_key))
    return nnx.merge(graph, state)


@functools.lru_cache(maxsize=64)
def make_apply(config: DecoderConfig) -> ApplyFn:
    """The decoder as a pure function; the same one for equal configurations.

    A cache has room for a fixed number of tokens. Writing past its end cannot be
    seen from shapes: ask for all the room you will need.

    Args:
      config: the architecture.

    Returns:
      an ``ApplyFn``. It raises ``InputError`` for more tokens than
      ``config.max_length`` or than the cache has room for, for a ``logits_from``
      outside them, and for parameters of another configuration.

    Example:
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> tokens = jax.numpy.ones((3, 5), int)
      >>> make_apply(config)(init(config, jax.random.key(0)), tokens).logits.shape
      (3, 5, 11)
    """

    def apply_fn(
        params,
        tokens,
        *,
        mask=None,
        positions=None,
        cache=None,
        cache_length=None,
        logits_from=0,
    ):
        length = tokens.shape[1]
        if max(length, cache_length or 0) > config.max_length:
            raise InputError(
                f"tokens must fit the model's max_length of {config.max_length}, got "
                f"{length} and a cache of {cache_length}; shorten prompts or "
                "completions"
            )
        if cache_length is not None and cache_length < length:
            raise InputError(
                f"cache_length must have room for the {length} tokens given, got "
                f"{cache_length}"
            )
        if cache is not None and cache_length is not None:
            raise InputError(
                "cache_length asks for a fresh cache, and cache= was given: give one"
            )
        if cache is not None and length > cache["mask"].shape[1]:
            raise InputError(
                f"tokens must fit the cache's {cache['mask'].shape[1]} places, got "
                f"{length}"
            )
        if not 0 <= logits_from < length:
            raise InputError(
                f"logits_from must be one of the {length} positions given, got "
                f"{logits_from}"
            )
        logits, cache = _module(config, params)(
            tokens,
            mask=mask,
            positions=positions,
            cache=cache,
            cache_length=cache_length,
            logits_from=logits_from,
        )
        return ModelOutput(logits, cache)

    return apply_fn


def logical_axes(config: DecoderConfig) -> Params:
    """The names of each parameter's axes.

    Args:
      config: the architecture.

    Returns:
      the structure of ``init``'s parameters with a tuple of names at each leaf:
      ``vocab``, ``embed``, ``heads``, ``kv_heads``, ``mlp``, or None.
    """
    _, abstract = _skeleton(config)
    axes: dict[str, Any] = {}
    for path, leaf in nnx.to_flat_state(abstract):
        *folders, name = map(str, path)
        node = axes
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf.get_metadata()["axes"]
    return axes


def count_parameters(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
