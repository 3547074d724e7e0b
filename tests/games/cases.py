"""Games and numbers of the reference, and numpy that shares no line with alignax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from alignax import games

solve = jax.jit(games.regularised_equilibrium)
x64 = functools.partial(jax.enable_x64, True)

RPS = np.array([[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]])
DICE = np.array([[9, 10, 8], [8, 9, 10], [10, 8, 9]]) / 18
GRPS = np.array([[0.5, 0.4, 0.7], [0.6, 0.5, 0.2], [0.3, 0.8, 0.5]])
A5 = np.array(
    [
        [0.5, 0.9, 0.2, 0.6, 0.55],
        [0.1, 0.5, 0.8, 0.4, 0.65],
        [0.8, 0.2, 0.5, 0.7, 0.3],
        [0.4, 0.6, 0.3, 0.5, 0.45],
        [0.45, 0.35, 0.7, 0.55, 0.5],
    ]
)
ELO = np.log(np.array([[1.0], [9.0], [2.0]]))
ELO = 1 / (1 + np.exp(ELO.T - ELO))
MUNOS = np.array(
    [
        [0.5, 1 / 3 + 0.05, 2 / 3 + 0.025],
        [2 / 3 - 0.05, 0.5, 1 / 3 - 0.025],
        [1 / 3 - 0.025, 2 / 3 + 0.025, 0.5],
    ]
)
UNIFORM3, UNIFORM5 = np.full(3, 1 / 3), np.full(5, 0.2)
REF3 = np.array([0.2, 0.5, 0.3])
REF5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
SKEW3 = np.array([0.6, 0.3, 0.1])


def kl(p, q):
    return np.sum(
        np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(q)), 0), -1
    )


def game(preference, ref, beta):
    """A float64 game; call under ``x64``."""
    return games.Game(
        jnp.asarray(preference), jnp.log(jnp.asarray(ref)), jnp.float64(beta)
    )


def random_games(count, size, *, beta, seed=0):
    """Numpy games: half of them nearly decided, references far from uniform."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(count) % 2, 1.0, 8.0)[:, None, None]
    g = scale * rng.normal(size=(count, size, size))
    preference = 1 / (1 + np.exp(np.swapaxes(g, 1, 2) - g))
    logits = 1.5 * rng.normal(size=(count, size))
    logp_ref = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    return games.Game(
        jnp.asarray(preference),
        jnp.asarray(logp_ref),
        jnp.broadcast_to(jnp.asarray(beta, jnp.float64), (count,)),
    )


def nash(preference):
    """An unregularised equilibrium by linear programming."""
    n = len(preference)
    # maximise v with Pᵀπ ≥ v
    result = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-preference.T, np.ones(n)],
        b_ub=np.zeros(n),
        A_eq=[[1.0] * n + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
    )
    return result.x[:n]
