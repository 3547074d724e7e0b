"""Autoregressive worlds with every completion enumerated.

A completion is drawn token by token until the end-of-sequence token or a horizon.
With a vocabulary and a horizon small enough, sums over all of them are exact: the
oracle that estimators and training steps are tested against.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from alignax.types import ApplyFn, InputError, ModelOutput, Params

LIMIT = 1 << 20


def enumerate_completions(
    vocab_size: int, horizon: int, *, eos_id: int | None = None, pad_id: int = 0
) -> tuple[Int[Array, "N T"], Bool[Array, "N T"]]:
    """Every completion of up to ``horizon`` tokens, each once.

    Args:
      vocab_size: V, the end-of-sequence token included.
      horizon: T.
      eos_id: ends a completion and is part of it; None gives all V^T of length T.
      pad_id: fills what follows the end.

    Returns:
      ``tokens [N, T]`` int32 and ``mask [N, T]``, True through the end.

    Raises:
      InputError: there would be more than about a million, or ``eos_id`` is no token.

    Example:
      >>> tokens, mask = enumerate_completions(2, 2, eos_id=1)
      >>> print(tokens.tolist(), mask.sum(axis=1).tolist())
      [[1, 0], [0, 1], [0, 0]] [1, 2, 2]
    """
    if vocab_size < 1 or horizon < 1:
        raise InputError(
            f"vocab_size and horizon must be at least 1, got {vocab_size}, {horizon}"
        )
    if vocab_size**horizon > LIMIT:
        raise InputError(
            f"vocab_size ** horizon must be at most {LIMIT} to enumerate, got "
            f"{vocab_size} ** {horizon}"
        )
    if eos_id is not None and not 0 <= eos_id < vocab_size:
        raise InputError(
            f"eos_id must be None or one of the {vocab_size} tokens, got {eos_id}"
        )
    others = [v for v in range(vocab_size) if v != eos_id]
    tokens, mask = [], []
    for length in range(1, horizon + 1):
        if eos_id is not None:
            for prefix in itertools.product(others, repeat=length - 1):
                rest = horizon - length
                tokens.append([*prefix, eos_id] + [pad_id] * rest)
                mask.append([True] * length + [False] * rest)
    for full in itertools.product(others, repeat=horizon):
        tokens.append(list(full))
        mask.append([True] * horizon)
    return jnp.array(np.array(tokens, np.int32)), jnp.array(np.array(mask))


def sequence_types(
    logp: Float[Array, " K"], *, length: int
) -> tuple[Float[Array, "N K"], Float[Array, " N"]]:
    """Sequences of independent symbols, those of equal counts as one outcome.

    For rewards that add up over the symbols it is as good as all ``K^m`` sequences:
    ``C(m + K − 1, m)`` types.

    Args:
      logp: of a symbol, normalised.
      length: m, symbols of a sequence.

    Returns:
      ``counts [N, K]``, of each symbol, and the types' log-probabilities ``[N]``.

    Raises:
      InputError: there would be more than about a million.

    Example:
      >>> counts, logp = sequence_types(jnp.log(jnp.array([0.5, 0.5])), length=2)
      >>> print(counts.tolist(), jnp.exp(logp))
      [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]] [0.25 0.5 0.25]
    """
    size = logp.shape[0]
    if math.comb(length + size - 1, length) > LIMIT:
        raise InputError(
            f"length must give at most {LIMIT} types of {size} symbols, got {length}"
        )
    places = itertools.combinations(range(length + size - 1), size - 1)
    bars = np.array(list(places)).reshape(-1, size - 1)[::-1]
    ends = np.full((len(bars), 1), length + size - 1)
    counts = np.diff(np.concatenate([0 * ends - 1, bars, ends], axis=1), axis=1) - 1
    counts = jnp.asarray(counts, logp.dtype)
    ways = jax.scipy.special.gammaln(jnp.asarray(length + 1, logp.dtype))
    ways = ways - jnp.sum(jax.scipy.special.gammaln(counts + 1), axis=-1)
    inner = jnp.where(counts > 0, counts * jnp.where(counts > 0, logp, 0), 0)
    return counts, ways + jnp.sum(inner, axis=-1)


def tabular_init(
    key: Key[Array, ""],
    *,
    prompts: int,
    vocab_size: int,
    horizon: int,
    scale: float = 1.0,
) -> Params:
    """Logits of a policy with a free row for each prompt and prefix.

    Args:
      key: of the normal values.
      prompts: how many prompts; a prompt is its number, the first token.
      vocab_size: V.
      horizon: T.
      scale: standard deviation.

    Returns:
      ``{"logits": [prompts, (V^T − 1)/(V − 1), V]}``, prefixes by length, then in
      lexicographic order.

    Example:
      >>> params = tabular_init(jax.random.key(0), prompts=2, vocab_size=3, horizon=2)
      >>> params["logits"].shape
      (2, 4, 3)
    """
    prefixes = sum(vocab_size**t for t in range(horizon))
    shape = (prompts, prefixes, vocab_size)
    return {"logits": scale * jax.random.normal(key, shape)}


@functools.lru_cache(maxsize=64)
def make_tabular_apply(*, vocab_size: int, horizon: int) -> ApplyFn:
    """A tabular policy as a language model: samples and trains like any other.

    The prompt is one token: the prompt's number. ``params`` are those of
    ``tabular_init``.

    Args:
      vocab_size: V.
      horizon: T.

    Returns:
      an ``ApplyFn``; it ignores ``mask`` and ``positions``, since a completion has
      no token after its padding that counts.

    Example:
      >>> apply_fn = make_tabular_apply(vocab_size=3, horizon=2)
      >>> params = {"logits": jnp.zeros((1, 4, 3))}
      >>> apply_fn(params, jnp.zeros((5, 2), jnp.int32)).logits.shape
      (5, 2, 3)
    """
    offsets = np.array([sum(vocab_size**i for i in range(t)) for t in range(horizon)])

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
        del mask, positions
        if prefix is not None:
            copies = len(tokens) // len(prefix["prompt"])
            cache = jax.tree.map(
                lambda x: jnp.repeat(x, copies, axis=0) if x.ndim else x, prefix
            )
        if cache is None:
            # The first token is the prompt and no part of the prefix.
            prompt, known = tokens[:, 0], 0
            code = jnp.zeros_like(prompt)
            steps = jnp.moveaxis(tokens, 1, 0).at[0].set(0)
        else:
            prompt, code, known = cache["prompt"], cache["code"], cache["known"]
            steps = jnp.moveaxis(tokens, 1, 0)

        def read(code, token):
            code = code * vocab_size + token
            return code, code

        code, codes = jax.lax.scan(read, code, steps)
        lengths = known + jnp.arange(len(steps))
        # Past the horizon nothing is read; clip only keeps the index in range.
        rows = codes + jnp.take(jnp.asarray(offsets), lengths, mode="clip")[:, None]
        logits = params["logits"].at[prompt[None, :], rows].get(mode="clip")
        logits = jnp.moveaxis(logits, 0, 1)[:, logits_from:]
        if prefix is not None and cache_length is None:
            cache = None
        elif cache is not None or cache_length is not None:
            cache = {"prompt": prompt, "code": code, "known": known + len(steps)}
            cache["known"] = jnp.asarray(cache["known"], jnp.int32)
        return ModelOutput(logits, cache)

    return apply_fn


def completion_logp(
    apply_fn: ApplyFn,
    params: Params,
    prompt: Int[Array, " P"],
    tokens: Int[Array, "N T"],
    mask: Bool[Array, "N T"],
    *,
    chunk_size: int | None = None,
) -> Float[Array, " N"]:
    """Log-probabilities of completions of one prompt, under any language model.

    Args:
      apply_fn: the model.
      params: its parameters.
      prompt: ``[P]`` tokens, without padding.
      tokens: ``[N, T]``, such as ``enumerate_completions`` gives.
      mask: ``[N, T]``, True on the completion's tokens.
      chunk_size: completions that the model sees at a time; None for all.

    Returns:
      ``[N]`` in nats, in the precision of the logits.

    Raises:
      InputError: ``chunk_size`` is not positive.

    Example:
      >>> apply_fn = make_tabular_apply(vocab_size=2, horizon=2)
      >>> params = {"logits": jnp.zeros((1, 3, 2))}
      >>> prompt, world = jnp.zeros(1, jnp.int32), enumerate_completions(2, 2, eos_id=1)
      >>> print(jnp.exp(completion_logp(apply_fn, params, prompt, *world)))
      [0.5 0.25 0.25]
    """
    if chunk_size is not None:
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        count = len(tokens)
        chunks = -(-count // chunk_size)
        # The last chunk is filled up with the first completion.
        rows = np.arange(chunks * chunk_size).reshape(chunks, chunk_size)
        rows = np.where(rows < count, rows, 0)
        logp = jax.lax.map(
            lambda chunk: completion_logp(apply_fn, params, prompt, *chunk),
            (tokens[rows], mask[rows]),
        )
        return logp.reshape(-1)[:count]
    prompts = jnp.broadcast_to(prompt, (len(tokens), len(prompt)))
    whole = jnp.concatenate([prompts, tokens], axis=1)
    valid = jnp.concatenate([jnp.ones_like(prompts, bool), mask], axis=1)
    logits = apply_fn(
        params, whole[:, :-1], mask=valid[:, :-1], logits_from=len(prompt) - 1
    ).logits
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1
    )[..., 0]
    return jnp.sum(jnp.where(mask, logp, 0), axis=-1)
