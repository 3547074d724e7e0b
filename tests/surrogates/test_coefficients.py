"""The universal test: ∇L = −Σ u · c · ∇log π, with u and c written by hand.

Every rule at every level it is used at, under every reduction, on random ragged
off-policy rows; c and u in NumPy and float64 from the table of the reference notes,
§0.1, and nothing of the package.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import reduce, surrogates
from tests.close import EPS, assert_close

B, T = 6, 5
KEYS = jax.random.split(jax.random.key(5), 3)
OLD = -jax.random.exponential(KEYS[0], (B, T))
LOGP = OLD + 0.5 * jax.random.normal(KEYS[1], (B, T))
ADVANTAGES = jnp.repeat(jax.random.normal(KEYS[2], (B, 1)), T, axis=1)
MASK = jnp.arange(T)[None] < jnp.array([5, 4, 3, 2, 1, 0])[:, None]

m = np.asarray(MASK)
n = np.maximum(m.sum(1, keepdims=True), 1)
d = np.where(m, np.float64(LOGP) - np.float64(OLD), 0)
a = np.float64(ADVANTAGES)
r, product, s = (
    np.exp(d),
    np.exp(d.sum(1, keepdims=True)),
    np.exp(d.sum(1, keepdims=True) / n),
)


def ppo(r, low=0.2, high=0.2):
    return r * a * ~(((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 1 - low)))


def sapo():
    tau = np.where(a > 0, 1.0, 1.05)
    sigma = 1 / (1 + np.exp(-tau * (r - 1)))
    return 4 * sigma * (1 - sigma) * r * a


def vespo():
    k, lam = np.where(a > 0, 2, 3), np.where(a > 0, 3, 2)
    return np.exp(lam) * product**k * np.exp(-lam * product) * a


def gmpo():
    clipped = np.where(a > 0, np.minimum(d, 0.4), np.maximum(d, -0.4))
    mean = np.where(m, clipped, 0).sum(1, keepdims=True) / n
    return np.exp(mean) * a * (clipped == d)


TOKEN = reduce.log_ratio
SEQUENCE = surrogates.sequence_log_ratio
GEOMETRIC = surrogates.geometric_log_ratio


def weighted(level, rule, **bounds):
    """A sequence's weight on each token's own score."""

    def loss(ratios):
        own = surrogates.token_gradient(level(ratios, MASK), ratios)
        return rule(own, ADVANTAGES, MASK, **bounds)

    return loss


def at(level, rule, **bounds):
    return lambda ratios: rule(level(ratios, MASK), ADVANTAGES, MASK, **bounds)


def token(rule, **bounds):
    return lambda ratios: rule(ratios, ADVANTAGES, MASK, **bounds)


def gmpo_loss(ratios):
    clipped = surrogates.clipped_log_ratio(ratios, ADVANTAGES, MASK)
    return surrogates.ratio_surrogate(GEOMETRIC(clipped, MASK), ADVANTAGES, MASK)


# name: (loss, c). For sequence levels whose ratio reaches every token, c holds under
# the mean over tokens, where each token's share is 1/n of n equal losses.
PER_TOKEN = {
    "pg": (token(surrogates.policy_gradient_surrogate), a),
    "ratio": (token(surrogates.ratio_surrogate), r * a),
    "ppo": (token(surrogates.ppo_surrogate), ppo(r)),
    "dapo": (
        token(surrogates.ppo_surrogate, clip_low=0.2, clip_high=0.28),
        ppo(r, 0.2, 0.28),
    ),
    "dual": (
        token(surrogates.dual_clip_surrogate, cap=1.5),
        ppo(r) * ~((a < 0) & (r > 1.5)),
    ),
    "cispo": (
        token(surrogates.cispo_surrogate, clip_high=0.28),
        np.clip(r, 0, 1.28) * a,
    ),
    "sapo": (token(surrogates.sapo_surrogate), sapo()),
    "topr": (
        weighted(SEQUENCE, surrogates.topr_surrogate),
        np.where(a >= 0, 1, np.clip(product, 0, 1)) * a,
    ),
    "vespo": (weighted(SEQUENCE, surrogates.vespo_surrogate), vespo()),
    "gspo-token": (
        lambda ratios: surrogates.ppo_surrogate(
            surrogates.geometric_token_log_ratio(ratios, MASK), ADVANTAGES, MASK
        ),
        ppo(s),
    ),
}
PER_SEQUENCE = {
    "gspo": (at(GEOMETRIC, surrogates.ppo_surrogate), ppo(s) / n),
    "gmpo": (gmpo_loss, gmpo() / n),
    "seqIS": (at(SEQUENCE, surrogates.ratio_surrogate), product * a),
    "rloo": (at(SEQUENCE, surrogates.ppo_surrogate), ppo(product)),
}
TOKENS = np.repeat(m.reshape(3, 2, T).sum((1, 2)), 2)[:, None]
REDUCTIONS = {
    "token_mean": (reduce.token_mean, 1 / m.sum()),
    "sequence_mean_token_mean": (reduce.sequence_mean_token_mean, 1 / (5 * n)),
    "sequence_mean_token_sum": (reduce.sequence_mean_token_sum, 1 / 5),
    "constant_length_mean": (
        lambda x, y: reduce.constant_length_mean(x, y, length=8),
        1 / (5 * 8),
    ),
    "group_token_mean": (
        lambda x, y: reduce.group_token_mean(
            x, y, reduce.group_tokens(y, completions=2)
        ),
        1 / (3 * TOKENS),
    ),
}


def gradient(loss, reduction):
    def total(logp):
        return reduce.divide(*reduction(loss(TOKEN(logp, OLD, MASK)), MASK))

    return total


@pytest.fixture(scope="module")
def token_gradients():
    """All losses and reductions at once: one compilation."""

    @jax.jit
    def all_of_them(logp):
        return {
            (name, kind): jax.grad(gradient(loss, reduction))(logp)
            for name, (loss, _) in PER_TOKEN.items()
            for kind, (reduction, _) in REDUCTIONS.items()
        }

    return all_of_them(LOGP)


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("name", PER_TOKEN)
def test_autodiff_is_minus_u_c(token_gradients, name, kind):
    expected = -np.where(m, PER_TOKEN[name][1] * REDUCTIONS[kind][1], 0)
    assert np.abs(expected).sum() > 0
    actual = token_gradients[name, kind]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_sequence_rules_are_means_over_completions(name):
    loss, coefficient = PER_SEQUENCE[name]
    actual = jax.grad(gradient(loss, reduce.sequence_mean_token_mean))(LOGP)
    expected = -np.where(m, coefficient / 5, 0)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-7)


def test_gspo_of_one_token_is_ppo():
    one = jnp.arange(T)[None] < jnp.ones((B, 1), int)

    def loss(logp, level):
        ratios = level(TOKEN(logp, OLD, one), one)
        return jnp.sum(surrogates.ppo_surrogate(ratios, ADVANTAGES, one))

    same = jax.grad(lambda x: loss(x, GEOMETRIC))(LOGP)
    plain = jax.grad(lambda x: loss(x, lambda x, _: x))(LOGP)
    assert_close(same, plain, rel=8 * EPS)


def test_topr_on_policy_is_reinforce():
    def loss(logp):
        ratios = TOKEN(logp, logp, MASK)
        own = surrogates.token_gradient(SEQUENCE(ratios, MASK), ratios)
        return jnp.sum(surrogates.topr_surrogate(own, ADVANTAGES, MASK))

    np.testing.assert_allclose(jax.grad(loss)(LOGP), -np.where(m, a, 0), rtol=1e-6)


@pytest.mark.parametrize("delta", [1.5, 3.0])
def test_trl_two_sided_bound_is_dual_clip(delta):
    """TRL clamps the ratio to δ before the minimum; reference A2."""
    ratio = np.exp(np.linspace(-3, 3, 200))
    value = np.linspace(-2, 2, 200)[np.random.default_rng(0).permutation(200)]
    clipped = np.clip(ratio, 0.8, 1.2) * value
    trl = -np.minimum(np.minimum(ratio, delta) * value, clipped)
    actual = surrogates.dual_clip_surrogate(
        jnp.log(jnp.array(ratio)), jnp.array(value), jnp.ones(200, bool), cap=delta
    )
    np.testing.assert_allclose(actual, trl, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drift", [-50.0, 50.0, 300.0])
@pytest.mark.parametrize("advantage", [1e6, -1e6])
def test_extreme_ratios_are_finite(drift, advantage):
    """Log-ratios of ±50 and far beyond, rewards of 1e6: no NaN, no infinity."""
    shape = jnp.ones((2, 3))
    some = jnp.arange(3)[None] < jnp.array([3, 0])[:, None]

    @jax.jit
    def losses(ratios):
        values = {
            name: rule(ratios, advantage * shape, some, **bounds)
            for name, rule, bounds in [
                ("ratio", surrogates.ratio_surrogate, {}),
                ("ppo", surrogates.ppo_surrogate, {}),
                ("dual", surrogates.dual_clip_surrogate, {}),
                ("cispo", surrogates.cispo_surrogate, {"clip_high": 0.3}),
                ("topr", surrogates.topr_surrogate, {}),
                ("sapo", surrogates.sapo_surrogate, {}),
                ("vespo", surrogates.vespo_surrogate, {}),
            ]
        }
        values["gmpo"] = surrogates.ratio_surrogate(
            surrogates.clipped_log_ratio(ratios, advantage * shape, some),
            advantage * shape,
            some,
        )
        return values

    start = drift * shape
    for name, value in losses(start).items():
        assert np.isfinite(value).all(), name
        assert not value[1].any(), name
    jacobian = jax.jit(jax.jacrev(losses))(start)
    for name, value in jacobian.items():
        assert np.isfinite(value).all(), name
    if advantage < 0 and drift > 0:
        # A bad token that has become likely is pushed down, never let go.
        for name in ("ratio", "ppo", "cispo", "topr"):
            assert (np.einsum("btbt->bt", jacobian[name])[0] > 0).all(), name
