"""Sums over the vocabulary: near the reference, off its support, their variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators

ON, FIRST = jnp.array([True]), jnp.array([True, False])


def truth(logits, logits_ref):
    p, q = (np.asarray(x, np.float64) for x in (logits, logits_ref))
    p, q = (x - np.log(np.sum(np.exp(x - x.max()))) - x.max() for x in (p, q))
    l = p - q
    return np.sum(np.exp(q) * (np.exp(l) * l - np.expm1(l)))


@pytest.mark.parametrize(("size", "noise"), [(1000, 1e-4), (50_000, 1e-3)])
def test_small_values_are_right_and_not_negative(size, noise):
    """Σ π log π/ρ in float32 is noise here: below zero, or wrong by all of it."""
    draw = np.random.default_rng(0)
    ref = draw.normal(size=(1, size)).astype(np.float32)
    logits = (ref + noise * draw.normal(size=ref.shape)).astype(np.float32)
    expected = truth(logits[0], ref[0])
    logits, ref = jnp.asarray(logits), jnp.asarray(ref)
    whole = estimators.rao_blackwell(logits, ref, ON)[0]
    np.testing.assert_allclose(whole, expected, rtol=2e-3)
    for k in (1, 64, size):
        bucket = estimators.top_k_bucket(logits, ref, ON, k=k)[0]
        assert 0 <= bucket <= expected * (1 + 2e-3)
    np.testing.assert_allclose(bucket, whole, rtol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        estimators.rao_blackwell,
        lambda *x: estimators.top_k_partial(*x, k=2),
        lambda *x: estimators.top_k_bucket(*x, k=1),
        lambda *x: estimators.top_k_bucket(*x, k=2),
        lambda p, q, m: estimators.top_k_sampled_tail(p, q, jnp.array([1, 2]), m, k=1),
        lambda p, q, m: estimators.top_k_sampled_tail(p, q, jnp.array([1, 0]), m, k=2),
    ],
)
def test_a_row_off_the_support_can_be_dropped(estimator):
    """Infinite there, and jnp.where afterwards leaves the other row's gradient."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    ref = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]])).at[1, 1].set(-jnp.inf)
    ref = ref.at[1, 2].set(-jnp.inf)
    mask = jnp.array([True, True])
    value = estimator(logits, ref, mask)
    assert np.isfinite(value[0])
    assert value[1] == np.inf

    def kept(logits):
        return jnp.sum(jnp.where(FIRST, estimator(logits, ref, mask), 0))

    grad = jax.grad(kept)(logits)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[1], 0)


def test_variance_of_the_sampled_tail_is_as_documented():
    """Var(k1) − Var = Var X − 2 H T, by enumeration; above k1's in a world of these."""
    worlds = [((0.5, 0.4999, 0.0001), (0.25, 0.25, 0.5))]
    draw = np.random.default_rng(1)
    worlds += [tuple(draw.dirichlet(np.ones(4), size=2)) for _ in range(20)]
    with jax.enable_x64(True):
        for number, (pi, rho) in enumerate(worlds):
            pi, l = np.array(pi), np.log(np.array(pi)) - np.log(np.array(rho))
            count = len(pi)
            logits = jnp.broadcast_to(jnp.log(pi), (count, count))
            ref = jnp.broadcast_to(jnp.log(jnp.array(rho)), (count, count))
            value = estimators.top_k_sampled_tail(
                logits, ref, jnp.arange(count), jnp.ones(count, bool), k=1
            )
            mean = pi @ l
            np.testing.assert_allclose(pi @ value, mean, rtol=1e-12)
            variance, of_k1 = pi @ (value - mean) ** 2, pi @ (l - mean) ** 2
            top = np.arange(count) == np.argmax(pi)
            x, head, tail = np.where(top, l, 0), pi[top] @ l[top], pi[~top] @ l[~top]
            gain = pi @ (x - head) ** 2 - 2 * head * tail
            np.testing.assert_allclose(of_k1 - variance, gain, atol=1e-12)
            if number == 0:
                np.testing.assert_allclose(
                    [variance, of_k1], [0.128, 0.0085], rtol=0.01
                )
