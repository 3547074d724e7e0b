"""The reference's claims about methods that use a divergence, with our functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from alignax import divergences as dv
from alignax import logprobs
from tests.divergences.cases import PI, REWARDS, RHO, chi2, margin, x64

LOG_PI, LOG_RHO = np.log(PI), np.log(RHO)
TEACHER = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.fixture(autouse=True)
def double():
    with x64():
        yield


def grad_of(div, ref=LOG_RHO):
    """With respect to the policy's logits."""
    return jax.jit(jax.grad(lambda z: dv.exact(div, z, jnp.asarray(ref))))(
        jnp.asarray(LOG_PI)
    )


def test_check_4a_correlated_proxies_bound():
    """Laidlaw, Singhal and Dragan, arXiv 2403.03185, theorem 5.1."""
    true, proxy = np.array([0.2, -1, 0.7, 0.1]), np.array([1.5, -0.6, 0.4, -0.2])

    def standard(x):
        mean = RHO @ x
        return (x - mean) / np.sqrt(RHO @ (x - mean) ** 2)

    r = RHO @ (standard(true) * standard(proxy))
    np.testing.assert_allclose(r, 0.6261908255, atol=1e-9)

    def sides(mu):
        distance = dv.exact(dv.pearson(), jnp.log(mu), jnp.log(RHO))
        right = mu @ standard(proxy) - np.sqrt((1 - r**2) * distance)
        return mu @ standard(true), np.asarray(right / r), np.asarray(distance)

    left, right, distance = sides(PI)
    np.testing.assert_allclose(distance, 1.9125, atol=1e-12)
    np.testing.assert_allclose(left, -0.1774570443, atol=1e-9)
    np.testing.assert_allclose(right, -0.1964929462, atol=1e-9)
    many = np.random.default_rng(0).dirichlet(np.ones(4), size=2000)
    left = many @ standard(true)
    distance = jax.jit(
        jax.vmap(lambda m: dv.exact(dv.pearson(), m, jnp.asarray(LOG_RHO)))
    )(jnp.log(many))
    right = (many @ standard(proxy) - np.sqrt((1 - r**2) * distance)) / r
    assert (left >= right - 1e-9).all()
    # Equality along the residual of the proxy.
    residual = standard(proxy) - r * standard(true)
    # The residual that the proof subtracts: e with R~ = r R + sqrt(1 − r²) e.
    tight = RHO * (1 + 0.3 * residual / np.sqrt(1 - r**2))
    left, right, _ = sides(tight)
    np.testing.assert_allclose(left, right, atol=1e-9)


def test_check_4c_rewards_of_the_discriminator():
    """Its optimum is the log-ratio; (u − 1)/√χ² in the reward is the gradient of √χ²
    and u − 1 half that of χ² (arXiv 2403.03185)."""
    ratio = LOG_PI - LOG_RHO
    np.testing.assert_allclose(PI @ ratio, 0.6179033308, atol=1e-9)
    np.testing.assert_allclose(PI @ np.expm1(ratio), 1.9125, atol=1e-12)
    np.testing.assert_allclose(chi2(PI, RHO), 1.9125, atol=1e-12)

    def in_reward(values):
        # E[value · ∇ log π] of a softmax.
        return PI * (values - PI @ values)

    square = grad_of(dv.pearson())
    root = square / (2 * np.sqrt(chi2(PI, RHO)))
    detached = np.expm1(ratio)
    np.testing.assert_allclose(in_reward(detached), square / 2, atol=1e-9)
    normed = detached / np.sqrt(chi2(PI, RHO))
    np.testing.assert_allclose(in_reward(normed), root, atol=1e-9)


def test_check_5c_fenchel_form_of_imitation():
    """φ(x) = −f*(−x): Pearson x − x²/4, Hellinger (unhalved) x/(1 + x) (IQ-Learn form
    of "Implicit Reward as the Bridge", arXiv 2507.00018)."""
    x = np.linspace(-0.9, 1.9, 29)
    pearson = -dv.pearson().conjugate(-jnp.asarray(x))
    hellinger = -dv.scale(dv.squared_hellinger(), 2.0).conjugate(-jnp.asarray(x))
    np.testing.assert_allclose(pearson, x - x**2 / 4, atol=1e-9)
    np.testing.assert_allclose(hellinger, x / (1 + x), atol=1e-6)


def test_check_5d_differential_information():
    """Won et al., arXiv 2505.23761: q ∝ π*/ρ, and the rejected law under which DPO
    at strength β recovers π*."""
    q = np.asarray(jax.nn.softmax(np.log(TEACHER) - LOG_RHO))
    np.testing.assert_allclose(
        q, [0.6233766234, 0.2337662338, 0.1038961039, 0.038961039], atol=1e-6
    )
    np.testing.assert_allclose(logprobs.entropy(jnp.log(q)), 0.9960689366, atol=1e-6)
    beta = 0.5
    rejected = RHO * (RHO / TEACHER) ** beta
    rejected /= rejected.sum()
    np.testing.assert_allclose(
        rejected, [0.0362129175, 0.1182708932, 0.2661095097, 0.5794066796], atol=1e-9
    )
    # A pair (i, j): i is called better when drawn from ρ, j from the rejected law.
    for i in range(4):
        for j in range(i):
            better = RHO[i] * rejected[j]
            probability = better / (better + RHO[j] * rejected[i])
            found = margin(
                dv.reverse_kl(),
                *(jnp.log(TEACHER[[i, j]])),
                *(jnp.log(RHO[[i, j]])),
                beta=beta,
            )
            np.testing.assert_allclose(probability, 1 / (1 + np.exp(-found)), atol=1e-9)


def test_check_6a_bidirectional_distillation():
    """Equal weights of both KLs are Jeffreys (BD-KD, arXiv 2212.12965)."""
    value = dv.exact(dv.jeffreys(), jnp.asarray(LOG_PI), jnp.asarray(LOG_RHO))
    np.testing.assert_allclose(value, 1.174792727959, atol=1e-10)


def test_check_6d_total_variation_distillation():
    """TVD and TVD++ (arXiv 2403.00858): the gradient, its standardised form, and the
    acceptance of speculative sampling."""
    tv = np.asarray(grad_of(dv.total_variation()))
    value = dv.exact(dv.total_variation(), jnp.asarray(LOG_PI), jnp.asarray(LOG_RHO))
    np.testing.assert_allclose(tv, [0.125, 0.0625, -0.1125, -0.075], atol=1e-12)
    reward = (RHO > PI).astype(float)
    mean = PI @ reward
    deviation = np.sqrt(PI @ (reward - mean) ** 2)
    np.testing.assert_allclose([mean, deviation], [0.25, 0.4330127019], atol=1e-9)
    advantage = (reward - mean) / deviation
    plus = -PI * (advantage - PI @ advantage)
    np.testing.assert_allclose(plus, tv / deviation, atol=1e-12)
    np.testing.assert_allclose(
        plus, [0.2886751346, 0.1443375673, -0.2598076211, -0.1732050808], atol=1e-9
    )
    np.testing.assert_allclose(1 - value, 0.55, atol=1e-12)


def test_check_6f_extrapolated_distillation():
    """π ∝ ρ^(1−λ) π_T^λ, and log Z_λ = (λ − 1) R_λ(π_T‖ρ) (G-OPD, arXiv 2602.12125)."""
    strength = 1.25
    reward = strength * (np.log(TEACHER) - LOG_RHO)
    logp, _, value = dv.regularised_optimum(
        dv.reverse_kl(), jnp.asarray(reward), jnp.asarray(LOG_RHO), beta=1.0
    )
    renyi = dv.renyi(jnp.log(TEACHER), jnp.asarray(LOG_RHO), order=strength)
    np.testing.assert_allclose(
        np.exp(logp), [0.492276606, 0.2889204469, 0.1572683714, 0.0615345757], atol=1e-9
    )
    np.testing.assert_allclose(value, 0.13899737164365794, atol=1e-10)
    np.testing.assert_allclose(renyi, 0.5559894865746318, atol=1e-10)
    np.testing.assert_allclose(value, (strength - 1) * renyi, atol=1e-10)


def test_check_6g_self_distillation_rescales_hard_examples():
    """PS-KD: the true class's gradient is cross-entropy's times
    1 − α (1 − p'_y)/(1 − p_y) (arXiv 2006.12000)."""
    before, now, label, share = np.array([0.2, 0.5, 0.3]), [0.3, 0.4, 0.3], 1, 0.4
    one_hot = np.eye(3)[label]
    target = (1 - share) * one_hot + share * before

    def slope(target):
        return jax.grad(
            lambda z: dv.exact(dv.forward_kl(), z, jnp.log(jnp.asarray(target)))
        )(jnp.log(jnp.asarray(now)))[label]

    np.testing.assert_allclose(slope(target) / slope(one_hot), 2 / 3, atol=1e-9)


def test_check_6i_de_bruijn():
    """KL(p_0‖q_0) − KL(p_T‖q_T) = ½ ∫ β E‖s_p − s_q‖² dt along an Ornstein-Uhlenbeck
    process (Diff-Instruct*, arXiv 2410.20898)."""
    horizon = 3.0

    def at(t, mean, var):
        decay = np.exp(-t)
        return mean * np.sqrt(decay), var * decay + 1 - decay

    def kl(t):
        (m, v), (n, w) = at(t, 0.0, 1.0), at(t, 1.5, 0.6)
        return float(
            dv.gaussian_kl(*(jnp.asarray(x) for x in (m, np.log(v), n, np.log(w))))
        )

    def fisher(t):
        (m, v), (n, w) = at(t, 0.0, 1.0), at(t, 1.5, 0.6)
        # (x − n)/w − (x − m)/v is linear in x.
        slope, offset = 1 / w - 1 / v, m / v - n / w
        return (slope * m + offset) ** 2 + slope**2 * v

    integral, _ = scipy.integrate.quad(fisher, 0, horizon)
    np.testing.assert_allclose(kl(0), scipy_kl(0, 1, 1.5, 0.6), atol=1e-9)
    np.testing.assert_allclose(kl(0) - kl(horizon), integral / 2, atol=1e-8)


def scipy_kl(m, v, n, w):
    p, q = scipy.stats.norm(m, np.sqrt(v)), scipy.stats.norm(n, np.sqrt(w))
    return p.expect(lambda x: p.logpdf(x) - q.logpdf(x))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_check_9a_soup_of_references(share):
    """α KL(π‖π1) + (1−α) KL(π‖π2) = KL(π‖soup) − log Z (SALSA, arXiv 2411.01798)."""
    one, two = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    soup = one**share * two ** (1 - share)
    log_z = np.log(soup.sum())
    soup /= soup.sum()
    if share == 0.5:
        np.testing.assert_allclose(
            soup, [0.3981648379, 0.3448208645, 0.2570142977], atol=1e-9
        )
        np.testing.assert_allclose(-log_z, 0.13924257411688745, atol=1e-12)
    policy = np.array([0.5, 0.2, 0.3])
    to_one, to_two, to_soup = (
        float(dv.exact(dv.reverse_kl(), jnp.log(policy), jnp.log(x)))
        for x in (one, two, soup)
    )
    np.testing.assert_allclose(
        share * to_one + (1 - share) * to_two, to_soup - log_z, atol=1e-10
    )


def test_fixture_is_the_references():
    np.testing.assert_allclose(RHO @ REWARDS, 0, atol=1e-12)
    np.testing.assert_allclose(RHO @ REWARDS**2, 0.25, atol=1e-12)
