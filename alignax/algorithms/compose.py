"""A method as a composition: from a scored rollout to token losses.

    scored ─▶ shape ─▶ advantage ─▶ credit ─▶ weight ─▶ rule(ratio) + term ─▶ reduction

``prepare`` runs once a rollout over whole groups and gives rows that may be split;
``losses`` runs in the differentiated function; ``reduced`` gives the fraction.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import reduce, surrogates
from alignax.types import Leaf, Scored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What the loss needs of each row, all constants: ``[B, ...]``."""

    mask: Leaf  # bool [B, T], tokens that are trained
    advantages: Leaf  # float32 [B, T]
    weights: Leaf  # float32 [B, T], on the policy term
    logp_old: Leaf  # float32 [B, T], the ratio's denominator
    logp_ref: Leaf  # float32 [B, T]
    share: Leaf  # float32 [B], what the method's term needs of the row
    level: Leaf  # float32 [B, T], what its rule needs of the token
    group_tokens: Leaf  # float32 [B], trained tokens of the row's group


def spread(values: Array, mask: Array) -> Array:
    """``[G, K]`` on every token of its completion: ``[B, T]``."""
    return jnp.broadcast_to(values.reshape(-1, 1), mask.shape)


def lengths(scored: Scored) -> Array:
    """``[G, K]`` tokens."""
    return jnp.sum(scored.mask, axis=-1).reshape(scored.rewards.shape)


def correct(scored: Scored) -> Array:
    """``[G, K]``: positive rewards are right answers."""
    return scored.rewards > 0


def _rewards(scored: Scored) -> Array:
    return scored.rewards


def _everywhere(scored: Scored, values: Array) -> Array:
    return spread(values, scored.mask)


def _mask(scored: Scored) -> Array:
    return scored.mask


def _old(scored: Scored) -> Array:
    return scored.logp_old


def _ones(scored: Scored, values: Array) -> Array:
    del values
    return jnp.ones(scored.mask.shape, jnp.float32)


def _row_ones(scored: Scored) -> Array:
    return jnp.ones(scored.mask.shape[:1], jnp.float32)


def _zeros(scored: Scored) -> Array:
    return jnp.zeros(scored.mask.shape, jnp.float32)


def ppo(ratios: Array, rows: Rows) -> Array:
    return surrogates.ppo_surrogate(ratios, rows.advantages, rows.mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One function for each stage; the defaults are PPO's clip on token ratios."""

    advantage: Callable[[Scored, Array], Array]
    """``(scored, rewards [G, K]) -> [G, K]``: baseline and scale."""
    shape: Callable[[Scored], Array] = _rewards
    """``scored -> rewards [G, K]``."""
    credit: Callable[[Scored, Array], Array] = _everywhere
    """``(scored, [G, K]) -> [B, T]``."""
    keep: Callable[[Scored], Array] = _mask
    """``scored -> [B, T]``: the tokens that are trained."""
    weight: Callable[[Scored, Array], Array] = _ones
    """``(scored, advantages [B, T]) -> [B, T]``: constants on the policy term."""
    denominator: Callable[[Scored], Array] = _old
    """``scored -> [B, T]``: log-probabilities under the ratio."""
    share: Callable[[Scored], Array] = _row_ones
    """``scored -> [B]``: what ``term`` needs of each row."""
    level: Callable[[Scored], Array] = _zeros
    """``scored -> [B, T]``: what ``rule`` needs of each token."""
    on_policy: bool = False
    """Take the policy itself for the denominator: ratios of 1."""
    rule: Callable[[Array, Rows], Array] = ppo
    """``(token log-ratios [B, T], rows) -> [B, T]``: level and clip."""
    term: Callable[[Array, Array, Rows], Array] | None = None
    """``(logp, entropy, rows) -> [B, T]``: divergence and entropy, added."""
    reduction: Callable[[Array, Array, Rows], reduce.Fraction]
    """``(losses, mask, rows) -> fraction``."""


def prepare(algorithm: Algorithm, scored: Scored) -> Rows:
    """All constants of a method, from whole groups.

    Args:
      algorithm: the composition.
      scored: the rollout with its rewards, of the whole batch.

    Returns:
      ``Rows``, every leaf ``[B, ...]`` and without gradient: they may be split into
      microbatches and shards.
    """
    keep = algorithm.keep(scored)
    relative = algorithm.advantage(scored, algorithm.shape(scored))
    token = algorithm.credit(scored, relative)
    completions = scored.rewards.shape[1]
    ref = scored.logp_old if scored.logp_ref is None else scored.logp_ref
    rows = Rows(
        mask=keep,
        advantages=reduce.masked(token, keep),
        weights=reduce.masked(algorithm.weight(scored, token), keep),
        logp_old=reduce.masked(algorithm.denominator(scored), keep),
        logp_ref=reduce.masked(ref, keep),
        share=algorithm.share(scored).astype(jnp.float32),
        level=reduce.masked(algorithm.level(scored), keep),
        group_tokens=reduce.group_tokens(keep, completions=completions),
    )
    return jax.lax.stop_gradient(rows)


def losses(
    algorithm: Algorithm,
    logp: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    rows: Rows,
) -> Float[Array, "B T"]:
    """The token losses of a method.

    Args:
      algorithm: the composition.
      logp: ``[B, T]`` of the taken tokens, differentiated.
      entropy: ``[B, T]`` in nats, differentiated; used by some terms only.
      rows: of ``prepare``.

    Returns:
      ``[B, T]`` float32, zero where masked.
    """
    denominator = logp if algorithm.on_policy else rows.logp_old
    ratios = surrogates.log_ratio(logp, denominator, rows.mask)
    result = rows.weights * algorithm.rule(ratios, rows)
    if algorithm.term is not None:
        result = result + algorithm.term(logp, entropy, rows)
    return jnp.where(rows.mask, result, 0)


def reduced(algorithm: Algorithm, values: Any, rows: Rows) -> reduce.Fraction:
    """The token losses as numerator and denominator.

    Args:
      algorithm: the composition.
      values: ``[B, T]``, of ``losses``.
      rows: of ``prepare``.

    Returns:
      two float32 scalars that add over microbatches and devices.
    """
    return algorithm.reduction(values, rows.mask, rows)
