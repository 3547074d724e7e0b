"""Preference games: the Nash equilibrium of human feedback.

Preferences can be cyclic; then no reward explains them, and the answer is the policy
that no other is preferred to.

>>> import jax.numpy as jnp
>>> from alignax import games
>>> logp_ref = jnp.log(jnp.array([0.6, 0.3, 0.1]))
>>> game = games.Game(games.cycle(3), logp_ref, 0.1)
>>> state, path = games.run_solver(games.nash_mp(), game, logp_ref, steps=50)
>>> jnp.abs(state.logp - games.regularised_equilibrium(game)).max() < 1e-3
Array(True, dtype=bool)

==================  ============================================================
file                holds
==================  ============================================================
``game``            games as data: win rates, the regularised preference
``examples``        games with known equilibria, random games
``measures``        exploitability of the game and of the regularised one
``equilibrium``     the regularised equilibrium, exactly, for any f-divergence
``mirror``          mirror steps: entropic, f-divergence
``solvers``         ``init``/``update`` pairs of closed-form steps
``descent``         those that follow a loss: online IPO, IPO-MD, XPO
``losses``          the same for language models, on samples
``opponents``       mixtures inside the sampler, the proximal loop
==================  ============================================================
"""

from alignax.games.descent import ipo_md, online_ipo, xpo
from alignax.games.equilibrium import regularised_equilibrium
from alignax.games.examples import (
    cycle,
    random_preference,
    weighted_cycle,
)
from alignax.games.game import (
    Game,
    best_response,
    policy_preference,
    preference_matrix,
    regularised_preference,
    win_rate,
)
from alignax.games.losses import (
    inpo_loss,
    nash_mp_surrogate,
    nash_pg_myopic_surrogate,
    nash_pg_surrogate,
    online_ipo_loss,
    sppo_loss,
    xpo_loss,
)
from alignax.games.measures import (
    exploitability,
    regularised_exploitability,
)
from alignax.games.mirror import (
    divergence_step,
    entropic_step,
    geometric_mixture,
    proximal_step,
)
from alignax.games.opponents import (
    MirrorProxState,
    mirror_prox_loop,
    mixture_policy,
)
from alignax.games.solvers import (
    Solver,
    SolverState,
    magnetic_mirror_descent,
    memoryless,
    mirror_descent,
    nash_ema,
    nash_md,
    nash_mp,
    run_solver,
    sppo,
)

__all__ = [
    "Game",
    "MirrorProxState",
    "Solver",
    "SolverState",
    "best_response",
    "cycle",
    "divergence_step",
    "entropic_step",
    "exploitability",
    "geometric_mixture",
    "inpo_loss",
    "ipo_md",
    "magnetic_mirror_descent",
    "memoryless",
    "mirror_descent",
    "mirror_prox_loop",
    "mixture_policy",
    "nash_ema",
    "nash_md",
    "nash_mp",
    "nash_mp_surrogate",
    "nash_pg_myopic_surrogate",
    "nash_pg_surrogate",
    "online_ipo",
    "online_ipo_loss",
    "policy_preference",
    "preference_matrix",
    "proximal_step",
    "random_preference",
    "regularised_equilibrium",
    "regularised_exploitability",
    "regularised_preference",
    "run_solver",
    "sppo",
    "sppo_loss",
    "weighted_cycle",
    "win_rate",
    "xpo",
    "xpo_loss",
]
