"""The estimator report against sums in numpy, and against wrong estimators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators, exact, testing
from alignax.types import InputError

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def world():
    return testing.random_world(KEY, vocab_size=3, horizon=2)


def k3(logp, logp_ref, mask):
    ratio = logp_ref - logp
    return jnp.where(mask, jnp.expm1(ratio) - ratio, 0)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def laws(params):
    """Next-token probabilities: of the first token, and after each first token."""
    p = np.exp(log_softmax(np.asarray(params["logits"], float)[0]))
    return p[0], p[1:]


def kl_of(params, ref):
    (p1, p2), (r1, r2) = laws(params), laws(ref)
    return sum(
        p1[a] * p2[a][b] * np.log(p1[a] * p2[a][b] / (r1[a] * r2[a][b]))
        for a, b in itertools.product(range(3), repeat=2)
    )


def by_differences(function, params):
    logits = np.asarray(params["logits"], float)
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        pair = [function({"logits": logits + sign * step}) for sign in (1, -1)]
        gradient[index] = (pair[0] - pair[1]) / 2e-5
    return gradient


def test_exact_rows_are_sums_over_completions(world):
    """Bias, deviation and gradient of k3, written out for nine completions."""
    (row,) = testing.estimator_report(k3, [world]).rows
    true = kl_of(world.policy, world.reference)
    slope = by_differences(lambda p: kl_of(p, world.reference), world.policy)
    (q1, q2), (r1, r2) = laws(world.policy), laws(world.reference)

    def terms(params, a, b):
        p1, p2 = laws(params)
        ratios = r1[a] / p1[a], r2[a][b] / p2[a][b]
        return sum(x - 1 - np.log(x) for x in ratios)

    pairs = list(itertools.product(range(3), repeat=2))
    weights = np.array([q1[a] * q2[a][b] for a, b in pairs])
    values = np.array([terms(world.policy, a, b) for a, b in pairs])
    mean = weights @ values
    rows = np.array(
        [
            by_differences(lambda p, a=a, b=b: terms(p, a, b), world.policy).ravel()
            for a, b in pairs
        ]
    )
    gradient = weights @ rows
    noise = weights @ ((rows - gradient) ** 2).sum(axis=-1)
    size = np.linalg.norm(slope)
    np.testing.assert_allclose(row.target, true, rtol=1e-4)
    np.testing.assert_allclose(row.value_bias, mean - true, atol=1e-5)
    np.testing.assert_allclose(
        row.value_std, np.sqrt(weights @ (values - mean) ** 2), rtol=1e-3
    )
    miss = np.linalg.norm(gradient - slope.ravel()) / size
    np.testing.assert_allclose(row.gradient_miss, miss, rtol=1e-3)
    cosine = gradient @ slope.ravel() / size / np.linalg.norm(gradient)
    np.testing.assert_allclose(row.gradient_cosine, cosine, rtol=1e-3)
    np.testing.assert_allclose(row.gradient_std, np.sqrt(noise) / size, rtol=1e-3)
    assert row.samples is None
    assert row.settings["horizon"] == 2


def test_simulation_agrees_with_the_exact_row(world):
    """Three sizes of batch: means as the exact row's, deviations as its over √n."""
    report = testing.estimator_report(
        k3, [world], samples=(4, 64), replicates=512, key=jax.random.key(1)
    )
    truth, *simulated = report.rows
    assert [row.samples for row in simulated] == [4, 64]
    for row in simulated:
        assert abs(row.value_bias) < 2 * row.value_bias_half
        assert row.gradient_miss == pytest.approx(
            truth.gradient_miss, abs=3 * row.gradient_miss_half
        )
        for name in ("value_std", "gradient_std"):
            expected = getattr(truth, name) / np.sqrt(row.samples)
            assert getattr(row, name) == pytest.approx(expected, rel=0.2)


def test_intervals_cover_as_often_as_they_say(world):
    """Of 200 simulations' 95 % intervals, 186 to 198 hold the truth (3 deviations)."""
    report = testing.estimator_report(
        estimators.k1, [world] * 200, samples=(8,), replicates=64
    )
    rows = report.rows[200:]
    covered = sum(abs(row.value_bias) < row.value_bias_half for row in rows)
    assert 180 <= covered <= 198
    # The mean of an unbiased gradient misses by its noise alone, taken off.
    sound = testing.estimator_report(
        estimators.sequence_kl_surrogate, [world] * 50, samples=(8,), replicates=64
    )
    within = sum(r.gradient_miss <= 2 * r.gradient_miss_half for r in sound.rows[50:])
    assert within >= 48


def test_own_estimators_are_judged(world):
    """A sound one passes; one that forgets the future does not, nor a scaled one."""

    def sound(logp, logp_ref, mask):
        ratio = jax.lax.stop_gradient(logp - logp_ref)
        to_go = jnp.cumsum(ratio[:, ::-1], axis=1)[:, ::-1]
        magic = jnp.exp(logp - jax.lax.stop_gradient(logp)) - 1
        return ratio + to_go * magic

    def myopic(logp, logp_ref, mask):
        ratio = jax.lax.stop_gradient(logp - logp_ref)
        return ratio * jnp.exp(logp - jax.lax.stop_gradient(logp))

    def doubled(logp, logp_ref, mask):
        return 2 * sound(logp, logp_ref, mask)

    worlds = [world, testing.random_world(jax.random.key(5), horizon=2)]
    testing.assert_unbiased(testing.estimator_report(sound, worlds))
    found = testing.estimator_report(myopic, worlds)
    testing.assert_unbiased(found, gradient=False)
    with pytest.raises(AssertionError, match=r"myopic.*gradient.*sequence_kl_surr"):
        testing.assert_unbiased(found)
    with pytest.raises(AssertionError, match="doubled is biased: its value is off"):
        testing.assert_unbiased(testing.estimator_report(doubled, worlds))


def test_records_bring_their_law_and_their_divergence(world):
    """Off-policy and reference-sampled estimators, with targets of their own."""
    off = estimators.TABLE["off_policy_sequence_kl_surrogate"]
    testing.assert_unbiased(testing.estimator_report(off, [world]))
    # The same tokens, taken for the policy's.
    wrong = testing.estimator_report(off, [world], sampled_from="policy")
    with pytest.raises(AssertionError):
        testing.assert_unbiased(wrong)

    def forward(logp, logp_ref):
        return exact.kl(logp_ref, logp)

    report = testing.estimator_report(
        estimators.TABLE["forward_kl_surrogate"], [world], target=forward
    )
    testing.assert_unbiased(report)


def test_rows_that_depend_on_each_other_are_simulated(world):
    def centred(logp, logp_ref, mask):
        ratio = jax.lax.stop_gradient((logp - logp_ref).sum(axis=-1))
        return (ratio - ratio.mean())[:, None] * logp

    with pytest.raises(InputError, match="give samples"):
        testing.estimator_report(centred, [world])
    (row,) = testing.estimator_report(centred, [world], samples=(16,)).rows
    assert row.samples == 16
    # The mean's own share shrinks the gradient by 1 − 1/n.
    assert row.gradient_miss == pytest.approx(1 / 16, abs=2 * row.gradient_miss_half)


def test_worlds_of_one_shape_share_a_compilation(world):
    traced = []

    def counted(logp, logp_ref, mask):
        traced.append(logp.shape)
        return estimators.k1(logp, logp_ref, mask)

    one = testing.estimator_report(counted, [world])
    once = len(traced)
    worlds = [testing.random_world(jax.random.key(i)) for i in range(4)]
    four = testing.estimator_report(counted, worlds)
    assert len(traced) == 2 * once
    assert len(four.rows) == 4
    assert one.name == "counted"


def test_scale_horizon_and_off_policyness_are_what_they_say():
    near, far = (
        testing.random_world(KEY, scale=scale, off_policy=0.0) for scale in (0.1, 1.0)
    )
    shift = [
        jax.tree.map(lambda x, y: x - y, w.reference, w.policy)["logits"]
        for w in (near, far)
    ]
    np.testing.assert_allclose(10 * shift[0], shift[1], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, near.behaviour, near.policy)
    assert testing.random_world(KEY, horizon=3).tokens.shape == (27, 3)
    ending = testing.random_world(KEY, horizon=3, ends=True)
    assert ending.tokens.shape == (1 + 2 + 4 + 8, 3)
    assert not ending.mask.all()
    # With ends, all that is claimed of the sound loss still holds.
    testing.assert_unbiased(
        testing.estimator_report(estimators.sequence_kl_surrogate, [ending])
    )


def test_tables_and_series(world):
    other = testing.random_world(KEY, scale=0.1)
    report = testing.estimator_report(estimators.k2, [world, other])
    text = str(report)
    assert report._repr_markdown_() == text
    assert len(text.splitlines()) == 4
    assert all(line.count("|") == 10 for line in text.splitlines())
    assert f"{100 * report.rows[0].gradient_miss:.1f} %" in text
    x, mean, low, high = testing.series([report], x="scale", y="gradient_miss")["k2"]
    assert x.tolist() == [0.1, 1.0]
    np.testing.assert_allclose(
        mean, [report.rows[1].gradient_miss, report.rows[0].gradient_miss]
    )
    np.testing.assert_array_equal(low, high)
    for wrong in ({"x": "length"}, {"y": "colour"}, {"samples": 5}):
        with pytest.raises(InputError, match="must name rows of k2"):
            testing.series([report], **{"x": "scale", "y": "target"} | wrong)


def test_bad_input(world):
    with pytest.raises(InputError, match="worlds"):
        testing.estimator_report(k3, [])
    with pytest.raises(InputError, match="at least 2"):
        testing.estimator_report(k3, [world], samples=(1,))
    with pytest.raises(InputError, match=r"shape.*\(9, 2\).*\(9,\)"):
        testing.estimator_report(lambda *x: k3(*x).sum(-1), [world])
    with pytest.raises(InputError, match="scale"):
        testing.random_world(KEY, scale=-1.0)
