"""A divergence between two laws over the vocabulary, from two sets of hidden states."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from alignax.divergences import Divergence
from alignax.divergences.vocabulary import perspective
from alignax.logprobs.hidden import (
    _accumulate,
    _added,
    _inside,
    _Law,
    _law,
    _refuse_unchecked,
    _scores,
    _settings,
    _slope,
    _stats_forward,
    _steps,
    _varying,
    _zeros,
)
from alignax.types import InputError


def divergence_from_hidden(
    div: Divergence,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    hidden_ref: Float[Array, "N E"],
    head_ref: Float[Array, "W E"],
    *,
    temperature: float | Float[Array, " N"] = 1.0,
    support: UInt8[Array, "N bytes"] | None = None,
    soft_cap: float | None = None,
    soft_cap_ref: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, " N"]:
    """``divergences.exact`` of the two laws, a few blocks of logits at a time.

    Args:
      div: the divergence; ``divergences.swap`` it for the other direction.
      hidden: the policy's (student's) ``[N, D]``.
      head: the policy's ``[V, D]``.
      hidden_ref: the reference's (teacher's) ``[N, E]``, of any width.
      head_ref: the reference's ``[V, E]``.
      temperature: divides both logits; one for all, or one a row, without gradient.
      support: of the policy's truncated law, as in ``from_hidden``; the reference is
        whole.
      soft_cap: of the policy's logits, as in ``from_hidden``.
      soft_cap_ref: of the reference's.
      block_size: columns at a time; by default what makes 2^24 logits.
      axis_name: as in ``from_hidden``, the axis that both heads' rows are split over.

    Returns:
      ``[N]`` in nats.

    Value: exact.

    Gradient: exact, to the policy's hidden states and head, by reverse mode alone.
    The reference is held fixed: it gets none.

    Raises:
      InputError: the vocabularies differ in size, a number is out of range, or as of
        ``from_hidden`` a gradient under ``shard_map(check_vma=False)``.

    Example:
      >>> from alignax import divergences
      >>> student, teacher = jnp.eye(2), jnp.ones((2, 3))
      >>> heads = jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.zeros((2, 3))
      >>> kl = divergences.forward_kl()
      >>> value = divergence_from_hidden(kl, student, heads[0], teacher, heads[1])
      >>> [f"{x:.4f}" for x in value]
      ['0.4338', '0.1201']
    """
    if len(head) != len(head_ref):
        raise InputError(
            f"head_ref must have head's {len(head)} rows, got {len(head_ref)}"
        )
    settings = _settings(hidden, head, soft_cap, block_size, axis_name)
    settings_ref = settings._replace(soft_cap=soft_cap_ref)
    law = _law(settings, head, temperature, support)
    hidden_ref, head_ref = jax.lax.stop_gradient((hidden_ref, head_ref))
    return _divergence(
        div, (settings, settings_ref), law, hidden, head, hidden_ref, head_ref
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergence(div, settings, *arrays):
    return _forward(div, settings, *arrays)[0]


def _terms(div, logits, lse, logits_ref, lse_ref):
    """A block's summands."""
    logp, logp_ref = logits - lse[:, None], logits_ref - lse_ref[:, None]
    support, support_ref = logp > -jnp.inf, logp_ref > -jnp.inf
    finite = (jnp.where(support, logp, 0), jnp.where(support_ref, logp_ref, 0))
    return perspective(div, *finite, support, support_ref)


def _whole(law: _Law) -> _Law:
    """The reference's, of all tokens."""
    return law._replace(support=None)


def _forward(div, settings, law, hidden, head, hidden_ref, head_ref):
    first, second = settings
    none = jnp.zeros((len(hidden), 0), jnp.int32)
    lse = _stats_forward(first, law, hidden, head, none)[0][2]
    lse_ref = _stats_forward(second, _whole(law), hidden_ref, head_ref, none)[0][2]

    def pass_over(carry, step):
        value, slope = carry
        start, _, logits, fresh = _scores(first, law, hidden, head, step)
        _, _, logits_ref, _ = _scores(second, law, hidden_ref, head_ref, step)
        logits = jnp.where(_inside(first, law, head, start), logits, -jnp.inf)

        def total(logits):
            terms = _terms(div, logits, lse, logits_ref, lse_ref)
            return jnp.sum(jnp.where(fresh[None], terms, 0), axis=-1)

        more, back = jax.vjp(total, logits)
        (direct,) = back(jnp.ones_like(more))
        return (value + more, slope + jnp.sum(direct, axis=-1)), None

    zeros = jnp.zeros_like(lse, jnp.result_type(lse, lse_ref)), jnp.zeros_like(lse)
    zeros = _varying(first, zeros, law, hidden, head, hidden_ref, head_ref)
    (value, slope), _ = jax.lax.scan(pass_over, zeros, _steps(first, head))
    if first.axis_name is not None:
        value, slope = jax.lax.psum((value, slope), first.axis_name)
    return value, (law, hidden, head, hidden_ref, head_ref, lse, lse_ref, slope)


def _backward(div, settings, residuals, cotangent):
    law, hidden, head, hidden_ref, head_ref, lse, lse_ref, slope = residuals
    first, second = settings
    weight = _varying(first, cotangent, law, hidden, head, hidden_ref, head_ref)

    def pass_over(carry, step):
        to_hidden, to_head = carry
        start, rows, whole, fresh = _scores(first, law, hidden, head, step)
        _, _, logits_ref, _ = _scores(second, law, hidden_ref, head_ref, step)
        logits = jnp.where(_inside(first, law, head, start), whole, -jnp.inf)
        _, back = jax.vjp(lambda x: _terms(div, x, lse, logits_ref, lse_ref), logits)
        (direct,) = back(jnp.broadcast_to(weight[:, None], logits.shape))
        # What the normaliser does: all of the law's terms at once.
        p = jnp.exp(logits - lse[:, None])
        gradient = direct - p * (weight * slope)[:, None]
        gradient = jnp.where(fresh[None], gradient, 0)
        gradient = _slope(first, law, whole, gradient)
        return _accumulate(
            first, (to_hidden, to_head), gradient, hidden, rows, start, fresh
        ), None

    zeros = _zeros(first, hidden, head, law, hidden_ref, head_ref, cotangent)
    (to_hidden, to_head), _ = jax.lax.scan(pass_over, zeros, _steps(first, head))
    return None, _added(to_hidden, hidden), _added(to_head, head), None, None


def _differentiated(div, settings, *arrays):
    _refuse_unchecked(settings[0])
    return _forward(div, settings, *arrays)


_divergence.defvjp(_differentiated, _backward)
