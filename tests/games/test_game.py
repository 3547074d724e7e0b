"""Games as data and their measures, against definitions written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import exact, games
from alignax.types import InputError
from tests.games.cases import (
    A5,
    DICE,
    ELO,
    GRPS,
    MUNOS,
    REF3,
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

LAWS = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 40))


def test_policy_preference_is_a_bilinear_form():
    with x64():
        p, q = map(jnp.asarray, LAWS)
        wide = jnp.broadcast_to(jnp.asarray(GRPS), (40, 3, 3))
        found = games.policy_preference(wide, jnp.log(p), jnp.log(q))
        np.testing.assert_allclose(
            found, [a @ GRPS @ b for a, b in zip(*LAWS, strict=True)], rtol=1e-13
        )


def test_the_best_policy_by_reward_can_lose():
    """Munos et al., appendix A: with scores (0, log 9, log 2), the policy
    (2/3, 1/3, 0) has a higher mean score than the third outcome, which beats it."""
    with x64():
        preference = jnp.asarray(ELO)
        laws = jnp.log(jnp.array([[2 / 3, 1 / 3, 0], [0, 0, 1]]))
        np.testing.assert_allclose(
            games.policy_preference(preference, *laws[::-1]), 50 / 99, rtol=1e-13
        )


def test_regularised_preference_and_its_identity():
    """``½ − P_β(π ≻ π*) = β KL(π‖π*)`` for every π; ½ against itself."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        star = solve(played)
        for p in LAWS[0][:5]:
            logp = jnp.log(jnp.asarray(p))
            value = games.regularised_preference(played, logp, star)
            by_hand = p @ GRPS @ np.exp(star) - 0.1 * kl(p, REF3)
            by_hand += 0.1 * kl(np.exp(star), REF3)
            np.testing.assert_allclose(value, by_hand, rtol=1e-12)
            np.testing.assert_allclose(0.5 - value, 0.1 * kl(p, np.exp(star)))
            np.testing.assert_allclose(
                games.regularised_preference(played, logp, logp), 0.5, rtol=1e-13
            )


def test_exploitability_by_pure_strategies():
    with x64():
        p = jnp.log(jnp.asarray(LAWS[0]))
        wide = jnp.broadcast_to(jnp.asarray(GRPS), (40, 3, 3))
        found = games.exploitability(wide, p)
    by_hand = (LAWS[0] @ GRPS.T).max(-1) - 0.5
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    assert (np.asarray(found) >= 0).all()


@pytest.mark.parametrize("div", [dv.reverse_kl(), dv.pearson()], ids=lambda d: d.name)
def test_regularised_exploitability_is_the_largest_gain(div):
    """Nothing beats the best response, which attains it; and it is at least
    ``β KL(π‖π*)`` under the KL."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        p, others = (jnp.log(jnp.asarray(x)) for x in LAWS)
        wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (40, *x.shape)), played)

        @jax.jit
        def measure(p, others):
            response, _ = games.best_response(wide, p, div=div)
            gain = games.regularised_preference(wide, response, p, div=div) - 0.5
            other = games.regularised_preference(wide, others, p, div=div) - 0.5
            return games.regularised_exploitability(wide, p, div=div), gain, other

        found, gain, other = measure(p, others)
        np.testing.assert_allclose(found, gain, atol=1e-13)
        assert (other <= found + 1e-13).all()
        if div == dv.reverse_kl():
            assert (found >= 0.1 * kl(LAWS[0], np.exp(solve(played)))).all()


def test_reference_gap_of_the_starting_policy():
    """The reference's 3.15e-2 on GRPS."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        gap = games.regularised_exploitability(played, played.logp_ref)
    np.testing.assert_allclose(gap, 3.15e-2, atol=5e-5)


def test_offline_ipo_solves_for_its_data():
    """Azar et al.: ``π ∝ ρ e^{P(·≻μ)/β}`` for pairs from μ, here not the uniform law
    that online play finds; and for two outcomes the same for any μ."""
    with x64():
        logp, _ = games.best_response(game(DICE, UNIFORM3, 0.1), jnp.log(SKEW3))
        expected = [0.365639092229, 0.247833678806, 0.386527228965]
        np.testing.assert_allclose(np.exp(logp), expected, atol=1e-12)
        two = game(np.array([[0.5, 0.7], [0.3, 0.5]]), np.full(2, 0.5), 0.1)
        for law in ([0.5, 0.5], [0.9, 0.1], [0.0, 1.0]):
            logp, _ = games.best_response(two, jnp.log(jnp.array(law)))
            np.testing.assert_allclose(np.exp(logp)[0], 0.880797077978, atol=1e-12)


def test_a_biased_judge_is_averaged_over_both_orders():
    """Over the enumerated completions of a world, with arrays as outcomes."""
    with x64():
        tokens, mask = exact.enumerate_completions(2, 3, eos_id=1)

        def judge(a, b):
            longer = jnp.sum(a[1]) - jnp.sum(b[1])
            return jax.nn.sigmoid(0.5 + 1.0 * longer)  # likes what comes first

        found = np.asarray(games.preference_matrix(judge, (tokens, mask)))
    lengths = np.asarray(mask).sum(-1)
    gap = (lengths[:, None] - lengths[None, :]).astype(float)
    first, second = 1 / (1 + np.exp(-0.5 - gap)), 1 / (1 + np.exp(-0.5 + gap))
    np.testing.assert_allclose(found, (first + 1 - second) / 2, rtol=1e-12)
    np.testing.assert_allclose(found + found.T, 1, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: games.cycle(3), RPS),
        (lambda: games.weighted_cycle(jnp.array([0.3, 0.2, 0.1])), GRPS),
        (lambda: games.weighted_cycle(jnp.array([23, 23, 14]) / 120), MUNOS),
    ],
)
def test_example_games_are_the_reference_s(make, expected):
    np.testing.assert_allclose(make(), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (RPS, UNIFORM3),
        (DICE, UNIFORM3),
        (GRPS, [1 / 2, 1 / 3, 1 / 6]),
        (MUNOS, [1 / 3 + 0.05, 1 / 3 + 0.05, 1 / 3 - 0.1]),
        (A5, [4 / 11, 0, 1 / 11, 0, 6 / 11]),
        (np.array(games.cycle(5, margin=0.2), np.float64), np.full(5, 0.2)),
    ],
)
def test_equilibria_of_the_examples(preference, expected):
    """The stated ones are those that linear programming finds, and unexploited."""
    np.testing.assert_allclose(nash(preference), expected, atol=1e-6)
    np.testing.assert_allclose((preference @ expected).max(), 0.5, atol=1e-6)


def test_cycles_and_random_games_are_antisymmetric():
    many = np.asarray(
        jax.vmap(lambda k: games.random_preference(k, count=4, scale=2.0))(
            jax.random.split(jax.random.key(0), 50)
        )
    )
    np.testing.assert_allclose(many + many.transpose(0, 2, 1), 1, atol=1e-6)
    assert 0.3 < many.std() < 0.45
    even = np.asarray(games.cycle(4))
    np.testing.assert_array_equal(even + even.T, 1)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {}, "count must be at least 3"),
        (3, {"margin": 0.7}, "margin must be in"),
    ],
)
def test_impossible_cycles_are_refused(count, options, message):
    with pytest.raises(InputError, match=message):
        games.cycle(count, **options)


def test_a_batch_of_games_is_measured_like_single_ones():
    with x64():
        many = random_games(3, 4, beta=np.array([0.1, 0.2, 0.3]))
        logp = jnp.roll(many.logp_ref, 1, axis=0)
        whole = games.regularised_exploitability(many, logp)
        for i in range(3):
            one = jax.tree.map(lambda x, i=i: x[i], many)
            single = games.regularised_exploitability(one, logp[i])
            np.testing.assert_allclose(whole[i], single, rtol=1e-12)


CYCLE = games.cycle(3)


@pytest.mark.parametrize(
    ("preference", "beta", "match"),
    [
        (5 * (CYCLE - 0.5) + 0.5, 0.5, "from -2 to 3"),
        (CYCLE - 0.5, 0.5, "misses it by 1"),
        (CYCLE.at[0, 1].set(0.3), 0.5, "misses it"),
        (CYCLE.at[0, 1].set(jnp.nan), 0.5, "misses it"),
        (CYCLE, jnp.array(-0.1), "beta must be"),
    ],
)
def test_what_is_no_game_is_refused(preference, beta, match):
    """A payoff in the preference's place, one that is not antisymmetric, a strength."""
    logp = jnp.log(jnp.full(3, 1 / 3))
    game = games.Game(preference, logp, beta)
    with pytest.raises(InputError, match=match):
        games.regularised_equilibrium(game)
    with pytest.raises(InputError, match=match):
        games.best_response(game, logp)
    with pytest.raises(InputError, match=match):
        games.run_solver(games.mirror_descent(eta=1.0), game, logp, steps=1)
    if "beta" not in match:
        with pytest.raises(InputError, match=match):
            games.win_rate(preference, logp)


def test_a_traced_strength_that_is_not_positive_is_nan():
    solve = jax.jit(
        lambda beta: games.regularised_equilibrium(
            games.Game(CYCLE, jnp.log(jnp.full(3, 1 / 3)), beta)
        )
    )
    assert np.isnan(solve(-0.5)).all()
    assert np.isfinite(solve(0.5)).all()


def test_a_float32_game_where_float64_is_enabled():
    with jax.enable_x64(True):
        uniform = jnp.log(jnp.full(3, 1 / 3, jnp.float32))
        game = games.Game(jnp.float32(CYCLE), uniform, 0.5)
        logp = games.regularised_equilibrium(game)
        assert logp.dtype == jnp.float32
        np.testing.assert_allclose(jnp.exp(logp), 1 / 3, rtol=1e-5)
