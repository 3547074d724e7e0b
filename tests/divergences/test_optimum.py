"""The regularised optimum against the reference's table, two solvers that know
nothing of it (optimistix, scipy), theory, and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from scipy.optimize import linprog

from alignax import divergences as dv
from alignax.types import InputError
from tests.divergences.cases import (
    CASES,
    DIVERGENCES,
    KINKED,
    REWARDS,
    RHO,
    SMOOTH,
    chi2,
    heavy,
    kl,
    x64,
)


@jax.jit
def solve(div, rewards, logp_ref, beta):
    return dv.regularised_optimum(div, rewards, logp_ref, beta=beta)


def solve64(div, rewards=REWARDS, rho=RHO, beta=0.2):
    with x64():
        out = solve(div, jnp.array(rewards), jnp.log(jnp.array(rho)), jnp.array(beta))
        logp, multiplier, value = jax.tree.map(np.asarray, out)
    return np.exp(logp), multiplier, value


CHECK_2E = {
    "rkl": (
        dv.reverse_kl(),
        [0.8427466905, 0.1383537219, 0.0170351476, 0.0018644401],
        0.57370075,
        0.57370075,
    ),
    "fkl": (
        dv.forward_kl(),
        [0.8127212692, 0.0762473083, 0.0585589416, 0.0524724809],
        0.82460868,
        0.56742066,
    ),
    "2jsd": (
        dv.scale(dv.jensen_shannon(), 2.0),
        [0.9818544508, 0.0160988369, 0.0018458272, 0.0002008851],
        0.88076833,
        0.79326907,
    ),
    "gjs_0.3": (
        dv.jensen_shannon(0.3),
        [0.99752417, 0.0023746552, 0.0000975217, 0.0000036532],
        0.95595477,
        0.90319532,
    ),
    "alpha_a=.5": (
        dv.alpha(0.0),
        [0.8599213785, 0.0790101109, 0.0371684873, 0.0239000233],
        0.73640510,
        0.58533378,
    ),
    "pearson": (dv.pearson(), [1 / 3, 5 / 12, 1 / 4, 0], 1 / 15, 0.30416667),
    "alpha_a=-1": (dv.alpha(-3.0), [0.5, 0.5, 0, 0], 0.2, 0.475),
    "neyman": (
        dv.neyman(),
        [0.5946473005, 0.1257816831, 0.1337862631, 0.1457847534],
        0.80565602,
        0.36363551,
    ),
    "hellinger": (
        dv.squared_hellinger(),
        [0.9884057485, 0.0070716497, 0.0028178879, 0.0017047139],
        0.93180771,
        0.87252620,
    ),
    "jeffreys": (
        dv.jeffreys(),
        [0.5805745495, 0.2089493621, 0.1200993479, 0.0903767405],
        0.48267903,
        0.34568097,
    ),
    "chi_po": (
        dv.chi2_kl(),
        [0.3817765494, 0.3952473024, 0.1877810247, 0.0351951235],
        0.16851384,
        0.30444097,
    ),
}


@pytest.mark.parametrize("name", CHECK_2E)
def test_check_2e_table(name):
    """Reference, CHECK 2.e (f-DPO, arXiv 2309.16240; chi-PO, arXiv 2407.13399)."""
    div, policy, multiplier, value = CHECK_2E[name]
    found = solve64(div)
    np.testing.assert_allclose(found[0], policy, atol=1e-9)
    np.testing.assert_allclose(found[1], multiplier, atol=1e-8)
    np.testing.assert_allclose(found[2], value, atol=1e-8)


def test_check_2e_at_beta_one():
    _, multiplier, _ = solve64(dv.reverse_kl(), beta=1.0)
    np.testing.assert_allclose(multiplier, 0.13469233, atol=1e-8)
    policy, multiplier, value = solve64(dv.pearson(), beta=1.0)
    np.testing.assert_allclose(policy, [0.15, 0.25, 0.3, 0.3], atol=1e-12)
    np.testing.assert_allclose(multiplier, 0, atol=1e-12)
    np.testing.assert_allclose(value, 0.0625, atol=1e-12)
    _, multiplier, value = solve64(dv.scale(dv.jensen_shannon(), 2.0), beta=1.0)
    np.testing.assert_allclose([multiplier, value], [0.47151832, 0.30749003], atol=1e-8)


def test_total_variation_is_the_linear_programme():
    """Reference 2.3: [.8, .2, 0, 0] and 0.41 at beta 0.7; and scipy's linprog."""
    policy, _, value = solve64(dv.total_variation(), beta=0.7)
    np.testing.assert_allclose(policy, [0.8, 0.2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(value, 0.41, atol=1e-12)
    draw = np.random.default_rng(0)
    for beta in (0.3, 1.1, 2.5):
        rewards, rho = draw.normal(size=4), draw.dirichlet(np.ones(4))
        # max r.p - beta/2 sum t, t >= |p - rho|, p in the simplex.
        eye = np.eye(4)
        linear = linprog(
            np.concatenate([-rewards, np.full(4, beta / 2)]),
            A_ub=np.block([[eye, -eye], [-eye, -eye]]),
            b_ub=np.concatenate([rho, -rho]),
            A_eq=np.concatenate([np.ones(4), np.zeros(4)])[None],
            b_eq=[1.0],
        )
        policy, _, value = solve64(dv.total_variation(), rewards, rho, beta)
        np.testing.assert_allclose(value, -linear.fun, rtol=1e-9)
        np.testing.assert_allclose(policy, linear.x[:4], atol=1e-9)


@heavy(["reverse_kl", "alpha_0.5", "jensen_shannon_0.3"])
def test_against_optimistix(name):
    """BFGS on softmax logits, with the divergence written on probabilities."""
    u_log_u = {
        "reverse_kl": lambda p, q: jnp.sum(p * jnp.log(p / q)),
        "alpha_0.5": lambda p, q: 4 / 0.75 * (1 - jnp.sum(p**0.25 * q**0.75)),
        "jensen_shannon_0.3": lambda p, q: (
            0.3 * jnp.sum(q * jnp.log(q / (0.3 * q + 0.7 * p)))
            + 0.7 * jnp.sum(p * jnp.log(p / (0.3 * q + 0.7 * p)))
        ),
    }[name]

    def loss(z, _):
        p = jax.nn.softmax(z)
        return 0.5 * u_log_u(p, jnp.array(RHO)) - p @ jnp.array(REWARDS)

    with x64():
        solution = optimistix.minimise(
            loss,
            optimistix.BFGS(rtol=1e-12, atol=1e-12),
            jnp.zeros(4),
            max_steps=2000,
        )
        best = np.asarray(jax.nn.softmax(solution.value))
        least = float(loss(solution.value, None))
    policy, _, value = solve64(DIVERGENCES[name], beta=0.5)
    np.testing.assert_allclose(policy, best, atol=1e-6)
    np.testing.assert_allclose(value, -least, atol=1e-10)


@heavy(CASES)
def test_nothing_does_better(name):
    """value = E r - beta D at the optimum, and no other policy reaches it."""
    div, define = CASES[name]
    draw = np.random.default_rng(1)
    for beta in (0.05, 0.5, 5.0):
        rewards, rho = draw.normal(size=4), draw.dirichlet(np.ones(4))
        policy, _, value = solve64(div, rewards, rho, beta)
        np.testing.assert_allclose(policy.sum(), 1, rtol=1e-12)
        if (policy > 0).all():
            attained = policy @ rewards - beta * define(policy, rho)
            np.testing.assert_allclose(value, attained, rtol=1e-9, atol=1e-9)
        others = draw.dirichlet(np.ones(4), size=500)
        near = 0.999 * policy + 0.001 * others
        for q in (others, near):
            assert (q @ rewards - beta * define(q, rho) <= value + 1e-10).all()


@heavy(SMOOTH)
def test_reward_recovery(name):
    """r - multiplier = beta f'(pi* / rho) wherever pi* > 0: f-DPO's premise."""
    div = DIVERGENCES[name]
    policy, multiplier, _ = solve64(div, beta=0.7)
    alive = policy > 0
    with x64():
        slope = div.f_prime(jnp.log(policy[alive] / RHO[alive]))
    np.testing.assert_allclose(
        REWARDS[alive] - multiplier, 0.7 * np.asarray(slope), atol=1e-9
    )


def test_jeffreys_identity():
    """E_pi* r - E_rho r = beta J(pi*, rho) for the reverse KL."""
    policy, _, _ = solve64(dv.reverse_kl(), beta=0.4)
    gain = (policy - RHO) @ REWARDS
    np.testing.assert_allclose(gain, 0.4 * (kl(policy, RHO) + kl(RHO, policy)))


def test_chi_po_density_ratio_bounds():
    """e^(-R/beta) <= pi*/rho <= 1 + R/beta (arXiv 2407.13399, proposition 4.1)."""
    draw = np.random.default_rng(2)
    for beta in (0.02, 0.3, 2.0):
        rewards, rho = draw.uniform(0, 1, size=4), draw.dirichlet(np.ones(4))
        policy, _, _ = solve64(dv.chi2_kl(), rewards, rho, beta)
        span = np.ptp(rewards) / beta
        assert (policy / rho >= np.exp(-span) * (1 - 1e-9)).all()
        assert (policy / rho <= (1 + span) * (1 + 1e-9)).all()


@heavy(SMOOTH)
def test_large_beta_law(name):
    """V = E_rho r + Var_rho r / (2 beta f''(1)) + o(1 / beta)."""
    div = DIVERGENCES[name]
    beta = 1e4
    _, _, value = solve64(div, beta=beta)
    mean = RHO @ REWARDS
    variance = RHO @ (REWARDS - mean) ** 2
    np.testing.assert_allclose(
        (value - mean) * 2 * beta * div.curvature, variance, rtol=2e-3
    )


@jax.jit
def both_modes(div, args, tangents, cotangents):
    def smooth(rewards, logits_ref, beta):
        logp, multiplier, value = dv.regularised_optimum(
            div, rewards, logits_ref, beta=beta
        )
        return jnp.exp(logp), multiplier, value

    _, forward = jax.jvp(smooth, args, tangents)
    _, pullback = jax.vjp(smooth, *args)
    return forward, pullback(cotangents)


@heavy(CASES)
def test_implicit_derivatives_against_finite_differences(name):
    """All outputs in all inputs (rewards, reference, beta), forward and reverse."""
    div = DIVERGENCES[name]
    draw = np.random.default_rng(5)
    args = (REWARDS, np.log(RHO) + 0.3, np.array(0.23))
    tangents = (draw.normal(size=4), draw.normal(size=4), np.array(0.1))
    cotangents = (draw.normal(size=4), np.array(0.7), np.array(-1.3))
    h = 1e-6
    with x64():
        outs = []
        for sign in (1, -1):
            moved = [a + sign * h * t for a, t in zip(args, tangents, strict=True)]
            logp, *rest = solve(div, *map(jnp.array, moved))
            outs.append([np.exp(logp), *map(np.asarray, rest)])
        as_jax = jax.tree.map(jnp.array, (args, tangents, cotangents))
        forward, backward = both_modes(div, *as_jax)
    for up, down, slope in zip(*outs, forward, strict=True):
        np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=1e-5, atol=1e-7)
    there = sum(np.vdot(c, f) for c, f in zip(cotangents, forward, strict=True))
    back = sum(np.vdot(t, b) for t, b in zip(tangents, backward, strict=True))
    np.testing.assert_allclose(there, back, rtol=1e-9)


def test_closed_form_derivatives():
    """dV/dr = pi*, dV/dbeta = -D, d multiplier/dr = w (reference 2.3)."""
    with x64():
        args = (jnp.array(REWARDS), jnp.log(jnp.array(RHO)), jnp.array(0.2))

        def part(n):
            return lambda r, q, b: dv.regularised_optimum(dv.pearson(), r, q, beta=b)[n]

        d_reward, _, d_beta = jax.jit(jax.grad(part(2), argnums=(0, 1, 2)))(*args)
        d_multiplier = jax.jit(jax.grad(part(1)))(*args)
    policy, _, _ = solve64(dv.pearson())
    np.testing.assert_allclose(d_reward, policy, atol=1e-12)
    np.testing.assert_allclose(d_beta, -chi2(policy, RHO), rtol=1e-9)
    # Pearson: pi / uf2 is rho / 2 on the candidates that are alive.
    weights = RHO * (policy > 0)
    np.testing.assert_allclose(d_multiplier, weights / weights.sum(), atol=1e-9)


@heavy(CASES)
def test_float32_over_many_scales(name):
    """float32 against float64, from greedy to flat, with a reference as unlikely as
    e^-20 where the reward is best."""
    div = DIVERGENCES[name]
    draw = np.random.default_rng(3)
    rho = np.array([np.exp(-20.0), 0.2, 0.3, 0.5])
    rho /= rho.sum()
    for beta in (1e-2, 0.3, 10.0):
        rewards = np.sort(draw.normal(size=4))[::-1].copy()
        true = solve64(div, rewards, rho, beta)
        logp, multiplier, value = solve(
            div,
            jnp.asarray(rewards, jnp.float32),
            jnp.log(jnp.asarray(rho, jnp.float32)),
            jnp.float32(beta),
        )
        np.testing.assert_allclose(jnp.exp(logp).sum(), 1, rtol=1e-5)
        np.testing.assert_allclose(jnp.exp(logp), true[0], atol=2e-4)
        np.testing.assert_allclose(value, true[2], rtol=1e-4, atol=1e-4 * beta)
        assert np.isfinite(multiplier)


@heavy(["jeffreys", *KINKED])
def test_masked_and_impossible_candidates(name):
    """They have no mass and no influence, NaN there included."""
    div = DIVERGENCES[name]
    where = jnp.array([[True, False, True, True], [False] * 4])
    rewards = jnp.where(where, jnp.array([[1.0, 9.0, 0.0, -0.5]] * 2), jnp.nan)
    logp_ref = jnp.where(where, jnp.log(jnp.array([RHO] * 2)), jnp.nan)

    def total(rewards, logp_ref):
        logp, multiplier, value = dv.regularised_optimum(
            div, rewards, logp_ref, beta=0.4, where=where
        )
        return (jnp.exp(logp) ** 2).sum() + multiplier.sum() + value.sum(), (
            logp,
            multiplier,
            value,
        )

    grads, (logp, multiplier, value) = jax.jit(
        jax.grad(total, argnums=(0, 1), has_aux=True)
    )(rewards, logp_ref)
    keep = np.array([0, 2, 3])
    alone = solve(div, rewards[0, keep], logp_ref[0, keep], jnp.float32(0.4))
    np.testing.assert_allclose(logp[0, keep], alone[0], rtol=1e-5)
    np.testing.assert_allclose(value[0], alone[2], rtol=1e-5)
    assert logp[0, 1] == -np.inf
    assert multiplier[1] == value[1] == 0
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(np.asarray(grad)[~np.asarray(where)], 0)


def test_beta_must_be_positive():
    call = functools.partial(
        dv.regularised_optimum, dv.reverse_kl(), jnp.zeros(2), jnp.zeros(2)
    )
    with pytest.raises(InputError, match="beta"):
        call(beta=0.0)


def test_rewards_computed_in_the_same_program():
    """XLA recomputes such rewards with other roundings: the best one is found by its
    place, not by being equal to the highest."""
    ref = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    many = jnp.asarray(np.random.default_rng(0).random((200, 3)))
    with x64():
        ref, many = (jnp.asarray(x, jnp.float64) for x in (ref, many))
        div = dv.pearson()

        def rewards(p, q):
            return (div.f_prime(p - ref) + 0.5 * q) / 1.15

        def solve(rewards):
            return jnp.exp(dv.regularised_optimum(div, rewards, ref, beta=1.0)[0])

        # The tests' own flags compile without the optimisations that matter here.
        one = jax.jit(
            lambda p, q: solve(rewards(p, q)),
            compiler_options={
                "xla_backend_optimization_level": 3,
                "xla_llvm_disable_expensive_passes": False,
            },
        )
        first, second = jax.jit(rewards), jax.jit(solve)
        for q in many:
            np.testing.assert_allclose(one(ref, q), second(first(ref, q)), atol=1e-10)
