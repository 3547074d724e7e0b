"""Golden values of every loss, and behaviour at the ends of the real line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import preference as pf
from alignax.types import InputError

SIDES = (
    (-10, -20.5, -7.25, -15),
    (-12, -18, -7.5, -30),
    (-11, -19, -8, -14),
    (-11.5, -19.5, -7, -25),
    (5, 8, 3, 6),
    (6, 7, 3, 12),
)
GOLDEN = {
    "dpo": (0.62095704779, 0.854355244469, 0.632599035317, 0.5130152524),
    "ipo": (12.25, 64, 14.0625, 1),
    "ipo_averaged": (22.246944444444, 29.179288903061, 21.006944444444, 22.5625),
    "hinge_dpo": (0.85, 1.3, 0.875, 0.6),
    "slic": (0.8, 1.25, 0.975, 0),
    "cdpo": (0.63595704779, 0.824355244469, 0.645099035317, 0.5530152524),
    "rdpo": (0.60220704779, 0.891855244469, 0.616974035317, 0.4630152524),
    "ln_dpo": (0.679080857759, 0.713438242403, 0.672530845419, 0.680725303526),
    "exo": (2.505516555478, 3.286511608956, 2.547624537325, 2.099226233228),
    "nca": (1.350824814117, 1.466914095579, 1.356255035247, 1.3036334822),
    "bco_pair": (1.312856308087, 1.541914095579, 1.32480978884, 1.218473644254),
    "sppo_hard": (36.25, 84.5, 38.3125, 36),
    "apo_zero": (0.962523416037, 1.074859690687, 0.968761387637, 0.902519856277),
    "apo_down": (0.987549342135, 1.037012671468, 0.987531842505, 0.876333152409),
    "discopop": (0.849337579289, 0.855580438053, 0.863540105182, 0.670267293853),
    "rpo": (0.62595704779, 0.864605244469, 0.636224035317, 0.5205152524),
    "orpo": (2.069314718056, 2.631332337158, 2.481528412677, 2.569314718056),
}


def sides(dtype=jnp.float32):
    return tuple(jnp.asarray(side, dtype) for side in SIDES)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    """Computed in float64 beforehand, at β = 0.1 (β = τ for IPO)."""
    loss = pf.bco_pair if name == "bco_pair" else pf.LOSSES[name]
    loss = loss(pf.Pair(*sides()), beta=0.1)
    np.testing.assert_allclose(loss, GOLDEN[name], rtol=2e-6, atol=1e-6)


def test_golden_values_with_more_arguments():
    """SimPO, CPO without NLL, RPO as DPO + η SFT, KTO at z₀ = ¼, soft SPPO's scale."""
    pair = pf.Pair(*sides())
    close = {"rtol": 2e-6}
    np.testing.assert_allclose(
        pf.simpo(pair, beta=2.0, gamma=0.5),
        (0.97407698418, 0.962999161898, 0.873638908023, 0.97407698418),
        **close,
    )
    np.testing.assert_allclose(
        pf.cpo(pair, beta=0.1, alpha=0.0),
        (0.598138869382, 0.825939419879, 0.680725303526, 0.201413277983),
        **close,
    )
    np.testing.assert_allclose(
        pf.dpo(pair, beta=0.1) + 0.2 * pf.sft(pair),
        (1.02095704779, 1.366855244469, 1.115932368651, 1.0130152524),
        **close,
    )
    u, v = pf.log_ratios(pair)
    good, anchor = jnp.ones(4, bool), jnp.array([0.25])
    np.testing.assert_allclose(
        pf.kto(u, good, anchor, beta=0.1),
        (0.481258784121, 0.543638687237, 0.487502603516, 0.531209373374),
        **close,
    )
    np.testing.assert_allclose(
        pf.kto(v, ~good, anchor, beta=0.1),
        (0.481258784121, 0.531209373374, 0.481258784121, 0.371683811705),
        **close,
    )
    rewards = jnp.array([1, 0.2, -0.5, 2])
    np.testing.assert_allclose(
        pf.copg(pair, rewards, jnp.zeros(4), beta=0.1),
        (-1.3875, 1.05, 0.703125, -7.2),
        **close,
    )


def test_f_dpo_golden_values():
    """Jensen-Shannon as the papers scale it, and the forward KL."""
    pair = pf.Pair(*sides())
    np.testing.assert_allclose(
        pf.f_dpo(dv.scale(dv.jensen_shannon(), 2.0), pair, beta=0.1),
        (0.66065216251, 0.77095704779, 0.664217833323, 0.525430446312),
        rtol=2e-6,
    )
    np.testing.assert_allclose(
        pf.f_dpo(dv.forward_kl(), pair, beta=0.1)[:3],
        (0.6311543835721, 0.9285750271207, 0.6360582112492),
        rtol=2e-6,
    )


def test_golden_gradients():
    """``dL/dh`` of DPO, IPO and the hinge."""
    expected = {
        "dpo": (-0.046257015466, -0.057444251681, -0.046879062663, -0.040131233989),
        "ipo": (-7, -16, -7.5, -2),
        "hinge_dpo": (-0.1, -0.1, -0.1, -0.1),
    }
    for name, values in expected.items():

        def total(logp_w, name=name):
            pair = pf.Pair(logp_w, *sides()[1:])
            return jnp.sum(pf.LOSSES[name](pair, beta=0.1))

        np.testing.assert_allclose(jax.grad(total)(sides()[0]), values, rtol=1e-5)


OF_PAIRS = [n for n, loss in pf.LOSSES.items() if not (loss.needs or loss.tokens)]
DIVERGENCES = {
    "f_dpo " + div.name: div
    for div in (dv.forward_kl(), dv.jensen_shannon(), dv.alpha(0.5), dv.jeffreys())
}


@pytest.mark.parametrize("name", [*OF_PAIRS, *DIVERGENCES])
def test_finite_at_margins_of_ten_thousand(name):
    """Values and gradients stay finite at log-ratios of ±10⁴, and on equal sides."""
    x = jnp.array([-1e4, -1e4, -1.0, -1.0, 0.0, -1e4])
    y = jnp.array([-1.0, -1e4, -1e4, -1.0, 0.0, 0.0])

    def total(logp_w, logp_l):
        pair = pf.Pair(logp_w, logp_l, y, x, jnp.full(6, 3.0), jnp.full(6, 4.0))
        if name in DIVERGENCES:
            losses = pf.f_dpo(DIVERGENCES[name], pair, beta=1.0)
        else:
            losses = pf.LOSSES[name](pair, beta=1.0)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, argnums=(0, 1), has_aux=True)(x, y)
    assert np.isfinite(losses).all()
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize(
    "link",
    [
        pf.logistic_link,
        pf.hinge_link,
        pf.exponential_link,
        pf.blended_link,
        pf.reverse_cross_entropy_link,
        lambda m: pf.squared_link(m, target=1.0),
        lambda m: pf.debiased(pf.logistic_link, m, noise=0.3),
    ],
)
def test_links_pull_at_wrong_margins(link):
    """At a wrong margin of any size the gradient is finite and, of all but the two
    that saturate by design, points to the right order."""
    margins = jnp.array([-1e4, -1e3, -30.5, -5.0])
    slopes = jax.vmap(jax.grad(link))(margins)
    assert np.isfinite(slopes).all()
    assert np.isfinite(link(jnp.array([-1e4, 1e4]))).all()
    if link is not pf.reverse_cross_entropy_link:
        assert (slopes < 0).all()


def test_links_at_zero_have_one_slope():
    """A convex link's slope at 0 is its curvature's weight: −½, −1, −1, −2·target."""
    slope = jax.grad
    assert slope(pf.logistic_link)(0.0 * jnp.ones(())) == -0.5
    assert slope(pf.hinge_link)(jnp.zeros(())) == -1
    assert slope(pf.exponential_link)(jnp.zeros(())) == -1
    assert slope(lambda m: pf.squared_link(m, target=2.0))(jnp.zeros(())) == -4


def test_alpha_po_becomes_simpo():
    """AlphaPO's reward at α → 0 is the mean log-probability (arXiv 2501.03884)."""
    pair = pf.Pair(*sides())
    near = pf.alpha_po(pair, beta=2.0, alpha=1e-3, gamma=0.5)
    np.testing.assert_allclose(near, pf.simpo(pair, beta=2.0, gamma=0.5), rtol=5e-3)
    exact = pf.alpha_po(pair, beta=2.0, alpha=0.0, gamma=0.5)
    np.testing.assert_array_equal(exact, pf.simpo(pair, beta=2.0, gamma=0.5))


def test_reference_and_lengths_are_constants():
    """No gradient reaches the reference or the lengths, whatever the loss."""
    for name in OF_PAIRS:

        def total(*given, name=name):
            return jnp.sum(pf.LOSSES[name](pf.Pair(*given), beta=0.1))

        gradients = jax.grad(total, argnums=(2, 3, 4, 5))(*sides())
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_hyper_parameters_are_checked():
    """Each message names the argument, what was given and what would do."""
    pair = pf.Pair(*sides())
    for match, call in {
        "beta must be positive": lambda: pf.dpo(pair, beta=0.0),
        "beta must be positive and finite": lambda: pf.chi_po(
            pair, beta=float("inf"), reward_range=1.0
        ),
        "noise must be in": lambda: pf.rdpo(pair, beta=0.1, noise=0.5),
        "temperature must be": lambda: pf.discopop(pair, beta=0.1, temperature=0.0),
        "noise must be in \\(0": lambda: pf.exo(pair, beta=0.1, noise=0.0),
        "alpha must be at least 0": lambda: pf.cpo(pair, beta=0.1, alpha=-1.0),
    }.items():
        with pytest.raises(InputError, match=match):
            call()
