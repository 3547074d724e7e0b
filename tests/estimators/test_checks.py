"""The numbers of the reference's CHECK lines (divergences.md, section 1) and the
identities behind them, for the law PI against RHO, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import estimators as e
from tests.estimators.enumerated import World, miss, moments, truths

PI, RHO = np.array([0.5, 0.25, 0.15, 0.10]), np.array([0.1, 0.2, 0.3, 0.4])
B = np.full(4, 0.25)
REVERSE = [0.4957672908, -0.0986899449, -0.1966575767, -0.2004197692]
FORWARD = [0.4, 0.05, -0.15, -0.3]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def token(theta):
    """One token a row: each of the four once."""
    return jax.nn.log_softmax(theta)[:, None]


def ref():
    return jnp.log(jnp.asarray(RHO))[:, None]


def theta():
    return jnp.log(jnp.asarray(PI))


MASK = np.ones((4, 1), bool)


def mean(law, terms):
    return float(law @ np.asarray(terms)[:, 0])


def variance(law, terms):
    terms = np.asarray(terms)[:, 0]
    return float(law @ (terms - law @ terms) ** 2)


def gradient(law, loss):
    """The expected gradient in the logits of a loss of ``logp [4, 1]``."""
    return jax.grad(lambda x: jnp.sum(jnp.asarray(law) * loss(token(x))[:, 0]))(theta())


def in_reward(law, estimate):
    return gradient(
        law, lambda logp: jax.lax.stop_gradient(estimate(logp, ref())) * logp
    )


def near(actual, expected, digits=9.5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10**-digits)


def test_check_1a_values_and_variances():
    """CHECK 1.a: means and variances of k1, k2, k3."""
    logp = token(theta())
    k1, k2, k3 = e.k1(logp, ref()), e.k2(logp, ref()), e.k3(logp, ref())
    near(mean(PI, k1), 0.6179033308496216, 15)
    near(mean(PI, k3), 0.6179033308496216, 15)
    near(mean(PI, k2), 0.7859213079)
    near(mean(RHO, e.forward_k1(logp, ref())), 0.5568893971096877, 15)
    near(variance(PI, k1), 1.1900380895)
    near(variance(PI, k2), 0.3221735533)
    near(variance(PI, k3), 0.2204526336)


def test_check_1b_gradients_as_loss_and_in_reward():
    """CHECK 1.b: the six cells of the table of section 1.2."""
    near(gradient(PI, lambda logp: e.k1(logp, ref())), np.zeros(4), 15)
    near(gradient(PI, lambda logp: e.k2(logp, ref())), REVERSE)
    near(gradient(PI, lambda logp: e.k3(logp, ref())), FORWARD)
    near(in_reward(PI, e.k1), REVERSE)
    near(in_reward(PI, e.k2), [0.2546119446, -0.1902561964, -0.0818542201, 0.017498472])
    near(
        in_reward(PI, e.k3), [0.0957672908, -0.1486899449, -0.0466575767, 0.0995802308]
    )
    near(in_reward(PI, e.k3), np.subtract(REVERSE, FORWARD), 9)


def test_check_1c_optimal_coefficient():
    """CHECK 1.c: the best control variate; that of k3 is c = 1."""
    best = 0.8512990782
    logp = token(theta())

    def spread(c):
        return variance(PI, e.control_variate(logp, ref(), coefficient=c))

    near(spread(best), 0.1899381231)
    assert spread(best) < min(spread(best - 1e-3), spread(best + 1e-3))
    near(e.control_variate(logp, ref(), coefficient=1.0), e.k3(logp, ref()), 15)
    # Estimated from a batch in which every token is as frequent as it is likely.
    rows = np.repeat(np.arange(4), (PI * 400).astype(int))
    mask = jnp.ones((400, 1), bool)
    c = e.optimal_coefficient(logp[rows], ref()[rows], mask)
    np.testing.assert_allclose(c, np.full((400, 1), best), atol=0.02)


def test_check_1d_off_policy():
    """CHECK 1.d: ∇(w·k3) = sg(w)·l·s sample by sample; unweighted, nothing."""
    behaviour, mask = jnp.log(jnp.asarray(B))[:, None], jnp.asarray(MASK)

    def weighted(logp):
        return e.myopic_weighted_k3_surrogate(logp, ref(), behaviour, mask)

    def differentiated(logp):
        return jnp.exp(logp - behaviour) * e.k3(logp, ref())

    def k2(logp):
        w = e.token_weights(logp, behaviour, mask)
        return w * e.myopic_k2_surrogate(logp, ref(), mask)

    jacobians = [
        jax.jacobian(lambda x, f=f: f(token(x))[:, 0])(theta())
        for f in (weighted, differentiated, k2)
    ]
    near(jacobians[0], jacobians[1], 14)
    near(jacobians[0], jacobians[2], 14)
    near(weighted(token(theta())), differentiated(token(theta())), 15)
    near(gradient(B, weighted), REVERSE)

    def detached(logp):
        return e.token_weights(logp, behaviour, mask) * e.k3(logp, ref())

    near(gradient(B, detached), FORWARD)
    naive = gradient(B, lambda logp: e.k3(logp, ref()))
    near(naive, [0.575, 0.2375, -0.1375, -0.675])
    naive = gradient(B, lambda logp: e.k2(logp, ref()))
    near(naive, [0.4332169878, 0.0712146427, -0.1640295422, -0.3404020883])


GENERATORS = [
    dv.reverse_kl(),
    dv.forward_kl(),
    dv.jensen_shannon(),
    dv.jensen_shannon(0.3),
    dv.scale(dv.jensen_shannon(), 2.0),
    dv.alpha(0.5),
    dv.alpha(-1.0),
    dv.pearson(),
    dv.neyman(),
    dv.squared_hellinger(),
    dv.jeffreys(),
    dv.chi2_kl(),
    dv.total_variation(),
]


@pytest.mark.parametrize("div", GENERATORS, ids=str)
def test_check_1e_any_f(div):
    """CHECK 1.e: score form on- and off-policy, pathwise form from the reference,
    and ``dD/dz_j = π_j (f'(u_j) − E f'(u))``, for all thirteen generators."""

    def exact(x):
        u = jax.nn.softmax(x) / RHO
        return jnp.sum(RHO * div.f(jnp.log(u)))

    truth, mask = jax.grad(exact)(theta()), jnp.asarray(MASK)
    slope = div.f_prime(jnp.log(jnp.asarray(PI / RHO)))
    near(truth, PI * (slope - PI @ slope), 12)
    policy = [e.myopic_f_surrogate, e.sequence_f_surrogate]
    reference = [e.myopic_f_reference_surrogate, e.sequence_f_reference_surrogate]
    for loss in policy:
        near(gradient(PI, lambda logp, f=loss: f(div, logp, ref(), mask)), truth, 12)
        near(mean(PI, loss(div, token(theta()), ref(), mask)), exact(theta()), 12)
        w = jnp.asarray(PI / B)[:, None]
        off = gradient(B, lambda logp, f=loss, w=w: w * f(div, logp, ref(), mask))
        near(off, truth, 12)
    for loss in reference:
        near(gradient(RHO, lambda logp, f=loss: f(div, logp, ref(), mask)), truth, 12)
        near(mean(RHO, loss(div, token(theta()), ref(), mask)), exact(theta()), 12)
    near(mean(PI, e.f_from_policy(div, token(theta()), ref())), exact(theta()), 12)
    near(mean(RHO, e.f_from_reference(div, token(theta()), ref())), exact(theta()), 12)


def test_check_1f_forward_kl_from_the_reference():
    """CHECK 1.f: variances of −l, of k3f, and of the best coefficient."""
    logp, mask, best = token(theta()), jnp.asarray(MASK), 0.6142707074

    def estimate(c, logp=logp):
        return e.forward_kl_surrogate(logp, ref(), mask, coefficient=c)

    near(variance(RHO, e.forward_k1(logp, ref())), 0.8717225741)
    near(variance(RHO, estimate(1.0)), 0.4346371182)
    near(variance(RHO, estimate(best)), 0.1500818140)
    near(estimate(0.0), e.forward_k1(logp, ref()), 15)
    l = logp - ref()
    near(estimate(1.0), jnp.where(mask, jnp.expm1(l) - l, 0), 15)
    for c in (0.0, best, 1.0):
        near(mean(RHO, estimate(c)), 0.5568893971096877, 15)
        near(gradient(RHO, lambda logp, c=c: estimate(c, logp)), FORWARD, 12)


def test_check_1g_forward_kl_on_policy():
    """CHECK 1.g: RAPO's v log v − v + 1 as a loss, and with its score term."""

    def rapo(logp):
        v = jnp.exp(ref() - logp)
        return v * (ref() - logp) - v + 1

    estimate = e.f_from_policy(dv.forward_kl(), token(theta()), ref())
    near(rapo(token(theta())), estimate, 14)
    as_loss = gradient(PI, rapo)
    near(as_loss, [0.4393884898, 0.1838510595, -0.1244107446, -0.4988288047])
    score = in_reward(PI, lambda logp, _: rapo(logp))
    near(as_loss + score, FORWARD, 12)
    exact = gradient(
        PI, lambda x: e.myopic_f_surrogate(dv.forward_kl(), x, ref(), jnp.asarray(MASK))
    )
    near(exact, FORWARD, 12)


def test_check_1h_sequences():
    """CHECK 1.h: the three exact forms agree, the token-level loss does not, all
    four values have one mean and Rao–Blackwell the least variance. (The logits
    behind the reference's own numbers are not in it: these are others.)"""
    world = World(V=3, T=2)
    x, r = world.theta(0), world.theta(1)
    truth, expected = truths(world, x, r, x)[e.table.SEQUENCE_KL]
    exact = ["sequence_kl_surrogate", "sequence_k2_surrogate"]
    for name in [*exact, "rao_blackwell_surrogate"]:
        near(moments(world, name, x, r, x)[1], expected, 12)
    partial = ["myopic_rao_blackwell_surrogate", "myopic_k2_surrogate"]
    found = [moments(world, name, x, r, x)[1] for name in partial]
    near(found[0], found[1], 12)
    assert miss(found[0], expected) > 0.1
    # It is the first token's block that lacks something, the last one's is whole.
    near(found[0][1:], expected[1:], 12)
    assert abs(found[0][0] - expected[0]).max() > 1e-2
    # k3 of the sequence's ratio is one more unbiased value, of a variance between.
    whole = world.logps(x).sum(-1), world.logps(r).sum(-1)
    law = np.asarray(world.law(x))
    near(law @ np.asarray(e.k3(*whole)), truth, 12)
    values = [
        moments(world, e.TABLE[n], x, r, x) for n in ("k1", "k3", "rao_blackwell")
    ]
    for value in values:
        near(value[0], truth, 12)
    spread = [value[2] for value in values]
    assert spread[2] < spread[1] < spread[0]


ADDITIVE = [
    (dv.reverse_kl(), True, False),
    (dv.forward_kl(), False, True),
    (dv.jensen_shannon(), False, False),
    (dv.pearson(), False, False),
]


@pytest.mark.parametrize(("div", "from_policy", "from_reference"), ADDITIVE, ids=str)
def test_check_1i_additivity(div, from_policy, from_reference):
    """CHECK 1.i: token divergences add up to that of sequences for the reverse KL
    at the policy's prefixes and the forward KL at the reference's, and no other."""
    world = World(V=3, T=2)
    x, r = world.theta(0), world.theta(1)
    s = world.samples(x, r, x)
    arguments = div, s.logp, s.logp_ref, s.mask
    whole = world.law(x) @ e.sequence_f_surrogate(*arguments).sum(-1)
    again = world.law(r) @ e.sequence_f_reference_surrogate(*arguments).sum(-1)
    near(whole, again, 12)
    policy = world.law(x) @ e.f_from_policy(*arguments).sum(-1)
    reference = world.law(r) @ e.f_from_reference(*arguments).sum(-1)
    assert (abs(policy - whole) < 1e-12) == from_policy
    assert (abs(reference - whole) < 1e-12) == from_reference


def test_check_a14_weights():
    """policy_gradient.md A14: effective sample size, truncation, masking."""
    w = jnp.array([0.5, 1.0, 4.0, 0.1])
    near(e.effective_sample_size(w), 5.6**2 / 17.26, 12)
    near(round(float(e.effective_sample_size(w)), 4), 1.8169, 12)
    near(e.truncated_weights(w, cap=2.0), [0.5, 1, 2, 0.1], 12)
    near(e.masked_weights(w, low=0.5, high=2.0), [0.5, 1, 0, 0], 12)
