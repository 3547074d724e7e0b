"""Reductions of token losses, by their names in the literature.

Each returns a numerator and a denominator, both sums: the loss is their ratio.
Sums add over microbatches, devices and packed rows, ratios do not: add the two
apart and divide once, and the gradient of a split batch is that of the whole.
Under ``shard_map`` or ``pmap``, ``jax.lax.psum`` both before dividing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from alignax.numerics import as_float
from alignax.types import InputError

__all__ = [
    "Fraction",
    "constant_length_mean",
    "divide",
    "group_token_mean",
    "group_tokens",
    "log_ratio",
    "masked",
    "sequence_mean_token_mean",
    "sequence_mean_token_sum",
    "token_mean",
]

Fraction = tuple[Float[Array, ""], Float[Array, ""]]


def masked(
    values: Num[Array, "*shape"], mask: Bool[Array, "*shape"] | None
) -> Float[Array, "*shape"]:
    """Values in float32 where ``mask`` holds, exact zeros elsewhere.

    Args:
      values: ``[...]``, anything at masked positions, NaN included: it reaches
        neither the value nor a gradient.
      mask: ``[...]``, True where a value counts; none: everywhere.

    Returns:
      ``[...]`` float32, or float64 if the values came so.

    Example:
      >>> print(masked(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
      [1. 0.]
    """
    values = as_float(values)
    return values if mask is None else jnp.where(mask, values, 0)


def log_ratio(
    logp: Float[Array, "*shape"],
    logp_old: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """``logp − logp_old`` in float32, exactly zero where masked.

    ``log_ratio(logp, logp, mask)`` is 0 with the gradient of ``logp``: a ratio of 1.

    Args:
      logp: ``[..., T]`` log-probabilities, differentiated.
      logp_old: ``[..., T]``, the denominator: the old policy's, the behaviour's, or a
        mixture's; no gradient.
      mask: ``[..., T]``, True on generated tokens; none: all count.

    Returns:
      ``[..., T]`` float32, in nats.

    Example:
      >>> mask = jnp.array([True, False])
      >>> print(log_ratio(jnp.array([-1.0, -jnp.inf]), -2 * jnp.ones(2), mask))
      [1. 0.]
    """
    old = jax.lax.stop_gradient(masked(logp_old, mask))
    return masked(logp, mask) - old


def divide(
    numerator: Float[Array, "*shape"], denominator: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """``numerator / denominator``, and 0 (with gradient 0) where nothing counted.

    Args:
      numerator: ``[...]``.
      denominator: ``[...]``, not negative.

    Returns:
      ``[...]`` float32, or float64 if one of the two came so.

    Example:
      >>> print(divide(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0])))
      [0.25 0.]
    """
    numerator, denominator = as_float(numerator), as_float(denominator)
    counted = denominator > 0
    ratio = jnp.where(counted, numerator, 0) / jnp.where(counted, denominator, 1)
    return jnp.where(counted, ratio, 0)


def token_mean(values: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Fraction:
    """The mean over all tokens: Σ_it l_it / Σ_i n_i (DAPO).

    Long completions weigh more than short ones. As a policy-gradient loss it is
    not a rescaling of the gradient of the expected reward when lengths differ.

    Args:
      values: ``[B, T]`` token losses.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      numerator and denominator (tokens), float32 scalars.

    Reference:
      Yu et al., "DAPO", arXiv 2503.14476, eq. 8.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> numerator, denominator = token_mean(jnp.ones((2, 2)), mask)
      >>> print(numerator, denominator)
      3.0 3.0
    """
    return jnp.sum(masked(values, mask)), jnp.sum(mask, dtype=jnp.float32)


def sequence_mean_token_mean(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Fraction:
    """The mean over completions of each one's token mean (GRPO).

    A completion without a token counts neither above nor below. As a
    policy-gradient loss, tokens of short completions weigh more.

    Args:
      values: ``[B, T]`` token losses.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      numerator and denominator (completions), float32 scalars.

    Reference:
      Shao et al., "DeepSeekMath", arXiv 2402.03300, eq. 3.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> values = jnp.array([[3.0, 9.0], [1.0, 2.0]])
      >>> print(*sequence_mean_token_mean(values, mask))
      4.5 2.0
    """
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    means = divide(jnp.sum(masked(values, mask), axis=-1), lengths)
    return jnp.sum(means), jnp.sum(lengths > 0, dtype=jnp.float32)


def sequence_mean_token_sum(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Fraction:
    """The mean over completions of each one's token sum.

    The reduction under which ``-advantage * logp`` has the gradient of the
    expected reward, and a token divergence that of the sequence divergence.

    Args:
      values: ``[B, T]`` token losses.
      mask: ``[B, T]``, True on generated tokens.

    Returns:
      numerator and denominator (completions with a token), float32 scalars.

    Reference:
      Ahmadian et al., "Back to Basics", arXiv 2402.14740, eq. 6.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> print(*sequence_mean_token_sum(jnp.ones((2, 2)), mask))
      3.0 2.0
    """
    counted = jnp.any(mask, axis=-1)
    return jnp.sum(masked(values, mask)), jnp.sum(counted, dtype=jnp.float32)


def constant_length_mean(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"], *, length: int
) -> Fraction:
    """The token sum over a constant: Σ_it l_it / (B · length) (Dr. GRPO).

    ``sequence_mean_token_sum`` up to the constant ``length``, so its gradient is
    unbiased up to that factor.

    Args:
      values: ``[B, T]`` token losses.
      mask: ``[B, T]``, True on generated tokens.
      length: tokens that a completion may have at the most, positive.

    Returns:
      numerator and denominator (tokens), float32 scalars.

    Raises:
      InputError: ``length`` is not positive.

    Reference:
      Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783, §3.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> print(*constant_length_mean(jnp.ones((2, 2)), mask, length=4))
      3.0 8.0
    """
    if length <= 0:
        raise InputError(f"length must be a positive number of tokens, got {length}")
    numerator, sequences = sequence_mean_token_sum(values, mask)
    return numerator, sequences * length


def group_tokens(mask: Bool[Array, "B T"], *, completions: int) -> Float[Array, " B"]:
    """How many tokens each row's group has: the weight of ``group_token_mean``.

    Taken over the whole batch, before it is split into microbatches.

    Args:
      mask: ``[B, T]``, True on generated tokens; a prompt's completions adjacent.
      completions: K, which divides B.

    Returns:
      ``[B]`` float32.

    Raises:
      InputError: ``completions`` does not divide the rows.

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> print(group_tokens(mask, completions=2))
      [3. 3.]
    """
    rows = mask.shape[0]
    if completions < 1 or rows % completions:
        raise InputError(f"completions must divide the {rows} rows, got {completions}")
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32).reshape(-1, completions)
    return jnp.repeat(jnp.sum(lengths, axis=-1), completions)


def group_token_mean(
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    tokens: Float[Array, " B"],
) -> Fraction:
    """The mean over prompts of the token mean over each one's completions.

    Σ_it l_it / N_group(i) over Σ_it 1 / N_group(i): both sums run over rows, so that
    a group may be split among microbatches and devices.

    Args:
      values: ``[B, T]`` token losses.
      mask: ``[B, T]``, True on generated tokens.
      tokens: ``[B]``, N of each row's group, of ``group_tokens`` over the whole batch.

    Returns:
      numerator and denominator (prompts with a token), float32 scalars.

    Reference:
      Khatri et al., "The art of scaling reinforcement learning compute for LLMs",
      arXiv 2510.13786, §3.2 (prompt-level averaging).

    Example:
      >>> mask = jnp.array([[True, False], [True, True]])
      >>> tokens = group_tokens(mask, completions=2)
      >>> print(*group_token_mean(jnp.ones((2, 2)), mask, tokens))
      1.0 1.0
    """
    lengths = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    sums = divide(jnp.sum(masked(values, mask), axis=-1), tokens)
    return jnp.sum(sums), jnp.sum(divide(lengths, tokens))
