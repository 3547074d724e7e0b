"""Distillation losses against closed forms, enumeration and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from alignax import distillation as ds
from alignax import divergences as dv
from alignax.testing import check_divergence
from alignax.types import InputError

PI = np.array([0.5, 0.25, 0.15, 0.1])
RHO = np.array([0.1, 0.2, 0.3, 0.4])
DIVERGENCES = (dv.reverse_kl(), dv.forward_kl(), dv.jensen_shannon(0.3), dv.alpha(0.5))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def laws(seed, size=7):
    return jnp.asarray(2 * np.random.default_rng(seed).normal(size=(2, size)))


@pytest.mark.parametrize("div", DIVERGENCES, ids=lambda d: d.name)
@pytest.mark.parametrize("support", ["student", "teacher"])
def test_a_coarse_divergence_is_that_of_lumped_laws_and_a_lower_bound(div, support):
    student, teacher = laws(0)
    p, q = (np.exp(x - jax.nn.logsumexp(x)) for x in (student, teacher))
    order = np.argsort(-np.asarray(q if support == "teacher" else p))
    bounds = []
    for k in (1, 3, 6):
        kept, rest = order[:k], order[k:]
        u, v = (np.append(x[kept], x[rest].sum()) for x in (p, q))
        expected = dv.exact(div, jnp.log(u), jnp.log(v))
        found = ds.coarse(div, student, teacher, k=k, support=support)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        bounds.append(float(found))
    # One token is left in the last rest: nothing is lumped.
    np.testing.assert_allclose(bounds[-1], dv.exact(div, student, teacher), rtol=1e-9)
    assert bounds == sorted(bounds)
    check_grads(
        lambda x: ds.coarse(div, x, teacher, k=3, support=support),
        (student,),
        order=1,
        modes=["rev"],
    )


def test_what_each_support_does_not_see():
    """The student's odd token is in the teacher's tail, and the other way round."""
    teacher = jnp.log(jnp.array([0.6, 0.3, 0.05, 0.05]))
    odd = jnp.log(jnp.array([0.6, 0.3, 0.099, 0.001]))
    reverse = dv.reverse_kl()
    assert ds.coarse(reverse, odd, teacher, k=2, support="teacher") < 1e-9
    assert ds.coarse(reverse, odd, teacher, k=3, support="student") > 0.01


def test_balanced_with_equal_weights_is_jeffreys():
    both = ds.balanced(
        jnp.log(PI), jnp.log(RHO), weigh=lambda gap: (jnp.ones(()), jnp.ones(()))
    )
    np.testing.assert_allclose(both, 1.174792727959, rtol=1e-11)
    np.testing.assert_allclose(
        both, dv.exact(dv.jeffreys(), jnp.log(PI), jnp.log(RHO)), rtol=1e-12
    )


def test_balanced_holds_its_weights_fixed():
    student, teacher = laws(1)
    p, q = (np.exp(x - jax.nn.logsumexp(x)) for x in (student, teacher))
    gap = -(p * np.log(p)).sum() + (q * np.log(q)).sum()
    share = 1 / (1 + np.exp(-gap))
    expected = jax.grad(
        lambda x: (
            (1 - share) * dv.exact(dv.forward_kl(), x, teacher)
            + share * dv.exact(dv.reverse_kl(), x, teacher)
        )
    )(student)
    found = jax.grad(lambda x: ds.balanced(x, teacher, weigh=ds.surer))(student)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_plackett_luce_worked_numbers():
    teacher, student = jnp.array([2, 0.5, 1, -1]), jnp.array([0.3, -0.2, 0.8, 0.1])
    loss = ds.pld(student, teacher, jnp.array(1))
    np.testing.assert_allclose(loss, 1.1072196408159547, rtol=1e-12)
    moved = ds.pld(student + 3.7, teacher, jnp.array(1))
    np.testing.assert_allclose(moved, loss, rtol=1e-12)
    # A teacher that is sure of the right token: its cross-entropy.
    sure = jnp.array([0.0, 1e4, 0.0, 0.0])
    np.testing.assert_allclose(
        ds.pld(student, sure, jnp.array(1)),
        -jax.nn.log_softmax(student)[1],
        rtol=1e-12,
    )
    hessian = jax.hessian(ds.pld)(student, teacher, jnp.array(1))
    assert np.linalg.eigvalsh(hessian).min() > -1e-12
    check_grads(lambda x: ds.pld(x, teacher, jnp.array(1)), (student,), order=2)


@pytest.mark.parametrize("standardised", [False, True])
def test_tvd_has_the_gradient_of_the_total_variation(standardised):
    """Over all tokens at their probabilities; numbers of the student's logits."""
    logits = jnp.log(PI)

    def expected_loss(x):
        logp = jax.nn.log_softmax(x)
        # Each token as often as the student draws it, so that means are the law's.
        count = jnp.asarray(np.round(PI * 20).astype(int))
        rows = jnp.repeat(jnp.arange(4), count, total_repeat_length=20)
        losses = ds.tvd_surrogate(
            logp[rows][None],
            jnp.log(RHO)[rows][None],
            jnp.ones((1, 20), bool),
            standardised=standardised,
        )
        return jnp.mean(losses)

    exact = jax.grad(lambda x: dv.exact(dv.total_variation(), x, jnp.log(RHO)))(logits)
    np.testing.assert_allclose(exact, [0.125, 0.0625, -0.1125, -0.075], rtol=1e-12)
    found = jax.grad(expected_loss)(logits)
    deviation = np.sqrt(0.25 * 0.75) if standardised else 1.0
    np.testing.assert_allclose(found, exact / deviation, rtol=1e-9)


def test_tvd_without_a_spread_is_silent():
    logp = jnp.log(jnp.full((1, 3), 0.5))
    mask = jnp.ones((1, 3), bool)
    assert not jnp.any(ds.tvd_surrogate(logp, logp - 1, mask))
    assert not jnp.any(ds.tvd_surrogate(logp, logp + 0.1, mask))


def test_bad_numbers_are_named():
    with pytest.raises(InputError, match="k must be from 1 to 3, got 4"):
        ds.coarse(dv.reverse_kl(), jnp.zeros(4), jnp.zeros(4), k=4)
    with pytest.raises(InputError, match="temperature must be positive, got 0"):
        ds.pld(jnp.zeros(4), jnp.zeros(4), jnp.array(0), temperature=0.0)


@pytest.mark.parametrize("skew", [0.1, 0.7])
def test_skewed_kls_are_those_of_mixtures(skew):
    student, teacher = laws(2)
    p, q = (np.exp(x - jax.nn.logsumexp(x)) for x in (student, teacher))
    div = dv.skewed_kl(skew)
    forward = (q * np.log(q / (skew * q + (1 - skew) * p))).sum()
    reverse = (p * np.log(p / (skew * p + (1 - skew) * q))).sum()
    np.testing.assert_allclose(dv.exact(div, student, teacher), forward, rtol=1e-9)
    found = dv.exact(dv.swap(div), student, teacher)
    np.testing.assert_allclose(found, reverse, rtol=1e-9)
    assert not check_divergence(div).problems
