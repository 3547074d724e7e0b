"""Sample arguments for ``alignax.targets``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import targets
from tests.row import Row

KEYS = jax.random.split(jax.random.key(3), 5)
SHAPE = (8, 5)
LOGP, LOGQ = (jax.nn.log_softmax(jax.random.normal(k, SHAPE)) for k in KEYS[:2])
REWARDS = jax.random.normal(KEYS[2], SHAPE)
LOG_Z = jax.random.normal(KEYS[3], SHAPE)
CHOSEN = jax.random.bernoulli(KEYS[4], 0.5, SHAPE)
CHOSEN = CHOSEN.at[:, 0].set(True).at[:, 1].set(False)


def normalised(log_weights, where):
    normaliser = targets.running_log_normaliser(log_weights.shape[:-1])
    return normaliser.update(normaliser.init(), log_weights, where)


ROWS = [
    Row(
        name="targets.posterior",
        fn=partial(targets.posterior, beta=0.5),
        args=(REWARDS, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="targets.kl_to_posterior",
        fn=partial(targets.kl_to_posterior, beta=0.5),
        args=(LOGP, LOGQ, REWARDS, LOG_Z),
        grad=(0, 1, 2, 3),
        estimator=True,
    ),
    # Excluded outcomes are -inf; the law is what has a finite gradient.
    Row(
        name="targets.conditioned",
        fn=lambda logp, chosen: jnp.exp(targets.conditioned(logp, chosen)[0]),
        args=(LOGP, CHOSEN),
        mask=1,
        masked=(0,),
    ),
    Row(
        name="targets.cumulants",
        fn=partial(targets.cumulants, eta=1.3),
        args=(REWARDS, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="targets.constrained_optimum",
        fn=partial(targets.constrained_optimum, kl=0.2),
        args=(REWARDS, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="targets.quasi_rejection_law",
        fn=partial(targets.quasi_rejection_law, log_kappa=0.3),
        args=(REWARDS, LOGQ),
        grad=(0, 1),
    ),
    *(
        Row(
            name="targets.renyi_cross_entropy",
            fn=partial(targets.renyi_cross_entropy, order=order),
            args=(LOGP, LOGQ),
            grad=(0, 1),
        )
        for order in (1.0, 1.7)
    ),
    Row(
        name="targets.running_log_normaliser",
        fn=normalised,
        args=(LOGP, CHOSEN),
        mask=1,
        masked=(0,),
        estimator=True,
    ),
    Row(
        name="targets.log_normaliser",
        fn=targets.log_normaliser,
        args=(REWARDS,),
        estimator=True,
    ),
    Row(
        name="targets.importance_expectation",
        fn=targets.importance_expectation,
        args=(LOGP, REWARDS),
        grad=(0, 1),
        estimator=True,
    ),
    Row(
        name="targets.log_acceptance",
        fn=partial(targets.log_acceptance, log_kappa=0.3),
        args=(REWARDS,),
    ),
    Row(
        name="targets.quasi_rejection_quality",
        fn=partial(targets.quasi_rejection_quality, log_kappa=0.3),
        args=(REWARDS,),
        estimator=True,
    ),
]
