import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import surrogates
from alignax.types import InputError

ONE = jnp.ones((1,), bool)


def clipped(ratio, advantage, **bounds):
    """Loss and its gradient in the log-ratio at ratio r."""

    def loss(logp):
        return surrogates.ppo_surrogate(logp, jnp.array([advantage]), ONE, **bounds)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.array([ratio])))
    return float(value), float(gradient[0])


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (1.0, 0.7, -0.7, -0.7),
        (1.0, 1.1, -1.1, -1.1),
        (1.0, 1.3, -1.2, 0.0),
        (-1.0, 0.7, 0.8, 0.0),
        (-1.0, 0.9, 0.9, 0.9),
        (-1.0, 1.3, 1.3, 1.3),
        (-1.0, 4.0, 4.0, 4.0),
    ],
)
def test_ppo_worked_numbers(advantage, ratio, loss, gradient):
    """PPO (arXiv 1707.06347, eq. 7), reference A1. EasyDeL takes the maximum for
    negative advantages; the rows with A = −1 fail there."""
    np.testing.assert_allclose(clipped(ratio, advantage), (loss, gradient), rtol=1e-6)


def test_gradient_is_whole_at_the_bound():
    """Autodiff of the literal minimum halves the clipped branch (reference 0.2)."""
    high = float(np.float32(1.2)) - 1
    _, gradient = clipped(np.float32(1.2), 1.0, clip_high=high)
    np.testing.assert_allclose(gradient, -1.2, rtol=1e-6)


def test_asymmetric_bounds():
    """DAPO's clip-higher (arXiv 2503.14476): 1.28 above, 0.8 below."""
    assert clipped(1.25, 1.0, clip_high=0.28)[1] == pytest.approx(-1.25)
    assert clipped(1.3, 1.0, clip_high=0.28) == pytest.approx((-1.28, 0.0))


@pytest.mark.parametrize("log_ratio", [-100.0, -50.0, 50.0, 80.0, 300.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 1e6])
def test_extreme_ratios_stay_finite(log_ratio, advantage):
    def loss(logp):
        return surrogates.ppo_surrogate(logp, jnp.array([advantage]), ONE)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([log_ratio]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if advantage < 0 and log_ratio > 0:
        assert gradient[0] > 0, "an unlikely-made-likely bad token is pushed down"


def test_coefficients_equal_autodiff():
    """The universal check (reference 0.1): −∂loss/∂logp = c."""
    keys = jax.random.split(jax.random.key(0), 3)
    logp, logp_old, advantages = (jax.random.normal(k, (5, 6)) for k in keys)
    mask = jnp.arange(6)[None] < jnp.array([6, 5, 3, 1, 0])[:, None]

    def total(surrogate, logp):
        return jnp.sum(surrogate(logp))

    gradient = jax.grad(
        lambda x: total(
            lambda y: surrogates.policy_gradient_surrogate(y, advantages, mask), x
        )
    )(logp)
    np.testing.assert_allclose(-gradient, np.where(mask, advantages, 0), rtol=1e-6)

    gradient = jax.grad(
        lambda x: total(
            lambda y: surrogates.ppo_surrogate(y - logp_old, advantages, mask), x
        )
    )(logp)
    ratio = np.exp(np.float64(logp) - np.float64(logp_old))
    a = np.float64(advantages)
    keep = 1 - ((a > 0) & (ratio > 1.2)) - 1.0 * ((a < 0) & (ratio < 0.8))
    np.testing.assert_allclose(-gradient, mask * ratio * a * keep, rtol=1e-5)


def test_on_policy_gradient_is_the_policy_gradient():
    logp, advantages = jnp.array([-1.0, -2.0]), jnp.array([0.7, -0.3])
    mask = jnp.ones(2, bool)

    def clipped_sum(x):
        return surrogates.ppo_surrogate(x - logp, advantages, mask).sum()

    np.testing.assert_allclose(jax.grad(clipped_sum)(logp), -advantages, rtol=1e-6)


@pytest.mark.parametrize("bounds", [{"clip_low": -0.1}, {"clip_high": -1.0}])
def test_bounds_out_of_range(bounds):
    with pytest.raises(InputError, match=next(iter(bounds))):
        clipped(1.0, 1.0, **bounds)
