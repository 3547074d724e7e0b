"""Trust regions by a divergence, against enumerated laws and the papers' own code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import reduce, surrogates
from alignax.types import InputError

DIVERGENCES = {
    "reverse_kl": dv.reverse_kl(),
    "forward_kl": dv.forward_kl(),
    "total_variation": dv.total_variation(),
    "pearson": dv.pearson(),
    "squared_hellinger": dv.squared_hellinger(),
    "jensen_shannon": dv.jensen_shannon(),
    "chi2_kl": dv.chi2_kl(1.0),
}
every = pytest.mark.parametrize("name", DIVERGENCES)
SMOOTH = [name for name in DIVERGENCES if name != "total_variation"]
V = 6
KEYS = jax.random.split(jax.random.key(3), 4)
NEW, OLD = (jax.nn.log_softmax(2 * jax.random.normal(k, (4, V))) for k in KEYS[:2])
ALL = jnp.ones((4, V), bool)
PATH = jnp.linspace(-2.0, 2.0, 200)
p, q = np.exp(np.float64(NEW)), np.exp(np.float64(OLD))


def bernoulli(name, p, q):
    """From textbooks, on probabilities."""
    laws = np.stack([p, 1 - p]), np.stack([q, 1 - q])
    u = laws[0] / laws[1]
    f = {
        "reverse_kl": u * np.log(u),
        "forward_kl": -np.log(u),
        "total_variation": np.abs(u - 1) / 2,
        "pearson": (u - 1) ** 2,
        "squared_hellinger": (np.sqrt(u) - 1) ** 2 / 2,
        "jensen_shannon": (u * np.log(2 * u / (1 + u)) + np.log(2 / (1 + u))) / 2,
        "chi2_kl": (u - 1) ** 2 / 2 + u * np.log(u),
    }[name]
    return (laws[1] * f).sum(0)


def two_token_world():
    """Every completion of two tokens under a sampler and a policy: [N, 2] each."""
    keys = jax.random.split(KEYS[3], 4)
    laws = []
    for first, second in (keys[:2], keys[2:]):
        start = jax.nn.log_softmax(jax.random.normal(first, (3,)))
        then = jax.nn.log_softmax(jax.random.normal(second, (3, 3)))
        laws.append((start, then))
    pairs = list(itertools.product(range(3), repeat=2))
    return (
        *(
            jnp.array([[start[i], then[i, j]] for i, j in pairs])
            for start, then in laws
        ),
        laws,
    )


@pytest.fixture(scope="module")
def measured():
    """All divergences at once: one compilation."""
    counts = jnp.arange(1, V + 1)[:, None, None, None]
    named = jnp.arange(V)[None, None, None] < counts
    mask = jnp.ones((V, 4, 1), bool)
    sampler, policy, laws = two_token_world()

    @jax.jit
    def run(new, old):
        first = [jnp.where(named, x[None, :, None], -jnp.inf) for x in (new, old)]
        return {
            name: {
                "binary": surrogates.binary_divergence(div, new, old, ALL),
                "buckets": surrogates.top_k_divergence(div, *first, mask)[..., 0],
                "whole": dv.exact(div, new, old),
                "completion": surrogates.completion_divergence(
                    div, policy - sampler, jnp.ones(sampler.shape, bool)
                ),
                "completions": dv.exact(div, policy.sum(-1), sampler.sum(-1)),
                "steps": [
                    dv.exact(div, new, old) for old, new in zip(*laws, strict=True)
                ],
            }
            for name, div in DIVERGENCES.items()
        }

    return run(NEW, OLD)


@every
def test_binary_divergence_is_that_of_two_outcomes(measured, name):
    expected = bernoulli(name, p, q)
    atol = 3e-6 * np.abs(expected).max()
    np.testing.assert_allclose(measured[name]["binary"], expected, atol=atol)


@every
def test_buckets_rise_to_the_whole_divergence(measured, name):
    """Data processing: each token out of the bucket adds; with all of them it is it."""
    buckets, whole = (np.asarray(measured[name][key]) for key in ("buckets", "whole"))
    assert (np.diff(buckets, axis=0) > -1e-5 * whole).all()
    np.testing.assert_allclose(buckets[-1], whole, rtol=1e-5)
    assert (measured[name]["binary"] <= whole[:, None] * (1 + 1e-5)).all()


def test_the_sampler_gets_no_gradient():
    def total(new, old):
        div = dv.jensen_shannon()
        return surrogates.binary_divergence(div, new, old, ALL).sum()

    new, old = jax.jit(jax.grad(total, argnums=(0, 1)))(NEW, OLD)
    assert np.abs(new).min() > 0
    np.testing.assert_array_equal(old, 0)


def test_a_sure_token_is_finite_with_its_gradient():
    """Probabilities that round to 1, on either side: a large value, never a NaN."""
    sure = jnp.array([0.0, -1e-9, -1e-4])
    new = jnp.concatenate([sure, sure - 1, sure])
    old = jnp.concatenate([sure - 1, sure, sure])

    @jax.jit
    def run(new):
        def value(new, div):
            return surrogates.binary_divergence(div, new, old, new < 1)

        return [
            (value(new, div), jax.grad(lambda x, div=div: value(x, div).sum())(new))
            for div in (dv.reverse_kl(), dv.forward_kl(), dv.pearson(), dv.neyman())
        ]

    for value, gradient in run(new):
        assert np.isfinite(value).all()
        assert (value >= 0).all()
        assert np.isfinite(gradient).all()


# DPPO's mask as its code writes it (sail-sg/Stable-RL, ``core_algos.py``).
def official_keep(kind, p, q, advantages, low, high):
    if kind == "tv":
        up, down = p - q > high, p - q < -low
    else:
        kl = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        up, down = (kl > high) & (p > q), (kl > low) & (p < q)
    return ~np.where(advantages > 0, up, down)


@pytest.mark.parametrize(
    ("kind", "name", "low", "high"),
    [("tv", "total_variation", 0.1, 0.15), ("kl", "forward_kl", 0.02, 0.05)],
)
@pytest.mark.parametrize("cap", [1.5, np.inf])
def test_dppo_is_the_official_rule(kind, name, low, high, cap):
    advantages = jax.random.normal(KEYS[2], (4, V))
    a = np.float64(advantages)

    @jax.jit
    def loss(logp):
        moved = surrogates.binary_divergence(DIVERGENCES[name], logp, OLD, ALL)
        return surrogates.divergence_masked_surrogate(
            reduce.log_ratio(logp, OLD, ALL),
            advantages,
            ALL,
            moved,
            low=low,
            high=high,
            cap=cap,
        ).sum()

    keep = official_keep(kind, p, q, a, low, high)
    assert 0 < keep.sum() < keep.size, "both kinds of tokens"
    expected = -np.minimum(p / q, cap) * a * keep
    actual = jax.grad(loss)(NEW)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_dppo_lets_rare_tokens_move_and_holds_likely_ones():
    """What PPO's ratio gets the wrong way round; |π − π_old| ≤ .15, clip .2."""
    old, new = jnp.log(jnp.array([[0.01, 0.9]])), jnp.log(jnp.array([[0.03, 0.73]]))
    mask, advantages = jnp.ones((1, 2), bool), jnp.array([[1.0, -1.0]])

    def gradient(rule):
        return jax.jit(jax.grad(lambda x: rule(x - old).sum()))(new)

    def dppo(ratios):
        moved = surrogates.binary_divergence(dv.total_variation(), new, old, mask)
        return surrogates.divergence_masked_surrogate(
            ratios, advantages, mask, moved, low=0.15, high=0.15
        )

    def ppo(ratios):
        return surrogates.ppo_surrogate(ratios, advantages, mask)

    assert (gradient(dppo)[0] != 0).tolist() == [True, False]
    assert (gradient(ppo)[0] != 0).tolist() == [False, True]


@every
def test_completion_divergence_is_unbiased(measured, name):
    """VACO's statistic is the mean step's divergence on the sampler's prefixes."""
    sampler, _, ((start, _), _) = two_token_world()
    values = measured[name]["completion"]
    np.testing.assert_array_equal(values[:, 0], values[:, 1])
    first, second = measured[name]["steps"]
    expected = (first + jnp.exp(start) @ second) / 2
    actual = jnp.exp(sampler.sum(-1)) @ values[:, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    whole = measured[name]["completions"]
    if name == "total_variation":
        assert whole <= 2 * expected
    if name == "forward_kl":
        np.testing.assert_allclose(whole, 2 * expected, rtol=1e-5)


@pytest.fixture(scope="module")
def pulls():
    """The penalised rule's gradients along the log-ratio, and where they should end."""
    weights, ones = jnp.full((200,), 0.4), jnp.ones(200)

    def gradient(div, sign, bound):
        def loss(x):
            return surrogates.penalised_ratio_surrogate(
                x, 3 * sign * ones, ones > 0, weights, div=div, bound=bound
            ).sum()

        root = div.log_inverse(jnp.float32(sign * div.curvature * bound / 0.4))
        return jax.grad(loss)(PATH), div.f_prime(PATH), root

    @jax.jit
    def run():
        return {
            (name, sign): gradient(DIVERGENCES[name], sign, 0.1)
            for name in SMOOTH
            for sign in (1.0, -1.0)
        }

    return run()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_penalty_meets_the_advantage_at_its_bound(pulls, name, sign):
    """Coefficient by hand, and its root: ``w f'(r) = ±f''(1) ε``."""
    gradient, slope, root = map(np.float64, pulls[name, sign])
    r = np.exp(np.float64(PATH))
    expected = -3 * r * (sign - 0.4 * slope / (DIVERGENCES[name].curvature * 0.1))
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
    assert np.isfinite(root), "the bound is met"
    np.testing.assert_array_equal(gradient * sign > 0, (PATH - root) * sign > 0)


def test_drpo_is_the_official_loss():
    """Tencent-Hunyuan/UniRL ``_drpo_loss``, and its weight of the paper's table 1."""
    advantages = jax.random.normal(KEYS[2], (4, V))
    a, epsilon = np.float64(advantages), 0.3

    @jax.jit
    def loss(logp, weights):
        return surrogates.penalised_ratio_surrogate(
            logp - OLD, advantages, ALL, weights, div=dv.pearson(), bound=epsilon
        )

    r = p / q
    for weights in (q, np.ones_like(q)):
        expected = -a * r + np.abs(a) * weights * (r - 1) ** 2 / (2 * epsilon)
        actual = loss(NEW, jnp.float32(weights))
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    table = 1 - np.sign(a * (r - 1)) * np.abs(p - q) / epsilon
    gradient = jax.grad(lambda x: loss(x, jnp.exp(OLD)).sum())(NEW)
    expected = -r * a * table
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_extreme_ratios_keep_a_finite_pull():
    drifts = jnp.array([-300.0, -60.0, 60.0, 300.0, 60.0])
    ones, mask = jnp.ones(5), jnp.arange(5) < 4

    @jax.jit
    def run(x):
        def loss(x, div):
            return surrogates.penalised_ratio_surrogate(
                x, ones, mask, ones, div=div, bound=0.1
            ).sum()

        return [jax.value_and_grad(loss)(x, DIVERGENCES[name]) for name in SMOOTH]

    for value, gradient in run(drifts):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[2:4] > 0).all(), "back from above"
        assert gradient[4] == 0


def test_bad_numbers_are_refused():
    ones, mask = jnp.ones((1, 2)), jnp.ones((1, 2), bool)
    args = ones, ones, mask, ones
    with pytest.raises(InputError, match="low must not be negative"):
        surrogates.divergence_masked_surrogate(*args, low=-0.1, high=0.2)
    with pytest.raises(InputError, match="cap must be positive"):
        surrogates.divergence_masked_surrogate(*args, low=0.1, high=0.2, cap=0.0)
    with pytest.raises(InputError, match="bound must be positive"):
        surrogates.penalised_ratio_surrogate(*args, div=dv.pearson(), bound=0.0)
    with pytest.raises(InputError, match="second derivative"):
        surrogates.penalised_ratio_surrogate(*args, div=dv.total_variation(), bound=1.0)
