"""A language model whose every law is known: logits = table[token] + count · tilt.

``count`` is the number of real tokens so far, so a law that ignored the mask or
the cache would show.
"""

import jax.numpy as jnp

from alignax.types import ModelOutput

V = 6


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
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    if prefix is not None:
        copies = len(tokens) // len(prefix["seen"])
        cache = {"seen": jnp.repeat(prefix["seen"], copies)}
    seen = jnp.zeros(tokens.shape[:1], jnp.int32) if cache is None else cache["seen"]
    counts = seen[:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    logits = params["table"][tokens] + counts[..., None] * params["tilt"][None, None]
    if cache is not None or cache_length is not None:
        cache = {"seen": seen + jnp.sum(mask, axis=1, dtype=jnp.int32)}
    return ModelOutput(logits[:, logits_from:], cache)
