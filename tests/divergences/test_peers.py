"""Defects of other libraries, none of which we share.

Each test states the behaviour that the defect breaks; the evidence is in the
feature inventory that this library was planned from.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import estimators as es
from alignax.types import InputError
from tests.divergences.cases import PI, RHO, exact, jsd, kl, margin, x64


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_gkd_jsd_weights_the_teacher_by_beta(beta):
    """EasyDeL mixes with (1 - beta) T + beta S but weighs KL(T || M) by beta, which
    is right at 1/2 only. GKD: beta KL(T || M) + (1 - beta) KL(S || M)."""
    student, teacher = PI, RHO
    with x64():
        value = exact(dv.jensen_shannon(beta), jnp.log(student), jnp.log(teacher))
    m = beta * teacher + (1 - beta) * student
    right = beta * kl(teacher, m) + (1 - beta) * kl(student, m)
    swapped = (1 - beta) * teacher + beta * student
    wrong = beta * kl(teacher, swapped) + (1 - beta) * kl(student, swapped)
    np.testing.assert_allclose(value, right, rtol=1e-12)
    assert abs(wrong - right) > 0.1


def test_gkd_end_points_are_limits_not_jumps():
    """TRL replaces beta = 0 and 1 by unscaled KLs, a jump in scale; EasyDeL swaps
    them. Here JSD / beta -> KL(T || S), JSD / (1 - beta) -> KL(S || T), and the end
    points are refused."""
    student, teacher = PI, RHO
    tiny = 1e-6
    with x64():
        args = jnp.log(student), jnp.log(teacher)
        low = exact(dv.jensen_shannon(tiny), *args) / tiny
        high = exact(dv.jensen_shannon(1 - tiny), *args) / tiny
    np.testing.assert_allclose(low, kl(teacher, student), rtol=1e-4)
    np.testing.assert_allclose(high, kl(student, teacher), rtol=1e-4)
    for end in (0.0, 1.0):
        with pytest.raises(InputError, match="weight"):
            dv.jensen_shannon(end)


def test_the_js_of_fdpo_is_twice_the_divergence():
    """disco, f-DPG and f-DPO call 2 JSD "JS", GKD and scipy the true one."""
    with x64():
        u = np.array([0.2, 1.0, 7.0])
        double = dv.scale(dv.jensen_shannon(), 2.0)
        fdpo = np.log(2) - np.log1p(1 / u)
        np.testing.assert_allclose(double.f_prime(jnp.log(u)), fdpo, atol=1e-12)
        value = exact(dv.jensen_shannon(), jnp.log(PI), jnp.log(RHO))
    np.testing.assert_allclose(value, jsd(PI, RHO, 0.5), rtol=1e-12)


@jax.jit
def link_and_slope(div, w, zero):
    return jax.value_and_grad(lambda w: margin(div, w, zero, zero, zero, beta=0.1))(w)


@pytest.mark.parametrize("l", [-30.0, -79.0, -81.0, -150.0, -1000.0])
def test_trl_alpha_clamp_does_not_kill_the_gradient(l):
    """TRL clamps the exponent at 80, 11 in half precision: gradient 0 beyond, and
    its forward KL has no clamp at all: inf. bf16 inputs included."""
    for div in (dv.alpha(0.5), dv.alpha(1.0), dv.forward_kl()):
        for dtype in (jnp.float32, jnp.bfloat16):
            zero = jnp.zeros((), dtype)
            margin, slope = link_and_slope(div, jnp.asarray(l, dtype), zero)
            assert np.isfinite(margin)
            assert slope.dtype == dtype
            assert np.isfinite(slope.astype(jnp.float32))
            assert slope > 0


def test_chi_squared_names():
    """disco's ChiSquaredLoss has f' = 1 - t^-2 (ours: neyman) and its
    ReverseChiSquaredLoss 2 (t - 1) (ours: pearson)."""
    t = np.array([0.3, 1.0, 4.0], np.float32)
    zero, log_t = jnp.zeros(3), jnp.log(jnp.asarray(t))
    reward = dv.pseudo_reward(dv.pearson(), log_t, zero, jnp.zeros(()))
    np.testing.assert_allclose(reward, -2 * (t - 1), rtol=2e-6, atol=1e-7)
    reward = dv.pseudo_reward(dv.neyman(), log_t, zero, jnp.zeros(()))
    np.testing.assert_allclose(reward, -(1 - t**-2.0), rtol=2e-6, atol=1e-7)
    with x64():
        value = exact(dv.pearson(), jnp.log(PI), jnp.log(RHO))
    np.testing.assert_allclose(value, ((PI - RHO) ** 2 / RHO).sum(), rtol=1e-12)


@jax.jit
def exact_and_gradient(div, student, teacher):
    return jax.value_and_grad(lambda s: dv.exact(div, s, teacher))(student)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_probability_targets_are_not_nan(dtype):
    """optax.losses.kl_divergence_with_log_targets is NaN, value and gradient, for a
    teacher truncated to its top k."""
    student = jnp.array([0.5, -1.0, 2.0], dtype)
    teacher = jnp.array([1.0, 0.0, -jnp.inf], dtype)
    for div in (dv.forward_kl(), dv.jensen_shannon(), dv.squared_hellinger()):
        value, grad = exact_and_gradient(div, student, teacher)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert value > 0
        assert np.isfinite(grad.astype(jnp.float32)).all()
        assert (grad != 0).all()


def test_constants_are_kept():
    """TRL and disco drop the constants of f' (+1 for the reverse KL, -1 for the
    forward KL), so that losses which are not differences are wrong (TRL #6441).
    Here f'(1) = 0: an unmoved policy has implicit reward 0."""
    zero = jnp.zeros(1)
    for div in (dv.reverse_kl(), dv.forward_kl(), dv.alpha(0.3), dv.jeffreys()):
        assert div.f_prime(zero) == 0
        assert dv.pseudo_reward(div, zero, zero, zero) == 0


def test_no_negative_estimates_by_cancellation():
    """Tunix's k3 is negative at tiny log-ratios (its issue 2315)."""
    logp = jnp.linspace(-1e-3, 1e-3, 2001) - 1.0
    logp_ref = jnp.full_like(logp, -1.0)
    for div in (dv.reverse_kl(), dv.forward_kl(), dv.jensen_shannon(), dv.jeffreys()):
        for value in (es.f_from_policy, es.f_from_reference):
            assert (jax.jit(value)(div, logp, logp_ref) >= 0).all()


def test_a_choice_of_divergence_is_never_ignored():
    """TRL's Liger path ignores f: every divergence must give its own loss."""
    w, l, zero = jnp.float32(1.5), jnp.float32(-0.7), jnp.float32(0)
    losses = {
        float(margin(div, w, l, zero, zero, beta=0.3))
        for div in (
            dv.reverse_kl(),
            dv.forward_kl(),
            dv.jensen_shannon(),
            dv.alpha(0.5),
            dv.jeffreys(),
            dv.chi2_kl(),
        )
    }
    assert len(losses) == 6
