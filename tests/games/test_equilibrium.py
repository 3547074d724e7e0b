"""Exact equilibria against the reference's numbers, scipy, and optimality itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import root

from alignax import divergences as dv
from alignax import games
from alignax.types import InputError
from tests.close import EPS
from tests.games.cases import (
    A5,
    DICE,
    ELO,
    GRPS,
    MUNOS,
    REF3,
    REF5,
    RPS,
    SKEW3,
    UNIFORM3,
    UNIFORM5,
    game,
    kl,
    nash,
    random_games,
    solve,
    x64,
)

# Game, reference, beta, π*, KL(π*‖ρ), exploitability of π*.
SOLVED = [
    (DICE, UNIFORM3, 0.1, [1 / 3] * 3, 0, 0),
    (
        DICE,
        SKEW3,
        0.1,
        [0.643729933490, 0.228498418781, 0.127771647729],
        0.014390307748,
        0.023068417484,
    ),
    (
        GRPS,
        UNIFORM3,
        0.1,
        [0.477532580400, 0.243652583688, 0.278814835911],
        0.045512310349,
        0.031397708813,
    ),
    (
        GRPS,
        UNIFORM3,
        0.01,
        [0.509853513714, 0.315479313908, 0.174667172378],
        0.086430157658,
        0.003385503085,
    ),
    (
        GRPS,
        REF3,
        0.1,
        [0.362117124982547, 0.268890518672510, 0.368992356344944],
        0.124556148605,
        0.046909419402,
    ),
    (
        MUNOS,
        UNIFORM3,
        0.1,
        [0.403038459163, 0.313172890121, 0.283788650716],
        0.011329123847,
        0.017855987540,
    ),
    (
        RPS,
        SKEW3,
        0.1,
        [0.295792777338, 0.444189904831, 0.260017317831],
        0.213592412382,
        0.074198563747,
    ),
    (
        RPS,
        SKEW3,
        0.5,
        [0.449310262182, 0.445764531028, 0.104925206790],
        0.051623325217,
        0.172192527696,
    ),
    (
        RPS,
        SKEW3,
        0.01,
        [0.3263454657043, 0.3453189280877, 0.3283356062081],
        None,
        None,
    ),
    (
        ELO,
        UNIFORM3,
        0.1,
        [0.016709156046, 0.943564139158, 0.039726704796],
        0.847281576404,
        0.019323977581,
    ),
    (
        ELO,
        UNIFORM3,
        1.0,
        [0.272335946042, 0.417124690227, 0.310539363732],
        0.016499846332,
        0.207742357786,
    ),
    (
        A5,
        UNIFORM5,
        0.1,
        [
            0.269797047587,
            0.172813605642,
            0.218809147408,
            0.108816294004,
            0.229763905359,
        ],
        0.040827407167,
        0.025852522703,
    ),
    (
        A5,
        UNIFORM5,
        0.02,
        [
            0.327037238257,
            0.107070946844,
            0.192553173797,
            0.005180472728,
            0.368158168373,
        ],
        0.292337561823,
        0.006357154456,
    ),
    (
        A5,
        REF5,
        0.1,
        [
            0.397238217734,
            0.181584290631,
            0.308023103507,
            0.047045697192,
            0.066108690937,
        ],
        0.110703703631,
        0.060883579382,
    ),
]


@jax.jit
def residual(game, logp):
    """``max |log π − log π'|``: π* is its own best response."""
    return jnp.max(jnp.abs(games.best_response(game, logp)[0] - logp), axis=-1)


@pytest.mark.parametrize(
    ("preference", "ref", "beta", "expected", "cost", "loss"), SOLVED
)
def test_the_reference_numbers(preference, ref, beta, expected, cost, loss):
    """Equilibria, their KL and exploitability, to the reference's twelve digits."""
    with x64():
        logp = solve(game(preference, ref, beta))
        pi = np.exp(logp)
        np.testing.assert_allclose(pi, expected, rtol=0, atol=2e-12)
        if cost is not None:
            np.testing.assert_allclose(kl(pi, ref), cost, atol=2e-12)
            np.testing.assert_allclose(
                games.exploitability(jnp.asarray(preference), logp), loss, atol=2e-12
            )


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.003])
def test_exact_on_a_hundred_random_games(beta):
    """To 1e-10 in every log-probability, and the KL bound of 1/(2β)."""
    with x64():
        many = random_games(100, 6, beta=beta)
        logp = solve(many)
        assert float(residual(many, logp).max()) < 1e-11 / beta
        cost = kl(np.exp(logp), np.exp(many.logp_ref))
        assert (cost <= 1 / (2 * beta)).all()
        assert float(jnp.abs(jax.nn.logsumexp(logp, axis=-1)).max()) < 1e-12


def test_agrees_with_scipy_on_random_games():
    """MINPACK's hybrid method on the fixed-point equation."""
    with x64():
        many = random_games(20, 5, beta=0.2, seed=1)
        logp = np.asarray(solve(many))
        for P, mu, found in zip(*map(np.asarray, many[:2]), logp, strict=True):

            def gap(z, P=P, mu=mu):
                new = mu + P @ np.exp(z) / 0.2
                return z - (new - np.log(np.exp(new).sum()))

            other = root(gap, mu, tol=1e-14)
            assert np.abs(other.fun).max() < 1e-12
            np.testing.assert_allclose(found, other.x, atol=1e-10)


@pytest.mark.parametrize("preference", [GRPS, A5, RPS, ELO])
def test_vanishing_beta_gives_a_nash_equilibrium(preference):
    """Against a linear programme."""
    with x64():
        ref = np.full(len(preference), 1 / len(preference))
        pi = np.exp(solve(game(preference, ref, 1e-6)))
    np.testing.assert_allclose(pi, nash(preference), atol=2e-5)


def slope(name, u):
    """f' up to a constant, written on ratios."""
    return {
        "forward_kl": -1 / u,
        "pearson": 2 * u,
        "squared_hellinger": -0.5 / np.sqrt(u),
        "chi2_kl": u + np.log(u),
    }[name]


@pytest.mark.parametrize(
    "div",
    [
        dv.forward_kl(),
        pytest.param(dv.squared_hellinger(), marks=pytest.mark.slow),
        dv.pearson(),
        pytest.param(dv.chi2_kl(), marks=pytest.mark.slow),
    ],
    ids=lambda div: div.name,
)
def test_other_divergences_satisfy_their_optimality_conditions(div):
    """``P(·≻π*) − β f'(π*/ρ)`` is constant on the support and no larger elsewhere."""
    with x64():
        many = random_games(10, 4, beta=0.3, seed=2)
        logp = jax.jit(lambda game: games.regularised_equilibrium(game, div=div))(many)
        for P, mu, found in zip(*map(np.asarray, many[:2]), logp, strict=True):
            pi = np.exp(np.asarray(found))
            np.testing.assert_allclose(pi.sum(), 1, rtol=1e-12)
            alive = pi > 0
            u = pi / np.exp(mu)
            force = P @ pi - 0.3 * slope(
                div.name.split("(")[0], np.where(alive, u, 1e-300)
            )
            level = force[alive].mean()
            np.testing.assert_allclose(force[alive], level, atol=1e-9)
            if div.name == "pearson":
                assert (force[~alive] <= level + 1e-9).all()


def test_implicit_derivative_of_beta():
    """The reference's number, and central differences."""
    with x64():
        base = game(GRPS, REF3, 0.1)

        def at(beta):
            return games.regularised_equilibrium(base._replace(beta=beta))

        np.testing.assert_allclose(
            jax.jacfwd(at)(jnp.float64(0.1)),
            [-4.19281038127, 1.896164843016, 2.732922987143],
            atol=1e-10,
        )


def test_implicit_derivatives_of_the_whole_game():
    with x64():
        g = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)))

        def at(g, logits, beta):
            preference = jax.nn.sigmoid(g - g.T)
            logp_ref = jax.nn.log_softmax(logits)
            return games.regularised_equilibrium(games.Game(preference, logp_ref, beta))

        check_grads(
            jax.jit(at), (g, jnp.log(jnp.asarray(REF3)), jnp.float64(0.2)), order=1
        )


def test_excluded_outcomes_stay_excluded():
    with x64():
        whole = solve(game(GRPS[:2, :2], REF3[:2] / REF3[:2].sum(), 0.1))
        part = solve(game(GRPS, np.array([2 / 7, 5 / 7, 0]), 0.1))
        assert part[2] == -jnp.inf
        np.testing.assert_allclose(part[:2], whole, atol=1e-12)


def test_float32_keeps_its_digits():
    found = solve(games.Game(jnp.float32(GRPS), jnp.log(jnp.float32(REF3)), 0.1))
    chex.assert_type(found, jnp.float32)
    # Rewards are divided by beta: their rounding is multiplied.
    np.testing.assert_allclose(np.exp(found), SOLVED[4][3], atol=4 * EPS / 0.1)


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_beta_must_be_positive(beta):
    with pytest.raises(InputError, match="beta must be positive"):
        games.regularised_equilibrium(games.Game(games.cycle(3), jnp.zeros(3), beta))


def test_a_divergence_of_straight_pieces_is_refused():
    with pytest.raises(InputError, match="strictly convex"):
        games.regularised_equilibrium(
            games.Game(games.cycle(3), jnp.zeros(3), 1.0),
            div=dv.total_variation(),
        )
