"""Rows of the games."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences as dv
from alignax import games
from alignax.types import ModelOutput
from tests.row import Row

keys = jax.random.split(jax.random.key(11), 6)
PREFERENCE = jax.vmap(partial(games.random_preference, count=4, scale=1.0))(
    jax.random.split(keys[0], 8)
)
LOGP, LOGQ, LOGR = (jax.nn.log_softmax(jax.random.normal(k, (8, 4))) for k in keys[1:4])
MASK = jnp.arange(4)[None] < jnp.array([4, 3, 2, 1, 1, 2, 3, 4])[:, None]
WINS = jax.random.uniform(keys[4], (8,))
SEQUENCES = tuple(LOGP[:, i] for i in range(2)), tuple(LOGQ[:, i] for i in range(2))
PAIR = (*SEQUENCES[0], *SEQUENCES[1], WINS)


def game(preference, logp_ref):
    return games.Game(preference, logp_ref, 0.5)


def of_game(function):
    """``function(game, logp)`` of arrays."""
    return lambda preference, logp_ref, logp: function(game(preference, logp_ref), logp)


def played(solver):
    return of_game(
        lambda game, logp: games.run_solver(solver, game, logp, steps=1)[0].logp
    )


def token_row(name, fn, *more):
    return Row(
        name=f"games.{name}",
        fn=fn,
        args=(LOGP, LOGQ, *more, WINS, MASK),
        mask=3 + len(more),
        masked=(0, 1, *range(2, 2 + len(more))),
        estimator=True,
    )


def wide(x):
    return x.astype(jnp.float32)


def judged(a, b):
    a, b = wide(a), wide(b)
    return jax.nn.sigmoid(a @ (a - b))


def prox_looped(params, others):
    loop = games.mirror_prox_loop(inner_steps=1)
    state = loop.update(loop.init(params), others)
    return jax.tree.map(wide, (state.anchor, state.opponent))


def mixed(logits, logits_ref):
    def apply_fn(params, tokens, **_):
        return ModelOutput(params[:, None], None)

    policy = games.mixture_policy(apply_fn, apply_fn, mixture=0.3)
    return policy((logits, logits_ref), jnp.zeros((len(logits), 1), jnp.int32)).logits


SOLVERS = {
    "mirror_descent": games.mirror_descent(eta=0.5),
    "nash_md": games.nash_md(),
    "nash_ema": games.nash_ema(eta=0.5, decay=0.9),
    "nash_mp": games.nash_mp(),
    "sppo": games.sppo(eta=0.5),
    "magnetic_mirror_descent": games.magnetic_mirror_descent(eta=0.5, refresh=2),
    "online_ipo": games.online_ipo(learning_rate=0.1),
    "ipo_md": games.ipo_md(learning_rate=0.1, mixture=0.3),
    "xpo": games.xpo(learning_rate=0.1, alpha=0.1),
    "memoryless": games.memoryless(
        lambda state, game: games.best_response(game, state.logp)[0]
    ),
}
CONSTANT = {
    "cycle": partial(games.cycle, 3, margin=0.2),
    "random_preference": partial(games.random_preference, keys[5], count=3, scale=1.0),
}

ROWS = [
    Row(
        name="games.win_rate",
        fn=games.win_rate,
        args=(PREFERENCE, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="games.policy_preference",
        fn=games.policy_preference,
        args=(PREFERENCE, LOGP, LOGQ),
        grad=(0, 1, 2),
    ),
    Row(
        name="games.preference_matrix",
        fn=partial(games.preference_matrix, judged),
        args=(LOGP,),
        rowwise=False,
    ),
    Row(
        name="games.regularised_preference",
        fn=lambda p, r, a, b: games.regularised_preference(game(p, r), a, b),
        args=(PREFERENCE, LOGR, LOGP, LOGQ),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="games.best_response",
        fn=of_game(games.best_response),
        args=(PREFERENCE, LOGR, LOGP),
        grad=(0, 1, 2),
    ),
    Row(
        name="games.exploitability",
        fn=games.exploitability,
        args=(PREFERENCE, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="games.regularised_exploitability",
        fn=of_game(games.regularised_exploitability),
        args=(PREFERENCE, LOGR, LOGP),
        grad=(0, 1, 2),
    ),
    Row(
        name="games.regularised_equilibrium",
        fn=lambda p, r: games.regularised_equilibrium(game(p, r)),
        args=(PREFERENCE, LOGR),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="games.geometric_mixture",
        fn=partial(games.geometric_mixture, mixture=0.3),
        args=(LOGP, LOGQ),
        grad=(0, 1),
    ),
    Row(
        name="games.entropic_step",
        fn=partial(games.entropic_step, eta=0.5),
        args=(LOGP, LOGQ),
        grad=(0, 1),
    ),
    Row(
        name="games.proximal_step",
        fn=partial(games.proximal_step, eta=0.5, beta=0.3),
        args=(LOGP, LOGQ, LOGR),
        grad=(0, 1, 2),
    ),
    Row(
        name="games.divergence_step",
        fn=partial(games.divergence_step, dv.forward_kl(), eta=0.5, beta=0.3),
        args=(LOGP, LOGQ, LOGR),
        grad=(0, 1, 2),
    ),
    # A player's path: nobody differentiates through it, and exactly so here.
    *(
        Row(
            name=f"games.{name}",
            fn=played(solver),
            args=(PREFERENCE, LOGR, LOGP),
            rowwise=False,
            grad=(),
        )
        for name, solver in SOLVERS.items()
    ),
    Row(
        name="games.run_solver",
        fn=played(games.nash_mp(eta=1.0)),
        args=(PREFERENCE, LOGR, LOGP),
        grad=(2,),
    ),
    *(
        Row(
            name=f"games.{name}",
            fn=lambda x, make=make: x + make()[0, 1],
            args=(WINS,),
        )
        for name, make in CONSTANT.items()
    ),
    Row(
        name="games.weighted_cycle",
        fn=games.weighted_cycle,
        args=(jnp.abs(LOGP[:, :3]) / 8,),
    ),
    token_row("nash_pg_surrogate", partial(games.nash_pg_surrogate, beta=0.5)),
    token_row(
        "nash_pg_myopic_surrogate", partial(games.nash_pg_myopic_surrogate, beta=0.5)
    ),
    token_row(
        "nash_mp_surrogate", partial(games.nash_mp_surrogate, beta=0.5, eta=2.0), LOGR
    ),
    Row(
        name="games.online_ipo_loss",
        fn=partial(games.online_ipo_loss, beta=0.5),
        args=PAIR,
        grad=(0, 1, 2, 3, 4),
        estimator=True,
    ),
    Row(
        name="games.xpo_loss",
        fn=partial(games.xpo_loss, beta=0.5, alpha=0.1),
        args=PAIR,
        grad=(0, 1, 2, 3, 4),
    ),
    Row(
        name="games.inpo_loss",
        fn=partial(games.inpo_loss, eta=0.5, beta=0.1),
        args=(*SEQUENCES[0], *SEQUENCES[1], LOGR[:, 0], LOGR[:, 1]),
        grad=(0, 1, 2, 3, 4, 5),
    ),
    Row(
        name="games.sppo_loss",
        fn=partial(games.sppo_loss, eta=2.0),
        args=(SEQUENCES[0][0], SEQUENCES[1][0], WINS),
        grad=(0, 1, 2),
    ),
    Row(name="games.mirror_prox_loop", fn=prox_looped, args=(LOGP, LOGQ)),
    Row(
        name="games.mixture_policy",
        fn=mixed,
        args=(LOGP, LOGQ),
        rowwise=False,
        grad=(0, 1),
    ),
]
