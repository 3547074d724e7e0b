"""The two-level inverse of the distribution function, and truncation without a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from alignax import sampling
from alignax.types import InputError
from tests.close import EPS


@pytest.mark.parametrize("size", [3, 128, 300])
def test_a_grid_of_uniforms_draws_each_token_in_proportion(size):
    """Masses in 1/n-ths of a block, blocks in m-ths: midpoints give exact counts."""
    rng = np.random.default_rng(size)
    blocks = -(-size // 128)
    counts = rng.multinomial(16, np.full(size, 1 / size))
    owner = np.arange(size) // 128
    sums = np.bincount(owner, counts, blocks)
    n, m = 16, int(np.prod(sums[sums > 0]))
    grid = np.stack(
        np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(m) + 0.5) / m), axis=-1
    ).reshape(-1, 2)
    logits = np.where(counts > 0, np.log(np.maximum(counts, 1)), -np.inf)
    logits = np.broadcast_to(logits, (len(grid), size)).astype(np.float32)
    tokens, normaliser = jax.jit(sampling.inverse_cdf)(np.float32(grid), logits)
    drawn = np.bincount(tokens, minlength=size)
    np.testing.assert_array_equal(drawn * 16, counts * len(grid))
    np.testing.assert_allclose(normaliser, np.log(16), rtol=1e-6)


def test_draws_of_a_large_vocabulary_follow_the_law():
    """χ² over 5,000 tokens in bins of equal mass, at a fixed seed."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal(5000).astype(np.float32)
    law = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()
    uniforms = jax.random.uniform(jax.random.key(0), (20_000, 2))
    tokens, normaliser = jax.jit(
        lambda u: sampling.inverse_cdf(u, jnp.broadcast_to(logits, (len(u), 5000)))
    )(uniforms)
    np.testing.assert_allclose(normaliser[0], np.log(np.exp(logits).sum()), rtol=1e-6)
    bins = np.minimum((np.cumsum(law) * 100).astype(int), 99)
    expected = 20_000 * np.bincount(bins, law, 100)
    seen = np.bincount(bins[np.asarray(tokens)], minlength=100)
    kept = expected > 5
    observed = np.append(seen[kept], seen[~kept].sum())
    hoped = np.append(expected[kept], expected[~kept].sum())
    if not hoped[-1]:
        observed, hoped = observed[:-1], hoped[:-1]
    assert stats.chisquare(observed, hoped).pvalue > 1e-3


def test_extremes_draw_what_has_mass():
    nearly = np.float32(1 - 2**-24)
    corners = np.array([(u, v) for u in (0, nearly) for v in (0, nearly)], np.float32)
    for alive in ([0], [127], [128], [299], [5, 200], range(300)):
        logits = np.full((4, 300), -np.inf, np.float32)
        logits[:, list(alive)] = np.random.default_rng(0).standard_normal(len(alive))
        tokens, _ = sampling.inverse_cdf(jnp.asarray(corners), jnp.asarray(logits))
        assert set(np.asarray(tokens)) <= set(alive)
        assert tokens[0] == min(alive)
        assert tokens[-1] == max(alive)


def test_logits_far_from_zero():
    logits = jnp.array([[-1e4, -1e4 + 1, -2e4], [3e38, 0, -3e38]])
    tokens, normaliser = sampling.inverse_cdf(jnp.full((2, 2), 0.9), logits)
    np.testing.assert_array_equal(tokens, [1, 0])
    np.testing.assert_allclose(normaliser, [-1e4 + 1.313262, 3e38], rtol=4 * EPS)


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_is_the_sorted_definition(p):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((40, 50)).astype(np.float32) * rng.choice(
        [0.1, 1, 5], (40, 1)
    )
    kept = np.asarray(jax.jit(lambda x: sampling.top_p(x, p=p))(logits)) > -np.inf
    for row, mine in zip(np.float64(logits), kept, strict=True):
        law = np.exp(row - row.max())
        law /= law.sum()
        order = np.argsort(-law)
        before = np.cumsum(law[order]) - law[order]
        # A token whose mass before it is p to float32's rounding may go either way.
        clear = np.abs(before - p) > 1e-6
        np.testing.assert_array_equal(mine[order][clear], (before < p)[clear])


def test_top_p_keeps_ties_and_takes_any_batch():
    logits = jnp.zeros((2, 3, 4)).at[1, 1, 2].set(9.0)
    kept = sampling.top_p(logits, p=0.3) > -jnp.inf
    assert kept[0].all()
    np.testing.assert_array_equal(kept[1, 1], [False, False, True, False])


def test_a_support_restricts_other_logits_alike():
    rng = np.random.default_rng(2)
    for size in (1, 8, 13, 50):
        law, other = rng.standard_normal((2, 4, 3, size)).astype(np.float32)
        law = sampling.top_p(jnp.asarray(law), p=0.5)
        bits = sampling.support_bits(law)
        assert bits.dtype == np.uint8
        assert bits.shape == (4, 3, -(-size // 8))
        kept = np.asarray(sampling.restricted(jnp.asarray(other), bits))
        np.testing.assert_array_equal(kept, np.where(np.isfinite(law), other, -np.inf))
        # Padding restricts nothing.
        blank = jnp.zeros_like(bits)
        np.testing.assert_array_equal(
            sampling.restricted(jnp.asarray(other), blank), other
        )
    with pytest.raises(InputError, match="support must have a bit for each of the 57"):
        sampling.restricted(jnp.zeros((4, 3, 57)), bits)
