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
from jaxtyping import Array, Int, Key

from alignax.models.config import DecoderConfig
from alignax.models.decoder import REMAT, Decoder
from alignax.types import (
    ApplyFn,
    HiddenFn,
    HiddenOutput,
    InputError,
    ModelOutput,
    Params,
)


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
    return nnx.split(Decoder(config, None), nnx.Param)


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
    _, state = nnx.split(Decoder(config, nnx.Rngs(params=key)), nnx.Param)
    return _with_keys(nnx.to_pure_dict(state), str)


def shapes(config: DecoderConfig) -> Params:
    """``init``'s parameters as ``jax.ShapeDtypeStruct``, nothing computed.

    Args:
      config: the architecture.

    Returns:
      nested dictionaries, as a target for shardings and for restoring.
    """
    _, abstract = _skeleton(config)
    return _with_keys(nnx.to_pure_dict(abstract), str)


def check_params(
    config: DecoderConfig,
    params: Params,
    *,
    any_head: bool = False,
    any_steering: bool = False,
) -> None:
    """See that these are parameters of this configuration.

    Args:
      config: the architecture.
      params: of any dtype.
      any_head: the head may have other rows than the vocabulary's, as a reward
        model's does.
      any_steering: they may have vectors for the stream, ``steering.steered``'s.

    Raises:
      InputError: names or shapes differ.
    """

    def flat(tree):
        leaves = jax.tree.leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
            for path, leaf in leaves
        }

    given, expected = flat(params), flat(shapes(config))
    if any_head and len(given.get("head", ())) == 2 and "head" in expected:
        expected["head"] = (given["head"][0], expected["head"][1])
    if any_steering:
        names = [f"steering.{i}" for i in range(config.num_layers)]
        expected |= {name: (config.hidden_size,) for name in names if name in given}
    wrong = [
        f"{name} must be {expected.get(name, 'absent')}, got "
        f"{given.get(name, 'nothing')}"
        for name in sorted(expected | given)
        if given.get(name) != expected.get(name)
    ]
    if wrong:
        raise InputError(
            f"params must be those of this configuration: {'; '.join(wrong[:4])}"
            f"{f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''}"
        )


@functools.lru_cache(maxsize=64)
def make_apply(config: DecoderConfig) -> ApplyFn:
    """The decoder as a pure function; the same one for equal configurations.

    A cache has room for a fixed number of tokens. Those given one at a time when it is
    full take the places of the oldest, which are forgotten; several at once must not go
    past its end, which cannot be seen from shapes: ask for all the room you will need.
    The vectors of ``steering.steered`` parameters are added to the stream.

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
      >>> apply_fn, params = make_apply(config), init(config, jax.random.key(0))
      >>> jax.jit(apply_fn)(params, tokens).logits.shape
      (3, 5, 11)
    """

    def apply_fn(
        params,
        tokens,
        *,
        mask=None,
        positions=None,
        prefix=None,
        cache=None,
        cache_length=None,
        logits_from=0,
    ):
        model, hidden, cache = run(
            config,
            params,
            tokens,
            mask=mask,
            positions=positions,
            prefix=prefix,
            cache=cache,
            cache_length=cache_length,
            logits_from=logits_from,
        )
        return ModelOutput(model.logits(hidden), cache)

    return apply_fn


def rewind(cache: Any, tokens: Int[Array, " B"]) -> Any:
    """A cache without each row's last tokens, as if they had not been given.

    From then on each row writes at a place of its own. For a cache that was opened with
    room for all that it is given: what a ring has overwritten does not come back.

    Args:
      cache: of ``make_apply``'s functions, or a tuple of such, as of models that are
        combined by ``decoding.combine``.
      tokens: how many, of those given since the cache was opened.

    Returns:
      the cache.

    Raises:
      InputError: the cache is another model's.

    Example:
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> apply_fn, params = make_apply(config), init(config, jax.random.key(0))
      >>> cache = apply_fn(params, jnp.ones((2, 5), int), cache_length=8).cache
      >>> rewind(cache, jnp.array([0, 3]))["seen"]
      Array([5, 2], dtype=int32)
    """
    if type(cache) is tuple:
        return tuple(rewind(part, tokens) for part in cache)
    if not isinstance(cache, dict) or not {"index", "mask", "seen"} <= cache.keys():
        raise InputError(
            "cache must be a decoder's, whose tokens can be taken back; a rule with a "
            f"state of its own, such as a switch, has none, got {type(cache).__name__}"
        )
    index = jnp.broadcast_to(cache["index"], tokens.shape) - tokens
    known = jnp.arange(cache["mask"].shape[1])[None] < index[:, None]
    return cache | {
        "index": index,
        "mask": cache["mask"] & known,
        "seen": cache["seen"] - tokens,
    }


@functools.lru_cache(maxsize=64)
def make_hidden(
    config: DecoderConfig, *, remat: str = "none", scan: bool = False
) -> HiddenFn:
    """The decoder up to its head; with ``logprobs.from_hidden``, no logits.

    Args:
      config: the architecture.
      remat: what the reverse pass computes again to save memory: ``none``;
        ``products``, all but the results of matrix products; ``block``, all but
        each block's input.
      scan: loop over the layers, of which one is compiled: sooner for a deep model,
        and only so does ``remat`` save memory on CPU, where XLA merges the second
        computation with the first otherwise. The layers' parameters are copied into
        one array each.

    Returns:
      a ``HiddenFn``, which raises what ``make_apply``'s function does.

    Raises:
      InputError: ``remat`` is another word.

    Example:
      >>> from alignax import logprobs
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> tokens = jax.numpy.ones((3, 5), int)
      >>> out = make_hidden(config)(init(config, jax.random.key(0)), tokens)
      >>> flat = out.hidden.reshape(-1, 8)
      >>> logprobs.from_hidden(flat, out.head, tokens.reshape(-1)).logp.shape
      (15,)
    """
    if remat not in REMAT:
        raise InputError(f"remat must be one of {list(REMAT)}, got {remat!r}")

    def hidden_fn(
        params,
        tokens,
        *,
        mask=None,
        positions=None,
        segments=None,
        prefix=None,
        cache_length=None,
        logits_from=0,
    ):
        model, hidden, cache = run(
            config,
            params,
            tokens,
            mask=mask,
            positions=positions,
            segments=segments,
            prefix=prefix,
            cache_length=cache_length,
            logits_from=logits_from,
            remat=remat,
            scan=scan,
            any_head=True,
        )
        return HiddenOutput(hidden, model.head_table(), config.logit_soft_cap, cache)

    return hidden_fn


def run(
    config: DecoderConfig,
    params: Params,
    tokens: Any,
    *,
    any_head: bool = False,
    **options: Any,
):
    """``(model, hidden, cache)`` of checked arguments."""
    _check_arguments(config, tokens, **options)
    check_params(config, params, any_head=any_head, any_steering=True)
    graph, abstract = _skeleton(config)
    state = jax.tree.map(lambda leaf: leaf, abstract)
    # Any of these may come from the host, as numpy arrays.
    arrays, tokens = jax.tree.map(jnp.asarray, (params, tokens))
    added = arrays.pop("steering", {})
    for name in ("mask", "positions", "segments"):
        if options.get(name) is not None:
            options[name] = jnp.asarray(options[name])
    nnx.replace_by_pure_dict(state, _with_keys(arrays, _list_key))
    model = nnx.merge(graph, state)
    return model, *model(tokens, added=added, **options)


def _check_arguments(
    config: DecoderConfig,
    tokens: Any,
    *,
    prefix: Any = None,
    segments: Any = None,
    cache: Any = None,
    cache_length: int | None = None,
    logits_from: int,
    **_: Any,
) -> None:
    rows, length = tokens.shape
    given = {"prefix": prefix, "cache": cache, "segments": segments}
    given = [name for name, value in given.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"give only one of prefix, cache and segments, got {given}")
    if segments is not None and cache_length is not None:
        raise InputError("segments are for training: cache_length must be None with it")
    behind = 0 if prefix is None else prefix["mask"].shape[1]
    most = max(length, cache_length or 0)
    if behind + most > config.max_length:
        raise InputError(
            f"tokens must fit the model's max_length of {config.max_length}, got "
            f"{length} and a cache of {cache_length} behind a prefix of {behind}; "
            "shorten prompts or completions"
        )
    if prefix is not None and "prefix" in prefix:
        raise InputError("prefix must be a cache without a prefix of its own")
    if prefix is not None and rows % len(prefix["seen"]):
        raise InputError(
            f"tokens must have as many rows for each of the prefix's "
            f"{len(prefix['seen'])}, got {rows}"
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
            f"tokens must fit the cache's {cache['mask'].shape[1]} places, got {length}"
        )
    if not 0 <= logits_from < max(length, 1):
        raise InputError(
            f"logits_from must be one of the {length} positions given, got "
            f"{logits_from}"
        )


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
