"""Score distillation on a line, against autodiff, closed forms and de Bruijn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax.types import InputError

DIVERGENCES = {
    "reverse_kl": (dv.reverse_kl, lambda r: np.ones_like(r)),
    "forward_kl": (dv.forward_kl, lambda r: r),
    "jeffreys": (dv.jeffreys, lambda r: 1 + r),
    "jensen_shannon": (dv.jensen_shannon, lambda r: r / (1 + r) / 2),
    "squared_hellinger": (dv.squared_hellinger, lambda r: np.sqrt(r) / 4),
    "pearson": (dv.pearson, lambda r: 2 / r),
    "chi2_kl": (lambda: dv.chi2_kl(1.0), None),
    "alpha": (lambda: dv.alpha(0.5), None),
    "skewed_kl": (lambda: dv.skewed_kl(0.5), None),
}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def student():
    return ad.Mixture(*map(jnp.array, ([0.1, -0.2], [-0.4, 0.9], [0.7, 0.5])))


def teacher():
    return ad.Mixture(*map(jnp.array, ([0.0, 0.3], [-1.0, 1.1], [0.8, 1.1])))


def test_score_is_the_slope_of_the_log_density():
    x = jnp.linspace(-3, 3, 7)
    slope = jax.vmap(jax.grad(lambda y: ad.log_density(teacher(), y[None])[0]))(x)
    np.testing.assert_allclose(ad.score(teacher(), x), slope, rtol=1e-12)


def test_density_and_quadrature_are_laws():
    """The density sums to 1 on a fine grid; both give the same moments."""
    grid = jnp.linspace(-12, 12, 4001)
    p = jnp.exp(ad.log_density(teacher(), grid)) * (grid[1] - grid[0])
    x, w = ad.quadrature(teacher(), order=12)
    for power in range(5):
        np.testing.assert_allclose(p @ grid**power, w @ x**power, rtol=1e-10)


def test_noise_is_a_convolution():
    """E of a function of ``e^{−t/2} x_0 + √(1 − e^{−t}) ε``, by a double sum."""
    time = 0.8
    x, w = map(np.asarray, ad.quadrature(teacher(), order=30))
    noise, v = ad.quadrature(ad.Mixture(*jnp.array([[0.0], [0.0], [1.0]])), order=30)
    noise, v = np.asarray(noise)[None], np.asarray(v)
    later = np.exp(-time / 2) * x[:, None] + np.sqrt(1 - np.exp(-time)) * noise
    y, u = ad.quadrature(ad.diffused(teacher(), time), order=30)
    np.testing.assert_allclose(w @ np.cos(later) @ v, u @ np.cos(y), rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("forward_kl", "jensen_shannon", "pearson")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in DIVERGENCES
    ],
)
def test_distribution_matching_is_the_divergences_gradient(name):
    """f-distill's theorem for every divergence of the core: its expectation through
    ``x = m + √v ξ`` is autodiff's gradient of the exact divergence, at a noise."""
    make, table = DIVERGENCES[name]
    div, time, order = make(), 0.6, 80
    grid = jnp.linspace(-9, 9, 1201)

    @jax.jit
    def both(means):
        q = ad.diffused(teacher(), time)

        def law(means):
            return ad.diffused(student()._replace(means=means), time)

        def exactly(means):
            # On a grid, of densities alone: no score and no quadrature.
            lp, lq = (ad.log_density(m, grid) for m in (law(means), q))
            return jnp.sum(jnp.exp(lq) * div.f(lp - lq)) * (grid[1] - grid[0])

        p = law(means)
        x, w = ad.quadrature(p, order=order)
        log_r = ad.log_density(q, x) - ad.log_density(p, x)
        factor = ad.distribution_matching(div, ad.score(p, x), ad.score(q, x), log_r)

        def surrogate(means):
            return jnp.sum(w * factor * ad.quadrature(law(means), order=order)[0])

        value = ad.mixture_divergence(div, p, q, order=order)
        return (
            jax.value_and_grad(exactly)(means),
            (value, jax.grad(surrogate)(means)),
            (log_r, dv.score_weight(div, log_r)),
        )

    (value, gradient), found, (log_r, weight) = both(student().means)
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-6)
    if table:
        np.testing.assert_allclose(weight, table(np.exp(log_r)), rtol=1e-6)


@pytest.mark.slow
def test_check_6i_de_bruijn():
    """Reference 6.i: N(0, 1), N(1.5, .6²) over t in [0, 3]: 3.44494436 is KL(p_0‖q_0)
    − KL(p_3‖q_3) and half the Fisher divergence's integral; mixtures have it too."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    times, weights = jnp.array(1.5 * (nodes + 1)), jnp.array(1.5 * weights)
    normal = ad.Mixture(*jnp.array([[0.0], [0.0], [1.0]]))
    other = ad.Mixture(*jnp.array([[0.0], [1.5], [0.36]]))
    kl = dv.reverse_kl()
    for p, q, order in ((normal, other, 20), (student(), teacher(), 60)):
        at = [
            ad.mixture_divergence(kl, ad.diffused(p, t), ad.diffused(q, t), order=order)
            for t in (0.0, 3.0)
        ]
        found = ad.score_divergence(p, q, times, weights, order=order)
        np.testing.assert_allclose(found, at[0] - at[1], rtol=1e-6)
    closed = [
        dv.gaussian_kl(ad.diffused(normal, t).means, jnp.zeros(1), m.means, v)
        for t in (0.0, 3.0)
        for m in [ad.diffused(other, t)]
        for v in [jnp.log(m.variances)]
    ]
    found = ad.score_divergence(normal, other, times, weights, order=20)
    np.testing.assert_allclose(found, (closed[0] - closed[1])[0], rtol=1e-9)
    np.testing.assert_allclose(found, 3.44494436, rtol=1e-8)
    huber = ad.score_divergence(
        normal,
        other,
        times,
        weights,
        order=20,
        distance=lambda d: 1e4 * ad.pseudo_huber(d, width=1e4),
    )
    np.testing.assert_allclose(huber, found, rtol=1e-6)


def test_pseudo_huber_far_and_near():
    x = jnp.array([1e-9, -1e6])
    np.testing.assert_allclose(
        ad.pseudo_huber(x, width=2.0), [1e-18 / 4, 1e6 - 2], rtol=1e-6
    )


@pytest.mark.parametrize("weight", [0.3])
def test_entropic_score_is_the_gradient_of_its_objective(weight):
    """And the objective is ``λ KL(q‖p) + (1 − λ) E_c KL(q_c‖p)``, less what the views'
    own entropies are, which no mean moves."""
    views = ad.Mixture(*map(jnp.array, ([0.0, 0.5], [-0.3, 0.8], [0.4, 0.4])))
    order = 60

    def objective(means):
        return ad.entropic_objective(
            views._replace(means=means), teacher(), entropy_weight=weight, order=order
        )

    value, gradient = jax.jit(jax.value_and_grad(objective))(views.means)
    shares, kl = jax.nn.softmax(views.log_weights), dv.reverse_kl()
    split, found = weight * ad.mixture_divergence(kl, views, teacher(), order=order), []
    for c in range(2):
        view = jax.tree.map(lambda x, c=c: x[c : c + 1], views)
        x, w = ad.quadrature(view, order=order)
        factor = ad.entropic_score(
            ad.score(views, x),
            ad.score(view, x),
            ad.score(teacher(), x),
            entropy_weight=weight,
        )
        found.append(shares[c] * jnp.sum(w * factor))
        entropy = np.log(2 * np.pi * np.e * 0.4) / 2
        apart = ad.mixture_divergence(kl, view, teacher(), order=order) + entropy
        split += (1 - weight) * shares[c] * apart
    np.testing.assert_allclose(split, value, rtol=1e-7)
    np.testing.assert_allclose(jnp.array(found), gradient, atol=1e-7)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ad.diffused(student(), -1.0),
        lambda: ad.quadrature(student(), order=0),
        lambda: ad.pseudo_huber(jnp.ones(2), width=0.0),
        lambda: ad.entropic_objective(student(), teacher(), entropy_weight=1.5),
    ],
)
def test_out_of_range_is_named(call):
    with pytest.raises(InputError, match="got"):
        call()
