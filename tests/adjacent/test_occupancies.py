"""Occupancies and correlated proxies, against sums over time and enumerations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax.types import InputError

PI, RHO = np.array([0.5, 0.25, 0.15, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
TRUE, PROXY = np.array([0.2, -1, 0.7, 0.1]), np.array([1.5, -0.6, 0.4, -0.2])


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def world(seed=0, states=3, actions=2):
    """Log-laws of the first state, of the next and of two policies."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = ((states,), (states, actions, states), *[(states, actions)] * 2)
    return [
        jax.nn.log_softmax(jax.random.normal(k, s))
        for k, s in zip(keys, shapes, strict=True)
    ]


def test_occupancy_is_the_discounted_sum_over_time():
    initial, steps, logp, _ = world()
    law, total = np.exp(initial), 0
    flow = np.einsum("sa,san->sn", np.exp(logp), np.exp(steps))
    for t in range(400):
        total = total + 0.1 * 0.9**t * law[:, None] * np.exp(logp)
        law = law @ flow
    found = ad.occupancy(initial, steps, logp, discount=0.9)
    np.testing.assert_allclose(found, total, rtol=1e-12)


def test_small_differences_of_actions_are_large_ones_of_states():
    """A chain that leaves its first state for good with .001, then with .01."""

    def chain(leave):
        steps = jnp.log(jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]] * 2]))
        logp = jnp.log(jnp.array([[1 - leave, leave], [0.5, 0.5]]))
        start = jnp.array([0.0, -jnp.inf])
        return logp, ad.occupancy(start, steps, logp, discount=0.99).sum(1)

    (logp_ref, ref), (logp, mu) = chain(0.001), chain(0.01)
    np.testing.assert_allclose(ref, [0.90992, 0.09008], atol=5e-6)
    np.testing.assert_allclose(mu, [0.50251, 0.49749], atol=5e-6)
    of_actions = dv.exact(dv.reverse_kl(), logp[0], logp_ref[0])
    np.testing.assert_allclose(of_actions, 0.014067, atol=5e-7)
    for div, value in ((dv.reverse_kl(), 0.551773), (dv.pearson(), 2.024949)):
        np.testing.assert_allclose(
            dv.exact(div, *map(jnp.log, (mu, ref))), value, rtol=2e-6
        )


def gain(mu, rewards):
    spread = np.sqrt(RHO @ (rewards - RHO @ rewards) ** 2)
    return (mu - RHO) @ rewards / spread


def test_bound_holds_for_every_policy_and_is_reached():
    proxy, rho = jnp.asarray(PROXY), jnp.asarray(RHO)
    r = float(ad.correlation(proxy, jnp.asarray(TRUE), rho))
    np.testing.assert_allclose(r, 0.6261908255, rtol=1e-9)
    found = ad.proxy_bound(proxy, jnp.asarray(PI), rho, correlation=r)
    np.testing.assert_allclose(found, -0.1964929462, rtol=1e-8)
    np.testing.assert_allclose(gain(PI, TRUE), -0.1774570443, rtol=1e-8)
    many = np.random.default_rng(0).dirichlet(np.ones(4), 2000)
    bounds = ad.proxy_bound(
        *(jnp.broadcast_to(x, many.shape) for x in (proxy, jnp.asarray(many), rho)),
        correlation=r,
    )
    assert (gain(many, TRUE) >= bounds - 1e-12).all()
    # The proxy's part that the true reward has not.
    error = [(x - RHO @ x) / np.sqrt(RHO @ (x - RHO @ x) ** 2) for x in (PROXY, TRUE)]
    error = (error[0] - r * error[1]) / np.sqrt(1 - r * r)
    worst = RHO * (1 + 0.3 * error)
    assert worst.min() > 0
    found = ad.proxy_bound(proxy, jnp.asarray(worst), rho, correlation=r)
    np.testing.assert_allclose(found, gain(worst, TRUE), atol=1e-12)


def test_bound_where_the_reference_never_goes_and_at_the_reference():
    proxy, half = jnp.array([1.0, -1.0, 0.0]), jnp.array([0.5, 0.5, 0.0])
    away = jnp.array([0.5, 0.4, 0.1])
    assert ad.proxy_bound(proxy, away, half, correlation=0.5) == -jnp.inf
    slope = jax.grad(lambda mu: ad.proxy_bound(proxy, mu, half, correlation=0.5))(half)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("make", [dv.reverse_kl, dv.pearson, dv.jensen_shannon])
def test_penalties_as_rewards_have_the_divergence_s_gradient(make):
    initial, steps, logp, logp_ref = world()

    def visited(logits):
        logp = jax.nn.log_softmax(logits)
        return ad.occupancy(initial, steps, logp, discount=0.9).reshape(-1)

    ref, mu, div = visited(logp_ref), visited(logp), make()
    d = jnp.log(mu / ref)

    def divergence(logits):
        return dv.exact(div, jnp.log(visited(logits)), jnp.log(ref))

    def of_rewards(rewards):
        return jax.grad(lambda logits: visited(logits) @ rewards)(logp)

    plain = jax.grad(divergence)(logp)
    np.testing.assert_allclose(
        of_rewards(ad.step_penalties(div, d)), plain, rtol=1e-9, atol=1e-15
    )
    root = ad.root_step_penalties(
        div, d, jnp.full(d.shape, divergence(logp)), least=1e-9
    )
    np.testing.assert_allclose(
        of_rewards(root),
        jax.grad(lambda x: jnp.sqrt(divergence(x)))(logp),
        rtol=1e-9,
        atol=1e-15,
    )
    if make is dv.reverse_kl:  # ORPO's d itself
        np.testing.assert_allclose(of_rewards(d), plain, rtol=1e-9, atol=1e-15)
    if make is dv.pearson:  # and its e^d − 1, with the root's exact value
        chi2 = mu @ jnp.expm1(d)
        np.testing.assert_allclose(chi2, divergence(logp), rtol=1e-12)
        np.testing.assert_allclose(jnp.expm1(d) / jnp.sqrt(chi2), root, rtol=1e-9)


def test_discriminator_ends_at_the_log_ratio():
    d = jnp.log(jnp.asarray(PI / RHO))

    def loss(logits):
        ones = jnp.ones(4, bool)
        return PI @ ad.discriminator_losses(logits, ones) + RHO @ (
            ad.discriminator_losses(logits, ~ones)
        )

    np.testing.assert_allclose(jax.grad(loss)(d), 0, atol=1e-15)
    assert loss(d + 0.1) > loss(d) < loss(d - 0.1)


def test_the_bound_avoids_a_hack_that_no_kl_of_actions_does():
    """A switch that is hardly ever thrown, to a state that the proxy likes. The soft
    optimum of five β by value iteration; the bound's by a grid."""
    discount = 0.99
    steps = jnp.log(jnp.array([[[1.0, 0], [1, 0], [0, 1]], [[0, 1.0]] * 3]))
    start = jnp.array([0.0, -jnp.inf])
    true = jnp.array([[1.0, 0, 0], [-1.0, -1, -1]])
    proxy = jnp.array([[1.0, 0, 0], [3.0, 3, 3]])
    rare = jnp.array([0.3, 0.6999, 0.0001])
    third = jnp.full(3, 1 / 3)
    logp_ref = jnp.log(jnp.stack([rare, third]))
    visited = jax.vmap(lambda p: ad.occupancy(start, steps, p, discount=discount))
    ref = visited(logp_ref[None])[0]

    def soft(beta):
        def sweep(_, v):
            return beta * jax.nn.logsumexp(
                logp_ref + (proxy + discount * jnp.exp(steps) @ v) / beta, axis=-1
            )

        v = jax.lax.fori_loop(0, 3000, sweep, jnp.zeros(2))
        return jax.nn.log_softmax(
            logp_ref + (proxy + discount * jnp.exp(steps) @ v) / beta
        )

    # β up to a hundred times what the rewards differ by: hacked, and worse than before.
    soft_laws = visited(jax.vmap(soft)(jnp.array([0.1, 1.0, 10.0, 100.0, 1000.0])))
    assert (jnp.einsum("bsa,sa->b", soft_laws, true) < jnp.sum(ref * true)).all()
    grid = jnp.stack(jnp.meshgrid(jnp.linspace(0, 8, 40), jnp.linspace(-9, 0, 40)), -1)
    good, throw = grid.reshape(-1, 2).T
    logits = jnp.stack([good, jnp.zeros_like(good), throw], -1)
    laws = jax.nn.log_softmax(jnp.stack([logits, jnp.zeros_like(logits)], axis=1))
    mu = visited(laws).reshape(len(good), -1)
    r = ad.correlation(proxy.reshape(-1), true.reshape(-1), ref.reshape(-1))
    assert r > 0.69
    shape = mu.shape
    bounds = ad.proxy_bound(
        jnp.broadcast_to(proxy.reshape(-1), shape),
        mu,
        jnp.broadcast_to(ref.reshape(-1), shape),
        correlation=r,
    )
    best = mu[jnp.argmax(bounds)]
    spread = jnp.sqrt(jnp.sum(ref * (true - jnp.sum(ref * true)) ** 2))
    gained = (best @ true.reshape(-1) - jnp.sum(ref * true)) / spread
    assert gained >= bounds.max() > 0.6


def test_ranges_are_checked():
    initial, steps, logp, _ = world()
    with pytest.raises(InputError, match="discount"):
        ad.occupancy(initial, steps, logp, discount=1.0)
    with pytest.raises(InputError, match="correlation"):
        ad.proxy_bound(*jnp.ones((3, 2)), correlation=0.0)
    with pytest.raises(InputError, match="least"):
        ad.root_step_penalties(dv.pearson(), *jnp.ones((2, 2)), least=0.0)
