"""KLoM against histograms by numpy and closed forms; data models against retraining."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import diagnostics
from alignax.types import InputError

EPS = 1e-5


def test_the_margin_is_the_log_odds():
    logits = jnp.array([[1.0, -2.0, 0.5], [300.0, 0.0, 0.0]])
    p = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    values = diagnostics.margin(logits, jnp.array([2, 0]))
    expected = [math.log(p[2] / (1 - p[2])), 300 - math.log(2)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("unlearned", "expected"),
    [
        ([0.0] * 100, math.log((1 + EPS) / EPS)),
        ([1.0] * 100, 0.0),
        ([0.0] * 50 + [1.0] * 50, math.log((1 + EPS) / 2) + math.log(1 / EPS) / 2),
    ],
)
def test_klom_of_two_bins(unlearned, expected):
    """Retrained models that all have one margin: the floor of q and its norm are in
    the value, and the order is KL(unlearned‖retrained)."""
    value = diagnostics.klom(jnp.array(unlearned), jnp.ones(100))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_klom_against_numpy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(3, 60)), 0.7 * rng.normal(size=(3, 90)) + 0.5
    ours[2] *= 500
    expected = []
    for a, b in zip(ours.clip(-100, 100), theirs.clip(-100, 100), strict=True):
        edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), 21)
        p, q = (np.histogram(x, edges)[0] / len(x) for x in (a, b))
        q = np.where(p > 0, np.maximum(q, EPS), q)
        q = q / q.sum()
        expected.append((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
    values = diagnostics.klom(jnp.asarray(ours, "f4"), jnp.asarray(theirs, "f4"))
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert np.isnan(diagnostics.klom(jnp.array([jnp.nan, 0.0]), jnp.ones(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bins": 0}, "bins"), ({"floor": 0.0}, "floor"), ({"limit": -1.0}, "limit")],
)
def test_klom_refuses(options, message):
    with pytest.raises(InputError, match=f"{message} must be"):
        diagnostics.klom(jnp.ones(2), jnp.ones(2), **options)


def test_data_models_against_retraining():
    """Exact of a set by Woodbury and of one by its effect; effects that are added are
    not exact of a set; matching the exact outputs gives the retrained model."""
    rng = np.random.default_rng(1)
    x, queries = rng.normal(size=(12, 3)), rng.normal(size=(5, 3))
    y, penalty = rng.normal(size=12), 0.3
    mask, forget = np.arange(12) < 11, np.arange(12) % 3 == 0

    def retrained(kept):
        gram = x[kept].T @ x[kept] + penalty * np.eye(3)
        return np.linalg.solve(gram, x[kept].T @ y[kept])

    with jax.enable_x64(True):
        given = [*map(jnp.asarray, (x, y, mask))]
        full = np.asarray(diagnostics.ridge(*given, penalty=penalty))
        np.testing.assert_allclose(full, retrained(mask), rtol=1e-9)
        truth = retrained(mask & ~forget)
        outputs = diagnostics.left_out_outputs(
            *given, jnp.asarray(forget), jnp.asarray(queries), penalty=penalty
        )
        np.testing.assert_allclose(outputs, queries @ truth, rtol=1e-9)
        params = diagnostics.matched(jnp.asarray(full), jnp.asarray(queries), outputs)
        np.testing.assert_allclose(params, truth, rtol=1e-8)
        effects = np.asarray(
            diagnostics.datamodel(*given, jnp.asarray(queries), penalty=penalty)
        )
    alone = np.arange(12)[:, None] != np.arange(12)
    singles = np.stack([queries @ retrained(mask & row) for row in alone], -1)
    np.testing.assert_allclose((queries @ full)[:, None] - effects, singles, rtol=1e-8)
    added = queries @ full - effects @ forget
    assert np.abs(added - queries @ truth).max() > 0.005


def test_matching_moves_no_more_than_it_must():
    """One query of two features: what it does not see stays."""
    params = diagnostics.matched(
        jnp.array([1.0, 5.0]), jnp.array([[2.0, 0.0]]), jnp.array([6.0])
    )
    np.testing.assert_allclose(params, [3.0, 5.0], rtol=1e-6)
