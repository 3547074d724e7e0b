"""The policy that is best under a reward and a divergence from a reference."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.divergences._numerics import support_log_softmax
from alignax.divergences._solved import on_graph
from alignax.divergences.value import Divergence
from alignax.divergences.vocabulary import perspective
from alignax.numerics import as_float
from alignax.types import InputError


def regularised_optimum(
    div: Divergence,
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    *,
    beta: float | Float[Array, "*batch"],
    where: Bool[Array, "*batch K"] | None = None,
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The regularised-optimal policy over K candidates, exactly.

    ``π* = argmax E_π r − β D_f(π‖ρ)``, ``π*_i = ρ_i (f')⁻¹((r_i − λ)/β)₊``.

    The multiplier makes the probabilities sum to one. It is found by a fixed
    number of bisections on the log-ratio of the best candidate, which is between
    0 and ``-log ρ`` of it whatever the divergence, and which stays well scaled
    where ``f'`` saturates. Divergences with a finite ``f'(0)`` (chi-squared,
    total variation) give sparse policies.

    Derivatives of any mode are the implicit ones, in closed form: with
    ``w_i`` proportional to ``π_i / uf2_i``, ``d multiplier = Σ w_i dr_i``,
    ``d log π_i = (dr_i - d multiplier) / (beta uf2_i)``, ``d value = Σ π_i
    dr_i - D d beta``; nothing is differentiated through the bisection.

    Args:
      div: the divergence.
      rewards: ``[..., K]``.
      logp_ref: the reference's log-probabilities ``[..., K]``, normalised here.
        ``-inf`` excludes a candidate.
      beta: strength, positive; a number or ``[...]``.
      where: True at the candidates that exist, default all.

    Returns:
      The optimum's log-probabilities ``[..., K]`` (``-inf`` where it has no
      mass), the multiplier ``[...]`` and the optimal value ``[...]``. Without
      any candidate, multiplier and value are 0.

    Raises:
      InputError: if beta is a number and not positive.

    Reference:
      Go et al., arXiv 2302.08215; Wang et al., arXiv 2309.16240, theorem 1; Huang et
      al., arXiv 2407.13399, lemma F.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from alignax import divergences as dv
      >>> r = jnp.array([1.0, 0.5, 0.0, -0.5])
      >>> ref = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
      >>> logp, _, value = dv.regularised_optimum(dv.pearson(), r, ref, beta=0.2)
      >>> value.round(4)
      Array(0.3042, dtype=float32)
    """
    if isinstance(beta, (int, float)) and not beta > 0:
        raise InputError(f"beta must be positive, got {beta}.")
    support, logp_ref = support_log_softmax(as_float(logp_ref), where)
    rewards = jnp.where(support, as_float(rewards), 0)
    dtype = jnp.promote_types(rewards.dtype, logp_ref.dtype)
    beta = jnp.broadcast_to(jnp.asarray(beta, dtype), rewards.shape[:-1])
    logp, multiplier, value = _optimum(
        div, rewards.astype(dtype), logp_ref.astype(dtype), beta, support
    )
    return logp, multiplier, value


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _optimum(
    div: Divergence,
    rewards: Float[Array, "*batch K"],
    logp_ref: Float[Array, "*batch K"],
    beta: Float[Array, "*batch"],
    support: Bool[Array, "*batch K"],
) -> tuple[Float[Array, "*batch K"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    best = _best(rewards, support)
    top = jnp.sum(jnp.where(best, rewards, 0), axis=-1)
    # Rewards computed in the same program may round differently from use to use:
    # the best one's gap is 0 by its place, and no gap is above.
    gaps = jnp.minimum((rewards - top[..., None]) / beta[..., None], 0)
    gaps = jnp.where(support & ~best, gaps, 0)
    if div.log_inverse is None:
        log_ratio, slope = _linear_programme(div, gaps, logp_ref, support, best)
    else:
        log_ratio, slope = _bisect(div, gaps, logp_ref, support, best)
    logp = jnp.where(support, logp_ref + log_ratio, -jnp.inf)
    total = jnp.where(
        support.any(-1), jax.nn.logsumexp(logp, axis=-1, where=logp > -jnp.inf), 0
    )
    logp = logp - total[..., None]
    alive = logp > -jnp.inf
    finite = jnp.where(alive, logp, 0)
    gain = jnp.sum(jnp.where(alive, jnp.exp(finite) * rewards, 0), axis=-1)
    cost = jnp.sum(perspective(div, finite, logp_ref, alive, support), axis=-1)
    # Without a candidate everything is 0.
    multiplier = jnp.where(support.any(-1), top - beta * slope, 0)
    return logp, multiplier, gain - beta * cost


def _best(
    rewards: Float[Array, "*batch K"], support: Bool[Array, "*batch K"]
) -> Bool[Array, "*batch K"]:
    """Where the first of the highest rewards is; nowhere without a candidate."""
    index = jnp.argmax(jnp.where(support, rewards, -jnp.inf), axis=-1)
    return support & jax.nn.one_hot(index, rewards.shape[-1], dtype=bool)


def _first(x: Bool[Array, "*batch K"]) -> Bool[Array, "*batch K"]:
    return x & (jnp.cumsum(x, axis=-1) == 1)


def _bisect(div, gaps, logp_ref, support, best):
    """Log-ratios of the optimum and ``f'`` at the best candidate's."""
    high = jnp.sum(jnp.where(best, -logp_ref, 0), axis=-1)
    steps = 40 if gaps.dtype.itemsize == 4 else 70

    def log_ratios(t: Float[Array, "*batch"]):
        slope = div.f_prime(t)
        l = div.log_inverse(jnp.where(gaps == 0, 0, gaps + slope[..., None]))
        # A lesser reward has a lesser ratio, whatever the rounding of f' says.
        t = jnp.broadcast_to(t[..., None], gaps.shape)
        return jnp.where(gaps == 0, t, jnp.where(l < t, l, t)), slope

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        l, _ = log_ratios(middle)
        mass = jnp.sum(jnp.where(support, jnp.exp(logp_ref + l), 0), axis=-1)
        return jnp.where(mass < 1, middle, low), jnp.where(mass < 1, high, middle)

    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(high), high))
    return log_ratios((low + high) / 2)


def _linear_programme(div, gaps, logp_ref, support, best):
    """``f`` of two straight pieces: candidates within the slopes' width of the
    best keep the reference's mass, those below give all of it to the best."""
    low, high = div.slopes
    kept = support & ~best & (gaps >= low - high)
    mass = jnp.sum(jnp.where(kept, jnp.exp(logp_ref), 0), axis=-1)
    rest = jnp.log1p(-jnp.minimum(mass, 1 - jnp.finfo(mass.dtype).eps))
    log_ratio = jnp.where(best, rest[..., None] - logp_ref, -jnp.inf)
    slope = jnp.full(gaps.shape[:-1], high, gaps.dtype)
    return jnp.where(kept, 0, log_ratio), slope


@_optimum.defjvp
def _optimum_jvp(div, primals, tangents):
    rewards, logp_ref, beta, support = primals
    d_rewards, d_logp_ref, d_beta, _ = tangents
    logp, multiplier, value = _optimum(div, *primals)
    alive = logp > -jnp.inf
    logp_safe = jnp.where(alive, logp, 0)
    pi = jnp.where(alive, jnp.exp(logp_safe), 0)
    l = jnp.where(alive, logp_safe - logp_ref, 0)
    x = jnp.where(alive, (rewards - multiplier[..., None]) / beta[..., None], 0)
    slope = div.f_prime(l)
    tiny = jnp.finfo(pi.dtype).tiny
    if div.log_inverse is None:
        # Only the best candidate's mass gives way; the multiplier hangs on it.
        moves = alive & _best(rewards, support)
        rate, share = jnp.zeros_like(pi), moves.astype(pi.dtype)
        pull = jnp.zeros_like(multiplier)
    else:
        moves = alive
        if math.isinf(div.curvature):  # the ratio stays where it is at a kink
            moves = alive & on_graph(slope, x)
        rate = jnp.where(moves, 1 / jnp.maximum(div.uf2(l), tiny), 0)
        total = jnp.maximum(jnp.sum(pi * rate, axis=-1), tiny)
        share, pull = pi * rate / total[..., None], beta / total
    slope = jnp.where(moves, slope, x)

    # d l_i = rate_i (g_i - sum share g) / beta, taken relative to the candidate
    # with the largest share: its own difference is then free of cancellation.
    g = d_rewards - slope * d_beta[..., None]
    main = _first(share == jnp.max(share, axis=-1, keepdims=True))
    anchor = jnp.sum(jnp.where(main, g, 0), axis=-1)
    g = jnp.where(main, 0, g - anchor[..., None])
    drift = jnp.sum(share * g, axis=-1)
    d_logp_ref = jnp.where(support, d_logp_ref, 0)
    leak = jnp.sum(pi * d_logp_ref, axis=-1)
    d_l = rate * (g - drift[..., None]) / beta[..., None]
    d_l = d_l - share / jnp.maximum(pi, tiny) * leak[..., None]
    d_logp = jnp.where(alive, d_logp_ref + d_l, 0)
    d_multiplier = jnp.where(support.any(-1), anchor + drift + pull * leak, 0)

    # The envelope: π is held where it is; ρ f*(f'(u)) = π f'(u) - ρ f(u).
    terms = perspective(div, logp_safe, logp_ref, alive, support)
    d_value = (
        jnp.sum(pi * d_rewards, axis=-1)
        - jnp.sum(terms, axis=-1) * d_beta
        + beta * jnp.sum((pi * slope - terms) * d_logp_ref, axis=-1)
    )
    return (logp, multiplier, value), (d_logp, d_multiplier, d_value)
