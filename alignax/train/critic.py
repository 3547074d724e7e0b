"""Value functions beside a policy: a head on its trunk, or a model of its own.

Both are ``(policy params, critic params, rollout) -> [B, T]``, of several heads
``[B, T, heads]``: the value before each token, for ``policy_gradient.make_step`` and
``sampler.make_sampler``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from alignax.models import heads
from alignax.models.config import DecoderConfig
from alignax.pipeline import rollout as rollouts
from alignax.types import HiddenFn, Params, Rollout

ValueFn = Callable[[Params, Any, Rollout], Array]


def _each(values: Float[Array, "B T O"]) -> Array:
    """``[B, T]`` of one head, ``[B, T, heads]`` of several: the method pools them."""
    return values[..., 0] if values.shape[-1] == 1 else values


def init_head(key: Key[Array, ""], *, width: int, outputs: int = 1) -> Params:
    """Parameters of a head on the policy's trunk.

    Args:
      key: of the weights.
      width: D of the hidden states.
      outputs: values at each token; several are pooled by the method.

    Returns:
      ``{"kernel": [D, outputs], "bias": [outputs]}``.
    """
    kernel = jax.random.normal(key, (width, outputs)) * (width + 1) ** -0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def value_head(hidden_fn: HiddenFn, *, completions: int = 1) -> ValueFn:
    """Values from the policy's own hidden states, whose trunk they train as well.

    Args:
      hidden_fn: the policy up to its head.
      completions: K, how many adjacent rows have one prompt.

    Returns:
      the value function; its critic parameters are of ``init_head``.
    """

    def values(params, critic, rollout):
        hidden, _ = rollouts.completion_hidden(
            hidden_fn, params, rollout, completions=completions
        )
        out = hidden.astype(jnp.float32) @ critic["kernel"] + critic["bias"][None, None]
        return _each(out)

    return values


def own_model(config: DecoderConfig, *, outputs: int = 1) -> ValueFn:
    """Values from a model of their own, such as a reward model to start from.

    Args:
      config: its architecture.
      outputs: values at each token.

    Returns:
      the value function; its critic parameters are of ``heads.init_reward`` or
      ``heads.reward_from_policy``.
    """
    value_fn = heads.make_reward(config, outputs=outputs)

    def values(params, critic, rollout):
        del params
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
        mask = jnp.concatenate([rollout.prompt_mask, rollout.attended], axis=1)
        start = rollout.prompt_tokens.shape[1] - 1
        return _each(value_fn(critic, tokens[:, :-1], mask=mask[:, :-1])[:, start:])

    return values
