"""What is best for a reward of 0 or 1, from its success probability alone.

Where a completion is right or wrong, the optimum under a KL penalty and best-of-n
only move mass between the two classes: both are known exactly from the reference's
probability p of being right, however large the set of completions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax.types import InputError

Point = tuple[Float[Array, "*batch"], Float[Array, "*batch"]]


def _point(log_q: Array, log_miss_q: Array, log_p: Array, log_miss_p: Array) -> Point:
    """``(q, KL)`` of moving success p to q, from logs of both and of the misses."""
    q, miss = jnp.exp(log_q), jnp.exp(log_miss_q)
    # Where a class has no mass its log-ratio does not matter.
    right = jnp.where(q > 0, log_q - log_p, 0)
    wrong = jnp.where(miss > 0, log_miss_q - log_miss_p, 0)
    return q, q * right + miss * wrong


def binary_optimum(log_p: Float[Array, "*batch"], *, beta: float) -> Point:
    """Success and KL of the optimum ``π* ∝ π_ref e^{r/β}`` for r in {0, 1}.

    ``q = p e^{1/β} / (1 − p + p e^{1/β})``,
    ``KL = q log(q/p) + (1−q) log((1−q)/(1−p))``.

    Args:
      log_p: ``[...]`` log-probability, below 0, that the reference is right.
      beta: strength of the regularisation, positive.

    Returns:
      success probability and KL(π*‖π_ref) in nats, each ``[...]``.

    Raises:
      InputError: ``beta`` is not positive.

    Reference:
      Korbak, Perez and Buckley, "RL with KL penalties is better viewed as Bayesian
      inference", arXiv 2205.11275, eq. 3.

    Example:
      >>> q, kl = binary_optimum(jnp.log(jnp.array(0.5)), beta=1.0)
      >>> print(f"{q:.4f} {kl:.4f}")
      0.7311 0.1109
    """
    if not beta > 0:
        raise InputError(f"beta must be positive, got {beta}")
    log_p = jnp.asarray(log_p)
    log_miss = jax.nn.log1mexp(-log_p)
    logit = log_p - log_miss + 1 / beta
    return _point(
        jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit), log_p, log_miss
    )


def binary_best_of_n(log_p: Float[Array, "*batch"], *, n: int) -> Point:
    """Success and KL of the best of ``n`` samples for r in {0, 1}.

    ``q = 1 − (1 − p)^n``; a random one of the best is kept, so that within the right
    and within the wrong completions the law stays the reference's.

    Args:
      log_p: ``[...]`` log-probability, below 0, that the reference is right.
      n: samples, at least 1.

    Returns:
      success probability and KL to the reference in nats, each ``[...]``.

    Raises:
      InputError: ``n`` is less than 1.

    Reference:
      Beirami et al., "Theoretical guarantees on the best-of-n alignment policy",
      arXiv 2401.01879, §3.

    Example:
      >>> q, kl = binary_best_of_n(jnp.log(jnp.array(0.5)), n=2)
      >>> print(f"{q:.4f} {kl:.4f}")
      0.7500 0.1308
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    log_p = jnp.asarray(log_p)
    log_miss = jax.nn.log1mexp(-log_p)
    # n samples miss together; at n = 1 the two are the reference's own.
    return _point(jax.nn.log1mexp(-n * log_miss), n * log_miss, log_p, log_miss)
