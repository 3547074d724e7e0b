"""What no method depends on: order, padding, others' tokens; and what each asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms
from alignax.algorithms import stages
from alignax.types import InputError
from tests.algorithm_batch import (
    ALGORITHMS,
    ALWAYS,
    ENTROPY,
    LOGP,
    MASK,
    REWARDS,
    B,
    G,
    K,
    T,
    compiled,
    each,
    loss,
    scored,
    several,
)


def moved(tree, place):
    """Each leaf that has rows, groups or rows and tokens, by ``place``."""

    def leaf(x):
        shape = getattr(x, "shape", ())
        if shape[:1] == (B,):
            return place(x)
        if shape[:2] == (G, K):
            return place(x.reshape(B, *shape[2:])).reshape(shape)
        if shape[:1] == (G,):
            return place(jnp.repeat(x, K, axis=0))[::K]
        return x

    return jax.tree.map(leaf, tree)


def continuous():
    """No ties, by which the order of rows would count."""
    noise = 0.1 * jax.random.uniform(jax.random.key(2), (G, K))
    return scored(rewards=REWARDS + noise, right=REWARDS > 0)


def same(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    size = np.linalg.norm(expected)
    assert size > 0
    assert np.linalg.norm(found - expected) <= 1e-5 * size


# It draws by the token's place.
BY_PLACE = {"clip_cov"}
# A pioneer's reward is shared with the observer who answers at the same place.
IN_PAIRS = {"cory"}


@each([name for name in ALGORITHMS if name not in BY_PLACE])
def test_order_of_prompts_and_completions_is_nothing(name):
    """Groups in another order, and completions within theirs."""
    draw = np.random.default_rng(0)
    inner = np.append(draw.permutation(K - 1), K - 1)
    if name in IN_PAIRS:
        inner = np.arange(K)
    rows = (draw.permutation(G)[:, None] * K + inner).reshape(B)
    run = compiled(name)
    (value, gradient), _, _ = run(LOGP, ENTROPY, continuous())
    logp, entropy, data = moved((LOGP, ENTROPY, continuous()), lambda x: x[rows])
    (other, found), _, _ = run(logp, entropy, data)
    # Terms of both signs add up to the value.
    np.testing.assert_allclose(other, value, rtol=1e-5, atol=3e-5)
    same(found, np.asarray(gradient)[rows])


# Conflicts at the same place from the start or from the end; neighbours by place.
AT_PLACES = {"gtpo", "gtpo (official code)", "pcpg"}


@each([name for name in ALGORITHMS if name not in BY_PLACE | AT_PLACES])
def test_tokens_of_others_inside_are_passed_over(name):
    """A tool's answer after the second token of four: the same loss, and the same
    gradient at the policy's own tokens."""
    mask = MASK.at[:, -1].set(False)
    places = jnp.array([0, 1, 4, 2, 3])  # where each column comes from

    def spaced(x):
        return x[:, places] if x.ndim > 1 and x.shape[1] == T else x

    def data():
        rollout = dataclasses.replace(continuous().rollout, attended=mask, trained=mask)
        return dataclasses.replace(continuous(), rollout=rollout)

    run = compiled(name)
    (value, gradient), _, _ = run(LOGP, ENTROPY, data())
    logp, entropy, other = moved((LOGP, ENTROPY, data()), spaced)
    (found_value, found), _, _ = run(logp, entropy, other)
    np.testing.assert_allclose(found_value, value, rtol=1e-5, atol=3e-5)
    same(found, np.asarray(gradient)[:, places])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ALWAYS[::3] else [pytest.mark.slow])
        for name in ALGORITHMS
        if name not in BY_PLACE
    ],
)
def test_padding_is_nothing(name):
    """Three columns more, of NaN. The longest possible length is a number of two
    methods: DAPO's penalty, left out here, and Dr. GRPO's denominator."""
    algorithm = ALGORITHMS[name]
    if algorithm.shape == stages.overlong:
        algorithm = dataclasses.replace(algorithm, shape=ALGORITHMS["grpo"].shape)

    def padded(x):
        if x.ndim < 2 or x.shape[1] != T:
            return x
        missing = {"b": False, "i": 0, "u": 0}.get(x.dtype.kind, jnp.nan)
        edges = [(0, 0), (0, 3), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, edges, constant_values=missing)

    def gradient(logp, entropy, data):
        values = several(algorithm, data.values)
        rows = algorithms.prepare(algorithm, dataclasses.replace(data, values=values))
        return jax.grad(loss, argnums=1)(algorithm, logp, entropy, rows)

    batch = LOGP, ENTROPY, continuous()
    expected, found = gradient(*batch), gradient(*moved(batch, padded))
    if algorithm.reduction == stages.constant_length:
        found = found * (T + 3) / T
    same(found[:, :T], expected)
    assert not found[:, T:].any()


OPTIONAL = {
    ("t_ppo", "last_value"),
    ("ppo (bootstrapped)", "last_value"),
    ("gdpo", "objective_weights"),
}


FIELDS = [
    x.name
    for x in dataclasses.fields(scored())
    if x.name not in ("rollout", "rewards", "logp_old", "beta")
]


def used(function, data):
    """Leaves of a record that an output depends on."""
    jaxpr = jax.make_jaxpr(function)(data).jaxpr
    live = {x for x in jaxpr.outvars if not hasattr(x, "val")}
    for equation in reversed(jaxpr.eqns):
        if live & set(equation.outvars):
            live |= {x for x in equation.invars if not hasattr(x, "val")}
    flags = [x in live for x in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(data), flags)


# Variants read what their methods do, nearly all.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "(" in name else [])
        for name in ALGORITHMS
    ],
)
def test_what_is_missing_is_refused_by_name(name):
    """Each field that the loss depends on is asked for where it is absent; nothing
    else is. No other takes its place without a word."""
    algorithm = ALGORITHMS[name]

    def run(data):
        rows = algorithms.prepare(algorithm, data)
        return loss(algorithm, LOGP, ENTROPY, rows)

    data = scored()
    data = dataclasses.replace(
        data,
        values=several(algorithm, data.values),
        last_value=jnp.ones(B),
    )
    depends = used(run, data)
    needs = {x for x in FIELDS if any(jax.tree.leaves(getattr(depends, x)))}
    needs -= {field for other, field in OPTIONAL if other == name}
    assert algorithms.needs(algorithm) == needs
    absent = dict.fromkeys(set(FIELDS) - needs)
    jax.eval_shape(run, dataclasses.replace(data, **absent))
    for field in needs:
        with pytest.raises(InputError, match=f"scored.{field} is missing"):
            jax.eval_shape(run, dataclasses.replace(data, **{field: None}))
