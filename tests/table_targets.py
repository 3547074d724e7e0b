"""Sample arguments for ``alignax.targets``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences as dv
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


SATISFIED = jax.random.bernoulli(KEYS[4], 0.7, SHAPE)


def known(log_weights):
    normaliser = targets.running_log_normaliser(log_weights.shape[:-1])
    return normaliser.update(normaliser.init(), log_weights)


ROWS = [
    Row(
        name="targets.tilted",
        fn=partial(targets.tilted, beta=0.5),
        args=(LOGP, REWARDS),
        grad=(0, 1),
    ),
    # Excluded completions are -inf; the density is what has a finite gradient.
    Row(
        name="targets.filtered",
        fn=lambda logp, b: jnp.exp(targets.filtered(logp, b)),
        args=(LOGP, SATISFIED),
    ),
    *(
        Row(
            name=f"targets.{name}",
            fn=lambda logps, weights, name=name: getattr(targets, name)(
                jnp.stack([logps, logps[..., ::-1]], axis=-1), weights[0, :2]
            ),
            args=(LOGP, jax.nn.softmax(REWARDS)),
            rowwise=False,
        )
        for name in ("product_of_experts", "mixture_of_experts")
    ),
    Row(
        name="targets.fdpg_surrogate",
        fn=lambda logp, goal, log_z, behaviour: targets.fdpg_surrogate(
            dv.jensen_shannon(), logp, goal, log_z, logp_behaviour=behaviour
        ),
        args=(LOGP, REWARDS, LOG_Z, LOGQ),
        estimator=True,
    ),
    Row(
        name="targets.normaliser_error",
        fn=lambda weights: targets.normaliser_error(known(weights)),
        args=(REWARDS,),
        grad=(),
        estimator=True,
    ),
    Row(
        name="targets.others_log_normaliser",
        fn=lambda weights: targets.others_log_normaliser(known(weights), weights),
        args=(REWARDS,),
        grad=(),
        estimator=True,
    ),
    Row(
        name="targets.normaliser_bounds",
        fn=targets.normaliser_bounds,
        args=(REWARDS,),
        estimator=True,
    ),
    Row(
        name="targets.windowed_mean",
        fn=lambda values: (
            targets.windowed_mean(7)
            .update(targets.windowed_mean(7).init(), values)
            .values
        ),
        args=(REWARDS,),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="targets.rate_function",
        fn=partial(targets.rate_function, mean=0.3),
        args=(REWARDS, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="targets.fit_multipliers",
        fn=lambda features, weights: targets.fit_multipliers(
            jnp.stack([features, jnp.abs(features)], axis=-1),
            jnp.array([0.1, 0.9]),
            weights,
        ),
        args=(REWARDS, LOGP),
        rowwise=False,
        grad=(),
        estimator=True,
    ),
    Row(
        name="targets.posterior",
        fn=partial(targets.posterior, beta=0.5),
        args=(REWARDS, LOGP),
        grad=(0, 1),
    ),
    Row(
        name="targets.exponentiated_payoff",
        fn=partial(targets.exponentiated_payoff, temperature=0.5),
        args=(REWARDS, SATISFIED),
        mask=1,
        masked=(0,),
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
