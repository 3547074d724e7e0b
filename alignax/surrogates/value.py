"""The critic's side: value losses, pessimistic pairs, values from logits.

A critic is pretrained by the same losses on the Monte-Carlo returns
``advantages.reward_to_go`` of the reference's completions, before the policy moves.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import logprobs, reduce
from alignax.numerics import as_float
from alignax.types import InputError


def _clipped_pair(values, values_old, returns, mask, clip):
    if not clip > 0:
        raise InputError(f"clip must be positive, got {clip}")
    values = reduce.masked(values, mask)
    old, returns = (
        jax.lax.stop_gradient(reduce.masked(x, mask)) for x in (values_old, returns)
    )
    return values, old + jnp.clip(values - old, -clip, clip), returns


def clipped_value_loss(
    values: Float[Array, "*B T"],
    values_old: Float[Array, "*B T"],
    returns: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    clip: float = 0.2,
) -> Float[Array, "*B T"]:
    """``½ max((V − R)², (V_old + clip(V − V_old) − R)²)``: PPO's value loss.

    No gradient where the value has moved past ``clip`` towards the return. At a tie
    the gradient is the unclipped one's, whole.

    Args:
      values: ``[..., T]``, differentiated.
      values_old: ``[..., T]``, when the update began; no gradient.
      returns: ``[..., T]``, ``advantages + values_old``; no gradient.
      mask: ``[..., T]``, True on generated tokens.
      clip: positive.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Raises:
      InputError: ``clip`` is not positive.

    Reference:
      Ouyang et al., "Training language models to follow instructions with human
      feedback", arXiv 2203.02155; the form of OpenAI's PPO2.

    Example:
      >>> zeros, mask = jnp.zeros(1), jnp.array([True])
      >>> print(clipped_value_loss(zeros + 1, zeros, zeros + 1, mask))
      [0.32]
    """
    values, clipped, returns = _clipped_pair(values, values_old, returns, mask, clip)
    plain, bounded = (values - returns) ** 2, (clipped - returns) ** 2
    return 0.5 * jnp.where(bounded > plain, bounded, plain)


def huber_value_loss(
    values: Float[Array, "*B"],
    values_old: Float[Array, "*B"],
    returns: Float[Array, "*B"],
    mask: Bool[Array, "*B"],
    *,
    clip: float = 0.2,
    delta: float = 0.5,
) -> Float[Array, "*B"]:
    """``½ [huber(V − R) + huber(V_old + clip(V − V_old) − R)]``: SAFE's critic.

    Both terms count, so that a clipped value keeps half of its gradient.

    Args:
      values: ``[...]``, differentiated.
      values_old: ``[...]``; no gradient.
      returns: ``[...]``; no gradient.
      mask: ``[...]``, True where it counts.
      clip: positive.
      delta: where the loss turns linear, positive.

    Returns:
      ``[...]`` float32, zero where masked.

    Raises:
      InputError: ``clip`` or ``delta`` is not positive.

    Reference:
      Maity, "SAFE", arXiv 2602.04651.

    Example:
      >>> zeros, mask = jnp.zeros(1), jnp.array([True])
      >>> print(huber_value_loss(zeros + 0.1, zeros, zeros, mask))
      [0.005]
    """
    if not delta > 0:
        raise InputError(f"delta must be positive, got {delta}")
    values, clipped, returns = _clipped_pair(values, values_old, returns, mask, clip)

    def huber(error):
        inside = jnp.clip(error, -delta, delta)
        return inside * (error - 0.5 * inside)

    return 0.5 * (huber(values - returns) + huber(clipped - returns))


def soft_minimum(
    first: Float[Array, "*B"], second: Float[Array, "*B"], *, temperature: float = 0.3
) -> Float[Array, "*B"]:
    """``−α (log(e^{−V₁/α} + e^{−V₂/α}) − log 2)``: a pessimistic pair of critics.

    Between the minimum (α → 0) and the mean (α → ∞), with a gradient to both.

    Args:
      first: ``[...]`` values.
      second: ``[...]`` values of another head.
      temperature: α, positive.

    Returns:
      ``[...]`` float32.

    Raises:
      InputError: ``temperature`` is not positive.

    Reference:
      Maity, "SAFE", arXiv 2602.04651 (double soft-min critic).

    Example:
      >>> print(soft_minimum(jnp.array([1.0]), jnp.array([2.0])))
      [1.1974]
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    scaled = [-as_float(x) / temperature for x in (first, second)]
    return -temperature * (jnp.logaddexp(*scaled) - jnp.log(2.0))


def dueling_values(
    logits: Float[Array, "*B V"], values: Float[Array, "*B"], *, temperature: float
) -> Float[Array, "*B V"]:
    """Action values from a language model's logits: ``α (ℓ − max ℓ) + V`` (B-Coder).

    The advantage is never positive, and ``softmax(Q/α)`` is the model's own law: a
    pretrained model is a Q-function from the start. ``values`` is the sum of the
    pretrained head and the residual one that starts at 0.

    Args:
      logits: ``[..., V]``, differentiated.
      values: ``[...]``, differentiated.
      temperature: α, positive.

    Returns:
      ``[..., V]`` float32.

    Raises:
      InputError: ``temperature`` is not positive.

    Reference:
      Yu et al., "B-Coder: Value-based deep reinforcement learning for program
      synthesis", arXiv 2310.03173, eqs. 10-13.

    Example:
      >>> print(dueling_values(jnp.array([1.0, 3.0]), jnp.float32(5), temperature=0.5))
      [4. 5.]
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    logits = as_float(logits)
    gaps = logits - jnp.max(logits, axis=-1, keepdims=True)
    return temperature * gaps + as_float(values)[..., None]


def conservative_targets(
    rewards: Float[Array, "*B"],
    next_values: Float[Array, "*B V"],
    next_logits: Float[Array, "*B V"],
    ended: Bool[Array, "*B"],
    *,
    discount: float = 1.0,
) -> Float[Array, "*B"]:
    """Backup along what a frozen model would do: ``r + γ Q(s', argmax q)`` (B-Coder).

    The next action is the frozen model's likeliest one and not the value's best, so
    that errors of untried actions are not maximised over. A contraction with modulus γ.

    Args:
      rewards: ``[...]``.
      next_values: ``[..., V]``, Q at the next state; no gradient.
      next_logits: ``[..., V]`` of the frozen model at the next state.
      ended: ``[...]``, True where no state follows.
      discount: γ in [0, 1].

    Returns:
      ``[...]`` float32, without gradient. Without the reward and with the sign
      turned it is the inverse operator: ``Q − γ Q(s', argmax q)`` recovers rewards.

    Raises:
      InputError: ``discount`` is outside [0, 1].

    Reference:
      Yu et al., "B-Coder", arXiv 2310.03173, eq. 14.

    Example:
      >>> values, logits = jnp.array([[9.0, 2.0]]), jnp.array([[0.0, 1.0]])
      >>> end = jnp.array([False])
      >>> print(conservative_targets(jnp.ones(1), values, logits, end, discount=0.5))
      [2.]
    """
    if not 0 <= discount <= 1:
        raise InputError(f"discount must be in [0, 1], got {discount}")
    action = jnp.argmax(logprobs.log_softmax(next_logits), axis=-1)
    chosen = jnp.take_along_axis(next_values, action[..., None], axis=-1)[..., 0]
    following = jnp.where(ended, 0, as_float(chosen))
    return jax.lax.stop_gradient(as_float(rewards) + discount * following)
