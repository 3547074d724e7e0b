"""Levels, mixtures and corrections: worked numbers and off-policy enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators, reduce, surrogates
from alignax.types import InputError
from tests.advantages.test_credit import tree_world


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


ALL = jnp.ones(3, bool)


def test_levels_worked_numbers():
    """Reference A11 and A12."""
    ratios = jnp.array([0.1, -0.2, 0.4])
    close(jnp.exp(surrogates.geometric_log_ratio(ratios, ALL)), 1.105171)
    close(jnp.exp(surrogates.sequence_log_ratio(ratios, ALL)), 1.349859)
    ratios = jnp.array([0.1, -0.2, 0.9])
    for sign, loss, gradient in (
        (1.0, -1.105171, [-0.36839, -0.36839, 0]),
        (-1.0, 1.305605, [0.435202] * 3),
    ):

        def gmpo(x, sign=sign):
            values = sign * jnp.ones(3)
            clipped = surrogates.clipped_log_ratio(x, values, ALL)
            level = surrogates.geometric_log_ratio(clipped, ALL)
            return jnp.mean(surrogates.ratio_surrogate(level, values, ALL))

        value, slope = jax.value_and_grad(gmpo)(ratios)
        close(value, loss)
        close(slope, gradient, 1e-5)


def test_mixture_is_unbiased_over_the_mixture_only():
    """RL-PLUS, reference B1: E over the mixture of (π/mix) f is E_π f."""
    policy, other, old = (
        jnp.array(x) for x in ([0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2])
    )
    f = jnp.array([1.0, -2.0, 3.0])
    ratio = 2 * policy / (other + old)
    close(jnp.sum((other + old) / 2 * ratio * f), 0.5, 1e-6)
    assert abs(float(jnp.sum(other * ratio * f)) - 0.5) > 0.1
    assert float(jnp.max(ratio * old / policy)) <= 2
    blind = surrogates.blind_mixture_logp(jnp.log(jnp.array([0.25])), ALL[:1])
    close(0.3 / jnp.exp(blind), 0.685714)
    # The exact mixture with π_ω = (π_old + 1)/2.
    close(jnp.exp(blind), (0.625 + 0.25) / 2)


def test_continuous_tokens_worked_numbers():
    """CoT2-MTS, reference B24; one token is the token ratio."""
    new, old = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.4, 0.4, 0.2])
    index = jnp.array([0, 1, 0, 2])
    logs = jnp.log(new)[index][None], jnp.log(old)[index][None]
    product = surrogates.continuous_log_ratio(*logs, ALL[:1])
    close(jnp.exp(product), 1.171875, 1e-5)
    root = surrogates.continuous_log_ratio(*logs, ALL[:1], root=True)
    close(jnp.exp(root), 1.040448, 1e-5)


def test_truncation_and_masks_worked_numbers():
    """TIS, MIS and the effective sample size, reference A14."""
    weights = jnp.array([0.5, 1.0, 4.0, 0.1])
    close(estimators.truncated_weights(weights, cap=2.0), [0.5, 1, 2, 0.1])
    close(estimators.masked_weights(weights, low=0.5, high=2.0), [0.5, 1, 0, 0])
    close(estimators.effective_sample_size(weights), 1.816918, 1e-5)


@pytest.fixture(scope="module")
def world():
    made = tree_world()
    made.behaviour = made.logp(jax.random.normal(jax.random.key(9), (4, 3)))
    return made


def off_policy_update(world, weights, terms):
    """E_μ[Σ_t w_t c_t ∇log π_t] with weights and terms held."""
    law = jnp.exp(world.behaviour.sum(-1))

    def loss(theta):
        return jnp.sum(law[:, None] * weights * terms * world.logp(theta))

    return jax.grad(loss)(world.theta)


def relative_error(actual, expected):
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))


def test_only_the_sequence_weight_is_exact(world):
    """Off-policy by enumeration, reference A14: token weights, prefix weights with
    an outcome's reward, truncation and no weight are all biased."""
    exact_gradient = world.objective_gradient(0.0)
    logp, mask = world.logp(world.theta), world.mask
    terms = jnp.broadcast_to(world.rewards[:, None], mask.shape)
    sequence = estimators.sequence_weights(logp, world.behaviour, mask)
    errors = {
        "sequence": sequence,
        "token": estimators.token_weights(logp, world.behaviour, mask),
        "prefix": estimators.prefix_weights(logp, world.behaviour, mask),
        "truncated": estimators.truncated_weights(sequence, cap=1.2),
        "none": jnp.ones(mask.shape),
    }
    errors = {
        name: relative_error(off_policy_update(world, weights, terms), exact_gradient)
        for name, weights in errors.items()
    }
    assert errors.pop("sequence") < 1e-5
    assert min(errors.values()) > 0.05, errors


def test_sequence_ratio_surrogate_is_exact_off_policy(world):
    """The same through the surrogate: −R·Π r over μ has the policy's gradient."""
    law = jnp.exp(world.behaviour.sum(-1))
    terms = jnp.broadcast_to(world.rewards[:, None], world.mask.shape)

    def loss(theta):
        ratios = reduce.log_ratio(world.logp(theta), world.behaviour, world.mask)
        level = surrogates.sequence_log_ratio(ratios, world.mask)
        losses = surrogates.ratio_surrogate(level, terms, world.mask)
        return jnp.sum(law * jnp.mean(losses, axis=-1))

    close(-jax.grad(loss)(world.theta), world.objective_gradient(0.0), 1e-5)


def test_the_divergence_term_needs_the_correction_too(world):
    """∇KL(π‖ρ) from μ's tokens: exact with sequence weights, wrong without."""

    def kl(theta):
        logp = world.logp(theta).sum(-1)
        return jnp.sum(jnp.exp(logp) * (logp - world.logp_ref.sum(-1)))

    expected = jax.grad(kl)(world.theta)
    logp, mask = world.logp(world.theta), world.mask
    to_go = jax.lax.cumsum(logp - world.logp_ref, axis=1, reverse=True)
    weights = estimators.sequence_weights(logp, world.behaviour, mask)
    corrected = off_policy_update(world, weights, to_go)
    assert relative_error(corrected, expected) < 1e-5
    plain = off_policy_update(world, jnp.ones(mask.shape), to_go)
    assert relative_error(plain, expected) > 0.1
    # A truncated weight lies between: less bias than none at all.
    truncated = estimators.truncated_weights(weights, cap=5.0)
    between = relative_error(off_policy_update(world, truncated, to_go), expected)
    assert between < relative_error(plain, expected)


def test_mismatch_reports_what_enumeration_gives():
    """With tokens in the sampler's own frequencies the sums are expectations."""
    behaviour, policy = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    tokens = jnp.array([[0, 0, 1, 2]])
    logs = [jnp.log(jnp.array(law))[tokens] for law in (policy, behaviour)]
    report = surrogates.mismatch(*logs, tokens >= 0)
    weights = policy / behaviour
    close(report.kl, np.sum(behaviour * np.log(behaviour / policy)), 1e-5)
    close(report.chi2, np.sum(behaviour * (weights - 1) ** 2), 1e-5)
    close(report.effective_tokens, 1 / np.sum(behaviour * weights**2), 1e-5)
    close(report.largest, np.log(2))
    same = surrogates.mismatch(logs[0], logs[0], tokens >= 0)
    close(jnp.stack(same), [1, 1, 0, 0, 0])
    nothing = surrogates.mismatch(logs[0], logs[1], tokens < 0)
    np.testing.assert_array_equal(jnp.stack(nothing), 0)


def test_mismatch_of_extreme_ratios_is_finite():
    logp, mask = jnp.array([[50.0, -50.0]]), jnp.ones((1, 2), bool)
    assert np.isfinite(jnp.stack(surrogates.mismatch(logp, 0 * logp, mask))).all()


def test_the_tail_of_ratios_adds_over_microbatches():
    ratios = np.array([[1.0, 1.09, 0.8, 7.0], [0.92, 1.3, 9.0, 9.0]])
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    old = jnp.full(mask.shape, -2.0)
    logp = jnp.log(jnp.asarray(ratios, jnp.float32)) + old
    whole = surrogates.ratio_tail(logp, old, mask)
    close(whole.mean[0], 1 + 1.09 + 0.8 + 0.92 + 1.3, 1e-5)
    assert whole.mean[1] == whole.outside[1] == 5
    assert whole.outside[0] == 2
    close(whole.largest, np.log(1.3), 1e-5)
    rows = [[x[i : i + 1] for x in (logp, old, mask)] for i in range(2)]
    parts = [surrogates.ratio_tail(*row) for row in rows]
    for name in ("mean", "outside"):
        summed = sum(np.array(getattr(part, name)) for part in parts)
        close(summed, np.array(getattr(whole, name)), 1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: surrogates.clipped_log_ratio(jnp.ones(3), jnp.ones(3), ALL, low=-1.0),
        lambda: surrogates.off_policy_sequences(
            *[jnp.ones(3)] * 3, ALL, threshold=-1.0
        ),
        lambda: surrogates.dual_clip_surrogate(jnp.ones(3), jnp.ones(3), ALL, cap=1.0),
        lambda: surrogates.cispo_surrogate(
            jnp.ones(3), jnp.ones(3), ALL, clip_high=-1.0
        ),
        lambda: surrogates.topr_surrogate(
            jnp.ones(3), jnp.ones(3), ALL, negative=(2.0, 1.0)
        ),
        lambda: surrogates.sapo_surrogate(jnp.ones(3), jnp.ones(3), ALL, positive=0.0),
        lambda: surrogates.vespo_surrogate(
            jnp.ones(3), jnp.ones(3), ALL, positive=(0.0, 1.0)
        ),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
