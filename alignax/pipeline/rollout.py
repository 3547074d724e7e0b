"""Sampling completions: prompts and a model in, tokens and log-probs out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from alignax import logprobs, sampling
from alignax.types import ApplyFn, HiddenFn, InputError, Params, Prompts, Rollout


def left_padded(prompts: Prompts) -> Prompts:
    """The same prompts with their padding, wherever it was, on the left."""
    order = jnp.argsort(prompts.mask, axis=-1, stable=True)
    return Prompts(
        tokens=jnp.take_along_axis(prompts.tokens, order, axis=-1),
        mask=jnp.take_along_axis(prompts.mask, order, axis=-1),
        index=prompts.index,
    )


def row_keys(
    key: Key[Array, ""], index: Int[Array, " N"], completions: int
) -> Key[Array, " B"]:
    """One key a completion, from the prompt's record number and the completion's.

    So a row's sample does not depend on which rows it shares a batch or a device
    with. A record that stands in the batch twice gets other keys the second time.
    """
    same = index[:, None] == index[None, :]
    occurrence = jnp.sum(jnp.tril(same, -1), axis=-1)

    def keys_of(index, occurrence):
        base = jax.random.fold_in(jax.random.fold_in(key, index), occurrence)
        return jax.vmap(lambda k: jax.random.fold_in(base, k))(jnp.arange(completions))

    return jax.vmap(keys_of)(index, occurrence).reshape(-1)


def sampling_logits(
    logits: Float[Array, "B V"],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Float[Array, "B V"]:
    """Logits of the law that is sampled: temperature, then top-k, then top-p."""
    if temperature != 1:
        logits = sampling.tempered(logits, temperature=temperature)
    if top_k is not None:
        logits = sampling.top_k(logits, k=top_k)
    if top_p is not None:
        logits = sampling.top_p(logits, p=top_p)
    return logits


def generate(
    apply_fn: ApplyFn,
    params: Params,
    key: Key[Array, ""],
    prompts: Prompts,
    *,
    completions: int,
    max_tokens: int,
    eos_id: int | None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Rollout:
    """Sample ``completions`` completions of up to ``max_tokens`` for each prompt.

    Prompts are prefilled once and their cache shared by the completions; the loop
    ends early when every row has ended. Meant to be jitted with all but the
    arrays bound: shapes depend on nothing else.

    Args:
      apply_fn: the model.
      params: its parameters.
      key: consumed; fold the step in first.
      prompts: ``[N, P]``, padded on either side; every row has a token.
      completions: K, at least 1.
      max_tokens: T, at least 1.
      eos_id: token that ends a completion and is part of it; None for never.
      pad_id: fills what follows the end.
      temperature: of the sampling law; 0 is greedy.
      top_k: keep only this many likeliest tokens; None for all.
      top_p: keep the likeliest tokens of this mass; None for all.

    Returns:
      a rollout of B = N·K rows. ``logp_behaviour`` is under the tempered,
      truncated law that was sampled, ``logp_old`` under the policy's softmax;
      both float32 and zero where masked.

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
    prompts = left_padded(prompts)
    length = prompts.tokens.shape[1]
    keys = row_keys(key, prompts.index, completions)

    def repeated(tree):
        return jax.tree.map(
            lambda x: jnp.repeat(x, completions, axis=0) if x.ndim else x, tree
        )

    def draw(t, logits):
        """Tokens, their log-probability under the sampled law, and the policy's."""
        if temperature == 0:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            logp_old = logprobs.token_logp(logits, token)
            return token, jnp.zeros_like(logp_old), logp_old
        law = sampling_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        uniforms = jax.vmap(
            lambda row: jax.random.uniform(jax.random.fold_in(row, t), (2,))
        )(keys)
        token, normaliser = sampling.inverse_cdf(uniforms, law)
        picked = jnp.take_along_axis(law, token[:, None], axis=-1)[:, 0]
        logp = picked - normaliser
        return (
            token,
            logp,
            logp if law is logits else logprobs.token_logp(logits, token),
        )

    def write(t, out, logits):
        """Sample position t from ``logits`` and write it down."""
        token, logp_behaviour, logp_old = draw(t, logits)
        alive = ~out["finished"]

        def put(name, value):
            return out[name].at[:, t].set(jnp.where(alive, value, out[name][:, t]))

        return {
            "tokens": put("tokens", token),
            "mask": put("mask", True),
            "logp_behaviour": put("logp_behaviour", logp_behaviour),
            "logp_old": put("logp_old", logp_old),
            "finished": out["finished"]
            | (False if eos_id is None else token == eos_id),
        }

    prefill = apply_fn(
        params,
        prompts.tokens,
        mask=prompts.mask,
        cache_length=length,
        logits_from=length - 1,
    )
    rows = prompts.tokens.shape[0] * completions
    zeros = jnp.zeros((rows, max_tokens), jnp.float32)
    out = {
        "tokens": jnp.full((rows, max_tokens), pad_id, prompts.tokens.dtype),
        "mask": jnp.zeros((rows, max_tokens), bool),
        "logp_behaviour": zeros,
        "logp_old": zeros,
        "finished": jnp.zeros((rows,), bool),
    }
    out = write(0, out, repeated(prefill.logits[:, -1]))

    def unfinished(carry):
        t, out, _ = carry
        return (t < max_tokens) & ~jnp.all(out["finished"])

    def step(carry):
        t, out, cache = carry
        last = jax.lax.dynamic_slice_in_dim(out["tokens"], t - 1, 1, axis=1)
        logits, cache = apply_fn(params, last, cache=cache)
        return t + 1, write(t, out, logits[:, -1]), cache

    if max_tokens > 1:
        # A prompt's cache is shared by its completions; their own is opened empty.
        nothing = out["tokens"][:, :0]
        opened = apply_fn(
            params, nothing, prefix=prefill.cache, cache_length=max_tokens - 1
        )
        carry = (jnp.int32(1), out, opened.cache)
        _, out, _ = jax.lax.while_loop(unfinished, step, carry)
    prompt = repeated({"tokens": prompts.tokens, "mask": prompts.mask})
    return Rollout(prompt_tokens=prompt["tokens"], prompt_mask=prompt["mask"], **out)


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
        [rollout.prompt_mask, rollout.mask], axis=1
    )
    start = rollout.prompt_tokens.shape[1] - 1
    return apply_fn(params, tokens[:, :-1], mask=mask[:, :-1], logits_from=start).logits


ScoreFn = Callable[[Params, Rollout], tuple[Float[Array, "B T"], Float[Array, "B T"]]]
"""``(params, rollout) -> (logp, entropy)`` of each completion position, in nats."""


def score_by_logits(apply_fn: ApplyFn) -> ScoreFn:
    """Log-probabilities and entropies from ``completion_logits``, for any model.

    Args:
      apply_fn: the model.

    Returns:
      the scores' function; it holds the logits of all completion positions.
    """

    def score(params, rollout):
        logits = completion_logits(apply_fn, params, rollout)
        return logprobs.token_logp(logits, rollout.tokens), logprobs.entropy(logits)

    return score


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

    def hidden_of(params, rollout):
        """The hidden states that predict each completion token, and the rest."""
        length = rollout.prompt_tokens.shape[1]
        tokens, mask = rollout.tokens[:, :-1], rollout.mask[:, :-1]
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

    def score(params, rollout):
        shape = rollout.tokens.shape
        if shape[0] % completions:
            raise InputError(
                f"completions must divide the {shape[0]} rows given, got {completions}"
            )
        hidden, out = hidden_of(params, rollout)
        stats = logprobs.from_hidden(
            hidden.reshape(-1, hidden.shape[-1]),
            out.head,
            rollout.tokens.reshape(-1),
            soft_cap=out.soft_cap,
        )
        return stats.logp.reshape(shape), stats.entropy.reshape(shape)

    return score
