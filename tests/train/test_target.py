"""f-DPG's whole step against the gradient of the divergence to an enumerated target.

The world of ``test_whole_step``: seven completions, every pair of them a group with its
probability. The public step runs as it is, the normaliser in its state included.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignax import divergences as dv
from alignax import exact, targets
from alignax.algorithms import METHODS, Target
from alignax.algorithms import target as towards
from alignax.pipeline import rollout as rollouts
from alignax.train import policy_gradient as pg
from alignax.types import InputError
from tests.train.test_whole_step import (
    APPLY,
    BETA,
    DIVERGENCES,
    OLD,
    PARAMS,
    REF,
    REWARDS,
    N,
    flat,
    logp_of,
    objective,
    pairs_of,
    weights_under,
)
from tests.train.test_whole_step import Regulariser as Penalty

ALL = {**DIVERGENCES, "total_variation": dv.total_variation()}
ALLOWED = jnp.arange(N) != 3
METHOD = dataclasses.replace(METHODS["f_dpg"].algorithm, beta=BETA)
POSTERIOR, LOG_Z = targets.posterior(REWARDS, logp_of(REF), beta=BETA)


def records_of(behaviour):
    """All pairs of a behaviour policy, scored by the policy that is trained."""
    records, weights = pairs_of(behaviour)
    own, _ = pairs_of(PARAMS)
    records = dataclasses.replace(records, logp_old=own.logp_old)
    pairs = jnp.array([[i, j] for i in range(N) for j in range(N)])
    index = jnp.zeros((len(pairs), 1), jnp.int32)
    return dataclasses.replace(
        records, index=index, right=ALLOWED[pairs][:, None]
    ), weights


def expected_change(target, records, weights, *, log_z=None, count=1e12):
    """What the step does to the parameters, over all groups of two."""
    algorithm = dataclasses.replace(METHOD, target=target)
    tx = optax.sgd(1.0)
    state = pg.init_state(
        algorithm, PARAMS, tx, jax.random.key(0), reference=REF, records=1
    )
    if log_z is not None:
        # As of many samples.
        known = targets.LogNormaliser(*(jnp.full(1, x) for x in (log_z, 9.0, count)))
        state = dataclasses.replace(state, memory=state.memory | {"normaliser": known})
    step = pg.make_step(algorithm, rollouts.score_by_logits(APPLY), tx, jit=False)

    @jax.jit
    def run(records, weights):
        new, metrics = jax.vmap(lambda scored: step(state, scored))(records)
        change = jax.tree.map(
            lambda x, old: jnp.tensordot(weights, x - old[None], 1), new.params, PARAMS
        )
        return change, metrics

    change, metrics = run(records, weights)
    return flat(change), metrics


def descent(div, goal=POSTERIOR):
    return -flat(jax.grad(lambda p: dv.exact(div, logp_of(p), goal))(PARAMS))


def apart(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "forward_kl" else [pytest.mark.slow])
        for name in ALL
    ],
)
def test_expected_step_descends_the_divergence(name):
    """Off-policy pairs and the exact normaliser: −∇D_f(π‖p), for every divergence."""
    target = Target(divergence=ALL[name])
    change, metrics = expected_change(target, *records_of(OLD), log_z=LOG_Z)
    assert apart(change, descent(ALL[name])) < 1e-4
    assert not np.any(metrics["excluded"])
    assert not np.any(metrics["massless"])


@pytest.mark.slow
def test_kl_dpg_is_kl_rl():
    """Of the reverse KL to the posterior: the gradient of ``E r − β KL``, over β, with
    a normaliser of one other sample as with the exact one."""
    target = Target(divergence=dv.reverse_kl())
    change, _ = expected_change(target, *records_of(PARAMS))
    penalty = Penalty(divergence=dv.reverse_kl(), level="sequence")
    expected = flat(jax.grad(objective)(PARAMS, penalty)) / BETA
    assert apart(change, expected) < 1e-4


@pytest.mark.slow
def test_bias_of_an_estimated_normaliser():
    """Of one other sample, the worst case: the forward KL's gradient is only longer, by
    ``E[Z/Ẑ]``; the Jensen-Shannon divergence's is turned as well, and ever less with
    what was seen before."""
    records, weights = records_of(PARAMS)
    ratio = (POSTERIOR + LOG_Z) - logp_of(PARAMS)
    factor = jnp.sum(jnp.exp(logp_of(PARAMS) + LOG_Z - ratio))
    change, _ = expected_change(Target(divergence=dv.forward_kl()), records, weights)
    assert apart(change, float(factor) * descent(dv.forward_kl())) < 1e-4
    assert factor > 1.02

    target, true = Target(divergence=dv.jensen_shannon()), descent(dv.jensen_shannon())
    other, _ = expected_change(target, records, weights)
    cosine = other @ true / np.linalg.norm(other) / np.linalg.norm(true)
    assert 0.9 < cosine < 0.999
    biases = [apart(other, true)]
    for count in (10.0, 100.0):
        other, _ = expected_change(target, records, weights, log_z=LOG_Z, count=count)
        biases.append(apart(other, true))
    assert biases[0] > 5 * biases[1] > 25 * biases[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon"])
def test_filter_excludes_without_nan(name):
    """A completion without mass counts as one of the largest ratio, and is counted."""
    goal, log_z = targets.conditioned(logp_of(REF), ALLOWED)
    target = Target(density=towards.filter, divergence=ALL[name])
    records, weights = records_of(PARAMS)
    change, metrics = expected_change(target, records, weights, log_z=log_z)
    assert apart(change, descent(ALL[name], goal)) < 1e-4
    excluded = float(weights @ metrics["excluded"])
    np.testing.assert_allclose(excluded, jnp.exp(logp_of(PARAMS))[3], rtol=1e-5)

    change, metrics = expected_change(target, records, weights)
    assert np.isfinite(change).all()
    assert all(np.isfinite(x).all() for x in metrics.values())
    # Before any sample of mass was seen a pair without any teaches nothing.
    np.testing.assert_allclose(
        weights @ metrics["massless"], jnp.exp(2 * logp_of(PARAMS))[3], rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon"])
def test_experts_stand_for_the_reference(name):
    """A product that sums to no 1, of exponents that do neither."""
    records, weights = records_of(OLD)
    other = rollouts.score_by_logits(APPLY)
    tokens = jax.vmap(lambda scored: other(OLD, scored.rollout).logp)(records)
    product = 1.4 * records.logp_ref + 0.3 * jnp.where(records.mask, tokens, 0)
    records = dataclasses.replace(records, logp_ref=product)
    law = 1.4 * logp_of(REF) + 0.3 * logp_of(OLD)
    log_z = jax.nn.logsumexp(law)
    assert abs(log_z) > 0.1
    target = Target(density=towards.base, divergence=ALL[name])
    change, _ = expected_change(target, records, weights, log_z=log_z)
    assert apart(change, descent(ALL[name], law - log_z)) < 1e-4


@pytest.mark.slow
def test_said_of_the_target():
    """The metrics' expectations are the two divergences and the normaliser."""
    records, weights = records_of(PARAMS)
    target = Target(divergence=dv.reverse_kl())
    _, metrics = expected_change(target, records, weights, log_z=LOG_Z)
    expected = exact.kl(logp_of(PARAMS), POSTERIOR)
    np.testing.assert_allclose(weights @ metrics["kl_to_target"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["log_z"], LOG_Z, rtol=1e-5)
    assert np.all((metrics["target_samples"] >= 1) & (metrics["target_samples"] <= 2))


def test_normalisers_belong_to_records():
    with pytest.raises(InputError, match="normaliser of each record"):
        pg.init_state(METHOD, PARAMS, optax.sgd(1.0), jax.random.key(0))


def test_weights_need_the_sampler():
    records, _ = records_of(OLD)
    one = jax.tree.map(lambda x: x[0], records)
    one = dataclasses.replace(
        one, rollout=dataclasses.replace(one.rollout, logp_behaviour=None)
    )
    with pytest.raises(InputError, match="logp_behaviour is missing"):
        towards.importance(one, one.rewards)


def test_probabilities_sum_to_one():
    np.testing.assert_allclose(jnp.sum(weights_under(OLD)), 1, rtol=1e-5)
