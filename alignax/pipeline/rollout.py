"""Sampling completions: prompts and a model in, tokens and log-probs out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import divergences, estimators, logprobs, sampling
from alignax.divergences import Divergence
from alignax.pipeline import decoding
from alignax.types import (
    ApplyFn,
    HiddenFn,
    HiddenOutput,
    InputError,
    Params,
    Prompts,
    Rollout,
)


def generate(
    apply_fn: ApplyFn,
    params: Params,
    key: Key[Array, ""],
    prompts: Prompts,
    *,
    completions: int,
    max_tokens: int,
    eos_id: decoding.Ends,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    slots: int | None = None,
    restricted: bool = False,
    stops: decoding.Stops = None,
    version: int | Int[Array, ""] = 0,
) -> Rollout:
    """Sample ``completions`` completions of up to ``max_tokens`` for each prompt.

    Prompts are prefilled once and their cache shared by the completions; the loop
    ends early when every row has ended. Meant to be jitted with all but the
    arrays bound: shapes depend on nothing else.

    With ``slots``, that many rows are decoded at a time, and one that has ended makes
    room for the next completion: long ones hold up nobody, and memory is that of the
    slots and of the prompts' cache. The samples are the same. It pays where lengths
    differ and ``slots`` rows keep the device busy; each slot reads a prompt's cache of
    its own.

    Args:
      apply_fn: the model.
      params: its parameters.
      key: consumed; fold the step in first.
      prompts: ``[N, P]``, padded on either side; every row has a token.
      completions: K, at least 1.
      max_tokens: T, at least 1.
      eos_id: token that ends a completion and is part of it, or several of them, as
        ``Tokenizer.end_ids``; None for never.
      pad_id: fills what follows the end.
      temperature: of the sampling law; 0 is greedy.
      top_k: keep only this many likeliest tokens; None for all.
      top_p: keep the likeliest tokens of this mass; None for all.
      slots: rows decoded at a time, at least 1; None for all. The model's caches must
        be the rings that ``ApplyFn`` describes.
      restricted: the model itself rules tokens out, by logits of −inf: the record
        holds the support as for ``top_k``.
      stops: int ``[S, V]``, an automaton over tokens, as ``train.stops.table`` makes of
        texts: a completion ends with the token that leads to its last state.
      version: of the policy, such as its step; written on every token.

    Returns:
      a rollout of B = N·K rows. ``logp_behaviour`` is under the tempered, truncated
      distribution that was sampled, float32 and zero where masked. Greedy tokens are
      drawn with certainty: theirs is 0, and they are scored at temperature 1. With
      ``top_k`` or ``top_p`` the record holds the ``support`` too: V bits a token, 19 kB
      of 151,936 entries.

    Raises:
      InputError: a number is out of range.

    Example:
      >>> from functools import partial
      >>> def sampler(apply_fn):
      ...     fixed = partial(generate, apply_fn, completions=8, max_tokens=4, eos_id=1)
      ...     return jax.jit(fixed)  # (params, key, prompts) -> Rollout
    """
    if completions < 1:
        raise InputError(f"completions must be at least 1, got {completions}")
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    if temperature < 0:
        raise InputError(
            f"temperature must not be negative, got {temperature}; 0 is greedy"
        )
    if slots is not None and slots < 1:
        raise InputError(f"slots must be None or at least 1, got {slots}")
    prompts = decoding.left_padded(prompts)
    keys = decoding.row_keys(key, prompts.index, completions)
    draw = decoding.make_draw(
        temperature=temperature, top_k=top_k, top_p=top_p, restricted=restricted
    )
    decode = decoding.at_once
    if slots is not None and slots < len(keys):
        decode = partial(decoding.in_slots, slots=slots)
    out = decode(
        apply_fn,
        params,
        prompts,
        keys,
        draw,
        completions=completions,
        max_tokens=max_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
        stops=stops,
    )
    tokens, mask = (
        jnp.repeat(x, completions, axis=0) for x in (prompts.tokens, prompts.mask)
    )
    tempered = temperature not in (0, 1)
    return Rollout(
        prompt_tokens=tokens,
        prompt_mask=mask,
        attended=out["trained"],
        version=jnp.full(out["tokens"].shape, version, jnp.int32),
        temperature=jnp.full(len(tokens), temperature) if tempered else None,
        **out,
    )


def completion_logits(
    apply_fn: ApplyFn, params: Params, rollout: Rollout
) -> Float[Array, "B T V"]:
    """The model's logits at each completion position, by one full forward.

    Args:
      apply_fn: the model.
      params: its parameters.
      rollout: B rows of P prompt and T completion positions.

    Returns:
      ``[B, T, V]`` float32: those that predict each completion token. Prompt
      positions never reach the head.
    """
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    mask: Bool[Array, "B S"] = jnp.concatenate(
        [rollout.prompt_mask, rollout.attended], axis=1
    )
    start = rollout.prompt_tokens.shape[1] - 1
    return apply_fn(params, tokens[:, :-1], mask=mask[:, :-1], logits_from=start).logits


def sampled_logits(
    logits: Float[Array, "B T V"], rollout: Rollout
) -> Float[Array, "B T V"]:
    """Logits of the distribution that drew a rollout's tokens, from a model's own.

    Args:
      logits: ``[B, T, V]``, of any policy.
      rollout: whose temperature and support are applied.

    Returns:
      ``[B, T, V]`` float32, −inf outside of the support.
    """
    logits = _tempered(logits, rollout)
    if rollout.support is None:
        return logits
    return sampling.restricted(logits, rollout.support)


def _tempered(logits: Array, rollout: Rollout) -> Array:
    if rollout.temperature is None:
        return logits
    return logits.astype(jnp.float32) / rollout.temperature[:, None, None]


class Scores(NamedTuple):
    """``[B, T]`` float32 each, in nats, of the distribution that sampled: a policy's,
    at the rollout's temperature and on its support.

    ``logp + log_mass`` is the log-probability of the token before the truncation: a
    reference's own, to which a truncated policy's KL is that of what is sampled.
    """

    logp: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    log_mass: Float[Array, "B T"]
    """Log-probability of the support; 0 where nothing is truncated."""


ScoreFn = Callable[[Params, Rollout], Scores]
"""``(params, rollout) -> scores`` of each completion position: on-policy, ``logp`` is
``logp_behaviour`` to the rounding of the model's dtype."""


def score_by_logits(apply_fn: ApplyFn) -> ScoreFn:
    """Scores from ``completion_logits``, for any model.

    Args:
      apply_fn: the model.

    Returns:
      the scores' function; it holds the logits of all completion positions.
    """

    def score(params, rollout):
        logits = completion_logits(apply_fn, params, rollout)
        whole, law = _tempered(logits, rollout), sampled_logits(logits, rollout)
        logp = logprobs.token_logp(law, rollout.tokens)
        log_mass = jnp.zeros_like(logp)
        if rollout.support is not None:
            log_mass = logsumexp(law, axis=-1) - logsumexp(whole, axis=-1)
        return Scores(logp, logprobs.entropy(law), log_mass)

    return score


def completion_hidden(
    hidden_fn: HiddenFn, params: Params, rollout: Rollout, *, completions: int = 1
) -> tuple[Float[Array, "B T D"], HiddenOutput]:
    """The hidden states that predict each completion token, each prompt encoded once.

    Args:
      hidden_fn: the model up to its head.
      params: its parameters.
      rollout: B rows.
      completions: K, how many adjacent rows have one prompt; at 1 rows may have any.

    Returns:
      ``[B, T, D]``, and the model's output with its head.

    Raises:
      InputError: ``completions`` does not divide the rows.

    Reference:
      Liu et al., "Prefix Grouper", arXiv 2506.05433.
    """
    rows, length = len(rollout.tokens), rollout.prompt_tokens.shape[1]
    if rows % completions:
        raise InputError(
            f"completions must divide the {rows} rows given, got {completions}"
        )
    tokens, mask = rollout.tokens[:, :-1], rollout.attended[:, :-1]
    if completions == 1:
        out = hidden_fn(
            params,
            jnp.concatenate([rollout.prompt_tokens, tokens], axis=1),
            mask=jnp.concatenate([rollout.prompt_mask, mask], axis=1),
            logits_from=length - 1,
        )
        return out.hidden, out
    out = hidden_fn(
        params,
        rollout.prompt_tokens[::completions],
        mask=rollout.prompt_mask[::completions],
        cache_length=length,
        logits_from=length - 1,
    )
    first = jnp.repeat(out.hidden, completions, axis=0)
    if not tokens.shape[1]:
        return first, out
    rest = hidden_fn(params, tokens, mask=mask, prefix=out.cache)
    return jnp.concatenate([first, rest.hidden], axis=1), out


def _law(rollout: Rollout) -> dict[str, Any]:
    """What ``logprobs.from_hidden`` asks of the distribution that sampled."""
    options, length = {}, rollout.tokens.shape[1]
    if rollout.temperature is not None:
        options["temperature"] = jnp.repeat(rollout.temperature, length)
    if rollout.support is not None:
        bits = rollout.support
        options["support"] = bits.reshape(-1, bits.shape[-1])
    return options


def score_by_hidden(hidden_fn: HiddenFn, *, completions: int = 1) -> ScoreFn:
    """The same without logits, each prompt encoded once for all of its completions.

    Args:
      hidden_fn: the model up to its head.
      completions: K, how many adjacent rows have one prompt; at 1 rows may have any.

    Returns:
      the scores' function; where ``completions`` does not divide the rows it raises
      ``InputError``. Values and gradients are those of ``score_by_logits``.

    Raises:
      InputError: ``completions`` is less than 1.

    Reference:
      Liu et al., "Prefix Grouper", arXiv 2506.05433.
    """
    if completions < 1:
        raise InputError(f"completions must be at least 1, got {completions}")

    def score(params, rollout):
        shape = rollout.tokens.shape
        hidden, out = completion_hidden(
            hidden_fn, params, rollout, completions=completions
        )
        stats = logprobs.from_hidden(
            hidden.reshape(-1, hidden.shape[-1]),
            out.head,
            rollout.tokens.reshape(-1),
            soft_cap=out.soft_cap,
            **_law(rollout),
        )
        found = (stats.logp, stats.entropy, stats.log_mass)
        return Scores(*(x.reshape(shape) for x in found))

    return score


TokenDivergence = Callable[[Params, Params, Rollout], Float[Array, "B T"]]
"""``(params, reference params, rollout) -> [B, T]``: each token's divergence of the
distribution that sampled from the whole reference, behind its own prompt where the
rollout has one for it (``shown_tokens``), nats; a gradient to ``params``."""


def divergence_by_logits(
    apply_fn: ApplyFn, div: Divergence, *, k: int | None = None
) -> TokenDivergence:
    """Each token's divergence over the vocabulary, for any model.

    Args:
      apply_fn: the model, also the reference's.
      div: the divergence.
      k: sum over the policy's k likeliest tokens, and sample beyond; None for all.

    Returns:
      the function; it holds both models' logits.

    Value: exact at each prefix; with ``k`` unbiased, for tokens of the policy.
    Gradient: of the token's divergence, likewise.
    """

    def divergence(params, reference, rollout):
        logits = sampled_logits(completion_logits(apply_fn, params, rollout), rollout)
        seen = completion_logits(apply_fn, reference, decoding.as_shown(rollout))
        logits_ref = jax.lax.stop_gradient(_tempered(seen, rollout))
        if k is None:
            return divergences.exact(div, logits, logits_ref)
        return estimators.myopic_top_k_f_surrogate(
            div, logits, logits_ref, rollout.tokens, rollout.trained, k=k
        )

    return divergence


def divergence_by_hidden(
    hidden_fn: HiddenFn,
    div: Divergence,
    *,
    completions: int = 1,
    reference_fn: HiddenFn | None = None,
) -> TokenDivergence:
    """The same over all of the vocabulary, without the logits of all tokens.

    Args:
      hidden_fn: the model up to its head.
      div: the divergence.
      completions: K, how many adjacent rows have one prompt.
      reference_fn: the reference's, of any width, where it is another model.

    Returns:
      the function.

    Value: exact at each prefix.
    Gradient: exact, of the token's divergence.
    """

    def divergence(params, reference, rollout):
        read = partial(completion_hidden, completions=completions)
        hidden, out = read(hidden_fn, params, rollout)
        other = reference_fn or hidden_fn
        hidden_ref, out_ref = read(other, reference, decoding.as_shown(rollout))
        value = logprobs.divergence_from_hidden(
            div,
            hidden.reshape(-1, hidden.shape[-1]),
            out.head,
            hidden_ref.reshape(-1, hidden_ref.shape[-1]),
            out_ref.head,
            soft_cap=out.soft_cap,
            soft_cap_ref=out_ref.soft_cap,
            **_law(rollout),
        )
        return value.reshape(rollout.tokens.shape)

    return divergence
