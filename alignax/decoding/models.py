"""Several models as one."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.numerics import as_float
from alignax.types import ApplyFn, InputError, ModelOutput

Rule = Callable[..., Float[Array, "*batch V"]]
"""``(logits, logits, …) -> logits``, each ``[..., V]``."""


def combine(rule: Rule, *apply_fns: ApplyFn) -> ApplyFn:
    """The models as one that writes from a rule over their logits.

    It samples, with a shared prompt and with slots, and scores as any model does. Each
    model reads the same tokens and has a cache of its own.

    Args:
      rule: of as many logits as there are models.
      apply_fns: the models; the same function again where only parameters differ.

    Returns:
      an ``ApplyFn`` whose params and cache are tuples, one part a model. It raises
      ``InputError`` for another number of params and for models of different
      vocabularies.

    Raises:
      InputError: no model.

    Example:
      >>> def apply_fn(params, tokens, **options):
      ...     return ModelOutput(jnp.broadcast_to(params, (*tokens.shape, 2)), None)
      >>> both = combine(lambda a, b: (a + b) / 2, apply_fn, apply_fn)
      >>> params = jnp.array([2.0, 0.0]), jnp.array([0.0, 4.0])
      >>> print(both(params, jnp.zeros((1, 1), int)).logits)
      [[[1. 2.]]]
    """
    if not apply_fns:
        raise InputError("apply_fns must be at least one model, got none")

    def combined(
        params,
        tokens,
        *,
        prefix=None,
        cache=None,
        cache_length=None,
        **options,
    ):
        outs = each_model(
            apply_fns,
            params,
            tokens,
            prefix=prefix,
            cache=cache,
            cache_length=cache_length,
            **options,
        )
        kept = cache is not None or cache_length is not None
        return ModelOutput(
            rule(*(as_float(out.logits) for out in outs)),
            tuple(out.cache for out in outs) if kept else None,
        )

    return combined


def each_model(
    apply_fns: tuple[ApplyFn, ...],
    params: Any,
    tokens: Any,
    *,
    prefix: Any = None,
    cache: Any = None,
    **options: Any,
) -> list[ModelOutput]:
    """What each model says of the same tokens, from its own cache."""
    count = len(apply_fns)
    if len(params) != count:
        raise InputError(
            f"params must be a tuple of one part for each of the {count} models, got "
            f"{len(params)}"
        )
    nothing = (None,) * count
    outs = [
        function(own, tokens, prefix=own_prefix, cache=own_cache, **options)
        for function, own, own_prefix, own_cache in zip(
            apply_fns, params, prefix or nothing, cache or nothing, strict=True
        )
    ]
    sizes = [jnp.shape(out.logits)[-1] for out in outs]
    if len(set(sizes)) > 1:
        raise InputError(
            f"models that are combined must have one vocabulary, got heads of {sizes} "
            "tokens"
        )
    return outs
