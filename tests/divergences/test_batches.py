"""Transport and kernels against numpy and scipy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from alignax import divergences as dv
from alignax.types import InputError
from tests.divergences.cases import x64

X = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
Y = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])
COST = np.abs(X[:, None] - Y[None]).sum(-1)


def kernel_sinkd(cost, epsilon, iterations):
    """SinKD as its authors write it: a kernel, rows then columns to 1."""
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return plan


def test_check_6b_sinkd():
    """Reference, CHECK 6.b (Cui et al., arXiv 2402.17110)."""
    with x64():
        # The temperature of 2 undone: softmax(2 log x / 2) = x.
        loss = dv.sinkd(jnp.log(X) * 2, jnp.log(Y) * 2)
        own = dv.sinkd(jnp.log(X) * 2, jnp.log(X) * 2)
        shuffled = dv.sinkd(
            jnp.log(X) * 2, jnp.log(Y[[2, 0, 1]]) * 2, num_iterations=200
        )
        settled = dv.sinkd(jnp.log(X) * 2, jnp.log(Y) * 2, num_iterations=200)
        cold = dv.sinkd(jnp.log(X) * 2, jnp.log(Y) * 2, epsilon=1e-3)
        _, plan = dv.sinkhorn(jnp.array(COST), epsilon=0.1, num_iterations=20)
        plan = np.asarray(plan)
    np.testing.assert_allclose(loss, 0.8133121137725522, rtol=1e-12)
    np.testing.assert_allclose(own, 0.00064206983, rtol=1e-7)
    np.testing.assert_allclose(shuffled, settled, rtol=1e-9)
    np.testing.assert_allclose(cold, 0.8, rtol=1e-6)
    rows, columns = linear_sum_assignment(COST)
    np.testing.assert_allclose(COST[rows, columns].sum(), 0.8)
    np.testing.assert_allclose(3 * plan, kernel_sinkd(COST, 0.1, 20), rtol=1e-9)
    np.testing.assert_allclose(3 * plan.sum(1), [0.98254, 0.99442, 1.02304], atol=5e-6)


def test_sinkd_below_the_kernels_range_in_float32():
    """epsilon = 1e-3 underflows the kernel form (W / epsilon > 88), value and
    gradient are finite here."""
    x, y = (
        jnp.asarray(2 * np.log(X), jnp.float32),
        jnp.asarray(2 * np.log(Y), jnp.float32),
    )
    value, grad = jax.jit(
        jax.value_and_grad(lambda x: dv.sinkd(x, y, epsilon=1e-3, num_iterations=30))
    )(x)
    np.testing.assert_allclose(value, 0.8, rtol=1e-4)
    assert np.isfinite(grad).all()


def test_sinkhorn_is_the_optimum_of_its_objective():
    """At convergence: both marginals, dual = primal, and no plan does better."""
    epsilon = 0.2
    with x64():
        value, plan = dv.sinkhorn(jnp.array(COST), epsilon=epsilon, num_iterations=300)
        value, plan = np.asarray(value), np.asarray(plan)
    np.testing.assert_allclose(plan.sum(0), 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(1), 1 / 3, rtol=1e-9)

    def objective(p):
        return (p * COST).sum() + epsilon * (p * np.log(9 * p)).sum()

    np.testing.assert_allclose(value, objective(plan), rtol=1e-9)
    for i, j in itertools.combinations(range(3), 2):
        swap = np.zeros((3, 3))
        swap[i, i] = swap[j, j] = 1e-3
        swap[i, j] = swap[j, i] = -1e-3
        for sign in (1, -1):
            assert objective(plan + sign * swap) > value


def test_sinkhorn_gradient():
    """d value / d cost is the plan (the envelope), unrolled or not."""
    with x64():
        grad = jax.grad(lambda c: dv.sinkhorn(c, epsilon=0.2, num_iterations=200)[0])(
            jnp.array(COST)
        )
        _, plan = dv.sinkhorn(jnp.array(COST), epsilon=0.2, num_iterations=200)
    np.testing.assert_allclose(grad, plan, atol=1e-9)


def test_sinkhorn_divergence_is_debiased():
    def cost(a, b):
        return jnp.abs(a[:, None] - b[None]).sum(-1)

    with x64():
        x, y = jnp.array(X), jnp.array(Y)
        options = {"epsilon": 0.3, "num_iterations": 200}
        same = dv.sinkhorn_divergence(cost(x, x), cost(x, x), cost(x, x), **options)
        apart = dv.sinkhorn_divergence(cost(x, y), cost(x, x), cost(y, y), **options)
        assert dv.sinkhorn(cost(x, x), **options)[0] > 0.01
        assert apart > 1e-3
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_check_6j_kernel_form():
    """Reference, CHECK 6.j: equal-variance Gaussians have D_CS = KL = d^2 / 2 s^2;
    the estimate speaks of the smoothed densities. And the double loop."""
    draw = np.random.default_rng(0)
    d, s, bandwidth = 1.3, 0.7, 0.5
    assert abs(d**2 / (2 * s**2) - 1.7244897959) < 1e-9
    x, y = draw.normal(0, s, (400, 1)), draw.normal(d, s, (300, 1))
    value = dv.cauchy_schwarz_kernel(
        jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), bandwidth=bandwidth
    )

    def mean(a, b):
        return np.exp(-((a - b.T) ** 2) / (2 * bandwidth**2)).mean()

    expected = np.log(mean(x, x)) + np.log(mean(y, y)) - 2 * np.log(mean(x, y))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    smoothed = d**2 / (2 * (s**2 + bandwidth**2 / 2))
    np.testing.assert_allclose(value, smoothed, rtol=0.15)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (
            lambda x: dv.sinkhorn(x, epsilon=0.0, num_iterations=1),
            "epsilon",
        ),
        (lambda x: dv.sinkhorn(x, epsilon=1.0, num_iterations=0), "num_iterations"),
        (lambda x: dv.sinkd(x, x, temperature=0.0), "temperature"),
        (lambda x: dv.cauchy_schwarz_kernel(x, x, bandwidth=-1.0), "bandwidth"),
    ],
)
def test_refusals_name_the_argument(call, argument):
    with pytest.raises(InputError, match=argument):
        call(jnp.ones((2, 2)))
