"""Reward models: Bradley-Terry and its like from pairs, or yes and no from labels.

>>> from alignax import preference as pf
>>> from alignax.train import reward_model
>>> def make(reward_fn, tx):
...     return reward_model.make_step(pf.bradley_terry_loss, reward_fn, tx)

Several members of an ensemble are one step under ``jax.vmap``, of stacked states.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from alignax.models import functional, heads
from alignax.pipeline import update
from alignax.pipeline.data import PairRows, UnpairedRows
from alignax.train import policy as policies
from alignax.train.pairs import both_sides
from alignax.train.policy import Policy
from alignax.types import HiddenFn, Params, Supervised, TrainState

Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def rewards_of(
    reward_fn: heads.RewardFn, params: Params, rows: Supervised
) -> Float[Array, " N"]:
    """The reward of whole completions: the first output at their last token.

    Args:
      reward_fn: the model.
      params: its parameters.
      rows: ``[N, S]``.

    Returns:
      ``[N]`` float32.
    """
    values = reward_fn(params, rows.tokens, mask=rows.mask)
    return heads.last_values(values, rows.mask)[:, 0]


def by_hidden(hidden_fn: HiddenFn) -> heads.RewardFn:
    """A reward model as the body of a decoder and its head, ``[outputs, d]``.

    Args:
      hidden_fn: of such parameters, with its adapters and its way of saving memory.

    Returns:
      the same values as ``heads.make_reward``'s.
    """

    def reward_fn(params, tokens, *, mask=None):
        out = hidden_fn(params, tokens, mask=mask)
        return jnp.einsum(
            "bsd,od->bso", out.hidden, out.head, preferred_element_type=jnp.float32
        )

    return reward_fn


def as_policy(policy: Policy, key: Key[Array, ""]) -> Policy:
    """The reward model that starts from a policy: its body, a fresh head of one output.

    Args:
      policy: whole, or with adapters; then they and the head are trained.
      key: of the head.

    Returns:
      a policy whose ``hidden_fn`` is for ``by_hidden``; ``policy.whole`` of it has the
      parameters that ``heads.make_reward`` takes.
    """
    config = dataclasses.replace(
        policy.config, tie_embeddings=False, logit_soft_cap=None
    )
    body = policy.params if policy.lora is None else policy.base
    params = heads.reward_from_policy(policy.config, body, key)
    fns = functional.make_apply(config), functional.make_hidden(config)
    model = policy._replace(config=config)
    if policy.lora is None:
        model = model._replace(params=params)
    else:
        own = {**policy.params, "head": params["head"]}
        model = model._replace(base=params, params=own)
    return policies.on_mesh(policies.with_functions(model, *fns), policy.mesh)


def pair_rewards(
    reward_fn: heads.RewardFn, params: Params, pairs: PairRows
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """The rewards of both sides, by one forward.

    Args:
      reward_fn: the model.
      params: its parameters.
      pairs: N of them.

    Returns:
      ``[N]`` of the preferred completions and of the others.
    """
    rewards = rewards_of(reward_fn, params, both_sides(pairs))
    w, l = jnp.split(rewards, 2)
    return w, l


def make_step(
    loss: Callable[[Array, Array], Array],
    reward_fn: heads.RewardFn,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
) -> Step:
    """``(state, pairs) -> (state, metrics)``: jitted, the state donated.

    Args:
      loss: ``(rewards_w, rewards_l) -> [N]``, such as
        ``preference.bradley_terry_loss`` with its ``centring`` bound.
      reward_fn: the model.
      tx: the optimiser.
      microbatches: how many parts the pairs are scanned in.

    Returns:
      the step, for ``PairRows``. Metrics beside ``make_update``'s: ``margin``, the mean
      of ``r(w) − r(l)``, and ``accuracy``, how often it is positive.
    """

    def loss_fn(params, pairs):
        w, l = pair_rewards(reward_fn, params, pairs)
        count = jnp.float32(len(w))
        reports = {
            "margin": (jnp.sum(w - l), count),
            "accuracy": (jnp.sum(w > l, dtype=jnp.float32), count),
        }
        return jnp.sum(loss(w, l)), count, reports

    return jax.jit(
        update.make_update(loss_fn, tx, microbatches=microbatches), donate_argnums=0
    )


def make_label_step(
    loss: Callable[[Array, Array], Array],
    reward_fn: heads.RewardFn,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
) -> Step:
    """The same from single completions with labels.

    Args:
      loss: ``(logits, labels) -> [N]``, such as ``preference.binary_feedback_loss``.
      reward_fn: the model.
      tx: the optimiser.
      microbatches: how many parts the rows are scanned in.

    Returns:
      the step, for ``UnpairedRows``. Metrics beside ``make_update``'s: ``accuracy`` of
      the logits' signs.
    """

    def loss_fn(params, batch: UnpairedRows):
        logits = rewards_of(reward_fn, params, batch.rows)
        count = jnp.float32(len(logits))
        right = (logits > 0) == batch.desirable
        reports = {"accuracy": (jnp.sum(right, dtype=jnp.float32), count)}
        labels = batch.desirable.astype(logits.dtype)
        return jnp.sum(loss(logits, labels)), count, reports

    return jax.jit(
        update.make_update(loss_fn, tx, microbatches=microbatches), donate_argnums=0
    )
