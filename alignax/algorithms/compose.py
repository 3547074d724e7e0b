"""A method as a composition: from a scored rollout to token losses.

    scored ─▶ shape ─▶ advantage ─▶ credit ─▶ weight ─▶ rule(ratio) + terms ─▶ reduction

``prepare`` runs once a rollout over whole groups and gives rows that may be split;
``losses`` runs in the differentiated function; ``reduced`` gives the fraction. The
regulariser enters where it says: in ``prepare`` as part of the reward, in ``losses``
beside the policy term.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import controllers, reduce, references, regularisers, surrogates
from alignax.algorithms.fields import group_relative, needed, spread
from alignax.algorithms.target import Target, pseudo_advantages
from alignax.algorithms.values import printed
from alignax.regularisers import Regulariser
from alignax.types import InputError, Leaf, Scored, Stateful


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What the loss needs of each row, all constants: ``[B, ...]``."""

    mask: Leaf  # bool [B, T], tokens that are trained
    advantages: Leaf  # float32 [B, T]
    weights: Leaf  # float32 [B, T], on the policy term
    logp_old: Leaf  # float32 [B, T], the ratio's denominator
    logp_ref: Leaf  # float32 [B, T], None where there is none
    beta: Leaf  # float32 [B], strength of the regulariser
    share: Leaf  # float32 [B], what the method's term needs of the row
    level: Leaf  # float32 [B, T], what its rule needs of the token
    group_tokens: Leaf  # float32 [B], trained tokens of the row's group
    values_old: Leaf = None  # float32 [B, T], of the critic
    returns: Leaf = None  # float32 [B, T], what its values should be
    learned: Leaf = None  # bool [B, T], the tokens that the critic learns from
    logp_sampled: Leaf = None  # float32 [B, T], of the policy that sampled, where the
    # regulariser in the loss is weighted for how far it has moved


def _rewards(scored: Scored) -> Array:
    return scored.rewards


def _everywhere(scored: Scored, values: Array, penalty: Array) -> Array:
    return group_relative(scored, spread(values, scored.mask), penalty)


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


def lowest(values: Array) -> Array:
    """The least of several heads' values."""
    return jnp.min(values, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Critic:
    """A value function that is trained beside the policy.

    ``returns``: ``(scored, penalty [B, T]) -> [B, T]``, what its values should be.
    ``loss``: ``(values, values_old, returns, mask) -> [B, T]``, unreduced.
    """

    returns: Callable[[Scored, Array], Array]
    loss: Callable[..., Array] = surrogates.clipped_value_loss
    coefficient: float = 0.5
    """Of the value loss, beside the policy's."""
    pretrain: int = 0
    """First steps in which the critic alone learns."""
    heads: int = 1
    """Values at each token: ``[B, T, heads]`` where there are several."""
    pool: Callable[[Array], Array] = lowest
    """``[B, T, heads] -> [B, T]``: the value that counts, of several."""
    learns: Callable[[Scored], Array] = _mask
    """``scored -> [B, T]``: the tokens that it learns from, among the trained."""

    __repr__ = printed


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Replay:
    """Groups of earlier rollouts in each batch, off-policy by the ratio."""

    share: float = 0.4
    """Of the batch's groups that come from the buffer."""
    most_age: int = 2
    """Steps; older groups are left out."""

    __repr__ = printed


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Sampling:
    """What a method samples beside K completions of each prompt."""

    greedy: bool = False
    """A greedy completion of each prompt, for its reward alone."""
    last: Literal["own", "reference", "demonstration"] = "own"
    """Whose the last completion of each group is."""
    roll_in: Literal["data", "guide", "critical"] | None = None
    """Completions begin with a prefix, attended and not trained: of the data's answer,
    of a guide policy's, or of one of the group's own up to an uncertain token."""
    roll_in_share: float = 1.0
    """Share of the completions that begin so."""
    context: float = 0.0
    """Share of each group sampled with the record's context before the prompt, and
    trained without it."""
    roles: int = 1
    """Two: a pioneer answers, an observer answers with that answer before it; the first
    half of each group is the pioneer's."""
    roles_every: int = 5
    """Steps after which the two policies exchange their roles."""
    copy_top_p: float = 1.0
    """Mass of a slower copy's likeliest tokens: no others are drawn."""
    copy_every: int = 1
    """Steps between two renewals of that copy."""
    taught: Literal["own", "reference"] | None = None
    """Who is the teacher, with a prompt of its own: it stands for the reference."""
    draws: int = 1
    """Tokens drawn at each position, whose mean embedding goes on; log-probabilities
    are their sums."""

    @property
    def guided(self) -> bool:
        """Whether prompts must come with a guide: a text beside them."""
        data = self.roll_in == "data" or self.last == "demonstration"
        return data or self.context > 0 or self.taught is not None

    __repr__ = printed


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Algorithm:
    """One function for each stage; the defaults are PPO's clip on token ratios.

    Equal where all fields are; printed as the call that makes it.
    """

    advantage: Callable[[Scored, Array], Array]
    """``(scored, rewards [G, K]) -> [G, K]``: baseline and scale."""
    shape: Callable[[Scored], Array] = _rewards
    """``scored -> rewards [G, K]``."""
    credit: Callable[[Scored, Array, Array], Array] = _everywhere
    """``(scored, [G, K], penalty [B, T]) -> [B, T]``; the penalty is what the
    regulariser takes from each token's reward, 0 where it stands elsewhere."""
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
    follow: Callable[[Array, Rows], Array] | None = None
    """``(logp [B, T], rows) -> level [B, T]``: the level of the policy as it is before
    an update, where a choice among the batch's tokens follows it (``followed``)."""
    on_policy: bool = False
    """Take the policy itself for the denominator: ratios of 1. A rollout then serves
    one update."""
    rule: Callable[[Array, Rows], Array] = ppo
    """``(token log-ratios [B, T], rows) -> [B, T]``: level and clip."""
    term: Callable[[Array, Array, Rows], Array] | None = None
    """``(logp, entropy, rows) -> [B, T]``: an entropy bonus and the like, added."""
    reduction: Callable[[Array, Array, Rows], reduce.Fraction]
    """``(losses, mask, rows) -> fraction``."""
    target: Target | None = None
    """What the policy is trained towards: its pseudo-rewards stand for ``shape``."""
    regulariser: Regulariser | None = None
    """The divergence from the reference, and how it enters."""
    beta: float = 0.0
    """Its strength, where the controller starts."""
    strength: Callable[[Scored], Array] = _row_ones
    """``scored -> [B]``: each row's share of ``beta``."""
    controller: Callable[..., Stateful] = controllers.fixed
    """``(beta=...) -> controller``: what sets the strength from step to step, by
    ``update(state, kl, completions, entropy=, reward=, tokens=)``: nats a completion
    and their number, nats a token, the mean, and the batch's tokens in all."""
    reference: references.Reference = references.fixed()
    """Which policy the divergence is measured from."""
    critic: Critic | None = None
    replay: Replay | None = None
    sampling: Sampling = Sampling()

    __repr__ = printed


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table. ``variants`` are other papers' and codes' forms."""

    name: str
    paper: str
    composition: str
    defaults: str
    algorithm: Algorithm | None = None
    """None where the loss is not one of completions in groups."""
    variants: Mapping[str, Algorithm] = dataclasses.field(default_factory=dict)
    step: str | None = "policy_gradient"
    """The kind of step, a module of ``alignax.train``, that runs it; None for what is
    there in pieces only."""


def prepare(algorithm: Algorithm, scored: Scored) -> Rows:
    """All constants of a method, from whole groups.

    Args:
      algorithm: the composition.
      scored: the rollout with its rewards, of the whole batch; ``beta`` in force, or
        None for the algorithm's own.

    Returns:
      ``Rows``, every leaf ``[B, ...]`` and without gradient: they may be split into
      microbatches and shards.

    Raises:
      InputError: the method needs a field that ``scored`` lacks.
    """
    regulariser, keep = algorithm.regulariser, algorithm.keep(scored)
    completions = scored.rewards.shape[1]
    beta = algorithm.beta if scored.beta is None else scored.beta
    strength = beta
    beta = beta * algorithm.strength(scored).astype(jnp.float32)
    penalty = jnp.zeros(keep.shape, jnp.float32)
    extra = {}
    if regulariser is not None:
        ref = needed(scored, "logp_ref")
        if regulariser.weighted:
            extra["logp_sampled"] = reduce.masked(scored.logp_old, keep)
        if regulariser.place == "reward":
            penalty = beta[:, None] * regularisers.token_penalties(
                regulariser, scored.logp_old, ref, scored.mask
            )
    else:
        ref = scored.logp_ref
    # A myopic penalty is each token's own: it is no reward that earlier ones get.
    myopic = regulariser is not None and regulariser.level == "myopic"
    credited = 0 * penalty if myopic else penalty
    if algorithm.target is None:
        shaped = algorithm.shape(scored)
    else:
        shaped = pseudo_advantages(algorithm.target, scored, strength)
    if algorithm.critic is not None:
        values, heads = needed(scored, "values"), algorithm.critic.heads
        wanted = keep.shape if heads == 1 else (*keep.shape, heads)
        if values.shape != wanted:
            raise InputError(
                f"scored.values must have shape {wanted} for a critic of {heads} "
                f"heads, got {values.shape}"
            )
        values = pooled(algorithm.critic, values, scored.mask)
        scored = dataclasses.replace(scored, values=values)
        extra["values_old"] = reduce.masked(values, keep)
        returns = algorithm.critic.returns(
            dataclasses.replace(scored, rewards=shaped), credited
        )
        extra["returns"] = reduce.masked(returns, keep)
        extra["learned"] = algorithm.critic.learns(scored) & keep
    relative = algorithm.advantage(scored, shaped)
    token = algorithm.credit(scored, relative, credited)
    if myopic:
        token = token - penalty
    rows = Rows(
        mask=keep,
        advantages=reduce.masked(token, keep),
        weights=reduce.masked(algorithm.weight(scored, token), keep),
        logp_old=reduce.masked(algorithm.denominator(scored), keep),
        logp_ref=None if ref is None else reduce.masked(ref, keep),
        beta=beta,
        share=algorithm.share(scored).astype(jnp.float32),
        level=reduce.masked(algorithm.level(scored), keep),
        group_tokens=reduce.group_tokens(keep, completions=completions),
        **extra,
    )
    return jax.lax.stop_gradient(followed(algorithm, scored.logp_old, rows))


def pooled(critic: Critic, values: Array, mask: Array) -> Array:
    """``[B, T]``, the value that counts at each token, of one head or several."""
    if critic.heads == 1:
        return values
    return critic.pool(jnp.where(mask[..., None], values, 0))


def followed(algorithm: Algorithm, logp: Float[Array, "B T"], rows: Rows) -> Rows:
    """Rows for an update from a policy that has moved since the rollout.

    Of whole batches, before they are split. The same rows for most methods: only a
    choice among the batch's tokens by their log-probabilities has to follow.

    Args:
      algorithm: the composition.
      logp: ``[B, T]`` of the policy before the update.
      rows: of ``prepare``.

    Returns:
      ``Rows``, without gradient.
    """
    if algorithm.follow is None:
        return rows
    logp = jax.lax.stop_gradient(reduce.masked(logp, rows.mask))
    return dataclasses.replace(rows, level=algorithm.follow(logp, rows))


def losses(
    algorithm: Algorithm,
    logp: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    rows: Rows,
    *,
    over_vocabulary: Float[Array, "B T"] | None = None,
    values: Float[Array, "B T *heads"] | None = None,
) -> dict[str, Float[Array, "B T"]]:
    """The token losses of a method by what they are made of.

    Args:
      algorithm: the composition.
      logp: ``[B, T]`` of the taken tokens, differentiated.
      entropy: ``[B, T]`` in nats, differentiated; used by some terms only.
      rows: of ``prepare``.
      over_vocabulary: ``[B, T]``, what ``regularisers.losses`` asks for.
      values: ``[B, T]`` of the critic, or ``[B, T, heads]``, differentiated.

    Returns:
      ``surrogate``, and where the method has them ``regulariser``, ``term`` and
      ``value``: ``[B, T]`` float32, zero where masked.

    Raises:
      InputError: the method has a critic and there are no values.
    """
    regulariser, critic = algorithm.regulariser, algorithm.critic
    denominator = logp if algorithm.on_policy else rows.logp_old
    ratios = reduce.log_ratio(logp, denominator, rows.mask)
    parts = {"surrogate": rows.weights * algorithm.rule(ratios, rows)}
    if regulariser is not None and regulariser.place == "loss":
        parts["regulariser"] = rows.beta[:, None] * regularisers.losses(
            regulariser,
            logp,
            rows.logp_ref,
            rows.mask,
            over_vocabulary=over_vocabulary,
            logp_behaviour=rows.logp_sampled,
        )
    if algorithm.term is not None:
        parts["term"] = algorithm.term(logp, entropy, rows)
    if critic is not None:
        if values is None:
            raise InputError("values must be given: the method trains a critic")
        parts["value"] = critic.coefficient * critic.loss(
            pooled(critic, values, rows.mask),
            rows.values_old,
            rows.returns,
            rows.learned,
        )
    return {name: jnp.where(rows.mask, x, 0) for name, x in parts.items()}


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
