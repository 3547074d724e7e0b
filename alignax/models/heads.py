"""Heads that return numbers: reward, process-reward and preference models.

A reward model is a decoder whose vocabulary has been exchanged for a few outputs: the
head is ``[outputs, d]`` in place of ``[V, d]``. As for policies, all that others see
is ``(function, params)``; an ensemble is one vmapped function of stacked parameters.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from alignax.models.config import DecoderConfig
from alignax.models.decoder import Decoder
from alignax.models.functional import _list_key, _with_keys
from alignax.models.layers import make_param
from alignax.types import InputError, Params

RewardFn = Callable[..., Float[Array, "B S O"]]


class RewardModel(Decoder):
    """Tokens to ``outputs`` numbers at every position."""

    def __init__(self, config: DecoderConfig, outputs: int, rngs: nnx.Rngs | None):
        body = dataclasses.replace(config, tie_embeddings=False, logit_soft_cap=None)
        super().__init__(body, rngs)
        shape, axes = (outputs, config.hidden_size), (None, "embed")
        self.head = make_param(
            rngs, config, shape, axes, scale=(config.hidden_size + 1) ** -0.5
        )


def _check_outputs(outputs: int) -> None:
    if outputs < 1:
        raise InputError(f"outputs must be at least 1, got {outputs}")


@functools.lru_cache(maxsize=64)
def _skeleton(config: DecoderConfig, outputs: int):
    return nnx.split(RewardModel(config, outputs, None), nnx.Param)


def init_reward(
    config: DecoderConfig, key: Key[Array, ""], *, outputs: int = 1
) -> Params:
    """Fresh parameters of a reward model.

    Args:
      config: the architecture of its body.
      key: of their values.
      outputs: numbers at each position: 1 for a reward, more for objectives.

    Returns:
      nested dictionaries of arrays, as a decoder's, with ``head [outputs, d]``.

    Raises:
      InputError: ``outputs`` is below 1.

    Example:
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> params = init_reward(DecoderConfig(**sizes, **more), jax.random.key(0))
      >>> params["head"].shape
      (1, 8)
    """
    _check_outputs(outputs)
    model = RewardModel(config, outputs, nnx.Rngs(params=key))
    return _with_keys(nnx.to_pure_dict(nnx.split(model, nnx.Param)[1]), str)


def reward_from_policy(
    config: DecoderConfig, policy: Params, key: Key[Array, ""], *, outputs: int = 1
) -> Params:
    """A reward model that starts from a policy's body, with a fresh head.

    Args:
      config: the policy's architecture.
      policy: its parameters; copied.
      key: of the head.
      outputs: numbers at each position.

    Returns:
      parameters for ``make_reward``.

    Raises:
      InputError: ``outputs`` is below 1.
    """
    head = init_reward(config, key, outputs=outputs)["head"]
    body = {name: value for name, value in policy.items() if name != "head"}
    return jax.tree.map(jnp.copy, body | {"head": head})


@functools.lru_cache(maxsize=64)
def make_reward(config: DecoderConfig, *, outputs: int = 1) -> RewardFn:
    """The reward model as a pure function; the same one for equal arguments.

    Values at every position serve process rewards as well; ``last_values`` takes the
    one of the whole completion.

    Args:
      config: the architecture of its body.
      outputs: numbers at each position.

    Returns:
      ``(params, tokens [B, S], *, mask=None) -> [B, S, outputs]`` float32.

    Raises:
      InputError: ``outputs`` is below 1; and the function, for more tokens than
        ``config.max_length``.

    Example:
      >>> sizes = dict(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2)
      >>> more = dict(num_kv_heads=1, head_dim=4, mlp_size=16, max_length=32)
      >>> config = DecoderConfig(**sizes, **more)
      >>> params = init_reward(config, jax.random.key(0))
      >>> make_reward(config)(params, jnp.ones((3, 5), int)).shape
      (3, 5, 1)
    """
    _check_outputs(outputs)

    def reward_fn(
        params: Params,
        tokens: Int[Array, "B S"],
        *,
        mask: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B S O"]:
        if tokens.shape[1] > config.max_length:
            raise InputError(
                f"tokens must fit the model's max_length of {config.max_length}, got "
                f"{tokens.shape[1]}"
            )
        graph, abstract = _skeleton(config, outputs)
        state = jax.tree.map(lambda leaf: leaf, abstract)
        arrays = jax.tree.map(jnp.asarray, params)
        nnx.replace_by_pure_dict(state, _with_keys(arrays, _list_key))
        model = nnx.merge(graph, state)
        hidden, _ = model(tokens, mask=mask)
        return model.logits(hidden)

    return reward_fn


def last_values(
    values: Float[Array, "*B S O"], mask: Bool[Array, "*B S"]
) -> Float[Array, "*B O"]:
    """The values at each row's last real token: those of the whole completion.

    Args:
      values: ``[..., S, O]`` of ``make_reward``.
      mask: ``[..., S]``, True on real tokens; padding on either side.

    Returns:
      ``[..., O]``, 0 for a row without a token.

    Example:
      >>> mask = jnp.array([[True, True, False]])
      >>> print(last_values(jnp.array([[[1.0], [2.0], [9.0]]]), mask))
      [[2.]]
    """
    count = jnp.cumsum(mask, axis=-1)
    last = mask & (count == count[..., -1:])
    return jnp.sum(jnp.where(last[..., None], values, 0), axis=-2)


def init_ensemble(
    config: DecoderConfig,
    key: Key[Array, ""],
    *,
    members: int,
    policy: Params | None = None,
) -> Params:
    """The stacked parameters of an ensemble, one leading axis of members.

    Args:
      config: the architecture of the members' bodies.
      key: split among them.
      members: M, at least 1.
      policy: where given, all start from its body and differ in their heads.

    Returns:
      parameters ``[M, ...]`` for ``make_ensemble``.

    Raises:
      InputError: ``members`` is below 1.
    """
    if members < 1:
        raise InputError(f"members must be at least 1, got {members}")
    keys = jax.random.split(key, members)
    if policy is None:
        models = [init_reward(config, k) for k in keys]
    else:
        models = [reward_from_policy(config, policy, k) for k in keys]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


@functools.lru_cache(maxsize=64)
def make_ensemble(config: DecoderConfig) -> Callable[..., Float[Array, "B M"]]:
    """An ensemble as one model: completions to a reward of each member.

    Combine with ``preference.ensemble_mean``, ``ensemble_worst``,
    ``ensemble_uncertain``; train as a whole, with a loss summed over members.

    Args:
      config: the architecture of the members' bodies.

    Returns:
      ``(params [M, ...], tokens [B, S], mask [B, S]) -> [B, M]`` float32.
    """
    reward_fn = make_reward(config)

    def ensemble_fn(
        params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B M"]:
        def one(member):
            return last_values(reward_fn(member, tokens, mask=mask), mask)[:, 0]

        return jax.vmap(one, out_axes=1)(params)

    return ensemble_fn


@functools.lru_cache(maxsize=64)
def make_preference(config: DecoderConfig) -> Callable[..., Float[Array, " B"]]:
    """A pairwise preference model: two completions in, a logit out.

    It reads a prompt with completion a before b, and with b before a; the logit of
    ``P(a ≻ b)`` is the difference. So ``P(a ≻ b) + P(b ≻ a) = 1`` by construction, and
    preferences may be cyclic, as no reward's are. ``jax.nn.sigmoid`` makes the
    probability; ``games.preference_matrix`` a game.

    Args:
      config: the architecture of its body; parameters are ``init_reward``'s.

    Returns:
      ``(params, tokens_ab [B, S], mask_ab, tokens_ba [B, S], mask_ba) -> [B]`` float32.

    Reference:
      Munos et al., "Nash learning from human feedback", arXiv 2312.00886, §3;
      Jiang et al., "LLM-Blender" (PairRM), arXiv 2306.02561.
    """
    reward_fn = make_reward(config)

    def preference_fn(
        params: Params,
        tokens_ab: Int[Array, "B S"],
        mask_ab: Bool[Array, "B S"],
        tokens_ba: Int[Array, "B S"],
        mask_ba: Bool[Array, "B S"],
    ) -> Float[Array, " B"]:
        tokens = jnp.concatenate([tokens_ab, tokens_ba])
        mask = jnp.concatenate([mask_ab, mask_ba])
        values = last_values(reward_fn(params, tokens, mask=mask), mask)[:, 0]
        first, second = jnp.split(values, 2)
        return first - second

    return preference_fn
