import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import reduce
from alignax.types import InputError

REDUCTIONS = {
    "token_mean": reduce.token_mean,
    "sequence_mean_token_mean": reduce.sequence_mean_token_mean,
    "sequence_mean_token_sum": reduce.sequence_mean_token_sum,
    "constant_length_mean": lambda v, m: reduce.constant_length_mean(v, m, length=8),
}
# What a row carries of its group, where the rows are split.
GROUPED = {"group_token_mean": lambda v, m, n: reduce.group_token_mean(v, m, n)}
# The worked example of the reference notes, A15: completions of 2 and 6 tokens.
VALUES = jnp.array([[2.0, 2.0, 9.0, 9.0, 9.0, 9.0], [-1.0] * 6])
MASK = jnp.array([[True] * 2 + [False] * 4, [True] * 6])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", -0.25),
        ("sequence_mean_token_mean", 0.5),
        ("sequence_mean_token_sum", -1.0),
        ("constant_length_mean", -0.125),
    ],
)
def test_worked_example(name, expected):
    np.testing.assert_allclose(
        reduce.divide(*REDUCTIONS[name](VALUES, MASK)), expected, rtol=1e-6
    )


@pytest.mark.parametrize("name", [*REDUCTIONS, *GROUPED])
def test_split_batch_has_the_gradient_of_the_whole(name):
    key = jax.random.key(0)
    values = jax.random.normal(key, (8, 6))
    mask = jnp.arange(6)[None] < jnp.array([1, 2, 6, 3, 0, 4, 6, 1])[:, None]
    # Groups of four, split into parts of two rows.
    tokens = reduce.group_tokens(mask, completions=4)

    def loss(values, parts):
        rows = zip(*(jnp.split(x, parts) for x in (values, mask, tokens)), strict=True)
        pairs = [
            GROUPED[name](*row) if name in GROUPED else REDUCTIONS[name](*row[:2])
            for row in rows
        ]
        return reduce.divide(sum(p[0] for p in pairs), sum(p[1] for p in pairs))

    whole = jax.grad(loss)(values, 1)
    np.testing.assert_allclose(jax.grad(loss)(values, 4), whole, rtol=1e-6)
    assert np.abs(whole).sum() > 0


def test_mean_of_microbatch_means_is_another_number():
    """The accumulation bug that pairs of sums exist to avoid (reference A15)."""
    parts = [
        reduce.divide(*reduce.token_mean(VALUES[i : i + 1], MASK[i : i + 1]))
        for i in range(2)
    ]
    assert np.mean(parts) == 0.5
    assert reduce.divide(*reduce.token_mean(VALUES, MASK)) == -0.25


def test_psum_of_pairs_is_the_whole():
    def mean(values, mask):
        numerator, denominator = reduce.token_mean(values, mask)
        return reduce.divide(
            jax.lax.psum(numerator, "data"), jax.lax.psum(denominator, "data")
        )

    mapped = jax.vmap(mean, axis_name="data")(VALUES[:, None], MASK[:, None])
    np.testing.assert_allclose(mapped, [-0.25, -0.25])


def test_empty_completion_counts_neither_above_nor_below():
    mask = MASK.at[0].set(False)
    for name in ("sequence_mean_token_mean", "sequence_mean_token_sum"):
        _, denominator = REDUCTIONS[name](VALUES, mask)
        assert denominator == 1


def test_divide_by_nothing_is_zero_with_zero_gradient():
    value, gradient = jax.value_and_grad(reduce.divide, argnums=(0, 1))(
        jnp.float32(3), jnp.float32(0)
    )
    assert value == 0
    assert gradient == (0, 0)


def test_length_must_be_positive():
    with pytest.raises(InputError, match=r"length .* got 0"):
        reduce.constant_length_mean(VALUES, MASK, length=0)


def test_group_mean_is_the_mean_over_prompts():
    values = jnp.array([[1.0, 1.0], [4.0, 9.0], [5.0, 9.0], [9.0, 9.0]])
    mask = jnp.array([[1, 1], [1, 0], [1, 0], [0, 0]]) > 0
    tokens = reduce.group_tokens(mask, completions=2)
    mean = reduce.divide(*reduce.group_token_mean(values, mask, tokens))
    np.testing.assert_allclose(mean, (6 / 3 + 5) / 2, rtol=1e-6)
    # A prompt without a token does not count.
    mask = mask.at[2:].set(False)
    tokens = reduce.group_tokens(mask, completions=2)
    mean = reduce.divide(*reduce.group_token_mean(values, mask, tokens))
    np.testing.assert_allclose(mean, 2, rtol=1e-6)
    with pytest.raises(InputError, match=r"completions .* got 3"):
        reduce.group_tokens(mask, completions=3)
