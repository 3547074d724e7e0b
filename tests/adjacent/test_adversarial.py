"""RPO's game over four completions: its saddle point, against DPO with an SFT term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import adjacent as ad
from alignax import preference
from alignax.types import InputError

BETA, ETA = 0.7, 0.3
REF = np.log([0.2, 0.4, 0.3, 0.1])
# The last completion was compared three times and won twice: luck.
WINS = np.array([[0, 7, 5, 1], [3, 0, 4, 0], [3, 6, 0, 0], [2, 0, 0, 0]]) / 31


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def minimum(loss, start):
    """Newton's, with the first coordinate held: a constant more changes nothing."""

    def of_rest(x):
        return loss(jnp.concatenate([jnp.zeros(1), x]))

    step = jax.jit(
        lambda x: x - jnp.linalg.solve(jax.hessian(of_rest)(x), jax.grad(of_rest)(x))
    )
    x = jnp.asarray(start[1:] - start[0])
    for _ in range(20):
        x = step(x)
    np.testing.assert_allclose(jax.grad(of_rest)(x), 0, atol=1e-12)
    return jnp.concatenate([jnp.zeros(1), x])


def rpo_loss(base):
    """``preference.rpo`` over all pairs; its SFT term under any base's law."""
    w, l = (x.reshape(-1) for x in np.indices(WINS.shape))
    share = jnp.asarray(WINS.reshape(-1))

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        zero = jnp.zeros(len(w))
        pair = preference.Pair(
            logp[w], logp[l], jnp.asarray(REF)[w], jnp.asarray(REF)[l], zero, zero
        )
        if base is None:
            return share @ preference.rpo(pair, beta=BETA, eta=ETA)
        return share @ preference.dpo(pair, beta=BETA) - ETA * BETA * base @ logp

    return loss


def reward_loss(rewards, base):
    return ad.adversarial_reward_loss(
        rewards,
        jnp.asarray(REF),
        jnp.log(base),
        jnp.asarray(WINS),
        beta=BETA,
        eta=ETA,
    )


@pytest.mark.parametrize("base", [None, [0.1, 0.2, 0.3, 0.4]])
def test_the_worst_reward_s_policy_is_that_of_dpo_with_sft(base):
    """One value and one policy from two minimisations of different functions."""
    law = jnp.asarray(WINS.sum(1) if base is None else base)
    given = None if base is None else law
    rewards = minimum(lambda r: reward_loss(r, law), np.zeros(4))
    logits = minimum(rpo_loss(given), REF)
    found = jax.nn.log_softmax(REF + rewards / BETA)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), found, rtol=1e-9)
    least = rpo_loss(given)(logits) + ETA * BETA * law @ REF
    np.testing.assert_allclose(least, reward_loss(rewards, law), rtol=1e-12)


def test_neither_side_gains_by_leaving_the_saddle_point():
    law = jnp.asarray(WINS.sum(1))
    rewards = minimum(lambda r: reward_loss(r, law), np.zeros(4))
    logp = jax.nn.log_softmax(REF + rewards / BETA)

    def payoff(logp, rewards):
        fixed = (
            jnp.broadcast_to(x, (len(logp), *x.shape))
            for x in (jnp.asarray(REF), jnp.log(law), jnp.asarray(WINS))
        )
        return ad.adversarial_payoff(logp, rewards, *fixed, beta=BETA, eta=ETA)

    value = payoff(logp[None], rewards[None])[0]
    np.testing.assert_allclose(value, reward_loss(rewards, law), rtol=1e-12)
    noise = np.random.default_rng(0).normal(size=(2, 200, 4))
    noise *= np.logspace(-2, 1, 200)[:, None]
    others = jax.nn.log_softmax(logp[None] + noise[0])
    same = jnp.broadcast_to(logp, others.shape)
    assert (payoff(others, jnp.broadcast_to(rewards, others.shape)) < value).all()
    assert (payoff(same, rewards[None] + noise[1]) > value).all()


def test_reference_s_number():
    """``max_π {E_π r − β KL} − E_base r`` is −β E_base log π_r/ρ."""
    ref, base = (jnp.log(jnp.array(x)) for x in ([0.2, 0.5, 0.3], [0.1, 0.6, 0.3]))
    rewards = jnp.array([0.3, -1.0, 2.0])
    loss = ad.adversarial_reward_loss(
        rewards, ref, base, jnp.zeros((3, 3)), beta=0.7, eta=1.0
    )
    np.testing.assert_allclose(loss, 1.1822023098829832, rtol=1e-12)
    tilted = jax.nn.log_softmax(ref + rewards / 0.7)
    np.testing.assert_allclose(loss, -0.7 * jnp.exp(base) @ (tilted - ref), rtol=1e-12)


def test_ranges_are_checked():
    law = jnp.zeros(2)
    with pytest.raises(InputError, match="beta"):
        ad.adversarial_reward_loss(law, law, law, jnp.zeros((2, 2)), beta=0.0, eta=1.0)
    with pytest.raises(InputError, match="eta"):
        ad.adversarial_payoff(law, law, law, law, jnp.zeros((2, 2)), beta=1.0, eta=-1.0)
