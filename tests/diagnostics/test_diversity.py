"""Diversity of completions, by hand and by a loop over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import diagnostics


def test_distinct_by_hand():
    tokens = np.array([[[1, 2, 1, 2], [1, 2, 9, 9]], [[3, 0, 0, 0], [3, 0, 0, 0]]])
    mask = np.array([[[1, 1, 1, 1], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]]])
    one, two = (diagnostics.distinct(tokens, mask > 0, n=n) for n in (1, 2))
    np.testing.assert_allclose(one, [2 / 6, 1 / 2])
    np.testing.assert_allclose(two, [2 / 4, np.nan])


def test_self_bleu_by_hand():
    """One of six words against another that differs in the last: the precisions are
    5/6, 4/5, 3/4, 2/3 both ways, there is no penalty, and BLEU is (1/3)^(1/4)."""
    pytest.importorskip("sacrebleu")
    first, second = "the cat sat on a mat", "the cat sat on a log"
    values = diagnostics.self_bleu(
        [[first] * 3, [first, second], [first, "ten green bottles"], [first, " "], []]
    )
    np.testing.assert_allclose(values[:2], [1, (1 / 3) ** 0.25], rtol=1e-6)
    assert values[2] < 0.1
    assert np.isnan(values[3:]).all()


def test_embedding_diversity_against_a_loop():
    """As in verbalized sampling's code, pair by pair; a zero vector has no angle."""
    x = np.array(jax.random.normal(jax.random.key(0), (3, 4, 2)))
    x[0, 1] = 0
    expected = []
    for rows in x.astype(np.float64):
        pairs = []
        for i in range(4):
            for j in range(i + 1, 4):
                size = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
                cosine = rows[i] @ rows[j] / size if size else 0
                pairs.append(1 - np.clip(cosine, 0, 1))
        expected.append(np.mean(pairs))
    values, gradient = jax.jit(
        lambda x: (
            diagnostics.embedding_diversity(x),
            jax.grad(lambda y: diagnostics.embedding_diversity(y).sum())(x),
        )
    )(jnp.asarray(x))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert np.isnan(diagnostics.embedding_diversity(jnp.ones((1, 2))))
