"""Other models that teach: what one or several say of a rollout's tokens.

Several teach together, ``Σ_n w_n D(π, π_n)`` at each token, or each row has its own:
the same sum with all of the weight on one. The weights stand in the rollout.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax import targets
from alignax.pipeline import rollout as rollouts
from alignax.pipeline.rollout import Scores, TokenDivergence
from alignax.regularisers import Regulariser
from alignax.types import HiddenFn, InputError, Params, Rollout

Teachers = Sequence[tuple[HiddenFn, Params]]
"""Models of one vocabulary, each up to its head, with its parameters."""


def with_weights(
    rollout: Rollout,
    weights: Float[Array, "*R N"] | None,
    index: Int[Array, " G"],
) -> Rollout:
    """The rollout with each row's weights of the teachers.

    Args:
      rollout: B rows, adjacent ones of one prompt.
      weights: of the N teachers, of each record or of all; None where there is one.
      index: the records of the prompts.

    Returns:
      the rollout, its ``teachers [B, N]`` filled.
    """
    if weights is None:
        return rollout
    rows = weights[index] if weights.ndim == 2 else weights[None]
    each = jnp.broadcast_to(rows, (len(index), rows.shape[-1]))
    each = jnp.repeat(each, len(rollout.tokens) // len(index), axis=0)
    return dataclasses.replace(rollout, teachers=each.astype(jnp.float32))


def _summed(rollout: Rollout, found: Sequence[Array]) -> Array:
    """``[B, T]``, the weighted sum; a teacher without weight has no say, NaN or not."""
    if rollout.teachers is None:
        return found[0]
    shares = jnp.moveaxis(rollout.teachers, 1, 0)[..., None]
    parts = [jnp.where(w == 0, 0, w * x) for w, x in zip(shares, found, strict=True)]
    return sum(parts[1:], parts[0])


def _mixed(rollout: Rollout, each: Sequence[Scores]) -> Scores:
    """What each token adds to the log-probability of the mixture."""
    logps = jnp.stack([scores.logp + scores.log_mass for scores in each], axis=-1)
    logps = jnp.where(rollout.trained[..., None], logps, 0)
    so_far = targets.mixture_of_experts(
        jnp.cumsum(logps, axis=1), rollout.teachers[:, None]
    )
    before = jnp.pad(so_far[:, :-1], ((0, 0), (1, 0)))
    excluded = jnp.isneginf(so_far)
    logp = so_far - jnp.where(excluded, 0, before)
    return Scores(logp, jnp.full_like(logp, jnp.nan), jnp.zeros_like(logp))


def score(
    teachers: Teachers, *, completions: int = 1, mixture: bool = False
) -> Callable[[Rollout], rollouts.Scores]:
    """``rollout -> scores`` of the teachers' weighted geometric mean, not normalised.

    Minus k1 to it is the sum of the teachers' own, so that a policy that learns from
    it descends ``Σ_n w_n KL(π‖π_n)``, whose least is at the normalised product of
    experts ``Π_n π_n^{w_n}``. Every teacher reads every row.

    Args:
      teachers: the models.
      completions: K, how many adjacent rows have one prompt.
      mixture: of whole completions in place of the product, ``Σ_n w_n π_n``: each
        token has the log-probability that the mixture gives it behind those before,
        where the teachers that found these likely count for more.

    Returns:
      the function; a mixture has no entropy of its tokens, which is NaN.

    Reference:
      Heskes, "Selecting Weighting Factors in Logarithmic Opinion Pools", 1997.
    """
    read = [
        partial(rollouts.score_by_hidden(hidden_fn, completions=completions), params)
        for hidden_fn, params in teachers
    ]

    def scored(rollout):
        each = [of(rollout) for of in read]
        if mixture:
            return _mixed(rollout, each)
        return Scores(*(_summed(rollout, x) for x in zip(*each, strict=True)))

    return scored


def unsaid(rollout: Rollout) -> Scores:
    """In the place of scores that are filled in later, before the step.

    Args:
      rollout: ``[B, T]``.

    Returns:
      NaN, so that a step without them is skipped and says so.
    """
    nothing = jnp.full(rollout.tokens.shape, jnp.nan, jnp.float32)
    return Scores(nothing, nothing, jnp.zeros_like(nothing))


def divergence(
    hidden_fn: HiddenFn | None,
    regulariser: Regulariser,
    teachers: Teachers,
    *,
    completions: int = 1,
) -> TokenDivergence:
    """Each token's divergence from the teachers over the vocabulary, weighted.

    Args:
      hidden_fn: the policy up to its head.
      regulariser: of the form ``exact``.
      teachers: the models.
      completions: K, how many adjacent rows have one prompt.

    Returns:
      ``(params, reference, rollout) -> [B, T]``; the reference is not read.

    Raises:
      InputError: the form is not ``exact``, or the policy has no ``hidden_fn``.
    """
    if hidden_fn is None or regulariser.top is not None:
        raise InputError(
            "form top_k is not there for a teacher of its own; form exact or sampled "
            "would do"
        )
    div = regulariser.divergence
    read = [
        rollouts.divergence_by_hidden(
            hidden_fn, div, completions=completions, reference_fn=other
        )
        for other, _ in teachers
    ]

    def token(params, reference, rollout):
        del reference
        each = [
            of(params, own, rollout)
            for of, (_, own) in zip(read, teachers, strict=True)
        ]
        return _summed(rollout, each)

    return token
