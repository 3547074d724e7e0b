"""Online IPO, IPO-MD and XPO in the limit of infinitely many samples."""

import jax
import jax.numpy as jnp
import numpy as np

from alignax import games
from tests.games.cases import A5, ELO, GRPS, REF3, REF5, UNIFORM3, game, kl, solve, x64


def last(solver, played, steps, start=None):
    start = played.logp_ref if start is None else start
    run = jax.jit(lambda g, p: games.run_solver(solver, g, p, steps=steps)[1])
    return np.exp(run(played, start))


def test_online_ipo_follows_the_self_play_gradient():
    """Calandriello et al., propositions 4.1 and 4.2: each step is ``4/β`` of the
    gradient of ``P_β(π ≻ sg π)``, and the rest point is π*; the reference's distances
    after 101 and 1000 steps."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        uniform = jnp.log(jnp.asarray(UNIFORM3))
        pi = last(games.online_ipo(learning_rate=0.1 / 4), played, 1000, uniform)
        star = np.exp(solve(played))
        np.testing.assert_allclose(kl(star, pi[100]), 1.40e-5, rtol=1e-3)
        assert kl(star, pi[999]) < 1e-15

        def gain(logits):
            logp = jax.nn.log_softmax(logits)
            return games.regularised_preference(played, logp, uniform)

        logits = uniform + jax.grad(gain)(uniform)
        np.testing.assert_allclose(pi[0], jax.nn.softmax(logits), atol=1e-12)


def test_ipo_md_rests_at_a_warmer_equilibrium():
    """Calandriello et al., proposition 5.2: the mixture is the equilibrium of
    temperature ``β/(1 − m)``; the reference's policies for m = 1/8 and 1/2."""
    expected = {
        0.125: [
            0.403197746345,
            0.16398006578,
            0.322079163441,
            0.046911025696,
            0.063831998737,
        ],
        0.5: [
            0.45404685353,
            0.103438144342,
            0.345100864311,
            0.046535146646,
            0.050878991171,
        ],
    }
    with x64():
        played = game(A5, REF5, 0.1)
        mixtures = jnp.array(list(expected))

        def run(mixture):
            solver = games.ipo_md(learning_rate=0.05, mixture=mixture)
            return games.run_solver(solver, played, played.logp_ref, steps=4000)[0].logp

        rest = jax.jit(jax.vmap(run))(mixtures)
        for logp, (m, policy) in zip(rest, expected.items(), strict=True):
            np.testing.assert_allclose(np.exp(logp), policy, atol=1e-9)
            mixed = games.geometric_mixture(logp, played.logp_ref, mixture=m)
            warmer = solve(played._replace(beta=played.beta / (1 - m)))
            np.testing.assert_allclose(np.exp(mixed), np.exp(warmer), atol=1e-9)


def test_xpo_solves_games_that_a_reward_explains_and_no_others():
    """Xie et al.: without the bonus it rests at ``ρ e^{r/β}`` for Bradley-Terry, which
    is no equilibrium of GRPS; the bonus takes mass from the reference's favourites."""
    with x64():
        reward = np.log(np.array([1.0, 9.0, 2.0]))
        rest = last(games.xpo(learning_rate=2.0, alpha=0.0), game(ELO, REF3, 1.0), 2000)
        best = REF3 * np.exp(reward)
        np.testing.assert_allclose(rest[-1], best / best.sum(), atol=1e-9)

        cyclic = game(GRPS, REF3, 0.5)
        plain = last(games.xpo(learning_rate=2.0, alpha=0.0), cyclic, 2000)[-1]
        assert kl(np.exp(solve(cyclic)), plain) > 1e-4
        bold = last(games.xpo(learning_rate=2.0, alpha=0.02), cyclic, 2000)[-1]
        assert REF3 @ np.log(bold) < REF3 @ np.log(plain) - 1e-3


def test_online_dpo_does_not_solve_the_game():
    """At π* of GRPS the expected gradient of DPO on the policy's own pairs is not 0;
    under Bradley-Terry it is, at ``ρ e^{r/β}``."""

    def gradient(preference, logp, logp_ref, beta):
        def loss(logits):
            logp = jax.nn.log_softmax(logits)
            first, second = jnp.meshgrid(logp, logp, indexing="ij")
            ref, ref_other = jnp.meshgrid(logp_ref, logp_ref, indexing="ij")
            pairs = games.xpo_loss(
                first, second, ref, ref_other, preference, beta=beta, alpha=0.0
            )
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(first + second)) * pairs)

        return jax.jit(jax.grad(loss))(logp)

    with x64():
        played = game(GRPS, REF3, 0.1)
        found = gradient(played.preference, solve(played), played.logp_ref, 0.1)
        expected = [-0.002549, 0.003005, -0.000456]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        reward = jnp.log(jnp.array([1.0, 9.0, 2.0]))
        best = jax.nn.log_softmax(played.logp_ref + reward / 0.1)
        rest = gradient(jnp.asarray(ELO), best, played.logp_ref, 0.1)
        np.testing.assert_allclose(rest, 0, atol=1e-15)
