"""``beta`` from a measured KL: fixed, proportional, PID, dual ascent.

Each is ``init() -> state`` and ``update(state, kl, completions) -> state``, whose state
has a field ``beta``; other measurements of the step, by name, are passed over.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignax.types import InputError, Stateful


class ControllerState(NamedTuple):
    """``beta``: the regularisation strength in force, float32 scalar."""

    beta: Float[Array, ""]


def fixed(*, beta: float) -> Stateful:
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

    def update(state, kl, completions, **measured):
        del kl, completions, measured
        return state

    return Stateful(init, update)


def adaptive_kl(*, beta: float, target: float, horizon: float = 10_000.0) -> Stateful:
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
      >>> print(f"{state.beta:.4f}")
      0.2010
    """
    for name, value in {"beta": beta, "target": target, "horizon": horizon}.items():
        if value <= 0:
            raise InputError(f"{name} must be positive, got {value}")

    def init():
        return ControllerState(beta=jnp.float32(beta))

    def update(state, kl, completions, **measured):
        del measured
        error = jnp.clip(kl.astype(jnp.float32) / target - 1, -0.2, 0.2)
        return ControllerState(beta=state.beta * (1 + error * completions / horizon))

    return Stateful(init, update)


class PIDState(NamedTuple):
    """``beta``, the error's sum and the last error, in units of the target."""

    beta: Float[Array, ""]
    integral: Float[Array, ""]
    error: Float[Array, ""]


def pid_kl(
    *,
    beta: float,
    target: float,
    proportional: float = 0.1,
    integral: float = 0.01,
    derivative: float = 0.0,
    bounds: tuple[float, float] = (1e-4, 1e2),
) -> Stateful:
    """PID control of ``log β`` on the relative error of the KL.

    ``e = clip(KL/target − 1, ±1)``, ``log β ← log β + k_p e + k_i Σe + k_d Δe``, within
    bounds. The sum stands still while a bound holds (anti-windup).

    Args:
      beta: the strength to start with, within ``bounds``.
      target: the KL to hold, in nats a completion, positive.
      proportional: k_p.
      integral: k_i.
      derivative: k_d.
      bounds: of beta, positive.

    Returns:
      a controller.

    Raises:
      InputError: ``target`` is not positive or ``beta`` not within ``bounds``.

    Reference:
      Astrom and Murray, "Feedback Systems", 2008, §10; Stooke et al., "Responsive
      safety in reinforcement learning by PID Lagrangian methods", arXiv 2007.03964.

    Example:
      >>> controller = pid_kl(beta=0.2, target=6.0)
      >>> state = controller.update(controller.init(), jnp.float32(9.0), 256)
      >>> print(f"{state.beta:.4f}")
      0.2113
    """
    low, high = bounds
    if not target > 0:
        raise InputError(f"target must be positive, got {target}")
    if not 0 < low <= beta <= high:
        raise InputError(f"need 0 < low <= beta <= high, got beta={beta} in {bounds}")

    def init():
        # A buffer each: the state is donated.
        return PIDState(jnp.float32(beta), jnp.float32(0), jnp.float32(0))

    def update(state, kl, completions, **measured):
        del completions, measured
        error = jnp.clip(kl.astype(jnp.float32) / target - 1, -1, 1)
        summed = state.integral + error
        step = (
            proportional * error
            + integral * summed
            + derivative * (error - state.error)
        )
        wanted = jnp.log(state.beta) + step
        log_beta = jnp.clip(wanted, np.log(low), np.log(high))
        held = jnp.where(log_beta == wanted, summed, state.integral)
        return PIDState(beta=jnp.exp(log_beta), integral=held, error=error)

    return Stateful(init, update)


def dual_ascent_kl(
    *,
    beta: float,
    target: float,
    rate: float = 0.1,
    bounds: tuple[float, float] = (1e-4, 1e2),
) -> Stateful:
    """The Lagrange multiplier of ``KL ≤ target``, ascended in its logarithm.

    ``log β ← log β + rate · clip((KL − target)/target, −1, 1)``, within bounds: above
    twice the target one batch moves β no faster.

    Args:
      beta: the multiplier to start with, within ``bounds``.
      target: the KL allowed, in nats a completion, positive.
      rate: positive.
      bounds: of beta, positive.

    Returns:
      a controller.

    Raises:
      InputError: an argument is out of range.

    Reference:
      Abdolmaleki et al., "Maximum a posteriori policy optimisation",
      arXiv 1806.06920, §4.

    Example:
      >>> controller = dual_ascent_kl(beta=0.2, target=6.0)
      >>> state = controller.update(controller.init(), jnp.float32(12.0), 256)
      >>> print(f"{state.beta:.4f}")
      0.2210
    """
    if not rate > 0:
        raise InputError(f"rate must be positive, got {rate}")
    return pid_kl(
        beta=beta,
        target=target,
        proportional=rate,
        integral=0.0,
        bounds=bounds,
    )
