"""What sets ``beta`` from step to step: ``init``/``update`` pairs, as in optax.

The state is a small pytree with a field ``beta``; it lives in the train state
and so in the checkpoint.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError


class ControllerState(NamedTuple):
    """``beta``: the regularisation strength in force, float32 scalar."""

    beta: Float[Array, ""]


class Controller(NamedTuple):
    """``init() -> state`` and ``update(state, kl, completions) -> state``."""

    init: Callable[[], ControllerState]
    update: Callable[[ControllerState, Float[Array, ""], int], ControllerState]


def fixed(*, beta: float) -> Controller:
    """The same ``beta`` throughout.

    Args:
      beta: regularisation strength, not negative.

    Returns:
      a controller that ignores the measured divergence.

    Raises:
      InputError: ``beta`` is negative.

    Example:
      >>> print(fixed(beta=0.5).init().beta)
      0.5
    """
    if beta < 0:
        raise InputError(f"beta must not be negative, got {beta}")

    def init():
        return ControllerState(beta=jnp.float32(beta))

    def update(state, kl, completions):
        del kl, completions
        return state

    return Controller(init, update)


def adaptive_kl(*, beta: float, target: float, horizon: float = 10_000.0) -> Controller:
    """Proportional control of the KL towards a target.

    ``β ← β (1 + clip(KL/target − 1, ±0.2) · n/horizon)``.

    Args:
      beta: the strength to start with, positive.
      target: the KL to hold, in nats a completion, positive.
      horizon: completions over which an error of 0.2 changes beta by 20 %,
        positive.

    Returns:
      a controller; ``update`` takes the measured KL (nats a completion) and the
      number of completions it was measured on.

    Raises:
      InputError: an argument is not positive.

    Reference:
      Ziegler et al., "Fine-Tuning Language Models from Human Preferences",
      arXiv 1909.08593, §2.2.

    Example:
      >>> controller = adaptive_kl(beta=0.2, target=6.0)
      >>> state = controller.update(controller.init(), jnp.float32(9.0), 256)
      >>> print(f"{state.beta:.6f}")
      0.201024
    """
    for name, value in {"beta": beta, "target": target, "horizon": horizon}.items():
        if value <= 0:
            raise InputError(f"{name} must be positive, got {value}")

    def init():
        return ControllerState(beta=jnp.float32(beta))

    def update(state, kl, completions):
        error = jnp.clip(kl.astype(jnp.float32) / target - 1, -0.2, 0.2)
        return ControllerState(beta=state.beta * (1 + error * completions / horizon))

    return Controller(init, update)
