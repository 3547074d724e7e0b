"""Sample arguments for ``alignax.regularisers``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences, regularisers
from alignax.regularisers import Regulariser
from tests.row import Row

KEYS = jax.random.split(jax.random.key(0), 3)
LOGP, REF = (-jax.random.exponential(key, (8, 4)) for key in KEYS[:2])
TOKEN = jax.random.exponential(KEYS[2], (8, 4))
MASK = jnp.arange(4)[None] < jnp.array([4, 3, 2, 1, 4, 2, 3, 1])[:, None]
JS = divergences.jensen_shannon()
LOSS = {"place": "loss"}
PLAIN = {
    "reverse KL": Regulariser(**LOSS),
    "of sequences": Regulariser(divergence=JS, **LOSS),
    "myopic": Regulariser(divergence=JS, level="myopic", **LOSS),
    "stored": Regulariser(divergence=JS, samples="reference", **LOSS),
}


def weighed(logp, logp_ref, mask, behaviour):
    regulariser = Regulariser(divergence=JS, **LOSS)
    return regularisers.losses(
        regulariser, logp, logp_ref, mask, logp_behaviour=behaviour
    )


def summed(logp, logp_ref, mask, token):
    regulariser = Regulariser(form="exact", **LOSS)
    return regularisers.losses(regulariser, logp, logp_ref, mask, over_vocabulary=token)


ROWS = [
    *(
        Row(
            name="regularisers.losses",
            fn=partial(regularisers.losses, regulariser),
            args=(LOGP, REF, MASK),
            mask=2,
            masked=(0, 1),
            estimator=True,
        )
        for regulariser in PLAIN.values()
    ),
    Row(
        name="regularisers.losses",
        fn=summed,
        args=(LOGP, REF, MASK, TOKEN),
        grad=(0, 3),
        mask=2,
        masked=(0, 1, 3),
        estimator=True,
    ),
    Row(
        name="regularisers.losses",
        fn=weighed,
        args=(LOGP, REF, MASK, LOGP + 0.1 * REF),
        mask=2,
        masked=(0, 1, 3),
        estimator=True,
    ),
    *(
        Row(
            name="regularisers.token_penalties",
            fn=partial(regularisers.token_penalties, regulariser),
            args=(LOGP, REF, MASK),
            grad=(),
            mask=2,
            masked=(0, 1),
        )
        for regulariser in (
            regularisers.k1_in_reward(),
            Regulariser(divergence=JS),
            Regulariser(divergence=JS, level="myopic"),
        )
    ),
    Row(
        name="regularisers.pull",
        fn=lambda *args: list(regularisers.pull(PLAIN["myopic"], *args).values()),
        args=(LOGP, REF, MASK),
        rowwise=False,
        grad=(),
        mask=2,
        masked=(0, 1),
    ),
]
