"""A model steered towards uncertain decisions, by what it decided before (EAST)."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignax import decoding
from alignax.models.steering import check_layer, residual, steered
from alignax.train import generation
from alignax.train import policy as policies
from alignax.train.policy import Policy
from alignax.types import InputError, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """Where a vector comes from, and where it is added.

    Raises:
      InputError: a number is out of range, or the pattern is none.
    """

    by: str | None = None
    """Records with the field prompt, as those of --prompts: what the model decides
    behind them makes a vector that is added to its residual stream (EAST)."""
    layer: int | None = None
    """Behind which layer, from 0; None for the one in the middle."""
    strength: float = 1.0
    """What the vector is multiplied by."""
    n: int = 16
    """Completions of each of these prompts."""
    action: str | None = None
    """A regular expression: a completion's decision is its first match, or the match's
    first group; None for the whole completion."""

    def __post_init__(self):
        if self.n < 2:
            raise InputError(
                f"n of steer must be at least 2, got {self.n}: entropies of decisions "
                "are of several"
            )
        try:
            re.compile(self.action or "")
        except re.error as error:
            raise InputError(
                f"action of steer must be a regular expression, got {self.action!r}: "
                f"{error}"
            ) from error


class Direction(NamedTuple):
    """A vector, and what it was made of."""

    vector: Float[Array, " d"]
    entropy: Float[Array, " N"]
    """Of each prompt's decisions, nats."""
    size: float
    """The vector's norm in mean norms of the states."""


def decided(text: str, action: str | None) -> str | None:
    """What a completion decided; None where it decided nothing.

    Args:
      text: of the completion.
      action: as ``Steering.action``.

    Returns:
      the decision, without space around it.
    """
    if action is None:
        return text.strip()
    match = re.search(action, text)
    if match is None:
        return None
    return (match.group(1 if match.re.groups else 0) or "").strip()


def decision_entropy(decisions: Sequence[str | None]) -> float:
    """Entropy in nats of the law of some decisions, each of the same weight.

    Args:
      decisions: at least one; those that are None are one decision.

    Returns:
      from 0 to the logarithm of their number.
    """
    counts = Counter(decisions).values()
    total = sum(counts)
    return math.fsum(-c / total * math.log(c / total) for c in counts)


def direction(
    policy: Policy,
    texts: Sequence[str],
    *,
    layer: int,
    law: generation.Law,
    action: str | None,
) -> Direction:
    """Sample decisions behind prompts, and find where they were uncertain.

    Args:
      policy: the model.
      texts: the prompts.
      layer: whose stream is looked at, at each prompt's last token.
      law: of the completions.
      action: as ``Steering.action``.

    Returns:
      the vector, in units of which strengths are.

    Raises:
      InputError: all decisions are equally uncertain, so that there is no direction.
    """
    check_layer(policy.config, layer)
    params = policies.whole(policy, policy.params)
    look = jax.jit(partial(residual, policy.config, layer=layer))
    entropy, states = [], []
    for batch in generation.batches(policy, texts, law=law):
        written = generation.texts_of(batch, policy.tokenizer)
        groups = [written[i : i + law.n] for i in range(0, batch.rows, law.n)]
        entropy += [decision_entropy([decided(x, action) for x in g]) for g in groups]
        rollout = batch.rollout
        stream = look(
            params,
            rollout.prompt_tokens[:: law.n],
            mask=rollout.prompt_mask[:: law.n],
        )
        states.append(np.asarray(stream[: len(groups), -1], np.float32))
    if max(entropy) - min(entropy) < 1e-9:
        raise InputError(
            f"the decisions of all {len(entropy)} prompts have the same entropy, "
            f"{entropy[0]:.3f} nats, so that there is no direction of the uncertain "
            "ones: steer by more prompts, by shorter completions, or by an action that "
            "several completions share"
        )
    found = jnp.asarray(np.concatenate(states))
    vector = decoding.entropic_steering(found, jnp.asarray(entropy, jnp.float32))
    size = jnp.linalg.norm(vector) / jnp.mean(jnp.linalg.norm(found, axis=-1))
    return Direction(vector, jnp.asarray(entropy, jnp.float32), float(size))


def steer(
    policy: Policy, texts: Sequence[str], *, law: generation.Law, steering: Steering
) -> tuple[Params, Direction]:
    """The policy's parameters with the vector in them, to sample from.

    Args:
      policy: the model; adapters are merged.
      texts: the prompts of ``steering.by``.
      law: of completions; their number and ``greedy`` are replaced.
      steering: the options.

    Returns:
      parameters for ``generation.batches``, and the direction.

    Raises:
      InputError: there is no such layer, or no direction.
    """
    layer = steering.layer
    if layer is None:
        layer = policy.config.num_layers // 2
    found = direction(
        policy,
        texts,
        layer=layer,
        law=dataclasses.replace(law, n=steering.n, greedy=False),
        action=steering.action,
    )
    params = steered(
        policy.config,
        policies.whole(policy, policy.params),
        found.vector,
        layer=layer,
        strength=steering.strength,
    )
    return params, found
