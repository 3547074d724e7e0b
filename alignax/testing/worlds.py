"""Problems of which every completion is listed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from alignax import exact
from alignax.types import ApplyFn, InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """A problem of which every completion is listed.

    Args:
      apply_fn: the model, for all three policies.
      policy: parameters; gradients are with respect to these.
      reference: parameters.
      behaviour: parameters of what samples off-policy.
      prompt: ``[P]`` tokens.
      tokens: ``[N, T]``, all completions, as ``exact.enumerate_completions`` lists
        them.
      mask: ``[N, T]``, True on the completion's tokens.
      settings: what it was made with, for tables and plots.
    """

    apply_fn: ApplyFn
    policy: Params
    reference: Params
    behaviour: Params
    prompt: Array
    tokens: Array
    mask: Array
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def random_world(
    key: Key[Array, ""],
    *,
    vocab_size: int = 3,
    horizon: int = 2,
    scale: float = 1.0,
    off_policy: float = 1.0,
    ends: bool = False,
) -> World:
    """A tabular autoregressive policy, its reference and a behaviour policy.

    The policy's logits are standard normal at each prefix; the others' are those plus
    independent normal noise.

    Args:
      key: of the logits.
      vocab_size: V.
      horizon: T, the longest completion.
      scale: of the reference's noise: the size of the log-ratios, in nats.
      off_policy: of the behaviour policy's noise; 0 samples from the policy.
      ends: whether token 0 ends a completion; else all have T tokens.

    Returns:
      a world of at most V^T completions.

    Raises:
      InputError: a number out of range.

    Example:
      >>> world = random_world(jax.random.key(0), vocab_size=4, horizon=2)
      >>> world.tokens.shape
      (16, 2)
    """
    if scale < 0 or off_policy < 0:
        raise InputError(
            f"scale and off_policy must not be negative, got {scale}, {off_policy}"
        )
    tokens, mask = exact.enumerate_completions(
        vocab_size, horizon, eos_id=0 if ends else None
    )
    policy, *noise = (
        exact.tabular_init(k, prompts=1, vocab_size=vocab_size, horizon=horizon)
        for k in jax.random.split(key, 3)
    )
    reference, behaviour = (
        jax.tree.map(lambda x, y, size=size: x + size * y, policy, more)
        for size, more in zip((scale, off_policy), noise, strict=True)
    )
    return World(
        apply_fn=exact.make_tabular_apply(vocab_size=vocab_size, horizon=horizon),
        policy=policy,
        reference=reference,
        behaviour=behaviour,
        prompt=jnp.zeros(1, jnp.int32),
        tokens=tokens,
        mask=mask,
        settings={
            "vocab_size": vocab_size,
            "horizon": horizon,
            "scale": scale,
            "off_policy": off_policy,
        },
    )
