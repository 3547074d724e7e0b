"""pass@k against counting, calibration against loops over bins."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import evaluation
from alignax.types import InputError

# Compiled whole: much faster here than operation by operation.
pass_at_k = jax.jit(evaluation.pass_at_k, static_argnames=("samples", "k"))
equal_mass = jax.jit(evaluation.calibration_error_equal_mass, static_argnames="bins")


def counted(n, c, k):
    """The share of the k-subsets of n completions that hold one of the c right."""
    subsets = list(itertools.combinations(range(n), k))
    return sum(min(subset) < c for subset in subsets) / len(subsets)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (8, 3), (8, 8)])
def test_pass_at_k_counts_subsets(n, k):
    values = pass_at_k(jnp.arange(n + 1), samples=n, k=k)
    expected = [counted(n, c, k) for c in range(n + 1)]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def test_pass_at_k_of_the_reference():
    """Reference C12; Chen et al., arXiv 2107.03374."""
    cases = [
        (10, 3, 1, 0.3),
        (10, 3, 2, 0.533333),
        (10, 3, 5, 0.916667),
        (10, 8, 5, 1.0),
        (256, 1, 64, 0.25),
    ]
    for n, c, k, value in cases:
        result = pass_at_k(jnp.array(c), samples=n, k=k)
        np.testing.assert_allclose(result, value, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "c", "k"), [(1024, 1, 8), (1024, 3, 512), (4096, 1, 1), (512, 200, 256)]
)
def test_pass_at_k_against_integers(n, c, k):
    """To float32's rounding; ``gammaln`` in float32 is 0.4 % off at (1024, 1, 8)."""
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    value = pass_at_k(jnp.array(c), samples=n, k=k)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    gammaln = jax.scipy.special.gammaln
    x, y = jnp.float32(n - c), jnp.float32(n)
    by_gamma = -jnp.expm1(
        gammaln(x + 1) - gammaln(x - k + 1) - gammaln(y + 1) + gammaln(y - k + 1)
    )
    if c == 1 and k == 8:
        assert abs(by_gamma / expected - 1) > 1e-3


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    """Reference C12: Σ_c Bin(5, .3)(c) ρ(5, c, 2) = .51 = 1 − .7²; the plug-in
    1 − (1 − c/n)^k has another mean, and is .51, .831930 at n = 10, c = 3."""
    n, p, k = 5, 0.3, 2
    c = np.arange(n + 1)
    chances = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    values = pass_at_k(jnp.array(c), samples=n, k=k)
    np.testing.assert_allclose(chances @ values, 0.51, rtol=1e-6)
    plug_in = chances @ (1 - (1 - c / n) ** k)
    np.testing.assert_allclose(plug_in, 0.51 - p * (1 - p) / n)
    np.testing.assert_allclose(1 - 0.7**2, 0.51)
    np.testing.assert_allclose(1 - 0.7**5, 0.831930, atol=1e-6)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_refuses(k):
    with pytest.raises(InputError, match="k must be"):
        pass_at_k(jnp.array([1]), samples=5, k=k)


def data(n=200):
    keys = jax.random.split(jax.random.key(0), 3)
    confidence = jax.random.beta(keys[0], 2.0, 1.0, (n,))
    correct = jax.random.uniform(keys[1], (n,)) < confidence**2
    return confidence, correct, jax.random.bernoulli(keys[2], 0.7, (n,))


def by_loop(groups, confidence, correct):
    total = sum(len(group) for group in groups)
    return sum(
        len(group) / total * abs(correct[group].mean() - confidence[group].mean())
        for group in groups
        if len(group)
    )


@pytest.mark.parametrize("bins", [1, 5, 9])
def test_equal_mass_against_a_loop(bins):
    """Nixon et al., arXiv 1904.01685."""
    confidence, correct, mask = data()
    error = equal_mass(confidence, correct, mask, bins=bins)
    c, y = np.array(confidence, np.float64)[mask], np.array(correct)[mask]
    order = np.argsort(c, kind="stable")
    groups = [[] for _ in range(bins)]
    for rank, sample in enumerate(order):
        groups[rank * bins // len(order)].append(sample)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_allclose(error, by_loop(groups, c, y), rtol=1e-5)


def test_calibrated_and_miscalibrated():
    n = 1000
    confidence = jnp.repeat(jnp.array([0.25, 0.75]), n // 2)
    correct = jnp.tile(jnp.arange(4) < 1, n // 8)
    correct = jnp.concatenate([correct, ~correct])
    everyone = jnp.ones(n, bool)
    np.testing.assert_allclose(
        equal_mass(confidence, correct, everyone, bins=2), 0, atol=1e-6
    )
    np.testing.assert_allclose(
        equal_mass(1 - confidence, correct, everyone, bins=2), 0.5, rtol=1e-5
    )


def test_calibration_edges():
    ends = jnp.array([0.0, 1.0, 1.0])
    right = jnp.array([False, True, True])
    everyone = jnp.ones(3, bool)
    assert equal_mass(ends, right, everyone, bins=4) == 0
    assert equal_mass(ends, ~right, everyone, bins=4) == 1
    assert equal_mass(ends, right, ~everyone, bins=4) == 0
    with pytest.raises(InputError, match="bins"):
        equal_mass(ends, right, everyone, bins=0)


def test_gradient_within_a_bin():
    """One bin, too confident: each confidence adds 1/n; a masked one nothing."""
    confidence = jnp.array([0.9, 0.8, 0.7, 0.95])
    correct = jnp.array([True, False, False, True])
    mask = jnp.array([True, True, True, False])
    gradient = jax.grad(lambda c: equal_mass(c, correct, mask, bins=1))(confidence)
    np.testing.assert_allclose(gradient, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)
