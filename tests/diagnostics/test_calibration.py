"""Calibration against loops over bins, and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import diagnostics
from alignax.types import InputError

# Compiled whole: much faster here than operation by operation.
equal_mass = jax.jit(diagnostics.calibration_error_equal_mass, static_argnames="bins")
equal_width = jax.jit(diagnostics.calibration_error_equal_width, static_argnames="bins")


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


@pytest.mark.parametrize("bins", [1, 10])
def test_equal_width_against_a_loop(bins):
    """Guo et al., arXiv 1706.04599, with edges as theirs: above one, up to the next."""
    confidence, correct, mask = data()
    confidence = confidence.at[:4].set(jnp.array([0.0, 0.5, 0.6, 1.0]))
    error = equal_width(confidence, correct, mask.at[:4].set(True), bins=bins)
    mask = np.array(mask)
    mask[:4] = True
    c, y = np.array(confidence)[mask], np.array(correct)[mask]
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    groups = [
        np.flatnonzero(((c > low) | ((low == 0) & (c == 0))) & (c <= high))
        for low, high in itertools.pairwise(edges)
    ]
    assert sum(map(len, groups)) == mask.sum()
    np.testing.assert_allclose(error, by_loop(groups, c, y), rtol=1e-5)


def test_brier_score_is_proper():
    """Of what is right with probability p: p (1 − p) at p, by expectation over both
    outcomes, and more by (p − c)² at another confidence c."""
    p, others = 0.3, jnp.linspace(0, 1, 11)
    of = jax.vmap(
        lambda c, right: diagnostics.brier_score(c[None], right[None], right[None] >= 0)
    )
    right, wrong = (of(others, jnp.full(11, x)) for x in (True, False))
    expected = p * (1 - p) + (np.linspace(0, 1, 11) - p) ** 2
    np.testing.assert_allclose(p * right + (1 - p) * wrong, expected, rtol=1e-5)
