"""Methods that play preference games on language models: a loss, and an opponent.

``train.game`` has them all: ``game.nash_md(mixture=0.125)``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import games, references
from alignax.types import Params


class Sides(NamedTuple):
    """What a loss is shown: of K completions of each of G prompts, and of L of the
    opponent's, the tokens' log-probabilities ``[G, K, T]``, zero where masked. Only the
    policy's have a gradient."""

    logp: Float[Array, "G K T"]
    ref: Float[Array, "G K T"]
    mask: Any
    logp_other: Float[Array, "G L T"]
    ref_other: Float[Array, "G L T"]
    preferences: Float[Array, "G K L"]
    anchor: Any = None
    """Of the own completions, under the method's anchor: of mirror prox, or π_t."""
    anchor_other: Any = None
    """Of the opponent's."""


Loss = Callable[[Sides, Any], Float[Array, "G K"]]
"""``(sides, beta) -> [G, K]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A loss, and who the opponents are."""

    loss: Loss
    opponent: references.Reference | None = None
    """The rule of the policy that is played against; None for the policy itself."""
    mixture: float | Float[Array, ""] = 0.0
    """Share of the reference in what samples the opponents' completions; 1 for the
    reference alone."""
    both: bool = False
    """Whether the opponent's law samples the own completions, too."""
    anchor: Callable[[Any], Params] | None = None
    """From the opponent's state, the policy that the loss has a second KL to."""


def gradient_loss(sides: Sides, beta: Any) -> Float[Array, "G K"]:
    """``games.nash_pg_surrogate`` against the mean opponent."""
    wins = jnp.mean(sides.preferences, axis=-1)
    losses = games.nash_pg_surrogate(sides.logp, sides.ref, wins, sides.mask, beta=beta)
    return jnp.sum(losses, axis=-1)


def _whole(sides: Sides) -> tuple[dict[str, Array], dict[str, Array]]:
    """Log-probabilities of whole completions, over all pairs ``[G, K, L]``."""
    shape = sides.preferences.shape

    def summed(own: bool, **tokens):
        sums = {name: jnp.sum(x, axis=-1) for name, x in tokens.items()}
        return {
            name: jnp.broadcast_to(x[:, :, None] if own else x[:, None], shape)
            for name, x in sums.items()
        }

    first = {"logp": sides.logp, "ref": sides.ref}
    second = {"logp": sides.logp_other, "ref": sides.ref_other}
    if sides.anchor is not None:
        first["anchor"], second["anchor"] = sides.anchor, sides.anchor_other
    return summed(True, **first), summed(False, **second)


def _compared(sides: Sides) -> tuple[Array, ...]:
    """Both sides of all pairs, under the policy and the reference, and the verdicts."""
    own, other = _whole(sides)
    logps = own["logp"], other["logp"], own["ref"], other["ref"]
    return *logps, sides.preferences


def squared_loss(sides: Sides, beta: Any) -> Float[Array, "G K"]:
    """``games.online_ipo_loss`` over all pairs, times β/4: its gradient then has the
    size of the preference's own."""
    losses = games.online_ipo_loss(*_compared(sides), beta=beta)
    return beta / 4 * jnp.mean(losses, axis=-1)


def nash_md(*, mixture: float | Float[Array, ""] = 0.125) -> Method:
    """Nash-MD-PG; with ``mixture`` 0 self-play (Munos et al., arXiv 2312.00886)."""
    return Method(loss=gradient_loss, mixture=mixture)


def nash_ema(*, decay: float | Float[Array, ""]) -> Method:
    """Nash-EMA-PG: against the moving average (Munos et al., arXiv 2312.00886)."""
    return Method(loss=gradient_loss, opponent=references.moving_average(decay=decay))


def nash_mp(*, eta: float, inner_steps: int) -> Method:
    """Nash mirror prox (Tiapkin et al., arXiv 2505.19731)."""
    rule = games.mirror_prox_loop(inner_steps=inner_steps)

    def loss(sides, beta):
        wins = jnp.mean(sides.preferences, axis=-1)
        losses = games.nash_mp_surrogate(
            sides.logp, sides.ref, sides.anchor, wins, sides.mask, beta=beta, eta=eta
        )
        return jnp.sum(losses, axis=-1)

    return Method(
        loss=loss,
        opponent=references.Reference(
            name="mirror_prox",
            settings=(("inner_steps", inner_steps),),
            init=rule.init,
            update=lambda state, params, step: rule.update(state, params),
            params=lambda state: state.opponent,
        ),
        anchor=lambda state: state.anchor,
    )


def ipo_md(*, mixture: float | Float[Array, ""] = 0.125) -> Method:
    """IPO-MD; with ``mixture`` 0 online IPO (Calandriello et al., arXiv 2403.08635)."""
    return Method(loss=squared_loss, mixture=mixture, both=True)


def sppo(*, inner_steps: int) -> Method:
    """SPPO (Wu et al., arXiv 2405.00675): ``games.sppo_loss`` with η = 1/β, times β/2.

    π_t, renewed every ``inner_steps`` steps, writes both sides; β is the strength of
    the KL to it, and there is none to the reference.
    """

    def loss(sides, beta):
        logp, prev = (jnp.sum(x, axis=-1) for x in (sides.logp, sides.anchor))
        wins = jnp.mean(sides.preferences, axis=-1)
        return beta / 2 * games.sppo_loss(logp, prev, wins, eta=1 / beta)

    return _iterated(loss, inner_steps)


def inpo(*, eta: float, inner_steps: int) -> Method:
    """INPO (Zhang et al., arXiv 2407.00617): ``games.inpo_loss`` over all pairs, with
    the preference's probabilities as labels, over 4η.

    π_t, renewed every ``inner_steps`` steps, writes both sides. ``eta`` is the step
    size, at most 1/β; the paper's η is one over it.
    """

    def loss(sides, beta):
        own, other = _whole(sides)

        def preferred(w, l):
            pairs = (x[name] for name in ("logp", "ref", "anchor") for x in (w, l))
            return games.inpo_loss(*pairs, eta=1 / eta, beta=beta)

        p = sides.preferences
        losses = p * preferred(own, other) + (1 - p) * preferred(other, own)
        return jnp.mean(losses, axis=-1) / (4 * eta)

    return _iterated(loss, inner_steps)


def _iterated(loss: Loss, inner_steps: int) -> Method:
    return Method(
        loss=loss,
        opponent=references.periodic_reset(every=inner_steps),
        both=True,
        anchor=lambda state: state,
    )


def xpo(*, alpha: float) -> Method:
    """XPO (Xie et al., arXiv 2405.21046): ``games.xpo_loss`` against the reference's
    completions, over β; ``alpha`` is the weight of its bonus."""

    def loss(sides, beta):
        losses = games.xpo_loss(*_compared(sides), beta=beta, alpha=alpha)
        return jnp.mean(losses, axis=-1) / beta

    return Method(loss=loss, mixture=1.0)
