"""numerics, controllers, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import controllers, numerics, sampling
from alignax.types import InputError


def test_exp_linear_continues_with_its_tangent():
    x = jnp.array([-200.0, 0.0, 1.0, 2.0, 1e4])
    value = numerics.exp_linear(x, limit=1.0)
    e = np.e
    np.testing.assert_allclose(value, [0, 1, e, 2 * e, e * 1e4], rtol=1e-6)
    gradient = jax.vmap(jax.grad(lambda x: numerics.exp_linear(x, limit=1.0)))(x)
    np.testing.assert_allclose(gradient, [0, 1, e, e, e], rtol=1e-6)
    with pytest.raises(InputError, match="limit"):
        numerics.exp_linear(x, limit=81.0)


def test_adaptive_kl_worked_numbers():
    """Ziegler et al. (arXiv 1909.08593): KL 12, 7, 3 against 6; reference 8.2."""
    controller = controllers.adaptive_kl(beta=0.2, target=6.0)
    state = controller.init()
    for kl in (12.0, 7.0, 3.0):
        state = controller.update(state, jnp.float32(kl), 256)
    np.testing.assert_allclose(state.beta, 0.200848068083712, rtol=1e-6)


def test_fixed_ignores_the_kl():
    controller = controllers.fixed(beta=0.3)
    state = controller.update(controller.init(), jnp.float32(1e9), 8)
    assert state.beta == np.float32(0.3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: controllers.fixed(beta=-1.0),
        lambda: controllers.adaptive_kl(beta=0.0, target=1.0),
        lambda: controllers.adaptive_kl(beta=1.0, target=-1.0),
        lambda: sampling.tempered(jnp.ones(3), temperature=0.0),
        lambda: sampling.top_k(jnp.ones(3), k=0),
        lambda: sampling.top_p(jnp.ones(3), p=0.0),
        lambda: sampling.top_p(jnp.ones(3), p=1.5),
    ],
)
def test_out_of_range_is_named(call):
    with pytest.raises(InputError, match="got"):
        call()


def kept(logits):
    return np.flatnonzero(np.isfinite(np.asarray(logits))).tolist()


def test_top_k_keeps_ties():
    logits = jnp.array([1.0, 3.0, 2.0, 2.0])
    assert kept(sampling.top_k(logits, k=1)) == [1]
    assert kept(sampling.top_k(logits, k=2)) == [1, 2, 3]
    assert kept(sampling.top_k(logits, k=9)) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
    assert kept(sampling.top_p(logits, p=1e-6)) == [1]
    assert kept(sampling.top_p(logits, p=0.39)) == [1]
    assert kept(sampling.top_p(logits, p=0.6)) == [1, 2]
    assert kept(sampling.top_p(logits, p=0.85)) == [1, 2, 3]
    assert kept(sampling.top_p(logits, p=1.0)) == [0, 1, 2, 3]


def test_transforms_compose():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
    law = sampling.top_p(sampling.top_k(logits, k=3), p=0.5)
    assert kept(law) == [1, 2], "top-p is of the mass that top-k left"
