"""Rules over several models' logits, against numpy and solved problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import decoding
from alignax.types import InputError

RNG = np.random.default_rng(3)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q), axis=-1)


def objective(alpha, large, base, tuned):
    """Fan et al.'s, in numpy from its definition."""
    p, q, t = softmax(large), softmax(base), softmax(tuned)
    moved = softmax(large + alpha * (tuned - base))
    return (kl(moved, p) - kl(t, q)) ** 2 + (kl(p, moved) - kl(q, t)) ** 2


def test_fusion_is_the_solved_problem():
    """The reference's number (9.b), and a grid of 1e-3 on thirty draws."""
    worked = ([1, 0.2, -0.5, 0.3], [0.5, 0, 0.1, -0.2], [-0.3, 1.2, 0.1, 0.0])
    with jax.enable_x64(True):
        found = float(decoding.fusion_weight(*map(jnp.array, worked)))
        assert abs(found - 0.948) < 5e-4
        worked = [np.array(x, float) for x in worked]
        # Its objective is of the grid point; the solved one is below.
        assert abs(objective(0.948, *worked) - 9.9614e-6) < 1e-10
        assert objective(found, *worked) < 9.9614e-6
        rows = [s * RNG.normal(size=(30, 7)) for s in (3.0, 1.5, 1.5)]
        weights = np.asarray(decoding.fusion_weight(*map(jnp.asarray, rows)))
    grid = np.linspace(0, 2, 2001)
    inside = 0
    for i, weight in enumerate(weights):
        one = [x[i] for x in rows]
        tried = objective(grid[:, None], *one)
        assert objective(weight, *one) <= tried.min() * (1 + 1e-7)
        assert abs(weight - grid[tried.argmin()]) < 2e-3
        inside += 0.01 < weight < 1.99
    assert inside > 15


def test_fusion_of_the_same_model_is_the_tuned_one():
    """α is 1 where the large model is the small one, 0 where nothing was tuned."""
    base, tuned = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
    np.testing.assert_allclose(decoding.fusion_weight(base, base, tuned), 1, atol=2e-3)
    np.testing.assert_array_equal(decoding.fusion_weight(tuned, base, base), 0)
    np.testing.assert_allclose(
        decoding.fused(tuned, base, base), jax.nn.log_softmax(tuned), atol=1e-6
    )
    # What a small model rules out has the large one's logit and no NaN.
    hard = decoding.fused(tuned, base.at[:, 0].set(-jnp.inf), tuned)
    assert np.isfinite(hard).all()


def test_contrast_is_its_definition():
    expert, amateur = RNG.normal(size=(2, 40, 9))
    p, q = softmax(expert), softmax(amateur)
    m = (p + q) / 2
    apart = (kl(p, m) + kl(q, m)) / 2
    for gate in (0.0, float(np.median(apart))):
        raw = p**1.7 / q**0.7 * (p >= 0.2 * p.max(-1, keepdims=True))
        expected = raw / raw.sum(-1, keepdims=True)
        expected = np.where((apart >= gate)[:, None], expected, p)
        logits = decoding.contrastive(
            jnp.asarray(expert),
            jnp.asarray(amateur),
            strength=0.7,
            alpha=0.2,
            gate=gate,
        )
        np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=2e-6)
    plain = decoding.contrastive(
        *map(jnp.asarray, (expert, amateur)), strength=0.7, gate=0.7
    )
    np.testing.assert_allclose(jax.nn.softmax(plain), p, atol=1e-6)
    same = decoding.contrastive(
        *map(jnp.asarray, (expert, expert)), strength=0.7, alpha=1e-9
    )
    np.testing.assert_allclose(jax.nn.softmax(same), p, atol=1e-6)


def test_contrast_waits_until_the_expert_is_unsure():
    """USCD's gate: torch's std of the probabilities, V − 1 below, above the bound
    leaves the law alone; and as the collision probability that it is."""
    logits = 3 * RNG.normal(size=(2, 40, 9))
    p, _ = map(softmax, logits)
    spread = np.sqrt(np.sum((p - p.mean(-1, keepdims=True)) ** 2, -1) / 8)
    bound = float(np.median(spread))
    collision = np.sum(p**2, axis=-1)
    np.testing.assert_array_equal(spread > bound, collision > 8 * bound**2 + 1 / 9)
    given, options = map(jnp.asarray, logits), {"strength": 0.7, "alpha": 0.2}
    expert, amateur = given
    always = decoding.contrastive(expert, amateur, **options)
    found = decoding.contrastive(expert, amateur, deviation=bound, **options)
    sure = (spread > bound)[:, None]
    assert 10 < np.sum(sure) < 30
    expected = np.where(sure, p, jax.nn.softmax(always))
    np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=2e-6)
    # Never surer than a certain token, at 1 / √V.
    bound = 1 / 3 + 1e-6
    found = decoding.contrastive(expert, amateur, deviation=bound, **options)
    np.testing.assert_array_equal(found, always)


def test_product_is_its_definition():
    base, one, two = RNG.normal(size=(3, 5, 6))
    raw = softmax(base) * softmax(one) ** 0.5 / softmax(two) ** 0.25
    found = decoding.product(*map(jnp.asarray, (base, one, two)), weights=(0.5, -0.25))
    expected = raw / raw.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(found), expected, atol=1e-6)


def switched_by_hand(large, small, mask, *, threshold, window, least):
    which, recent, since, rows = True, [], 0, []
    for high, low, real in zip(large, small, mask, strict=True):
        rows.append(which)
        if not real:
            continue
        recent, since = [*recent, high if which else low][-window:], since + 1
        wanted = np.mean(recent) > threshold
        if since >= least and wanted != which:
            which, since = wanted, 0
    return rows


def test_switch_is_its_rule_and_goes_on_from_its_state():
    large, small = np.abs(RNG.normal(size=(2, 6, 30))).astype(np.float32)
    mask = np.arange(30)[None] >= np.arange(6)[:, None]
    options = {"threshold": 0.75, "window": 3, "least": 2}
    large, small = jnp.asarray(large), jnp.asarray(small)
    which, _ = decoding.switch(large, small, jnp.asarray(mask), **options)
    for i in range(6):
        expected = switched_by_hand(large[i], small[i], mask[i], **options)
        np.testing.assert_array_equal(which[i], expected)
    assert np.sum(np.diff(np.asarray(which, int)) != 0) > 20
    parts, state = [], None
    for cut in (slice(0, 11), slice(11, 30)):
        part, state = decoding.switch(
            large[:, cut], small[:, cut], jnp.asarray(mask[:, cut]), state, **options
        )
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), which)
    never = {**options, "least": 10**6}
    assert np.all(decoding.switch(large, small, jnp.asarray(mask), **never)[0])


def test_steering_is_the_entropys_mean():
    """The reference's numbers (C6), and numpy's covariance: centred it is
    ``cov(H, z) / mean(H)``."""
    worked = jnp.array([[1.0, 0], [0, 1], [1, 1]]), jnp.array([0.1, 0.9, 0.5])
    found = decoding.entropic_steering(*worked, centred=False)
    np.testing.assert_allclose(found, [0.4, 14 / 15], rtol=1e-6)
    found = decoding.entropic_steering(*worked)
    np.testing.assert_allclose(found, [-4 / 15, 4 / 15], rtol=1e-6)
    states, entropy = RNG.normal(size=(20, 3)) + 5, np.abs(RNG.normal(size=20))
    joint = np.cov(np.column_stack([entropy, states]), rowvar=False, bias=True)[0, 1:]
    with jax.enable_x64(True):
        given = jnp.asarray(states), jnp.asarray(entropy)
        found = decoding.entropic_steering(*given)
        equal = decoding.entropic_steering(given[0], jnp.full(20, 0.3))
        none = decoding.entropic_steering(given[0], jnp.zeros(20))
    np.testing.assert_allclose(found, joint / entropy.mean(), rtol=1e-12)
    np.testing.assert_allclose(equal, 0, atol=1e-14)
    np.testing.assert_array_equal(none, 0)


def flat(params, tokens, **_):
    logits = jnp.broadcast_to(params, (*tokens.shape, 8))
    return decoding.models.ModelOutput(logits, None)


def test_entropy_is_in_bits():
    """Uniform over 8 tokens: 3 bits, not above 3 but above 2.9 (the reference's)."""

    def second(threshold):
        both = decoding.switching(flat, flat, threshold=threshold, window=1, least=1)
        params = jnp.zeros(8), jnp.full(8, 5.0)
        return float(both(params, jnp.zeros((1, 2), int)).logits[0, 1, 0])

    assert second(3.001) == 5.0
    assert second(2.999) == 0.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: decoding.product(x, x, weights=(1.0, 2.0)), "weights"),
        (lambda x: decoding.contrastive(x, x, strength=-1.0), "strength"),
        (lambda x: decoding.contrastive(x, x, strength=1.0, alpha=0.0), "alpha"),
        (
            lambda x: decoding.contrastive(x, x, strength=1.0, deviation=-0.1),
            "deviation",
        ),
        (lambda x: decoding.fusion_weight(x, x, x, most=0.0), "most"),
        (lambda x: decoding.combine(lambda y: y), "apply_fns"),
        (
            lambda x: decoding.switching(flat, flat, threshold=1.0, window=0, least=1),
            "window",
        ),
    ],
)
def test_bad_numbers_are_named(call, text):
    with pytest.raises(InputError, match=text):
        call(jnp.zeros(3))


def test_other_vocabularies_are_refused():
    def apply_fn(params, tokens, **_):
        logits = jnp.broadcast_to(params, (*tokens.shape, len(params)))
        return decoding.models.ModelOutput(logits, None)

    both = decoding.combine(lambda a, b: a, apply_fn, apply_fn)
    tokens = jnp.zeros((1, 1), int)
    with pytest.raises(InputError, match="one vocabulary, got heads of \\[2, 3\\]"):
        both((jnp.zeros(2), jnp.zeros(3)), tokens)
    with pytest.raises(InputError, match="each of the 2 models, got 1"):
        both((jnp.zeros(2),), tokens)
