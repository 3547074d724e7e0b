"""A loss as a training step takes it: what it is shown of a batch of pairs.

Losses of whole completions read a ``Pair``; those that look inside read
``PairTokens``. What a loss needs beside log-probabilities it names, so that a step can
gather it, or refuse the loss where it cannot.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import reduce
from alignax._checks import Strength, positive
from alignax.preference.links import logistic_link
from alignax.preference.named import dpo
from alignax.preference.pairs import Pair, pair_from_tokens
from alignax.preference.tokens import (
    on_policy_weight,
    sparse_score,
    tail_discounted_logp,
    tdpo1_margin,
    tdpo2_margin,
)
from alignax.types import InputError, Leaf


class PairTokens(NamedTuple):
    """Pairs of ``[...]``, token by token; None where a loss does not need it.

    Only ``logp_*`` and ``kl_*`` have a gradient.
    """

    logp_w: Float[Array, "*batch T"]
    logp_l: Float[Array, "*batch U"]
    ref_w: Float[Array, "*batch T"]
    ref_l: Float[Array, "*batch U"]
    mask_w: Bool[Array, "*batch T"]
    mask_l: Bool[Array, "*batch U"]
    kl_w: Leaf = None  # [..., T], KL(ρ‖π) at each place
    kl_l: Leaf = None
    collision_w: Leaf = None  # [..., T], log Σ π² at each place
    collision_l: Leaf = None
    weights_w: Leaf = None  # [..., T], of the tokens
    weights_l: Leaf = None
    rewards_w: Leaf = None  # [...]
    rewards_l: Leaf = None
    anchor: Leaf = None  # [...], KTO's z₀, one for all


NEEDS = {
    "kl": ("kl_w", "kl_l"),
    "collision": ("collision_w", "collision_l"),
    "weights": ("weights_w", "weights_l"),
    "rewards": ("rewards_w", "rewards_l"),
    "anchor": ("anchor",),
}
"""What a loss may need, by the fields of ``PairTokens`` that hold it."""


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A loss of pairs, ``loss(pairs, beta=...) -> [B]``, with what it needs.

    Attributes:
      function: ``(pair, *needed, beta=...)`` of a ``Pair`` and the fields that it
        needs, in their order; or ``(tokens, beta=...)`` of ``PairTokens``.
      needs: names of ``NEEDS``.
      tokens: whether the function takes ``PairTokens``.
      reference: False where ``ref_*`` is not read.
      whole_batch: True where a pair's loss depends on the batch's others.
    """

    function: Callable[..., Array]
    needs: tuple[str, ...] = ()
    tokens: bool = False
    reference: bool = True
    whole_batch: bool = False

    def __call__(self, pairs: Pair | PairTokens, *, beta: Strength) -> Array:
        """The losses ``[B]`` of ``PairTokens``; a ``Pair`` will do without needs.

        Raises:
          InputError: what the loss needs is not there.
        """
        if isinstance(pairs, Pair):
            if self.needs or self.tokens:
                wants = ", ".join(self.needs) or "tokens"
                raise InputError(
                    f"pairs: a Pair was given, which does not hold the {wants} that "
                    "this loss needs; PairTokens would do."
                )
            return self.function(pairs, beta=beta)
        fields = [field for need in self.needs for field in NEEDS[need]]
        missing = [field for field in fields if getattr(pairs, field) is None]
        if missing:
            raise InputError(
                f"pairs: PairTokens without {', '.join(missing)} were given, which "
                "this loss needs."
            )
        if self.tokens:
            return self.function(pairs, beta=beta)
        needed = (getattr(pairs, field) for field in fields)
        return self.function(whole(pairs), *needed, beta=beta)


def whole(tokens: PairTokens) -> Pair:
    """The sums over whole completions, and their lengths.

    Args:
      tokens: of ``[...]``.

    Returns:
      ``Pair`` of ``[...]``.
    """
    return pair_from_tokens(*tokens[:6])


def _along(values: Array, mask: Array) -> Array:
    return jnp.sum(reduce.masked(values, mask), axis=-1)


def tdpo1(tokens: PairTokens, *, beta: Strength) -> Float[Array, "*batch"]:
    """``−log σ(β m)`` of ``tdpo1_margin``. Needs ``kl``.

    Args:
      tokens: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Zeng et al., "Token-level direct preference optimization", arXiv 2404.11999,
      eq. 15.
    """
    positive(beta=beta)
    kls = _along(tokens.kl_w, tokens.mask_w), _along(tokens.kl_l, tokens.mask_l)
    return logistic_link(beta * tdpo1_margin(whole(tokens), *kls))


def tdpo2(
    tokens: PairTokens, *, beta: Strength, alpha: float = 0.5
) -> Float[Array, "*batch"]:
    """``−log σ(β m)`` of ``tdpo2_margin``. Needs ``kl``.

    Args:
      tokens: of ``[...]``.
      beta: strength of the regularisation, positive.
      alpha: weight of the KL terms, not negative.

    Returns:
      ``[...]``.

    Reference:
      Zeng et al., arXiv 2404.11999, eq. 17.
    """
    positive(beta=beta)
    kls = _along(tokens.kl_w, tokens.mask_w), _along(tokens.kl_l, tokens.mask_l)
    return logistic_link(beta * tdpo2_margin(whole(tokens), *kls, alpha=alpha))


def sparse_po(tokens: PairTokens, *, beta: Strength) -> Float[Array, "*batch"]:
    """``−log σ(β m)`` of ``sparse_score`` values, of common weights, which it needs.

    Args:
      tokens: of ``[...]``, weighted by ``activation_weights`` or such.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Christopoulou et al., "SparsePO", arXiv 2410.05102, eq. 6.
    """
    positive(beta=beta)
    t = tokens
    w = sparse_score(t.logp_w, t.ref_w, t.kl_w, t.weights_w, t.weights_w, t.mask_w)
    l = sparse_score(t.logp_l, t.ref_l, t.kl_l, t.weights_l, t.weights_l, t.mask_l)
    return logistic_link(beta * (w - l))


def ld_dpo(
    tokens: PairTokens, *, beta: Strength, alpha: float = 0.5
) -> Float[Array, "*batch"]:
    """DPO with ``tail_discounted_logp``: what exceeds the other's length counts α.

    Args:
      tokens: of ``[...]``.
      beta: strength of the regularisation, positive.
      alpha: weight of the tail, in [0, 1]; 1 is DPO.

    Returns:
      ``[...]``.

    Reference:
      Liu et al., "Length desensitization in direct preference optimization",
      arXiv 2409.06411, eq. 11.
    """
    pair = whole(tokens)

    def score(logp, mask, other):
        return tail_discounted_logp(logp, mask, other, alpha=alpha)

    return dpo(
        pair._replace(
            logp_w=score(tokens.logp_w, tokens.mask_w, pair.length_l),
            logp_l=score(tokens.logp_l, tokens.mask_l, pair.length_w),
            ref_w=score(tokens.ref_w, tokens.mask_w, pair.length_l),
            ref_l=score(tokens.ref_l, tokens.mask_l, pair.length_w),
        ),
        beta=beta,
    )


def wpo(tokens: PairTokens, *, beta: Strength) -> Float[Array, "*batch"]:
    """DPO weighted by both sides' ``on_policy_weight``. Needs ``collision``.

    Args:
      tokens: of ``[...]``.
      beta: strength of the regularisation, positive.

    Returns:
      ``[...]``.

    Reference:
      Zhou et al., "WPO: enhancing RLHF with weighted preference optimization",
      arXiv 2406.11827, eq. 8.
    """
    w = on_policy_weight(tokens.logp_w, tokens.collision_w, tokens.mask_w)
    l = on_policy_weight(tokens.logp_l, tokens.collision_l, tokens.mask_l)
    return jax.lax.stop_gradient(w * l) * dpo(whole(tokens), beta=beta)
