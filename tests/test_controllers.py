"""Controllers: worked numbers, convergence on a plant, state in a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import controllers
from alignax.algorithms import stages
from alignax.types import InputError


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


MAKERS = {
    "adaptive_kl": lambda: controllers.adaptive_kl(beta=0.2, target=2.0, horizon=500.0),
    "pid_kl": lambda: controllers.pid_kl(beta=0.2, target=2.0),
    "dual_ascent_kl": lambda: controllers.dual_ascent_kl(beta=0.2, target=2.0),
}


@pytest.mark.parametrize(
    "controller",
    [
        *(maker() for maker in MAKERS.values()),
        controllers.fixed(beta=0.1),
        controllers.safe(),
        stages.safe(beta=0.0),
        stages.annealed(beta=0.1, end=0.0, steps=3),
    ],
)
def test_the_first_state_can_be_donated(controller):
    """A buffer for each leaf: the train step donates the whole state."""
    jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)(
        controller.init()
    )


@pytest.mark.parametrize("name", MAKERS)
def test_a_plant_is_held_at_its_target(name):
    """KL = 1/β as of a Gaussian optimum: the fixed point is β = 1/target."""
    controller = MAKERS[name]()

    @jax.jit
    def run(state):
        def one(state, _):
            return controller.update(state, 1 / state.beta, 64), state.beta

        return jax.lax.scan(one, state, length=400)[0]

    close(run(controller.init()).beta, 0.5, 1e-2)


def test_integral_does_not_wind_up():
    """At a bound the sum stands still, so that β comes back at once."""
    controller = controllers.pid_kl(beta=1.0, target=1.0, bounds=(0.5, 2.0))
    update = jax.jit(controller.update, static_argnums=2)
    state = controller.init()
    for _ in range(60):
        state = update(state, jnp.float32(9.0), 1)
    assert state.beta == 2
    assert state.integral < 10
    for _ in range(8):
        state = update(state, jnp.float32(0.0), 1)
    assert state.beta < 2


def test_safe_worked_numbers():
    """Divergences reference 8.a: PID outputs 0, .01764, .01478; k_s = .40951."""
    controller = controllers.safe(limits=(1e-6, 10.0))
    state, outputs = controller.init(), []
    for reward in (0.0, 1.0, 1.0):
        before = state
        state = controller.update(state, jnp.float32(0), jnp.float32(1), reward)
        if int(before.count):
            change = state.error - before.error
            outputs.append(0.3 * state.error + 0.01 * state.integral + 0.05 * change)
    close(outputs, [0.01764, 0.01478], 1e-5)

    controller, state = controllers.safe(), None
    state = controller.init()
    for _ in range(5):
        state = controller.update(state, 1.0, 0.5, 0.0)
    close(state.kl, 0.40951, 1e-5)
    # Warming up the threshold is .45: no penalty yet.
    assert state.beta == 0
    assert state.penalty == 0
    close(controllers.entropy_gate(jnp.float32(0.5)), 3.333333)
    for _ in range(10):
        state = controller.update(state, 1.0, 0.5, 0.0)
    excess = float(state.kl) - 0.45
    # The PID has a drift of −.001 of its own.
    close(state.beta, 0.2 * excess * 3.333333, 5e-3)
    close(state.penalty, 0.1 * excess**2 * 3.333333, 5e-3)


def test_multipliers_solve_a_constrained_problem():
    """max x + y with x ≤ .3, y ≤ .7 against −½x² −½y²: λ = (1 − .3, 1 − .7)."""
    rule = controllers.lagrange_multipliers(jnp.array([0.3, 0.7]), rate=0.3)

    @jax.jit
    def run(multipliers):
        def one(multipliers, _):
            return rule.update(multipliers, 1 - multipliers), None

        return jax.lax.scan(one, multipliers, length=100)[0]

    close(run(rule.init()), [0.7, 0.3], 1e-4)
    # A satisfied constraint has no price; an infeasible one a finite one.
    rule = controllers.lagrange_multipliers(jnp.array([1.0, 0.0]), rate=1.0)
    state = rule.update(rule.init(), jnp.array([0.0, 1e9]))
    close(state, [0, 100])
    rewards = controllers.lagrangian_rewards(jnp.ones(1), jnp.ones((1, 2)), state)
    assert np.isfinite(rewards).all()


@pytest.mark.parametrize(
    ("difficulty", "weight"),
    [
        (0.125, 0.907310),
        (0.25, 0.869804),
        (0.5, 0.743119),
        (0.75, 0.493165),
        (0.875, 0.288077),
        (0.0, 1.0),
        (1.0, 1.0),
    ],
)
def test_difficulty_weights_worked_numbers(difficulty, weight):
    """APO's DADS, reference B4."""
    close(controllers.difficulty_weights(jnp.float32(1 - difficulty)), weight, 1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: controllers.pid_kl(beta=1.0, target=0.0),
        lambda: controllers.pid_kl(beta=1e3, target=1.0),
        lambda: controllers.dual_ascent_kl(beta=1.0, target=1.0, rate=0.0),
        lambda: controllers.safe(threshold=0.0),
        lambda: controllers.lagrange_multipliers(jnp.ones(1), rate=0.0),
        lambda: controllers.lagrange_multipliers(jnp.ones(1), rate=1.0, start=-1.0),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(InputError, match="got"):
        call()
