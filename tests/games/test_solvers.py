"""Solvers against their papers' rates and the reference's iterates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import games
from alignax.types import InputError
from tests.games.cases import (
    A5,
    DICE,
    GRPS,
    REF3,
    REF5,
    RPS,
    SKEW3,
    UNIFORM3,
    game,
    kl,
    nash,
    random_games,
    solve,
    x64,
)


def path(solver, played, steps, start=None):
    """Probabilities after each update, float64 numpy ``[steps, ..., N]``."""
    start = played.logp_ref if start is None else start
    run = jax.jit(lambda g, logp: games.run_solver(solver, g, logp, steps=steps)[1])
    return np.exp(run(played, start))


GOLDEN = {
    "nash_md": (
        games.nash_md(),
        [
            [0.161270940077, 0.181159261118, 0.657569798805],
            [0.235438223431, 0.164969338557, 0.599592438012],
            [0.296461170902, 0.164286162313, 0.539252666785],
        ],
    ),
    "mirror_descent": (
        games.mirror_descent(eta=0.5),
        [
            [0.200848373792, 0.482432491026, 0.316719135182],
            [0.202193117653, 0.465214346691, 0.332592535656],
            [0.204012657608, 0.448464738149, 0.347522604244],
        ],
    ),
    "magnetic_mirror_descent": (
        games.magnetic_mirror_descent(eta=0.5),
        [
            [0.200814918310, 0.483271773379, 0.315913308311],
            [0.202078472794, 0.466857352634, 0.331064174573],
            [0.203772173707, 0.450860398791, 0.345367427502],
        ],
    ),
    "sppo": (
        games.sppo(eta=0.5),
        [
            [0.200848373792, 0.482432491026, 0.316719135182],
            [0.202212727703, 0.464329877277, 0.333457395020],
            [0.204110267425, 0.445812360542, 0.350077372033],
        ],
    ),
    "nash_mp": (
        games.nash_mp(),
        [
            [0.211110028436, 0.436185985758, 0.352703985806],
            [0.226004638229, 0.383139229622, 0.390856132149],
            [0.243460291861, 0.341590540087, 0.414949168052],
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_first_iterates(name):
    """The reference's first three policies on GRPS from ρ = (.2, .5, .3), β = .1."""
    solver, expected = GOLDEN[name]
    with x64():
        found = path(solver, game(GRPS, REF3, 0.1), 3)
    np.testing.assert_allclose(found, expected, atol=2e-12)


def test_nash_md_step_by_hand():
    """Munos et al.: the walk-through on the dice, η = 5, β = .1."""
    with x64():
        dice = game(DICE, UNIFORM3, 0.1)
        start = jnp.log(jnp.array([0.6, 0.3, 0.1]))
        mixed = games.geometric_mixture(start, dice.logp_ref, mixture=0.5)
        np.testing.assert_allclose(
            np.exp(mixed), [0.472733874990, 0.334273328702, 0.192992796309], atol=1e-12
        )
        after = path(games.nash_md(eta=5.0), dice, 1, start)[0]
    np.testing.assert_allclose(
        after, [0.490920061312, 0.308819594189, 0.200260344499], atol=1e-12
    )


BETAS = np.geomspace(0.02, 1.0, 100)


@pytest.fixture(scope="module")
def hundred():
    """A hundred random games with their equilibria, of betas from 0.02 to 1."""
    with x64():
        many = random_games(100, 5, beta=BETAS, seed=5)
        star = np.exp(solve(many))
    return many, star


def test_nash_md_rate_on_a_hundred_games(hundred):
    """Munos et al., theorem 1: ``KL(π*‖π_T) ≤ 8/(β²(T+1))`` and its one-step form
    ``KL(π*‖π_{t+1}) ≤ (1 − η_tβ) KL(π*‖π_t) + 2η_t²``, at every step."""
    many, star = hundred
    steps, solver = 1000, games.nash_md()
    with x64():
        one = jax.jit(
            jax.vmap(lambda g: games.run_solver(solver, g, g.logp_ref, steps=steps)[1])
        )
        pi = np.moveaxis(np.exp(one(many)), 1, 0)
    distance = kl(star, pi)
    count = np.arange(1, steps + 1)[:, None]
    assert (distance <= 8 / (BETAS**2 * (count + 1))).all()
    eta = 2 / (BETAS * (count + 1))  # of the step that led to the row after
    bound = (1 - eta[1:] * BETAS) * distance[:-1] + 2 * eta[1:] ** 2
    assert (distance[1:] <= bound + 1e-12).all()
    # The bound is not all there is: they do converge.
    assert (distance[-1] < 1e-2).all()


def test_nash_mp_rate_on_a_hundred_games(hundred):
    """Tiapkin et al.: ``KL(π*‖π_k) ≤ (1 + 2β)^{−N/2} KL(π*‖π_0)`` after N = 2k
    queries, hence ``(1 + 2β)^{−N/2} / 2β``; the span falls linearly with it."""
    many, star = hundred
    steps = 200
    with x64():
        one = jax.jit(
            jax.vmap(
                lambda g: games.run_solver(games.nash_mp(), g, g.logp_ref, steps=steps)
            )
        )
        logp = np.moveaxis(np.asarray(one(many)[1]), 1, 0)
        distance = kl(star, np.exp(logp))
        queries = 2 * np.arange(1, steps + 1)[:, None]
        rate = (1 + 2 * BETAS) ** (-queries / 2)
        first = kl(star, np.exp(many.logp_ref))
        assert (distance <= rate * first + 1e-14).all()
        assert (distance <= rate / (2 * BETAS) + 1e-14).all()
        wide = np.broadcast_to(np.log(star), logp.shape)
        span = np.ptp(logp - wide, axis=-1)
    # span_{k+1} ≤ (span_k + 2 √(2 KL(π*‖π_{k+1/2}))) / (1 + 2β): a multiple of √rate.
    ceiling = np.sqrt(rate) * (20 / BETAS)
    assert (span <= ceiling + 1e-10).all()
    assert (span[-1][BETAS > 0.1] < 1e-6).all()


@pytest.mark.parametrize(
    ("preference", "ref", "beta", "expected"),
    [
        (GRPS, REF3, 0.1, [1.859078e-1, 6.263421e-3, 4.070916e-5, 3.861975e-7]),
        (A5, REF5, 0.1, [2.140139e-1, 4.463167e-3, 3.017632e-5, 3.498864e-7]),
        (RPS, SKEW3, 0.5, [8.289821e-3, 7.485595e-4, 9.434506e-6, 9.057470e-8]),
    ],
)
def test_nash_md_distances(preference, ref, beta, expected):
    """The reference's KL(π*‖π_T) at T = 1, 10, 100, 1000."""
    with x64():
        played = game(preference, ref, beta)
        star = np.exp(solve(played))
        pi = path(games.nash_md(), played, 1000)[[0, 9, 99, 999]]
    np.testing.assert_allclose(kl(star, pi), expected, rtol=1e-5)


def test_nash_mp_distances_and_gaps():
    """The reference's KL and regularised gap at k = 5, 10, 20; ratio below .6673."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        star = np.exp(solve(played))
        pi = path(games.nash_mp(), played, 60)
        distance = kl(star, np.concatenate([REF3[None], pi]))
        gap = [
            float(games.regularised_exploitability(played, jnp.log(jnp.asarray(p))))
            for p in pi[[4, 9, 19]]
        ]
    np.testing.assert_allclose(
        distance[[0, 5, 10, 20]], [1.246e-1, 1.607e-2, 2.048e-3, 3.281e-5], rtol=1e-3
    )
    np.testing.assert_allclose(gap, [3.37e-3, 4.76e-4, 7.55e-6], rtol=2e-3)
    ratios = distance[1:40] / distance[:39]
    np.testing.assert_allclose(ratios.max(), 0.6673, atol=2e-4)


def test_nash_md_with_a_constant_step_is_biased():
    """Its mixture rests at the equilibrium of temperature ``β/(1 − ηβ)``, so the
    policy is off by O(η²); mirror descent and mirror prox have no such bias."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        star = np.exp(solve(played))
        etas = jnp.array([1.0, 0.1, 0.01])

        def rest(make, etas):
            def run(eta):
                start = jnp.log(jnp.asarray(star))
                return games.run_solver(make(eta), played, start, steps=20000)[0].logp

            return jax.jit(jax.vmap(run))(etas)

        biased = rest(lambda eta: games.nash_md(eta=eta), etas)
        np.testing.assert_allclose(
            kl(star, np.exp(biased)), [7.178e-4, 6.587e-6, 6.531e-8], rtol=1e-3
        )
        for logp, eta in zip(biased, etas, strict=True):
            mixed = games.geometric_mixture(logp, played.logp_ref, mixture=eta * 0.1)
            warmer = solve(played._replace(beta=played.beta / (1 - eta * 0.1)))
            np.testing.assert_allclose(np.exp(mixed), np.exp(warmer), atol=1e-8)
        for make in (
            lambda eta: games.mirror_descent(eta=eta),
            lambda eta: games.nash_mp(eta=eta),
        ):
            unbiased = np.exp(rest(make, etas))
            assert (kl(star, unbiased) < 1e-14).all()


def test_the_game_on_which_only_mirror_prox_converges():
    """Rock, paper, scissors from (.6, .3, .1) at β = .01, 4000 steps: Nash-MP is at
    π*; mirror descent (INPO), constant Nash-MD and magnetic descent circle. Mirror
    prox too has a largest step."""
    with x64():
        played = game(RPS, SKEW3, 0.01)
        star = np.exp(solve(played))

        def distances(make, etas, steps=4000):
            def run(eta):
                return games.run_solver(
                    make(eta), played, played.logp_ref, steps=steps
                )[0]

            logp = jax.jit(jax.vmap(run))(jnp.array(etas)).logp
            return kl(star, np.exp(logp))

        assert (distances(lambda eta: games.nash_mp(eta=eta), [0.5, 2.0]) < 1e-14).all()
        circling = {
            0.538: lambda eta: games.mirror_descent(eta=eta),
            0.534: lambda eta: games.nash_md(eta=eta),
            0.523: lambda eta: games.magnetic_mirror_descent(eta=eta),
        }
        for expected, make in circling.items():
            slow, fast = distances(make, [0.5, 2.0])
            np.testing.assert_allclose(slow, expected, atol=1e-3)
            assert fast > 1
        too_long = distances(lambda eta: games.nash_mp(eta=eta), [4.0, 8.0], steps=300)
        np.testing.assert_allclose(too_long, [0.036, 0.94], rtol=0.03)


def test_sppo_averages_converge_and_last_iterates_do_not():
    """Multiplicative weights on rock, paper, scissors from (.5, .3, .2), η = .1: the
    policy moves away from uniform, its average obeys ``log 3/(ηT) + η/8``."""
    with x64():
        played = game(RPS, UNIFORM3, 1.0)
        start = jnp.log(jnp.array([0.5, 0.3, 0.2]))
        pi = path(games.sppo(eta=0.1), played, 5000, start)
        pi = np.concatenate([np.exp(start)[None], pi])
        away = kl(UNIFORM3, pi)
        average = pi[:5000].mean(0)
        gap = float(games.exploitability(played.preference, jnp.log(average)))
        last = float(games.exploitability(played.preference, jnp.log(pi[-1])))
    assert (np.diff(away) > 0).all()
    np.testing.assert_allclose(
        away[[0, 100, 500]],
        [0.0702403437718841, 0.07562268460803084, 0.10059928476149896],
        rtol=1e-10,
    )
    np.testing.assert_allclose(gap, 4.30e-3, atol=5e-5)
    assert gap <= np.log(3) / (0.1 * 5000) + 0.1 / 8
    np.testing.assert_allclose(last, 0.365, atol=1e-3)


def test_mirror_descent_can_converge_to_the_equilibrium():
    """At β = .05 and η = .5 on GRPS: within 1e-10 after 500 steps, without bias."""
    with x64():
        played = game(GRPS, UNIFORM3, 0.05)
        star = np.exp(solve(played))
        assert kl(star, path(games.mirror_descent(eta=0.5), played, 500)[-1]) < 1e-10


def test_refreshed_magnets_reach_the_unregularised_equilibrium():
    """MPO: the magnet refreshed every 200 steps, the gaps of the reference."""
    with x64():
        played = game(GRPS, UNIFORM3, 0.05)
        solver = games.magnetic_mirror_descent(eta=1.0, refresh=200)
        pi = path(solver, played, 6000)[[199, 999, 1999, 5999]]
        gaps = [
            float(games.exploitability(played.preference, jnp.log(jnp.asarray(p))))
            for p in pi
        ]
    np.testing.assert_allclose(gaps[:3], [1.81e-2, 1.52e-3, 2.78e-5], rtol=1e-2)
    assert gaps[3] < 1e-11
    np.testing.assert_allclose(pi[-1], [1 / 2, 1 / 3, 1 / 6], atol=1e-10)
    np.testing.assert_allclose(pi[-1], nash(GRPS), atol=1e-8)


def test_nash_ema_plays_the_geometric_mean_of_its_past():
    """Munos et al.: an average of logits is geometric; with decay 0 it is self-play,
    and where the game is not too sharp it reaches π*."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        star = np.exp(solve(played))
        found = path(games.nash_ema(eta=0.5, decay=0.0), played, 20)
        expected = path(games.mirror_descent(eta=0.5), played, 20)
        np.testing.assert_allclose(found, expected, atol=1e-14)
        solver = games.nash_ema(eta=0.5, decay=0.75)
        state = games.run_solver(solver, played, played.logp_ref, steps=1)[0]
        mean = 0.75 * played.logp_ref + 0.25 * state.logp
        np.testing.assert_allclose(state.memory, jax.nn.log_softmax(mean), atol=1e-14)
        assert kl(star, path(solver, played, 3000)[-1]) < 1e-12


def test_step_sizes_and_games_share_one_compilation():
    """vmap over both axes; the numbers are those of single runs."""
    with x64():
        many = random_games(4, 3, beta=0.2, seed=7)
        etas = jnp.array([0.1, 0.5, 1.0])

        @jax.jit
        @chex.assert_max_traces(n=1)
        def run(many, etas):
            def one(game, eta):
                solver = games.mirror_descent(eta=eta)
                return games.run_solver(solver, game, game.logp_ref, steps=5)[0].logp

            return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(many, etas)

        found = run(many, etas)
        run(many, 0.5 * etas)
        single = jax.tree.map(lambda x: x[2], many)
        alone = path(games.mirror_descent(eta=0.5), single, 5)[-1]
        np.testing.assert_allclose(np.exp(found[2, 1]), alone, atol=1e-13)
        # A leading axis of games needs no vmap.
        whole = path(games.nash_mp(), many, 3)[-1, 2]
        np.testing.assert_allclose(whole, path(games.nash_mp(), single, 3)[-1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (games.mirror_descent, {"eta": 0.0}, "eta must be positive"),
        (games.nash_md, {"eta": -1.0}, "eta must be positive"),
        (games.nash_ema, {"eta": 1.0, "decay": 1.0}, "decay must be in"),
        (games.nash_mp, {"eta": 0.0}, "eta must be positive"),
        (games.magnetic_mirror_descent, {"eta": 1.0, "refresh": 0}, "refresh"),
        (games.ipo_md, {"learning_rate": 1.0, "mixture": 2.0}, "mixture"),
        (games.online_ipo, {"learning_rate": 0.0}, "learning_rate"),
        (games.xpo, {"learning_rate": 1.0, "alpha": -1.0}, "alpha"),
    ],
)
def test_bad_hyperparameters_are_named(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_a_step_too_long_for_its_mixture_is_refused():
    played = games.Game(games.cycle(3), jnp.log(jnp.full(3, 1 / 3)), 0.5)
    with pytest.raises(InputError, match="mixture must be in"):
        games.run_solver(
            games.mirror_descent(eta=4.0), played, played.logp_ref, steps=1
        )
