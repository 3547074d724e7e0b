"""The linear autoencoder's closed form, against its loss minimised and a likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from alignax import adjacent as ad
from alignax.types import InputError


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("eigenvalue", "beta", "decoder", "kl", "variance"),
    [(2, 1.0, 1.5, 0.693147, 0.25), (2, 2.0, 1, 0.346574, 0.5), (0.4, 1.0, 0, 0, 1)],
)
def test_numbers_of_one_axis(eigenvalue, beta, decoder, kl, variance):
    found = ad.linear_vae(
        jnp.array([float(eigenvalue)]), latents=1, noise=0.5, beta=beta
    )
    np.testing.assert_allclose(found.decoder, [decoder], atol=1e-12)
    np.testing.assert_allclose(found.kl, [kl], atol=5e-7)
    np.testing.assert_allclose(found.variance, [variance], rtol=1e-12)


EIGENVALUES = np.array([3.0, 1.2, 0.7, 0.3])
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))[0]
COVARIANCE = TURN @ np.diag(EIGENVALUES) @ TURN.T


def unpacked(x):
    return x[:12].reshape(4, 3), x[12:24].reshape(3, 4), x[24:]


def loss(x, beta):
    return ad.linear_vae_loss(
        *unpacked(x), jnp.asarray(COVARIANCE), noise=0.5, beta=beta
    )


def minimum(beta):
    both = jax.jit(jax.value_and_grad(lambda x: loss(x, beta)))
    start = np.random.default_rng(0).normal(size=27) / 3
    found = scipy.optimize.minimize(
        lambda x: tuple(map(np.asarray, both(jnp.asarray(x)))),
        start,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    )
    return jnp.asarray(found.x)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_minimum_is_the_closed_form(beta):
    """Three latents, axes of 3, 1.2, .7 and .3, σ² = .5: at β = 1 none collapses, at
    β = 2 one does."""
    best = ad.linear_vae(jnp.asarray(EIGENVALUES), latents=3, noise=0.5, beta=beta)
    x = minimum(beta)
    np.testing.assert_allclose(loss(x, beta), best.loss, rtol=1e-9)
    decoder, encoder, log_variance = map(np.asarray, unpacked(x))
    lengths = (decoder**2).sum(0)
    order = np.argsort(-lengths)
    np.testing.assert_allclose(lengths[order], best.decoder, atol=1e-4)
    np.testing.assert_allclose(np.exp(log_variance)[order], best.variance, atol=1e-4)
    np.testing.assert_allclose(
        decoder @ decoder.T,
        TURN[:, :3] @ np.diag(best.decoder) @ TURN[:, :3].T,
        atol=1e-4,
    )
    seen = np.einsum("kd,de,ke->k", encoder, COVARIANCE, encoder)
    kl = (seen + np.exp(log_variance) - log_variance - 1) / 2
    np.testing.assert_allclose(kl[order], best.kl, atol=1e-4)
    collapsed = np.asarray(best.kl) == 0
    np.testing.assert_array_equal(collapsed, EIGENVALUES[:3] <= beta * 0.5)
    assert collapsed.sum() == (beta == 2)


def test_at_one_the_loss_is_the_likelihood_of_probabilistic_pca():
    """``−E log N(x; 0, WWᵀ + σ²)`` at its own maximum: no gap is left; and the best σ²
    is the mean of the variances that no latent has."""
    eigenvalues = jnp.asarray(EIGENVALUES)
    best = ad.linear_vae(eigenvalues, latents=2, noise=0.5)
    model = np.array([3.0, 1.2, 0.5, 0.5])
    likelihood = -(np.log(2 * np.pi * model) + EIGENVALUES / model).sum() / 2
    np.testing.assert_allclose(best.loss, -likelihood, rtol=1e-12)
    slope = jax.grad(lambda s: ad.linear_vae(eigenvalues, latents=2, noise=s).loss)
    np.testing.assert_allclose(slope(0.5), 0, atol=1e-12)
    assert slope(0.4) < 0 < slope(0.6)


def test_loss_is_its_mean_over_data():
    """All of it by sums: data at ± the axes, z by Gauss-Hermite points."""
    w, v = np.array([0.7, -0.4]), np.array([0.5, 0.3])
    log_variance, noise, beta = -0.6, 0.8, 1.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    total = 0
    for x in np.sqrt(2) * np.array([[1, 0], [-1, 0], [0, 0.6], [0, -0.6]]):
        z = v @ x + np.exp(log_variance / 2) * nodes
        error = ((x[None] - z[:, None] * w) ** 2).sum(1) / noise
        log_q = -(nodes**2 + log_variance) / 2
        kl = log_q + z**2 / 2
        each = (error + 2 * np.log(2 * np.pi * noise)) / 2 + beta * kl
        total += weights @ each / 4
    found = ad.linear_vae_loss(
        jnp.asarray(w[:, None]),
        jnp.asarray(v[None]),
        jnp.array([log_variance]),
        jnp.diag(jnp.array([1.0, 0.36])),
        noise=noise,
        beta=beta,
    )
    np.testing.assert_allclose(found, total, rtol=1e-12)


def test_ranges_are_checked():
    with pytest.raises(InputError, match="latents"):
        ad.linear_vae(jnp.ones(2), latents=3, noise=1.0)
    with pytest.raises(InputError, match="noise"):
        ad.linear_vae(jnp.ones(2), latents=1, noise=0.0)
    with pytest.raises(InputError, match="beta"):
        ad.linear_vae_loss(
            jnp.ones((2, 1)),
            jnp.ones((1, 2)),
            jnp.ones(1),
            jnp.eye(2),
            noise=1.0,
            beta=0.0,
        )
