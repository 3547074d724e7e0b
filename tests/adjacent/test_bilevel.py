"""The penalty's gradient against the exact one, in a quadratic world and a bandit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax.types import InputError


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def outer(x, y):
    return (jnp.sum(jnp.square(y - 1)) + 0.2 * jnp.sum(jnp.square(x))) / 2


def inner(x, y):
    return jnp.sum(jnp.square(y - 2 * x)) / 2


@pytest.mark.parametrize(
    ("sigma", "value", "slope"),
    [(0.1, 0.2276363636, 1.2509090909), (0.01, 0.2422178218, 1.3481188119)],
)
def test_numbers_of_one_coordinate(sigma, value, slope):
    x = jnp.array([0.8])
    solution = 2 * x
    penalised = (1 + solution / sigma) / (1 + 1 / sigma)

    def psi(x):
        return ad.penalised_value(outer, inner, x, penalised, solution, sigma=sigma)

    np.testing.assert_allclose(outer(x, solution), 0.244, rtol=1e-12)
    np.testing.assert_allclose(psi(x), value, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(psi)(x), [slope], rtol=1e-9)
    np.testing.assert_allclose(
        ad.hypergradient(outer, inner, x, solution), [1.36], rtol=1e-12
    )


def newton(loss, y):
    step = jax.jit(
        lambda y: y - jnp.linalg.solve(jax.hessian(loss)(y), jax.grad(loss)(y))
    )
    for _ in range(30):
        y = step(y)
    return y


def test_bias_is_of_first_order_where_the_inner_problem_is_a_regularised_policy():
    """x are rewards of three arms, y the logits of the policy (the first one is 0) that
    maximises ``E r − β KL``; the outer loss asks for other odds. Its slope by the
    policy's closed form ``ρ e^{r/β}``, without an implicit function."""
    beta, ref = 0.5, jnp.log(jnp.array([0.5, 0.3, 0.2]))
    wanted = jnp.array([0.2, 0.5, 0.3])
    x = jnp.array([0.3, -0.4, 0.6])

    def policy(y):
        return jax.nn.log_softmax(jnp.concatenate([jnp.zeros(1), y]))

    def regret(x, y):
        logp = policy(y)
        return -jnp.exp(logp) @ (x - beta * (logp - ref))

    def cost(x, y):
        return -wanted @ policy(y) + 0.05 * jnp.sum(jnp.square(x))

    def best(x):
        logits = ref + x / beta
        return logits[1:] - logits[0]

    exact = jax.grad(lambda x: cost(x, best(x)))(x)
    found = ad.hypergradient(cost, regret, x, best(x))
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    errors, gaps = [], []
    for sigma in (1e-2, 1e-3, 1e-4):
        near = newton(lambda y, s=sigma: cost(x, y) + regret(x, y) / s, best(x))
        psi = jax.value_and_grad(
            lambda x, near=near, s=sigma: ad.penalised_value(
                cost, regret, x, near, best(x), sigma=s
            )
        )
        value, slope = psi(x)
        errors.append(float(jnp.linalg.norm(slope - exact)))
        gaps.append(float(cost(x, best(x)) - value))
    assert min(gaps) > 0
    for measured in (errors, gaps):
        np.testing.assert_allclose(
            np.array(measured[:-1]) / measured[1:], 10, rtol=0.15
        )


def test_strength_is_checked():
    one = jnp.ones(1)
    with pytest.raises(InputError, match="sigma"):
        ad.penalised_value(outer, inner, one, one, one, sigma=0.0)
