"""References: rules over parameters, their states copied, jitted and donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import games, references
from alignax.types import InputError

OTHERS = {"soup": ({"w": jnp.full(2, 3.0)}, {"w": jnp.full(2, 6.0)})}
RULES = {
    "fixed": references.fixed(),
    "moving_average": references.moving_average(decay=0.5, every=2),
    "soup": references.soup(weight=0.5),
    "convex": references.convex(weight=0.25, reset=4),
    "periodic_reset": references.periodic_reset(every=3),
    "snapshots": references.snapshots(size=1, every=2),
}
# The policy is at 0 and after the step s at s: each rule's reference by hand.
PATHS = {
    "fixed": [0, 0, 0, 0, 0, 0],
    "moving_average": [0, 1, 1, 2.5, 2.5, 4.25],
    "soup": [2.25] * 6,
    "convex": [0.75, 1.5, 2.25, 4, 4.75, 5.5],
    "periodic_reset": [0, 0, 3, 3, 3, 6],
    "snapshots": [0, 2, 2, 4, 4, 6],
}


@pytest.mark.parametrize("name", RULES)
def test_paths_by_hand(name):
    """In one compiled step whose arguments are donated, the step's number traced."""
    rule = RULES[name]
    traces = 0

    def one(state, params, step):
        nonlocal traces
        traces += 1
        params = jax.tree.map(lambda x: x + 1, params)
        return rule.update(state, params, step), params

    step = jax.jit(one, donate_argnums=(0, 1))
    params = {"w": jnp.zeros(2)}
    state, path = rule.init(params, *OTHERS.get(name, ())), []
    for number in range(1, 7):
        state, params = step(state, params, jnp.int32(number))
        path.append(float(rule.params(state)["w"][0]))
    np.testing.assert_allclose(path, PATHS[name], rtol=1e-6)
    assert traces == 1


def test_moving_average_keeps_what_bfloat16_would_lose():
    """A thousand steps of 1e-3: 1 − 0.999^1000 of the way, in float32."""
    rule = references.moving_average(decay=0.999)
    target = {"w": jnp.ones(2, jnp.bfloat16)}

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(
            0, 1000, lambda i, state: rule.update(state, target, i + 1), state
        )

    found = rule.params(run(rule.init({"w": jnp.zeros(2, jnp.bfloat16)})))["w"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 - 0.999**1000, rtol=1e-4)


def test_moving_average_of_logits_is_a_geometric_mean():
    rule = references.moving_average(decay=0.25)
    a, b = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    found = jax.nn.log_softmax(rule.params(rule.update(rule.init(a), b, 1)))
    np.testing.assert_allclose(
        found, games.geometric_mixture(a, b, mixture=0.75), atol=1e-6
    )


def test_soup_of_logits_is_a_geometric_mixture():
    """SALSA and ReMix, divergences reference 9.a: the sum of two KLs is one KL to
    the soup, up to a constant."""
    first, second = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]))
    soup = jax.nn.softmax(references.soup(weight=0.5).init(first, second))
    np.testing.assert_allclose(soup, [0.3981648, 0.3448209, 0.2570143], rtol=2e-6)
    policy = jnp.array([0.5, 0.3, 0.2])

    def kl(reference):
        return jnp.sum(policy * (jnp.log(policy) - jnp.log(reference)))

    both = (kl(jnp.exp(first)) + kl(jnp.exp(second))) / 2
    np.testing.assert_allclose(both - kl(soup), 0.13924257, rtol=1e-5)
    # Several others share what the weight leaves, in the policy's dtype.
    others = [{"w": jnp.full(2, x)} for x in (2.0, 6.0)]
    policy = {"w": jnp.zeros(2, "bfloat16")}
    mixed = references.soup(weight=0.75).init(policy, *others)
    assert mixed["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(mixed["w"], 1)


def test_snapshots_are_drawn_uniformly_from_the_last_ones():
    """Before the pool is full only what it holds is drawn, then each alike: 3000
    draws of three, within four standard errors of a third."""
    rule = references.snapshots(size=3, every=2)
    update = jax.jit(rule.update)
    state, seen = rule.init(jnp.float32(0)), []
    for step in range(1, 9):
        state = update(state, jnp.float32(step), step)
        seen.append(float(rule.params(state)))
        assert seen[-1] in range(max(0, step - step % 2 - 4), step + 1, 2)
    assert sorted(np.asarray(state.pool)) == [4, 6, 8]

    def drawn(state, step):
        # Odd steps take no snapshot: the pool stays.
        state = rule.update(state, jnp.float32(-1), 2 * step + 1)
        return state, rule.params(state)

    _, values = jax.jit(lambda s: jax.lax.scan(drawn, s, jnp.arange(3000)))(state)
    shares = np.array([np.mean(np.asarray(values) == x) for x in (4, 6, 8)])
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / 3000))


@pytest.mark.parametrize(
    "make",
    [
        lambda: references.moving_average(decay=1.0),
        lambda: references.moving_average(decay=0.5, every=0),
        lambda: references.soup(weight=0.5).init({}),
        lambda: references.soup(weight=2.0),
        lambda: references.convex(weight=2.0, reset=1),
        lambda: references.convex(weight=0.5, reset=0),
        lambda: references.periodic_reset(every=0),
        lambda: references.snapshots(size=0, every=1),
        lambda: references.snapshots(size=1, every=0),
    ],
)
def test_bad_settings_are_named(make):
    with pytest.raises(InputError, match="got"):
        make()
