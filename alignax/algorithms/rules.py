"""Each method's own stages of the loss: ratios, rules, terms, and what they need."""

import jax
import jax.numpy as jnp

from alignax import advantages, controllers, estimators, reduce, selection, surrogates
from alignax.algorithms import stages as s
from alignax.algorithms.compose import ppo
from alignax.algorithms.fields import correct, needed


def gmpo(ratios, rows):
    clipped = surrogates.clipped_log_ratio(ratios, rows.advantages, rows.mask)
    level = s.GEOMETRIC(clipped, rows.mask)
    return surrogates.ratio_surrogate(level, rows.advantages, rows.mask)


def sampler_gap(scored):
    """What the rule adds to its log-ratios to have those to the sampler."""
    return scored.logp_old - needed(scored, "logp_behaviour")


def opsm(ratios, rows, *, threshold=2.0):
    """Bad completions count no longer once the policy has left them behind, at each
    update; they stay in the denominator."""
    gone = surrogates.off_policy_sequences(
        ratios, -rows.level, rows.advantages, rows.mask, threshold=threshold
    )
    return jnp.where(gone[:, None], 0, ppo(ratios, rows))


def rl_plus_denominator(scored):
    blind = surrogates.blind_mixture_logp(scored.logp_old, scored.mask)
    return jnp.where(needed(scored, "demonstrated")[:, None], blind, scored.logp_old)


def demonstrated(scored):
    """1 on tokens of demonstrations."""
    shown = needed(scored, "demonstrated")[:, None]
    return jnp.broadcast_to(shown, scored.mask.shape).astype(jnp.float32)


def rl_plus(ratios, rows):
    """No clip; demonstrated tokens by ``(1 − π)^γ`` of the policy as it is now."""
    now = ratios + rows.logp_old
    explored = advantages.exploration_advantages(rows.advantages, now, rows.mask)
    values = jnp.where(rows.level > 0, explored, rows.advantages)
    return surrogates.ratio_surrogate(ratios, values, rows.mask)


def entropy_level(scored):
    return advantages.relative_entropy_level(
        needed(scored, "entropy"), scored.mask, pivot=0.8
    )


def hapo(ratios, rows):
    values = advantages.redistributed_advantages(
        rows.advantages, rows.level, ratios, rows.mask
    )
    low, high = surrogates.adaptive_clip(rows.level)
    return surrogates.dual_clip_surrogate(
        ratios, values, rows.mask, clip_low=low, clip_high=high, cap=10.0
    )


def targeted_entropy(scored):
    """The mean entropy of the trained tokens, on each row so that rows may be split."""
    kept = s.mixed(scored)
    mean = reduce.divide(*reduce.token_mean(needed(scored, "entropy"), kept))
    return jnp.broadcast_to(mean, scored.mask.shape[:1])


def mean_length(scored):
    """Tokens a trained completion, on each token."""
    kept = s.mixed(scored)
    rows = jnp.sum(jnp.any(kept, axis=-1), dtype=jnp.float32)
    mean = reduce.divide(jnp.sum(kept, dtype=jnp.float32), rows)
    return jnp.broadcast_to(mean, scored.mask.shape)


def ter(logp, entropy, rows):
    """``0.001 |H̄ − 0.55|`` in all: the reduction sums over tokens, so that each
    token has its share of the mean."""
    distance = surrogates.entropy_target_surrogate(
        entropy, rows.share[0], rows.mask, target=0.55
    )
    return 0.001 * reduce.divide(distance, rows.level)


def top_covariances(logp, rows):
    """KL-Cov: 1 on the two thousandths of the tokens of highest covariance."""
    covariance = surrogates.covariances(logp, rows.advantages, rows.mask)
    chosen = selection.top_tokens(covariance, rows.mask, fraction=2e-3)
    return chosen.astype(jnp.float32)


def kl_cov(ratios, rows):
    chosen = rows.mask & (rows.level > 0)
    plain = surrogates.ratio_surrogate(ratios, rows.advantages, rows.mask)
    return plain + estimators.absolute_log_ratio(ratios, jnp.zeros_like(ratios), chosen)


def draws(scored):
    """Clip-Cov: numbers in (0, 1] by which it chooses among high covariances."""
    return 1 - jax.random.uniform(needed(scored, "key"), scored.mask.shape)


def chosen_covariances(logp, rows):
    """Clip-Cov: the draws, negative on tokens that lose their gradient."""
    drawn = jnp.abs(rows.level)
    covariance = surrogates.covariances(logp, rows.advantages, rows.mask)
    # What PPO clips anyway has no gradient to lose.
    movement = jnp.expm1(logp - rows.logp_old)
    up, down = (rows.advantages > 0), (rows.advantages < 0)
    clipped = (up & (movement > 0.2)) | (down & (movement < -0.2))
    covariance = jnp.where(clipped, -jnp.inf, covariance)
    dropped = surrogates.clip_cov_dropped(drawn, covariance, rows.mask)
    return jnp.where(dropped, -drawn, drawn)


def clip_cov(ratios, rows):
    return jnp.where(rows.level < 0, 0, ppo(ratios, rows))


def rapo_share(scored):
    """φ rises with the reward."""
    needed(scored, "logp_ref")
    return jnp.clip(scored.rewards, 0, 1).reshape(-1)


def rapo(logp, entropy, rows):
    term = surrogates.forward_exploration_surrogate(
        logp, rows.logp_ref, rows.share, rows.mask
    )
    penalty = rows.beta[:, None] * term
    return penalty - 0.001 * reduce.masked(entropy, rows.mask)


def behaviour(scored):
    """Ratios are to what sampled each row, older or under another prompt."""
    return needed(scored, "logp_behaviour")


def entropy_bonus(logp, entropy, rows, *, coefficient):
    return -coefficient * reduce.masked(entropy, rows.mask)


def root(ratios, rows, *, draws):
    """CoT2: the draws' root of their product."""
    return s.by(surrogates.ppo_surrogate, clip_low=0.1, clip_high=0.1)(
        ratios / draws, rows
    )


def kdrl_share(scored):
    return (
        selection.unsolved_completions(correct(scored)).astype(jnp.float32).reshape(-1)
    )


def stored(scored):
    """Rows that the reference wrote are regularised only."""
    return needed(scored, "demonstrated")


def dads(scored):
    right = correct(scored)
    weight = controllers.difficulty_weights(jnp.mean(right, axis=-1))
    return jnp.where(right, weight[:, None], 1).reshape(-1)
