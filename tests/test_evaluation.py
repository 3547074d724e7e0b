"""pass@k against counting."""

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
