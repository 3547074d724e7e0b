"""Records that travel between the rooms, array aliases and the notation table.

Notation, the same everywhere:

===================  =========================================================
name                 meaning
===================  =========================================================
``logp``             log-probabilities of the policy, differentiated (nats)
``logp_old``         the policy's when the update began
``logp_behaviour``   those of the distribution that really sampled the tokens
``logp_ref``         the reference policy's
``logits``           unnormalised log-probabilities ``[..., V]``
``mask``             True where a token counts (a generated token, a real
                     prompt token), False on padding
``rewards``          ``[G, K]``: K completions for each of G prompts
``advantages``       ``[G, K]`` or ``[B, T]`` with ``B = G * K``
``beta``             strength of the regularisation
``key``              a ``jax.random.key``
===================  =========================================================

Letters of shapes: B rows, G prompts (groups), K completions a prompt,
P prompt positions, T completion positions, S = P + T, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "ApplyFn",
    "Cache",
    "Counters",
    "HiddenFn",
    "HiddenOutput",
    "InputError",
    "Metrics",
    "ModelOutput",
    "Params",
    "Prompts",
    "Rollout",
    "RunError",
    "Scored",
    "Stateful",
    "Supervised",
    "TrainState",
]

Params = Any
"""A pytree of arrays; only ``alignax.models`` knows its structure."""

Cache = Any
"""A pytree; leaves with an axis have the batch as their first one, those of a shared
prefix inside it the prefix's rows."""

Metrics = dict[str, Array]


Leaf = Any
"""A field of a record: an array of the shape beside it, or what JAX puts in its
place (a tracer, a shape, a sharding), which is why it is not checked."""


class Stateful(NamedTuple):
    """What is kept from step to step: ``init(...) -> state`` and
    ``update(state, ...) -> state``, as optax's ``GradientTransformation``. The state is
    a pytree of arrays; it belongs in the train state, and so in the checkpoint."""

    init: Callable[..., Any]
    update: Callable[..., Any]


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one paragraph that names the argument, what was given and
    what would do. Command lines print it and exit with code 2.
    """


class RunError(RuntimeError):
    """A run cannot go on, though its input could be used.

    The message is one paragraph that says at which step and why, and what would do.
    Command lines print it and exit with code 2.
    """


class Preempted(RuntimeError):
    """A run was told to stop (SIGTERM, a preemption notice) and has saved itself, or
    it lost another of its processes.

    Command lines print the message and exit with code 75, on which a launcher may
    start the same command again with ``--resume``.
    """


class ModelOutput(NamedTuple):
    """What a model returns: float32 ``logits [B, S - logits_from, V]``, and the
    cache where one was given or asked for."""

    logits: Float[Array, "B N V"]
    cache: Cache | None


class HiddenOutput(NamedTuple):
    """What a model returns before its head: ``hidden [B, S - logits_from, D]`` and
    ``head [V, D]``, whose products are the logits, capped where ``soft_cap`` is a
    number; and the cache where one was asked for."""

    hidden: Float[Array, "B N D"]
    head: Float[Array, "V D"]
    soft_cap: float | None
    cache: Cache | None


@runtime_checkable
class ApplyFn(Protocol):
    """A causal language model as a pure function.

    ``tokens [B, S]`` int32; ``mask [B, S]`` True at real tokens (default: all);
    ``positions [B, S]`` (default: the count of real tokens before each one, the
    cached ones included). ``cache_length=L`` asks for a fresh cache with room
    for L tokens, filled with these S; ``cache=`` continues one. ``prefix=`` is a
    cache of fewer rows: each comes before B / N adjacent rows of tokens, shared and
    not written to; with ``cache_length`` the fresh cache goes on from it. Tokens may
    be none, ``[B, 0]``, to open a cache. A full cache is a ring: one more token, given
    by itself, takes the oldest one's place. Logits come for the positions from
    ``logits_from`` (static) on, in float32.
    """

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B S"],
        *,
        mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        prefix: Cache | None = None,
        cache: Cache | None = None,
        cache_length: int | None = None,
        logits_from: int = 0,
    ) -> ModelOutput: ...


@runtime_checkable
class HiddenFn(Protocol):
    """An ``ApplyFn`` up to its head, for training.

    ``segments [B, S]`` packs several texts in a row: tokens see those of their own
    segment alone, a run of equal numbers, and positions start anew in each.
    """

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B S"],
        *,
        mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        segments: Int[Array, "B S"] | None = None,
        prefix: Cache | None = None,
        cache_length: int | None = None,
        logits_from: int = 0,
    ) -> HiddenOutput: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """N prompts, left-padded to P. ``index`` is each record's number in its
    source: it finds the answer on the host and seeds the row's randomness.

    ``guide`` is what some methods sample with: a demonstration, a guide's completion
    to go on from, or a text that comes before the prompt.
    """

    tokens: Leaf  # int32 [N, P]
    mask: Leaf  # bool [N, P]
    index: Leaf  # int32 [N]
    guide: Leaf = None  # int32 [N, L]
    guide_mask: Leaf = None  # bool [N, L]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """B = N * K completions, the K of one prompt adjacent.

    ``attended`` is True on what the model sees after its prompt, ``trained`` on the
    tokens that the policy wrote itself, the end-of-sequence token included: a tool's
    answer, a roll-in or a forced prefix is attended and not trained.
    ``logp_behaviour`` is under the distribution that drew the token, temperature and
    truncation applied; ``temperature`` and ``support`` say which one that was, so that
    a trainer scores under the same. ``support`` has one bit for each vocabulary entry,
    set where it could be drawn: 1/32 of the memory of float32 logits.
    """

    tokens: Leaf  # int32 [B, T]
    attended: Leaf  # bool [B, T]
    trained: Leaf  # bool [B, T]
    finished: Leaf = None  # bool [B], the end, or a text to stop at, was generated
    logp_behaviour: Leaf = None  # float32 [B, T]
    version: Leaf = None  # int32 [B, T], the policy's, that wrote the token
    temperature: Leaf = None  # float32 [B], None for 1
    support: Leaf = None  # uint8 [B, T, ceil(V / 8)], None for all of the vocabulary
    prompt_tokens: Leaf = None  # int32 [B, P]
    prompt_mask: Leaf = None  # bool [B, P]
    shown_tokens: Leaf = None  # int32 [B, L], the prompt of a teacher that is told more
    shown_mask: Leaf = None  # bool [B, L]
    told: Leaf = None  # bool [B] or [B, T], what a teacher speaks of, None for all
    teachers: Leaf = None  # float32 [B, N], weights of several that teach the row
    spent: Any = None  # speculative.Speculation, what it took with a draft


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """A rollout of K completions for each of G prompts, with its rewards and all that
    a method may need of it: the record from the scorer to the step. B = G * K.

    What a method does not use may be left out; what it needs and is not there is
    refused by name.
    """

    rollout: Rollout
    rewards: Leaf  # float32 [G, K]
    logp_old: Leaf  # float32 [B, T], the policy's when the update begins
    logp_ref: Leaf = None  # float32 [B, T], of the whole reference distribution
    log_mass_ref: Leaf = None  # float32 [B, T], of the support, None where it is whole
    beta: Leaf = None  # float32 [], strength of the regulariser
    right: Leaf = None  # bool [G, K], what the task calls a right answer
    entropy: Leaf = None  # float32 [B, T], when the update begins
    values: Leaf = None  # float32 [B, T] or [B, T, heads], of a critic, before a token
    last_value: Leaf = None  # float32 [B], of a critic, after the last token
    greedy: Leaf = None  # float32 [G], reward of the greedy completion
    reference_rewards: Leaf = None  # float32 [G, N], of the reference's own samples
    history: Leaf = None  # float32 [G], shortest right length so far, inf for none
    confidence: Leaf = None  # float32 [G, K], of the slow reference in the answer
    clusters: Leaf = None  # int32 [G, K], meanings of the answers
    demonstrated: Leaf = None  # bool [B], rows that are a teacher's
    index: Leaf = None  # int32 [G], the record of each prompt
    key: Leaf = None  # key [], where the method draws
    moments: Any = None  # advantages.Moments of all rewards so far, these included
    initial_entropy: Leaf = None  # float32 [], the policy's when training began
    objectives: Leaf = (
        None  # float32 [G, K, R], rewards or factors of which one is made
    )
    objective_weights: Leaf = None  # float32 [R]
    reward_version: Leaf = None  # int32 [G, K], of the rubric that made the reward
    token_rewards: Leaf = None  # float32 [B, T], where tokens have rewards of their own
    logp_teacher: Leaf = None  # float32 [B, T], of another model that the method reads
    log_z: Leaf = None  # float32 [G, K], of a target's normaliser, by other samples
    baseline: Leaf = None  # float32 [], of earlier batches' pseudo-rewards

    @property
    def mask(self) -> Leaf:
        """bool [B, T], the tokens that the policy wrote."""
        return self.rollout.trained


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """Updates that left the parameters where they were: ``skipped`` in all and
    ``skipped_in_row`` since the last good one because a number was not finite, and
    ``no_signal`` because there was nothing to learn from."""

    skipped: Leaf  # int32 []
    skipped_in_row: Leaf  # int32 []
    no_signal: Leaf  # int32 []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a run needs to go on: saved whole, restored whole.

    ``opt_state`` is of ``params``, or of ``(params, critic)`` where there is a critic.
    """

    step: Leaf  # int32 []
    params: Params
    opt_state: Any
    controller: Any
    counters: Counters
    key: Leaf  # key []
    reference: Any = None  # state of a rule of ``alignax.references``
    critic: Params = None  # of a value function, trained beside the policy
    memory: Any = None  # what the method keeps: earlier groups, shortest lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised:
    """N prompts with their answers, right-padded to S, for teacher forcing.

    ``mask`` is True on real tokens, ``loss_mask`` on those of the answer, the
    end-of-sequence token included: the targets, not the positions before them.
    """

    tokens: Leaf  # int32 [N, S]
    mask: Leaf  # bool [N, S]
    loss_mask: Leaf  # bool [N, S]
    index: Leaf  # int32 [N]
