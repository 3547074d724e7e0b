"""Losses of reward models, ensembles and reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import preference as pf
from alignax.types import InputError
from tests.close import EPS


def test_bradley_terry_ignores_a_shift():
    """``r + c`` has the same loss; the gradient is ``−σ(−(r_w − r_l − m))``."""
    w, l = jnp.array([0.3, -2.0]), jnp.array([1.0, -2.5])
    loss = pf.bradley_terry_loss
    np.testing.assert_allclose(loss(w + 7, l + 7), loss(w, l), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(loss(x, l, 0.5)))(w)
    np.testing.assert_allclose(slope, -jax.nn.sigmoid(-(w - l - 0.5)), rtol=1e-5)
    centred = loss(w, l, centring=0.1) - loss(w, l)
    np.testing.assert_allclose(centred, 0.1 * (w + l) ** 2, rtol=1e-4)


def test_ties_probabilities_sum_to_one():
    """Rao-Kupper: win, loss and tie exhaust the outcomes; θ → 0 is Bradley-Terry."""
    a, b = jnp.array([0.3, -4.0, 50.0]), jnp.array([0.1, 2.0, 0.0])
    total = sum(
        jnp.exp(-pf.ties_loss(a, b, jnp.full(3, outcome), threshold=0.4))
        for outcome in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    near = pf.ties_loss(a, b, jnp.ones(3), threshold=1e-6)
    np.testing.assert_allclose(near, pf.bradley_terry_loss(a, b), rtol=1e-4, atol=1e-5)
    assert np.isfinite(pf.ties_loss(a * 1e4, b, jnp.full(3, 0.5), threshold=9.0)).all()
    with pytest.raises(InputError, match="threshold must be positive"):
        pf.ties_loss(a, b, a, threshold=0.0)


def test_binary_feedback_is_best_at_the_rate():
    """RLUF, arXiv 2505.14946: the optimum is the empirical rate of reactions."""
    rate = jnp.array(0.3)
    at = jnp.log(rate / (1 - rate))
    slope = jax.grad(pf.binary_feedback_loss)(at, rate)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert np.isfinite(
        pf.binary_feedback_loss(jnp.array([-1e4, 1e4]), jnp.ones(2))
    ).all()


MEMBERS = jnp.array([[1, 2, 0], [1.2, 3.5, 0.1], [0.8, -0.5, 0.2]]).T


def test_ensemble_golden_values():
    """Coste et al., arXiv 2310.02743: three members, three completions; the
    uncertainty-weighted choice is another than the mean's."""
    np.testing.assert_allclose(pf.ensemble_mean(MEMBERS), [1, 5 / 3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(pf.ensemble_worst(MEMBERS), [0.8, -0.5, 0])
    uncertain = pf.ensemble_uncertain(MEMBERS, weight=0.5)
    expected = [0.986666666667, 0.305555555556, 0.096666666667]
    np.testing.assert_allclose(uncertain, expected, rtol=1e-5)
    assert np.argmax(pf.ensemble_mean(MEMBERS)) == 1
    assert np.argmax(uncertain) == 0
    assert (pf.ensemble_worst(MEMBERS) <= pf.ensemble_mean(MEMBERS)).all()


def test_standardise():
    """Zero mean and unit deviation on the reference; a constant member is centred."""
    reference = jnp.array([[0.0, 5.0], [4.0, 5.0]])
    own = pf.standardise(reference, reference)
    np.testing.assert_allclose(own, [[-1, 0], [1, 0]], rtol=4 * EPS)
    slope = jax.grad(lambda r: jnp.sum(pf.standardise(r, r) ** 2))(reference)
    assert np.isfinite(slope).all()


def test_agreement_report():
    """Accuracy with ties half, the mean margin, NLL, and a calibration error that is
    that of a coin: margins with confidence ¾, right three times out of four."""
    margin = np.log(3.0)
    margins = jnp.array([margin, margin, margin, -margin, jnp.nan])
    mask = jnp.array([True] * 4 + [False])
    report = pf.agreement(margins, mask, bins=1)
    assert report.accuracy == 0.75
    np.testing.assert_allclose(report.margin, margin / 2, rtol=1e-6)
    nll = (3 * np.log(4 / 3) + np.log(4)) / 4
    np.testing.assert_allclose(report.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(report.calibration_error, 0, atol=1e-6)
    tie = pf.agreement(jnp.zeros(2), jnp.ones(2, bool))
    assert tie.accuracy == 0.5


def test_pairwise_agreement():
    """The share of pairs that two models rank alike."""
    mask = jnp.array([True, True, True, False])
    found = pf.pairwise_agreement(
        jnp.array([1.0, -1.0, 2.0, 1.0]), jnp.array([3.0, 1.0, 0.1, -1.0]), mask
    )
    np.testing.assert_allclose(found, 2 / 3, rtol=1e-6)
