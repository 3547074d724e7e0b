"""Preference games: the Nash equilibrium of human feedback.

Preferences can be cyclic; then no reward explains them, and the answer is the policy
that no other is preferred to.

>>> import jax.numpy as jnp
>>> from alignax import games
>>> logp_ref = jnp.log(jnp.array([0.6, 0.3, 0.1]))
>>> game = games.Game(games.rock_paper_scissors(), logp_ref, 0.1)
>>> state, path = games.run_solver(games.nash_mp(), game, logp_ref, steps=50)
>>> print(games.span_seminorm(state.logp, games.regularised_equilibrium(game)) < 1e-3)
True

==================  ============================================================
file                holds
==================  ============================================================
``game``            games as data: win rates, the regularised preference
``examples``        games with known equilibria, random games
``measures``        exploitability, duality gap, residual, span
``equilibrium``     the regularised equilibrium, exactly, for any f-divergence
``mirror``          mirror steps: entropic, f-divergence, logarithmic barrier
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
    intransitive_dice,
    perturbed_cycle,
    random_preference,
    rock_paper_scissors,
    weighted_cycle,
)
from alignax.games.game import (
    Game,
    best_response,
    bradley_terry,
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
    duality_gap,
    equilibrium_residual,
    exploitability,
    regularised_exploitability,
    span_seminorm,
)
from alignax.games.mirror import (
    divergence_step,
    entropic_step,
    geometric_mixture,
    log_barrier_step,
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
    inpo,
    magnetic_mirror_descent,
    memoryless,
    mirror_descent,
    nash_ema,
    nash_md,
    nash_mp,
    proximal_point,
    run_solver,
    sppo,
)

__all__ = [
    "Game",
    "MirrorProxState",
    "Solver",
    "SolverState",
    "best_response",
    "bradley_terry",
    "cycle",
    "divergence_step",
    "duality_gap",
    "entropic_step",
    "equilibrium_residual",
    "exploitability",
    "geometric_mixture",
    "inpo",
    "inpo_loss",
    "intransitive_dice",
    "ipo_md",
    "log_barrier_step",
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
    "perturbed_cycle",
    "policy_preference",
    "preference_matrix",
    "proximal_point",
    "proximal_step",
    "random_preference",
    "regularised_equilibrium",
    "regularised_exploitability",
    "regularised_preference",
    "rock_paper_scissors",
    "run_solver",
    "span_seminorm",
    "sppo",
    "sppo_loss",
    "weighted_cycle",
    "win_rate",
    "xpo",
    "xpo_loss",
]
