"""Losses in expectation over the pairs of enumerated outcomes."""

import jax
import jax.numpy as jnp

from alignax import preference as pf


def all_pairs(logp, logp_ref):
    """Every outcome against every other one, ``[K, K]``; each length is 1."""
    shape = len(logp), len(logp)
    ones = jnp.ones(shape)
    sides = (x for a in (logp, logp_ref) for x in (a[:, None], a[None]))
    return pf.Pair(*(jnp.broadcast_to(x, shape) for x in sides), ones, ones)


def expected_loss(loss, logp, logp_ref, sampling, preference):
    """``Σ_ij μ_i μ_j P_ij ℓ(i ≻ j)``, the law μ of either completion held fixed."""
    sampling = jax.lax.stop_gradient(sampling)
    weights = sampling[:, None] * sampling[None] * preference
    return jnp.sum(weights * loss(all_pairs(logp, logp_ref)))


def fit_policy(loss, logp_ref, preference, behaviour=None, *, learning_rate, steps):
    """Where gradient descent takes a softmax policy: offline on pairs of a behaviour
    law, online on its own without one (Tang et al., arXiv 2405.08448)."""

    def objective(logits):
        logp = jax.nn.log_softmax(logits)
        law = jnp.exp(logp) if behaviour is None else behaviour
        return expected_loss(loss, logp, logp_ref, law, preference)

    def step(logits, _):
        return logits - learning_rate * jax.grad(objective)(logits), None

    return jax.nn.log_softmax(jax.lax.scan(step, logp_ref, length=steps)[0])
