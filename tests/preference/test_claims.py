"""What the papers claim of their losses, in worlds small enough to see all of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import preference as pf
from alignax.logprobs import log_softmax
from alignax.types import InputError
from tests.preference.expected import all_pairs, expected_loss

KEYS = jax.random.split(jax.random.key(5), 4)
REWARDS = jnp.array([0.3, -0.5, 1.1, 0.2])
LOGP_REF = log_softmax(jnp.array([0.1, 0.7, -0.4, 0.2]))
ONES = jnp.ones((4, 4))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def wide(x):
    return jnp.asarray(np.asarray(x), jnp.float64)


def bradley_terry(rewards):
    return jax.nn.sigmoid(rewards[:, None] - rewards[None, :])


def population(loss, preference, sampling):
    """The expected loss as a function of the policy's logits."""

    def of_logits(logits, logp_ref):
        logp = log_softmax(logits)
        return expected_loss(loss, logp, logp_ref, sampling, preference)

    return of_logits


def gradient_at(loss, preference, sampling, logits, logp_ref):
    return jax.grad(population(loss, preference, sampling))(logits, logp_ref)


ADMITTED = [
    dv.reverse_kl(),
    dv.forward_kl(),
    dv.jensen_shannon(),
    dv.jensen_shannon(0.3),
    dv.alpha(0.5),
    dv.alpha(-0.5),
    dv.alpha(2.0),
    dv.squared_hellinger(),
    dv.neyman(),
    dv.jeffreys(),
    dv.chi2_kl(),
    dv.mix([dv.reverse_kl(), dv.pearson()], [0.5, 0.5]),
]


@pytest.mark.parametrize("div", ADMITTED, ids=str)
def test_f_dpo_optimum_is_the_regularised_optimal_policy(div):
    """Of pairs labelled by Bradley-Terry the population loss is stationary exactly at
    ``argmax E r − β D_f(π‖ρ)``, which the divergence core solves for (Wang et al.,
    arXiv 2309.16240, theorem 1), whatever law samples the pairs."""
    beta = 0.7
    rewards, logp_ref = wide(REWARDS), log_softmax(wide(LOGP_REF))
    logp, _, _ = dv.regularised_optimum(div, rewards, logp_ref, beta=beta)
    sampling = jax.nn.softmax(jnp.array([0.3, -1.0, 0.5, 0.0], jnp.float64))
    loss = partial(pf.f_dpo, div, beta=beta)
    found = gradient_at(loss, bradley_terry(rewards), sampling, logp, logp_ref)
    np.testing.assert_allclose(found, 0, atol=1e-9)
    # Elsewhere it is not: the test can fail.
    elsewhere = gradient_at(loss, bradley_terry(rewards), sampling, logp_ref, logp_ref)
    assert np.abs(elsewhere).max() > 1e-3


@pytest.mark.parametrize(
    "div",
    [dv.total_variation(), dv.pearson(), dv.alpha(-2.0)],
    ids=str,
)
def test_f_dpo_refuses_zero_in_the_domain(div):
    """Where ``f'(0)`` is finite an optimum may leave completions out, and the margin
    does not tell their reward: refused, and told what would do."""
    pair = all_pairs(LOGP_REF, LOGP_REF)
    for call in (
        lambda: pf.f_dpo(div, pair, beta=0.1),
        lambda: pf.implicit_reward(div, LOGP_REF, LOGP_REF, beta=0.1),
    ):
        with pytest.raises(InputError, match=r"f'\(0\) = -inf.*would do"):
            call()


def test_implicit_rewards_make_the_margin():
    """``implicit_reward`` of both sides differs by ``divergence_margin``."""
    div = dv.jensen_shannon()
    pair = pf.Pair(*wide([-3.0, -2.0, -2.5, -2.5, 1, 1]))
    reward = partial(pf.implicit_reward, div, beta=0.4)
    margin = reward(pair.logp_w, pair.ref_w) - reward(pair.logp_l, pair.ref_l)
    np.testing.assert_allclose(margin, pf.divergence_margin(div, pair, beta=0.4))


def test_chi_po_golden_values_and_its_clip():
    """arXiv 2407.13399: margin and gradients at ratios 5 and ¼; none once clipped."""
    ratio = wide(np.log([5, 0.25]))

    def loss(l, beta, reward_range):
        zero = jnp.zeros(())
        pair = pf.Pair(l[0], l[1], zero, zero, zero + 1, zero + 1)
        return pf.chi_po(pair, beta=beta, reward_range=reward_range)

    np.testing.assert_allclose(loss(ratio, 0.1, 1.0), 0.3790529845, rtol=1e-8)
    gradient = jax.grad(loss)(ratio, 0.1, 1.0)
    np.testing.assert_allclose(gradient, [-0.18929439, 0.03943633], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(loss)(ratio, 0.5, 1.0), 0)


def test_rdpo_is_unbiased_under_its_noise_model():
    """Chowdhury et al., arXiv 2403.00409: the expectation over flipped labels is the
    clean loss, exactly, in value and gradient; conservative DPO's is not."""
    noise, margins = 0.2, wide([-3.0, -0.1, 0.0, 0.7, 3.0])

    def expected(loss, m):
        # A flip exchanges the sides: the margin changes its sign.
        return (1 - noise) * loss(m) + noise * loss(-m)

    close = {"rtol": 1e-5, "atol": 1e-5}  # the exponential is of float32
    for link in (
        pf.logistic_link,
        pf.exponential_link,
        partial(pf.squared_link, target=0.5),
    ):
        robust = lambda m, link=link: pf.debiased(link, m, noise=noise)  # noqa: E731
        np.testing.assert_allclose(expected(robust, margins), link(margins), **close)
        found = jax.vmap(jax.grad(lambda m, r=robust: expected(r, m)))(margins)
        np.testing.assert_allclose(found, jax.vmap(jax.grad(link))(margins), **close)
    smoothed = partial(pf.label_smoothed, pf.logistic_link, noise=noise)
    assert np.abs(expected(smoothed, margins) - pf.logistic_link(margins)).max() > 0.1


def test_rdpo_is_unbounded_below():
    """Slope ``−ε/(1 − 2ε)`` for large margins: no finite minimiser of one pair."""
    robust = lambda m: pf.debiased(pf.logistic_link, m, noise=0.1)  # noqa: E731
    np.testing.assert_allclose(robust(wide(12.0)), -1.499994, atol=1e-6)
    np.testing.assert_allclose(jax.grad(robust)(wide(1e4)), -0.1 / 0.8)
    np.testing.assert_allclose(jax.grad(robust)(wide(0.0)), -1 / (2 * 0.8))


def test_conservative_minimisers():
    """cDPO's margin stops at ``logit(1 − ε)``, IPO's at ``(1 − 2ε)/(2β)``."""
    at = wide(2.1972245773362196)
    cdpo = partial(pf.label_smoothed, pf.logistic_link, noise=0.1)
    np.testing.assert_allclose(jax.grad(cdpo)(at), 0, atol=1e-12)
    ipo = partial(pf.label_smoothed, partial(pf.squared_link, target=5.0), noise=0.1)
    np.testing.assert_allclose(jax.grad(ipo)(wide(0.8 * 5.0)), 0, atol=1e-12)


def test_ipo_is_a_special_case_of_copg():
    """Flet-Berliac et al., arXiv 2406.19185, proposition 3: with rewards of ±¼,
    ``copg = β/2 · (ipo(β) − 1/(4β²))`` with the same gradient up to ``β/2``."""
    beta, pair = 0.3, pf.Pair(*wide(np.random.default_rng(0).normal(size=(6, 5))))
    quarter = jnp.full(5, 0.25)
    copg = pf.copg(pair, quarter, -quarter, beta=beta)
    ipo = pf.ipo(pair, beta=beta)
    np.testing.assert_allclose(copg, beta / 2 * (ipo - 1 / (4 * beta**2)), rtol=1e-10)

    def slope(loss):
        return jax.grad(lambda w: jnp.sum(loss(pair._replace(logp_w=w))))(pair.logp_w)

    of_copg = slope(lambda p: pf.copg(p, quarter, -quarter, beta=beta))
    of_ipo = slope(lambda p: pf.ipo(p, beta=beta))
    np.testing.assert_allclose(of_copg, beta / 2 * of_ipo, rtol=1e-10)


def test_rloo_is_a_special_case_of_copg():
    """arXiv 2406.19185, proposition 2: on K own samples the gradient is −2 RLOO's with
    the regularised reward; proposition 1: it expects to ``−2 ∇J``."""
    beta, count = 0.4, 4
    rng = np.random.default_rng(1)
    logp, ref, rewards = (wide(rng.normal(size=count)) for _ in range(3))

    def over_pairs(x):
        pairs = all_pairs(x, ref)
        zero = 0 * pairs.logp_w
        losses = pf.copg(
            pairs, rewards[:, None] + zero, rewards[None] + zero, beta=beta
        )
        return jnp.sum(losses) / (count * (count - 1))

    regularised = rewards - beta * (logp - ref)
    others = (regularised.sum() - regularised) / (count - 1)
    np.testing.assert_allclose(
        jax.grad(over_pairs)(logp), -2 * (regularised - others) / count, rtol=1e-10
    )

    def surrogate(logits):
        logp = log_softmax(logits)
        pairs = all_pairs(logp, wide(LOGP_REF))
        r = wide(REWARDS)
        losses = pf.copg(
            pairs, r[:, None] + 0 * pairs.logp_w, r[None] + 0 * pairs.logp_w, beta=beta
        )
        law = jax.lax.stop_gradient(jnp.exp(logp))
        return jnp.sum(law[:, None] * law[None] * losses)

    def objective(logits):
        logp = log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (wide(REWARDS) - beta * (logp - wide(LOGP_REF))))

    logits = wide([0.2, -0.3, 0.5, 0.1])
    np.testing.assert_allclose(
        jax.grad(surrogate)(logits), -2 * jax.grad(objective)(logits), rtol=1e-10
    )


def test_copg_finds_the_optimum_from_any_sampling_law():
    """arXiv 2406.19185, the bandit of figure 1: both completions from laws far from
    the optimum, and yet π* with regret 0; IPO on the same pairs keeps 0.1525."""
    from alignax import targets

    rewards, ref = wide([2.5, 2.0, 1.0]), jnp.log(wide([1 / 3] * 3))
    first, second = wide([0.1, 0.2, 0.7]), wide([0.05, 0.05, 0.9])
    optimum, _ = targets.posterior(rewards, ref, beta=0.5)
    np.testing.assert_allclose(
        jnp.exp(optimum), (0.705384512698, 0.259496460342, 0.035119026959), rtol=1e-8
    )

    def total(logits, rewards_w, rewards_l, labels):
        logp = log_softmax(logits)
        rows = lambda x: x[:, None] + jnp.zeros((3, 3))  # noqa: E731
        columns = lambda x: x[None] + jnp.zeros((3, 3))  # noqa: E731
        one = jnp.ones((3, 3))
        pair = pf.Pair(rows(logp), columns(logp), rows(ref), columns(ref), one, one)
        losses = pf.copg(pair, rewards_w, rewards_l, beta=0.5)
        return jnp.sum(first[:, None] * second[None] * labels * losses)

    own = total, rewards[:, None] + jnp.zeros((3, 3)), rewards[None] + jnp.zeros((3, 3))
    gradient = jax.grad(own[0])(optimum, own[1], own[2], jnp.ones((3, 3)))
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    # IPO's fixed point, of ±¼ by Bradley-Terry labels.
    wins = jax.nn.sigmoid(rewards[:, None] - rewards[None])
    ipo = jnp.log(wide([0.424169058851, 0.352705833661, 0.223125107488]))
    quarter = jnp.full((3, 3), 0.25)

    def labelled(logits):
        return total(logits, quarter, -quarter, wins) + total(
            logits, -quarter, quarter, 1 - wins
        )

    np.testing.assert_allclose(jax.grad(labelled)(ipo), 0, atol=1e-9)


def test_dpo_recovers_a_plackett_luce_ranker_of_two():
    """arXiv 2305.18290, appendix A.3: with two candidates listwise DPO is DPO; the
    probabilities of all rankings of three sum to 1."""
    from itertools import permutations

    rewards = wide([0.4, -0.3])
    some = jnp.ones(2, bool)
    np.testing.assert_allclose(
        pf.plackett_luce(rewards, some), pf.logistic_link(rewards[0] - rewards[1])
    )
    three = wide([0.4, -0.3, 1.0])
    total = sum(
        jnp.exp(-pf.plackett_luce(three[jnp.array(order)], jnp.ones(3, bool)))
        for order in permutations(range(3))
    )
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_rpo_sft_term_is_an_adversarial_regulariser():
    """Liu et al., arXiv 2405.16436: ``max_π {E_π r − β KL} − E_base r =
    −β E_base log π_r/ρ``: what the worst reward costs is an SFT loss."""
    ref, rewards = wide([0.2, 0.5, 0.3]), wide([0.3, -1.0, 2.0])
    base, beta = wide([0.1, 0.6, 0.3]), 0.7
    optimum = log_softmax(jnp.log(ref) + rewards / beta)
    value = jnp.sum(jnp.exp(optimum) * (rewards - beta * (optimum - jnp.log(ref))))
    left = value - jnp.sum(base * rewards)
    pair = pf.Pair(
        optimum, optimum, jnp.log(ref), jnp.log(ref), jnp.ones(3), jnp.ones(3)
    )
    # The term of ``rpo`` alone, of the optimum less of the reference.
    term = pf.rpo(pair, beta=beta, eta=1.0) - pf.rpo(pair, beta=beta, eta=0.0)
    of_ref = pair._replace(logp_w=jnp.log(ref))
    term_ref = pf.rpo(of_ref, beta=beta, eta=1.0) - pf.rpo(of_ref, beta=beta, eta=0.0)
    right = jnp.sum(base * (term - term_ref))
    np.testing.assert_allclose(left, 1.1822023098829832, rtol=1e-12)
    np.testing.assert_allclose(right, left, rtol=1e-12)


def test_reward_augmented_pairs():
    """arXiv 2410.08067: each pair under its winner's and its loser's goal; equal
    rewards say nothing."""
    goals, sign = pf.reward_relabelled(wide([9.0, 2.0]), wide([4.0, 2.0]))
    np.testing.assert_array_equal(goals, [[9, 4], [2, 2]])
    np.testing.assert_array_equal(sign, [[1, -1], [0, 0]])


def test_seppo_flips_with_the_anchor():
    """arXiv 2410.05255: at the reference the loss is log 2 and the sample is a loser;
    the gradient by the sample changes its sign with the winner's fit."""
    zero = wide(0.0)
    np.testing.assert_allclose(pf.seppo(zero, zero, beta=1.0), np.log(2))
    slope = jax.grad(lambda v, u: pf.seppo(u, v, beta=1.0))
    assert slope(zero, zero) == 0.5
    np.testing.assert_allclose(slope(zero, wide(0.1)), 0.47502081252106)
    np.testing.assert_allclose(slope(zero, wide(-0.1)), -0.52497918747894)


def test_kto_anchor_is_a_stopped_mean_above_zero():
    """arXiv 2402.01306, §4.1; at anchor 0 KTO is APO-zero."""
    assert pf.kto_anchor(wide([1.0, -4.0])) == 0
    np.testing.assert_allclose(pf.kto_anchor(wide([1.0, -0.5])), 0.25)
    assert jax.grad(lambda x: pf.kto_anchor(x))(wide([1.0, 2.0])).sum() == 0
    pair = pf.Pair(*wide(np.random.default_rng(4).normal(size=(6, 3))))
    np.testing.assert_allclose(
        pf.kto_pair(pair, 0.0, beta=0.3), pf.apo_zero_pair(pair, beta=0.3)
    )
    mean = jax.vmap(lambda x: pf.kto_anchor(x, axis_name="d"), axis_name="d")
    np.testing.assert_allclose(mean(wide([[1.0], [-0.5]])), [0.25, 0.25])


def test_aot_compares_quantiles():
    """arXiv 2406.05882: the mean loss does not depend on which reference margin stands
    beside which pair."""
    rng = np.random.default_rng(6)
    arrays = [wide(x) for x in rng.normal(size=(6, 5))]
    before = pf.aot(pf.Pair(*arrays), beta=0.3).sum()
    arrays[2], arrays[3] = arrays[2][::-1], arrays[3][::-1]
    after = pf.aot(pf.Pair(*arrays), beta=0.3).sum()
    np.testing.assert_allclose(before, after, rtol=1e-12)
