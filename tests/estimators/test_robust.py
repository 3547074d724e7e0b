"""Masks, truncated laws, and the table in the docs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import estimators as e
from alignax import logprobs
from tests.estimators.enumerated import jit

B, T, V = 4, 5, 6
every_estimator = pytest.mark.parametrize("name", e.TABLE)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    tokens = jax.random.randint(keys[0], (B, T), 0, V)
    logits, ref, behaviour = (jax.random.normal(k, (B, T, V)) for k in keys[1:4])
    mask = jnp.arange(T)[None] < jnp.array([5, 3, 1, 4])[:, None]
    return e.Samples(
        logp=logprobs.token_logp(logits, tokens),
        logp_ref=logprobs.token_logp(ref, tokens),
        logp_behaviour=logprobs.token_logp(behaviour, tokens),
        mask=mask,
        tokens=tokens,
        logits=logits,
        logits_ref=ref,
    )


FLOATS = ("logp", "logp_ref", "logp_behaviour", "logits", "logits_ref")


def mapped(samples, fn):
    """``fn`` on every float field."""
    return dataclasses.replace(
        samples, **{name: fn(getattr(samples, name)) for name in FLOATS}
    )


def both(estimator, samples):
    """Token terms, and the gradients of their sum in every float field."""

    def loss(fields):
        terms = estimator(dataclasses.replace(samples, **fields))
        return terms.sum(), terms

    fields = {name: getattr(samples, name) for name in FLOATS}
    gradients, terms = jit(jax.grad(loss, has_aux=True))(fields)
    return terms, gradients


@every_estimator
def test_masked_positions_are_exactly_zero_and_only_the_policy_learns(name, inputs):
    """With NaN, inf and −inf at masked positions, in the logits too; and no
    gradient for the reference, the behaviour policy, or their logits."""
    mask = np.asarray(inputs.mask)
    poison = jnp.array([0, np.nan, np.inf, -np.inf, np.nan])

    def poisoned(x):
        where = inputs.mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        return jnp.where(where, x, poison.reshape((1, T) + (1,) * (x.ndim - 2)))

    expected, expected_gradients = both(e.TABLE[name], inputs)
    terms, gradients = both(e.TABLE[name], mapped(inputs, poisoned))
    np.testing.assert_array_equal(terms, expected)
    np.testing.assert_array_equal(np.asarray(terms)[~mask], 0)
    for field, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected_gradients[field])
        np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
        if field not in ("logp", "logits"):
            np.testing.assert_array_equal(gradient, 0)


LAWS = [e.rao_blackwell, e.myopic_rao_blackwell_surrogate]
LAWS += [lambda *args: e.top_k_bucket(*args, k=2)]


@pytest.mark.parametrize("function", LAWS)
def test_tokens_outside_the_support(function):
    """A truncated law: −inf adds nothing to value or gradient; the policy leaving
    the reference's support is an infinite KL, and no NaN."""
    out = -jnp.inf
    logits, mask = jnp.array([[1.0, 0.0, out, out]]), jnp.array([True])
    for ref in (jnp.array([[0.0, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 1.0, out, 0.0]])):
        value, gradient = jax.value_and_grad(lambda x, r=ref: function(x, r, mask)[0])(
            logits
        )
        p = jax.nn.softmax(logits)[0, :2]
        q = jax.nn.softmax(ref)[0, :2]
        np.testing.assert_allclose(value, np.sum(p * np.log(p / q)), rtol=1e-6)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0, 2:], 0)
    assert function(jnp.zeros((1, 4)), logits, mask) == np.inf


def test_log_probabilities_of_truncated_laws():
    logits = jnp.array([[2.0, 2.0, -jnp.inf]])
    logp = logprobs.token_logp(logits, jnp.array([1]))
    np.testing.assert_allclose(logp, [-np.log(2)], rtol=1e-6)
    assert logprobs.token_logp(logits, jnp.array([2])) == -np.inf
    np.testing.assert_allclose(logprobs.entropy(logits), [np.log(2)], rtol=1e-6)
    gradient = jax.grad(lambda x: logprobs.entropy(x).sum())(logits + jnp.eye(3)[:1])
    assert np.isfinite(gradient).all()
    half = logits.astype(jnp.bfloat16)
    assert logprobs.token_logp(half, jnp.array([1])).dtype == jnp.float32


def test_entropy_against_its_sum():
    logits = jax.random.normal(jax.random.key(0), (3, 7))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    expected = -(p * np.log(p)).sum(axis=-1)
    np.testing.assert_allclose(logprobs.entropy(logits), expected, rtol=1e-6)


def test_absolute_has_no_gradient_at_zero():
    zero = jnp.zeros(1)
    assert jax.grad(lambda x: e.absolute_log_ratio(x, zero).sum())(zero) == 0


def test_weights_by_hand():
    logp = jnp.log(jnp.array([[0.5, 0.3, 0.4, 0.9]]))
    behaviour = jnp.log(jnp.array([[0.25, 0.6, 0.1, 0.3]]))
    mask = jnp.array([[True, True, True, False]])
    arguments = logp, behaviour, mask
    for weights, expected in (
        (e.token_weights, [2, 0.5, 4, 0]),
        (e.prefix_weights, [2, 1, 4, 0]),
        (e.context_weights, [1, 2, 1, 0]),
        (e.sequence_weights, [4, 4, 4, 0]),
    ):
        np.testing.assert_allclose(weights(*arguments), [expected], rtol=1e-6)
        gradient = jax.grad(lambda x, w=weights: w(x, behaviour, mask).sum())(logp)
        np.testing.assert_array_equal(gradient, 0)


def test_weights_far_apart_stay_finite():
    mask = jnp.ones((1, 3), bool)
    far = jnp.array([[60.0, 60.0, -500.0]])
    for weights in (e.token_weights, e.prefix_weights, e.sequence_weights):
        assert np.isfinite(weights(far, 0 * far, mask)).all()
    assert np.isfinite(e.effective_sample_size(e.prefix_weights(far, 0 * far, mask)))
    assert e.effective_sample_size(jnp.zeros((1, 3))) == 0


def test_optimal_coefficient_ignores_the_row_itself():
    key = jax.random.key(0)
    logp, ref = -jax.random.exponential(key, (2, 6, 3))
    mask = jnp.ones((6, 3), bool)
    before = e.optimal_coefficient(logp, ref, mask)
    after = e.optimal_coefficient(logp.at[2].add(1.0), ref, mask)
    assert before[2] == after[2]
    assert (np.delete(before, 2) != np.delete(after, 2)).all()
    # Alone, or where the policies agree, nothing is known: k3.
    assert e.optimal_coefficient(logp[:1], ref[:1], mask[:1]) == 1
    assert (e.optimal_coefficient(logp, logp, mask) == 1).all()


def test_documentation_holds_the_table():
    assert e.table.as_text() in e.__doc__


def test_table_has_every_estimator():
    described = {"Value:", "Gradient:"}
    for name in e.__all__:
        text = getattr(getattr(e, name), "__doc__", "") or ""
        if callable(getattr(e, name)) and all(word in text for word in described):
            assert name in e.TABLE or name == "sequence_surrogate"


def test_samples_lacking_a_field_are_named(inputs):
    samples = dataclasses.replace(inputs, logits=None)
    with pytest.raises(ValueError, match=r"samples\.logits"):
        e.TABLE["rao_blackwell"](samples)
