"""Mirror steps against their optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import games
from alignax.types import InputError
from tests.games.cases import GRPS, REF3, game, x64

RNG = np.random.default_rng(4)
PI, RHO = RNG.dirichlet(np.ones(5), size=(2, 10))
PAYOFF = RNG.normal(size=(10, 5))


def logs(*laws):
    return tuple(jnp.log(jnp.asarray(x)) for x in laws)


def test_geometric_mixture_of_the_reference():
    """The mid-point of (.6, .3, .1) and (.2, .2, .6) is not the arithmetic one."""
    with x64():
        a, b = logs([0.6, 0.3, 0.1], [0.2, 0.2, 0.6])
        found = np.exp(games.geometric_mixture(a, b, mixture=0.5))
    expected = [0.414213562, 0.292893219, 0.292893219]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("wrap", [float, jnp.float32], ids=["number", "array"])
def test_end_points_are_exact_where_the_other_law_has_no_mass(wrap):
    """Weight 0 is no weight: not 0 · −inf; gradients too."""
    a, b = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]))
    policy = games.geometric_mixture(a, b, mixture=wrap(0.0))
    reference = games.geometric_mixture(a, b, mixture=wrap(1.0))
    np.testing.assert_allclose(policy, a, atol=1e-6)
    np.testing.assert_allclose(reference, b, atol=1e-6)
    half = games.geometric_mixture(a, b, mixture=wrap(0.5))
    np.testing.assert_allclose(np.exp(half), [0, 1, 0], atol=1e-6)

    def middle(a, b):
        return games.geometric_mixture(a, b, mixture=wrap(0.5))[1]

    for gradient in jax.grad(middle, argnums=(0, 1))(a, b):
        assert np.isfinite(gradient).all()


def test_proximal_step_maximises_its_objective():
    """The reference's policy of DR-PO's oracle, and the condition
    ``η(q − β log π⁺/ρ) − log π⁺/π_t = const``."""
    with x64():
        found = games.proximal_step(
            *logs([0.2, 0.5, 0.3]),
            jnp.array([1.0, 0.3, -0.5]),
            *logs([0.5, 0.3, 0.2]),
            eta=0.7,
            beta=0.2,
        )
        expected = [0.348098694288, 0.475179349653, 0.176721956059]
        np.testing.assert_allclose(np.exp(found), expected, atol=1e-12)
        pi, rho = logs(PI, RHO)
        new = np.asarray(
            games.proximal_step(pi, jnp.asarray(PAYOFF), rho, eta=0.7, beta=0.4)
        )
        force = 0.7 * (PAYOFF - 0.4 * (new - np.log(RHO))) - (new - np.log(PI))
        np.testing.assert_allclose(np.ptp(force, axis=-1), 0, atol=1e-12)
        np.testing.assert_allclose(np.exp(new).sum(-1), 1, rtol=1e-12)


def test_entropic_step_is_the_proximal_step_without_regularisation():
    with x64():
        pi, rho = logs(PI, RHO)
        q = jnp.asarray(PAYOFF)
        found = games.entropic_step(pi, q, eta=0.7)
        bare = games.proximal_step(pi, q, rho, eta=0.7, beta=0.0)
        np.testing.assert_allclose(found, bare, atol=1e-13)
        by_hand = PI * np.exp(0.7 * PAYOFF)
        by_hand /= by_hand.sum(-1, keepdims=True)
        np.testing.assert_allclose(np.exp(found), by_hand, rtol=1e-12)


def test_divergence_step_of_the_reverse_kl_is_the_proximal_step():
    with x64():
        pi, rho = logs(PI, RHO)
        args = (pi, jnp.asarray(PAYOFF), rho)
        general = games.divergence_step(dv.reverse_kl(), *args, eta=0.7, beta=0.4)
        closed = games.proximal_step(*args, eta=0.7, beta=0.4)
    np.testing.assert_allclose(general, closed, atol=1e-11)


def test_divergence_step_with_a_finite_slope_at_zero():
    """Pearson's: ``(1 + ηβ) f'(π⁺/ρ) = f'(π/ρ) + ηq − λ`` on the support, and an
    outcome that lost all mass comes back."""
    with x64():
        pi, rho = logs(PI, RHO)
        eta, beta = 6.0, 0.1
        new = np.exp(
            games.divergence_step(
                dv.pearson(), pi, jnp.asarray(PAYOFF), rho, eta=eta, beta=beta
            )
        )
        force = 2 * PI / RHO + eta * PAYOFF - (1 + eta * beta) * 2 * new / RHO
        for row, mass in zip(force, new, strict=True):
            level = row[mass > 0].mean()
            np.testing.assert_allclose(row[mass > 0], level, atol=1e-9)
            assert (row[mass == 0] <= level + 1e-9).all()
        assert (new == 0).any()
        back = games.divergence_step(
            dv.pearson(), jnp.log(new), jnp.asarray(50.0 * (new == 0)), rho, eta=1.0
        )
        assert (np.exp(back)[new == 0] > 0).all()


@pytest.mark.parametrize(
    "div",
    [dv.forward_kl(), pytest.param(dv.pearson(), marks=pytest.mark.slow)],
    ids=lambda d: d.name,
)
def test_mirror_prox_in_the_geometry_of_a_divergence(div):
    """Extragradient of ``divergence_step`` reaches the game's equilibrium under the
    same divergence: two roads to it."""
    with x64():
        played = game(GRPS, REF3, 0.3)
        P, ref = played.preference, played.logp_ref

        def step(_, logp):
            def prox(opponent):
                rate = games.win_rate(P, opponent)
                return games.divergence_step(div, logp, rate, ref, eta=0.5, beta=0.3)

            return prox(prox(logp))

        found = jax.jit(lambda p: jax.lax.fori_loop(0, 250, step, p))(ref)
        star = games.regularised_equilibrium(played, div=div)
        np.testing.assert_allclose(np.exp(found), np.exp(star), atol=1e-10)
        np.testing.assert_allclose(
            games.regularised_exploitability(played, found, div=div), 0, atol=1e-12
        )


@pytest.mark.parametrize("mixture", [-0.1, 1.1])
def test_mixture_must_be_a_share(mixture):
    with pytest.raises(InputError, match="mixture must be in"):
        games.geometric_mixture(jnp.zeros(2), jnp.zeros(2), mixture=mixture)
