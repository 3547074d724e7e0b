"""Preference links, pseudo-rewards and score weights against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax.types import InputError
from tests.divergences.cases import (
    BEHAVIOUR,
    DIVERGENCES,
    LINKS,
    PI,
    REWARDS,
    RHO,
    SMOOTH,
    heavy,
    margin,
    x64,
)

W, L = np.log(5), np.log(0.25)
CHECK_2F = {
    "rkl": (
        dv.reverse_kl(),
        (2.99573227, 0.5545368830, -0.04256618, 0.04256618),
    ),
    "fkl": (dv.forward_kl(), (3.8, 0.5210896139, -0.00812254, 0.16245076)),
    "2jsd": (
        dv.scale(dv.jensen_shannon(), 2.0),
        (1.42711636, 0.6243350317, -0.00773971, 0.03715060),
    ),
    "alpha_a=.5": (
        dv.alpha(dv.amari_from_fdpo(0.5)),
        (3.10557281, 0.5498761306, -0.01891618, 0.08459574),
    ),
    "gjs_0.3": (
        dv.jensen_shannon(0.3),
        (0.64140351, 0.6615911649, -0.00267457, 0.02139659),
    ),
    "jeffreys": (
        dv.jeffreys(),
        (6.79573227, 0.4100102624, -0.04036279, 0.16817828),
    ),
}


@jax.jit
def loss_and_slopes(div, w, l):
    zero = jnp.zeros_like(w)

    def loss(w, l):
        return jax.nn.softplus(-margin(div, w, l, zero, zero, beta=0.1))

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(w, l)
    return margin(div, w, l, zero, zero, beta=1.0), value, *slopes


@pytest.mark.parametrize("name", CHECK_2F)
def test_check_2f_fdpo(name):
    """Reference, CHECK 2.f (Wang et al., arXiv 2309.16240): margin at beta 1, loss
    and both gradients at beta 0.1, for l_w = log 5, l_l = log 1/4."""
    div, expected = CHECK_2F[name]
    with x64():
        found = loss_and_slopes(div, jnp.array(W), jnp.array(L))
    np.testing.assert_allclose(found, expected, atol=6e-9)


def test_check_2g_chi_po():
    """Reference, CHECK 2.g (Huang et al., arXiv 2407.13399): phi(z) = z + log z,
    the margin clipped at 2 R_max, and no gradient where it is."""
    div = dv.chi2_kl(1.0)
    with x64():
        phi = np.asarray(div.f_prime(jnp.array([W, L]))) + 1
        np.testing.assert_allclose(phi, [6.6094379124, -1.1362943611], atol=1e-10)
        found = loss_and_slopes(div, jnp.array(W), jnp.array(L))
        size, loss, up, down = map(np.asarray, found)
    np.testing.assert_allclose(0.1 * size, 0.7745732274, atol=1e-10)
    np.testing.assert_allclose(loss, 0.3790529845, atol=1e-10)
    np.testing.assert_allclose([up, down], [-0.18929439, 0.03943633], atol=1e-8)

    def clipped(w):
        return margin(
            div, w, jnp.float32(L), jnp.float32(0), jnp.float32(0), beta=0.5, clip=2.0
        )

    assert clipped(jnp.float32(W)) == 2.0
    assert jax.grad(clipped)(jnp.float32(W)) == 0
    assert clipped(jnp.float32(-40.0)) == -2.0
    near = jnp.float32(0.0)
    np.testing.assert_allclose(jax.grad(clipped)(near), 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - set(LINKS)))
def test_no_link_where_the_optimum_is_sparse(name):
    """chi2, TV and alpha below -1 have a finite f'(0): refused by construction. A
    mix with a KL is a link again."""
    div, zero = DIVERGENCES[name], jnp.zeros(())
    if name == "mix_with_tv":
        assert np.isfinite(margin(div, *[zero] * 4, beta=1.0))
        return
    with pytest.raises(InputError, match=r"f'\(0\)"):
        margin(div, *[zero] * 4, beta=1.0)


@pytest.mark.parametrize("option", [{"beta": 0.0}, {"beta": 1.0, "clip": 0.0}])
def test_link_refuses_bad_numbers(option):
    with pytest.raises(InputError, match="must be positive"):
        margin(dv.reverse_kl(), *[jnp.zeros(())] * 4, **option)


@jax.jit
def margins_at_the_optimum(div, rewards, ref):
    logp, _, _ = dv.regularised_optimum(div, rewards, ref, beta=0.6)
    return margin(div, logp[:-1], logp[1:], ref[:-1], ref[1:], beta=0.6)


@heavy(LINKS)
def test_the_link_finds_the_regularised_optimum(name):
    """At the optimum of a reward, margins are reward differences."""
    div = LINKS[name]
    with x64():
        found = margins_at_the_optimum(div, jnp.array(REWARDS), jnp.log(RHO))
    np.testing.assert_allclose(found, REWARDS[:-1] - REWARDS[1:], atol=1e-9)


@jax.jit
def link_slope(div, w):
    zero = jnp.zeros_like(w)
    return jax.grad(lambda w: margin(div, w, zero, zero, zero, beta=0.1))(w)


@heavy(LINKS)
def test_far_pairs_keep_their_gradient(name):
    """TRL clamps the exponent at 80 (11 in half precision), which zeroes the
    gradient of forward KL and alpha links for sequences hundreds of nats away."""
    div = LINKS[name]
    for l in (-95.0, -400.0, -3000.0):
        slope = link_slope(div, jnp.float32(l))
        assert np.isfinite(slope)
        assert slope > 0


@jax.jit
def fdpg_gradient(div, logits, log_target, log_z, log_b, baseline):
    """-sum_y b w (R - B) grad log pi, the expected step of f-DPG."""
    p = jax.nn.softmax(logits)
    reward = dv.pseudo_reward(div, jnp.log(p), log_target, log_z)
    coefficient = jnp.exp(log_b) * (p / jnp.exp(log_b)) * (reward - baseline)
    return jax.grad(lambda z: -jnp.sum(coefficient * jax.nn.log_softmax(z)))(logits)


def gradient(div, target, factor=1.0, baseline=0.3):
    """P = 2.5 target with Z misjudged by ``factor``."""
    return np.asarray(
        fdpg_gradient(
            div,
            jnp.log(PI),
            jnp.log(2.5 * target),
            jnp.array(np.log(2.5 * factor)),
            jnp.log(BEHAVIOUR),
            jnp.array(baseline),
        )
    )


@heavy(SMOOTH)
def test_check_3b_pseudo_reward(name):
    """Reference, CHECK 3.b (Go et al., arXiv 2302.08215): the estimator with a
    proposal and any baseline is the gradient of the divergence to the target."""
    div = DIVERGENCES[name]
    with x64():
        true = jax.jit(jax.grad(lambda z: dv.exact(div, z, jnp.log(RHO))))(jnp.log(PI))
        np.testing.assert_allclose(gradient(div, RHO), true, atol=1e-9)


@pytest.mark.parametrize(
    ("div", "ratio"),
    [
        (dv.reverse_kl(), 1.0),
        (dv.forward_kl(), 2 / 3),
        (dv.scale(dv.jensen_shannon(), 2.0), 0.802766),
        (dv.pearson(), 1.5),
    ],
)
def test_check_3b_sensitivity_to_the_normaliser(div, ratio):
    """Reference, CHECK 3.b: |g| / |g0| when Z is 1.5 times too big."""
    with x64():
        target = RHO * np.exp(2 * REWARDS)
        target /= target.sum()
        off, right = gradient(div, target, 1.5), gradient(div, target)
    np.testing.assert_allclose(
        np.linalg.norm(off) / np.linalg.norm(right), ratio, atol=1e-6
    )


def test_impossible_target_has_a_floor():
    """P = 0: disco's reward is -inf; ours is that of a ratio of e^70, or as told.
    Samples that the target can produce are not clipped, long ones neither."""
    reward = dv.pseudo_reward(
        dv.reverse_kl(), jnp.array([-1.0]), jnp.array([-jnp.inf]), jnp.array([0.5])
    )
    np.testing.assert_allclose(reward, -70.0)
    rewards = dv.pseudo_reward(
        dv.reverse_kl(),
        jnp.array([-1.0, -400.0, -900.0]),
        jnp.array([-jnp.inf, -600.0, -500.0]),
        jnp.array(0.0),
        impossible=500.0,
    )
    np.testing.assert_allclose(rewards, [-500.0, -200.0, 400.0])


def test_check_6h_score_weights():
    """Reference, CHECK 6.h (f-distill, arXiv 2502.15681): h(r) = f''(r) r^2 of its
    table, r = teacher / student."""
    r = np.array([0.1, 0.7, 1.0, 3.0, 20.0])
    table = {
        "reverse kl": (dv.reverse_kl(), np.ones(5)),
        "kl": (dv.forward_kl(), r),
        "js": (dv.scale(dv.jensen_shannon(), 2.0), 1 - 1 / (1 + r)),
        "jeffreys": (dv.jeffreys(), 1 + r),
        "squared hellinger": (dv.scale(dv.squared_hellinger(), 4.0), np.sqrt(r)),
        "pearson of ours": (dv.pearson(), 2 / r),
        "neyman of ours": (dv.neyman(), 2 * r**2),
    }
    for div, weight in table.values():
        found = dv.score_weight(div, jnp.log(jnp.asarray(r, jnp.float32)))
        np.testing.assert_allclose(found, weight, rtol=2e-6)


@heavy(SMOOTH)
def test_score_weight_identity(name):
    """h(r) = r^2 f_their''(r), with f_their the dual generator, by autodiff in r."""
    dual = dv.swap(DIVERGENCES[name])
    with x64():
        r = jnp.array([0.3, 0.8, 1.4, 5.0])
        second = jax.vmap(jax.grad(jax.grad(lambda x: dual.f(jnp.log(x)))))
        second = jax.jit(second)(r)
        found = dv.score_weight(DIVERGENCES[name], jnp.log(r))
    np.testing.assert_allclose(found, r**2 * second, rtol=1e-7)
