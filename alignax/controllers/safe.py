"""SAFE: a KL budget that follows the reward, and an entropy gate on its penalty."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignax.types import InputError, Stateful

WINDOW = 50


class SAFEState(NamedTuple):
    """``beta`` is the slope of ``penalty`` in the KL: its effective strength."""

    beta: Float[Array, ""]
    penalty: Float[Array, ""]
    """Nats a token, to be taken off the reward."""
    kl: Float[Array, ""]
    """Smoothed, in nats a token."""
    reward: Float[Array, ""]
    """Smoothed."""
    integral: Float[Array, ""]
    error: Float[Array, ""]
    recent: Float[Array, " N"]
    """The last rewards, oldest first."""
    count: Int[Array, ""]


def safe(
    *,
    threshold: float = 0.3,
    limits: tuple[float, float] = (0.1, 0.6),
    gains: tuple[float, float, float] = (0.3, 0.01, 0.05),
    weight: float = 0.1,
) -> Stateful:
    """A penalty on what exceeds a moving threshold, stronger at low entropy.

    ``P = w (k_s − τ)₊² g`` with the smoothed KL ``k_s``, the gate
    ``g = max(1/2, 2/(H + 0.1))``, and ``τ = clip((τ₀ + PID(reward)) φ, limits)`` with φ
    1.5 while warming up, 1.2 while rewards rise, 1 once converged, else 0.8.

    ``state.beta`` is ``dP/dk_s = 2w (k_s − τ)₊ g``, to weigh a KL term that has a
    gradient; the official code penalises a Python number, which has none.

    Args:
      threshold: τ₀ in nats a token, positive.
      limits: of τ, ascending.
      gains: of the PID on the smoothed reward's rise.
      weight: w, positive.

    Returns:
      ``init() -> state`` and ``update(state, kl, entropy, reward) -> state``.

    Raises:
      InputError: an argument is out of range.

    Reference:
      Maity, "SAFE", arXiv 2602.04651.

    Example:
      >>> controller = safe()
      >>> state = controller.init()
      >>> for _ in range(5):
      ...     state = controller.update(
      ...         state, jnp.float32(1), jnp.float32(0.5), jnp.float32(0)
      ...     )
      >>> print(f"{state.kl:.4f} {state.beta}")
      0.4095 0.0
    """
    if not (threshold > 0 and weight > 0 and 0 < limits[0] <= limits[1]):
        raise InputError(
            f"need threshold, weight > 0 and ascending limits, got {threshold}, "
            f"{weight}, {limits}"
        )
    proportional, integral, derivative = gains

    def init():
        # A buffer each: the state is donated.
        numbers = [jnp.float32(0) for _ in range(6)]
        return SAFEState(*numbers, recent=jnp.zeros(2 * WINDOW), count=jnp.int32(0))

    def update(state, kl, entropy, reward):
        kl, entropy, reward = (
            jnp.asarray(x, jnp.float32) for x in (kl, entropy, reward)
        )
        first = state.count == 0
        smoothed = 0.9 * state.kl + 0.1 * kl
        mean = jnp.where(first, reward, 0.95 * state.reward + 0.05 * reward)
        error = mean - state.reward - 0.001
        summed = jnp.clip(state.integral + error, -1, 1)
        output = (
            proportional * error
            + integral * summed
            + derivative * (error - state.error)
        )
        # The first reward only sets the average.
        error, summed, output = (
            jnp.where(first, 0, x) for x in (error, summed, output)
        )
        recent = jnp.append(state.recent[1:], reward)
        count = state.count + 1
        tau = jnp.clip((threshold + output) * _phase(recent, count), *limits)
        excess = jnp.maximum(smoothed - tau, 0)
        beta = 2 * weight * excess * entropy_gate(entropy)
        penalty = beta * excess / 2
        return SAFEState(beta, penalty, smoothed, mean, summed, error, recent, count)

    return Stateful(init, update)


def entropy_gate(entropy: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """``max(1/2, 2/(H + 0.1))``: a penalty that bites when the policy is certain.

    Args:
      entropy: ``[...]`` in nats, not negative.

    Returns:
      ``[...]`` float32.

    Reference:
      Maity, "SAFE", arXiv 2602.04651.

    Example:
      >>> print(entropy_gate(jnp.array([0.5, 9.9])))
      [3.3333 0.5]
    """
    return jnp.maximum(0.5, 2.0 / (entropy.astype(jnp.float32) + 0.1))


def _phase(recent: Float[Array, " N"], count: Int[Array, ""]) -> Float[Array, ""]:
    window, before = recent[WINDOW:], recent[:WINDOW]
    seen: Bool[Array, " N"] = jnp.arange(WINDOW) >= 2 * WINDOW - count
    earlier = jnp.sum(jnp.where(seen, before, 0)) / jnp.maximum(jnp.sum(seen), 1)
    rising = (jnp.mean(window) > earlier + 0.01) & (count > WINDOW)
    converged = (jnp.std(window) < 0.02) & (jnp.mean(window) > 0.7)
    later = jnp.where(rising, 1.2, jnp.where(converged, 1.0, 0.8))
    return jnp.where(count < WINDOW, 1.5, later)
