"""Self-Critique's score by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from alignax import diagnostics


def test_similarity_by_hand():
    """Reference B23: (1, .5, .2, .1) against (1, .5) is .490290; the same is 1; at a
    right angle, or nothing, is 0."""
    curve = jnp.array([1.0, 0.5, 0.2, 0.1])
    first = jnp.array([[1.0, 0.5, 0.2, 0.1], [1.0, 0.5, 7.0, 7.0], [1.0, 0, 0, 0]])
    mask = jnp.arange(4)[None] < jnp.array([4, 2, 2])[:, None]
    second = jnp.array([[1.0, 0.5, jnp.nan], [1.0, 0.5, 3.0], [0.0, 1.0, 3.0]])
    second_mask = jnp.array([[True, True, False]] * 3)
    of = jax.jit(diagnostics.entropy_similarity)
    values = of(first, mask, second, second_mask)
    norms = np.linalg.norm(curve) * np.linalg.norm(curve[:2])
    by_hand = (1.0 + 0.25) / norms * 2 / 4
    np.testing.assert_allclose(by_hand, 0.490290, atol=1e-6)
    np.testing.assert_allclose(values, [by_hand, 1, 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(of(first, mask, second, mask[:, :3] & False), 0)
