"""Online or offline: what the same loss converges to, by who samples its pairs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax import logprobs
from alignax.preference._checks import positive
from alignax.preference.pairs import Pair
from alignax.types import InputError

Loss = Callable[[Pair], Float[Array, "..."]]


def expected_loss(
    loss: Loss,
    logp: Float[Array, " K"],
    logp_ref: Float[Array, " K"],
    sampling: Float[Array, " K"],
    preference: Float[Array, "K K"],
) -> Float[Array, ""]:
    """A loss on every pair of K outcomes, by how often it is sampled and so labelled.

    ``Σ_ij μ_i μ_j P_ij ℓ(i ≻ j)``. With ``sampling`` the policy itself, held fixed, its
    gradient is that of online training in expectation; any other law is offline.

    Args:
      loss: of a ``Pair`` ``[K, K]``, unreduced, such as ``partial(dpo, beta=0.1)``.
        Every length is 1.
      logp: ``[K]``, differentiated.
      logp_ref: ``[K]``.
      sampling: ``[K]``, probabilities μ of either completion; no gradient.
      preference: ``[K, K]``, ``P[i, j] = P(i ≻ j)``.

    Returns:
      ``[]``.

    Reference:
      Tang et al., "Understanding the performance gap between online and offline
      alignment algorithms", arXiv 2405.08448.

    Example:
      >>> from alignax.preference.named import dpo
      >>> p = jnp.log(jnp.array([0.5, 0.5]))
      >>> half = jnp.full((2, 2), 0.5)
      >>> loss = lambda pair: dpo(pair, beta=1.0)
      >>> print(expected_loss(loss, p, p, jnp.exp(p), half).round(4))
      0.3466
    """
    count = logp.shape[-1]

    def rows(x):
        return jnp.broadcast_to(x[:, None], (count, count))

    def columns(x):
        return jnp.broadcast_to(x[None, :], (count, count))

    ones = jnp.ones((count, count))
    pair = Pair(
        rows(logp), columns(logp), rows(logp_ref), columns(logp_ref), ones, ones
    )
    sampling = jax.lax.stop_gradient(sampling)
    weights = rows(sampling) * columns(sampling) * preference
    return jnp.sum(weights * loss(pair))


def fit_tabular_policy(
    loss: Loss,
    logp_ref: Float[Array, " K"],
    preference: Float[Array, "K K"],
    behaviour: Float[Array, " K"] | None = None,
    *,
    learning_rate: float,
    steps: int,
) -> Float[Array, " K"]:
    """Where gradient descent on the expected loss takes a softmax policy.

    The comparison of sampling laws on one loss: call it twice, with a ``behaviour`` law
    (offline) and without (online: each step's pairs are the policy's own).

    Args:
      loss: as for ``expected_loss``.
      logp_ref: ``[K]``, where the policy starts as well.
      preference: ``[K, K]``.
      behaviour: ``[K]``, probabilities; None for online.
      learning_rate: positive.
      steps: at least 1.

    Returns:
      ``log π [K]``.

    Raises:
      InputError: ``learning_rate`` is not positive or ``steps`` below 1.

    Example:
      >>> from alignax.preference.named import ipo
      >>> uniform = jnp.log(jnp.full(2, 0.5))
      >>> wins = jnp.array([[0.5, 0.7], [0.3, 0.5]])
      >>> loss = lambda pair: ipo(pair, beta=0.5)
      >>> logp = fit_tabular_policy(loss, uniform, wins, learning_rate=0.5, steps=100)
      >>> print(f"{logp[0] - logp[1]:.4f}")  # (2p - 1) / (2 beta)
      0.4000
    """
    positive(learning_rate=learning_rate)
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")

    def objective(logits):
        logp = logprobs.log_softmax(logits)
        law = jnp.exp(logp) if behaviour is None else behaviour
        return expected_loss(loss, logp, logp_ref, law, preference)

    def step(logits, _):
        return logits - learning_rate * jax.grad(objective)(logits), None

    start = logprobs.log_softmax(logp_ref)
    return logprobs.log_softmax(jax.lax.scan(step, start, length=steps)[0])
