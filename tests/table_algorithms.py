"""Sample arguments for ``alignax.algorithms``."""

import jax
import jax.numpy as jnp

from alignax import algorithms
from alignax.types import Rollout, Scored
from tests.row import Row

KEYS = jax.random.split(jax.random.key(4), 4)
LOGP, OLD, ENTROPY = (jax.random.normal(key, (8, 5)) for key in KEYS[:3])
REWARDS = jax.random.normal(KEYS[3], (8,))
MASK = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
GRPO = algorithms.METHODS["grpo"].algorithm


def rows(rewards, old, mask):
    scored = Scored(
        rollout=Rollout(tokens=None, attended=mask, trained=mask),
        rewards=rewards.reshape(-1, 2).astype(jnp.float32),
        logp_old=old,
        logp_ref=old,
    )
    return algorithms.prepare(GRPO, scored)


def token_losses(logp, entropy, old, mask):
    parts = algorithms.losses(GRPO, logp, entropy**2, rows(REWARDS, old, mask))
    return sum(parts.values())


ROWS = [
    Row(
        name="algorithms.prepare",
        fn=lambda *args: [x.astype(jnp.float32) for x in jax.tree.leaves(rows(*args))],
        args=(REWARDS, OLD, MASK),
        rowwise=False,
        grad=(),
        mask=2,
        masked=(1,),
    ),
    Row(
        name="algorithms.losses",
        fn=token_losses,
        args=(LOGP, ENTROPY, OLD, MASK),
        rowwise=False,
        mask=3,
        masked=(0, 1, 2),
    ),
    Row(
        name="algorithms.reduced",
        fn=lambda values, mask: algorithms.reduced(
            GRPO, values, rows(REWARDS, OLD, mask)
        ),
        args=(LOGP, MASK),
        rowwise=False,
        mask=1,
        masked=(0,),
    ),
]
