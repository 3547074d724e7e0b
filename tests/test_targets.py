"""Targets against the reference's numbers, enumeration and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from alignax import divergences as dv
from alignax import exact, targets
from alignax.types import InputError

PI = np.array([0.5, 0.25, 0.15, 0.10])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
R = np.array([1.0, 0.5, 0.0, -0.5])

# Compiled whole: much faster here than operation by operation.
posterior, cumulants, constrained_optimum = map(
    jax.jit, (targets.posterior, targets.cumulants, targets.constrained_optimum)
)
quasi_rejection_law, quasi_rejection_quality, log_acceptance = map(
    jax.jit,
    (
        targets.quasi_rejection_law,
        targets.quasi_rejection_quality,
        targets.log_acceptance,
    ),
)
log_normaliser, importance_expectation = map(
    jax.jit, (targets.log_normaliser, targets.importance_expectation)
)
kl_of, objective, expectation, total_variation = map(
    jax.jit, (exact.kl, exact.objective, exact.expectation, exact.total_variation)
)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def fixture():
    return jnp.log(PI), jnp.log(RHO), jnp.array(R)


def test_kl_regularised_rl_is_inference():
    """Reference CHECK 3.a; Korbak, Perez and Buckley, arXiv 2205.11275."""
    pi, rho, r = fixture()
    logp, log_z = posterior(r, rho, beta=0.5)
    expected = [0.4271837517, 0.3143042397, 0.1734391021, 0.0850729066]
    np.testing.assert_allclose(jnp.exp(logp), expected, atol=1e-10)
    np.testing.assert_allclose(0.5 * log_z, 0.2739779667893433, rtol=1e-12)
    value, rest = objective(pi, rho, r, beta=0.5), 0.5 * kl_of(pi, logp)
    np.testing.assert_allclose(value, 0.2660483345751892, rtol=1e-12)
    np.testing.assert_allclose(rest, 0.0079296322141542, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_evidence_bound_holds_for_any_policy(beta):
    """``E r − β KL(π‖ρ) = β log Z − β KL(π‖p*)`` and its gradient."""
    _, rho, r = fixture()
    logp, log_z = posterior(r, rho, beta=beta)

    @jax.jit
    def sides(logits):
        pi = jax.nn.log_softmax(logits)
        left = objective(pi, rho, r, beta=beta)
        return left, beta * log_z - beta * kl_of(pi, logp)

    for logits in jax.random.normal(jax.random.key(0), (4, 4)):
        np.testing.assert_allclose(*sides(logits), rtol=1e-12)
    np.testing.assert_allclose(*jax.jacobian(sides)(logits), atol=1e-12)


def test_pure_rl_collapses_to_the_best():
    """Reference 3.1: β → 0."""
    _, rho, r = fixture()
    logp, _ = posterior(r, rho, beta=1e-3)
    np.testing.assert_allclose(jnp.exp(logp), [1, 0, 0, 0], atol=1e-12)


def test_posterior_takes_a_beta_a_row():
    _, rho, r = fixture()
    betas = jnp.array([0.2, 1.0])
    rows, log_z = posterior(jnp.tile(r, (2, 1)), jnp.tile(rho, (2, 1)), beta=betas)
    for row, z, beta in zip(rows, log_z, (0.2, 1.0), strict=True):
        single, single_z = posterior(r, rho, beta=beta)
        np.testing.assert_allclose(row, single)
        np.testing.assert_allclose(z, single_z)


def test_excluded_outcomes_have_no_influence():
    rho, r = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.array([1.0, 0.0, jnp.nan])

    @jax.jit
    def value(rho, r):
        logp, log_z = posterior(r, rho, beta=1.0)
        constrained, eta = constrained_optimum(r, rho, kl=0.1)
        c = cumulants(r, rho, eta=1.0)
        return log_z + logp[0] + constrained[0] + eta + c.mean + c.variance + c.kl

    assert posterior(r, rho, beta=1.0)[0][2] == -jnp.inf
    for gradient in jax.grad(value, argnums=(0, 1))(rho, r):
        assert np.isfinite(gradient).all()
        assert gradient[2] == 0
    np.testing.assert_allclose(value(rho, r), value(rho[:2], r[:2]))


def test_kl_to_the_posterior_from_samples():
    pi, rho, r = fixture()
    logp, log_z = posterior(r, rho, beta=0.5)

    def pointwise(logits):
        logp = jax.nn.log_softmax(logits)
        z = jnp.broadcast_to(log_z, logp.shape)
        return targets.kl_to_posterior(logp, rho, r, z, beta=0.5)

    np.testing.assert_allclose(PI @ pointwise(pi), kl_of(pi, logp), rtol=1e-12)
    np.testing.assert_allclose(pointwise(logp), 0, atol=1e-12)
    # As a loss it has, in expectation, no gradient.
    np.testing.assert_allclose(PI @ jax.jacobian(pointwise)(pi), 0, atol=1e-12)


def test_pointwise_constraint():
    """Reference CHECK 3.c, first half; Khalifa et al., arXiv 2012.11635."""
    _, rho, _ = fixture()
    satisfied = jnp.array([True, False, True, False])
    logp, log_z = targets.conditioned(rho, satisfied)
    np.testing.assert_allclose(jnp.exp(logp), [0.25, 0, 0.75, 0])
    np.testing.assert_allclose(jnp.exp(log_z), 0.4)
    np.testing.assert_allclose(kl_of(logp, rho), 0.916290731874, rtol=1e-11)
    np.testing.assert_allclose(-log_z, 0.916290731874, rtol=1e-11)
    assert targets.conditioned(rho, jnp.zeros(4, bool))[1] == -jnp.inf


def test_distributional_constraint_exact_and_from_samples():
    """Reference CHECK 3.c, second half: λ = log 4, by ``information_projection``; and
    by self-normalised weights of samples of the uniform law."""
    _, rho, _ = fixture()
    features = jnp.array([[1.0], [0.0], [0.0], [1.0]])
    logp, multipliers = dv.information_projection(rho, features, jnp.array([0.8]))
    np.testing.assert_allclose(multipliers, 1.3862943611, atol=1e-9)
    np.testing.assert_allclose(jnp.exp(logp), [0.16, 0.08, 0.12, 0.64], atol=1e-9)
    samples = jax.random.randint(jax.random.key(0), (20_000,), 0, 4)
    log_weights = (rho + multipliers[0] * features[:, 0])[samples] - jnp.log(0.25)
    moment = importance_expectation(log_weights, features[samples, 0])
    np.testing.assert_allclose(moment, 0.8, atol=0.02)


def test_quasi_rejection_of_the_fixture():
    """Reference CHECK 3.d: q = PI, P = RHO e^{2R}, κ = 2."""
    pi, rho, r = fixture()
    log_target = rho + 2 * r
    logp, log_rate = quasi_rejection_law(log_target, pi, log_kappa=np.log(2))
    np.testing.assert_allclose(jnp.exp(log_rate), 0.8430286931808, rtol=1e-12)
    distance = total_variation(logp, jax.nn.log_softmax(log_target))
    np.testing.assert_allclose(distance, 0.0177544282349, rtol=1e-10)
    minimum = np.minimum(RHO * np.exp(2 * R), 2 * PI)
    np.testing.assert_allclose(jnp.exp(logp), minimum / minimum.sum())


def test_quasi_rejection_with_a_bound_is_rejection():
    pi, rho, r = fixture()
    log_target = rho + 2 * r
    bound = float(jnp.max(log_target - pi))
    logp, log_rate = quasi_rejection_law(log_target, pi, log_kappa=bound)
    np.testing.assert_allclose(logp, jax.nn.log_softmax(log_target))
    log_z = jax.nn.logsumexp(log_target)
    np.testing.assert_allclose(log_rate, log_z - bound, rtol=1e-10)


def test_larger_kappa_is_nearer_and_keeps_less():
    pi, rho, r = fixture()
    target = jax.nn.log_softmax(rho + 2 * r)
    laws = [
        quasi_rejection_law(rho + 2 * r, pi, log_kappa=k) for k in (-2.0, 0.0, 0.5, 1.5)
    ]
    distances = [total_variation(logp, target) for logp, _ in laws]
    rates = [rate for _, rate in laws]
    assert distances == sorted(distances, reverse=True)
    assert rates == sorted(rates, reverse=True)


def test_sampling_with_the_acceptance_has_the_law():
    pi, rho, r = fixture()
    log_target = rho + 2 * r
    keys = jax.random.split(jax.random.key(4))
    samples = jax.random.categorical(keys[0], pi, shape=(40_000,))
    accept = log_acceptance((log_target - pi)[samples], log_kappa=np.log(2))
    kept = jax.random.uniform(keys[1], samples.shape) < jnp.exp(accept)
    logp, log_rate = quasi_rejection_law(log_target, pi, log_kappa=np.log(2))
    np.testing.assert_allclose(kept.mean(), jnp.exp(log_rate), atol=0.01)
    counts = jnp.bincount(samples, weights=kept * 1.0, length=4) / kept.sum()
    np.testing.assert_allclose(counts, jnp.exp(logp), atol=0.01)


def test_quasi_rejection_diagnostics():
    """Exact where each outcome appears in the proposal's proportion."""
    _, rho, r = fixture()
    log_target = rho + 2 * r
    pi = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
    weights = (log_target - pi)[jnp.array([0, 0, 0, 0, 1, 1, 2, 3])]
    rate, distance = quasi_rejection_quality(weights, log_kappa=0.3)
    logp, log_rate = quasi_rejection_law(log_target, pi, log_kappa=0.3)
    np.testing.assert_allclose(rate, jnp.exp(log_rate))
    expected = total_variation(logp, jax.nn.log_softmax(log_target))
    np.testing.assert_allclose(distance, expected)
    assert expected > 0.01


def test_acceptance_has_the_whole_gradient_below_and_none_above():
    gradient = jax.grad(lambda w: log_acceptance(w, log_kappa=1.0).sum())(
        jnp.array([0.9, 1.1])
    )
    np.testing.assert_array_equal(gradient, [1, 0])


def test_normaliser_is_unbiased_and_its_log_low():
    """Over all pairs of samples: E Ẑ = Z, E log Ẑ < log Z."""
    pi, rho, r = fixture()
    log_weights = rho + 2 * r - pi
    pairs = jnp.stack(jnp.meshgrid(*2 * [log_weights]), axis=-1)
    chances = jnp.exp(pi)[:, None] * jnp.exp(pi)[None]
    estimates = log_normaliser(pairs)
    z = jnp.exp(jax.nn.logsumexp(rho + 2 * r))
    np.testing.assert_allclose(jnp.sum(chances * jnp.exp(estimates)), z)
    assert jnp.sum(chances * estimates) < jnp.log(z) - 0.005


def test_log_normaliser_is_the_running_mean():
    """Two updates, one masked sample, one zero weight; far below float32's range."""
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 2, 5)) - 500.0
    second[0, 1] = -np.inf
    where = np.ones((2, 5), bool)
    where[1, 3] = False
    normaliser = targets.running_log_normaliser((2,))
    state = normaliser.update(normaliser.init(), jnp.asarray(first, jnp.float32))
    state = normaliser.update(
        state,
        jnp.where(where, jnp.asarray(second, jnp.float32), jnp.nan),
        where=jnp.asarray(where),
    )
    for row in range(2):
        weights = np.concatenate([first[row], second[row][where[row]]])
        expected = np.log(np.mean(np.exp(weights + 500.0))) - 500.0
        np.testing.assert_allclose(state.log_z[row], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.count, [10, 9])
    one = targets.running_log_normaliser()
    empty = one.update(one.init(), jnp.full(3, -jnp.inf))
    assert empty.log_z == -np.inf
    later = one.update(empty, jnp.zeros(3))
    np.testing.assert_allclose(later.log_z, np.log(0.5), rtol=1e-6)


def test_excluded_samples():
    log_weights = jnp.array([0.0, -jnp.inf, jnp.log(3.0), -jnp.inf])
    np.testing.assert_allclose(log_normaliser(log_weights), 0.0, atol=1e-12)
    values = jnp.array([0.0, jnp.nan, 1.0, jnp.inf])
    np.testing.assert_allclose(importance_expectation(log_weights, values), 0.75)
    none = jnp.full(3, -jnp.inf)
    assert log_normaliser(none) == -jnp.inf
    assert importance_expectation(none, jnp.ones(3)) == 0


@jax.jit
def all_quantities(w):
    return log_normaliser(w) + sum(quasi_rejection_quality(w, log_kappa=0.0))


def test_excluded_samples_have_finite_gradients():
    log_weights = jnp.array([0.0, -jnp.inf, jnp.log(3.0), -jnp.inf])
    gradient = jax.grad(all_quantities)(log_weights)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1::2], 0)


def test_cumulants_of_the_fixture():
    """Reference CHECK 7.a at η = 1.3; Yang et al., arXiv 2404.01730."""
    _, rho, r = fixture()
    c = cumulants(r, rho, eta=1.3)
    np.testing.assert_allclose(c.mean, 0.3607041176, atol=1e-10)
    np.testing.assert_allclose(c.kl, 0.2387118670, atol=1e-10)
    np.testing.assert_allclose(c.variance, 0.2789236180, atol=1e-10)
    np.testing.assert_allclose(c.kl, 1.3 * c.mean - c.log_z)


def test_cumulants_are_derivatives():
    """``Λ' = mean``, ``Λ'' = variance``, ``dKL/dη = η Λ''``; under φ,
    ``Λ_φ(t) = Λ(η + t) − Λ(η)``."""
    _, rho, r = fixture()
    eta = jnp.array(0.7)
    slope = jax.jacobian(lambda eta: cumulants(r, rho, eta=eta))(eta)
    c = cumulants(r, rho, eta=eta)
    np.testing.assert_allclose(slope.log_z, c.mean)
    np.testing.assert_allclose(slope.mean, c.variance)
    np.testing.assert_allclose(slope.kl, eta * c.variance)
    tilted = jax.nn.log_softmax(rho + eta * r)
    ahead = cumulants(r, rho, eta=eta + 0.4).log_z - c.log_z
    np.testing.assert_allclose(cumulants(r, tilted, eta=0.4).log_z, ahead)


def test_constrained_optimum_of_the_fixture():
    """Reference CHECK 7.a at Δ = .3."""
    _, rho, r = fixture()
    logp, eta = constrained_optimum(r, rho, kl=0.3)
    np.testing.assert_allclose(eta, 1.4612756965, atol=1e-9)
    expected = [0.3219745861, 0.3101270181, 0.2240365502, 0.1438618456]
    np.testing.assert_allclose(jnp.exp(logp), expected, atol=1e-9)
    np.testing.assert_allclose(expectation(logp, r), 0.4051071723, atol=1e-9)


def test_constrained_optimum_beyond_reach():
    """Reference CHECK 7.a: at most −log ρ(best) = 2.3025850930 can be spent."""
    _, rho, r = fixture()
    logp, _ = constrained_optimum(r, rho, kl=3.0)
    np.testing.assert_allclose(jnp.exp(logp), [1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(kl_of(logp, rho), 2.3025850930, atol=1e-9)
    same, _ = constrained_optimum(jnp.ones(4), rho, kl=0.3)
    np.testing.assert_allclose(same, rho)
    gradient = jax.grad(lambda r: constrained_optimum(r, rho, kl=3.0)[1], argnums=0)(r)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_constrained_optimum_spends_its_budget(scale):
    _, rho, r = fixture()
    solve = jax.jit(lambda kl: constrained_optimum(scale * r[None], rho[None], kl=kl))
    for kl in (1e-6, 1e-3, 0.5, 2.2):
        logp, eta = solve(jnp.array([kl]))
        np.testing.assert_allclose(kl_of(logp[0], rho), kl, rtol=1e-6)
        np.testing.assert_allclose(
            logp[0], jax.nn.log_softmax(rho + eta[0] * scale * r)
        )
    # Nothing to spend, nothing moves.
    logp, _ = solve(jnp.array([0.0]))
    np.testing.assert_allclose(logp[0], rho, atol=1e-8)


def test_constrained_optimum_against_scipy():
    _, rho, r = fixture()
    logp, _ = constrained_optimum(r, rho, kl=0.15)
    found = scipy.optimize.minimize(
        lambda p: -p @ R,
        RHO,
        bounds=[(1e-9, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "ineq", "fun": lambda p: 0.15 - p @ np.log(p / RHO)},
        ],
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(jnp.exp(logp), found.x, atol=1e-5)


def test_gradients_against_finite_differences():
    def all_of_them(pi, rho, r, kl):
        pi, rho, r, kl = map(jnp.asarray, (pi, rho, r, kl))
        return (
            posterior(r, rho, beta=0.4),
            cumulants(r, rho, eta=0.9),
            constrained_optimum(r, rho, kl=kl),
            quasi_rejection_law(rho + 2 * r, pi, log_kappa=0.3),
            quasi_rejection_quality(r, log_kappa=0.3),
            targets.renyi_cross_entropy(pi, rho, order=1.7),
            log_normaliser(r),
            importance_expectation(r, pi),
        )

    check_grads(
        jax.jit(all_of_them), (*fixture(), jnp.array(0.3)), 1, modes=["rev"], rtol=1e-5
    )


def test_envelope_of_the_constrained_optimum():
    """``d E_φ r / dΔ = 1/η``: the price of a nat."""
    _, rho, r = fixture()

    def best(kl):
        return expectation(constrained_optimum(r, rho, kl=kl)[0], r)

    _, eta = constrained_optimum(r, rho, kl=0.3)
    np.testing.assert_allclose(jax.grad(best)(jnp.array(0.3)), 1 / eta, rtol=1e-8)


def test_renyi_cross_entropy_of_the_fixture():
    """Reference CHECK 7.a, q = [.3, .3, .2, .2]: ``Λ(t) = −t H_{1+t}``, r = log q."""
    _, rho, _ = fixture()
    logq = jnp.log(jnp.array([0.3, 0.3, 0.2, 0.2]))
    h = targets.renyi_cross_entropy(rho, logq, order=1.7)
    np.testing.assert_allclose(h, 1.4752814302, atol=1e-10)
    shannon = targets.renyi_cross_entropy(rho, logq, order=1.0)
    np.testing.assert_allclose(shannon, 1.4877983800, atol=1e-10)
    near = targets.renyi_cross_entropy(rho, logq, order=1 + 1e-7)
    np.testing.assert_allclose(near, shannon, rtol=1e-7)
    log_z = cumulants(logq, rho, eta=0.7).log_z
    np.testing.assert_allclose(log_z, -0.7 * h)


def test_float32_budgets():
    """Small and large budgets in the precision that runs have."""
    with jax.enable_x64(False):
        rho, r = jnp.log(jnp.array(RHO, jnp.float32)), jnp.array(R, jnp.float32)
        for kl in (1e-4, 0.3, 2.0):
            logp, _ = constrained_optimum(r, rho, kl=kl)
            assert logp.dtype == jnp.float32
            np.testing.assert_allclose(kl_of(logp, rho), kl, rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda q, r: targets.posterior(r, q, beta=0.0), "beta"),
        (lambda q, r: targets.kl_to_posterior(q, q, r, r, beta=-1.0), "beta"),
        (lambda q, r: targets.constrained_optimum(r, q, kl=-0.1), "kl"),
    ],
)
def test_range_checks(call, named):
    _, rho, r = fixture()
    with pytest.raises(InputError, match=named):
        call(rho, r)
