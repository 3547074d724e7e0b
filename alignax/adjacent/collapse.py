"""When a posterior collapses: the linear variational autoencoder, in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignax._checks import Strength, positive
from alignax.divergences import gaussian_kl
from alignax.numerics import as_float
from alignax.types import InputError, Leaf


class LinearVae(NamedTuple):
    """The best linear autoencoder: one latent a direction, the strongest first."""

    decoder: Leaf  # Float[..., K], squared lengths of the decoder's columns
    variance: Leaf  # Float[..., K], of the posterior; 1 where it collapsed
    kl: Leaf  # Float[..., K], nats of each latent in the mean; 0 where it collapsed
    loss: Leaf  # Float[...], the least loss, nats


def linear_vae(
    eigenvalues: Float[Array, "*batch D"],
    *,
    latents: int,
    noise: Strength,
    beta: Strength = 1.0,
) -> LinearVae:
    """The minimum of a linear β-VAE's loss over data of known covariance.

    ``x ~ N(Wz, σ² 1)``, ``q(z|x) = N(Vx, diag s²)``. A direction of variance λ gets
    ``w² = (λ − βσ²)_+``, ``s² = min(1, βσ²/λ)`` and ``½ log(λ/βσ²)_+`` nats: it
    collapses if and only if ``λ ≤ βσ²``. At β = 1 the model is probabilistic PCA's
    maximum of the likelihood, and the loss is that, without a gap.

    Args:
      eigenvalues: ``[..., D]`` of the data's covariance, positive, in any order.
      latents: K, in 1 to D.
      noise: σ², the decoder's variance, positive.
      beta: weight of the KL, positive.

    Returns:
      a ``LinearVae`` of the K largest eigenvalues.

    Raises:
      InputError: a number is out of its range.

    Reference:
      Lucas et al., "Don't blame the ELBO! A linear VAE perspective on posterior
      collapse", arXiv 1911.02469, for β = 1; any β is derived in the tests.

    Example:
      >>> best = linear_vae(jnp.array([0.4, 2.0]), latents=2, noise=0.5)
      >>> print(best.decoder, best.variance, best.kl.round(4))
      [1.5 0. ] [0.25 1.  ] [0.6931 0.    ]
    """
    positive(noise=noise, beta=beta)
    eigenvalues = as_float(eigenvalues)
    size = eigenvalues.shape[-1]
    if not 1 <= latents <= size:
        raise InputError(f"latents must be in 1 to the {size} axes, got {latents}")
    ordered = -jnp.sort(-eigenvalues, axis=-1)
    kept, rest = ordered[..., :latents], ordered[..., latents:]
    floor = beta * as_float(noise)
    top = jnp.maximum(kept, floor)
    kl = jnp.log(top / floor) / 2
    # What the decoder leaves of a direction: the posterior's spread, or all.
    lost = jnp.sum(jnp.minimum(kept, floor), axis=-1) + jnp.sum(rest, axis=-1)
    constant = size * jnp.log(2 * jnp.pi * as_float(noise)) / 2
    loss = lost / (2 * noise) + beta * jnp.sum(kl, axis=-1) + constant
    return LinearVae(top - floor, floor / top, kl, loss)


def linear_vae_loss(
    decoder: Float[Array, "*batch D K"],
    encoder: Float[Array, "*batch K D"],
    log_variance: Float[Array, "*batch K"],
    covariance: Float[Array, "*batch D D"],
    *,
    noise: Strength,
    beta: Strength = 1.0,
) -> Float[Array, "*batch"]:
    """``E_q −log p(x|z) + β KL(q(z|x)‖N(0, 1))`` in the mean over centred data.

    Args:
      decoder: W, ``[..., D, K]``.
      encoder: V, ``[..., K, D]``.
      log_variance: ``[..., K]`` of the posterior, the same for all data.
      covariance: ``[..., D, D]`` of the data.
      noise: σ², positive.
      beta: weight of the KL, positive; 1 gives the negative ELBO.

    Returns:
      ``[...]`` nats.

    Raises:
      InputError: a number is not positive.

    Reference:
      arXiv 1911.02469; Gaussian integrals, checked by samples.

    Example:
      >>> nothing, data = jnp.zeros((2, 1)), jnp.diag(jnp.array([2.0, 0.5]))
      >>> loss = linear_vae_loss(nothing, nothing.T, jnp.zeros(1), data, noise=1.0)
      >>> print(loss.round(4))
      3.0879
    """
    positive(noise=noise, beta=beta)
    decoder, encoder, log_variance, covariance = (
        as_float(x) for x in (decoder, encoder, log_variance, covariance)
    )
    size = covariance.shape[-1]
    product = decoder @ encoder
    left = jnp.broadcast_to(jnp.eye(size, dtype=product.dtype), product.shape)
    left = left - product
    error = jnp.einsum("...ij,...jk,...ik->...", left, covariance, left)
    spread = jnp.sum(
        jnp.square(decoder) * jnp.exp(log_variance)[..., None, :], (-1, -2)
    )
    shift = jnp.einsum("...ij,...jk,...ik->...", encoder, covariance, encoder) / 2
    kl = shift + jnp.sum(gaussian_kl(jnp.zeros_like(log_variance), log_variance), -1)
    constant = size * jnp.log(2 * jnp.pi * as_float(noise)) / 2
    return (error + spread) / (2 * noise) + beta * kl + constant
